"""Losses. Jittor in, Jittor out; features have length one."""

from __future__ import annotations

import numpy as np

from jclip import kernels
from jclip.runtime import jt

nn = jt.nn


def contrastive_loss(images, texts, scale, targets: np.ndarray | None = None):
    """L = (CE(s I T^T, y) + CE(s T I^T, y)) / 2, Radford et al., 2021, figure 3: (B, E), (B, E), s > 0 → a scalar.

    targets: (B, B) float32, a distribution per row (see `positive_targets`); by default each text is its image's alone.
    """
    per_image = scale * nn.matmul_transpose(images, texts)
    per_text = per_image.transpose(0, 1)
    if targets is None:
        own = jt.array(np.arange(images.shape[0], dtype=np.int32))
        return (cross_entropy(per_image, own) + cross_entropy(per_text, own)) / 2
    y = jt.array(targets)
    return (soft_cross_entropy(per_image, y) + soft_cross_entropy(per_text, y)) / 2


def cross_entropy(scores, labels):
    """Mean over the rows of -log softmax(scores)_y: (B, C), (B,) int32 → a scalar.

    Jittor's own divides by the mean of B ones, which its float32 sums get wrong: by 2e-5 of 1,600 rows, 2e-4 of 16,000.
    """
    return kernels.cross_entropy(scores, labels).sum() / scores.shape[0]


def positive_targets(groups: np.ndarray) -> np.ndarray:
    """(B,) ids → (B, B) float32: each row spread evenly over the rows of the same id. Symmetric, so it serves both ways."""
    same = (groups[:, None] == groups[None, :]).astype(np.float32)
    return same / same.sum(axis=1, keepdims=True)


def soft_cross_entropy(scores, targets):
    """Mean over the rows of -Σ_k y_k log softmax(scores)_k: (B, C), (B, C) → a scalar."""
    return -(targets * log_softmax(scores)).sum() / scores.shape[0]


def kl_divergence(scores, wanted):
    """Σ p (log p - log q) over rows and classes, with p = softmax(wanted), q = softmax(scores): (B, C) twice → a scalar.

    Of logarithms on both sides: a p that has become 0 adds nothing.
    """
    p, q = log_softmax(wanted), log_softmax(scores)
    return (jt.exp(p) * (p - q)).sum(dim=1).sum()


def log_softmax(scores):
    """Of each row of (B, C)."""
    shifted = scores - scores.max(dim=1, keepdims=True).detach()
    return shifted - jt.log(jt.exp(shifted).sum(dim=1, keepdims=True))
