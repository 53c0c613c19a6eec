"""From scores to decisions and probabilities: thresholds by four rules, and Platt's sigmoid for each class. NumPy.

Everything is fitted on labelled scores of a list that is not the one to be measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from jclip.errors import DataError
from jclip.functional.multi_label_metrics import check_scores, check_targets

Rule = Literal["fixed", "global_f1", "class_f1", "prevalence"]
RULES = get_args(Rule)
_STEPS, _ENOUGH = 100, 1e-10  # of Newton's method, and of the gradient


def best_f1_threshold(
    scores: np.ndarray, positive: np.ndarray, quantiles: int | None = None, lowest: float = 0.5
) -> tuple[float, float]:
    """The threshold of the best F1 and that F1, of scores (n,) and positive (n,) bool, `score >= threshold` predicted.

    All distinct scores are tried, or as published searches do it `quantiles` of them, evenly from `lowest` to .99.
    Among equals the highest. Raises `DataError` where nothing is positive.
    """
    total = int(positive.sum())
    if not total:
        raise DataError("a threshold of the best F1 needs labels with a positive, got none")
    order = np.argsort(-scores, kind="stable")
    falling, found = scores[order].astype(np.float64), positive[order].cumsum()
    if quantiles is None:
        last = np.flatnonzero(np.r_[falling[1:] != falling[:-1], True])  # a tie is in or out as a whole
        candidates, counts = falling[last], last + 1
    else:
        candidates = np.quantile(falling, np.linspace(lowest, 0.99, quantiles))[::-1]
        counts = np.searchsorted(-falling, -candidates, side="right")
    hits = np.where(counts > 0, found[np.maximum(counts, 1) - 1], 0)
    f1 = 2 * hits / (counts + total)
    best = int(f1.argmax())
    return float(candidates[best]), float(f1[best])


def prevalence_thresholds(scores: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(C,) thresholds at which the share of photos (N, C) that are predicted is `shares` (C,), to the nearest photo.

    The photos need no labels. A share that rounds to no photo puts the threshold just above the highest score.
    """
    counts = np.rint(np.asarray(shares) * len(scores)).astype(np.int64)
    falling = -np.sort(-scores.astype(np.float64), axis=0)
    at = np.take_along_axis(falling, np.maximum(counts - 1, 0)[None, :], axis=0)[0]
    return np.where(counts > 0, at, np.nextafter(falling[0], np.inf))


def platt(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Platt's sigmoid of one class, (a, b) of P = 1 / (1 + exp(-(a s + b))), of scores (n,) and positive (n,) bool.

    Maximum likelihood with Platt's smoothed targets (P+1)/(P+2) and 1/(N+2), by Newton's method with halved steps (Lin,
    Lin and Weng 2007). Raises `DataError` where all labels are alike.
    """
    count, total = len(scores), int(positive.sum())
    if not 0 < total < count:
        raise DataError(f"Platt's sigmoid needs labels of both kinds, got {total} positives among {count}")
    goal = np.where(positive, (total + 1) / (total + 2), 1 / (count - total + 2))
    centre, spread = float(scores.mean(dtype=np.float64)), float(scores.std(dtype=np.float64))
    x = np.stack([(scores - centre) / (spread or 1.0), np.ones(count)], axis=1)
    w = np.array([0.0, np.log((total + 1) / (count - total + 1))])
    loss = _cross_entropy(x @ w, goal)
    for _ in range(_STEPS):
        p = sigmoid(x @ w)
        gradient = x.T @ (p - goal)
        if np.abs(gradient).max() < _ENOUGH * count:
            break
        curvature = (x * (p * (1 - p))[:, None]).T @ x + 1e-12 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while (now := _cross_entropy(x @ (w - step), goal)) > loss and np.abs(step).max() > 1e-14:
            step = step / 2
        w, loss = w - step, min(now, loss)
    slope = float(w[0]) / spread if spread else 0.0
    return slope, float(w[1]) - slope * centre


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) of an array of any shape, without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def _cross_entropy(logits: np.ndarray, goal: np.ndarray) -> float:
    return float((np.logaddexp(0, logits) - goal * logits).sum())


@dataclass(frozen=True)
class Calibration:
    """Thresholds (C,) by a rule, and Platt's a and b (C,), NaN for classes that had not both kinds of labels.

    photos_of, sha256, photos: the list that it was fitted on, and the hash of its photos and labels. made_of: a key of what
    made the scores, where that is known.
    """

    classnames: tuple[str, ...]
    rule: Rule
    thresholds: np.ndarray
    a: np.ndarray
    b: np.ndarray
    photos_of: str
    sha256: str
    photos: int
    made_of: str = ""

    def predicted(self, scores: np.ndarray) -> np.ndarray:
        """(N, C) bool of scores (N, C)."""
        return scores >= self.thresholds

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """(N, C) of scores (N, C); NaN for classes without a sigmoid."""
        return sigmoid(self.a * scores.astype(np.float64) + self.b)


def fitted_thresholds(
    scores: np.ndarray, targets: np.ndarray, rule: Rule, fixed: float = 0.5, quantiles: int | None = None
) -> np.ndarray:
    """(C,) thresholds of scores (N, C) and labels (N, C) in {1, 0, -1}; unknown labels count nowhere.

    fixed: the number given. global_f1: one for all classes, of the best overall F1. class_f1: each class's best F1; a
    class without positives takes the global one. prevalence: as many photos predicted as have the class.
    """
    check_scores(scores)
    targets = check_targets(targets, scores.shape)
    known, positive = targets >= 0, targets == 1
    if rule == "fixed":
        return np.full(scores.shape[1], float(fixed))
    if rule == "prevalence":
        return np.array([_by_prevalence(scores[k, c], positive[k, c]) for c, k in enumerate(known.T)])
    overall, _ = best_f1_threshold(scores[known], positive[known], quantiles)
    if rule == "global_f1":
        return np.full(scores.shape[1], overall)
    return np.array([
        best_f1_threshold(scores[k, c], positive[k, c], quantiles)[0] if positive[:, c].any() else overall
        for c, k in enumerate(known.T)
    ])  # fmt: skip


def _by_prevalence(scores: np.ndarray, positive: np.ndarray) -> float:
    if not len(scores):
        raise DataError("a threshold by prevalence needs labels that are known, got a class with none")
    return float(prevalence_thresholds(scores[:, None], np.array([positive.mean()]))[0])


def fitted_sigmoids(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Platt's a and b, (C,) each, of scores (N, C) and labels (N, C) in {1, 0, -1}; NaN for a class whose known labels are
    alike: nothing says how its scores and probabilities belong together."""
    check_scores(scores)
    targets = check_targets(targets, scores.shape)
    both = (targets == 1).any(axis=0) & (targets == 0).any(axis=0)
    pairs = [
        platt(scores[targets[:, c] >= 0, c], targets[targets[:, c] >= 0, c] == 1) if both[c] else (np.nan, np.nan)
        for c in range(scores.shape[1])
    ]
    a, b = np.array(pairs, np.float64).T
    return a, b
