"""Published weights as data: open_clip's (architecture, tag) pairs, their sources, and the hashes of known files."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache

from jclip.paths import ASSETS

QUICKGELU = "-quickgelu"


@dataclass(frozen=True)
class Row:
    """One set of weights, a row of `assets/catalogue.csv`."""

    architecture: str
    tag: str
    hub: str  # owner/name
    family: str
    url: str  # the publisher's own, where there is one
    parameters: str  # of both towers; this and what follows is empty where it is not known
    input: str  # side of a photo in pixels
    language: str  # of the texts that it learned
    licence: str  # of the weights, as their publisher names it
    modelscope: str  # owner/name there

    @property
    def memory(self) -> str:
        """GB of the weights in float32."""
        return f"{4e-9 * int(self.parameters):.1f}" if self.parameters else ""


@dataclass(frozen=True)
class File:
    """One file of a set, a row of `assets/weight_files.csv`."""

    architecture: str
    tag: str
    place: str  # an address that `file` is added to; on Hugging Face's hub the repository's
    file: str
    sha256: str  # or its first eight digits, where the publisher gives no more

    @property
    def address(self) -> str:
        """The URL of the file."""
        on_hub = "/resolve/main" if self.place.startswith("https://huggingface.co/") else ""
        return f"{self.place}{on_hub}/{self.file}"


@cache
def rows() -> tuple[Row, ...]:
    """Return all sets, in the table's order."""
    return tuple(Row(**line) for line in _table("catalogue.csv"))


@cache
def files() -> tuple[File, ...]:
    """Return all files whose hash is known."""
    return tuple(File(**line) for line in _table("weight_files.csv"))


def _table(name: str) -> list[dict[str, str]]:
    with open(ASSETS / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def lookup(name: str) -> Row | None:
    """Return the row of `architecture/tag`, with or without open_clip's `-quickgelu`, or of a hub's `owner/name`;
    else None."""
    architecture, _, tag = name.partition("/")
    wanted = (architecture.removesuffix(QUICKGELU), tag)
    for row in rows():
        if name == row.hub or wanted == (row.architecture, row.tag):
            return row
    return None


def by_sha256(digest: str) -> Row | None:
    """Return the set that the file with this hash belongs to, or None for an unknown hash."""
    found = next((file for file in files() if digest.startswith(file.sha256)), None)
    return lookup(f"{found.architecture}/{found.tag}") if found else None


def sha256_of(file_name: str) -> str:
    """Return the full hash of OpenAI's file of this name."""
    return next(file.sha256 for file in files() if (file.tag, file.file) == ("openai", file_name))


def names() -> list[str]:
    """Return all `architecture/tag` names."""
    return [f"{row.architecture}/{row.tag}" for row in rows()]
