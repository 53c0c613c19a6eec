"""What a folder of photos holds: which files are photos, which folders are classes or parts, and what is left out.

A part is train, val or test, whatever of `PARTS` it is called; a class is a folder, with all folders below it. Links to
folders are followed, each folder once.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jclip.data.checks import check_several
from jclip.data.photo_file import PHOTO_ENDINGS
from jclip.errors import DataError, did_you_mean
from jclip.prompts.spelling import alike, difference, name_key

PARTS = {
    "train": "train", "training": "train", "训练": "train", "训练集": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "development": "val", "验证": "val", "验证集": "val",
    "test": "test", "testing": "test", "测试": "test", "测试集": "test",
}  # fmt: skip
EITHER = {"eval", "evaluation"}  # the test part, or beside one of these the validation part
SYSTEM = {
    "@eadir", "#recycle", "@recently-snapshot", "__macosx", "$recycle.bin", "system volume information", "lost+found",
    "thumbs.db", "ehthumbs.db", "desktop.ini",
}  # fmt: skip
HIDDEN = "hidden or system files and folders"
_MOST_DEEP = 100  # folders within folders
Place = tuple[int, int]  # device and inode


@dataclass
class LeftOut:
    """What lies below a folder and is not read: for each reason how many, and the first."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, path: str, count: int = 1) -> None:
        """One more for that reason."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.first.setdefault(reason, path)

    def take(self, other: LeftOut) -> None:
        """All of another's too."""
        for reason, count in other.counts.items():
            self.add(reason, other.first[reason], count)

    def lines(self) -> list[str]:
        """`3 .txt files (first: a/notes.txt)`, one for each reason."""
        return [f"{n:,} {reason} (first: {self.first[reason]})" for reason, n in sorted(self.counts.items())]

    def line(self) -> str:
        """All of them in one line, or nothing where nothing was left out."""
        return f"left out: {', '.join(self.lines())}" if self.counts else ""


@dataclass(frozen=True)
class ClassFolders:
    """The folders of classes and, for each part, the photos (path, label) in them.

    names: the classes' names in the order of their labels. notes: lines on what a user may not expect.
    """

    names: tuple[str, ...]
    folders: tuple[str, ...]
    photos: Mapping[str, list[tuple[str, int]]]
    left: LeftOut
    notes: tuple[str, ...]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or made by a system and not by a person."""
    return name.startswith(".") or name.casefold() in SYSTEM


def is_photo(name: str) -> bool:
    """Whether the ending says that a file is a photo."""
    return os.path.splitext(name)[1].lower() in PHOTO_ENDINGS  # noqa: PTH122 - a tenth of a Path's time


def natural_key(path: str) -> list:
    """Sorts `2.jpg` before `10.jpg`."""
    return [
        (0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part)
        for part in re.split(r"([0-9]+)", path)
        if part
    ]


def photos_below(folder: str | os.PathLike, left: LeftOut, apart: Iterable[Place] = ()) -> list[str]:
    """The photos in `folder` and the folders below it, in natural order; what is none is added to `left`.

    apart: folders that are not entered from here, whatever links lead to them. Raises `DataError` for a folder that can't
    be read.
    """
    root = os.fspath(folder)
    seen = {*apart} - {_place(root)}
    return sorted(_photos_below(root, left, seen), key=lambda path: natural_key(path[len(root) :]))


def _photos_below(folder: str, left: LeftOut, seen: set[Place], deep: int = 0) -> Iterator[str]:
    """seen: folders that were entered before, or are not to be: links may lead into circles."""
    if (place := _place(folder)) in seen or deep > _MOST_DEEP:
        left.add("links to folders that are read elsewhere" if place in seen else "folders that are too deep", folder)
        return
    seen.add(place)
    inner = []
    for entry in _entries(folder):
        kind = _kind(entry)
        if is_hidden(entry.name):
            left.add(HIDDEN, entry.path)
        elif kind == "folder":
            inner.append(entry.path)
        elif kind != "file":
            left.add(kind, entry.path)
        elif is_photo(entry.name):
            yield entry.path
        else:
            left.add(_by_ending(entry.name), entry.path)
    for path in inner:
        yield from _photos_below(path, left, seen, deep + 1)


def _entries(folder: str) -> list[os.DirEntry]:
    """The entries of a folder by name. Raises `DataError`."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError as e:
        raise DataError(f"can't read the folder {folder}: {e.strerror}") from e


