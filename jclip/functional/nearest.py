"""The rows of a large array that are nearest to queries: exact inner products, block by block, NumPy alone.

A block's scores are made while they fit the processor's cache, and of them only those are touched that exceed a query's
k-th best so far. So each score is written once and read once, and memory does not grow with the array.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from jclip.functional.products import times_rows

SPARE = 8  # candidates beyond k: the last digits of a block's product depend on the block, and may swap neighbours
SCORES_AT_ONCE = 1 << 20  # scores of a block, 4 MiB
QUERIES_AT_ONCE = 1024
ROWS_AT_ONCE, COPIED_AT_ONCE = 1 << 17, 1 << 10  # of a block for few queries; what is converted stays in the cache
GATHERED = 1 << 24  # numbers of candidates' features that are scored again at once
TILE = 64  # scores of which one stands for all when a first bound is sought
CONVERTED = 1 << 16  # numbers of float16 at once
_MAGNITUDE, _INFINITE, _LEAST_NORMAL = np.uint16(0x7FFF), np.uint16(0x7C00), np.uint16(0x0400)  # of float16
_SIGN_AND_SIZE, _EXPONENTS_APART = np.uint32(0x8FFFE000), np.uint32(112 << 23)


class NotFinite(ValueError):
    """A feature holds NaN or infinite numbers; `row` is one whose block does."""

    def __init__(self, row: int):
        super().__init__(f"row {row} holds NaN or infinite numbers")
        self.row = row


def nearest(
    parts: Sequence[np.ndarray], queries: np.ndarray, k: int, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (Q, k) of the largest inner products and these (Q, k) float32, best first; of equal ones the lower row first.

    parts: arrays (n_i, E) in float16 or float32, one after the other, memory-mapped or not. queries: (Q, E) float32.
    rows: the rows that count, ascending; all by default. k is cut to their number. The score of a row is the same for any
    k, block and number of queries. Raises `NotFinite` for a row with NaN or infinite numbers.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    total = sum(map(len, parts)) if rows is None else len(rows)
    k = min(k, total)
    found = [_of_some(parts, some, k, min(total, k + SPARE), rows) for some in _batches(queries)]
    if not found or not k:
        return np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k), np.float32)
    return np.concatenate([ids for ids, _ in found]), np.concatenate([scores for _, scores in found])


def scores_of(parts: Sequence[np.ndarray], queries: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(Q, n) float32 inner products of query q (Q, E) with the rows ids[q] (Q, n)."""
    scores = np.empty(ids.shape, np.float32)
    step = max(1, GATHERED // max(1, ids.shape[1] * queries.shape[1]))
    for at in range(0, len(queries), step):
        some = ids[at : at + step]
        features = take(parts, some.ravel()).reshape(*some.shape, -1)
        scores[at : at + step] = np.einsum("qne,qe->qn", features, queries[at : at + step])
    return scores


def take(parts: Sequence[np.ndarray], ids: np.ndarray) -> np.ndarray:
    """Those rows (n, E), float32."""
    if len(parts) == 1:
        return widened(parts[0][ids])
    starts = np.cumsum([0, *map(len, parts)])
    of = np.searchsorted(starts, ids, side="right") - 1
    taken = np.empty((len(ids), parts[0].shape[1]), np.float32)
    for part in np.unique(of):
        here = of == part
        taken[here] = widened(parts[part][ids[here] - starts[part]])
    return taken


def widened(block: np.ndarray) -> np.ndarray:
    """(n, E) as float32, of float16 exactly, several times as fast as `astype`: exponents are moved as integers, in the cache.

    No subnormal float32 occurs on the way: a thread of Jittor takes these for zero.
    """
    if block.dtype != np.float16:
        return np.asarray(block, np.float32)
    flat, values = np.ascontiguousarray(block).ravel(), np.empty(block.shape, np.float32)
    numbers = values.ravel()
    bits, signed = numbers.view(np.uint32), numbers.view(np.int32)
    for at in range(0, len(flat), CONVERTED):
        few, here = flat[at : at + CONVERTED], slice(at, at + CONVERTED)
        size = few.view(np.uint16) & _MAGNITUDE
        if size.max() >= _INFINITE:
            numbers[here] = few
            continue
        own = bits[here]
        signed[here] = few.view(np.int16)  # the sign goes up to the last bit
        own <<= np.uint32(13)
        own &= _SIGN_AND_SIZE
        own += _EXPONENTS_APART
        small = np.flatnonzero(size < _LEAST_NORMAL)
        numbers[at + small] = few[small]
    return values


def _batches(queries: np.ndarray) -> Iterator[np.ndarray]:
    return (queries[at : at + QUERIES_AT_ONCE] for at in range(0, len(queries), QUERIES_AT_ONCE))


def _blocks(
    parts: Sequence[np.ndarray], step: int, rows: np.ndarray | None
) -> Iterator[tuple[np.ndarray, int | np.ndarray]]:
    """Blocks (n, E), float32, of the rows that count, each with its first row or with all of its rows."""
    start = 0
    for part in parts:
        own = None if rows is None else rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + len(part))]
        for at in range(0, len(part) if own is None else len(own), step):
            if own is None:
                yield widened(part[at : at + step]), start + at
            else:
                yield widened(part[own[at : at + step] - start]), own[at : at + step]
        start += len(part)


