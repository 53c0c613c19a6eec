"""Joins the finished parts of a gallery into its files, one part in memory at a time."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.gallery_inputs import shown_path
from jclip.data.gallery_store import (
    DTYPES,
    PART_ROWS,
    Manifest,
    Store,
    remove_others,
    write_features,
    write_manifest,
    write_rows,
    write_skipped,
)
from jclip.data.hash_piles import HashPile
from jclip.errors import DataError
from jclip.features.cached import build_name
from jclip.features.gallery_parts import Parts, Whole
from jclip.features.source import ModelSource

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Change:
    """What a gallery has now beside what it had: rows, of these added, dropped, and with the bytes of another; photos that
    are left out, with the reason."""

    rows: int
    added: int
    dropped: int
    duplicates: int
    skipped: list[tuple[str, str]]


def facts_of(row: Mapping[str, Any]) -> str:
    """What two rows of the same photo have in common: path and bytes."""
    return json.dumps([shown_path(row), row["sha256"]])


def write_gallery(
    folder: Path, root: str, parts: Parts, source: ModelSource, dtype: str, model: str, old: Store | None
) -> Change:
    """Writes the gallery from its finished parts, one in memory at a time; their files are removed.

    Raises `DataError` where no photo decodes.
    """
    width, skipped = source.config.embed_dim, _Skipped()
    columns: dict[str, None] = {}
    with contextlib.ExitStack() as held:
        counts = _Counts(folder, old, held)
        table = write_rows(folder, _counted(parts, counts, skipped, columns))
        if not counts.rows:
            parts.forget()
            for name in table.values():
                (folder / name).unlink()
            first = skipped.listed[0]
            raise DataError(f"no photo decodes of {len(skipped.listed)} (first: {first['path']}: {first['reason']})")
        columns.update(dict.fromkeys(old.manifest.columns if old else ()))
        blocks = _blocks(part.features for part in _wholes(parts))
        files = []
        for at in range(0, counts.rows, PART_ROWS):
            count = min(PART_ROWS, counts.rows - at)
            files.append(write_features(folder, blocks(count), DTYPES[dtype], width, count))
        table |= write_skipped(folder, skipped.listed)
        change = counts.change([(found["path"], found["reason"]) for found in skipped.listed])
    manifest = Manifest(
        model or str(source.checkpoint.path), source.identity, source.preprocess.to_dict(), dtype, width, root,
        counts.rows, files, table, list(columns), source.family or "", _builds(old, counts.made),
    )  # fmt: skip
    write_manifest(folder, manifest)
    remove_others(folder, manifest)
    return change


def _builds(old: Store | None, made: int) -> list[str]:
    """Names of the builds that made the features, `made` of them now."""
    before = (old.manifest.builds or [""]) if old else []
    return [*dict.fromkeys([*before, *([build_name()] if made else [])])]


class _Skipped:
    """What is left out, in the order in which it is listed: first what can't be read, then what does not decode."""

    def __init__(self):
        self._unread: list[dict[str, str]] = []
        self._failed: list[dict[str, str]] = []

    def add(self, part: Whole) -> None:
        """What is left out of the next part."""
        self._unread += [{"path": path, "reason": reason} for path, reason in part.unread]
        self._failed += part.failed

    @property
    def listed(self) -> list[dict[str, str]]:
        """Path and reason, and SHA-256 of what does not decode."""
        return [*self._unread, *self._failed]


def _counted(parts: Parts, counts: _Counts, skipped: _Skipped, columns: dict[str, None]) -> Iterator[Mapping[str, Any]]:
    """Rows of all parts, counted on the way; names of their columns are gathered in `columns`."""
    for part in _wholes(parts):
        counts.add(part)
        skipped.add(part)
        columns.update(dict.fromkeys(name for row in part.rows for name in row["columns"]))
        yield from part.rows


def _wholes(parts: Parts) -> Iterator[Whole]:
    """All parts, in order. Raises `DataError` where one is damaged."""
    for number in range(parts.count):
        part = parts.whole(number)
        if part is None:
            raise DataError(
                f"part {number + 1} of {parts.count} was damaged, and is removed: give the same command again"
            )
        yield part


def _blocks(arrays: Iterator[np.ndarray]) -> Callable[[int], Iterator[np.ndarray]]:
    """Hands out rows of arrays that follow each other, as many as are asked for."""
    rest: list[np.ndarray] = []

    def some(count: int) -> Iterator[np.ndarray]:
        while count:
            block = rest.pop() if rest else next(arrays)
            if len(block) > count:
                rest.append(block[count:])
            yield block[:count]
            count -= min(count, len(block))

    return some


class _Counts:
    """Counts of the rows that a gallery has now beside those that it had."""

    def __init__(self, folder: Path, old: Store | None, held: contextlib.ExitStack):
        self._before, self._now, self._bytes = (HashPile(folder, held) for _ in range(3))
        self.rows = self.made = 0
        for some in _blocks_of(old.rows if old else ()):
            self._before.add(_prints(map(facts_of, some)))

    def add(self, part: Whole) -> None:
        """Rows of the next part."""
        self._now.add(_prints(map(facts_of, part.rows)))
        self._bytes.add(_prints(row["sha256"] for row in part.rows))
        self.rows, self.made = self.rows + len(part.rows), self.made + part.encoded

    def change(self, skipped: list[tuple[str, str]]) -> Change:
        """What changed."""
        added = dropped = 0
        for now, before in zip(self._now.distinct(), self._before.distinct(), strict=True):
            both = len(np.intersect1d(now, before, assume_unique=True))
            added, dropped = added + len(now) - both, dropped + len(before) - both
        return Change(self.rows, added, dropped, self.rows - sum(map(len, self._bytes.distinct())), skipped)


def _blocks_of(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    left = iter(rows)
    while some := list(itertools.islice(left, ROWS_AT_ONCE)):
        yield some


def _prints(texts: Iterable[str]) -> np.ndarray:
    """64 bits of each text's hash: of a million, no two are equal but with a probability of 3e-8."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, np.uint64)
