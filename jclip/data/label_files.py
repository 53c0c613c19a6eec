"""Labels of photos with several classes each, one type for all sources; read here from lists, tables and arrays.

Labels have three states: 1 present, 0 absent, -1 unknown. Class names that are not among the known ones are refused with
the nearest that is; the order of the photos is kept. Imports no Jittor.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jclip.data.checks import preview
from jclip.data.photo_lists import is_photo, label_of, list_lines
from jclip.data.splits import Split
from jclip.errors import ConfigError, DataError, notice
from jclip.paths import is_file
from jclip.prompts.spelling import name_key, nearest
from jclip.readers.npz import read_npz
from jclip.readers.text import parse_json, read_lines, read_table

Difficult = Literal["as_negative", "ignore"]
LabelValues = Literal["jclip", "voc"]
PHOTO_COLUMNS = ("photo", "image", "path", "file", "filename", "file_name", "id")
_STATES = {"1": 1, "0": 0, "-1": -1, "1.0": 1, "0.0": 0, "-1.0": -1, "": 0}
_MOST_UNKNOWN = 0.5  # of the entries: more is likely another meaning of -1


@dataclass(frozen=True)
class PhotoLabels:
    """Photos as the source names them, and labels (N, C) int8: 1 present, 0 absent, -1 unknown.

    root: the folder that the photos' names are relative to. source: what was read. rules: how, for a measurement's file.
    """

    classnames: tuple[str, ...]
    photos: tuple[str, ...]
    targets: np.ndarray
    root: str = ""
    source: str = ""
    rules: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def paths(self) -> tuple[str, ...]:
        """Where the photos lie."""
        return tuple(str(Path(self.root, photo)) for photo in self.photos) if self.root else self.photos

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """Those of `paths` that are no file."""
        return tuple(path for path in self.paths if not is_file(path))

    @property
    def split(self) -> Split:
        """The photos as features are made of them; of no one class, their labels are -1."""
        return Split(self.paths, np.full(len(self), -1, np.int32))

    def take(self, rows: Sequence[int] | np.ndarray) -> PhotoLabels:
        """Those photos, in that order."""
        rows = np.asarray(rows, np.int64)
        photos = tuple(self.photos[n] for n in rows) if self.photos else ()
        return PhotoLabels(self.classnames, photos, self.targets[rows], self.root, self.source, self.rules)

    def sha256(self) -> str:
        """Hash of class names, photo names and labels, in order."""
        sha = hashlib.sha256(
            "\n".join(["classes", *self.classnames, "photos", *self.photos]).encode("utf-8", "surrogateescape")
        )
        sha.update(np.ascontiguousarray(self.targets, np.int8).tobytes())
        return sha.hexdigest()


class ClassFinder:
    """Finds classes by name, whatever the case, blanks and Unicode form."""

    def __init__(self, classnames: Sequence[str]):
        self.names = tuple(classnames)
        self._places = {name_key(name): c for c, name in reversed([*enumerate(classnames)])}

    def knows(self, name: str) -> bool:
        """Whether it is the name of a class."""
        return name_key(name) in self._places

    def find(self, name: str, place: str) -> int:
        """The class id of a name. Raises `DataError` with the place and the nearest name for one that is none."""
        if (found := self._places.get(name_key(name))) is not None:
            return found
        near = nearest(name, self.names)
        meant = f", did you mean {near[0]!r}?" if near else f" (such as {preview(self.names, 3)})"
        raise DataError(f"{place}: classes must be among the {len(self.names)} named, got {name!r:.80}{meant}")


def targets_of(rows: Iterable[tuple[Iterable[int], Iterable[int]]], count: int, classes: int) -> np.ndarray:
    """(count, classes) int8 of each photo's present and unknown classes; present wins, all others are absent."""
    targets = np.zeros((count, classes), np.int8)
    for row, (present, unknown) in zip(targets, rows, strict=True):
        row[[*unknown]] = -1
        row[[*present]] = 1
    return targets


def refuse_twice(photos: Sequence[str], place: str) -> None:
    """Raises `DataError` for a photo that stands more than once, and for none at all."""
    if not photos:
        raise DataError(f"{place}: must have at least one photo, got none")
    seen: set[str] = set()
    for photo in photos:
        if photo in seen:
            raise DataError(
                f"{place}: each photo must be listed once, got {photo!r:.200} again: join its labels on one row"
            )
        seen.add(photo)


