"""Groups of settings that recipes share, each with the ranges of its values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from jclip.errors import ConfigError, quoted

Dtype = Literal["fp32", "fp16", "bf16", "int8"]  # what a model computes its products in
Subset = Literal["all", "base", "new"]  # of the classes: the first half, with the middle one, and the rest


ReadWith = Mapping[str, Sequence[str]]  # what must hold → settings that are read then alone (`unread_settings`)


class OutOfRange(ConfigError):
    """A value outside its range: `optim.betas must be in [0, 1), got [1.2]`; the group is named as the config names it."""

    def __init__(self, group: str, key: str, must: str, value: Any):
        self.group, self._rest = group, f"{key} must be {must}, got {quoted(value)}"
        super().__init__(f"{group}.{self._rest}")

    def below(self, group: str) -> str:
        """The message for a config that has these settings in another group, such as `head_optim`."""
        return f"{group or self.group}.{self._rest}"


def require(holds: bool, group: str, key: str, must: str, value: Any) -> None:
    """Raises `OutOfRange` unless `holds`."""
    if not holds:
        raise OutOfRange(group, key, must, list(value) if isinstance(value, tuple) else value)


@dataclass(frozen=True)
class DataConfig:
    """Where photos or precomputed features are, and what is drawn of them.

    One of four sources: `features` (an .npz of precomputed features), `split_file` (CoOp's split_zhou_*.json), `train`
    (list files of the Jittor challenge), or `root` alone (a folder per class, below train/val/test or directly; the
    Jittor challenge's folder, see `jclip.data.challenge_folder`; `shapes:STYLE` for rendered photos of the embedded world).
    """

    root: str = ""  # the folder that photos and lists are relative to
    train: str = ""  # list file: "relative/path label" per line
    val: str = ""
    test: str = ""
    # "name label" per line; beside folders alone "folder name" per line, as ImageNet's classnames.txt
    classes: str = ""
    split_file: str = ""
    features: str = ""
    text_features: str = ""  # .npy (C, E) for precomputed features that come without
    shots: int = 16  # photos per class to learn from; 0 takes all
    val_shots: int = -1  # photos per class to choose by; -1: min(shots, 4), the field's custom; 0: all
    # of precomputed features: draw the shots, and val_shots, by seed from those of so many shots; 0: as they are
    pool: int = 0
    seed: int = 1
    subset: Subset = "all"  # of the classes, labels counted from 0 again; shots are drawn as if there were all
    strip_prefix: bool = False  # class names "Animal_Bear" → "Bear", as the challenge's
    on_error: Literal["stop", "skip"] = "stop"  # what to do with a photo that does not decode
    draft: bool = False  # large JPEGs are decoded at a fraction of their size: faster, not bit-exact
    upright: bool = True  # an EXIF orientation is applied; false leaves photos as they are stored

    def __post_init__(self):
        require(self.shots >= 0, "data", "shots", "at least 0 (all photos)", self.shots)
        require(self.val_shots >= -1, "data", "val_shots", "at least -1 (min(shots, 4))", self.val_shots)
        require(self.pool >= 0, "data", "pool", "at least 0 (features as they are)", self.pool)
        drawable = not self.pool or 0 < self.shots <= self.pool
        require(drawable, "data", "shots", f"in [1, {self.pool}], as many as data.pool has", self.shots)

    def check_one_source(self) -> None:
        """Raises `ConfigError` for what only another source than the one that is read would be read with."""
        lists = ("train", "val", "test", "classes")
        if self.features:
            source, others = f"data.features={self.features}", ("root", *lists, "split_file")
        elif self.split_file:
            source, others = f"data.split_file={self.split_file}", (*lists, "text_features", "pool")
        else:
            source, others = "photos", ("text_features", "pool")
        for name in others:
            if value := getattr(self, name):
                raise ConfigError(
                    f"data.{name} must be left out with {source}, got {quoted(value)}, which nothing reads"
                )


@dataclass(frozen=True)
class CaptionConfig:
    """Where image-caption pairs are.

    train, val: a .csv or .tsv with a header line, .jsonl, COCO's, Karpathy's or a list's .json, Flickr's or A3R's .txt,
    Chinese-CLIP's `*_texts.jsonl`, a .tar or a folder of such shards; or `shapes`, the embedded world, of which `scenes`
    are redrawn for each epoch.
    """

    train: str = ""
    val: str = ""
    root: str = ""  # the folder that images are relative to; by default the file's own
    image_key: str = "filepath"
    caption_key: str = "title"
    val_split: Literal["val", "test", "train"] = "val"  # of Karpathy's files, in which train is train and restval
    captions_per_image: int = 0  # only this many of each image, the first ones; 0: all
    queries: Literal["rows", "texts"] = "rows"  # of retrieval: every caption, or equal captions once
    scenes: int = 20_000
    val_scenes: int = 500
    easy_epochs: int = 0  # of the embedded world: epochs on the way from one large thing to up to four
    on_error: Literal["stop", "skip"] = "stop"
    upright: bool = True  # an EXIF orientation is applied; false leaves photos as they are stored
    READ_WITH: ClassVar[ReadWith] = {"train=shapes": ("scenes", "easy_epochs"), "val=shapes": ("val_scenes",)}

    def __post_init__(self):
        require(self.scenes >= 2, "data", "scenes", "at least 2", self.scenes)
        require(self.val_scenes >= 2, "data", "val_scenes", "at least 2", self.val_scenes)
        require(self.easy_epochs >= 0, "data", "easy_epochs", "at least 0", self.easy_epochs)
        require(self.captions_per_image >= 0, "data", "captions_per_image", "at least 0 (all)", self.captions_per_image)


@dataclass(frozen=True)
class BoxDataConfig:
    """Where phrases with their boxes are.

    train, val, test: files as `jclip boxes` reads them, several of which are joined, each as FILE or as FILE:SPLIT, the rows
    of one split; or `shapes`, scenes of the embedded world, of so many scenes. Of a file that has several splits a part
    takes the one of its own name. None of val and test: the embedded world where train is, else nothing.
    """

    train: tuple[str, ...] = ("shapes",)
    val: tuple[str, ...] | None = None
    test: tuple[str, ...] | None = None
    images: str = ""  # the folder of the photos; by default `photos` or `images` beside a file, or the file's own
    form: str = ""  # of the files, of `jclip boxes --form`; by default by ending and content
    dataset: str = ""  # of .pth files whose names do not begin with it: unc, unc+, gref, gref_umd, referit, flickr
    box_format: str = ""  # xyxy or xywh; by default as the form or the data set has it
    truncate: bool = False  # the numbers of boxes are cut to integers before they are added, as CLIP-VG does
    on_error: Literal["stop", "skip"] = "stop"  # what to do with rows that can't be used and photos that don't decode
    scenes: int = 4000
    val_scenes: int = 200
    test_scenes: int = 600
    unseen_scenes: int = 200  # of test, of colours on shapes that neither the shipped models nor training have; 0: none
    twins: float = 0.25  # share of scenes of few kinds of things, whose phrases name sides
    train_twins: float | None = None  # the same of training scenes, where it differs

    def __post_init__(self):
        for part in ("train", "val", "test"):
            if isinstance(name := getattr(self, part), str):  # one alone
                object.__setattr__(self, part, (name,))
        require(self.scenes >= 1, "data", "scenes", "at least 1", self.scenes)
        for name in ("val_scenes", "test_scenes", "unseen_scenes"):
            require((value := getattr(self, name)) >= 0, "data", name, "at least 0 (none)", value)
        require(0 <= self.twins <= 1, "data", "twins", "in [0, 1]", self.twins)
        if self.train_twins is not None:
            require(0 <= self.train_twins <= 1, "data", "train_twins", "in [0, 1]", self.train_twins)

    def named(self, part: str) -> tuple[str, ...]:
        """What a part of the data is read from: files, or the embedded world; nothing where it has none."""
        given = self.test if part == "unseen" else getattr(self, part)
        return tuple(filter(None, self.train if given is None and self.train == ("shapes",) else given or ()))


@dataclass(frozen=True)
class BoxViewConfig:
    """How a training view of a phrase's photo is drawn, as CLIP-VG has it but for `crop_check`.

    crop_check: `strict` keeps the box's centre and a pixel of it inside the crop; `reference` is the published test, which
    compares x with the crop's top and y with its left and never looks at the far edges, so that the object can be cut away.
    """

    crop: float = 0.5  # probability of the branch that crops, unless the phrase names a direction
    crop_check: Literal["strict", "reference"] = "strict"
    short_sides: tuple[int, ...] = (400, 500, 600)  # pixels of the photo to crop from
    crop_sides: tuple[int, int] = (384, 600)  # pixels of the crop, at least and at most
    scale_step: int = 32  # pixels from one long side in the square to the next,
    scale_count: int = 7  # so many of them, from the square's side down
    translate: bool = True  # the picture lies anywhere in the square, not in its middle
    jitter: float = 0.4  # of brightness, contrast and saturation
    jitter_share: float = 0.8
    blur_share: float = 0.0

    def __post_init__(self):
        group, (low, high), most = "augmentation", self.crop_sides, 4096
        for name in ("crop", "jitter", "jitter_share", "blur_share"):
            require(0 <= (value := getattr(self, name)) <= 1, group, name, "in [0, 1]", value)
        require(1 <= low <= high <= most, group, "crop_sides", f"rising numbers in [1, {most}]", self.crop_sides)
        fits = self.short_sides and low <= min(self.short_sides) <= max(self.short_sides) <= most
        require(bool(fits), group, "short_sides", f"in [{low}, {most}], from crop_sides on", self.short_sides)
        for name in ("scale_step", "scale_count"):
            require((value := getattr(self, name)) >= 1, group, name, "at least 1", value)


@dataclass(frozen=True)
class SourcesConfig:
    """Rows that a curriculum chooses among: a file for each source, or `shapes`, pseudo-labels of the embedded world.

    sources: name → file: phrases with boxes in any form that `jclip boxes` reads; precomputed features (.npz) or lists of
    photos with classes. Of the embedded world so many scenes, with `noise` of the rows given another thing's box and half
    as many another scene's phrase.
    """

    sources: dict = field(default_factory=lambda: dict.fromkeys(("template", "relation", "caption"), "shapes"))
    # the folder of the files' photos; by default `photos` or `images` beside the first file, or its own
    photos: str = ""
    scenes: int = 1000
    noise: float = 0.2
    pairs: int = 0  # of colour and shape, drawn anew for each scene: few make phrases with directions; 0: any
    seed: int = 0

    def __post_init__(self):
        named = all(isinstance(k, str) and k and isinstance(v, str) and v for k, v in self.sources.items())
        require(
            bool(self.sources) and named,
            "data",
            "sources",
            "a file for each name, such as {template: a.jsonl}",
            self.sources,
        )
        require(self.scenes >= 2, "data", "scenes", "at least 2", self.scenes)
        require(0 <= self.noise <= 0.6, "data", "noise", "in [0, 0.6]", self.noise)
        require(self.pairs == 0 or 2 <= self.pairs <= 100, "data", "pairs", "0 (any) or in [2, 100]", self.pairs)


@dataclass(frozen=True)
class OptimConfig:
    """An optimiser and its schedule; the defaults are each recipe's own."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    nesterov: bool = False
    schedule: Literal["constant", "cosine", "step", "epoch_cosine"] = "cosine"  # the last is constant within an epoch
    step_epochs: int = 10  # of the schedule "step": epochs after which the rate is multiplied by gamma, again and again
    gamma: float = 0.1
    warmup: float = 0.0  # steps, of epoch_cosine epochs; below 1 a share of all
    warmup_lr: float = 0.0  # the rate throughout the warm-up; 0: it rises linearly to lr
    average: float = 0.0  # decay of a moving average of the weights, which then is what is measured and kept; 0: none
    epochs: int = 20
    stop: int = 0  # epochs after which training ends, at the rates of a training of all `epochs`; 0: these
    batch: int = 256
    READ_WITH: ClassVar[ReadWith] = {
        "name=sgd": ("momentum", "nesterov"),
        "name=adamw": ("betas", "eps"),
        "schedule=step": ("step_epochs", "gamma"),
    }

    def __post_init__(self):
        for name in ("epochs", "batch", "step_epochs"):
            require((value := getattr(self, name)) >= 1, "optim", name, "at least 1", value)
        require(0 <= self.stop <= self.epochs, "optim", "stop", f"in [0, {self.epochs}], optim.epochs", self.stop)
        for name in ("lr", "warmup", "warmup_lr", "weight_decay"):
            require((value := getattr(self, name)) >= 0, "optim", name, "at least 0", value)
        require(self.eps > 0, "optim", "eps", "above 0", self.eps)
        require(0 <= self.gamma <= 1, "optim", "gamma", "in [0, 1]", self.gamma)
        for name in ("momentum", "average"):
            require(0 <= (value := getattr(self, name)) < 1, "optim", name, "in [0, 1)", value)
        require(all(0 <= beta < 1 for beta in self.betas), "optim", "betas", "in [0, 1)", self.betas)

    @property
    def trained_epochs(self) -> int:
        """How many epochs are trained."""
        return self.stop or self.epochs


def check_grid(optim: OptimConfig, **values: Sequence[float]) -> None:
    """Raises `ConfigError` for a value that `optim` could not have: `check_grid(optim, lr=(1e-3, -1))`."""
    for name, given in values.items():
        for value in given:
            dataclasses.replace(optim, **{name: value})


def refuse_average(optim: OptimConfig, instead: str) -> None:
    """Raises `ConfigError` where an average of weights is asked for and there are no steps to average over."""
    if optim.average:
        raise ConfigError(
            f"optim.average must be 0 without training steps to average over, got {optim.average}: it needs {instead}"
        )


def warmed_sgd(lr: float, epochs: int, batch: int) -> OptimConfig:
    """SGD as prompts of several labels are learned: a rate for each epoch, falling by a cosine after a first epoch at 1e-5."""
    return OptimConfig(
        "sgd", lr=lr, weight_decay=5e-4, schedule="epoch_cosine", warmup=1, warmup_lr=1e-5, epochs=epochs, batch=batch
    )
