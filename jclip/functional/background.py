"""Where a query's own background ends: its scores against a sample of the gallery, most of which it does not mean."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

SAMPLE = 2000  # rows
FEWEST = 20  # rows that have a background
_MAD = 1.4826  # times the median distance from the median is the standard deviation of a normal distribution


@dataclass(frozen=True)
class Background:
    """Middle and deviation of a query's scores over a sample, and the line, in deviations above the middle.

    Median and median distance, so that what is looked for does not move them.
    """

    middle: float
    deviation: float
    line: float

    def z(self, scores: np.ndarray) -> np.ndarray:
        """Scores (N,) as deviations above the middle; zeros without a background."""
        return (scores - self.middle) / self.deviation if self.deviation > 0 else np.zeros_like(scores)

    def above(self, scores: np.ndarray) -> np.ndarray:
        """Which of the scores (N,) stand out, (N,) bool; all of them without a background."""
        return self.z(scores) >= self.line if self.deviation > 0 else np.ones(len(scores), bool)


def sample_rows(total: int) -> np.ndarray:
    """At most `SAMPLE` rows, evenly spaced."""
    return np.unique(np.linspace(0, total - 1, min(SAMPLE, total)).round().astype(np.int64))


def background(scores: np.ndarray, total: int, line: float | None = None) -> Background:
    """The background of a query with these sample scores (n,) in a gallery of `total` rows.

    line: by default where a normal distribution leaves one row of `total` above. Scores that are no numbers do not count.
    """
    if line is None:
        line = NormalDist().inv_cdf(1 - 1 / max(total, 2))
    scores = scores[np.isfinite(scores)]
    if len(scores) < FEWEST:
        return Background(0.0, 0.0, line)
    middle = float(np.median(scores))
    return Background(middle, _MAD * float(np.median(np.abs(scores - middle))), line)