def _of_some(parts, queries: np.ndarray, k: int, kept: int, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """As `nearest`, of one batch of queries, by way of `kept` candidates."""
    ids = _candidates(parts, queries, kept, rows)
    scores = scores_of(parts, queries, ids)
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _candidates(parts, queries: np.ndarray, kept: int, rows: np.ndarray | None) -> np.ndarray:
    """Rows (Q, kept) with the largest products, in no order."""
    best = np.full((len(queries), kept), -np.inf, np.float32)
    ids = np.zeros((len(queries), kept), np.int64)
    least = best[:, 0].copy()  # what a score must exceed
    most = ROWS_AT_ONCE if rows is None and parts[0].dtype == np.float32 else COPIED_AT_ONCE
    step = max(256, min(most, SCORES_AT_ONCE // len(queries)))
    room = np.empty((len(queries), step), np.float32)
    for block, first in _blocks(parts, step, rows):
        scores = times_rows(queries, block, room[:, : len(block)])
        highest = scores.max(axis=1)
        if not (np.isfinite(highest).all() and np.isfinite(scores[0].min())):  # infinite of either sign
            raise NotFinite(_first_lost(block, first))
        (better,) = np.nonzero(highest > least)
        if len(better):
            _enter(scores[better], first, better, best, ids, least)
    return ids


def _reached(scores: np.ndarray, kept: int) -> np.ndarray:
    """(Q,): what at least `kept` scores of each row reach; of many scores the kept-th of the maxima of their tiles."""
    tiles = scores.shape[1] // TILE
    if tiles >= kept:
        scores = scores[:, : tiles * TILE].reshape(len(scores), tiles, TILE).max(axis=2)
    place = scores.shape[1] - kept
    return np.partition(scores, place, axis=1)[:, place]


def _first_lost(block: np.ndarray, first: int | np.ndarray) -> int:
    lost = np.flatnonzero(~np.isfinite(block).all(axis=1))
    place = int(lost[0]) if len(lost) else 0
    return first + place if isinstance(first, int) else int(first[place])


def _enter(scores: np.ndarray, first: int | np.ndarray, of: np.ndarray, best, ids, least) -> None:
    """Puts what exceeds `least` of queries `of` among their best."""
    kept = best.shape[1]
    if scores.shape[1] > kept:  # at first all do, and later a second look costs less than what it spares
        (many,) = np.nonzero(np.isneginf(least[of]))
        if len(many):
            reached = _reached(scores[many], kept)
            least[of[many]] = np.nextafter(reached, -np.inf, dtype=np.float32)  # itself counts, too
    query, column = np.divmod(np.flatnonzero(scores > least[of][:, None]), scores.shape[1])  # faster than of two axes
    counts = np.bincount(query, minlength=len(of))
    width = int(counts.max())
    place = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    beside = np.full((len(of), kept + width), -np.inf, np.float32)
    beside_ids = np.zeros((len(of), kept + width), np.int64)
    beside[:, :kept], beside_ids[:, :kept] = best[of], ids[of]
    beside[query, kept + place] = scores[query, column]
    beside_ids[query, kept + place] = first + column if isinstance(first, int) else first[column]
    order = np.argsort(-beside, axis=1, kind="stable")[:, :kept]
    best[of] = np.take_along_axis(beside, order, axis=1)
    ids[of] = np.take_along_axis(beside_ids, order, axis=1)
    least[of] = best[of, -1]
