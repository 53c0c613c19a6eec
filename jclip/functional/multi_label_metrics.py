"""Metrics of photos with several labels each: average precision, precision and recall at thresholds and at k. NumPy.

Labels are (N, C) in three states: 1 present, 0 absent, -1 unknown. Unknown entries count nowhere. All values are
fractions in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from jclip.errors import DataError
from jclip.functional.metrics import harmonic_mean, ranking

AveragePrecision = Literal["rank", "interp", "voc11"]
Ties = Literal["stable", "pessimistic", "expected"]
NoPositive = Literal["skip", "zero"]
PRECISIONS, TIES, NO_POSITIVE = map(get_args, (AveragePrecision, Ties, NoPositive))
FIRST = 3  # places that a message names
ELEVEN = np.arange(0.0, 1.1, 0.1)  # recalls as the published code has them: its .3, .6 and .7 are a rounding above


def check_scores(scores: np.ndarray, rows: Sequence[str] = (), columns: Sequence[str] = (), place: str = "") -> None:
    """Raises `DataError` unless scores (N, C) are a matrix of finite numbers; it names the first three that are not.

    rows, columns: names of photos and classes, for the message.
    """
    start = f"{place}: " if place else ""
    if scores.ndim != 2 or not scores.size:
        raise DataError(f"{start}scores must be photos x classes, at least one of each, got shape {scores.shape}")
    broken = np.argwhere(~np.isfinite(scores))
    if len(broken):
        named = [
            f"{rows[n] if rows else f'row {n}'}, {columns[c] if columns else f'class {c}'}: {scores[n, c]}"
            for n, c in broken[:FIRST]
        ]
        raise DataError(
            f"{start}scores must be finite, got {len(broken)} of {scores.size} that are not "
            f"({'; '.join(named)}{'; …' if len(broken) > FIRST else ''}): compute them again"
        )


def check_targets(targets: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Labels as int8 (N, C). Raises `DataError` for another shape than the scores', and values beyond 1, 0, -1."""
    if targets.shape != shape:
        raise DataError(f"labels must have the scores' shape {shape}, got {targets.shape}")
    if targets.dtype == bool:
        return targets.astype(np.int8)
    odd = ~np.isin(targets, (-1, 0, 1))
    if odd.any():
        raise DataError(f"labels must be 1, 0 or -1 (unknown), got {int(odd.sum())} others, such as {targets[odd][0]}")
    return targets.astype(np.int8)


def average_precision(
    scores: np.ndarray, positive: np.ndarray, kind: AveragePrecision = "rank", ties: Ties = "stable"
) -> float:
    """Average precision of one class: scores (N,), positive (N,) bool, all labels known. NaN without positives.

    rank: (1/P) Σ over positives at rank k of TP(k)/k. interp: the area under the precision envelope (VOC from 2010 on).
    voc11: the mean envelope at recall 0, .1, … 1 (VOC 2007). Equal scores: in order of the input (`stable`), negatives
    first (`pessimistic`), or the mean over all their orders (`expected`, in closed form and for `rank` alone).
    Raises `DataError` for `expected` with another kind.
    """
    if ties == "expected" and kind != "rank":
        raise DataError(
            f"ties: expected is defined for average precision by rank, got {kind}: choose another of {TIES}"
        )
    total = int(positive.sum())
    if not total:
        return float("nan")
    order = np.lexsort((positive, -scores)) if ties == "pessimistic" else np.argsort(-scores, kind="stable")
    hits, ranks = positive[order], np.arange(1, len(scores) + 1)
    if ties == "expected":
        return float(_expected_precisions(scores[order], hits, ranks).sum() / total)
    found = hits.cumsum()
    if kind == "rank":
        return float((found / ranks)[hits].sum() / total)
    envelope = np.maximum.accumulate((found / ranks)[::-1])[::-1]
    if kind == "interp":
        return float(envelope[hits].sum() / total)
    return float(np.mean(envelope[np.searchsorted(found / total, ELEVEN)]))


