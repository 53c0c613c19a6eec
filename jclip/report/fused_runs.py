"""Scores of several finished runs for the same photos as one, each run with features of its own model.

The recipe `ensemble` adds up runs on the same features; here members may have tuned the towers. Weights and temperatures
come from validation photos. Classes that no photo taught are left to one member, the gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jclip.functional.fusion import Inputs, best_weights, fitted_temperature, transformed, weighted_sum

Scores = Mapping[str, np.ndarray]  # of each member (N, C)


@dataclass(frozen=True)
class Fused:
    """The weights that were found, and what each member's scores are divided by."""

    inputs: Inputs
    weights: dict[str, float]
    temperatures: dict[str, float]

    def __call__(self, scores: Scores) -> np.ndarray:
        """(N, C): Σ_m w_m ℓ_m, with ℓ_m as `inputs` says."""
        used = [m for m, w in self.weights.items() if w]
        of_used = ([of[m] for m in used] for of in (scores, self.weights, self.temperatures))
        return weighted_sum(*of_used, self.inputs)


def fuse(
    scores: Scores,
    labels: np.ndarray,
    members: Sequence[str],
    inputs: Inputs = "log_softmax",
    step: float = 0.02,
    shrink: float = 0.0,
    weights: Sequence[float] = (),
) -> Fused:
    """Weights of the best accuracy on validation scores with labels (N,), unless they are given; see `ensemble`."""
    temperatures = {m: fitted_temperature(scores[m], labels) if inputs == "log_softmax" else 1.0 for m in members}
    values = np.stack([transformed(scores[m], inputs, temperatures[m]) for m in members])
    found = np.array(weights, np.float64) if weights else best_weights(values, labels, step)
    found = (1 - shrink) * found / found.sum() + shrink / len(members)
    return Fused(inputs, dict(zip(members, found.tolist(), strict=True)), temperatures)


def gated(fused: np.ndarray, gate: np.ndarray, taught: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """(N, C): a photo's fused scores, or the gate's where that takes it for a class without training photos.

    Rows are taken as a whole, so no class can appear twice among a photo's best.
    """
    return np.where(untaught(gate, taught, margin)[:, None], gate, fused)


def untaught(gate: np.ndarray, taught: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """(N,) bool: photos whose best class, to the gate (N, C), is none of those taught (C,), by more than `margin`."""
    if taught.all():
        return np.zeros(len(gate), bool)
    return gate[:, ~taught].max(axis=1) - gate[:, taught].max(axis=1) > margin
