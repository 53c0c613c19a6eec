"""Image features pulled towards the sentences of a bank that are nearest to them. NumPy in, NumPy out."""

from __future__ import annotations

import numpy as np

SENTENCES_AT_ONCE = 8192
PHOTOS_AT_ONCE = 1024


def nearest_in_bank(
    features: np.ndarray, bank: np.ndarray, count: int = 10, at_once: int = SENTENCES_AT_ONCE
) -> tuple[np.ndarray, np.ndarray]:
    """(n, E), (Q, E), rows of length one → the `count` largest cosines (n, k), largest first, and their rows (n, k).

    k is the smaller of `count` and Q. The bank is gone through once, in parts: no (n, Q) numbers are held. Raises
    `ValueError` for an empty one.
    """
    if not len(bank):
        raise ValueError("a bank must hold at least one sentence, got none")
    best = np.full((len(features), 0), 0, np.float32)
    rows = np.zeros((len(features), 0), np.int64)
    for start in range(0, len(bank), at_once):
        part = bank[start : start + at_once].astype(np.float32)
        found = np.concatenate([best, features @ part.T], axis=1)
        which = np.concatenate(
            [rows, np.broadcast_to(np.arange(start, start + len(part)), (len(features), len(part)))], axis=1
        )
        best, rows = _largest(found, which, count)
    order = np.argsort(-best, axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _largest(values: np.ndarray, names: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` largest of each row and their names, in no order."""
    if values.shape[1] <= count:
        return values, names
    kept = np.argpartition(-values, count - 1, axis=1)[:, :count]
    return np.take_along_axis(values, kept, axis=1), np.take_along_axis(names, kept, axis=1)


def pulled(
    features: np.ndarray,
    bank: np.ndarray,
    count: int = 10,
    mix: float = 0.5,
    at_once: int = SENTENCES_AT_ONCE,
) -> tuple[np.ndarray, np.ndarray]:
    """g' = (1 - mix) g + mix · mean of the `count` nearest of the bank, of features (n, E) and bank (Q, E) of length one.

    Returns g' (n, E) float32, which is not brought to length one, and the cosines (n, k), largest first.
    """
    moved, cosines = [], []
    for start in range(0, len(features), PHOTOS_AT_ONCE):
        own = features[start : start + PHOTOS_AT_ONCE].astype(np.float32)
        near, rows = nearest_in_bank(own, bank, count, at_once)
        middle = bank[rows].astype(np.float32).mean(axis=1)
        moved.append(np.float32(1 - mix) * own + np.float32(mix) * middle)
        cosines.append(near)
    k = min(count, len(bank))
    return (
        np.concatenate([*moved, np.zeros((0, features.shape[1]), np.float32)]),
        np.concatenate([*cosines, np.zeros((0, k), np.float32)]),
    )
