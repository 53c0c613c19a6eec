"""Scores of image features against text and support features. Jittor in, Jittor out; f and t have length one."""

from __future__ import annotations

from jclip.runtime import jt

nn = jt.nn


def zero_shot_scores(features, text, scale: float):
    """scale · f · t: (N, E), (C, E) → (N, C)."""
    return scale * nn.matmul_transpose(features, text)


def cache_scores(features, keys, values, beta: float):
    """Tip-Adapter, eq. 5: exp(-β (1 - f K^T)) Y: (N, E), (S, E), one-hot (S, C) → (N, C)."""
    affinity = nn.matmul_transpose(features, keys)
    return jt.matmul(jt.exp(beta * affinity - beta), values)
