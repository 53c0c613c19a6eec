"""Which classes occur together: counted from labels, and what it does to scores and to the ranking loss. NumPy.

Counted from captions, it is part of learning from text alone. Counted from labels of photos it is not, and every output
has to say so (`uses_label_statistics`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jclip.errors import DataError

Source = Literal["captions", "labels"]
_ROWS = 1 << 16  # labels per product: float32 counts them exactly


@dataclass(frozen=True)
class Cooccurrence:
    """adj (C, C): in how many rows both classes are present, diagonal 0; counts (C,): in how many each is."""

    adj: np.ndarray
    counts: np.ndarray
    source: Source = "captions"

    @property
    def uses_label_statistics(self) -> bool:
        """Whether labels of photos went into it: then nothing made with it is learned from text alone."""
        return self.source == "labels"

    @property
    def shares(self) -> np.ndarray:
        """(C, C) P̄, see `normalised`."""
        return normalised(self.adj)


def count_cooccurrence(targets: np.ndarray | Iterable[np.ndarray], source: Source = "captions") -> Cooccurrence:
    """Counts of labels (N, C) in {1, 0, -1}, or of parts of them; unknown counts as absent. Raises `DataError` for none."""
    parts = [targets] if isinstance(targets, np.ndarray) else targets
    total: np.ndarray | None = None
    for part in parts:
        for start in range(0, len(part), _ROWS):
            present = (part[start : start + _ROWS] == 1).astype(np.float32)
            found = (present.T @ present).astype(np.float64)
            total = found if total is None else total + found
    if total is None:
        raise DataError("co-occurrence is counted over labels of at least one row, got none")
    counts = total.diagonal().astype(np.int64)
    np.fill_diagonal(total, 0)
    return Cooccurrence(total.astype(np.int64), counts, source)


def normalised(adj: np.ndarray) -> np.ndarray:
    """(C, C) P̄: each row of adj divided by its sum (the counts cancel); zeros for a class without partners."""
    sums = adj.sum(axis=1, keepdims=True, dtype=np.float64)
    return np.divide(adj, sums, out=np.zeros(adj.shape), where=sums > 0)


def modulated(
    scores: np.ndarray, shares: np.ndarray, strength: float = 0.5, center: np.ndarray | None = None
) -> np.ndarray:
    """S + strength · S P̄ of local scores (N, C) or of windows, before they are fused.

    center (C,): class means that are subtracted from S within the product, so that only what varies over photos is added.
    """
    return scores + strength * ((scores if center is None else scores - center) @ shares)


def ranking_weights(shares: np.ndarray) -> np.ndarray:
    """(C, C) weight of absent class i against present class j in the ranking loss: ln(1 / (P̄[i, j] + 1e-6)), diagonal 0,
    each row divided by its mean over all C."""
    weights = -np.log(shares + 1e-6)
    np.fill_diagonal(weights, 0)
    means = weights.mean(axis=1, keepdims=True)
    return np.divide(weights, means, out=np.zeros(shares.shape), where=means != 0)
