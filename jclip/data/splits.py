"""Photos with labels, from folders, list files, CoOp's split files and tables; and the few shots drawn from them."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from jclip.config import WORLD, DataConfig, Subset
from jclip.data.challenge import base_of, class_finder, from_folder, strip_prefix
from jclip.data.checks import check_agreement, check_several, preview
from jclip.data.class_names import read_classes
from jclip.data.photo_lists import on_disk, photos_with_label
from jclip.errors import DataError, did_you_mean
from jclip.paths import is_file
from jclip.readers.text import read_lines
from jclip.spelling import name_key

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True)
class Split:
    """Photos and their labels, in order."""

    paths: tuple[str, ...] = ()
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: Sequence[int]) -> Split:
        """Those rows, in that order."""
        return Split(tuple(self.paths[i] for i in rows), self.labels[np.asarray(rows, np.int64)])

    def digest(self) -> str:
        """SHA-256 over paths, sizes, modification times and labels: what a feature cache and a result depend on."""
        sha = hashlib.sha256()
        for path, label in zip(self.paths, self.labels, strict=True):
            stat = Path(path).stat()
            sha.update(f"{path}\t{stat.st_size}\t{stat.st_mtime_ns}\t{label}\n".encode())
        return sha.hexdigest()


@dataclass(frozen=True)
class PhotoData:
    """Class names by label, and three splits of which `val` and `test` may be empty."""

    classnames: tuple[str, ...]
    train: Split
    val: Split
    test: Split


def read_photos(config: DataConfig) -> PhotoData:
    """The data that `config` names, few shots drawn. Raises `DataError` for what is missing or contradictory."""
    config = from_folder(config)
    if config.split_file:
        root = photo_folder(config.root) if config.root else Path(config.split_file).parent
        data = _read_split_file(Path(config.split_file), root)
    elif config.train or config.test:
        data = _read_lists(config)
    elif config.root:
        data = _read_folders(photo_folder(config.root))
        if config.classes:
            data = replace(data, classnames=_folder_names(Path(config.classes), data.classnames))
    else:
        raise DataError("no data named: set data.root, data.train, data.split_file or data.features")
    if config.strip_prefix:
        data = replace(data, classnames=tuple(strip_prefix(c) for c in data.classnames))
    _check(data)
    return subset_of(draw_shots(data, config.shots, config.val_shots, config.seed), config.subset)


def half(classes: int, subset: Subset) -> range:
    """The labels that stay: "base" are the first half, rounded up, "new" the rest."""
    middle = -(-classes // 2)
    return {"all": range(classes), "base": range(middle), "new": range(middle, classes)}[subset]


def kept(labels: np.ndarray, labels_kept: range) -> tuple[np.ndarray, np.ndarray]:
    """The rows whose labels (N,) stay, and these labels counted from 0."""
    rows = np.flatnonzero((labels >= labels_kept.start) & (labels < labels_kept.stop))
    return rows, labels[rows] - labels_kept.start


def subset_of(data: PhotoData, subset: Subset) -> PhotoData:
    """That half of the classes. Raises `DataError` where one is all there is of it."""
    if subset == "all":
        return data
    stay = half(len(data.classnames), subset)
    names = data.classnames[stay.start : stay.stop]
    check_several(len(names), names[0] if names else "none", f"data.subset={subset}: ")
    return PhotoData(names, *(_subset(split, stay) for split in (data.train, data.val, data.test)))


def _subset(split: Split, stay: range) -> Split:
    rows, labels = kept(split.labels, stay)
    return Split(split.take(rows).paths, labels)


def renamed(data: PhotoData, names: tuple[str, ...], places: np.ndarray) -> PhotoData:
    """The same among the classes `names`: label k becomes places[k]."""
    parts = (Split(split.paths, places[split.labels].astype(np.int32)) for split in (data.train, data.val, data.test))
    return PhotoData(names, *parts)


def photo_folder(root: str) -> Path:
    """The folder that `root` names; `shapes:STYLE` is rendered into the cache at first use."""
    if root.partition(":")[0] != WORLD:
        return Path(root)
    from jclip.data.world import rendered_folder

    return rendered_folder(root.partition(":")[2])


def natural_key(path: str) -> list:
    """Sorts `2.jpg` before `10.jpg`."""
    return [
        (0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part)
        for part in re.split(r"([0-9]+)", path)
        if part
    ]


def find_photos(places: Iterable[str | os.PathLike]) -> list[str]:
    """Photos named or below named folders, each folder in natural order. Raises `DataError` for what isn't there."""
    found: list[str] = []
    for place in map(Path, places):
        if place.is_dir():
            below = [str(p) for p in place.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
            if not below:
                raise DataError(f"no photo below {place} (looked for {', '.join(sorted(SUFFIXES))})")
            found += sorted(below, key=natural_key)
        elif place.is_file():
            found.append(str(place))
        else:
            raise DataError(f"no such photo or folder: {place}")
    return found


def _read_folders(root: Path) -> PhotoData:
    """root/{train,val,test}/<class>/… or root/<class>/…; classes in byte order of their names."""
    if not root.is_dir():
        raise DataError(f"data.root is no folder: {root}")
    parts = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    others = [d for d in root.iterdir() if d.is_dir() and d not in parts.values()]
    if "train" not in parts and (others or not parts):
        parts = {"train": root}
    names = sorted({d.name for part in parts.values() for d in part.iterdir() if d.is_dir()}, key=os.fsencode)
    if not names:
        raise DataError(
            f"no class folders below {root}: expected {root}/<class>/<photo>, or train/val/test above the classes"
        )
    splits = {part: _read_class_folders(folder, names) for part, folder in parts.items()}
    return PhotoData(
        tuple(names), splits.get("train", Split()), splits.get("val", Split()), splits.get("test", Split())
    )


def _folder_names(path: Path, folders: Sequence[str]) -> tuple[str, ...]:
    """The names of class folders from `folder name` lines, the first space separating. Raises `DataError`."""
    rows = [line.split(maxsplit=1) for line in lines_of(path)]
    if all(len(row) == 1 or row[1].isdecimal() for row in rows):
        raise DataError(f"{path}: beside data.root alone, data.classes holds `folder name` lines")
    exact = {row[0]: row[-1] for row in rows}
    names = {name_key(folder): name for folder, name in exact.items()} | exact
    absent = [folder for folder in folders if folder not in names and name_key(folder) not in names]
    if absent:
        raise DataError(f"{path} names {len(absent)} of {len(folders)} class folders not: {preview(absent)}")
    return tuple(names[folder if folder in names else name_key(folder)] for folder in folders)


def _read_class_folders(folder: Path, names: list[str]) -> Split:
    rows = [
        (str(photo), label)
        for label, name in enumerate(names)
        for photo in sorted((folder / name).glob("*"), key=lambda p: natural_key(p.name))
        if photo.suffix.lower() in SUFFIXES
    ]
    return _split(rows)


def _split(rows: Iterable[tuple[str, int]]) -> Split:
    rows = list(rows)
    return Split(tuple(p for p, _ in rows), np.array([label for _, label in rows], np.int32))


def _read_lists(config: DataConfig) -> PhotoData:
    """The Jittor challenge's files: `relative/path label` per line, and `name label` per line for the classes."""
    if not config.classes:
        raise DataError("lists of photos need data.classes, a file with `name label` per line")
    names = read_classes(Path(config.classes))
    splits = [
        read_list(Path(file), Path(config.root or Path(file).parent), names) if file else Split()
        for file in (config.train, config.val, config.test)
    ]
    return PhotoData(names, *splits)


def read_list(path: Path, root: Path, names: Sequence[str] = ()) -> Split:
    """`relative/path label` per line; the last space separates, `\\` is taken for `/`, a leading slash is dropped, unless
    the path as it stands is a file. See `jclip.data.photo_lists`.

    A line without a label is of the class, among `names`, that the photo's folders name. Raises `DataError` with the line
    for labels that are none, or beyond `names`.
    """
    lines, class_of = photos_with_label(path, [root, path.parent], len(names)), class_finder(names)
    rows = []
    for number, photo, label in lines:
        label = class_of(photo) if label is None else label
        if label is None:
            near = did_you_mean(PurePosixPath(photo).parent.name, [*names, *map(strip_prefix, names)])
            raise DataError(
                f"{path}, line {number}: expected `relative/path label`, got {photo!r:.80}, whose folder is no class{near}"
            )
        rows.append((photo, label))
    base = base_of(path, root, rows[0][0].lstrip("/"))
    paths = on_disk(_below(base, photo) for photo, _ in rows)
    return _split(zip(paths, (label for _, label in rows), strict=True))


def _below(base: Path, photo: str) -> str:
    below = str(base / photo.lstrip("/"))
    return photo if photo.startswith("/") and not is_file(below) and is_file(photo) else below


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that hold something. Raises `DataError`."""
    return [line for line in read_lines(path) if line]


def _read_split_file(path: Path, root: Path) -> PhotoData:
    """CoOp's JSON (`train`, `val`, `test` lists of [path, label, class]) or a table with path, classname, split."""
    if not path.is_file():
        raise DataError(f"no such split file: {path}")
    return _read_table(path, root) if path.suffix in (".tsv", ".csv") else _read_coop_json(path, root)


def _read_coop_json(path: Path, root: Path) -> PhotoData:
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))
        rows = {
            k: [(str(p), _whole(label), str(name)) for p, label, name in parts.get(k, [])]
            for k in ("train", "val", "test")
        }
    except (OSError, ValueError, TypeError, AttributeError) as e:
        raise DataError(f"{path} is not a split file of the form {{train: [[path, label, class], …], …}}: {e}") from e
    names: dict[int, str] = {}
    for _, label, name in (r for part in rows.values() for r in part):
        if names.setdefault(label, name) != name:
            raise DataError(f"{path}: label {label} is called both {names[label]!r} and {name!r}")
    if sorted(names) != list(range(len(names))):
        raise DataError(f"{path}: labels must be 0 to {len(names) - 1} without a gap, got {preview(sorted(names))}")
    splits = (_split((str(root / p), label) for p, label, _ in rows[k]) for k in ("train", "val", "test"))
    return PhotoData(tuple(names[i] for i in range(len(names))), *splits)