def _expected_precisions(scores: np.ndarray, hits: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """(N,) of sorted scores: for each rank the expected value of (is positive) · TP/rank over all orders within ties.

    At place j of n equal scores with p positives, after T positives: p/n · (T + 1 + (j-1)(p-1)/(n-1)) / rank.
    """
    starts = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])
    sizes = np.diff(np.r_[starts, len(scores)])
    inside = np.add.reduceat(hits.astype(np.int64), starts)
    before = np.r_[0, inside.cumsum()[:-1]]
    n, p, earlier = (np.repeat(values, sizes) for values in (sizes, inside, before))
    place = ranks - 1 - np.repeat(starts, sizes)
    others = place * (p - 1) / np.maximum(n - 1, 1)
    return p / n * (earlier + 1 + others) / ranks


def average_precision_per_class(
    scores: np.ndarray, targets: np.ndarray, kind: AveragePrecision = "rank", ties: Ties = "stable"
) -> np.ndarray:
    """(C,) average precisions of scores (N, C), NaN for a class without positives; unknown labels are left out."""
    known, positive = targets >= 0, targets == 1
    return np.array(
        [average_precision(scores[k, c], positive[k, c], kind, ties) for c, k in enumerate(known.T)], np.float64
    )


def tie_shares(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(C,) share of a class's known photos whose score another known photo has as well: there ranks are chance."""
    shares = []
    for c, known in enumerate((targets >= 0).T):
        _, counts = np.unique(scores[known, c], return_counts=True)
        shares.append(counts[counts > 1].sum() / max(known.sum(), 1))
    return np.array(shares, np.float64)


def mean_over_classes(precisions: np.ndarray, no_positive: NoPositive = "skip") -> float:
    """mAP of (C,) average precisions. A class without positives (NaN) is left out, or with `zero` counts as 0, as the
    code of TaI-DPT, ASL, DualCoOp and mmpretrain has it. NaN where no class is left."""
    kept = np.nan_to_num(precisions, nan=0.0) if no_positive == "zero" else precisions[~np.isnan(precisions)]
    return float(kept.mean()) if len(kept) else float("nan")


def thirds(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Class ids as `head`, `medium` and `tail` by (C,) counts of positives, the most frequent first; equal counts by id."""
    order = np.argsort(-counts, kind="stable")
    return dict(zip(("head", "medium", "tail"), np.array_split(order, 3), strict=True))


@dataclass(frozen=True)
class RankingReport:
    """How well photos are ranked within each class. precisions (C,): NaN without positives; tie_share (C,)."""

    precisions: np.ndarray
    tie_share: np.ndarray
    positives: np.ndarray  # (C,) photos
    no_positive: tuple[int, ...]  # class ids
    no_negative: tuple[int, ...]
    rule: NoPositive = "skip"

    @property
    def mean(self) -> float:
        """mAP over the classes."""
        return mean_over_classes(self.precisions, self.rule)

    def means(self, groups: Mapping[str, Sequence[int] | np.ndarray]) -> dict[str, float]:
        """mAP of groups of classes (ids by name), such as seen and unseen; NaN for a group without a class with positives."""
        return {
            name: mean_over_classes(self.precisions[np.asarray(ids, np.int64)], self.rule)
            for name, ids in groups.items()
        }


def ranking_report(
    scores: np.ndarray,
    targets: np.ndarray,
    kind: AveragePrecision = "rank",
    ties: Ties = "stable",
    no_positive: NoPositive = "skip",
) -> RankingReport:
    """Average precisions of scores (N, C) against labels (N, C) in {1, 0, -1}.

    Raises `DataError` for scores that are not finite, other shapes, and where no class has a positive.
    """
    check_scores(scores)
    targets, scores = check_targets(targets, scores.shape), scores.astype(np.float64)
    positives, negatives = (targets == 1).sum(axis=0), (targets == 0).sum(axis=0)
    if not positives.any():
        raise DataError("average precision needs a photo that has a class, got labels without any: check the labels")
    return RankingReport(
        average_precision_per_class(scores, targets, kind, ties),
        tie_shares(scores, targets),
        positives,
        tuple(np.flatnonzero(positives == 0).tolist()),
        tuple(np.flatnonzero((positives > 0) & (negatives == 0)).tolist()),
        no_positive,
    )


@dataclass(frozen=True)
class DecisionReport:
    """How right predicted labels are, of (C,) counts of true positives, false positives and false negatives.

    CP, CR: means of the classes' precisions and recalls, CF1 = 2 CP CR / (CP + CR); CF1_classwise: mean of the classes'
    F1, which DualCoOp, ASL and mmpretrain call CF1; OP, OR, OF1: of all decisions together. A class without positives
    has no recall: it is left out of CR and CF1_classwise, or with `zero` counts as 0.
    """

    true_positives: np.ndarray
    false_positives: np.ndarray
    false_negatives: np.ndarray
    rule: NoPositive = "skip"

    @property
    def precisions(self) -> np.ndarray:
        """(C,), 0 for a class that is predicted nowhere."""
        return self.true_positives / np.maximum(self.true_positives + self.false_positives, 1)

    @property
    def recalls(self) -> np.ndarray:
        """(C,), NaN for a class without positives."""
        return _over_positives(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> np.ndarray:
        """(C,) 2 TP / (2 TP + FP + FN), NaN for a class without positives."""
        positives = self.true_positives + self.false_negatives
        both = 2 * self.true_positives + self.false_positives + self.false_negatives
        return np.where(positives > 0, 2 * self.true_positives / np.maximum(both, 1), np.nan)

    def values(self) -> dict[str, float]:
        """CP, CR, CF1, CF1_classwise, OP, OR, OF1."""
        tp, fp, fn = (int(x.sum()) for x in (self.true_positives, self.false_positives, self.false_negatives))
        cp = float(self.precisions.mean())
        cr, classwise = (mean_over_classes(x, self.rule) for x in (self.recalls, self.f1))
        op, oe = tp / max(tp + fp, 1), tp / max(tp + fn, 1)
        return {
            "CP": cp,
            "CR": cr,
            "CF1": harmonic_mean(cp, cr),
            "CF1_classwise": classwise,
            "OP": op,
            "OR": oe,
            "OF1": harmonic_mean(op, oe),
        }


def _over_positives(part: np.ndarray, positives: np.ndarray) -> np.ndarray:
    return np.where(positives > 0, part / np.maximum(positives, 1), np.nan)


def decision_report(
    predicted: np.ndarray, targets: np.ndarray, no_positive: NoPositive = "skip", skip_empty: bool = False
) -> DecisionReport:
    """Counts of predictions (N, C) bool against labels (N, C) in {1, 0, -1}; what is unknown counts nowhere.

    Photos without any positive stay in, and can only add false positives; `skip_empty` leaves them out. Raises
    `DataError` for another shape, and where no photo has a class.
    """
    targets = check_targets(targets, predicted.shape)
    present, absent = targets == 1, targets == 0
    if not present.any():
        raise DataError("precision and recall need a photo that has a class, got labels without any: check the labels")
    if skip_empty:
        kept = present.any(axis=1)
        predicted, present, absent = predicted[kept], present[kept], absent[kept]
    return DecisionReport(
        (predicted & present).sum(axis=0),
        (predicted & absent).sum(axis=0),
        (~predicted & present).sum(axis=0),
        no_positive,
    )


def above(scores: np.ndarray, thresholds: float | np.ndarray) -> np.ndarray:
    """(N, C) whether a score reaches its threshold, one for all or (C,)."""
    return scores >= thresholds


def best_k(scores: np.ndarray, k: int, threshold: float | np.ndarray | None = None) -> np.ndarray:
    """(N, C) bool: exactly the min(k, C) best classes of each photo, of equal scores those of lower id.

    threshold: additionally drops those below it (`top3_thr` of HCP-MLR-PL).
    """
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, ranking(scores, k), True, axis=1)
    return chosen if threshold is None else chosen & above(scores, threshold)
