"""Photos with labels, from folders, list files, CoOp's split files and tables; and the few shots drawn from them."""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from jclip.config import WORLD, DataConfig, Subset
from jclip.data import photo_hashes, world
from jclip.data.challenge_folder import base_of, class_finder, from_folder, strip_prefix
from jclip.data.checks import check_agreement, check_several, preview
from jclip.data.class_names import read_classes
from jclip.data.folders import LeftOut, assign_parts, natural_key, nearest_part, photos_below, read_class_folders
from jclip.data.photo_file import PHOTO_ENDINGS
from jclip.data.photo_lists import MOST_LABEL, on_disk, photos_with_label
from jclip.errors import DataError, did_you_mean, notice
from jclip.paths import is_file
from jclip.prompts.spelling import name_key
from jclip.readers.text import read_json, read_lines, read_table

__all__ = ["PhotoData", "Split", "find_photos", "natural_key", "read_photos"]  # and what is public below
PARTS = ("train", "val", "test")
_noted: set[str] = set()  # lines that this process has written already


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
        """SHA-256 over each photo's bytes and label, in order: what a feature cache and a result depend on.

        Neither names nor times count, so a folder that is copied, moved or restored has the same.
        """
        sha = hashlib.sha256()
        for digest, label in zip(photo_hashes.photo_hashes(self.paths), self.labels, strict=True):
            sha.update(f"{digest}\t{label}\n".encode())
        return sha.hexdigest()


@dataclass(frozen=True)
class PhotoData:
    """Class names by label, and three splits of which `val` and `test` may be empty.

    left: what lies in its folders and was not read. notes: lines on what a user may not expect of it. called: what the
    data itself calls each class, "" for one that it does not have; nothing where these are the names.
    """

    classnames: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    left: LeftOut = field(default_factory=LeftOut)
    notes: tuple[str, ...] = ()
    called: tuple[str, ...] = ()

    def digests(self) -> dict[str, str]:
        """`train_sha256`, `val_sha256`, `test_sha256` of the parts that have photos: what a result was made of."""
        return {f"{part}_sha256": split.digest() for part in PARTS if len(split := getattr(self, part))}


def read_photos(config: DataConfig) -> PhotoData:
    """The data that `config` names, few shots drawn; what was left out is noted on stderr, once in a process.

    Raises `DataError` for what is missing or contradictory.
    """
    return drawn_photos(noted(read_all_photos(config)), config)


def drawn_photos(data: PhotoData, config: DataConfig) -> PhotoData:
    """The photos that `config` draws from all, of the half of the classes that it names."""
    return subset_of(draw_shots(data, config.shots, config.val_shots, config.seed), config.subset)


def noted(data: PhotoData) -> PhotoData:
    """The same; what a user may not expect of it is written to stderr."""
    write_notes([*data.notes, data.left.line()])
    return data


def read_all_photos(config: DataConfig) -> PhotoData:
    """All photos that `config` names, before shots are drawn. Raises `DataError` for what is missing or contradictory."""
    config.check_one_source()
    config = from_folder(config)
    if config.split_file:
        root = photo_folder(config.root) if config.root else Path(config.split_file).parent
        data = _read_split_file(Path(config.split_file), root)
    elif config.train or config.test:
        data = _read_lists(config)
    elif config.val:
        raise DataError(f"data.val, a list, must come with data.train or data.test, got {config.val} alone")
    elif config.root:
        data = _read_folders(photo_folder(config.root), config.classes)
    else:
        raise DataError("no data named: set data.root, data.train, data.split_file or data.features")
    if config.strip_prefix:
        data = replace(data, classnames=tuple(strip_prefix(c) for c in data.classnames))
    _check(data)
    return data


def write_notes(lines: Iterable[str]) -> None:
    """Writes lines to stderr, each once in a process, however often its data is read."""
    for line in lines:
        if line and line not in _noted:
            _noted.add(line)
            notice(line)


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
    called = data.called[stay.start : stay.stop]
    splits = {part: _subset(getattr(data, part), stay) for part in PARTS}
    return replace(data, classnames=names, called=called, **splits)


def _subset(split: Split, stay: range) -> Split:
    rows, labels = kept(split.labels, stay)
    return Split(split.take(rows).paths, labels)


