"""Losses. Jittor in, Jittor out; features have length one."""

from __future__ import annotations

import numpy as np

from jclip import kernels
from jclip.functional.metrics import softmax
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


def contrastive_loss_of_rows(own, whole, scale, per_image: np.ndarray, per_text: np.ndarray):
    """What n of B rows add to `contrastive_loss`: images and texts (n, E) of them, (B, E) of all → a scalar.

    per_image, per_text: (n, B) float32, a distribution per row.
    """
    halves = ((own[0], whole[1], per_image), (own[1], whole[0], per_text))
    sums = [-(jt.array(y) * log_softmax(scale * nn.matmul_transpose(x, z))).sum() for x, z, y in halves]
    return sum(sums) / (2 * whole[0].shape[0])


def cross_entropy(scores, labels):
    """Mean over the rows of -log softmax(scores)_y: (B, C), (B,) int32 → a scalar.

    Jittor's own divides by the mean of B ones, which its float32 sums get wrong: by 2e-5 of 1,600 rows, 2e-4 of 16,000.
    """
    return kernels.cross_entropy(scores, labels).sum() / scores.shape[0]


def sigmoid_loss(images, texts, scale, bias, positives: np.ndarray | None = None):
    """L = -1/B Σ_ij log σ(y_ij (s I_i T_j + b)), Zhai et al., 2023, arXiv 2303.15343: (B, E), (B, E), s > 0, b → a scalar.

    positives: (B, B), true where y is 1; elsewhere it is -1. By default each text is its image's alone.
    """
    count = images.shape[0]
    wanted = np.eye(count, dtype=bool) if positives is None else positives
    signs = jt.array(np.where(wanted, 1, -1).astype(np.float32))
    return softplus(-signs * (scale * nn.matmul_transpose(images, texts) + bias)).sum() / count


def sigmoid_loss_of_rows(own, texts, scale, bias, positives: np.ndarray):
    """What n of B rows add to `sigmoid_loss`: images (n, E) of them, texts (B, E) of all, positives (n, B) → a scalar."""
    signs = jt.array(np.where(positives, 1, -1).astype(np.float32))
    return softplus(-signs * (scale * nn.matmul_transpose(own, texts) + bias)).sum() / texts.shape[0]


def softplus(x):
    """log(1 + e^x), small values to all digits: those of Jittor's own are lost below 1e-7.

    log1p(e) = 2 artanh(e / (2 + e)) of e = exp(-|x|) in (0, 1], by the series of artanh to the 15th power: to 2e-9.
    """
    e = jt.exp(-jt.abs(x))
    s = e / (e + 2)
    square, total = s * s, 0
    for power in range(15, 0, -2):
        total = total * square + 1 / power
    return jt.maximum(x, 0) + 2 * s * total


def distillation_loss(images, texts, scale, wanted: np.ndarray):
    """L = -1/(2B) Σ p log q over the rows of both directions, p = softmax(teacher), q = softmax(s I T^T): → a scalar.

    As open_clip's `DistillClipLoss` has it. wanted: (B, B) scores of the teacher at its own scale, a row per image.
    """
    per_image = scale * nn.matmul_transpose(images, texts)
    halves = ((per_image, wanted), (per_image.transpose(0, 1), wanted.T))
    return sum(soft_cross_entropy(scores, jt.array(softmax(p).astype(np.float32))) for scores, p in halves) / 2


def positive_pairs(captions: np.ndarray, images: np.ndarray | None = None) -> np.ndarray:
    """(B,) ids of captions, and of images, → (B, B), true where both rows have the same caption or the same image."""
    same = captions[:, None] == captions[None, :]
    return same if images is None else same | (images[:, None] == images[None, :])


def positive_targets(groups: np.ndarray, images: np.ndarray | None = None) -> np.ndarray:
    """(B,) ids → (B, B) float32: each row spread evenly over the rows of the same id. `positive_pairs` is symmetric, so it
    serves both ways."""
    same = positive_pairs(groups, images).astype(np.float32)
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
