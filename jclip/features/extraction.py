"""Image features, computed once: extraction in batches, and a cache keyed by all that made them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

import numpy as np

from jclip import kernels
from jclip.config import DataConfig
from jclip.data.augment import TEST_VIEWS, Views, pipeline_of
from jclip.data.augment import augment as augment_named
from jclip.data.checks import check_apart, check_taught, warn_few, warn_leaks
from jclip.data.loader import OnError, batches_of_shapes
from jclip.data.photo_file import ORIENTATIONS
from jclip.data.preprocess import Preprocess, notice_squashed
from jclip.data.splits import PhotoData, Split, read_photos
from jclip.errors import ConfigError, DataError, advice_when_full, notice
from jclip.features.cached import keep, key_of, read_cached
from jclip.features.heads import check_directions, check_width, head_of_names
from jclip.features.precomputed import FeatureSet, drawn, read_precomputed, subset_of
from jclip.features.source import ModelSource, SideBySide
from jclip.functional.directions import unit
from jclip.machine import ranks, work_meter
from jclip.model import last_block
from jclip.paths import cache_dir, file_sha256
from jclip.postponed import jt

PART = 1024  # photos whose features are kept together: a break loses those of one part
BATCH = 64  # views at once; JCLIP_BATCH names another number


def extract(
    source: ModelSource | SideBySide,
    split: Split,
    *,
    views: int = 1,
    first_view: int = 0,
    augment: str = "none",
    seed: int = 0,
    on_error: OnError = "stop",
    label: str = "",
    entering: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows (n,), the decodable photos of `split`, and their features (n, E), unnormalised, float32.

    Features are means over `views`; (n, D) for a source of penultimate features; with `entering` the last block's
    inputs (n, N·D). Random views are numbered from `first_view`; a name of `jclip.data.augment.TEST_VIEWS`
    fixes their number. The model is loaded only when the cache lacks these features. The same view of
    the same photo is the same for any batch size and number of threads: its randomness comes from (seed, view, row). Many
    photos without randomness are kept in parts, so that an interruption loses at most the last one. Raises `UnknownName`,
    or `DataError` when a photo does not decode and `on_error` is "stop".
    """
    if isinstance(source, SideBySide):
        return _side_by_side(source, split, on_error, label)
    numbers, part = range(first_view, first_view + views), max(PART, batch_size())
    options = {"augment": augment, "seed": seed, "on_error": on_error, "entering": entering}
    if augment in TEST_VIEWS and len(split) > part:
        rows, features, failed = _in_parts(source, split, part, numbers, label=label, **options)
    else:
        rows, features, failed = _kept_or_computed(source, split, numbers, label=label, **options)
    if failed:
        _warn_skipped(failed, len(split))
    return rows, features


