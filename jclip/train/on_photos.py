"""What recipes share that train the towers: photos in fresh views, features in parts, the model measured as it is."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from jclip.config import WithAugmentation, WithModel, WithOptimiser, WithPhotos, WithSelection
from jclip.data.augment import Views
from jclip.data.augment import augment as augment_named
from jclip.data.checks import check_taught
from jclip.data.loader import OnError, warn_once
from jclip.data.loader import batches as photo_batches
from jclip.data.preprocess import Preprocess
from jclip.data.splits import PhotoData, Split, read_photos
from jclip.errors import ConfigError, DataError
from jclip.features.extraction import encode_photos, warn_photos
from jclip.features.heads import ZeroShotHead, head_of
from jclip.features.precomputed import FeatureSet
from jclip.features.source import ModelSource
from jclip.functional.directions import unit
from jclip.functional.metrics import classification_report
from jclip.functional.similarity import normalise
from jclip.kernels import collectives
from jclip.kernels.gradient_parts import Part, in_parts, slices
from jclip.machine import ranks
from jclip.model.clip import CLIP, held_statistics, inference, save_model
from jclip.runtime import jt
from jclip.train.run import Run
from jclip.train.several_ranks import note_ranks

OF_THE_LOSS = ("logit_scale", "logit_bias")  # parameters of no tower
TEXTS_AT_ONCE = 256  # of a backward pass


class ChosenOnPhotos(WithPhotos, WithSelection, Protocol):
    """Photos to learn from, an optimiser, and how the epoch is chosen."""


class TunedOnPhotos(WithModel, ChosenOnPhotos, Protocol):
    """A model whose towers are tuned on photos, and how it is stored in the end."""

    @property
    def half(self) -> bool: ...


class AugmentedBatches(WithAugmentation, WithOptimiser, Protocol):
    """Photos in augmented views, in batches of the optimiser's size."""


def check_photos(cfg: ChosenOnPhotos, photos: PhotoData) -> None:
    """Raises `ConfigError` or `DataError` for what would only show after the training; reports classes short of photos."""
    if not len(photos.train):
        raise DataError("there are no training photos: set data.root or data.train")
    if cfg.optim.batch > (most := len(photos.train)):
        raise DataError(
            f"optim.batch must be at most {most}, the training photos, got {cfg.optim.batch}: set optim.batch={most}"
        )
    if cfg.selection == "val" and not len(photos.val):
        raise ConfigError(
            "choosing the epoch needs validation photos, and there are none: set data.val, or selection=last"
        )
    check_taught(photos.train.labels, len(photos.classnames), photos.classnames, has_text=True)
    warn_photos(photos, cfg.data.shots)


def model_and_photos(cfg: TunedOnPhotos, run: Run) -> tuple[ModelSource, PhotoData]:
    """The model of a recipe that tunes towers and its photos, fit to be learned from, and the same for all ranks.

    Raises `ConfigError` or `DataError` as `check_photos` does.
    """
    source = ModelSource(cfg.model, cfg.family, draft=cfg.data.draft, upright=cfg.data.upright).squared()
    photos = read_photos(cfg.data)
    check_photos(cfg, photos)
    note_ranks(run, photos_digest(photos))
    return source, photos


def photo_epochs(cfg: AugmentedBatches, photos: PhotoData, source: ModelSource) -> Callable[[int], Iterator[tuple]]:
    """epoch → batches (pixels, labels) in seeded order, each photo in a fresh view; skipped photos are reported once.

    cfg: a recipe's config with data, augment, optim and seed. Of several ranks each has the pixels of its share of a
    batch's rows (none of a short one, perhaps), and all labels.
    """
    pipeline, reported = augment_named(cfg.augment), set()
    broken = broken_photos(cfg, photos.train, source.preprocess)

    def epoch(number: int):
        order = np.random.default_rng((cfg.seed, number)).permutation(len(photos.train))
        views = Views(source.preprocess, pipeline, cfg.seed, (number,))
        if ranks.here().several:
            yield from shared_batches(cfg, photos.train, order[~np.isin(order, broken)], views)
            return
        split, failed = photos.train.take(order), []
        for rows, pixels in photo_batches(split.paths, views, cfg.optim.batch, cfg.data.on_error, failed, order):
            yield pixels[:, 0], split.labels[rows]
        warn_once(failed, reported)

    return epoch


