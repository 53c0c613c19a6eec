"""Photos of several classes each, from folders and list files."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from jclip.config import WORLD, DataConfig
from jclip.data.checks import preview
from jclip.data.class_names import read_classes
from jclip.data.photo_lists import is_photo, label_of, list_lines, on_disk
from jclip.data.splits import Split, photo_folder, read_photos
from jclip.data.world import SCENES
from jclip.errors import DataError
from jclip.paths import compute_sha256, is_file

Part = Literal["train", "val", "test"]


@dataclass(frozen=True)
class LabelledPhotos:
    """Photos, and which classes each is of."""

    classnames: tuple[str, ...]
    photos: Split  # of no one class: their labels are -1
    targets: np.ndarray  # (N, C) bool


def read_multi_label(config: DataConfig, part: Part = "test") -> LabelledPhotos:
    """The test photos of `config`, or all of folders without a test part; or its validation or training photos.

    Of a folder per class, below test/ or directly, a photo that lies in several of them (the same bytes, or a link) has
    all their classes. A list file, `data.test` beside `data.classes`, has all labels after the path:
    `photos/1.jpg 3 17`; so have `data.val` and `data.train`. `shapes:scenes` has lists of its own. Raises `DataError` for
    what is missing or contradictory.
    """
    config = _with_lists(config)
    if listed := getattr(config, part):
        return _of_list(Path(listed), config)
    data = read_photos(replace(config, shots=0, val_shots=0))
    test = getattr(data, part) if part != "test" or len(data.test) else data.train
    return _gathered(data.classnames, zip(test.paths, _contents(test.paths), test.labels.tolist(), strict=True))


def has_photos(config: DataConfig, part: Part) -> bool:
    """Whether `config` names photos of several classes each, of that part. A root alone is a folder of test photos; beside
    a source of training or validation photos it is where these lie."""
    config = _with_lists(config)
    alone = bool(config.root) and not (config.val or config.train)
    return bool(getattr(config, part)) or (part == "test" and alone)


def _with_lists(config: DataConfig) -> DataConfig:
    """`shapes:scenes` and its like as the lists that were rendered; others as they are."""
    world, _, name = config.root.partition(":")
    if world != WORLD or name not in SCENES:
        return config
    folder = photo_folder(config.root)
    lists = {part: str(folder / f"{part}.txt") for part in ("train", "val", "test", "classes")}
    return replace(config, root=str(folder), **lists)


def _contents(paths: Sequence[str]) -> list[tuple]:
    """What distinguishes the contents of files: where one has the size of another, also its hash."""
    sizes = [Path(path).stat().st_size for path in paths]
    common = {size for size, count in Counter(sizes).items() if count > 1}
    return [(n, compute_sha256(Path(p)) if n in common else "") for p, n in zip(paths, sizes, strict=True)]


def _of_list(path: Path, config: DataConfig) -> LabelledPhotos:
    if not config.classes:
        raise DataError("lists of photos need data.classes, a file with `name label` per line")
    names, root = read_classes(Path(config.classes)), Path(config.root or path.parent)
    rows = []
    for number, line in list_lines(path):
        photo, labels = _photo_and_labels(line, f"{path}, line {number}", len(names))
        rows += [(str(root / photo), photo, label) for label in labels or [-1]]
    rows = [(real, photo, label) for real, (_, photo, label) in zip(on_disk(p for p, _, _ in rows), rows, strict=True)]
    absent = [p for p, _, _ in rows if not is_file(p)]
    if absent:
        raise DataError(f"{path}: {len(absent)} photos are missing: {preview(absent)}")
    return _gathered(names, rows)


def _photo_and_labels(line: str, place: str, classes: int) -> tuple[str, list[int]]:
    """What stands before and in the numbers that end a line, which blanks or commas separate."""
    plain = line.replace(",", " ")
    words = plain.split()
    labels = list(itertools.takewhile(str.isdecimal, reversed(words)))
    photo = line[: len(plain.rsplit(maxsplit=len(labels))[0])] if len(labels) < len(words) else ""
    if not photo:
        raise DataError(f"{place}: must be `relative/path label label …`, got {line!r:.80}")
    head, blank, last = photo.rpartition(" ")
    if blank and is_photo(head) and not is_photo(last):
        raise DataError(f"{place}: labels must be integers from 0, got {last!r:.60}")
    return photo, [label_of(label, place, classes) for label in reversed(labels)]


def _gathered(names: tuple[str, ...], rows: Iterable[tuple[str, Hashable, int]]) -> LabelledPhotos:
    """path, what distinguishes photos, label (-1: none) → one row for each photo, that of its first path."""
    paths: dict[Hashable, str] = {}
    labels: dict[Hashable, list[int]] = {}
    for path, key, label in rows:
        paths.setdefault(key, path)
        labels.setdefault(key, []).extend([label] if label >= 0 else [])
    if not paths:
        raise DataError("there are no photos to measure on: set data.root or data.test")
    targets = np.zeros((len(paths), len(names)), bool)
    for row, own in enumerate(labels.values()):
        targets[row, own] = True
    return LabelledPhotos(names, Split(tuple(paths.values()), np.full(len(paths), -1, np.int32)), targets)