def _kept_or_computed(
    source: ModelSource,
    split: Split,
    numbers: range,
    *,
    augment: str,
    seed: int,
    on_error: OnError,
    label: str,
    entering: bool,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rows and features as `extract` gives them, from the cache if they are there, and what is wrong with the photos that
    were skipped."""
    made_of = (source, split, numbers, augment, seed, entering)
    key = feature_key(*made_of)
    file = cache_dir("features") / f"{key}.safetensors"
    if (saved := read_cached(file, ("rows", "features", "turned"))) is not None:
        return *_seen_before(split, saved), []
    failed: list[str] = []
    if entering:
        notice_squashed(source.preprocess, "photos whose tokens are kept")
    preprocess = source.preprocess.fixed() if entering else source.preprocess
    viewer = Views(preprocess, pipeline_of(augment), seed, tuple(numbers))
    rows, features = _compute(source.model, split, viewer, on_error, failed, label, source.penultimate, entering)
    if failed:  # nothing is kept: a photo that is repaired later would stay missing
        return rows, features, failed
    if feature_key(*made_of) != key:
        notice("photos changed while they were read: their features are not kept")
    else:
        turned = np.array(ORIENTATIONS.turned_among(split.paths), np.int64)
        keep(file, {"rows": rows, "features": features, "turned": turned})
    return rows, features, failed


def _seen_before(split: Split, saved: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and features as they were kept; which photos were turned is reported as if they were read now."""
    turned = {*saved["turned"].tolist()}
    for row in saved["rows"].tolist():
        ORIENTATIONS.saw(split.paths[row], row in turned)
    return saved["rows"], saved["features"]


def _in_parts(
    source: ModelSource, split: Split, part: int, numbers: range, *, label: str, **options
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Features as of `_kept_or_computed`, `part` photos after the other, each with a file of its own in the cache.

    A part of which no photo decodes adds no rows: whether that is an error is decided over all of them. Several ranks
    compute a share of the parts each, and then find those of others in the cache, if it is on their host.
    """
    starts = range(0, len(split), part)

    def of(at: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        name = f"{label} {at // part + 1}/{len(starts)}".strip()
        some = split.take(range(at, min(at + part, len(split))))
        rows, features, failed = _kept_or_computed(source, some, numbers, label=name, **options)
        return at + rows, features, failed

    if (here := ranks.here()).several:
        for at in starts[here.rank :: here.size]:
            of(at)
        kernels.collectives.wait_for_all()
    done = [of(at) for at in starts]
    full = [entry for entry in done if len(entry[0])] or done[:1]  # what is empty may have another width
    rows, features = (np.concatenate(column) for column in list(zip(*full, strict=True))[:2])
    return rows, features, [message for *_, failed in done for message in failed]


def _side_by_side(together: SideBySide, split: Split, on_error: OnError, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows that decoded for every source, and its features of length one beside those of the others."""
    parts = []
    for number, source in enumerate(together.sources):
        parts.append(extract_of(together, number, split, on_error, label))
        source.release()
    rows = reduce(np.intersect1d, (at for at, _ in parts))
    return rows, np.concatenate([unit(x[np.isin(at, rows)]) for at, x in parts], axis=1)


def extract_of(
    together: SideBySide, number: int, split: Split, on_error: OnError = "stop", label: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """`extract` by one of the sources; what this process asked for before is at hand, photos that failed included."""
    progress = f"{label}, model {number + 1} of {len(together.sources)}"
    options = {"augment": together.views[number], "on_error": on_error, "label": progress}
    return together.extracted(number, split, lambda: extract(together.sources[number], split, **options))


def feature_key(
    source: ModelSource, split: Split, views: range, augment: str, seed: int, entering: bool = False
) -> str:
    """SHA-256 over the build, weights, preprocessing, photos, and, where there is any, kind, augmentation, and views and seed
    of a random one."""
    made_of = [source.identity, source.preprocess.to_dict(), split.digest()]
    kind = ["entering"] if entering else ["penultimate"] if source.penultimate else []
    fixed = [] if augment == "none" else [augment]
    seen = fixed if augment in TEST_VIEWS else [augment, list(views), seed]
    return key_of([*made_of, *kind, *seen])


def encode_photos(
    model, preprocess: Preprocess, split: Split, on_error: OnError = "stop", label: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n,) of `split` that decoded and their features (n, E), not normalised, of a model at hand; nothing is cached.

    Several ranks encode a share each, and all get all. Raises `DataError` when a photo does not decode and `on_error` is
    "stop", or when none does.
    """
    failed: list[str] = []
    own = ranks.here().share_of_batches(len(split), batch_size())
    share = split.take(range(own.start, own.stop)) if ranks.here().several else split
    rows, features = _compute(model, share, Views(preprocess), on_error, failed, label)
    if ranks.here().several:
        rows, features = (kernels.collectives.joined(x) for x in (rows + own.start, features))
    if not len(rows):
        raise DataError(f"none of {len(split)} photos decoded" + (f": {failed[0]}" if failed else ""))
    return rows, features


def batch_size() -> int:
    """How many views go through the model at once. Raises `ConfigError` for a JCLIP_BATCH that is not a number."""
    named = os.environ.get("JCLIP_BATCH", "")
    if named and (not named.isdecimal() or int(named) < 1):
        raise ConfigError(f"JCLIP_BATCH must be a number of photos, got {named}")
    return int(named or BATCH)


def _compute(
    model, split, viewer: Views, on_error, failed, label, penultimate: bool = False, entering: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    from tqdm import tqdm

    rows, features = [np.zeros(0, np.int64)], []
    bar = tqdm(total=len(split), desc=label or "features", unit="photo", disable=None, leave=False)
    with bar:
        for at, encoded in encoded_batches(model, split.paths, viewer, on_error, failed, penultimate, entering):
            features.append(encoded)
            rows.append(at)
            bar.update(len(at))
    none = np.zeros((0, model.config.feature_width(penultimate)), np.float32)
    return np.concatenate(rows), np.concatenate(features) if features else none


def encoded_batches(
    model,
    paths: Sequence[str],
    viewer: Views,
    on_error: OnError = "stop",
    failed: list[str] | None = None,
    penultimate: bool = False,
    entering: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places (n,) in `paths` and mean features (n, E), not normalised, batch by batch; photos are decoded ahead.

    What does not decode is appended to `failed` with `on_error="skip"`, in order, before the batch behind it is given.
    """
    made = _encoded(model, paths, viewer, on_error, failed, penultimate, entering)
    key = ("photos", type(model), id(model), viewer.shape, penultimate, entering)
    yield from work_meter.stretched(key, made, len(paths), each=batch_size())


def _encoded(model, paths, viewer: Views, on_error, failed, penultimate, entering):
    encode = last_block.LastBlock(model).entering if entering else partial(model.encode_image, penultimate=penultimate)
    views, size = viewer.shape[0], batch_size()
    for several in batches_of_shapes(paths, viewer, max(1, size // views), on_error, failed):
        made = []
        for at, pixels in several:
            with jt.no_grad(), advice_when_full(f"set JCLIP_BATCH={max(1, size // 2)} (now {size})"):
                encoded = encode(pixels.reshape(-1, *pixels.shape[2:])).float32().numpy()
            check_directions(encoded, [paths[row] for row in at for _ in range(views)])
            made.append((at, encoded.reshape(len(at), views, -1).mean(axis=1)))
        yield _in_order(made)


def _in_order(made: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Places and features of batches as one, in the order of places."""
    if len(made) == 1:
        return made[0]
    at, features = (np.concatenate(column) for column in zip(*made, strict=True))
    order = np.argsort(at)
    return at[order], features[order]


def _warn_skipped(failed: list[str], total: int) -> None:
    if len(failed) == total:
        raise DataError(f"none of {total} photos decoded: {failed[0]}")
    notice(f"skipped {len(failed)} of {total} photos (first: {failed[0]})")


@dataclass(frozen=True)
class TrainingRows:
    """How training photos become rows of features, and what is asked of them.

    views: augmented views of a photo, random ones numbered from 0. augment: their name in `jclip.data.augment.AUGMENTS`.
    seed: of what is random in them. each_view: every view is a row of its own, all photos of one view after those of
    another; else a photo is one row, the mean over its views. every_class: a class without training photos is refused,
    where there are text features as well. Of precomputed features only the last has a meaning.
    """

    views: int = 1
    augment: str = "none"
    seed: int = 0
    each_view: bool = False
    every_class: bool = False


def few_shot_features(
    data: DataConfig,
    source: ModelSource | None,
    templates: str,
    training: TrainingRows | None = TrainingRows(),
    *,
    photos: PhotoData | None = None,
    normalise: bool = True,
) -> FeatureSet:
    """Recorded features, or those of photos: training photos as `training` says, val and test seen plainly.

    Text features come from the file, else from the model's prompts; None when there is neither, and beside penultimate
    features, which are not in their space. training: None leaves the training photos out. photos: those of `data` where
    they have been read before. normalise: off leaves image features as long as the tower makes them (recorded ones have
    lost that). Reports on stderr classes short of photos, and photos that are measured and learned from. Raises
    `DataError`.
    """
    if data.features:
        found = _precomputed(data, source, templates)
    elif source is None:
        raise ConfigError("photos need a model: set model= to a name such as ViT-B/32 or to a weight file")
    else:
        photos = photos or read_photos(data)
        if training and not len(photos.train):
            raise DataError("there are no training photos: set data.root, data.train or data.split_file")
        if training:
            augment_named(training.augment)  # refused here where it is none to train on
        found = _of_photos(data, source, templates, photos, normalise, training)
    if training:
        _check_training(found, training, photos, data.shots)
    return found


def _check_training(found: FeatureSet, training: TrainingRows, photos: PhotoData | None, shots: int) -> None:
    """Raises `DataError` for a class that nothing teaches; reports on stderr what `warn_photos` does."""
    if training.every_class or found.text is not None:  # without text, most recipes say so themselves
        check_taught(found.train_labels, found.classes, found.classnames, has_text=not training.every_class)
    if photos:
        warn_photos(photos, shots)
    else:
        warn_few(found.train_labels, found.classes, found.classnames, shots)


def warn_photos(photos: PhotoData, shots: int) -> None:
    """Report on stderr classes with fewer photos than `shots`, and photos that are both training and measured photos. Raises
    `DataError` for validation photos that are training photos."""
    check_apart(photos.train.paths, photos.val.paths)
    warn_few(photos.train.labels, len(photos.classnames), photos.classnames, shots)
    warn_leaks(photos.train.paths, {"val": photos.val.paths, "test": photos.test.paths})


def _precomputed(data: DataConfig, source: ModelSource | None, templates: str) -> FeatureSet:
    """Precomputed features, shots drawn from a pool; with a model and no text features in the file, the class names'."""
    data.check_one_source()
    found = read_precomputed(data.features, data.pool or data.shots, data.text_features)
    if data.pool:
        val_shots = min(data.shots, 4) if data.val_shots < 0 else data.val_shots
        found = drawn(found, data.shots, val_shots, data.seed)
    found = subset_of(found, data.subset, data.features)
    weights = {"weights_sha256": source.weights_sha256} if source else {}
    found = replace(found, facts={"data_sha256": file_sha256(data.features), **weights})
    if found.text is not None or source is None:
        return found
    if not found.classnames:
        raise DataError(
            f"{data.features} names no classes, so no text can be made for them: set data.text_features, or leave "
            "model out"
        )
    check_width(source, found.train.shape[1])
    head = head_of_names(source, found.classnames, templates)
    return replace(found, text=head.weights, scale=head.scale)


def _of_photos(
    data: DataConfig,
    source: ModelSource,
    templates: str,
    photos: PhotoData,
    normalise: bool,
    training: TrainingRows | None,
) -> FeatureSet:
    """Features of photos and of their class names; training: how the training photos are seen, None: not at all."""
    text, scale = None, 1.0
    if source.has_text:
        head = head_of_names(source, photos.classnames, templates)
        text, scale = head.weights, head.scale
    options = {"on_error": data.on_error, "normalise": normalise}
    if training:
        seen = {"views": training.views, "augment": training.augment, "seed": training.seed}
        parts = [_labelled(source, photos.train, training.each_view, label="train", **seen, **options)]
    else:
        parts = [_labelled(source, Split())]
    parts += [_labelled(source, getattr(photos, part), label=part, **options) for part in ("val", "test")]
    facts = {**photos.digests(), "photos_by": "contents", "weights_sha256": source.weights_sha256}
    rows = [column for part in parts for column in part[:2]]
    seen = tuple(photos.test.paths[i] for i in parts[2][2])
    return FeatureSet(photos.classnames, *rows, text, scale, seen, facts, photos)


def training_view(
    data: DataConfig, source: ModelSource | None, recorded: FeatureSet, augment: str, seed: int, view: int
) -> tuple[np.ndarray, np.ndarray]:
    """Normalised features and labels of the training photos in one augmented view; of precomputed features, these.

    recorded: what `few_shot_features` read of `data`, photos included, so that no epoch reads the lists again.
    """
    if data.features or augment_named(augment) is None:
        return recorded.train, recorded.train_labels
    options = {"augment": augment, "seed": seed, "on_error": data.on_error}
    return _labelled(source, recorded.photos.train, first_view=view, label=f"view {view}", **options)[:2]


def _labelled(
    source: ModelSource, split: Split, each: bool = False, normalise: bool = True, **options
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels and the rows of `split` that they are of."""
    if not len(split):
        return np.zeros((0, source.width), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64)
    if each and options.get("augment", "none") != "none":
        numbers = range(options.pop("views"))
        parts = [_labelled(source, split, first_view=v, normalise=normalise, **options) for v in numbers]
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    rows, features = extract(source, split, **options)
    return unit(features) if normalise else features, split.labels[rows].astype(np.int64), rows
