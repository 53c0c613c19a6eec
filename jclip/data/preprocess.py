"""Photos to float32 tensors: OpenAI's order and rounding bit for bit.

Pillow does every resize. The order is OpenAI's: resize, crop, convert to RGB, divide by 255, normalise; a palette
photo is therefore resized by its palette indices, as in the reference. `rgb_first=True` converts before resizing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import Any, get_args

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from jclip.choices import Interpolation, PreprocessChoice, Resize
from jclip.data.patch_counts import size_in_patches
from jclip.data.photo_file import MOST_PIXELS, as_seen
from jclip.errors import ConfigError, DataError, UnknownName, notice
from jclip.readers.schema import FLAG, SIDE, Condition, number, obey, one_of, refuse_unknown, several, some, whole

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
NORMALISATIONS = {  # mean and standard deviation of the three channels
    "openai": (OPENAI_MEAN, OPENAI_STD),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
MEANS, DEVIATIONS = several(number(-1e3, 1e3), 3), several(number(1e-6, 1e3), 3)
FILL = whole(0, 255)
RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
DESCRIBED: dict[str, Condition] = {  # what a file may say of photos, but for flags
    "size": several(SIDE, 2), "resize": one_of(*get_args(Resize)), "interpolation": one_of(*RESAMPLE),
    "mean": MEANS, "std": DEVIATIONS, "fill": FILL, "sharpness": number(0, 1e3), "patch": whole(0, 4096),
    "patch_counts": some(whole(1, 1 << 16), 16),
}  # fmt: skip


@dataclass(frozen=True)
class Preprocess:
    """Evaluation pipeline: one photo to (3, H, W) float32.

    upright and draft belong to who reads the photos, not to the weights: what a checkpoint says of them does not count.
    resize: `shortest` short side to the size, then centre crop; `squash` straight to the size; `longest-pad` long side
    to the size, then pad; `square-pad` pad to a square first, then as `shortest`; `proportional` as large as whole patches
    allow, both sides in proportion, whatever the size: see `jclip.data.patch_counts`.
    patch, patch_counts: of `proportional`: pixels of a patch's side, and how many patches a photo may have, in rising order.
    """

    size: tuple[int, int] = (224, 224)  # H, W
    resize: Resize = "shortest"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    fill: int = 0
    sharpness: float = 1.0
    rgb_first: bool = False
    upright: bool = True  # an EXIF orientation is applied; False leaves photos as they are stored
    draft: bool = False  # large JPEGs are decoded at a fraction of their size: faster, not bit-exact
    patch: int = 0
    patch_counts: tuple[int, ...] = ()

    def __post_init__(self):
        if self.resize == "proportional" and not (self.patch and self.patch_counts):
            raise ConfigError(
                "resize proportional must be of weights that take photos of any proportions, as FG-CLIP 2's, without another "
                "size: leave it out"
            )
        if self.resize not in _RESIZERS:
            raise UnknownName("resize mode", self.resize, _RESIZERS)
        if self.interpolation not in RESAMPLE:
            raise UnknownName("interpolation", self.interpolation, RESAMPLE)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """float32 (3, H, W), normalised."""
        return self.normalise(self.pixels(image))

    @property
    def varies(self) -> bool:
        """Whether photos of different proportions get different sizes."""
        return self.resize == "proportional"

    @property
    def largest(self) -> int:
        """Pixels of the largest photo that comes out, of one channel."""
        return self.patch**2 * self.patch_counts[-1] if self.varies else self.size[0] * self.size[1]

    def fixed(self) -> Preprocess:
        """The same with all photos squashed to the model's size, where they would vary."""
        return replace(self, resize="squash", patch=0, patch_counts=()) if self.varies else self

    def pixels(self, image: Image.Image) -> Image.Image:
        """The RGB photo at the model's size, before scaling to floats."""
        return self.sharpened(_RESIZERS[self.resize](self, self.source(image)).convert("RGB"))

    def source(self, image: Image.Image) -> Image.Image:
        """The photo that is resized: as `as_seen` gives it, converted where the pipeline does so first."""
        image = as_seen(image, self.upright)
        return image.convert("RGB") if self.rgb_first and image.mode != "RGB" else image

    def sharpened(self, image: Image.Image) -> Image.Image:
        """`image` at the pipeline's sharpness."""
        return image if self.sharpness == 1.0 else ImageEnhance.Sharpness(image).enhance(self.sharpness)

    def normalise(self, image: Image.Image) -> np.ndarray:
        """(x / 255 - mean) / std of an RGB photo, as float32 (3, H, W)."""
        x = np.asarray(image, dtype=np.uint8).transpose(2, 0, 1).astype(np.float32, order="C")
        x /= np.float32(255)
        x -= np.asarray(self.mean, np.float32)[:, None, None]
        x /= np.asarray(self.std, np.float32)[:, None, None]
        return x

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and cache keys; `from_dict` reads them back. What only photos that vary have is left out of
        others': features that were kept before there were such stay valid."""
        values = asdict(self)
        return values if self.patch else {k: v for k, v in values.items() if k not in ("patch", "patch_counts")}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Preprocess:
        """The inverse of `to_dict`. Raises `ConfigError` for keys it doesn't know and values out of range, by key.

        `exif_rotate`, which checkpoints said before it became a choice of the reader, is passed over.
        """
        if isinstance(values, dict):
            values = {k: v for k, v in values.items() if k != "exif_rotate"}
        flags = {field.name: FLAG for field in fields(Preprocess) if isinstance(field.default, bool)}
        obey(values, {**DESCRIBED, **flags})
        refuse_unknown(values, [field.name for field in fields(Preprocess)], "it")
        return Preprocess(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


@cache
def _say_squashed(size: tuple[int, int], what: str) -> None:
    notice(
        f"{what} must be of one size: they are squashed to {size[0]} x {size[1]} pixels, where the weights' authors keep "
        "proportions"
    )


def notice_squashed(preprocess: Preprocess, what: str) -> None:
    """Report on stderr, once, that photos which would vary are squashed for the sake of `what`."""
    if preprocess.varies:
        _say_squashed(preprocess.size, what)


def with_choice(preprocess: Preprocess, choice: PreprocessChoice) -> Preprocess:
    """`preprocess` with what a user has set."""
    chosen = {name: value for name, value in vars(choice).items() if value is not None}
    if choice.size is not None:
        chosen["size"] = (choice.size, choice.size)
    if choice.resize not in (None, "proportional"):
        preprocess = preprocess.fixed()
    return replace(preprocess, **chosen)


def _shortest(p: Preprocess, image: Image.Image) -> Image.Image:
    return centre_crop(scale_short_side(image, p), p)


def _squash(p: Preprocess, image: Image.Image) -> Image.Image:
    return image.resize((p.size[1], p.size[0]), RESAMPLE[p.interpolation])


def _proportional(p: Preprocess, image: Image.Image) -> Image.Image:
    height, width = size_in_patches(image.height, image.width, p.patch, p.patch_counts)
    return image.resize((width, height), RESAMPLE[p.interpolation])


def _longest_pad(p: Preprocess, image: Image.Image) -> Image.Image:
    """Scale the side that is longest relative to the target to fit, pad the other evenly (odd pixel right and below)."""
    height, width = p.size
    ratio = max(image.height / height, image.width / width)
    size = (max(1, round(image.width / ratio)), max(1, round(image.height / ratio)))
    image = image.resize(size, RESAMPLE[p.interpolation])
    padded = Image.new("RGB", (width, height), (p.fill,) * 3)
    padded.paste(image.convert("RGB"), ((width - image.width) // 2, (height - image.height) // 2))
    return padded


def _square_pad(p: Preprocess, image: Image.Image) -> Image.Image:
    return _shortest(p, square_padded(image, p))


def square_padded(image: Image.Image, p: Preprocess) -> Image.Image:
    """RGB with equal borders on the short side; an odd difference leaves one pixel, which a crop absorbs."""
    image = image.convert("RGB")
    x = max(0, (image.height - image.width) // 2)
    y = max(0, (image.width - image.height) // 2)
    _check_room((image.width + 2 * x, image.height + 2 * y), image)
    return ImageOps.expand(image, border=(x, y, x, y), fill=(p.fill,) * 3)


_RESIZERS = {
    "shortest": _shortest, "squash": _squash, "longest-pad": _longest_pad, "square-pad": _square_pad,
    "proportional": _proportional,
}  # fmt: skip


def scale_short_side(image: Image.Image, p: Preprocess) -> Image.Image:
    """Square target: long side truncated, nothing done when the short side fits. Otherwise by ratio, rounded."""
    height, width = p.size
    if height == width:
        short, long = sorted(image.size)
        if short == height:
            return image
        scaled = int(height * long / short)
        size = (height, scaled) if image.width <= image.height else (scaled, height)
    else:
        ratio = min(image.height / height, image.width / width)
        size = (round(image.width / ratio), round(image.height / ratio))
    _check_room(size, image)
    return image.resize(size, RESAMPLE[p.interpolation])


def _check_room(size: tuple[int, int], image: Image.Image) -> None:
    """Raises `DataError` where a photo on its way to the model would be larger than a photo may be."""
    if size[0] * size[1] > MOST_PIXELS:
        raise DataError(
            f"a photo of {image.width} x {image.height} is resized by way of {size[0]} x {size[1]} pixels, more than "
            f"{MOST_PIXELS:,}: crop it"
        )


def centre_crop(image: Image.Image, p: Preprocess) -> Image.Image:
    """Crop with margins rounded half to even, as torchvision's `int(round(margin / 2))`."""
    height, width = p.size
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
