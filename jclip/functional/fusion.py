"""Scores of several models or runs for the same photos as one: weights, and what of the scores is weighed. NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from jclip.choices import Mix
from jclip.functional.metrics import TINY, softmax

Inputs = Literal["log_softmax", "softmax", "logits"]
INPUTS: dict[str, Inputs] = {"prob": "softmax", "logit": "logits", "geo": "log_softmax"}
GRID_UP_TO = 3  # members; four in steps of 0.05 would be 1771 tries, ten 10 million
INVERSE_TEMPERATURES = 1e-3, 1e3


def transformed(scores: np.ndarray, inputs: Inputs, temperature: float) -> np.ndarray:
    """(N, C) scores as they are added up, float64."""
    if inputs == "logits":
        return scores.astype(np.float64)
    if inputs == "softmax":
        return softmax(scores)
    z = scores.astype(np.float64) / temperature
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def weighted_sum(
    scores: Iterable[np.ndarray],
    weights: Iterable[float | np.ndarray],
    temperatures: Iterable[float],
    inputs: Inputs,
) -> np.ndarray:
    """Σ_m w_m ℓ_m, (N, C) float64, with ℓ_m = `transformed` scores (N, C) of member m; one member's at a time is needed.

    weights: scalars, or (C,) per class.
    """
    return sum(w * transformed(z, inputs, t) for z, w, t in zip(scores, weights, temperatures, strict=True))


def mixed(scores: Sequence[np.ndarray], weights: np.ndarray, mix: Mix) -> np.ndarray:
    """(N, C) of each member → Σ_m w_m of what `mix` says, (N, C): scores whose softmax is the mixture's probabilities.

    A member that has all the weight is passed on unchanged.
    """
    used = np.flatnonzero(weights)
    if len(used) == 1:
        return scores[used[0]]
    return as_scores(weighted_sum((scores[m] for m in used), weights[used], np.ones(len(used)), INPUTS[mix]), mix)


def as_scores(total: np.ndarray, mix: Mix) -> np.ndarray:
    """Weighed probabilities (N, C) as their logarithms, which rank alike and are what a softmax undoes; others as they are."""
    return np.log(np.maximum(total, TINY)) if mix == "prob" else total


def fitted_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """τ of the smallest mean -log softmax(z / τ)_y, for scores z (N, C) and labels y (N,).

    Within 1e-3 … 1e3. In 1 / τ the mean is convex, so its slope is bisected.
    """
    z = scores.astype(np.float64)
    own = z[np.arange(len(labels)), labels]
    low, high = np.log(INVERSE_TEMPERATURES)
    for _ in range(60):
        middle = (low + high) / 2
        rising = ((softmax(np.exp(middle) * z) * z).sum(axis=1) - own).mean() > 0
        low, high = (low, middle) if rising else (middle, high)
    return float(np.exp(-(low + high) / 2))


def best_weights(
    values: np.ndarray, labels: np.ndarray, step: float, score: Callable[[np.ndarray], np.ndarray] | None = None
) -> np.ndarray:
    """(M, N, C) of validation photos → (M,) on the simplex, of the best accuracy.

    score: what makes class scores (N, C) of weighed values (N, …), where they are of something else, such as prompts.
    """
    count = len(values)

    def right(weights: np.ndarray) -> int:
        total = np.tensordot(weights, values, axes=1)
        return int(((score(total) if score else total).argmax(axis=1) == labels).sum())

    if count <= GRID_UP_TO:
        candidates = sorted(
            simplex(count, round(1 / step)), key=lambda w: round(float(((w - 1 / count) ** 2).sum()), 9)
        )
        return max(candidates, key=right)  # the first, among equals
    best, found = np.full(count, 1 / count), -1
    while (now := right(best)) > found:
        found = now
        for m in range(count):
            best = max([best, *moved(best, m, round(1 / step))], key=right)
    return best


def simplex(count: int, steps: int) -> Iterator[np.ndarray]:
    """All (count,) weights in multiples of 1 / steps that sum to one."""
    for cuts in itertools.combinations(range(steps + count - 1), count - 1):
        edges = (-1, *cuts, steps + count - 1)
        yield (np.diff(edges) - 1) / steps


def moved(weights: np.ndarray, which: int, steps: int) -> Iterator[np.ndarray]:
    """`weights` (M,) with one of them at 0, 1 / steps, … 1 and the others in their proportions, or alike where all are 0."""
    others = np.where(np.arange(len(weights)) == which, 0.0, weights)
    others = others if others.any() else np.where(np.arange(len(weights)) == which, 0.0, 1.0)
    for i in range(steps + 1):
        new = (1 - i / steps) * others / others.sum()
        new[which] = i / steps
        yield new
