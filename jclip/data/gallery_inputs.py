"""What a gallery is made from: folders, photos, lists and tables of photos, tars as img2dataset writes them."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jclip.data.folders import LeftOut, is_hidden, is_photo, photos_below
from jclip.data.photo_hashes import is_hash, photo_hashes
from jclip.data.photo_lists import list_lines
from jclip.data.photo_tars import is_tar, members_of, names_in
from jclip.data.stored_photos import StoredPhoto
from jclip.errors import DataError, counted, notice, quoted
from jclip.readers.text import read_table

TABLES = {".csv": ",", ".tsv": "\t"}
LISTS = (".txt", ".lst", ".list")
PATH_COLUMNS = ("path", "photo", "image", "image_path", "filepath", "file", "filename", "image_name", "name")
CAPTION_COLUMNS = ("caption", "title", "text", "sentence")
JOINT = "::"  # between a tar and its member, where they are shown


PART = 4096  # photos, at most, that are hashed, encoded and saved together, whoever does it; a tar is a part of its own
LEAST_PART, MOST_PARTS = 512, 64  # of few photos parts are smaller, so that several processes have something to do


@dataclass
class Part:
    """Photos of one part as rows (see `jclip.data.gallery_store`), and what can't be read of it with the reason."""

    rows: list[dict[str, Any]]
    skipped: list[tuple[str, str]]