def renamed(data: PhotoData, names: tuple[str, ...], places: np.ndarray) -> PhotoData:
    """The split among the classes `names`: label k becomes places[k]."""
    splits = {part: getattr(data, part) for part in PARTS}
    moved = {part: Split(split.paths, places[split.labels].astype(np.int32)) for part, split in splits.items()}
    called = [""] * len(names)
    for place, own in zip(places.tolist(), data.called or data.classnames, strict=True):
        called[place] = f"{called[place]} / {own}" if called[place] else own
    return replace(data, classnames=names, called=tuple(called), **moved)


def photo_folder(root: str) -> Path:
    """The folder that `root` names; `shapes:STYLE` is rendered into the cache at first use."""
    if root.partition(":")[0] != WORLD:
        return Path(root)

    return world.rendered_folder(root.partition(":")[2])


def find_photos(places: Iterable[str | os.PathLike]) -> list[str]:
    """Photos named or below named folders, each folder in natural order; what lies there beside them is noted on stderr.

    Raises `DataError` for what isn't there.
    """
    found: list[str] = []
    for place in map(Path, places):
        if place.is_dir():
            left = LeftOut()
            below = photos_below(place, left)
            if not below:
                also = f"; {left.line()}" if left.counts else ""
                raise DataError(f"no photo below {place} (looked for {', '.join(sorted(PHOTO_ENDINGS))}{also})")
            write_notes([left.line()])
            found += below
        elif place.is_file():
            found.append(str(place))
        else:
            raise DataError(f"no such photo or folder: {place}")
    return found


def _read_folders(root: Path, classes: str = "") -> PhotoData:
    """Class folders, below folders for parts or without; `classes`: a file that names them otherwise."""
    found = read_class_folders(root)
    splits = {part: _split(rows, f"{root}, {part}") for part, rows in found.photos.items()}
    names = _folder_names(Path(classes), found.folders) if classes else found.names
    called = found.names if classes else ()
    return PhotoData(names, *(splits.get(part, Split()) for part in PARTS), found.left, found.notes, called)


def _folder_names(path: Path, folders: Sequence[str]) -> tuple[str, ...]:
    """The names of class folders from `folder name` lines, the first space separating. Raises `DataError`."""
    rows = [line.split(maxsplit=1) for line in lines_of(path)]
    if all(len(row) == 1 or row[1].isdecimal() for row in rows):
        raise DataError(f"{path}: beside data.root alone, data.classes holds `folder name` lines")
    exact = {row[0]: row[-1] for row in rows}
    names = {name_key(folder): name for folder, name in exact.items()} | exact
    absent = [folder for folder in folders if folder not in names and name_key(folder) not in names]
    if absent:
        raise DataError(
            f"{path} must have a line `folder name` for each of {len(folders)} class folders, and lacks {len(absent)}: "
            f"{preview(absent)}"
        )
    return tuple(names[folder if folder in names else name_key(folder)] for folder in folders)


def _split(rows: Iterable[tuple[str, int]], place: str) -> Split:
    """Paths and labels; raises `DataError` for labels that int32 can't hold."""
    rows = list(rows)
    beyond = [label for _, label in rows if not 0 <= label <= MOST_LABEL]
    if beyond:
        raise DataError(f"{place}: labels must be 0 to {MOST_LABEL}, got {beyond[0]} ({len(beyond)} of {len(rows)})")
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
                f"{path}, line {number}: must be `relative/path label`, got {photo!r:.80}, whose folder is not a class{near}"
            )
        rows.append((photo, label))
    base = base_of(path, root, rows[0][0].lstrip("/"))
    paths = on_disk(_below(base, photo) for photo, _ in rows)
    return _split(zip(paths, (label for _, label in rows), strict=True), str(path))


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
    return _read_table(path, root) if path.suffix.lower() in (".tsv", ".csv") else _read_coop_json(path, root)


def _read_coop_json(path: Path, root: Path) -> PhotoData:
    rows = _coop_rows(path)
    names: dict[int, str] = {}
    for _, label, name in (r for part in rows.values() for r in part):
        if names.setdefault(label, name) != name:
            raise DataError(f"{path}: label {label} is called both {names[label]!r} and {name!r}")
    if sorted(names) != list(range(len(names))):
        raise DataError(f"{path}: labels must be 0 to {len(names) - 1} without a gap, got {preview(sorted(names))}")
    splits = (_below_root(root, ((p, label) for p, label, _ in rows.get(k, ())), f"{path}, {k}") for k in PARTS)
    return PhotoData(tuple(names[i] for i in range(len(names))), *splits)


