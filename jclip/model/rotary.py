"""Rotary positions in two dimensions: q and k of a patch are turned by angles of its row and column.

Su et al., 2021, arXiv 2104.09864, on a grid as Sun et al., arXiv 2303.15389, and Bolya et al., arXiv 2504.13181, have it.
"""

from __future__ import annotations

import numpy as np

from jclip import kernels
from jclip.runtime import jt


class Rotation:
    """q and k turned by `angles` (N, D of a head), alike in all heads, neighbouring dimensions in pairs; v stays as it is.

    first: tokens before the patches, which stay as they are, as those after them.
    `angles`: cosines and sines (first + N, D/2), as `kernels.attention` takes them.
    """

    def __init__(self, angles: np.ndarray, first: int = 1):
        angles = np.concatenate([np.zeros((first, angles.shape[1])), angles])[:, ::2]  # both of a pair turn alike
        self.angles = tuple(jt.array(f(angles).astype(np.float32)).stop_grad() for f in (np.cos, np.sin))

    def __call__(self, qkv):
        """(B, N, 3D) → (B, N, 3D)."""
        return kernels.rotated(qkv, *self.angles)


def grid_angles(vertical: np.ndarray, horizontal: np.ndarray, head_width: int, columns_first: bool) -> np.ndarray:
    """(N, D) float64: the angle of each dimension of a head, for each patch row by row.

    vertical, horizontal: positions t of rows and columns. Pair j of a half turns by t * 10000^(-4j/D); the first half with
    the row, or with the column where `columns_first`.
    """
    quarter = head_width // 4
    frequencies = 10000.0 ** (-np.arange(quarter) / quarter)
    rows, columns = (np.repeat(np.outer(t, frequencies), 2, axis=1) for t in (vertical, horizontal))
    halves = [np.repeat(rows, len(columns), axis=0), np.tile(columns, (len(rows), 1))]
    return np.concatenate(halves[::-1] if columns_first else halves, axis=1)