def shared_batches(
    cfg: AugmentedBatches, train: Split, order: np.ndarray, views: Views
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pixels of this rank's rows, and labels of all rows, of the batches of rows in that order."""
    batches = [order[at : at + cfg.optim.batch] for at in range(0, len(order), cfg.optim.batch)]
    shares = [rows[ranks.here().share(len(rows))] for rows in batches]
    own = np.concatenate([np.zeros(0, np.int64), *shares])
    read = photo_batches(train.take(own).paths, views, max(1, len(shares[0])), "stop", rows=own)
    for rows, share in zip(batches, shares, strict=True):
        pixels = next(read)[1][:, 0] if len(share) else np.zeros((0, *views.shape[1:]), np.float32)
        yield pixels, train.labels[rows]


def broken_photos(cfg: AugmentedBatches, train: Split, preprocess: Preprocess) -> np.ndarray:
    """Rows that do not decode, where several ranks leave such out: each reads its share of the photos once.

    One process meets them on its way.
    """
    if not ranks.here().several or cfg.data.on_error == "stop":
        return np.zeros(0, np.int64)
    own = ranks.here().share(len(train))
    failed: list[str] = []
    share = train.take(range(own.start, own.stop))
    read = [rows for rows, _ in photo_batches(share.paths, Views(preprocess), 64, cfg.data.on_error, failed)]
    warn_once(failed, set())
    decoded = collectives.joined(np.concatenate([np.zeros(0, np.int64), *read]) + own.start)
    return np.setdiff1d(np.arange(len(train)), decoded)


def photos_digest(photos: PhotoData) -> str:
    """A hash of the photos' folders, names and labels; nothing in one process."""
    if not ranks.here().several:
        return ""
    made = hashlib.sha256(repr(photos.classnames).encode("utf-8", "surrogateescape"))
    for split in (photos.train, photos.val, photos.test):
        for path, label in zip(split.paths, split.labels.tolist(), strict=True):
            made.update(f"{Path(path).parent.name}/{Path(path).name}\t{label}\n".encode("utf-8", "surrogateescape"))
    return made.hexdigest()


def shared_images(encode: Callable[[np.ndarray], jt.Var], pixels: np.ndarray, count: int, width: int) -> jt.Var:
    """Features (count, width) of a batch, of which `pixels` are this rank's rows."""
    return collectives.shared_rows(lambda _: encode(pixels), count, width)


def features_in_parts(
    model: CLIP,
    encode: Callable[[Part], jt.Var],
    parts: Sequence[Part],
    params: Mapping[str, jt.Var],
    tower: Literal["image", "text"],
) -> jt.Var:
    """`jclip.kernels.gradient_parts.in_parts` of the features (n, E) that `encode` makes, of length one.

    params: what is trained, by name, of which the image tower's begin with "visual.". Running statistics move in the
    backward pass alone, once per part.
    """
    own = [v for k, v in params.items() if k not in OF_THE_LOSS and k.startswith("visual.") == (tower == "image")]
    with held_statistics(model) if len(parts) > 1 else contextlib.nullcontext():
        return in_parts(lambda part: normalise(encode(part)), parts, own)


def shares(count: int, accumulate: int, most: int | None = None) -> list[slice]:
    """`count` rows in `accumulate` parts, or in more where one would have more than `most` rows."""
    size = -(-count // accumulate)
    return slices(count, min(size, most or size))


def measure(
    model: CLIP, head: Callable[[np.ndarray], np.ndarray], preprocess: Preprocess, split: Split, on_error: OnError
) -> dict[str, float]:
    """`classification_report` of the model as it is on photos that decode. Raises `DataError` as `encode_photos` does."""
    with inference(model):
        rows, features = encode_photos(model, preprocess, split, on_error)
    return classification_report(head(unit(features)), split.labels[rows])


def measured_parts(
    model: CLIP, head: Callable[[np.ndarray], np.ndarray], preprocess: Preprocess, photos: PhotoData, on_error: OnError
) -> dict[str, float]:
    """`measure` of val and test, where there are any: `val_top1`, `test_ece`, …"""
    parts = {"val": photos.val, "test": photos.test}
    return {
        f"{part}_{name}": value
        for part, split in parts.items()
        if len(split)
        for name, value in measure(model, head, preprocess, split, on_error).items()
    }


def zero_shot_top1(
    model: CLIP, prompts: list[list[str]], preprocess: Preprocess, split: Split, on_error: OnError
) -> float:
    """Top-1 accuracy of both towers as they are on photos that decode, among the classes of `prompts`."""
    return measure(model, head_of_now(model, prompts), preprocess, split, on_error)["top1"]


def features_of_now(
    model: CLIP, preprocess: Preprocess, photos: PhotoData, before: FeatureSet, on_error: OnError
) -> FeatureSet:
    """`before` with the model's features of val and test as it is, in one pass for any number of heads."""
    changed = {}
    for part in ("val", "test"):
        if len(split := getattr(photos, part)):
            with inference(model):
                rows, features = encode_photos(model, preprocess, split, on_error)
            changed |= {part: unit(features), f"{part}_labels": split.labels[rows]}
    return replace(before, **changed)


def head_of_now(model: CLIP, prompts: list[list[str]]) -> ZeroShotHead:
    """The zero-shot head of the model as it is."""
    with inference(model):
        return head_of(model, prompts)


def write_model(run: Run, source: ModelSource, made_by: str, half: bool = False) -> None:
    """Writes the tuned model as it is, as model.safetensors, where this process writes. made_by: the recipe."""
    if run.writer:
        save_model(run.file("model.safetensors"), source.model, source.checkpoint.preprocess, half, made_by=made_by)


def write_tuned(
    cfg: TunedOnPhotos,
    run: Run,
    source: ModelSource,
    photos: PhotoData,
    prompts: list[list[str]],
    made_by: str,
    further: Mapping[str, np.ndarray] | None = None,
) -> dict[str, float]:
    """Writes the tuned model, and as what was learned its class texts `text` (C, E), `scale` (1,) and what is
    `further`.

    Returns `measured_parts` of it. made_by: the recipe.
    """
    write_model(run, source, made_by, cfg.half)
    head = head_of_now(source.model, prompts)
    learned = {"text": head.weights, "scale": np.array([head.scale]), **(further or {})}
    run.save_learned(learned, classnames=photos.classnames, width=head.weights.shape[1])
    return measured_parts(source.model, head, source.preprocess, photos, cfg.data.on_error)
