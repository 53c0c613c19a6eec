"""Published weights: open_clip's (architecture, tag) pairs and where they lie, as data in `assets/catalogue.csv`."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache

from jclip.paths import ASSETS

QUICKGELU = "-quickgelu"


@dataclass(frozen=True)
class Row:
    """One set of weights. `sha256` is the file's at `url`, or the first eight digits that its publisher tells, or empty."""

    architecture: str
    tag: str
    hub: str  # owner/name
    family: str
    sha256: str
    url: str


@cache
def rows() -> tuple[Row, ...]:
    """The whole table, in its order."""
    with open(ASSETS / "catalogue.csv", encoding="utf-8", newline="") as file:
        return tuple(Row(**line) for line in csv.DictReader(file))


def lookup(name: str) -> Row | None:
    """The row of `architecture/tag`, with or without open_clip's `-quickgelu`, or of a hub's `owner/name`; else None."""
    architecture, _, tag = name.partition("/")
    wanted = (architecture.removesuffix(QUICKGELU), tag)
    for row in rows():
        if name == row.hub or wanted == (row.architecture, row.tag):
            return row
    return None


def by_sha256(digest: str) -> Row | None:
    """The row of a file with this hash, None for a file that is not in the table."""
    return next((row for row in rows() if row.sha256 and digest.startswith(row.sha256)), None)


def sha256_of(file_name: str) -> str:
    """The full hash of OpenAI's file of this name."""
    return next(row.sha256 for row in rows() if row.tag == "openai" and row.url.endswith(f"/{file_name}"))


def names() -> list[str]:
    """All `architecture/tag`."""
    return [f"{row.architecture}/{row.tag}" for row in rows()]
