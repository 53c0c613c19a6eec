"""Text features of several sets of prompts as one matrix, so that features of photos are multiplied once with all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jclip.postponed import jt


class BranchScores(NamedTuple):
    """What a model scores of the same n maps. branches: scores (n, C), in the order of its `branches`; near: mean cosines
    (n,) with the nearest sentences of its caption bank, None without one."""

    branches: list[np.ndarray]
    near: np.ndarray | None = None


class StackedText:
    """Sets of rows (C_i, E) below each other; on the device from its first use on."""

    def __init__(self, sets: Sequence[np.ndarray]):
        self._sets = [*sets]
        ends = np.cumsum([len(rows) for rows in sets]).tolist()
        self.spans = [*zip([0, *ends], ends, strict=False)]
        self._rows: Any = None

    def __len__(self) -> int:
        return self.spans[-1][1] if self.spans else 0

    @property
    def rows(self):
        """(Σ C_i, E)."""
        if self._rows is None:
            self._rows = jt.array(np.concatenate(self._sets).astype(np.float32)).stop_grad()
        return self._rows

    def cut(self, found) -> list:
        """(…, Σ C_i) → the columns of each set, in order; of Jittor or NumPy."""
        return [found[..., start:end] for start, end in self.spans]
