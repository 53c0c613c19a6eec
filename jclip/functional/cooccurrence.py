"""How often classes stand together in labels. NumPy in, NumPy out.

With n_i the captions that name class i and a_ij those that name i and j: P(j | i) = a_ij / n_i, a_ii = 0.
"""

from __future__ import annotations

import numpy as np

RAREST = 1e-6  # what a share of 0 counts as


def pairs_together(targets: np.ndarray) -> np.ndarray:
    """(N, C) labels, 1 where a class is present → (C, C) float64 counts a_ij of rows with both, 0 on the diagonal."""
    present = (targets > 0).astype(np.float64)
    counts = present.T @ present
    np.fill_diagonal(counts, 0.0)
    return counts


def partner_shares(counts: np.ndarray) -> np.ndarray:
    """P(j | i) with rows brought to a sum of 1: (C, C) counts → (C, C). A class without partners has a row of zeros."""
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, total, out=np.zeros_like(counts, np.float64), where=total > 0)


def pair_weights(shares: np.ndarray) -> np.ndarray:
    """Weights of a ranking loss's pairs (i absent, j present), large where i seldom stands beside j: (C, C) → (C, C).

    w_ij = ln(1 / (P_ij + 1e-6)), 0 on the diagonal, each row divided by its mean over all C entries.
    """
    weights = -np.log(shares + RAREST)
    np.fill_diagonal(weights, 0.0)
    return weights / weights.mean(axis=1, keepdims=True)
