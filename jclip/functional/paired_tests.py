"""Tests on pairs of answers to the same questions: whether two models differ by more than chance. NumPy alone."""

from __future__ import annotations

import math

import numpy as np


def mcnemar_exact(one_alone: int, other_alone: int) -> float:
    """McNemar's exact two-sided p-value: min(1, 2 Σ_{i ≤ min(b, c)} C(b + c, i) / 2^(b + c)).

    one_alone, other_alone: b and c, questions that only the one and only the other answers rightly. Under the hypothesis
    that both are equally good each of these falls to either with probability ½. 1 where there are none. Raises
    `ValueError` for a negative count.
    """
    if min(one_alone, other_alone) < 0:
        raise ValueError(f"counts must be at least 0, got {one_alone} and {other_alone}")
    total, least = one_alone + other_alone, min(one_alone, other_alone)
    if 2 * least >= total - 1:  # equal, or one apart: every outcome is at least as far from the middle
        return 1.0
    steps = np.arange(1, least + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log((total - steps + 1) / steps))])  # log C(n, i)
    top = float(logs.max())
    return min(1.0, math.exp(math.log(2) + top + math.log(float(np.exp(logs - top).sum())) - total * math.log(2)))
