"""Groups of features that point the same way: spherical k-means from points far apart. NumPy alone, no chance involved."""

from __future__ import annotations

import numpy as np

from jclip.functional.directions import unit


def far_apart(features: np.ndarray, count: int) -> list[int]:
    """Rows (at most `count`) of features (N, E) of length one: first the one nearest to their mean, then each time the row
    whose largest cosine to those before is the smallest; of equal ones the first. Ends where only copies are left."""
    mean = features.mean(axis=0)
    chosen = [int((features @ mean).argmax())]
    nearest = features @ features[chosen[0]]
    while len(chosen) < min(count, len(features)):
        row = int(nearest.argmin())
        if nearest[row] > 1 - 1e-6:
            break
        chosen.append(row)
        nearest = np.maximum(nearest, features @ features[row])
    return chosen


def spherical_means(features: np.ndarray, count: int, steps: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Centres (K, E) of length one and the centre (N,) of each row: k-means by cosines of features (N, E) of length one
    (Dhillon & Modha 2001), which begins with rows far apart. Centres come largest group first; K ≤ `count`."""
    centres, of = features[far_apart(features, count)], np.full(len(features), -1)
    for _ in range(steps):
        found = (features @ centres.T).argmax(axis=1)
        if (found == of).all():
            break
        of = found
        sums = np.zeros_like(centres)
        np.add.at(sums, of, features)
        lengths = np.linalg.norm(sums, axis=1)
        centres = np.where((lengths > 1e-6)[:, None], unit(np.where(lengths[:, None] > 1e-6, sums, 1)), centres)
    counts = np.bincount(of, minlength=len(centres))
    order = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    renamed = np.full(len(centres), -1)
    renamed[order] = np.arange(len(order))
    return centres[order], renamed[of]


def plane_of(features: np.ndarray) -> np.ndarray:
    """(N, 2) places of features (N, E) on the plane of their two directions of largest variance; zeros of fewer than three
    rows. The sign of an axis is such that its largest component is positive."""
    if len(features) < 3:
        return np.zeros((len(features), 2))
    centred = (features - features.mean(axis=0)).astype(np.float64)
    values, directions = np.linalg.eigh(centred.T @ centred)
    axes = directions[:, np.argsort(-values)[:2]]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])] < 0, -1, 1)
    return centred @ axes
