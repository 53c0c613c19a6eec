"""Features brought to length one, and scores of image features f against text t and support features, all of length one.

Jittor in, Jittor out.
"""

from __future__ import annotations

from jclip.runtime import jt

nn = jt.nn


def normalise(x):
    """x / ‖x‖ over the last axis, in float32."""
    x = x.float32()
    return x / jt.sqrt((x * x).sum(dim=-1, keepdims=True))


def unit_rows(x):
    """x / max(‖x‖, 1e-12) over the rows of (N, E), in the dtype of `x`; a row of zeros stays one.

    Not `normalise`: learned rows may become zero, where that has no gradient, and features of a tower never are.
    """
    return x / jt.sqrt(jt.maximum((x * x).sum(dim=1, keepdims=True), 1e-24))


def zero_shot_scores(features, text, scale: float):
    """scale · f · t: (N, E), (C, E) → (N, C)."""
    return scale * nn.matmul_transpose(features, text)


def cache_scores(features, keys, values, beta: float):
    """Tip-Adapter, eq. 5: exp(-β (1 - f K^T)) Y: (N, E), (S, E), one-hot (S, C) → (N, C)."""
    affinity = nn.matmul_transpose(features, keys)
    return jt.matmul(jt.exp(beta * affinity - beta), values)
