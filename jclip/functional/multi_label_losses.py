"""Losses of several classes at once. Jittor in, Jittor out; labels are NumPy: 1 present, 0 absent, -1 not known.

ranking      Σ max(0, m - S_j + S_i) over j present, i absent; Guo et al., CVPR 2023, arXiv 2211.12739
asymmetric   -Σ y (1 - p)^γ+ ln p + (1 - y) (1 - q)^γ- ln q,  q = min(1 - p + clip, 1); Ridnik et al., ICCV 2021,
             arXiv 2009.14119, eq. 4-6, whose powers take no gradient
teacher      Σ_c t_c (ln t_c - ln s_c), t and s softmax over the classes
"""

from __future__ import annotations

import numpy as np

from jclip.functional.losses import kl_divergence
from jclip.runtime import jt

PAIRS_AT_ONCE = 1 << 24  # numbers of a ranking loss in memory at a time


def ranking_loss(scores, targets: np.ndarray, margin: float = 1.0, weights: np.ndarray | None = None):
    """Mean over the rows of the hinge summed over each pair of a present and an absent class: (B, C), (B, C) → a scalar.

    weights: (C, C), of the pairs (absent i, present j), see `jclip.functional.cooccurrence`. A row without pairs adds 0 and
    is one of the B nonetheless. What is present is taken in parts, so that no (B, C, C) numbers are held.
    """
    rows, present = np.nonzero(targets == 1)
    absent = (targets == 0).astype(np.float32)
    pair = absent if weights is None else weights.T.astype(np.float32)  # row j: weights of the pairs with j present
    total, step = scores.sum() * 0.0, max(1, PAIRS_AT_ONCE // targets.shape[1])
    flat = scores.reshape((-1,))
    for start in range(0, len(rows), step):
        own, at = rows[start : start + step], present[start : start + step]
        share = absent[own] if weights is None else absent[own] * pair[at]
        positive = flat[jt.array((own * targets.shape[1] + at).astype(np.int32))]
        hinge = jt.maximum(scores[jt.array(own.astype(np.int32))] - positive.unsqueeze(1) + margin, 0.0)
        total = total + (hinge * jt.array(share)).sum()
    return total / scores.shape[0]


def asymmetric_loss(
    scores,
    targets: np.ndarray,
    negative_power: float = 2.0,
    positive_power: float = 1.0,
    clip: float = 0.05,
    smallest: float = 1e-8,
):
    """Summed over known labels, divided by the rows, of p = sigmoid(scores): (B, C), (B, C) → a scalar.

    Of a positive and a negative prompt scores are their difference. clip: how far p of an absent class may be from 0 for
    nothing. smallest: what logarithms are taken of at least.
    """
    return _asymmetric(scores, targets, negative_power, positive_power, clip, smallest) / scores.shape[0]


def pair_asymmetric_loss(
    positive,
    negative,
    targets: np.ndarray,
    negative_power: float = 2.0,
    positive_power: float = 1.0,
    clip: float = 0.05,
    smallest: float = 1e-6,
    weight: float = 1.0,
):
    """`weight` times the sum over known labels, p the softmax over the pair of scores: (B, C) three times → a scalar.

    As DualCoOp has it (Sun et al., NeurIPS 2022, arXiv 2206.09541); the softmax over two is the sigmoid of what they differ by.
    """
    return weight * _asymmetric(positive - negative, targets, negative_power, positive_power, clip, smallest)


def _asymmetric(scores, targets, negative_power, positive_power, clip, smallest):
    present, absent = (jt.array((targets == y).astype(np.float32)) for y in (1, 0))
    p = jt.sigmoid(scores)
    q = jt.minimum(1.0 - p + clip, 1.0)
    focus = present * _power(1.0 - p, positive_power) + absent * _power(1.0 - q, negative_power)
    logs = present * jt.log(jt.maximum(p, smallest)) + absent * jt.log(jt.maximum(q, smallest))
    return -(focus.detach() * logs).sum()


def _power(x, exponent: float):
    """x^exponent of x ≥ 0; 1 where the exponent is 0."""
    return jt.ones_like(x) if exponent == 0 else x if exponent == 1 else jt.pow(jt.maximum(x, 0.0), exponent)


def teacher_loss(scores, wanted):
    """Mean over the rows of the divergence of softmax(scores) from softmax(wanted), over classes: (B, C) twice → a scalar.

    `wanted` takes no gradient: it is the teacher's.
    """
    return kl_divergence(scores, wanted.detach()) / scores.shape[0]
