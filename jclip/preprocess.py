"""Photos to float32 tensors: OpenAI's order and rounding bit for bit, and the training pipelines of the recipes.

Pillow does every resize. The order is OpenAI's: resize, crop, convert to RGB, divide by 255, normalise; a palette
photo is therefore resized by its palette indices, as in the reference. `rgb_first=True` converts before resizing.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from jclip.errors import ConfigError, UnknownName

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
NORMALISATIONS = {  # mean and standard deviation of the three channels
    "openai": (OPENAI_MEAN, OPENAI_STD),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
Resize = Literal["shortest", "squash", "longest-pad", "square-pad"]
RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Preprocess:
    """Evaluation pipeline: one photo to (3, H, W) float32.

    resize: `shortest` short side to the size, then centre crop; `squash` straight to the size; `longest-pad` long side
    to the size, then pad; `square-pad` pad to a square first, then as `shortest`.
    """

    size: tuple[int, int] = (224, 224)  # H, W
    resize: Resize = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    fill: int = 0
    sharpness: float = 1.0
    rgb_first: bool = False
    exif_rotate: bool = False
    draft: bool = False  # large JPEGs are decoded at a fraction of their size: faster, not bit-exact

    def __post_init__(self):
        if self.resize not in _RESIZERS:
            raise UnknownName("resize mode", self.resize, _RESIZERS)
        if self.interpolation not in RESAMPLE:
            raise UnknownName("interpolation", self.interpolation, RESAMPLE)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """float32 (3, H, W), normalised."""
        return self.normalise(self.pixels(image))

    def pixels(self, image: Image.Image) -> Image.Image:
        """The RGB photo at the model's size, before scaling to floats."""
        if self.exif_rotate:
            image = ImageOps.exif_transpose(image)
        if self.rgb_first:
            image = image.convert("RGB")
        return self.sharpened(_RESIZERS[self.resize](self, image).convert("RGB"))

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
        """Plain values, for JSON and cache keys; `from_dict` reads them back."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Preprocess:
        """The inverse of `to_dict`. Raises `ConfigError` for keys it doesn't know."""
        try:
            return Preprocess(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        except TypeError as e:
            raise ConfigError(f"not a description of preprocessing: {e}") from e


def _shortest(p: Preprocess, image: Image.Image) -> Image.Image:
    return _centre_crop(_scale_short_side(image, p), p)


def _squash(p: Preprocess, image: Image.Image) -> Image.Image:
    return image.resize((p.size[1], p.size[0]), RESAMPLE[p.interpolation])


def _longest_pad(p: Preprocess, image: Image.Image) -> Image.Image:
    """Scale the side that is longest relative to the target to fit, pad the other evenly (odd pixel right and below)."""
    height, width = p.size
    ratio = max(image.height / height, image.width / width)
    image = image.resize((round(image.width / ratio), round(image.height / ratio)), RESAMPLE[p.interpolation])
    padded = Image.new("RGB", (width, height), (p.fill,) * 3)
    padded.paste(image.convert("RGB"), ((width - image.width) // 2, (height - image.height) // 2))
    return padded


def _square_pad(p: Preprocess, image: Image.Image) -> Image.Image:
    """Equal borders on the short side; an odd difference leaves one pixel, which the crop absorbs."""
    image = image.convert("RGB")
    x = max(0, (image.height - image.width) // 2)
    y = max(0, (image.width - image.height) // 2)
    padded = ImageOps.expand(image, border=(x, y, x, y), fill=(p.fill,) * 3)
    return _shortest(p, padded)


_RESIZERS = {"shortest": _shortest, "squash": _squash, "longest-pad": _longest_pad, "square-pad": _square_pad}


def _scale_short_side(image: Image.Image, p: Preprocess) -> Image.Image:
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
    return image.resize(size, RESAMPLE[p.interpolation])


def _centre_crop(image: Image.Image, p: Preprocess) -> Image.Image:
    """Crop with margins rounded half to even, as torchvision's `int(round(margin / 2))`."""
    height, width = p.size
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


@dataclass(frozen=True)
class Augment:
    """Training pipeline on top of a `Preprocess`: random resized crop, flip, random erasing. All randomness is `rng`'s.

    area: range of the crop's share of the photo. erase_area: range of the erased share of the normalised tensor. plain:
    the evaluation's pixels in place of a random crop.
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    erase: float = 0.0
    erase_area: tuple[float, float] = (0.002, 0.01)
    erase_ratio: tuple[float, float] = (0.3, 3.3)
    plain: bool = False

    def __call__(self, image: Image.Image, p: Preprocess, rng: np.random.Generator) -> np.ndarray:
        """float32 (3, H, W): one random view of `image`."""
        image = p.pixels(image) if self.plain else self._cropped(image, p, rng)
        if rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if not self.plain:
            image = p.sharpened(image)
        x = p.normalise(image)
        if rng.random() < self.erase:
            top, left, height, width = random_erase_box(*x.shape[1:], self.erase_area, self.erase_ratio, rng)
            x[:, top : top + height, left : left + width] = 0.0
        return x

    def _cropped(self, image: Image.Image, p: Preprocess, rng: np.random.Generator) -> Image.Image:
        image = (ImageOps.exif_transpose(image) if p.exif_rotate else image).convert("RGB")
        return resized_crop(image, random_crop_box(image.height, image.width, self.area, self.ratio, rng), p)


AUGMENTS: dict[str, Augment | None] = {
    "none": None,
    "coop": Augment(),  # CoOp's family, CLIP-LoRA
    "tip_adapter": Augment(area=(0.5, 1.0)),  # Tip-Adapter, GDA, APE, LP++, AMU
    "fd_align": Augment(flip=0.0),
    "wise_ft": Augment(area=(0.9, 1.0), flip=0.0),  # WiSE-FT, FLYP, open_clip
    "jittor_challenge": Augment(ratio=(0.75, 1.3), flip=0.0, erase=0.5),  # its entrants: random crop and erasing
    "mirror": Augment(flip=1.0, plain=True),  # cross-modal adaptation: nothing random, every view is the same
}


def augment(name: str) -> Augment | None:
    """The training pipeline of that name, None for `none`. Raises `UnknownName`."""
    if name not in AUGMENTS:
        raise UnknownName("augmentation", name, AUGMENTS)
    return AUGMENTS[name]


@dataclass(frozen=True)
class Views:
    """photo, row → (V, 3, H, W) float32: the photo as training or evaluation sees it, once per number.

    numbers: of views, or an epoch's; with (seed, number, row) they are all that a view's randomness depends on.
    """

    preprocess: Preprocess
    pipeline: Augment | None = None
    seed: int = 0
    numbers: tuple[int, ...] = (0,)

    def __call__(self, image: Image.Image, row: int) -> np.ndarray:
        if self.pipeline is None:
            return np.stack([self.preprocess(image)] * len(self.numbers))
        keys = ((self.seed, number, row) for number in self.numbers)
        return np.stack([self.pipeline(image, self.preprocess, np.random.default_rng(key)) for key in keys])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(V, 3, H, W)."""
        return len(self.numbers), 3, *self.preprocess.size

    @property
    def draft(self) -> tuple[int, int] | None:
        """Width and height that a decoded fraction must have: twice what is wanted, so that resizing still averages."""
        height, width = self.preprocess.size
        return (2 * width, 2 * height) if self.preprocess.draft else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` reads them back."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Views:
        """The inverse of `to_dict`, through JSON as well."""
        pipeline = values["pipeline"]
        return Views(
            Preprocess.from_dict(values["preprocess"]),
            pipeline and Augment(**{k: tuple(v) if isinstance(v, list) else v for k, v in pipeline.items()}),
            values["seed"],
            tuple(values["numbers"]),
        )


def random_crop_box(
    height: int, width: int, area: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """top, left, height, width of a crop: ten tries at a uniform area and a log-uniform ratio, else the centre."""
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = (width, round(width / aspect)) if width / height <= aspect else (round(height * aspect), height)
    return (height - h) // 2, (width - w) // 2, h, w


def random_erase_box(
    height: int, width: int, area: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """top, left, height, width to erase, strictly inside; nothing (zeros) when ten tries find none."""
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        h, w = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if h < height and w < width:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    return 0, 0, 0, 0


def resized_crop(image: Image.Image, box: tuple[int, int, int, int], p: Preprocess) -> Image.Image:
    """Crop `box` (top, left, height, width), then resize to the model's size."""
    top, left, height, width = box
    crop = image.crop((left, top, left + width, top + height))
    return crop.resize((p.size[1], p.size[0]), RESAMPLE[p.interpolation])
