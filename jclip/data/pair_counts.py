"""How often classes are named together, counted from captions. Imports no Jittor."""

from __future__ import annotations

import numpy as np


def count_pairs(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (adj, counts): adj (C, C) int64, a_ij = captions that name both i and j, a_ii = 0; counts (C,) int64, n_i.

    targets: (N, C), 1 where a caption names the class; any other value, unknown (-1) too, counts as not named.
    """
    named = (np.asarray(targets) == 1).astype(np.float64)  # a product of float64 is exact up to 2^53, and fast
    together = np.rint(named.T @ named).astype(np.int64)
    counts = np.diagonal(together).copy()
    np.fill_diagonal(together, 0)
    return together, counts
