"""How photos are seen: random augmentation in training, fixed views at test time, on top of a `Preprocess`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
from PIL import Image

from jclip.data import photo_policies
from jclip.data.photo_file import as_seen, open_photo
from jclip.data.preprocess import RESAMPLE, Preprocess, centre_crop, notice_squashed, scale_short_side, square_padded
from jclip.errors import ConfigError, DataError, UnknownName


@dataclass(frozen=True)
class Augment:
    """Training pipeline on top of a `Preprocess`: random resized crop, flip, random erasing. All randomness is `rng`'s.

    area: range of the crop's share of the photo, where the evaluation pads to a square of the padded one. erase_area: range
    of the erased share of the normalised tensor. plain: the evaluation's pixels in place of a random crop.
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
        image = as_seen(image, p.upright).convert("RGB")
        image = square_padded(image, p) if p.resize == "square-pad" else image
        return resized_crop(image, random_crop_box(image.height, image.width, self.area, self.ratio, rng), p)


@dataclass(frozen=True)
class Policied:
    """Training pipeline of DualCoOp's kind: the whole photo squashed, a hole cut out, then published random changes.

    hole: share of the sides of a rectangle of a random colour. area: with it, one view in two is a random crop of that share
    of the photo (range) instead. policy: "rand_augment" or a name of `jclip.data.photo_policies.POLICIES`.
    """

    hole: float = 0.5
    area: tuple[float, float] | None = None
    policy: str = "rand_augment"
    flip: float = 0.0

    def __call__(self, image: Image.Image, p: Preprocess, rng: np.random.Generator) -> np.ndarray:
        """float32 (3, H, W): one random view of `image`."""
        image = as_seen(image, p.upright).convert("RGB")
        if self.area and rng.random() < 0.5:
            image = resized_crop(image, random_crop_box(image.height, image.width, self.area, (3 / 4, 4 / 3), rng), p)
        else:
            squashed = image.resize((p.size[1], p.size[0]), RESAMPLE[p.interpolation])
            image = photo_policies.cut_out(squashed, self.hole, rng)
        if self.policy == "rand_augment":
            image = photo_policies.rand_augment(image, rng)
        else:
            image = photo_policies.by_policy(image, photo_policies.POLICIES[self.policy], rng)
        if rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return p.normalise(p.sharpened(image))


AUGMENTS: dict[str, Augment | Policied | None] = {
    "none": None,
    "coop": Augment(),  # CoOp's family, CLIP-LoRA
    "tip_adapter": Augment(area=(0.5, 1.0)),  # Tip-Adapter, GDA, APE, LP++, AMU
    "fd_align": Augment(flip=0.0),
    "wise_ft": Augment(area=(0.9, 1.0), flip=0.0),  # WiSE-FT, FLYP, open_clip
    "jittor_challenge": Augment(ratio=(0.75, 1.3), flip=0.0, erase=0.5),  # its entrants: random crop and erasing
    "mirror": Augment(flip=1.0, plain=True),  # cross-modal adaptation: nothing random, every view is the same
    "dualcoop": Policied(),  # its authors
    "tai_dual": Policied(0.4, (0.5, 1.0), "imagenet+cifar10", 0.5),  # DualCoOp as TaI-DPT's authors train it
    "tai_dual_nus": Policied(0.4, (0.6, 1.0), "imagenet+cifar10", 0.5),  # the same on NUS-WIDE
}


@dataclass(frozen=True)
class Crops:
    """Views to test by on top of a `Preprocess`, nothing random: the evaluation's pixels, or crops of a larger photo.

    corners: the four corners and the centre, in this order, of the photo whose short side is 8/7 of the model's size
    (256 for 224), however the evaluation resizes. flip: then the same of the mirrored photo.
    """

    corners: bool = False
    flip: bool = False

    @property
    def count(self) -> int:
        """V, the number of views."""
        return (5 if self.corners else 1) * (2 if self.flip else 1)

    def __call__(self, image: Image.Image, p: Preprocess) -> np.ndarray:
        """float32 (V, 3, H, W) of `image`, which is resized once."""
        whole = self._larger(image, p) if self.corners else p.pixels(image)
        sides = [whole, whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT)] if self.flip else [whole]
        if self.corners:
            sides = [p.sharpened(crop) for side in sides for crop in corners_and_centre(side, p)]
        return np.stack([p.normalise(view) for view in sides])

    @staticmethod
    def _larger(image: Image.Image, p: Preprocess) -> Image.Image:
        size = tuple(round(side * 8 / 7) for side in p.size)
        return scale_short_side(p.source(image), replace(p, size=size)).convert("RGB")


TEST_VIEWS: dict[str, Crops] = {
    "none": Crops(),
    "flip": Crops(flip=True),
    "five-crops": Crops(corners=True),
    "ten-crops": Crops(corners=True, flip=True),
}

PIPELINES: dict[str, type[Augment | Policied | Crops]] = {kind.__name__: kind for kind in (Augment, Policied, Crops)}


