"""How boxes stand to each other, and what a relation makes of probabilities. NumPy.

The rules of ReCLIP: Subramanian et al., ACL 2022, arXiv 2204.05991, section 3.2 and figure 3; as its code has them
(allenai/reclip, 3ed4f47). P(i) is the probability that box i is what a text says. A relation is a matrix R (N, N), R[i, j]
how far box i stands so to box j:

    related    P(i) ∝ P(i) Σ_j R[i, j] Q(j)      "the dog left of the chair", Q of the chair
    extreme    P(i) ∝ Σ_j P(i) P(j) R[i, j]      "the left dog"
    between    P(i) ∝ P(i) Σ_jk R[i, j, k] Q(j) S(k)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jclip.functional.boxes import areas, overlaps


def _before(values: np.ndarray) -> np.ndarray:
    """(N,) → (N, N): 1 where the first is less than the second."""
    return (values[:, None] < values[None]).astype(float)


def _across(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 0] + boxes[:, 2]


def _down(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 1] + boxes[:, 3]


def within(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) corners → (N, N): the share of the first's area that lies in the second."""
    return overlaps(boxes[:, None], boxes[None])[0] / areas(boxes)[:, None]


RELATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # by centres and areas; all boxes are corners (N, 4)
    "left": lambda boxes: _before(_across(boxes)),
    "right": lambda boxes: _before(-_across(boxes)),
    "above": lambda boxes: _before(_down(boxes)),
    "below": lambda boxes: _before(-_down(boxes)),
    "bigger": lambda boxes: _before(-areas(boxes)),
    "smaller": lambda boxes: _before(areas(boxes)),
    "within": within,
}


def between(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) corners → (N, N, N): the share of the first's area in the hull of the others; 0 where two of them are one."""
    low = np.minimum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.maximum(boxes[:, None, 2:], boxes[None, :, 2:])
    hulls = np.concatenate([low, high], axis=2)
    shares = overlaps(boxes[:, None, None], hulls[None])[0] / areas(boxes)[:, None, None]
    i, j, k = np.indices(shares.shape)
    return shares * ((i != j) & (i != k) & (j != k))


def related(own: np.ndarray, other: np.ndarray, relation: np.ndarray) -> np.ndarray:
    """P (N,), Q (N,), R (N, N) → (N,), of sum 1; P itself where no box stands so to any that is likely."""
    return _of_sum_one(own * (relation @ other), own)


def extreme(own: np.ndarray, relation: np.ndarray) -> np.ndarray:
    """P (N,), R (N, N) → (N,), of sum 1: how likely each is the one that stands so to the others."""
    return related(own, own, relation)


def among(own: np.ndarray, first: np.ndarray, second: np.ndarray, relation: np.ndarray) -> np.ndarray:
    """P, Q, S (N,), R (N, N, N) → (N,), of sum 1; P itself where the sum is 0."""
    return _of_sum_one(own * np.einsum("ijk,j,k->i", relation, first, second), own)


def _of_sum_one(found: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    total = found.sum()
    return found / total if total > 0 else otherwise