def read_label_list(path: Path, classnames: Sequence[str], root: str = "") -> PhotoLabels:
    """Lines `photo label label …` with class numbers from 0, as TagCLIP has them; a photo may have no label.

    Raises `DataError` for labels beyond the classes and for a photo twice.
    """
    rows = [_list_row(line, f"{path}, line {n}", len(classnames)) for n, line in list_lines(path)]
    photos = tuple(photo for photo, _ in rows)
    refuse_twice(photos, str(path))
    targets = targets_of(((labels, ()) for _, labels in rows), len(rows), len(classnames))
    return PhotoLabels(tuple(classnames), photos, targets, root, str(path), {"format": "label list"})


def _list_row(line: str, place: str, classes: int) -> tuple[str, list[int]]:
    words = line.replace(",", " ").split()
    numbers = [*itertools.takewhile(lambda w: re.fullmatch("[0-9]+", w), reversed(words))]
    if len(numbers) == len(words):  # the photo's name is a number too
        numbers = numbers[:-1]
    photo = re.sub(rf"(?:[\s,]+[0-9]+){{{len(numbers)}}}[\s,]*$", "", line)
    head, blank, last = photo.rpartition(" ")
    if blank and is_photo(head) and not is_photo(last):
        raise DataError(f"{place}: labels must be integers from 0, got {last!r:.60}")
    return photo, [label_of(number, place, classes) for number in reversed(numbers)]


def read_label_table(path: Path, classnames: Sequence[str] | None, root: str = "") -> PhotoLabels:
    """A CSV or TSV with a column `photo` and either `labels` (names separated by ; or |) and perhaps `unknown`, or a column
    per class with 1, 0 or -1. Names in `labels` need the `classnames`. Raises `DataError`."""
    columns, records = read_table(path, "\t" if path.suffix.lower() == ".tsv" else ",")
    named = [column for column in columns if column.lower() in PHOTO_COLUMNS]
    if not named:
        raise DataError(f"{path}: must have a column {' or '.join(PHOTO_COLUMNS[:3])}, got {preview(columns)}")
    photos = tuple(fields[named[0]].strip() for _, fields in records)
    refuse_twice(photos, str(path))
    if "labels" in columns:
        finder = ClassFinder(_needed(classnames, path))
        rows = [[_split(fields.get(key, "")) for key in ("labels", "unknown")] for _, fields in records]
        targets = _by_names(finder, rows, [f"{path}, line {line}" for line, _ in records])
        return PhotoLabels(finder.names, photos, targets, root, str(path), {"format": "table of names"})
    own = [column for column in columns if column != named[0]]
    finder = ClassFinder(classnames or own)
    places = [finder.find(column, f"{path}, line 1") for column in own]
    _complete(places, finder, path)
    targets = np.zeros((len(records), len(finder.names)), np.int8)
    for row, (line, fields) in zip(targets, records, strict=True):
        for c, column in zip(places, own, strict=True):
            if (value := fields[column].strip()) not in _STATES:
                raise DataError(f"{path}, line {line}, {column}: must be 1, 0 or -1 (unknown), got {value!r:.40}")
            row[c] = _STATES[value]
    return PhotoLabels(finder.names, photos, targets, root, str(path), {"format": "table of classes"})


def _complete(places: Sequence[int], finder: ClassFinder, path: Path) -> None:
    if len({*places}) < len(places):
        raise DataError(f"{path}, line 1: each class must have one column, got two for one class")
    if lacking := [name for c, name in enumerate(finder.names) if c not in {*places}]:
        raise DataError(f"{path}: must have a column for each class, got none for {preview(lacking)}")