def _place(folder: str) -> Place:
    """What identifies a folder, whatever links lead to it. Raises `DataError`."""
    try:
        found = os.stat(folder)  # noqa: PTH116
    except OSError as e:
        raise DataError(f"can't read the folder {folder}: {e.strerror}") from e
    return found.st_dev, found.st_ino


def _kind(entry: os.DirEntry) -> str:
    """What an entry is, links followed: "folder", "file", or the reason to leave it out."""
    try:
        mode = entry.stat().st_mode
    except OSError:
        return "links that lead nowhere"
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "FIFOs, sockets and devices"


def _by_ending(name: str) -> str:
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122
    return f"{ending[:12]} files" if ending else "files without an ending"


def assign_parts(names: Iterable[str], place: str) -> dict[str, str]:
    """name → "train", "val" or "test", for those of `names` that say one.

    `eval` is the test part, or the validation part where a test part stands beside it. Raises `DataError` where two names
    say the same part.
    """
    names = list(names)
    said = {name: PARTS[key] for name in names if (key := name.strip().casefold()) in PARTS}
    free = "val" if "test" in said.values() else "test"
    said |= {name: free for name in names if name.strip().casefold() in EITHER}
    for part in set(said.values()):
        if len(twice := [name for name in names if said.get(name) == part]) > 1:
            raise DataError(f"{place}: {twice[0]!r} and {twice[1]!r} both name the {part} part: keep one of them")
    return {name: said[name] for name in names if name in said}


def names_a_part(name: str) -> bool:
    """Whether `assign_parts` knows the name."""
    return name.strip().casefold() in {*PARTS, *EITHER}


def nearest_part(name: str) -> str:
    """ ", did you mean 'val'?" for what comes near the name of a part."""
    return did_you_mean(name.strip().casefold(), [*PARTS, *EITHER])


def read_class_folders(root: Path) -> ClassFolders:
    """root/PART/CLASS/… or root/CLASS/…, photos in natural order, classes in the order of `in_order`.

    Raises `DataError` where there are no class folders, or where it isn't clear which folders are classes.
    """
    if not root.is_dir():
        raise DataError(f"data.root must be a folder, got {root}{nearest_beside(root)}")
    left = LeftOut()
    parts = _parts_below(root, left)
    inside = {part: _folders_in(folder, left) for part, folder in parts.items()}
    joined = _join_spellings(inside)
    folders = in_order({name for of_part in inside.values() for name in of_part})
    if not folders:
        raise DataError(_no_classes(root, left))
    if len(folders) == 1:
        place = next(of_part[folders[0]] for of_part in inside.values() if of_part)
        check_several(1, spoken_name(folders[0]), more=_inner_hint(place))
    photos: dict[str, list[tuple[str, int]]] = {}
    nested: list[str] = []
    for part, of_part in inside.items():
        apart = [_place(folder) for folder in (str(root), str(parts[part]), *of_part.values())]
        found = {name: photos_below(of_part[name], left, apart) for name in folders if name in of_part}
        photos[part] = [(path, label) for label, name in enumerate(folders) for path in found.get(name, ())]
        nested += [path for name, paths in found.items() for path in paths if os.path.dirname(path) != of_part[name]]  # noqa: PTH120
    names = tuple(map(spoken_name, folders))
    if len({*names}) < len(names):
        raise DataError(f"{root}: two class folders have the same name in UTF-8 and in GB18030: rename one")
    notes = [*joined, *_order_note(root, folders), *_encoding_note(root, folders, names), *_nested_note(nested)]
    return ClassFolders(names, tuple(folders), photos, left, tuple(notes))


def in_order(names: Iterable[str]) -> list[str]:
    """Names of class folders in the order of their labels: by number where all are numbers, else by their bytes."""
    names = sorted(names, key=os.fsencode)
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=int) if numbers else names


