"""Scores of classes from those of their prompts. NumPy in, NumPy out.

For photo x and the k-th of T_c prompts of class c, both of length one, z_ck = s x · e_ck, and J = Σ T_c:

    embed           s x · norm(mean_k e_ck)            Radford et al., 2021, as open_clip and CLIP_benchmark
    embed-raw       mean_k z_ck                        the same without the last norm
    max             max_k z_ck
    prob-prompts    mean_k P_ck,  P = softmax over all J prompts; the entry that won the third Ajou challenge
    prob-templates  mean_k softmax_c(z_.k)             every class has the same T

The first three are logits of classes. The others are shares of probability: those of `prob-prompts` sum to 1 / T where
all classes have T prompts. Here they are normalised to 1, which changes no order of classes, and returned as logarithms,
which a softmax undoes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from jclip.choices import Mode
from jclip.functional.directions import unit
from jclip.functional.metrics import TINY

AT_ONCE = 1 << 24  # scores of prompts in memory at a time


def class_scores(
    features: np.ndarray,
    prompts: np.ndarray,
    counts: Sequence[int],
    scale: float,
    mode: Mode = "embed",
    drop_below: float = 0.0,
) -> np.ndarray:
    """(N, E) photos, (J, E) prompts by class, (C,) prompts of each class → (N, C) logits, or logarithms of shares.

    drop_below: of `prob-prompts`; probabilities of prompts up to it count as none. Raises `ValueError` where
    `prob-templates` meets classes with different numbers of prompts.
    """
    counts = np.asarray(counts)
    if mode == "embed":
        return np.float32(scale) * (features @ class_directions(prompts, counts).T)
    parts = (
        _of_rows(np.float32(scale) * (features[rows] @ prompts.T), counts, mode, drop_below)
        for rows in _slices(len(features), len(prompts))
    )
    return np.concatenate([*parts, np.zeros((0, len(counts)), np.float32)])


def class_directions(prompts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """norm(mean_k e_ck): (J, E) rows of length one → (C, E) rows of length one."""
    if (np.asarray(counts) == 1).all():
        return prompts
    return unit(segment_means(prompts, counts, axis=0))


def prompt_probabilities(features: np.ndarray, prompts: np.ndarray, scale: float) -> np.ndarray:
    """P (N, J) float32: softmax over all prompts of s x · e_j."""
    parts = (
        softmax32(np.float32(scale) * (features[rows] @ prompts.T)) for rows in _slices(len(features), len(prompts))
    )
    return np.concatenate([*parts, np.zeros((0, len(prompts)), np.float32)])


def shares(probabilities: np.ndarray, counts: np.ndarray, drop_below: float = 0.0) -> np.ndarray:
    """log of mean_k P_ck over its sum, from P (N, J): those of at most `drop_below` count as none.

    A photo of which none is left has the same share of every class.
    """
    if drop_below:
        probabilities = np.where(probabilities > drop_below, probabilities, np.float32(0))
    means = segment_means(probabilities, counts, axis=1).astype(np.float64)
    total = means.sum(axis=1, keepdims=True)
    even = np.full_like(means, 1 / means.shape[1])
    return np.log(np.maximum(np.divide(means, total, out=even, where=total > 0), TINY))


def segment_means(values: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
    """Means over runs of `counts` (C,) entries along `axis`."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums = np.add.reduceat(values, starts, axis=axis)
    return sums / np.asarray(counts, values.dtype).reshape(-1, *([1] * (values.ndim - 1 - axis)))


def deciding_prompts(
    features: np.ndarray, prompts: np.ndarray, counts: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The prompt most similar to each photo among those of the class it was given: (N,) row of `prompts`, (N,) cosine."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    which, cosines = np.zeros(len(features), np.int64), np.zeros(len(features), np.float32)
    for c in np.unique(classes):  # each class once: no photo meets prompts of other classes
        rows = np.flatnonzero(classes == c)
        own = features[rows] @ prompts[starts[c] : starts[c] + counts[c]].T
        best = own.argmax(axis=1)
        which[rows], cosines[rows] = starts[c] + best, own[np.arange(len(rows)), best]
    return which, cosines


def softmax32(scores: np.ndarray) -> np.ndarray:
    """exp(s) / Σ exp(s) over the last axis of scores (…, P) float32, written in their place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def _of_rows(z: np.ndarray, counts: np.ndarray, mode: Mode, drop_below: float) -> np.ndarray:
    if mode == "prob-prompts":
        return shares(softmax32(z), counts, drop_below)
    if mode == "prob-templates":
        return _over_templates(z, counts)
    if mode == "max":
        return np.maximum.reduceat(z, np.concatenate([[0], np.cumsum(counts)[:-1]]), axis=1)
    return segment_means(z, counts, axis=1)


def _over_templates(z: np.ndarray, counts: np.ndarray) -> np.ndarray:
    if len({*counts.tolist()}) > 1:
        raise ValueError(f"classes have {counts.min()} to {counts.max()} prompts, and here need the same number")
    by_template = z.reshape(len(z), len(counts), -1).swapaxes(1, 2)  # (N, T, C)
    probabilities = softmax32(np.ascontiguousarray(by_template)).mean(axis=1, dtype=np.float64)
    return np.log(np.maximum(probabilities, TINY))


def _slices(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, AT_ONCE // max(1, columns))
    return (slice(start, start + step) for start in range(0, rows, step))
