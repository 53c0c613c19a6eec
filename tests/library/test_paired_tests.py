"""McNemar's exact test against hand-worked numbers and sums of whole numbers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from jclip.functional.paired_tests import mcnemar_exact
from tests.tolerances import TOLERANCES


def by_whole_numbers(b: int, c: int) -> float:
    n = b + c
    return float(min(1, Fraction(2 * sum(math.comb(n, i) for i in range(min(b, c) + 1)), 2**n)))


@pytest.mark.parametrize(
    "b, c, p", [(0, 0, 1), (5, 5, 1), (4, 5, 1), (1, 9, 22 / 1024), (9, 3, 598 / 4096), (0, 27, 2**-26), (0, 1, 1)]
)
def test_hand_worked(b, c, p):
    assert mcnemar_exact(b, c) == pytest.approx(p, rel=TOLERANCES["closed_form"])


def test_sums_of_whole_numbers():
    rng = np.random.default_rng(1)
    for b, c in [*rng.integers(0, 60, (40, 2)).tolist(), (400, 610), (0, 900), (1200, 1201)]:
        assert mcnemar_exact(b, c) == pytest.approx(by_whole_numbers(b, c), rel=TOLERANCES["closed_form"])


def test_of_very_many_it_still_answers():
    assert mcnemar_exact(400_000, 600_000) == 0.0
    assert 0.9 < mcnemar_exact(500_000, 500_050) < 1


def test_a_negative_count_is_refused():
    with pytest.raises(ValueError, match="at least 0"):
        mcnemar_exact(-1, 3)
