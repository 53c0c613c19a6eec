"""Joins the finished parts of a gallery into its files, one part in memory at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from jclip.errors import DataError
from jclip.features.gallery_parts import Parts, Whole
from jclip.features.source import ModelSource


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
    width, counts = source.config.embed_dim, _Counts(old)
    unread: list[dict[str, str]] = []
    failed: list[dict[str, str]] = []
    columns: dict[str, None] = {}
    for part in _wholes(parts):
        counts.add(part.rows)
        unread += [{"path": path, "reason": reason} for path, reason in part.unread]
        failed += part.failed
        columns.update(dict.fromkeys(name for row in part.rows for name in row["columns"]))
    skipped = [*unread, *failed]
    if not counts.rows:
        parts.forget()
        raise DataError(f"no photo decodes of {len(skipped)} (first: {skipped[0]['path']}: {skipped[0]['reason']})")
    columns.update(dict.fromkeys(old.manifest.columns if old else ()))
    blocks = _blocks(part.features for part in _wholes(parts))
    files = []
    for at in range(0, counts.rows, PART_ROWS):
        count = min(PART_ROWS, counts.rows - at)
        files.append(write_features(folder, blocks(count), DTYPES[dtype], width, count))
    table = {**write_rows(folder, (row for part in _wholes(parts) for row in part.rows))}
    table |= write_skipped(folder, skipped)
    manifest = Manifest(
        model or str(source.checkpoint.path), source.identity, source.preprocess.to_dict(), dtype, width, root,
        counts.rows, files, table, list(columns), source.family or "",
    )  # fmt: skip
    write_manifest(folder, manifest)
    remove_others(folder, manifest)
    return counts.change([(found["path"], found["reason"]) for found in skipped])


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

    def __init__(self, old: Store | None):
        self._before = np.sort(_prints(facts_of(row) for row in old.rows)) if old else np.zeros(0, np.uint64)
        self._now: list[np.ndarray] = []
        self._bytes: list[np.ndarray] = []
        self.rows = 0

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of the next part."""
        self._now.append(_prints(map(facts_of, rows)))
        self._bytes.append(_prints(row["sha256"] for row in rows))
        self.rows += len(rows)

    def change(self, skipped: list[tuple[str, str]]) -> Change:
        """What changed."""
        now = np.unique(np.concatenate(self._now))
        added, dropped = (len(np.setdiff1d(*pair)) for pair in ((now, self._before), (self._before, now)))
        return Change(self.rows, added, dropped, self.rows - len(np.unique(np.concatenate(self._bytes))), skipped)


def _prints(texts: Iterable[str]) -> np.ndarray:
    """64 bits of each text's hash: of a million, no two are equal but with a probability of 3e-8."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, np.uint64)