def _whole(label: object) -> int:
    """Raises `ValueError` for a label that `int` would round."""
    if isinstance(label, float) and not label.is_integer():
        raise ValueError(f"label {label} is no whole number")
    return int(label)


def _read_table(path: Path, root: Path) -> PhotoData:
    """Classes in order of first appearance."""
    with open(path, encoding="utf-8-sig", newline="") as f:
        table = list(csv.DictReader(f, delimiter="\t" if path.suffix == ".tsv" else ","))
    lacking = {"path", "classname", "split"} - set(table[0] if table else ())
    if lacking:
        raise DataError(f"{path} lacks the column {', '.join(sorted(lacking))} (needs path, classname, split)")
    labels = {name: i for i, name in enumerate(dict.fromkeys(row["classname"] for row in table))}
    parts = {
        part: _split((str(root / row["path"]), labels[row["classname"]]) for row in table if row["split"] == part)
        for part in ("train", "val", "test")
    }
    return PhotoData(tuple(labels), parts["train"], parts["val"], parts["test"])


def _check(data: PhotoData) -> None:
    """Labels within the classes, at least two classes, every photo there and of one class."""
    check_several(len(data.classnames), data.classnames[0] if data.classnames else "none")
    for part, split in (("train", data.train), ("val", data.val), ("test", data.test)):
        beyond = split.labels[split.labels >= len(data.classnames)]
        if beyond.size:
            raise DataError(f"{part}: label {beyond.max()} is beyond the {len(data.classnames)} classes")
        absent = [p for p in split.paths if not is_file(p)]
        if absent:
            raise DataError(f"{part}: {len(absent)} of {len(split)} photos are missing: {preview(absent)}")
    check_agreement({k: (v.paths, v.labels) for k, v in vars(data).items() if isinstance(v, Split)}, data.classnames)


