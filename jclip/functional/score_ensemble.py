"""Scores of several models for the same photos and classes as one matrix: by columns, mean, weights or ranks. NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from jclip.errors import ConfigError, DataError, UnknownName
from jclip.functional.multi_label_metrics import average_precision_per_class, check_scores, mean_over_classes
from jclip.functional.window_fusion import merged_scores

Kind = Literal["columns", "mean", "weighted", "rank"]
ColumnNorm = Literal["none", "zscore", "rank"]
KINDS, COLUMN_NORMS = map(get_args, (Kind, ColumnNorm))


@dataclass(frozen=True)
class Ensemble:
    """Scores (N, C). comparable: whether scores of different classes may be compared, as top-k and one threshold do."""

    scores: np.ndarray
    comparable: bool = True

    def compare_classes(self) -> np.ndarray:
        """The scores, for metrics that compare classes. Raises `ConfigError` where they may not be compared."""
        if not self.comparable:
            raise ConfigError(
                "an ensemble by columns has scores of different models side by side: top-k, thresholds for all classes, "
                "OP, OR and OF1 mean nothing of it; set column_norm to zscore or rank, or measure mAP alone"
            )
        return self.scores


def check_alike(scores: Mapping[str, np.ndarray]) -> None:
    """Raises `DataError` unless all are finite matrices of one shape (N, C)."""
    if not scores:
        raise DataError("an ensemble needs scores of at least one model, got none")
    (first, wanted), *others = scores.items()
    for name, matrix in scores.items():
        check_scores(matrix, place=name)
    for name, matrix in others:
        if matrix.shape != wanted.shape:
            both = f"{wanted.shape} of {first} and {matrix.shape} of {name}"
            raise DataError(f"scores of one ensemble must have one shape, got {both}")


def by_columns(
    scores: Mapping[str, np.ndarray],
    classnames: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    column_norm: ColumnNorm = "none",
) -> Ensemble:
    """The first model's scores (N, C), with whole columns of classes replaced by those of other models.

    columns: model → class names that it decides. column_norm: zscore or rank makes each column comparable with others.
    Raises `UnknownName` for a model or class that is none, `ConfigError` for a class that two models decide.
    """
    check_alike(scores)
    if column_norm not in COLUMN_NORMS:
        raise UnknownName("column norm", str(column_norm), COLUMN_NORMS)
    place, base = {name: c for c, name in enumerate(classnames)}, next(iter(scores))
    taken: dict[str, str] = {}
    result = scores[base].astype(np.float64)
    for model, names in columns.items():
        if model not in scores:
            raise UnknownName("model of an ensemble", model, scores)
        for name in names:
            if name not in place:
                raise UnknownName("class", name, classnames)
            if (before := taken.setdefault(name, model)) != model:
                raise ConfigError(f"each class must be decided by one model, got {before} and {model} for {name!r}")
            result[:, place[name]] = scores[model][:, place[name]]
    if column_norm == "zscore":
        result = standardised(result)
    elif column_norm == "rank":
        result = column_ranks(result)
    return Ensemble(result, column_norm != "none")


def weighted(
    scores: Mapping[str, np.ndarray],
    weights: Sequence[float],
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> Ensemble:
    """Σ weight · matrix (N, C), each whole matrix scaled to [0, 1] first. Raises `ConfigError` for weights that do not fit.

    limits: least and greatest value of the whole of each, where `scores` are rows of them.
    """
    check_alike(scores)
    if len(weights) != len(scores) or not all(np.isfinite(w) and w >= 0 for w in weights) or not sum(weights):
        raise ConfigError(
            f"an ensemble of {len(scores)} needs as many weights, none below 0, not all 0; got {[*weights]}"
        )
    of = limits or {}
    return Ensemble(
        sum(w * scaled(matrix, of.get(name)) for w, (name, matrix) in zip(weights, scores.items(), strict=True))
    )


def pair_weights(rho: float) -> tuple[float, float]:
    """(1 - ρ, ρ): the weights of two models of which the second has ρ. Raises `ConfigError` outside of [0, 1]."""
    if not 0 <= rho <= 1:
        raise ConfigError(f"rho must be in [0, 1], got {rho}")
    return 1 - rho, rho


def mean(scores: Mapping[str, np.ndarray]) -> Ensemble:
    """The mean of the matrices (N, C) as they are."""
    check_alike(scores)
    return Ensemble(sum(matrix.astype(np.float64) for matrix in scores.values()) / len(scores))


def rank_mean(scores: Mapping[str, np.ndarray]) -> Ensemble:
    """The mean of the models' ranks within each class, in (0, 1]."""
    check_alike(scores)
    return Ensemble(sum(column_ranks(matrix) for matrix in scores.values()) / len(scores))


