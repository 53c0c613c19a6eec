"""Weights between two: the linear way from a model to what training made of it.

Wortsman et al., CVPR 2022, arXiv 2109.01903 (WiSE-FT).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jclip.errors import MisfitError
from jclip.weights import checkpoint


def grid(steps: int) -> list[float]:
    """0, 1 / steps, … 1."""
    return [i / steps for i in range(steps + 1)]


def interpolate(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], alpha: float
) -> dict[str, np.ndarray]:
    """(1 - α) before + α after of every array, in float32 at least; α = 0 and 1 give the ends themselves.

    Good for heads and for whole checkpoints, running statistics included. Raises `MisfitError` when names or shapes
    differ, and for integers that do: between two of them there is nothing to take.
    """
    checkpoint.compare_keys(*({k: v.shape for k, v in end.items()} for end in (before, after)), "the other end of α")
    return {k: between(k, before[k], after[k], alpha) for k in before}


def between(name: str, before: np.ndarray, after: np.ndarray, alpha: float) -> np.ndarray:
    """`interpolate` of one array, which is called `name`."""
    if "f" not in (before.dtype.kind, after.dtype.kind):
        if not np.array_equal(before, after):
            raise MisfitError(
                f"{name} must be equal at both ends, since integers can't be interpolated, got different ones"
            )
        return before.copy()
    kind = np.result_type(before.dtype, after.dtype, np.float32)
    before, after = before.astype(kind), after.astype(kind)
    if alpha in (0, 1):
        return after if alpha else before
    return (kind.type(1 - alpha) * before + kind.type(alpha) * after).astype(kind)