def read_label_lines(path: Path, classnames: Sequence[str] | None, root: str = "") -> PhotoLabels:
    """JSON lines `{"photo": …, "labels": [names], "unknown": [names]}`, the last optional; `image` or `path` also names a
    photo, other keys are left alone. Raises `DataError`."""
    finder = ClassFinder(_needed(classnames, path))
    photos, rows, places = [], [], []
    for number, line in enumerate(read_lines(path), start=1):
        if not line:
            continue
        place = f"{path}, line {number}"
        values = parse_json(line, place)
        photo = next((values[k] for k in PHOTO_COLUMNS if k in values), None) if isinstance(values, dict) else None
        if not isinstance(photo, str) or not photo:
            raise DataError(f'{place}: must be an object with "photo", a text, and "labels", got {line!r:.80}')
        rows.append(
            [_names(values.get(key, [] if key == "unknown" else None), key, place) for key in ("labels", "unknown")]
        )
        photos.append(photo)
        places.append(place)
    refuse_twice(photos, str(path))
    targets = _by_names(finder, rows, places)
    return PhotoLabels(finder.names, tuple(photos), targets, root, str(path), {"format": "JSON lines"})


def _names(value: Any, key: str, place: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise DataError(f'{place}: "{key}" must be a list of class names, got {value!r:.80}')
    return value


def _by_names(finder: ClassFinder, rows: Sequence[Sequence[Sequence[str]]], places: Sequence[str]) -> np.ndarray:
    found = [
        tuple([finder.find(name, place) for name in names] for names in row)
        for row, place in zip(rows, places, strict=True)
    ]
    return targets_of(found, len(found), len(finder.names))


def _split(cell: str) -> list[str]:
    return [name.strip() for name in re.split(r"[;|]", cell) if name.strip()]


def _needed(classnames: Sequence[str] | None, path: Path) -> Sequence[str]:
    if not classnames:
        raise ConfigError(f"{path} has labels by name: say all classes and their order with --classes")
    return classnames


def read_label_arrays(
    path: Path, key: str = "targets", classnames: Sequence[str] | None = None, values: LabelValues = "jclip",
    difficult: Difficult = "as_negative",
) -> PhotoLabels:  # fmt: skip
    """An array (N, C) of an .npz, with its `classes` and `images` where it has them.

    values: `jclip` 1 present, 0 absent, -1 unknown; `voc` 1 present, -1 absent, 0 difficult, which is absent too or with
    `ignore` unknown. Raises `DataError`.
    """
    arrays = read_npz(path)
    if key not in arrays:
        near = nearest(key, [*arrays])
        meant = f", did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{path}: must hold an array {key!r}{meant} (it has {preview([*arrays], 9)})")
    targets = arrays[key].read()
    own, photos = (texts_of(arrays, name, path) for name in ("classes", "images"))
    names = tuple(classnames or own)
    if targets.ndim != 2 or not targets.size or not np.isin(targets, (-1, 0, 1)).all():
        raise DataError(f"{path}, {key}: must be labels (N, C) of 1, 0 and -1, got {targets.dtype} {targets.shape}")
    names = names or tuple(map(str, range(targets.shape[1])))
    if len(names) != targets.shape[1] or (own and len(own) != len(names)):
        raise DataError(f"{path}, {key}: must have a column for each of {len(names)} classes, got {targets.shape[1]}")
    targets = targets.astype(np.int8)
    if own and own != names:
        finder = ClassFinder(names)
        targets = targets[:, np.argsort([finder.find(name, str(path)) for name in own])]
    rules = {"format": "array", "label_values": values}
    if values == "voc":
        targets = np.where(targets == 1, 1, np.where(targets == 0, -1 if difficult == "ignore" else 0, 0)).astype(
            np.int8
        )
        rules["difficult"] = difficult
    elif (share := float((targets < 0).mean())) > _MOST_UNKNOWN:
        notice(f"{path}: {share:.0%} of the labels are -1, unknown; if that means absent, say --label-values voc")
    if photos:
        refuse_twice(photos, str(path))
    return PhotoLabels(names, photos, targets, "", f"{path}:{key}", rules)


def texts_of(arrays: Mapping[str, Any], name: str, path: object) -> tuple[str, ...]:
    """The texts of an array (n,) of an .npz, nothing where there is none of that name. Raises `DataError`."""
    if name not in arrays:
        return ()
    array = arrays[name].read()
    if array.ndim != 1 or array.dtype.kind != "U":
        raise DataError(f"{path}, {name}: must be a list of texts, got {array.dtype} {array.shape}")
    return tuple(map(str, array))
