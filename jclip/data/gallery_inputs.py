"""What a gallery is made from: folders, photos, lists and tables of photos, tars as img2dataset writes them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jclip.data.folders import LeftOut, is_hidden, is_photo, photos_below
from jclip.data.photo_hashes import is_hash, photo_hashes
from jclip.data.photo_lists import list_lines
from jclip.data.photo_tars import is_tar, members_of
from jclip.data.stored_photos import StoredPhoto
from jclip.errors import DataError, counted, notice, quoted
from jclip.readers.text import read_table

TABLES = {".csv": ",", ".tsv": "\t"}
LISTS = (".txt", ".lst", ".list")
PATH_COLUMNS = ("path", "photo", "image", "image_path", "filepath", "file", "filename", "image_name", "name")
CAPTION_COLUMNS = ("caption", "title", "text", "sentence")
JOINT = "::"  # between a tar and its member, where they are shown


@dataclass(frozen=True)
class Inputs:
    """Photos as rows (see `jclip.data.gallery_store`), the folder that paths are relative to, what can't be read."""

    root: str
    rows: list[dict[str, Any]]
    skipped: list[tuple[str, str]] = field(default_factory=list)  # path, reason
    columns: list[str] = field(default_factory=list)

    @property
    def hashes(self) -> list[str]:
        """SHA-256 of each photo."""
        return [row["sha256"] for row in self.rows]


def shown_path(row: Mapping[str, Any]) -> str:
    """A row's path, of a tar's photo with its member."""
    return f"{row['path']}{JOINT}{row['member']['name']}" if row.get("member") else row["path"]


def read_inputs(places: Sequence[str | os.PathLike], root: str = "", table: str = "") -> Inputs:
    """All photos of `places`, in order; of a folder in natural order.

    root: folder that the rows' paths are relative to; by default the folder itself, else the deepest that holds all.
    table: a CSV or TSV of more columns, whose rows name photos by path or, where that is unique, by name; of several
    rows of a photo the first counts. What is absent or unreadable is in `skipped`. Raises `DataError` where nothing
    is left.
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
    rows, skipped = _rows_of_files(found, base)
    for tar in dict.fromkeys(tars):
        own, lost = _rows_of_tar(tar, base)
        rows, skipped = rows + own, skipped + lost
    if table:
        _join(rows, table)
    columns = list(dict.fromkeys(name for row in rows for name in row["columns"]))
    return Inputs(base, rows, skipped, columns)


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


def _rows_of_files(found: Mapping[str, dict[str, Any]], base: str) -> tuple[list[dict], list[tuple[str, str]]]:
    rows, skipped = [], []
    for (path, facts), digest in zip(found.items(), photo_hashes(list(found)), strict=True):
        name = os.path.relpath(path, base)
        if not is_hash(digest):
            skipped.append((name, _why_unread(digest)))
            continue
        try:
            there = os.stat(path)  # noqa: PTH116
        except OSError as e:
            skipped.append((name, e.strerror))
            continue
        known = {"path": name, "member": None, "size": there.st_size, "mtime": there.st_mtime_ns, "sha256": digest}
        rows.append({"caption": None, "columns": {}, **facts, **known})
    return rows, skipped


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


def _join(rows: list[dict[str, Any]], table: str) -> None:
    """Puts a table's columns into the rows of the photos that it names."""
    path = Path(table)
    columns, records = read_table(path, TABLES.get(path.suffix.lower(), ","))
    named, caption, others = _roles(columns)
    by_path = {shown_path(row): row for row in rows}
    names = Counter(os.path.basename(shown) for shown in by_path)  # noqa: PTH119
    by_name = {os.path.basename(s): row for s, row in by_path.items() if names[os.path.basename(s)] == 1}  # noqa: PTH119
    done: set[int] = set()
    absent: list[tuple[int, str]] = []
    again: list[int] = []
    for line, record in records:
        key = os.path.normpath(record[named])
        row = by_path.get(key) or by_name.get(os.path.basename(key))  # noqa: PTH119
        if row is None:
            absent.append((line, record[named]))
        elif id(row) in done:
            again.append(line)
        else:
            done.add(id(row))
            row["caption"] = record[caption] if caption and record[caption] else row["caption"]
            row["columns"] = {**row["columns"], **{k: record[k] for k in others if record[k]}}
    if absent:
        line, first = absent[0]
        notice(
            f"{table}: photos that are not here: {counted(len(absent), 'row')} (first: line {line}, {quoted(first)})"
        )
    if again:
        rows = counted(len(again), "row")
        notice(f"{table}: photos that were named before: {rows}, the first of each counts (first: line {again[0]})")


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
