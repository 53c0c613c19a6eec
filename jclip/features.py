"""Image features, computed once: extraction in batches, a cache keyed by all that made them, recorded files."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from jclip.checkpoint import file_sha256
from jclip.config import DataConfig, Subset
from jclip.data.checks import check_apart, check_several, check_taught, check_without_gap, tell_few, tell_leaks
from jclip.data.loader import OnError, batches
from jclip.data.splits import PhotoData, Split, half, kept, read_photos
from jclip.errors import ConfigError, DataError, told_when_full
from jclip.functional.metrics import classification_report, top_k
from jclip.heads import check_width, unit, zero_shot_head
from jclip.paths import cache_dir
from jclip.preprocess import Preprocess, Views
from jclip.preprocess import augment as augment_named
from jclip.prompts import class_prompts, load_templates
from jclip.readers import read_weights, safetensors
from jclip.source import ModelSource

BATCH = 64  # views at once; JCLIP_BATCH names another number


@dataclass(frozen=True)
class FeatureSet:
    """Normalised image features (N, E) float32 with labels, and what is known of the text side.

    text: (C, E) rows of length one, or None where none were recorded or they live elsewhere. scale: exp(logit_scale).
    """

    classnames: tuple[str, ...]
    train: np.ndarray
    train_labels: np.ndarray
    val: np.ndarray
    val_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    text: np.ndarray | None
    scale: float
    test_photos: tuple[str, ...] = ()  # of the test rows, where that is known
    facts: Mapping[str, str] = field(default_factory=dict)  # hashes of data and weights, for the run's result

    def report(self, score: Callable[[np.ndarray], np.ndarray], prefix: str = "") -> dict[str, float]:
        """`classification_report` of `score` on val and test, where there are any: `val_top1`, `test_ece`, …"""
        parts = {"val": (self.val, self.val_labels), "test": (self.test, self.test_labels)}
        return {
            f"{prefix}{part}_{name}": value
            for part, (features, labels) in parts.items()
            if len(labels)
            for name, value in classification_report(score(features), labels).items()
        }

    @property
    def classes(self) -> int:
        """How many there are: names, text features or, without either, labels."""
        labels = (self.train_labels, self.val_labels, self.test_labels)
        named = len(self.classnames) or (0 if self.text is None else len(self.text))
        return named or 1 + int(max(y.max(initial=0) for y in labels))

    def top1(self, part: str, score: Callable[[np.ndarray], np.ndarray]) -> float:
        """Accuracy of `score` on "val" or "test"."""
        return top_k(score(getattr(self, part)), getattr(self, f"{part}_labels"))


def extract(
    source: ModelSource,
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
    """Rows (n,) of `split` that decoded, and their mean feature (n, E) over `views`, not normalised, float32; (n, D) of
    a source of penultimate features, with `entering` (n, N D), what the tower's last block is given.

    Views are numbered from `first_view`; the augmentation `none` has but one. The model is loaded only when the cache
    lacks these features. The same view of the same photo is the same for any batch size and number of threads: its
    randomness comes from (seed, view, row). Raises `DataError` when a photo does not decode and `on_error` is "stop".
    """
    numbers = range(first_view, first_view + views) if augment != "none" else range(1)
    file = cache_dir("features") / f"{feature_key(source, split, numbers, augment, seed, entering)}.safetensors"
    if file.is_file():
        saved = read_weights(file)
        return np.array(saved["rows"].read()), np.array(saved["features"].read())
    failed: list[str] = []
    viewer = Views(source.preprocess, augment_named(augment), seed, tuple(numbers))
    rows, features = _compute(source.model, split, viewer, on_error, failed, label, source.penultimate, entering)
    if failed:
        _tell_skipped(failed, len(split))
    else:  # a photo that is mended later would otherwise stay missing
        safetensors.write(file, {"rows": rows, "features": features})
    return rows, features


def feature_key(
    source: ModelSource, split: Split, views: range, augment: str, seed: int, entering: bool = False
) -> str:
    """SHA-256 over weights, preprocessing, photos, and, where there is any, kind, augmentation, views and seed."""
    made_of = [source.identity, source.preprocess.to_dict(), split.digest()]
    kind = ["entering"] if entering else ["penultimate"] if source.penultimate else []
    random = [] if augment == "none" else [augment, list(views), seed]
    return hashlib.sha256(json.dumps([*made_of, *kind, *random]).encode()).hexdigest()


def encode_photos(
    model, preprocess: Preprocess, split: Split, on_error: OnError = "stop", label: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n,) of `split` that decoded and their features (n, E), not normalised, of a model at hand; nothing is cached.

    Raises `DataError` when a photo does not decode and `on_error` is "stop", or when none does.
    """
    failed: list[str] = []
    rows, features = _compute(model, split, Views(preprocess), on_error, failed, label)
    if len(failed) == len(split):
        raise DataError(f"none of {len(split)} photos decoded" + (f": {failed[0]}" if failed else ""))
    return rows, features