def draw_shots(data: PhotoData, shots: int, val_shots: int, seed: int) -> PhotoData:
    """`shots` photos per class to train on (0: all) and `val_shots` to choose by, drawn as CoOp's protocol draws them.

    One stream of random numbers per seed: where there is no val split, its photos are held out of train first, then
    train is drawn, then val. val_shots -1 means min(shots, 4). Of a class with fewer photos all are taken; where they
    are too few for both, validation gets its share of them, val_shots / (shots + val_shots), rounded down.
    """
    rng = random.Random(seed)
    train, val = data.train, data.val
    wanted = min(shots, 4) if val_shots < 0 else val_shots
    if not len(val) and len(train) and wanted and shots:
        held = _draw(train, wanted, rng, beside=shots)
        val, train = train.take(held), train.take(sorted({*range(len(train))} - {*held}))
    if shots and len(train):
        train = train.take(_draw(train, shots, rng))
    if len(val) and wanted:
        val = val.take(_draw(val, wanted, rng))
    return replace(data, train=train, val=val)


def _draw(split: Split, count: int, rng: random.Random, beside: int = 0) -> list[int]:
    """Rows of up to `count` photos per class, classes in order of first appearance; `beside` so many are wanted too."""
    by_class: dict[int, list[int]] = {}
    for row, label in enumerate(split.labels.tolist()):
        by_class.setdefault(label, []).append(row)
    rows = []
    for members in by_class.values():
        most = min(count, len(members) * count // (count + beside))
        rows += members if len(members) <= most else rng.sample(members, most)
    return rows