def scaled(scores: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """(N, C) from its least to its greatest value (`limits`, of rows of it) as 0 to 1; a constant one as zeros."""
    scores = scores.astype(np.float64)
    low, high = limits or (scores.min(), scores.max())
    return (scores - low) / (high - low) if high > low else np.zeros(scores.shape)


def standardised(scores: np.ndarray) -> np.ndarray:
    """Each column less its mean, by its standard deviation (N); a constant one as zeros."""
    centred = scores - scores.mean(axis=0)
    deviation = centred.std(axis=0)
    return np.divide(centred, deviation, out=np.zeros(centred.shape), where=deviation > 0)


def by_image_and_class(scores: np.ndarray) -> np.ndarray:
    """(N, C), each row at mean 0 and deviation 1, then each column: what a photo or a class has of all scores is taken away."""
    return standardised(standardised(scores.astype(np.float64).T).T)


def column_ranks(scores: np.ndarray) -> np.ndarray:
    """(N, C) ranks within each column as shares of N, the highest 1; equal scores share the mean of their ranks."""
    ranks = np.empty(scores.shape)
    for c, column in enumerate(scores.T):
        ordered = np.sort(column)
        ranks[:, c] = np.searchsorted(ordered, column, "left") + np.searchsorted(ordered, column, "right") + 1
    return ranks / (2 * len(scores))


def searched_merge(global_scores: np.ndarray, local_scores: np.ndarray, targets: np.ndarray, steps: int = 20) -> float:
    """The r among 0, 1/steps, … 1 whose r · global + (1 - r) · local has the best mAP on labelled photos; of equals that
    nearest to .5. These photos are chosen on, so that another list has to be measured. Scores and targets: (N, C)."""
    grid = sorted((k / steps for k in range(steps + 1)), key=lambda r: (abs(r - 0.5), r))
    return max(
        grid,
        key=lambda r: _mean_precision(merged_scores(global_scores, local_scores, r), targets),
    )


def searched_weights(scores: Mapping[str, np.ndarray], targets: np.ndarray, rounds: int = 20) -> dict[str, float]:
    """Weights of a `weighted` ensemble with the best mAP on labelled photos, targets (N, C), as shares of one.

    Caruana et al., ICML 2004: from the best model on, in each round the model is added, again too, that gives the best sum
    of scaled matrices; the best round stays, the first among equals. Another list has to be measured.
    """
    check_alike(scores)
    matrices = {name: scaled(matrix) for name, matrix in scores.items()}
    counts, total, best = dict.fromkeys(matrices, 0), np.zeros(targets.shape), (-1.0, {})
    for number in range(1, rounds + 1):
        found = {name: _mean_precision(total + matrix, targets) for name, matrix in matrices.items()}
        name = max(found, key=lambda one: found[one])  # the first, among equals
        counts[name] += 1
        total = total + matrices[name]
        if found[name] > best[0]:
            best = found[name], {one: count / number for one, count in counts.items()}
    return best[1]


def _mean_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    return mean_over_classes(average_precision_per_class(scores, targets))
