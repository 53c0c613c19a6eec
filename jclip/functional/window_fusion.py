"""Scores of a photo's windows as one score per class: the published weighted extremes, and plain means. NumPy.

Windows come in batches, of several photos mixed; kept is what the result needs and nothing else, for the published forms
the highest and lowest weighted score of each photo and class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jclip.choices import FUSION_FORMS, FusionForm
from jclip.errors import ConfigError, DataError, notice

FORMS = FUSION_FORMS
EXTREMES = ("plain", "sim_var", "var_sim_var")  # the maximum where it exceeds theta, else the minimum
WITH_CAPTIONS = ("sim_var", "var_sim_var")


@dataclass(frozen=True)
class FusionRule:
    """How windows become one score, and how that joins the whole photo's: branch = whole + kappa · windows.

    theta: of a class whose highest weighted score exceeds it the highest is taken, else the lowest. k: of `topk_mean`.
    """

    form: FusionForm = "sim_var"
    theta: float = 0.2
    kappa: float = 1.5
    k: int = 3

    def __post_init__(self):
        if self.form not in FORMS:
            raise ConfigError(f"the fusion of windows must be one of {', '.join(FORMS)}, got {self.form!r}")
        if self.k < 1:
            raise ConfigError(f"topk_mean must take at least one window, got k {self.k}")


def variance_over_classes(scores: np.ndarray) -> np.ndarray:
    """(V, 1) unbiased variance (C - 1) of each window's scores (V, C); 0 for a single class."""
    classes = scores.shape[1]
    centred = scores - scores.mean(axis=1, keepdims=True)
    return (centred**2).sum(axis=1, keepdims=True) / max(classes - 1, 1)


def weighted_windows(scores: np.ndarray, captions: np.ndarray | None, form: FusionForm) -> np.ndarray:
    """Scores (V, C) of windows, each window weighted by itself; float64.

    captions (V,): a window's mean cosine with its nearest captions, None for 0. sim_var: D = (1 + a) S, then
    (1 + Var D) D. var_sim_var: (1 + Var S) (1 + Var D) D with that D. The other forms weigh nothing.
    """
    scores = scores.astype(np.float64)
    if form not in WITH_CAPTIONS:
        return scores
    near = scores if captions is None else (1 + captions.astype(np.float64)[:, None]) * scores
    weighted = (1 + variance_over_classes(near)) * near
    return weighted if form == "sim_var" else (1 + variance_over_classes(scores)) * weighted


class WindowFusion:
    """Fuses the windows of `photos` photos as they come. Memory: photos x classes numbers, of `topk_mean` k times that."""

    def __init__(self, photos: int, classes: int, rule: FusionRule | None = None):
        self.rule = rule or FusionRule()
        self.counts = np.zeros(photos, np.int64)
        shape = (photos, classes)
        self._high, self._low = np.full(shape, -np.inf), np.full(shape, np.inf)
        self._sum = np.zeros(shape)  # of the scores, of `logsumexp` of exp(score - highest)
        self._best = np.full((photos, self.rule.k, classes), -np.inf) if self.rule.form == "topk_mean" else None

    def update(self, photo: np.ndarray, scores: np.ndarray, captions: np.ndarray | None = None) -> None:
        """Adds windows: the photo (V,) that each is of, scores (V, C), mean caption cosines (V,) or None without captions.

        Raises `DataError` for scores that are not finite.
        """
        if not len(scores):
            return
        if not np.isfinite(scores).all():
            raise DataError(f"scores of windows must be finite, got {int((~np.isfinite(scores)).sum())} that are not")
        if captions is None and self.rule.form in WITH_CAPTIONS:
            _report_no_captions(self.rule.form)
        weighted = weighted_windows(scores, captions, self.rule.form)
        order = np.argsort(photo, kind="stable")
        photo, weighted = np.asarray(photo)[order], weighted[order]
        starts = np.flatnonzero(np.r_[True, photo[1:] != photo[:-1]])
        which = photo[starts]
        self._add(which, starts, weighted)
        self.counts[which] += np.diff(np.r_[starts, len(photo)])

    def _add(self, which: np.ndarray, starts: np.ndarray, weighted: np.ndarray) -> None:
        """Windows sorted by photo; `which` photos begin at `starts`."""
        high = np.maximum(self._high[which], np.maximum.reduceat(weighted, starts))
        if self.rule.form == "mean":
            self._sum[which] += np.add.reduceat(weighted, starts)
        elif self.rule.form == "logsumexp":
            lengths = np.diff(np.r_[starts, len(weighted)])
            new = np.add.reduceat(np.exp(weighted - np.repeat(high, lengths, axis=0)), starts)
            self._sum[which] = self._sum[which] * np.exp(self._high[which] - high) + new
        elif self._best is not None:
            for place, part in zip(which, np.split(weighted, starts[1:]), strict=True):
                self._best[place] = -np.sort(-np.concatenate([self._best[place], part]), axis=0)[: self.rule.k]
        self._high[which] = high
        self._low[which] = np.minimum(self._low[which], np.minimum.reduceat(weighted, starts))

    def values(self) -> np.ndarray:
        """(photos, C) fused scores so far; NaN for a photo without windows, see `branch_scores`."""
        form, count = self.rule.form, np.maximum(self.counts, 1)[:, None]
        if form == "mean":
            fused = self._sum / count
        elif form == "max":
            fused = self._high
        elif form == "logsumexp":
            with np.errstate(divide="ignore"):
                fused = self._high + np.log(self._sum) - np.log(count)
        elif self._best is not None:
            kept = np.isfinite(self._best)
            fused = np.where(kept, self._best, 0).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
        else:
            fused = np.where(self._high > self.rule.theta, self._high, self._low)
        return np.where((self.counts > 0)[:, None], fused, np.nan)


_reported: set[str] = set()


def _report_no_captions(form: str) -> None:
    if form not in _reported:
        _reported.add(form)
        notice(f"windows are fused by {form} without captions: the cosine with the nearest captions counts as 0")


def fused_windows(scores: np.ndarray, captions: np.ndarray | None = None, rule: FusionRule | None = None) -> np.ndarray:
    """(C,) of all windows (V, C) of one photo at once; what `WindowFusion` gives of them in parts."""
    fusion = WindowFusion(1, scores.shape[1], rule)
    fusion.update(np.zeros(len(scores), np.int64), scores, captions)
    return fusion.values()[0]


def branch_scores(whole: np.ndarray, windows: np.ndarray, kappa: float = 1.5) -> np.ndarray:
    """whole + kappa · windows, (N, C) each; where a photo has no windows (NaN) its whole-photo score stands for both."""
    return whole + kappa * np.where(np.isnan(windows), whole, windows)


def model_scores(global_branch: np.ndarray, local_branch: np.ndarray, local_weight: float = 1.0) -> np.ndarray:
    """global + local_weight · local, (N, C) each; 1.5 in the published best model."""
    return global_branch + local_weight * local_branch


def merged_scores(global_scores: np.ndarray, local_scores: np.ndarray, r: float = 0.5) -> np.ndarray:
    """r · global + (1 - r) · local, (N, C) each (TaI-DPT)."""
    return r * global_scores + (1 - r) * local_scores
