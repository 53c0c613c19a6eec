"""Groups of near-duplicate photos of a gallery: found, as a table, as a contact sheet."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from jclip.data.gallery_store import Store
from jclip.errors import ConfigError, counted
from jclip.functional.directions import unit
from jclip.functional.near_pairs import groups_of, near_pairs
from jclip.functional.nearest import take
from jclip.paths import replacing
from jclip.readers.spreadsheet import write_csv_rows
from jclip.report import contact_sheet
from jclip.report.tiles import Section, Tile

HEAD = ("group", "path", "cosine", "same_bytes")


@dataclass(frozen=True)
class Group:
    """Rows that pairs of near-duplicates connect, ascending; scores: cosines to the first; same_bytes: with the first's."""

    rows: tuple[int, ...]
    scores: tuple[float, ...]
    same_bytes: tuple[bool, ...]

    @property
    def said(self) -> str:
        """How many photos, and how many of them are copies to the byte."""
        copies = sum(self.same_bytes) - 1
        return counted(len(self.rows), "photo") + (f", {copies} of them the first's very bytes" if copies else "")


def find_groups(store: Store, least: float | None) -> list[Group]:
    """Groups of a gallery's rows whose cosine is at least `least`, in the order of their first rows; copies to the byte
    belong together in any case, and with None they alone."""
    hashes = list(store.rows.column("sha256"))
    near = () if least is None else near_pairs(store.parts, least)
    found = []
    for rows in groups_of(chain(_copies(hashes), near), len(store)):
        features = unit(take(store.parts, np.array(rows)))
        scores = tuple(float(score) for score in features @ features[0])
        found.append(Group(tuple(rows), scores, tuple(hashes[row] == hashes[rows[0]] for row in rows)))
    return found


def _copies(hashes: Sequence[str]) -> Iterator[tuple[int, int, float]]:
    first: dict[str, int] = {}
    for row, digest in enumerate(hashes):
        if (before := first.setdefault(digest, row)) != row:
            yield before, row, 1.0


def check_file(path: str | None) -> None:
    """Raises `ConfigError` unless the table's ending is known."""
    if path and Path(path).suffix.lower() not in (".csv", ".json"):
        raise ConfigError(f"--out must end in .csv or .json, got {path}")


def write_groups(groups: Sequence[Group], path_of: Callable[[int], str], path: Path) -> None:
    """A row per photo: group, path, cosine to the group's first photo, whether it has its bytes."""
    rows = [
        (number, path_of(row), round(score, 6), same)
        for number, group in enumerate(groups, start=1)
        for row, score, same in zip(group.rows, group.scores, group.same_bytes, strict=True)
    ]
    with replacing(path) as temporary:
        if path.suffix.lower() == ".json":
            records = [dict(zip(HEAD, row, strict=True)) for row in rows]
            temporary.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
        else:
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                write_csv_rows(file, HEAD, rows)


def write_sheet(
    groups: Sequence[Group], photo_at: Callable[[int], str], path: str | os.PathLike, upright: bool = True
) -> None:
    """A section per group, the first photo in front."""
    parts = [_section(number, group, photo_at, upright) for number, group in enumerate(groups, start=1)]
    photos = sum(len(group.rows) for group in groups)
    title = f"{counted(len(groups), 'group')}, {counted(photos, 'photo')}"
    contact_sheet.write_sections(path, parts, title, "numbers: cosines to the first")


def _section(number: int, group: Group, photo_at: Callable[[int], str], upright: bool) -> Section:
    tiles = tuple(
        Tile(
            photo=photo_at(row),
            best=(("same bytes" if same and place else "cosine" if place else "first", min(1.0, max(0.0, score))),),
            verdict="open",
            upright=upright,
            numbers=(f"{score:.3f}",),
            may_be_absent=True,
        )
        for place, (row, score, same) in enumerate(zip(group.rows, group.scores, group.same_bytes, strict=True))
    )
    return Section(f"group {number}", tiles, group.said)
