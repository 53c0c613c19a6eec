"""Precision and recall of a cut, estimated from a random sample of what is above it and of what is below.

What was asked at random in a stratum of N photos, of which K are right, is hypergeometric; intervals of K are exact, by
inverting it (Clopper & Pearson's for samples without replacement). NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, lgamma

LEVEL = 0.95


@dataclass(frozen=True)
class Stratum:
    """Photos of which some were asked for at random.

    above: whether they are above the cut. size: N, how many there are. asked, right: how many of these were sampled and
    answered, and how many answers were yes. known_right, known_wrong: photos beside the N whose answers are known.
    """

    above: bool
    size: int
    asked: int = 0
    right: int = 0
    known_right: int = 0
    known_wrong: int = 0

    @property
    def estimate(self) -> float | None:
        """How many are right, K and the known ones; None where nobody was asked of some."""
        if not self.asked:
            return None if self.size else float(self.known_right)
        return self.known_right + self.size * self.right / self.asked

    def bounds(self, level: float) -> tuple[int, int]:
        """The least and the greatest number of right ones, the known ones among them."""
        low, high = right_bounds(self.size, self.asked, self.right, level)
        return self.known_right + low, self.known_right + high


@dataclass(frozen=True)
class Share:
    """A share with its interval; value is None where the sample says nothing."""

    value: float | None
    low: float
    high: float


def precision(strata: Sequence[Stratum], level: float = LEVEL) -> Share:
    """Of what is above the cut the share that is right; 0 to 1 where there is nothing above."""
    above = [s for s in strata if s.above]
    total = sum(s.size + s.known_right + s.known_wrong for s in above)
    if not total:
        return Share(None, 0.0, 1.0)
    found, bounds = _sum_of(above, 1 - (1 - level) / len(above))
    return Share(None if found is None else found / total, bounds[0] / total, bounds[1] / total)


def recall(strata: Sequence[Stratum], level: float = LEVEL) -> Share:
    """Of what is right the share above the cut. Each stratum's interval is wider by Bonferroni's correction, so that all
    hold together at `level`."""
    each = 1 - (1 - level) / max(1, sum(s.size > 0 for s in strata))
    above, (low, high) = _sum_of([s for s in strata if s.above], each)
    below, (least, most) = _sum_of([s for s in strata if not s.above], each)
    value = None if above is None or below is None or not above + below else above / (above + below)
    return Share(value, low / (low + most) if low + most else 0.0, high / (high + least) if high + least else 1.0)


def _sum_of(strata: Sequence[Stratum], level: float) -> tuple[float | None, tuple[int, int]]:
    estimates, bounds = [s.estimate for s in strata], [s.bounds(level) for s in strata]
    known = None if None in estimates else float(sum(estimates))
    return known, (sum(low for low, _ in bounds), sum(high for _, high in bounds))


def right_bounds(size: int, asked: int, right: int, level: float = LEVEL) -> tuple[int, int]:
    """The least and the greatest K of `size` with which `right` of `asked` is not too many and not too few: each tail has
    more than (1 - level) / 2. Without a question 0 and `size`."""
    if not asked:
        return 0, size
    tail = (1 - level) / 2
    low, high = right, size - (asked - right)  # what the sample alone leaves possible
    least = _first(low, high, lambda total: _at_least(right, size, total, asked) > tail)
    most = _first(-high, -low, lambda total: _at_most(right, size, -total, asked) > tail)
    return least, -most


def _first(low: int, high: int, holds) -> int:
    """The least number of low … high for which a condition holds, which holds for all above it."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _at_least(right: int, size: int, total: int, asked: int) -> float:
    return sum(_probability(k, size, total, asked) for k in range(right, min(asked, total) + 1))


def _at_most(right: int, size: int, total: int, asked: int) -> float:
    return sum(_probability(k, size, total, asked) for k in range(max(0, asked - size + total), right + 1))


def _probability(k: int, size: int, total: int, asked: int) -> float:
    """C(K, k) C(N - K, n - k) / C(N, n)."""
    if k > total or asked - k > size - total:
        return 0.0
    return exp(_chosen(total, k) + _chosen(size - total, asked - k) - _chosen(size, asked))


def _chosen(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
