"""Pairs of rows whose cosine is high, and groups of what is connected by such pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jclip.functional.nearest import widened
from jclip.functional.products import times_rows

BLOCK = 1024


def near_pairs(parts: Sequence[np.ndarray], least: float) -> Iterator[tuple[int, int, float]]:
    """(i, j, score) with i < j of all rows (n_i, E) of length one whose product is at least `least`."""
    blocks = [
        (start + at, part[at : at + BLOCK]) for start, part in _starts(parts) for at in range(0, len(part), BLOCK)
    ]
    for place, (first, block) in enumerate(blocks):
        queries = widened(block)
        for other, rows in blocks[place:]:
            right = queries if other == first else widened(rows)
            scores = times_rows(queries, right, np.empty((len(queries), len(right)), np.float32))
            if not scores.max() >= least:
                continue
            left, column = np.nonzero(scores >= least)
            for i, j in zip(left.tolist(), column.tolist(), strict=True):
                if first + i < other + j:
                    yield first + i, other + j, float(scores[i, j])


def _starts(parts: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    start = 0
    for part in parts:
        yield start, part
        start += len(part)


def groups_of(pairs: Iterable[tuple[int, int, float]], total: int) -> list[list[int]]:
    """Groups of at least two rows that pairs connect, each ascending, in the order of their first rows."""
    parent = np.arange(total)

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = int(parent[row])
        return row

    touched: set[int] = set()
    for i, j, _ in pairs:
        touched.update((i, j))
        low, high = sorted((root(i), root(j)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for row in sorted(touched):
        groups.setdefault(root(row), []).append(row)
    return [groups[first] for first in sorted(groups)]
