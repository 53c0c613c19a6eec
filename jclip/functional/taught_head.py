"""A linear head learned from a few answers and regularised towards a text: logistic regression whose prior mean is the text.

With x a photo's feature, t the text's direction and m, d the middle and the deviation of the gallery's cosines to it,

    logit(x) = (t·x - m) / d - line + w·(x - μ) + b,    w ~ N(0, τ P),  b ~ N(0, 1)

and (w, b) are where the posterior of the answers is largest. Without answers they are 0: the order is the text's, and what
is above the line is what `jclip search` says stands out. P is the inverse of the features' covariance, drawn half to a
multiple of the identity and scaled so that scores of the gallery's photos move by 1 on average: what distinguishes few
photos may change at less cost than what distinguishes all of them. Searches that stay aligned with their text: Moll,
Favela, Madden, Gadepally & Cafarella, "SeeSaw", arXiv 2208.06497. One covariance for all: Wang et al., "A hard-to-beat
baseline for training-free CLIP-based adaptation", ICLR 2024, as the recipe `gda`. NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jclip.functional.background import Background
from jclip.functional.lbfgs import minimise

STRENGTH = 8.0  # τ: variance, over the prior, of the change of a gallery photo's score
SHRINKAGE = 0.5  # of the covariance, times its mean variance, added to its diagonal
TOLERANCE = 1e-7  # of the largest entry of the gradient
FEWEST = 20  # rows that a line needs, see `jclip.functional.background`


@dataclass(frozen=True)
class Spread:
    """The mean μ (E,) of a gallery's features, and P (E, E): how freely scores may change in which direction."""

    mean: np.ndarray
    freedom: np.ndarray

    @staticmethod
    def of(sample: np.ndarray, shrinkage: float = SHRINKAGE) -> Spread:
        """From some of its features (n, E). Photos that are all alike leave every direction equally free."""
        sample = np.asarray(sample, np.float64)
        centred = sample - sample.mean(axis=0)
        covariance = centred.T @ centred / max(1, len(sample) - 1)
        width, mean_variance = len(covariance), np.trace(covariance) / len(covariance)
        if mean_variance <= np.finfo(np.float32).eps ** 2:
            return Spread(sample.mean(axis=0), np.eye(width) / width)
        free = np.linalg.inv(covariance + shrinkage * mean_variance * np.eye(width))
        free = (free + free.T) / 2
        return Spread(
            sample.mean(axis=0), free / np.einsum("ne,ef,nf->n", centred, free, centred, optimize=True).mean()
        )


@dataclass(frozen=True)
class Head:
    """logit(x) = scale · vector·x + bias, with a vector (E,) float32 of length one."""

    vector: np.ndarray
    scale: float
    bias: float

    @cached_property
    def threshold(self) -> float:
        """The cosine at which the logit is 0."""
        return -self.bias / self.scale

    def logits(self, cosines: np.ndarray) -> np.ndarray:
        """scale · cosine + bias of cosines to the vector, of any shape, in float64."""
        return self.scale * np.asarray(cosines, np.float64) + self.bias


def text_head(text: np.ndarray, ground: Background) -> Head:
    """The head without an answer: the text (E,) itself, the logit 0 at the line of its background.

    A gallery that is too small for a background has a line above its middle all the same, see `ground_of`.
    """
    return Head(text, 1 / ground.deviation, -ground.middle / ground.deviation - ground.line)


def ground_of(cosines: np.ndarray, ground: Background) -> Background:
    """`ground`, or where there are too few photos for one, the mean and the standard deviation of all cosines (n,)."""
    if ground.deviation > 0:
        return ground
    return Background(float(np.mean(cosines)), max(float(np.std(cosines)), 1e-4), 1.0)


def taught_head(
    text: Head, features: np.ndarray, labels: np.ndarray, spread: Spread, strength: float = STRENGTH
) -> Head:
    """The most probable head, given features (m, E) of answered photos and labels (m,) of 1 for yes and 0 for no.

    Without answers it is `text`, bit by bit.
    """
    if not len(labels):
        return text
    features = np.asarray(features, np.float64)
    change, offset = map_change(
        text.logits(features @ text.vector), features - spread.mean, labels, strength * spread.freedom
    )
    weights = text.scale * text.vector.astype(np.float64) + change
    length = float(np.linalg.norm(weights))
    return Head((weights / length).astype(np.float32), length, float(text.bias + offset - change @ spread.mean))


def map_change(
    prior: np.ndarray, features: np.ndarray, labels: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, float]:
    """(w, b) that minimise Σ log(1 + exp(-s (prior + X w + b))) + wᵀ covariance⁻¹ w / 2 + b² / 2, s = ±1 of the labels.

    prior: (m,) logits by the text. features: X (m, E). The minimum lies in the span of covariance · Xᵀ, so that m + 1 numbers
    are searched for and not E + 1. labels: (m,) of 1 and 0. covariance: (E, E).
    """
    directions = features @ covariance  # (m, E)
    shared = directions @ features.T  # how much a change for one photo moves another, (m, m)
    values, vectors = np.linalg.eigh((shared + shared.T) / 2)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps  # a photo that stands twice has one direction
    root, inverse = vectors[:, kept] * np.sqrt(values[kept]), vectors[:, kept] / np.sqrt(values[kept])
    sign = 2.0 * np.asarray(labels, np.float64) - 1.0
    own = np.column_stack([root, np.ones(len(sign))])

    def objective(v: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (prior + own @ v)
        pull = -sign * np.exp(-np.logaddexp(0, margin))  # -s σ(-margin)
        return float(np.logaddexp(0, -margin).sum() + v @ v / 2), own.T @ pull + v

    found = minimise(objective, np.zeros(own.shape[1]), tolerance=TOLERANCE)
    return (inverse @ found.x[:-1]) @ directions, float(found.x[-1])