def augment(name: str) -> Augment | Policied | None:
    """The training pipeline of that name, None for `none`. Raises `UnknownName`, or `ConfigError` for test-time views."""
    if name in TEST_VIEWS and name not in AUGMENTS:
        raise ConfigError(
            f"augment={name} names fixed test-time views, and training draws its own: name one of {', '.join(AUGMENTS)}"
        )
    if name not in AUGMENTS:
        raise UnknownName("augmentation", name, AUGMENTS)
    return AUGMENTS[name]


def pipeline_of(name: str) -> Augment | Policied | Crops:
    """How a photo is seen by that name, to train on or to test by. Raises `UnknownName`."""
    pipelines = AUGMENTS | TEST_VIEWS
    if name not in pipelines:
        raise UnknownName("augmentation", name, pipelines)
    return pipelines[name]


@dataclass(frozen=True)
class Views:
    """photo, row → (V, 3, H, W) float32: the photo as training or evaluation sees it, once per number, or in `Crops`.

    numbers: of views, or an epoch's; with (seed, number, row) they are all that a view's randomness depends on. `Crops`
    have their own number of views, and nothing random.
    """

    preprocess: Preprocess
    pipeline: Augment | Policied | Crops | None = None
    seed: int = 0
    numbers: tuple[int, ...] = (0,)

    def __post_init__(self):
        if self.preprocess.varies and not self._sees_whole:
            notice_squashed(self.preprocess, "crops of photos")
            object.__setattr__(self, "preprocess", self.preprocess.fixed())

    @property
    def _sees_whole(self) -> bool:
        """Whether views are the evaluation's pixels, perhaps mirrored."""
        p = self.pipeline
        return p is None or (isinstance(p, Crops) and not p.corners) or (isinstance(p, Augment) and p.plain)

    def __call__(self, image: Image.Image, row: int) -> np.ndarray:
        if self.pipeline is None:
            return np.stack([self.preprocess(image)] * len(self.numbers))
        if isinstance(self.pipeline, Crops):
            return self.pipeline(image, self.preprocess)
        keys = ((self.seed, number, row) for number in self.numbers)
        return np.stack([self.pipeline(image, self.preprocess, np.random.default_rng(key)) for key in keys])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(V, 3, H, W), of photos that vary the model's own size."""
        count = self.pipeline.count if isinstance(self.pipeline, Crops) else len(self.numbers)
        return count, 3, *self.preprocess.size

    @property
    def largest(self) -> int:
        """Numbers of the largest array that comes out."""
        return 3 * self.shape[0] * self.preprocess.largest

    @property
    def draft(self) -> tuple[int, int] | None:
        """Width and height that a decoded fraction must have: twice what is wanted, so that resizing still averages."""
        height, width = self.preprocess.size
        return (2 * width, 2 * height) if self.preprocess.draft and not self.preprocess.varies else None

    @property
    def upright(self) -> bool:
        """Whether an EXIF orientation is applied."""
        return self.preprocess.upright

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the pipeline's class as `kind`, "" without one; `from_dict` reads them back."""
        return {**asdict(self), "kind": type(self.pipeline).__name__ if self.pipeline else ""}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Views:
        """The inverse of `to_dict`, through JSON as well."""
        pipeline = None
        if values["kind"]:
            fields = {k: tuple(v) if isinstance(v, list) else v for k, v in values["pipeline"].items()}
            pipeline = PIPELINES[values["kind"]](**fields)
        preprocess = Preprocess.from_dict(values["preprocess"])
        return Views(preprocess, pipeline, values["seed"], tuple(values["numbers"]))


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


def corners_and_centre(image: Image.Image, p: Preprocess) -> list[Image.Image]:
    """Crops of the model's size: top left, top right, bottom left, bottom right, centre."""
    height, width = p.size
    right, bottom = image.width - width, image.height - height
    corners = [(left, top, left + width, top + height) for top in (0, bottom) for left in (0, right)]
    return [*map(image.crop, corners), centre_crop(image, p)]


class OfPhotos(Protocol):
    """What prepares photos in other processes: `Views`, and views of photos with boxes.

    largest: numbers of the largest array that a call returns, float32. draft, upright: how a photo is opened.
    """

    @property
    def largest(self) -> int: ...
    @property
    def draft(self) -> tuple[int, int] | None: ...
    @property
    def upright(self) -> bool: ...
    def __call__(self, image: Image.Image, row: Any) -> np.ndarray: ...
    def to_dict(self) -> dict[str, Any]: ...


def seen(path: str, views: OfPhotos, row: Any) -> np.ndarray:
    """What `views` makes of the photo at `path`. Raises `DataError` with the path for one that can't be seen so."""
    image = open_photo(path, views.draft, views.upright)
    try:
        return views(image, row)
    except (DataError, MemoryError, ValueError, OSError) as e:
        raise DataError(f"{path} can't be resized: {e or type(e).__name__}") from e
