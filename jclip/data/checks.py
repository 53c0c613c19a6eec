"""Whether photos, or features of them, can be learned from: what is refused, and what is reported in one line on stderr."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from jclip.data.photo_hashes import is_hash, photo_hashes
from jclip.errors import DataError, notice


def check_several(classes: int, first: str, place: str = "", more: str = "") -> None:
    """Raises `DataError` where one class, called `first`, is all there is; more: what else the message says."""
    if classes < 2:
        raise DataError(
            f"{place}only one class ({first}): at least two are needed; add photos of another class, or name others "
            f"beside it (jclip zero-shot --classes {first},OTHER), or find its photos with `jclip tag`{more}"
        )


def check_without_gap(labels: np.ndarray, place: str) -> None:
    """Raises `DataError` where labels (N,) ≥ 0 skip a number: nothing else names that class."""
    known = np.unique(labels)
    if len(known) and known[-1] >= len(known):
        gap = int(np.flatnonzero(known != np.arange(len(known)))[0])
        raise DataError(
            f"{place}: no row has label {gap}, though labels reach {known[-1]}: number them without a gap, "
            "or store classnames"
        )


def warn_few(labels: np.ndarray, classes: int, names: Sequence[str], shots: int) -> None:
    """Reports classes with training photos, labels (N,), but fewer than `shots`; Dassl's draw takes what there is too."""
    counts = np.bincount(labels, minlength=classes)
    few = np.flatnonzero((counts > 0) & (counts < shots))
    if len(few):
        first = f"{_name(names, few[0])}, {counts[few[0]]}"
        line = f"{len(few)} of {classes} classes {_have(few)} fewer than {shots} training photos (first: {first})"
        notice(f"{line}: all of them are taken")


def check_taught(labels: np.ndarray, classes: int, names: Sequence[str], has_text: bool) -> None:
    """Classes without any training photo, labels (N,): reported where they have text, else a `DataError`.

    So is a training split without photos.
    """
    if not len(labels):
        raise DataError("there is nothing to learn from: the training split is empty")
    none = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
    if len(none):
        lacking = f"{len(none)} of {classes} classes {_have(none)} no training photos (first: {_name(names, none[0])})"
        if not has_text:
            raise DataError(f"{lacking}, and this recipe learns from nothing else: add some, or leave the classes out")
        notice(f"{lacking}: learned from their text alone")


def check_agreement(parts: Mapping[str, tuple[Sequence[str], np.ndarray]], names: Sequence[str]) -> None:
    """Raises `DataError` for a photo that stands in these parts, paths and labels (N,) each, with two labels."""
    label_of: dict[str, int] = {}
    for paths, labels in parts.values():
        for path, label in zip(paths, labels.tolist(), strict=True):
            if (before := label_of.setdefault(path, label)) != label:
                both = " and ".join(f"{k} ({_name(names, k)})" for k in (before, label))
                raise DataError(f"{path} has two labels, {both}: keep one of them")


def check_apart(train: Sequence[str], val: Sequence[str]) -> None:
    """Raises `DataError` for validation photos that are training photos: what is chosen on them is chosen badly."""
    if again := repeated(train, val):
        raise DataError(
            f"{len(again)} of {len(val)} validation photos are training photos too ({preview(again)}): "
            "take them out of one of the two lists"
        )


def warn_leaks(train: Sequence[str], others: Mapping[str, Sequence[str]]) -> None:
    """Writes a line on photos that are learned from and measured too, copies included: their figures promise nothing
    for new ones."""
    again = {part: copied(train, paths) for part, paths in others.items()}
    counts = [f"{len(found)} of {len(others[part])} {part}" for part, found in again.items() if found]
    if counts:
        first = next(found[0] for found in again.values() if found)
        line = f"{' and '.join(counts)} photos are training photos too (first: {first}): "
        notice(f"{line}their figures do not generalise to new photos")


def repeated(train: Sequence[str], others: Sequence[str]) -> list[str]:
    """Those of `others` that are files of `train`, under the same name or through a link."""
    learned = set(map(os.path.realpath, train))
    return [path for path in others if os.path.realpath(path) in learned]


def copied(train: Sequence[str], others: Sequence[str]) -> list[str]:
    """Those of `others` with the bytes of a file of `train`; only what has an equal's size is read, and that but once."""
    size_of = {path: os.stat(path).st_size for path in (*train, *others)}  # noqa: PTH116 - half of the time
    sizes = {size_of[path] for path in train}
    near = [path for path in others if size_of[path] in sizes]
    shared = {size_of[path] for path in near}
    learned = {
        digest for digest in photo_hashes([path for path in train if size_of[path] in shared]) if is_hash(digest)
    }
    return [path for path, digest in zip(near, photo_hashes(near), strict=True) if digest in learned]


def preview(items: Sequence, count: int = 5) -> str:
    """The first few, in one line."""
    return ", ".join(map(str, items[:count])) + (", …" if len(items) > count else "")


def _have(classes: Sequence) -> str:
    return "has" if len(classes) == 1 else "have"


def _name(names: Sequence[str], label: int) -> str:
    return f'"{names[label]}"' if len(names) > label else f"label {label}"