class Inputs:
    """Photos that were named, in parts: a part's rows are made, its bytes read, when they are asked for.

    Which photos are in which part depends on what was named alone, so that several processes see the same parts.
    root: the folder that paths are relative to. files: path → caption and columns. tars: photos in these follow.
    members: caption and columns of a tar's photo by its shown path, from a table.
    """

    def __init__(
        self,
        root: str,
        files: Mapping[str, dict[str, Any]],
        tars: Sequence[str] = (),
        members: Mapping[str, dict[str, Any]] | None = None,
    ):
        self.root, self._files, self._paths, self._tars = root, files, list(files), list(tars)
        self._members = members or {}
        self._before: dict[str, dict[str, Any]] = {}
        self._read: list[Part] | None = None

    @cached_property
    def step(self) -> int:
        """Photos of a part of files, 512 to 4096: a power of two by which there are 64 parts or fewer, if that is enough."""
        step = LEAST_PART
        while step < PART and step * MOST_PARTS < len(self._paths):
            step *= 2
        return min(step, PART)

    @property
    def of_files(self) -> int:
        """How many parts hold photos in files of their own; those of tars follow."""
        return -(-len(self._paths) // self.step)

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return self.of_files + len(self._tars)

    def size(self, number: int) -> int:
        """How many photos a part has; 0 of a tar, which would have to be read."""
        return len(self.paths(number))

    @property
    def files(self) -> int:
        """How many photos in files of their own there are."""
        return len(self._paths)

    def first(self, count: int) -> Inputs:
        """The first `count` of these, without those in tars."""
        return Inputs(self.root, {path: self._files[path] for path in self._paths[:count]})

    def covering(self, paths: Iterable[str]) -> int:
        """How many of the first photos hold all of `paths`; more than there are where one isn't among them."""
        place = {path: number for number, path in enumerate(self._paths, start=1)}
        return max((place.get(path, len(place) + 1) for path in paths), default=0)

    @property
    def tars(self) -> Sequence[str]:
        """Paths of the tars."""
        return self._tars

    def paths(self, number: int) -> Sequence[str]:
        """Paths of a part of files."""
        return self._paths[number * self.step : (number + 1) * self.step]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what was named, captions and columns included: equal where parts are."""
        sha = hashlib.sha256(json.dumps([self.root, self.step, self._tars, self._members]).encode())
        for path, facts in self._files.items():
            sha.update(json.dumps([path, facts]).encode() + b"\0")
        return sha.hexdigest()

    def part(self, number: int) -> Part:
        """The rows of one part, its photos' bytes read once more."""
        if self._read is not None:
            return self._read[number]
        if number < self.of_files:
            return self._of_files(self.paths(number))[0]
        return self._of_tar(self._tars[number - self.of_files])

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows, which stay in memory."""
        return [row for part in self._all() for row in part.rows]

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """What can't be read of all parts: path, reason."""
        return [found for part in self._all() for found in part.skipped]

    def remember(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Photos that are given no caption and no columns now get those of the row with their path."""
        self._before = {shown_path(row): row for row in rows if row["caption"] or row["columns"]}
        self._read = None

    def _all(self) -> list[Part]:
        if self._read is None:
            self._read = [*self._of_files(self._paths), *map(self._of_tar, self._tars)]
        return self._read

    def _of_files(self, paths: Sequence[str]) -> list[Part]:
        digests = photo_hashes(paths)
        parts = [Part([], []) for _ in range(-(-len(paths) // self.step))]
        for place, (path, digest) in enumerate(zip(paths, digests, strict=True)):
            made = _row_of(path, os.path.relpath(path, self.root), digest, self._files[path])
            part = parts[place // self.step]
            if isinstance(made, dict):
                part.rows.append(self._with_memory(made))
            else:
                part.skipped.append(made)
        return parts

    def _of_tar(self, tar: str) -> Part:
        rows, skipped = _rows_of_tar(tar, self.root)
        for row in rows:
            if facts := self._members.get(shown_path(row)):
                _put(row, facts)
        return Part([self._with_memory(row) for row in rows], skipped)

    def _with_memory(self, row: dict[str, Any]) -> dict[str, Any]:
        before = self._before.get(shown_path(row)) if not (row["caption"] or row["columns"]) else None
        return {**row, "caption": before["caption"], "columns": before["columns"]} if before else row


def shown_path(row: Mapping[str, Any]) -> str:
    """A row's path, of a tar's photo with its member."""
    return f"{row['path']}{JOINT}{row['member']['name']}" if row.get("member") else row["path"]


def read_inputs(places: Sequence[str | os.PathLike], root: str = "", table: str = "") -> Inputs:
    """All photos that `places` name, in order; of a folder in natural order.

    root: folder that the rows' paths are relative to; by default the folder itself, else the deepest that holds all.
    table: a CSV or TSV of more columns, whose rows name photos by path or, where that is unique, by name; of several
    rows of a photo the first counts. Raises `DataError` where nothing is named.
    """
    found: dict[str, dict[str, Any]] = {}
    tars: list[str] = []
    twice: list[str] = []
    for place in places:
        for path, facts in _named_by(place):
            path = os.path.abspath(path)  # noqa: PTH100 - keeps links, as the user named them
            if is_tar(path):
                tars.append(path)
            elif path in found:
                twice.append(path)
            else:
                found[path] = facts
    if twice:
        notice(f"{counted(len(twice), 'photo')} listed twice: such count once (first: {twice[0]})")
    if not found and not tars:
        raise DataError(f"no photo is named by {', '.join(map(str, places))}")
    base = os.path.abspath(root) if root else _common_root(places, [*found, *tars])  # noqa: PTH100
    tars = list(dict.fromkeys(tars))
    members = _join(found, tars, base, table) if table else {}
    return Inputs(base, found, tars, members)


def _named_by(place: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    """Paths that a place stands for, each with what a table says of it. Raises `DataError`."""
    path = Path(place)
    suffix = path.suffix.lower()
    if path.is_dir():
        left = LeftOut()
        below = photos_below(path, left)
        inner = sorted(str(p) for p in path.rglob("*.tar") if p.is_file() and not _is_hidden_below(p, path))
        if not below and not inner:
            also = f"; {left.line()}" if left.counts else ""
            raise DataError(f"no photo below {path}{also}")
        yield from ((p, {}) for p in [*below, *inner])
    elif suffix in TABLES:
        yield from _table_rows(path)
    elif suffix in LISTS:
        yield from ((str(path.parent / line), {}) for _, line in list_lines(path))
    elif path.is_file() or is_photo(str(path)) or is_tar(str(path)):
        yield str(path), {}
    else:
        raise DataError(f"no such photo, folder, list or tar: {path}")


def _is_hidden_below(path: Path, folder: Path) -> bool:
    return any(map(is_hidden, path.relative_to(folder).parts))


def _table_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    columns, rows = read_table(path, TABLES[path.suffix.lower()])
    named, caption, others = _roles(columns)
    for _, row in rows:
        facts = {"caption": row[caption]} if caption and row[caption] else {}
        yield str(path.parent / row[named]), {**facts, "columns": {k: row[k] for k in others if row[k]}}


def _roles(columns: Sequence[str]) -> tuple[str, str, list[str]]:
    """The columns of the path and of the caption, and the others."""
    lower = {name.lower(): name for name in columns}
    named = next((lower[name] for name in PATH_COLUMNS if name in lower), columns[0])
    caption = next((lower[name] for name in CAPTION_COLUMNS if name in lower and lower[name] != named), "")
    return named, caption, [name for name in columns if name and name not in (named, caption)]


def _common_root(places: Sequence[str | os.PathLike], paths: Iterable[str]) -> str:
    if len(places) == 1 and os.path.isdir(places[0]):  # noqa: PTH112
        return os.path.abspath(places[0])  # noqa: PTH100
    return os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120


def _row_of(path: str, name: str, digest: str, facts: Mapping[str, Any]) -> dict[str, Any] | tuple[str, str]:
    """The row of a photo, or its name and why there is none."""
    if not is_hash(digest):
        return name, _why_unread(digest)
    try:
        there = os.stat(path)  # noqa: PTH116
    except OSError as e:
        return name, e.strerror
    known = {"path": name, "member": None, "size": there.st_size, "mtime": there.st_mtime_ns, "sha256": digest}
    return {"caption": None, "columns": {}, **facts, **known}


def _why_unread(reason: str) -> str:
    number = reason.rpartition(" ")[2]
    return os.strerror(int(number)) if reason.startswith("unreadable") and number.isdecimal() else reason


def _rows_of_tar(tar: str, base: str) -> tuple[list[dict], list[tuple[str, str]]]:
    name = os.path.relpath(tar, base)
    rows = []
    try:
        for member in members_of(tar):
            facts = {"path": name, "caption": member.caption or None, "columns": member.facts, "mtime": member.mtime}
            place = {"name": member.name, "at": member.at}
            rows.append({**facts, "member": place, "size": member.size, "sha256": member.sha256})
    except DataError as e:
        return rows, [(name, str(e))]
    return rows, []


def _join(files: dict[str, dict[str, Any]], tars: Sequence[str], base: str, table: str) -> dict[str, dict[str, Any]]:
    """Puts a table's columns into the facts of the files that it names, and returns those of photos in tars."""
    path = Path(table)
    columns, records = read_table(path, TABLES.get(path.suffix.lower(), ","))
    named, caption, others = _roles(columns)
    facts = {os.path.relpath(file, base): own for file, own in files.items()}
    inside = {f"{os.path.relpath(tar, base)}{JOINT}{name}": {} for tar in tars for name in names_in(tar)}
    facts.update(inside)
    names = Counter(os.path.basename(shown) for shown in facts)  # noqa: PTH119
    by_name = {os.path.basename(s): s for s in facts if names[os.path.basename(s)] == 1}  # noqa: PTH119
    done: set[str] = set()
    absent: list[tuple[int, str]] = []
    again: list[int] = []
    for line, record in records:
        key = os.path.normpath(record[named])
        shown = key if key in facts else by_name.get(os.path.basename(key))  # noqa: PTH119
        if shown is None:
            absent.append((line, record[named]))
        elif shown in done:
            again.append(line)
        else:
            done.add(shown)
            captioned = {"caption": record[caption]} if caption and record[caption] else {}
            _put(facts[shown], {**captioned, "columns": {k: record[k] for k in others if record[k]}})
    if absent:
        line, first = absent[0]
        notice(
            f"{table}: photos that are not here: {counted(len(absent), 'row')} (first: line {line}, {quoted(first)})"
        )
    if again:
        rows = counted(len(again), "row")
        notice(f"{table}: photos that were named before: {rows}, the first of each counts (first: line {again[0]})")
    return {shown: own for shown, own in inside.items() if own}


def _put(row: dict[str, Any], facts: Mapping[str, Any]) -> None:
    """Adds a caption, if there is one, and columns."""
    row["caption"] = facts.get("caption") or row.get("caption")
    row["columns"] = {**row.get("columns", {}), **facts.get("columns", {})}


def photo_address(root: str | os.PathLike, row: Mapping[str, Any]) -> str:
    """What `jclip.data.photo_file.open_photo` opens a row's photo by: its path, or its place in a tar."""
    path = os.path.join(root, row["path"])  # noqa: PTH118
    if not (member := row.get("member")):
        return path
    return StoredPhoto(path, int(member["at"]), int(row["size"]), member["name"]).address


def is_unchanged(root: str | os.PathLike, row: Mapping[str, Any]) -> bool:
    """Whether a row's file is as it was when the row was made; of a tar's photo it is taken for granted."""
    if row.get("member"):
        return True
    try:
        there = os.stat(os.path.join(root, row["path"]))  # noqa: PTH116, PTH118
    except OSError:
        return False
    return (there.st_size, there.st_mtime_ns) == (row["size"], row["mtime"])