def batch_size() -> int:
    """How many views go through the model at once. Raises `ConfigError` for a JCLIP_BATCH that is no number."""
    named = os.environ.get("JCLIP_BATCH", "")
    if named and (not named.isdecimal() or int(named) < 1):
        raise ConfigError(f"JCLIP_BATCH={named} is no number of photos")
    return int(named or BATCH)


def _compute(
    model, split, viewer: Views, on_error, failed, label, penultimate: bool = False, entering: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    from tqdm import tqdm

    from jclip.last_block import LastBlock
    from jclip.runtime import jt

    encode = LastBlock(model).entering if entering else partial(model.encode_image, penultimate=penultimate)
    views, size = len(viewer.numbers), batch_size()
    rows, features = [np.zeros(0, np.int64)], []
    bar = tqdm(total=len(split), desc=label or "features", unit="photo", disable=None, leave=False)
    with bar, jt.no_grad():
        for at, pixels in batches(split.paths, viewer, max(1, size // views), on_error, failed):
            with told_when_full(f"set JCLIP_BATCH={max(1, size // 2)} (now {size})"):
                encoded = encode(pixels.reshape(-1, *pixels.shape[2:])).float32().numpy()
            features.append(encoded.reshape(len(at), views, -1).mean(axis=1))
            rows.append(at)
            bar.update(len(at))
    none = np.zeros((0, model.config.feature_width(penultimate)), np.float32)
    return np.concatenate(rows), np.concatenate(features) if features else none


def _tell_skipped(failed: list[str], total: int) -> None:
    for message in failed:
        sys.stderr.write(f"skipped: {message}\n")
    sys.stderr.write(f"skipped {len(failed)} of {total} photos\n")
    if len(failed) == total:
        raise DataError(f"none of {total} photos decoded: {failed[0]}")


def drawn(recorded: FeatureSet, shots: int, val_shots: int, seed: int) -> FeatureSet:
    """The same with `shots` of the training rows and `val_shots` of the validation rows (0: all) per class.

    Drawn by `seed`, in the rows' order; of a class with fewer all are taken.
    """
    rows = draw_rows(recorded.train_labels, shots, seed)
    val = draw_rows(recorded.val_labels, val_shots, seed) if val_shots else np.arange(len(recorded.val_labels))
    return replace(
        recorded, train=recorded.train[rows], train_labels=recorded.train_labels[rows],
        val=recorded.val[val], val_labels=recorded.val_labels[val],
    )  # fmt: skip


def draw_rows(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Up to `count` rows of each label, drawn by `seed`, ascending."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    grouped = labels[by_class]
    place = np.arange(len(labels)) - np.searchsorted(grouped, grouped)  # within its class
    return np.sort(by_class[place < count])


def subset_of(recorded: FeatureSet, subset: Subset, path: str) -> FeatureSet:
    """The same of half the classes. Raises `DataError` where they have no names, or one is all there is of them."""
    if subset == "all":
        return recorded
    if not recorded.classnames:
        raise DataError(f"{path} names no classes: data.subset={subset} needs classnames, to tell base from new")
    stay = half(recorded.classes, subset)
    names = recorded.classnames[stay.start : stay.stop]
    check_several(len(names), names[0] if names else "none", f"{path}, data.subset={subset}: ")
    changed = {"classnames": names, "text": None if recorded.text is None else recorded.text[stay.start : stay.stop]}
    for part in ("train", "val", "test"):
        rows, labels = kept(getattr(recorded, f"{part}_labels"), stay)
        changed |= {part: getattr(recorded, part)[rows], f"{part}_labels": labels}
        if part == "test" and recorded.test_photos:
            changed["test_photos"] = tuple(recorded.test_photos[i] for i in rows)
    return replace(recorded, **changed)


def read_recorded(path: str, shots: int, text_path: str = "", classnames: tuple[str, ...] = ()) -> FeatureSet:
    """Features of an .npz as few-shot repositories record them; nothing in it is executed.

    Two spellings: `train_features_K`, `train_labels_K`, `val_features`, …, `text_features`, `classnames`, `logit_scale`;
    and `keys_K`, `keys_K_l`, `val_f`, `val_l`, `test_f`, `test_l`; with either `test_path`, the photos' names. Raises
    `DataError` for what is missing or misshaped.
    """
    arrays = _load_npz(path)
    first = "train_features_{}" if any(k.startswith("train_features_") for k in arrays) else "keys_{}"
    labels = "train_labels_{}" if first.startswith("train") else "keys_{}_l"
    known = sorted(
        int(k.rsplit("_", 1)[1]) for k in arrays if k.startswith(first[:-2]) and k.rsplit("_", 1)[1].isdigit()
    )
    if shots not in known:
        raise DataError(
            f"{path} has no features of {shots} shots (has {', '.join(map(str, known)) or 'none'}): set data.shots"
        )
    long = "val_features" in arrays or "test_features" in arrays
    names = {
        part: (f"{part}_features", f"{part}_labels") if long else (f"{part}_f", f"{part}_l") for part in ("val", "test")
    }
    parts = {"train": (first.format(shots), labels.format(shots)), **names}
    loaded = {part: _features_and_labels(arrays, *keys, path) for part, keys in parts.items()}
    classes = tuple(map(str, np.atleast_1d(arrays["classnames"]))) if "classnames" in arrays else classnames
    text, scale = _text_features(arrays, text_path, path), _scale(arrays, path)
    photos = tuple(map(str, arrays.get("test_path", ())))
    rows = *loaded["train"], *loaded["val"], *loaded["test"]
    data = FeatureSet(classes, *rows, text, scale, photos)
    _check(data, path)
    return data


def _load_npz(path: str) -> Mapping[str, np.ndarray]:
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise DataError(f"{path} is not a readable .npz of arrays: it holds one array without a name")
        with file:
            return {k: file[k] for k in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise DataError(f"{path} is not a readable .npz of arrays: {e}") from e


def _features_and_labels(
    arrays: Mapping[str, np.ndarray], features: str, labels: str, path: str
) -> tuple[np.ndarray, np.ndarray]:
    if features not in arrays or labels not in arrays:
        raise DataError(f"{path} lacks {features} or {labels} (has {', '.join(sorted(arrays))})")
    x, y = arrays[features], arrays[labels]
    if x.ndim != 2 or y.shape != (len(x),):
        raise DataError(f"{path}: {features} {x.shape} and {labels} {y.shape} do not belong together")
    return _directions(x, features, path), _whole_numbers(y, labels, path)


def _directions(x: np.ndarray, name: str, path: str) -> np.ndarray:
    """Rows (N, E) float32 of length one. Raises `DataError` for what is no number, and for rows without a length."""
    if x.dtype.kind not in "fiu":
        raise DataError(f"{path}: {name} holds {x.dtype}, expected real numbers")
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
        lengths = np.linalg.norm(x, axis=1, keepdims=True)
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        raise DataError(
            f"{path}: {name} holds {int((~np.isfinite(x)).sum())} values that are no numbers (first: row {row}): "
            "record it anew"
        )
    lost = np.flatnonzero((lengths < 1e-12) | ~np.isfinite(lengths))
    if len(lost):
        raise DataError(
            f"{path}: {name} has {len(lost)} rows that can't be brought to length one (first: row {lost[0]}, of length "
            f"{float(lengths[lost[0], 0])}): record them anew, or leave them out"
        )
    return x / lengths


def _whole_numbers(y: np.ndarray, name: str, path: str) -> np.ndarray:
    """Labels (N,) int64. Raises `DataError` for what would have to be rounded."""
    if y.dtype.kind not in "fiu" or not (np.isfinite(y).all() and (y == np.floor(y)).all()):
        raise DataError(f"{path}: {name} are the classes' numbers from 0, expected whole numbers ({y.dtype})")
    return y.astype(np.int64)


def _scale(arrays: Mapping[str, np.ndarray], path: str) -> float:
    scale = np.asarray(arrays.get("logit_scale", 100.0))
    if scale.size != 1 or scale.dtype.kind not in "fiu" or not 0 < float(scale.ravel()[0]) < np.inf:
        raise DataError(f"{path}: logit_scale is {_short(scale)}, expected one number above 0, such as 100")
    return float(scale.ravel()[0])


def _short(array: np.ndarray) -> str:
    return str(array.ravel()[0]) if array.size == 1 else f"an array {array.shape}"


def _text_features(arrays: Mapping[str, np.ndarray], text_path: str, path: str) -> np.ndarray | None:
    text = arrays.get("text_features")
    if text is None and text_path:
        try:
            text = np.load(text_path, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
            raise DataError(f"data.text_features: {text_path} is not a readable .npy: {e}") from e
    if text is None:
        return None
    if not isinstance(text, np.ndarray):
        raise DataError(f"data.text_features: {text_path} holds several arrays, expected an .npy (C, E)")
    if text.ndim != 2:
        raise DataError(f"{text_path or path}: text features of shape {text.shape} are no (C, E) table")
    return _directions(text, "text_features", path if "text_features" in arrays else text_path)


def _check(data: FeatureSet, path: str) -> None:
    if data.test_photos and len(data.test_photos) != len(data.test):
        raise DataError(f"{path}: {len(data.test_photos)} names in test_path for {len(data.test)} test rows")
    parts = {"train": data.train_labels, "val": data.val_labels, "test": data.test_labels}
    widths = {x.shape[1] for x in (data.train, data.val, data.test) if len(x)}
    if data.text is not None:
        widths.add(data.text.shape[1])
        named = len(data.classnames) or 1 + int(max(y.max(initial=0) for y in parts.values()))
        if len(data.text) != named:
            raise DataError(f"{path}: {len(data.text)} text features for {named} classes: record one of each")
    if len(widths) > 1:
        raise DataError(
            f"{path}: features of different widths: {', '.join(map(str, sorted(widths)))}: all are to come of one model"
        )
    for part, labels in parts.items():
        if labels.size and (labels.min() < 0 or labels.max() >= data.classes):
            raise DataError(
                f"{path}: {part} labels reach from {labels.min()} to {labels.max()}, there are {data.classes} classes"
            )
    check_several(data.classes, data.classnames[0] if data.classnames else "0", f"{path}: ")
    if not data.classnames and data.text is None:
        check_without_gap(np.concatenate([*parts.values()]), path)


def few_shot_features(
    data: DataConfig,
    source: ModelSource | None,
    templates: str,
    *,
    views: int = 1,
    augment: str = "none",
    seed: int = 0,
    train: bool = True,
    photos: PhotoData | None = None,
    each_view: bool = False,
    normalise: bool = True,
    every_class: bool = False,
) -> FeatureSet:
    """Recorded features, or those of photos: training photos averaged over augmented views, val and test seen plainly.

    Text features come from the file, else from the model's prompts; None when there is neither, and beside penultimate
    features, which are not in their space. `train` off leaves
    the training photos out; `photos` are those of `data` where they have been read before. each_view: every view of a
    training photo is a row of its own, all photos of one view after those of another. normalise: off leaves image
    features as long as the tower makes them (recorded ones have lost that). every_class: a class without training
    photos is refused, text or not. Tells on stderr of classes short of photos, and of photos that are measured and
    learned from. Raises `DataError`.
    """
    if data.features:
        found = _recorded(data, source, templates)
    elif source is None:
        raise ConfigError("photos need a model: set model= to a name such as ViT-B/32 or to a weight file")
    else:
        photos = photos or read_photos(data)
        if train and not len(photos.train):
            raise DataError("there are no training photos: set data.root, data.train or data.split_file")
        training = {"views": views, "augment": augment, "seed": seed, "each": each_view}
        found = _of_photos(data, source, templates, photos, normalise, training if train else None)
    if train and (every_class or found.text is not None):  # without text, most recipes say so themselves
        check_taught(found.train_labels, found.classes, found.classnames, has_text=not every_class)
    if train and photos:
        tell_photos(photos, data.shots)
    elif train:
        tell_few(found.train_labels, found.classes, found.classnames, data.shots)
    return found


def tell_photos(photos: PhotoData, shots: int) -> None:
    """Tells on stderr of classes with fewer photos than `shots`, and of photos that are learned from and measured. Raises
    `DataError` for validation photos that are training photos."""
    check_apart(photos.train.paths, photos.val.paths)
    tell_few(photos.train.labels, len(photos.classnames), photos.classnames, shots)
    tell_leaks(photos.train.paths, {"val": photos.val.paths, "test": photos.test.paths})


def _recorded(data: DataConfig, source: ModelSource | None, templates: str) -> FeatureSet:
    """Recorded features, shots drawn of a pool; with a model and without recorded text, text of class names."""
    found = read_recorded(data.features, data.pool or data.shots, data.text_features)
    if data.pool:
        val_shots = min(data.shots, 4) if data.val_shots < 0 else data.val_shots
        found = drawn(found, data.shots, val_shots, data.seed)
    found = subset_of(found, data.subset, data.features)
    weights = {"weights_sha256": source.checkpoint.sha256} if source else {}
    found = replace(found, facts={"data_sha256": file_sha256(data.features), **weights})
    if found.text is not None or source is None:
        return found
    if not found.classnames:
        raise DataError(
            f"{data.features} names no classes, so no text can be made for them: set data.text_features, or leave "
            "model out"
        )
    check_width(source, found.train.shape[1])
    head = zero_shot_head(source, class_prompts(found.classnames, load_templates(templates)))
    return replace(found, text=head.weights, scale=head.scale)


def _of_photos(
    data: DataConfig, source: ModelSource, templates: str, photos: PhotoData, normalise: bool, training: dict | None
) -> FeatureSet:
    """Features of photos and of their class names; training: how the training photos are seen, None: not at all."""
    text, scale = None, 1.0
    if not source.penultimate:
        head = zero_shot_head(source, class_prompts(photos.classnames, load_templates(templates)))
        text, scale = head.weights, head.scale
    options = {"on_error": data.on_error, "normalise": normalise}
    learn = photos.train if training else Split()
    parts = [_labelled(source, learn, label="train", **(training or {}), **options)]
    parts += [_labelled(source, getattr(photos, part), label=part, **options) for part in ("val", "test")]
    digests = {f"{k}_sha256": v.digest() for k, v in vars(photos).items() if isinstance(v, Split) and len(v)}
    facts = {**digests, "weights_sha256": source.checkpoint.sha256}
    rows = [column for part in parts for column in part[:2]]
    seen = tuple(photos.test.paths[i] for i in parts[2][2])
    return FeatureSet(photos.classnames, *rows, text, scale, seen, facts)


def training_view(
    data: DataConfig, source: ModelSource | None, recorded: FeatureSet, augment: str, seed: int, view: int
) -> tuple[np.ndarray, np.ndarray]:
    """Normalised features and labels of the training photos in one augmented view; of recorded features, these."""
    if data.features or augment == "none":
        return recorded.train, recorded.train_labels
    options = {"augment": augment, "seed": seed, "on_error": data.on_error}
    return _labelled(source, read_photos(data).train, first_view=view, label=f"view {view}", **options)[:2]


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
