"""How often a phrase's box is found: Acc@t, IoUs, intervals, and the same by groups of phrases. NumPy.

A box is found where its overlap with the true box is at least t, inclusive. Papers differ in what is compared
(`criterion`: IoU; MDETR's evaluator GIoU, which is stricter) and where (the padded square or the picture's pixels: the
boxes that are handed in).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from jclip.errors import DataError
from jclip.functional import boxes

THRESHOLDS = (0.25, 0.5, 0.75, 0.9)
AREAS = {"small": (0.0, 0.05), "medium": (0.05, 0.25), "large": (0.25, np.inf)}  # of the box, shares of the picture
LENGTHS = {"1-3 words": (0, 3), "4-6 words": (4, 6), "7 words or more": (7, np.inf)}
DIRECTIONS = frozenset(
    [
        "left",
        "right",
        "top",
        "bottom",
        "middle",
        "center",
        "centre",
        "upper",
        "lower",
        "above",
        "below",
        "behind",
        "front",
        "between",
        "under",
        "over",
        "next",
        "beside",
    ]
)


def box_report(
    predicted: np.ndarray,
    wanted: np.ndarray,
    criterion: Literal["iou", "giou"] = "iou",
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[str, float]:
    """Corners (N, 4), (N, 4), paired → acc@t for each t, mean_iou, cumulative_iou = Σ intersections / Σ unions.

    Raises `DataError` for none, for differing numbers, and for boxes that are not numbers.
    """
    predicted, wanted = _checked(predicted, wanted)
    measured = boxes.iou(predicted, wanted)
    compared = boxes.giou(predicted, wanted) if criterion == "giou" else measured
    shared, union = boxes.overlaps(predicted, wanted)
    found = {f"acc@{t:g}": float((compared >= t).mean()) for t in thresholds}
    cumulative = float(shared.sum() / union.sum()) if union.sum() > 0 else 0.0
    return {**found, "mean_iou": float(measured.mean()), "cumulative_iou": cumulative}


def group_report(
    predicted: np.ndarray,
    wanted: np.ndarray,
    groups: Mapping[str, np.ndarray],
    criterion: Literal["iou", "giou"] = "iou",
    threshold: float = 0.5,
) -> dict[str, dict[str, float]]:
    """For each named group, a mask (N,), that has members: count, acc, and the 95 % interval acc_low, acc_high."""
    predicted, wanted = _checked(predicted, wanted)
    found = (boxes.giou if criterion == "giou" else boxes.iou)(predicted, wanted) >= threshold
    rows = {}
    for name, members in groups.items():
        count, hits = int(members.sum()), int(found[members].sum())
        if count:
            low, high = wilson_interval(hits, count)
            rows[name] = {"count": count, "acc": hits / count, "acc_low": low, "acc_high": high}
    return rows


def phrase_groups(phrases: Sequence[str], wanted: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Masks (N,) by the phrase's length in words, direction words in it, and the box's share of its picture.

    wanted: corners (N, 4) in pixels; sizes: (N, 2) width and height of each picture.
    """
    words = [phrase.lower().replace(",", " ").split() for phrase in phrases]
    count = np.array([len(w) for w in words])
    directed = np.array([not DIRECTIONS.isdisjoint(w) for w in words], bool)
    share = boxes.areas(np.asarray(wanted, float)) / np.asarray(sizes, float).prod(axis=1)
    return {
        **{name: (count >= low) & (count <= high) for name, (low, high) in LENGTHS.items()},
        "with a direction word": directed,
        "without": ~directed,
        **{f"{name} box": (share >= low) & (share < high) for name, (low, high) in AREAS.items()},
    }


def wilson_interval(hits: int, count: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The 95 % interval of a share: (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n) (Wilson, 1927).

    Raises `DataError` for a `count` of none.
    """
    if count <= 0:
        raise DataError(f"an interval needs at least one sample, got {count}")
    p, square = hits / count, z * z / count
    middle, spread = p + square / 2, z * np.sqrt(p * (1 - p) / count + square / (4 * count))
    return float((middle - spread) / (1 + square)), float((middle + spread) / (1 + square))


def reliability_histogram(values: np.ndarray, bins: int = 1000) -> tuple[np.ndarray, int]:
    """IoUs (N,) in [0, 1] → counts (bins,) int64 of equal bins on (0, 1], and the number of zeros, counted apart.

    A value r is in bin ceil(bins r) - 1, so 0.5 is in bin 499 of 1,000 and 1 in the last. Raises `DataError` for values
    outside [0, 1].
    """
    values = np.asarray(values, float)
    if not ((values >= 0) & (values <= 1)).all():
        wrong = int(np.argmin((values >= 0) & (values <= 1)))
        raise DataError(f"reliabilities must be numbers in [0, 1], got {values[wrong]} in row {wrong}")
    found = np.ceil(bins * values[values > 0]).astype(int) - 1
    return np.bincount(found, minlength=bins), int((values == 0).sum())


def auroc(of_true: np.ndarray, of_false: np.ndarray) -> float:
    """How often one of `of_true` (N,) is greater than one of `of_false` (M,), equal ones counted half."""
    below = np.searchsorted(np.sort(of_false), of_true, side="left")
    upto = np.searchsorted(np.sort(of_false), of_true, side="right")
    return float((below + upto).mean() / 2 / len(of_false))


def _checked(predicted: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted, wanted = np.asarray(predicted, float), np.asarray(wanted, float)
    if predicted.shape != wanted.shape or predicted.ndim != 2 or predicted.shape[1:] != (4,) or not len(wanted):
        raise DataError(f"boxes must be (N, 4), one prediction a sample, got {predicted.shape} for {wanted.shape}")
    for name, given in (("predicted", predicted), ("true", wanted)):
        if not np.isfinite(given).all():
            row = int(np.argmin(np.isfinite(given).all(axis=1)))
            raise DataError(f"{name} boxes must be finite numbers, got {given[row].tolist()} in row {row}")
    return predicted, wanted