def _below_root(root: Path, rows: Iterable[tuple[str, int]], place: str) -> Split:
    """Paths relative to `root`, in the spelling of the disk, and labels."""
    rows = list(rows)
    paths = on_disk(str(root / path) for path, _ in rows)
    return _split(zip(paths, (label for _, label in rows), strict=True), place)


def _coop_rows(path: Path) -> dict[str, list[tuple[str, int, str]]]:
    """part → its rows of path, label and class. Raises `DataError`."""
    form = f"{path} must be a split file of the form {{train: [[path, label, class], …], …}}"
    lists = read_json(path)
    if not isinstance(lists, dict):
        raise DataError(f"{form}, got a {type(lists).__name__}")
    lists = {name: rows for name, rows in lists.items() if isinstance(rows, list)}
    said = parts_said({name: len(rows) for name, rows in lists.items()}, path)
    return {
        said[name]: [_coop_row(row, f"{path}: {name}[{i}]") for i, row in enumerate(rows)]
        for name, rows in lists.items()
    }


def _coop_row(row: object, place: str) -> tuple[str, int, str]:
    """One row of CoOp's JSON. Raises `DataError`."""
    if not isinstance(row, list) or len(row) != 3 or not isinstance(row[0], str) or not isinstance(row[2], str):
        raise DataError(f"{place} must be [path, label, class], got {row!r:.80}")
    path, label, name = row
    if type(label) is not int or not 0 <= label <= MOST_LABEL:
        raise DataError(f"{place}: label must be an integer from 0 to {MOST_LABEL}, got {label!r:.80}")
    return path, label, name


def parts_said(counts: Mapping[str, int], path: Path) -> dict[str, str]:
    """name → "train", "val" or "test". Raises `DataError` for names of parts that say none, with how many rows they have."""
    said = assign_parts(counts, str(path))
    if unknown := [name for name in counts if name not in said]:
        lost = sum(counts[name] for name in unknown)
        raise DataError(
            f"{path}: {len(unknown)} of {len(counts)} splits must be called train, val or test ({lost:,} rows, first: "
            f"{unknown[0]!r}{nearest_part(unknown[0])}): rename or remove them"
        )
    return said


def _read_table(path: Path, root: Path) -> PhotoData:
    """Classes in order of first appearance."""
    columns, table = read_table(path, "\t" if path.suffix.lower() == ".tsv" else ",")
    if lacking := sorted({"path", "classname", "split"} - {*columns}):
        raise DataError(f"{path} lacks the column {', '.join(lacking)} (needs path, classname, split)")
    for line, row in table:
        if empty := [column for column in ("path", "classname", "split") if not row[column].strip()]:
            raise DataError(f"{path}, line {line}: {empty[0]} must not be empty")
    said = parts_said(Counter(row["split"] for _, row in table), path)
    labels = {name: i for i, name in enumerate(dict.fromkeys(row["classname"] for _, row in table))}
    rows: dict[str, list[tuple[str, int]]] = {part: [] for part in PARTS}
    for _, row in table:
        rows[said[row["split"]]].append((row["path"], labels[row["classname"]]))
    return PhotoData(tuple(labels), *(_below_root(root, rows[part], f"{path}, {part}") for part in PARTS))


def _check(data: PhotoData) -> None:
    """Labels within the classes, at least two classes, every photo there and of one class."""
    check_several(len(data.classnames), data.classnames[0] if data.classnames else "none")
    for part, split in ((part, getattr(data, part)) for part in PARTS):
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
    """Rows of up to `count` photos per class, classes in order of first appearance; `beside` so many are wanted too.

    As Dassl draws them: a class of fewer is taken as it stands, of one with just as many the order is drawn too.
    """
    by_class: dict[int, list[int]] = {}
    for row, label in enumerate(split.labels.tolist()):
        by_class.setdefault(label, []).append(row)
    rows = []
    for members in by_class.values():
        most = min(count, len(members) * count // (count + beside))
        rows += members if most == len(members) < count else rng.sample(members, most)
    return rows
