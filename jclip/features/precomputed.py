"""Sets of image features with labels, and the .npz files in which few-shot repositories store them. Imports no Jittor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from jclip.config import Subset
from jclip.data.checks import check_several, check_without_gap
from jclip.data.splits import PhotoData, half, kept
from jclip.errors import CheckpointError, DataError
from jclip.functional.metrics import classification_report, top_k
from jclip.readers.npz import read_npy, read_npz


@dataclass(frozen=True)
class FeatureSet:
    """Normalised image features (N, E) float32 with labels, and what is known of the text side.

    text: (C, E) rows of length one, or None where there are none or they live elsewhere. scale: exp(logit_scale).
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
    photos: PhotoData | None = None  # what the rows are features of; None for precomputed ones

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


def drawn(recorded: FeatureSet, shots: int, val_shots: int, seed: int) -> FeatureSet:
    """The features with `shots` of the training rows and `val_shots` of the validation rows (0: all) per class.

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
    """The features of half the classes. Raises `DataError` where they have no names, or one is all there is of them."""
    if subset == "all":
        return recorded
    if not recorded.classnames:
        raise DataError(f"{path} names no classes: data.subset={subset} needs classnames, to separate base from new")
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


def renamed(recorded: FeatureSet, names: tuple[str, ...], places: np.ndarray, text: np.ndarray) -> FeatureSet:
    """The features among the classes `names` with their text (C, E): label k becomes places[k]."""
    labels = {f"{part}_labels": places[getattr(recorded, f"{part}_labels")] for part in ("train", "val", "test")}
    return replace(recorded, classnames=names, text=text, **labels)


def read_text(path: str, classes: int, width: int) -> np.ndarray:
    """Text features (C, E) float32 of an .npy, rows of length one. Raises `DataError` for what is of other sizes."""
    text = _text_features({}, path, path)
    if text.shape != (classes, width):
        raise DataError(
            f"data.text_features: {path} must have shape {(classes, width)}, a row per class, got {text.shape}"
        )
    return text


def read_precomputed(path: str, shots: int, text_path: str = "", classnames: tuple[str, ...] = ()) -> FeatureSet:
    """Features of an .npz as few-shot repositories write them; nothing in it is executed.

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
    if not shots and len(known) == 1:  # all rows there are
        shots = known[0]
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
        return {name: array.read() for name, array in read_npz(path).items()}
    except CheckpointError as e:
        raise DataError(f"{path} is not a readable .npz of arrays: {_without_path(e, path)}") from e


def _without_path(error: CheckpointError, path: str) -> str:
    return str(error).removeprefix(path).lstrip(", ")


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
    """Rows (N, E) float32 of length one. Raises `DataError` for NaN and infinite values, and for rows of zeros."""
    if x.dtype.kind not in "fiu":
        raise DataError(f"{path}: {name} must hold floating-point values, got {x.dtype}")
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
        lengths = np.linalg.norm(x, axis=1, keepdims=True)
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        raise DataError(
            f"{path}: {name} holds {int((~np.isfinite(x)).sum())} values that are NaN or infinite (first: row {row}): "
            "compute it again"
        )
    lost = np.flatnonzero((lengths < 1e-12) | ~np.isfinite(lengths))
    if len(lost):
        raise DataError(
            f"{path}: {name} has {len(lost)} rows that can't be brought to length one (first: row {lost[0]}, of length "
            f"{float(lengths[lost[0], 0])}): compute them again, or leave them out"
        )
    return x / lengths


def _whole_numbers(y: np.ndarray, name: str, path: str) -> np.ndarray:
    """Labels (N,) int64. Raises `DataError` for what would have to be rounded."""
    if y.dtype.kind not in "fiu" or not (np.isfinite(y).all() and (y == np.floor(y)).all()):
        raise DataError(f"{path}: {name} must be class ids from 0 as integers, got {y.dtype}")
    return y.astype(np.int64)


def _scale(arrays: Mapping[str, np.ndarray], path: str) -> float:
    scale = np.asarray(arrays.get("logit_scale", 100.0))
    if scale.size != 1 or scale.dtype.kind not in "fiu" or not 0 < float(scale.ravel()[0]) <= np.finfo(np.float32).max:
        raise DataError(f"{path}: logit_scale must be one number above 0 in float32, such as 100, got {_short(scale)}")
    return float(scale.ravel()[0])


def _short(array: np.ndarray) -> str:
    return str(array.ravel()[0]) if array.size == 1 else f"an array {array.shape}"


def _text_features(arrays: Mapping[str, np.ndarray], text_path: str, path: str) -> np.ndarray | None:
    text = arrays.get("text_features")
    if text is not None and text_path:
        raise DataError(f"data.text_features must be left out: {path} has text features of its own, got {text_path}")
    if text_path:
        try:
            text = read_npy(text_path).read()
        except CheckpointError as e:
            raise DataError(f"data.text_features: {e}") from e
    if text is None:
        return None
    if text.ndim != 2:
        raise DataError(f"{text_path or path}: text features must be (C, E), got shape {text.shape}")
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
            raise DataError(
                f"{path}: {len(data.text)} text features for {named} classes: there must be one for each class"
            )
    if len(widths) > 1:
        raise DataError(
            f"{path}: features of different widths: {', '.join(map(str, sorted(widths)))}: all must come from one model"
        )
    for part, labels in parts.items():
        if labels.size and (labels.min() < 0 or labels.max() >= data.classes):
            raise DataError(
                f"{path}: {part} labels reach from {labels.min()} to {labels.max()}, there are {data.classes} classes"
            )
    check_several(data.classes, data.classnames[0] if data.classnames else "0", f"{path}: ")
    if not data.classnames and data.text is None:
        check_without_gap(np.concatenate([*parts.values()]), path)
