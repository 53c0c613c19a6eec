"""Rotary positions in two dimensions: q and k of a patch are turned by angles of its row and column.

Su et al., 2021, arXiv 2104.09864, on a grid as Sun et al., arXiv 2303.15389, and Bolya et al., arXiv 2504.13181, have it.
"""

from __future__ import annotations

import numpy as np

from jclip.runtime import jt


class Rotation:
    """q and k turned by `angles` (N, D of a head), neighbouring dimensions in pairs; v stays as it is.

    heads: how many heads share the angles. first: tokens before the patches, which stay as they are, as those after them.
    """

    def __init__(self, angles: np.ndarray, heads: int, first: int = 1):
        angles = np.tile(angles, (1, heads))
        angles = np.concatenate([np.zeros((first, angles.shape[1])), angles])
        angles = np.concatenate([angles, angles, 0 * angles], axis=1)  # q, k, v
        signs = np.tile([-1.0, 1.0], angles.shape[1] // 2)  # pairs (a, b) become (a cos - b sin, b cos + a sin)
        self.cos = np.cos(angles).astype(np.float32)
        self.sin = (np.sin(angles) * signs).astype(np.float32)
        self._tables: dict[int, tuple] = {}

    def __call__(self, qkv):
        """(B, N, 3D) → (B, N, 3D)."""
        cos, sin = self._of_length(qkv.shape[1])
        x = qkv.float32()
        swapped = x.reindex(list(x.shape), ["i0", "i1", "i2 ^ 1"])
        return (x * cos + swapped * sin).cast(qkv.dtype)

    def _of_length(self, tokens: int) -> tuple:
        """Both tables; tokens after the patches, which are prompts, stay still."""
        if tokens not in self._tables:
            more = ((0, max(tokens - len(self.cos), 0)), (0, 0))
            cos, sin = np.pad(self.cos, more, constant_values=1.0), np.pad(self.sin, more)
            self._tables[tokens] = tuple(jt.array(t[None, :tokens]).stop_grad() for t in (cos, sin))
        return self._tables[tokens]


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