def spoken_name(folder: str) -> str:
    """The name of a folder or file as text: UTF-8, else GB18030. Raises `DataError` for a name that is neither."""
    raw = os.fsencode(folder)
    for encoding in ("utf-8", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise DataError(f"the name {folder} must be UTF-8 or GB18030, got {raw!r}: rename it")


def _join_spellings(inside: dict[str, dict[str, str]]) -> list[str]:
    """Gives folders of different parts whose names are one but for case, blanks or Unicode form the first one's name; in
    one part they stay apart. Returns the notes on both."""
    notes: list[str] = []
    respelled: list[str] = []
    first: dict[str, str] = {}
    for of_part in inside.values():
        spoken = {name: spoken_name(name) for name in of_part}
        if twice := alike(spoken.values()):
            one, other = ([*of_part][k] for k in twice)
            kind = difference(spoken[one], spoken[other]) or "encoding"
            notes.append(f"{of_part[one]} and {of_part[other]} differ only in {kind}: they are two classes")
        count = Counter(map(name_key, spoken.values()))
        for name, text in spoken.items():
            before = first.setdefault(name_key(text), name)
            if before not in of_part and count[name_key(text)] == 1:
                respelled.append(f"{of_part[name]} for {spoken_name(before)!r}")
                of_part[before] = of_part.pop(name)
    if respelled:
        notes.append(
            f"{len(respelled)} class folders are spelled otherwise than in another part (first: {respelled[0]})"
        )
    return notes


def _parts_below(root: Path, left: LeftOut) -> dict[str, Path]:
    """part → its folder; the root itself is the train part where its folders are classes."""
    beside = LeftOut()
    inside = _folders_in(root, beside)
    named = [name for name in inside if names_a_part(name)]
    others = [name for name in inside if name not in named]
    if not named or (others and not any(_has_folders(inside[name]) for name in named)):
        return {"train": root}
    said = assign_parts(inside, str(root))
    if others and "train" not in said.values():
        raise DataError(
            f"{root} has {len(others)} folders (first: {others[0]}{nearest_part(others[0])}) beside its "
            f"{said[named[0]]} part {named[0]}: name one of them train, or put the class folders into {root}/train"
        )
    left.take(beside)
    if others:
        left.add(f"folders beside {', '.join(named)}", inside[others[0]], len(others))
    by_part = {part: Path(inside[name]) for name, part in said.items()}
    return {part: by_part[part] for part in ("train", "val", "test") if part in by_part}


def _folders_in(folder: str | os.PathLike, left: LeftOut) -> dict[str, str]:
    """name → path of the folders in `folder`; files there are left out."""
    found = {}
    for entry in _entries(os.fspath(folder)):
        kind = _kind(entry)
        if is_hidden(entry.name):
            left.add(HIDDEN, entry.path)
        elif kind == "folder":
            found[entry.name] = entry.path
        elif kind == "file":
            reason = "photos outside of class folders" if is_photo(entry.name) else _by_ending(entry.name)
            left.add(reason, entry.path)
        else:
            left.add(kind, entry.path)
    return found


def _has_folders(folder: str) -> bool:
    return any(_kind(entry) == "folder" and not is_hidden(entry.name) for entry in _entries(folder))


def nearest_beside(root: Path) -> str:
    """`", did you mean 'photos'?"` for what stands beside a folder that is not there, and is called nearly so."""
    try:
        return did_you_mean(root.name, [entry.name for entry in os.scandir(root.parent) if not is_hidden(entry.name)])
    except OSError:
        return ""


def _no_classes(root: Path, left: LeftOut) -> str:
    alone = left.counts.get("photos outside of class folders", 0)
    photos = f"{alone:,} photos lie there without one; " if alone else ""
    return (
        f"no class folders below {root}: {photos}expected {root}/<class>/<photo>, or train/val/test above the classes"
    )


def _inner_hint(folder: str) -> str:
    """What to set where the only class folder holds folders itself: an archive that was unpacked into one."""
    return f"; {folder} holds folders: if these are the classes, set data.root={folder}" if _has_folders(folder) else ""


def _order_note(root: Path, folders: list[str]) -> list[str]:
    """Which label is which class, where one might expect `class_2` before `class_10`."""
    if folders == sorted(folders, key=natural_key):
        return []
    shown = [f"{label} {spoken_name(name)}" for label, name in enumerate(folders)]
    return [f"{root}: labels of {len(folders)} classes, in byte order of their names: {_shortened(shown)}"]


def _encoding_note(root: Path, folders: list[str], names: tuple[str, ...]) -> list[str]:
    """Names of folders that are no UTF-8."""
    other = [name for folder, name in zip(folders, names, strict=True) if folder != name]
    return [f"{root}: {len(other)} class names are read as GB18030 (first: {other[0]})"] if other else []


def _nested_note(nested: list[str]) -> list[str]:
    """Photos that lie in a folder within that of their class."""
    return [f"{len(nested):,} photos lie in folders within their class's (first: {nested[0]})"] if nested else []


def _shortened(items: list[str], most: int = 8) -> str:
    """The first and the last of them, in one line."""
    return ", ".join(items if len(items) <= most else [*items[: most - 2], "…", items[-1]])
