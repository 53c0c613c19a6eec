"""One vector per class on frozen features: the scores of such heads, and what of them is worked out beforehand.

Scores are Jittor in, Jittor out; the rest is NumPy in float64.
"""

from __future__ import annotations

import numpy as np

from jclip.functional.similarity import unit_rows
from jclip.kernels import linear
from jclip.runtime import jt


def linear_scores(features, weight, bias):
    """f · w_k + b_k: (N, E), (C, E), (C,) → (N, C)."""
    return linear(features, weight, bias)


def cosine_scores(features, prototypes, scale: float):
    """scale · f · c_k / ‖c_k‖ of normalised features: (N, E), (C, E) of any length → (N, C)."""
    return scale * jt.nn.matmul_transpose(features, unit_rows(prototypes))


def own_class_means(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean over the rows of class k of their score for k: (N, C), (N,) → (C,) float64, NaN for a class without rows."""
    classes = scores.shape[1]
    own = scores[np.arange(len(labels)), labels].astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.bincount(labels, own, classes) / np.bincount(labels, minlength=classes)
