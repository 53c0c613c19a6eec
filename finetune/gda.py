"""GDA: Gaussian discriminant analysis, one covariance for all classes, in closed form, beside zero-shot.

Wang et al., ICLR 2024, arXiv 2402.04087, section 3.   Trains: nothing.   Needs: a few-shot split with more rows than
classes, each view of a photo being a row; validation photos where α is searched.

    logits = s f T' + α (f W + b),   w_k = P μ_k,   b_k = log π_k - μ_k' P μ_k / 2
    P = E ((N - 1) Σ + tr(Σ) I)⁻¹,   Σ = Σ_i (x_i - μ_y)(x_i - μ_y)' / (N - 1)

Without text features the logits are f W + b alone. One row per class has no covariance: P = I then, the nearest mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from jclip.config import DataConfig, Dtype, ReadWith
from jclip.errors import ConfigError, DataError, notice
from jclip.features import extraction, heads, precomputed
from jclip.features import source as sources
from jclip.train import on_features, scored_photos
from jclip.train import run as runs

NOTHING = 1e-12  # of a row's square, which is one: what rounding leaves of rows less themselves


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str = ""  # a name or weight file; precomputed features need none
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"  # int8 on CPUs, bf16 on those with AVX-512, both halves on a GPU
    templates: str = "openai7"
    views: int = 10  # augmented views of each training photo, every one a row of its own
    augment: str = "tip_adapter"
    shrinkage: Literal["ridge", "none"] = "ridge"  # none: P is the inverse pooled covariance, as in plain LDA
    prior: Literal["uniform", "train"] = "uniform"  # π: equal, or each class's share of the training rows
    alpha: float = 1.0  # α where it is not searched
    search: bool = True  # choose α on validation
    search_alpha: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)  # the first of the best is taken
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {
        "search=true": ("search_alpha",),
        "search=false": ("alpha",),
    }

    def __post_init__(self):
        if self.views < 1:
            raise ConfigError(f"views must be at least 1, got {self.views}")
        if self.search and not self.search_alpha:
            raise ConfigError("search_alpha must have at least one value, or search be false")
        if min(self.alpha, *self.search_alpha) < 0:
            raise ConfigError("alpha and search_alpha must be at least 0")


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Means, covariance, α, evaluation of val and test."""
    rows = extraction.TrainingRows(cfg.views, cfg.augment, cfg.seed, each_view=True, every_class=True)
    data = extraction.few_shot_features(cfg.data, sources.source_of(cfg), cfg.templates, rows)
    run.note(**data.facts)
    searched = cfg.search and data.text is not None
    if searched:
        on_features.need_val(data, "last", searched="alpha")
    weights, bias = discriminant(cfg, data.train, data.train_labels, data.classes)
    learned = {"weights": weights, "bias": bias}
    if data.text is not None:
        alpha = choose_alpha(cfg, data, weights, bias) if searched else cfg.alpha
        learned |= {"text": data.text, "scale": np.array([data.scale]), "alpha": np.array([alpha])}
    run.save_learned(learned, classnames=data.classnames, width=data.train.shape[1])
    chosen = {"alpha": float(learned["alpha"][0])} if "alpha" in learned else {}
    return {**on_features.zero_shot_report(data), **scored_photos.measured(run, data, scorer(learned, cfg)), **chosen}


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with normalised features (N, E): scores (N, C) float64."""
    if "text" not in learned:
        return lambda f: gaussian_scores(f, learned["weights"], learned["bias"])
    head, alpha = heads.ZeroShotHead(learned["text"], float(learned["scale"][0])), float(learned["alpha"][0])
    return lambda f: head(f) + alpha * gaussian_scores(f, learned["weights"], learned["bias"])


def gaussian_scores(features: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """f W + b: (N, E), (C, E), (C,) → (N, C) float64; both terms are large and nearly cancel."""
    return features.astype(np.float64) @ weights.T + bias


def discriminant(cfg: Config, rows: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """W' (C, E) and b (C,) float64 of normalised rows (N, E). Raises `DataError` where they fix no covariance."""
    counts = np.bincount(labels, minlength=classes)
    if not counts.all():
        raise DataError(f"{int((counts == 0).sum())} of {classes} classes have no training photos, so no mean")
    wide = rows.astype(np.float64)
    means = on_features.class_means(wide, labels, classes)
    scatter = wide.T @ wide - (means.T * counts) @ means  # (N - 1) Σ: rows less their class's mean, squared
    weights = solve(cfg, scatter, len(rows), means)
    prior = counts / counts.sum() if cfg.prior == "train" else np.full(classes, 1 / classes)
    return weights, np.log(prior) - (means * weights).sum(axis=1) / 2


def solve(cfg: Config, scatter: np.ndarray, count: int, means: np.ndarray) -> np.ndarray:
    """P μ_k for every class, (C, E), of (N - 1) Σ (E, E) of `count` rows and means (C, E), all float64."""
    classes, width = means.shape
    if cfg.shrinkage == "ridge":
        spread = np.trace(scatter)
        if spread <= NOTHING * count:
            notice("one row per class has no covariance: nearest class means are taken (P = I)")
            return means
        matrix = (scatter + spread / (count - 1) * np.eye(width)) / width
    else:
        if count - classes < width:
            raise ConfigError(
                f"shrinkage=none needs at least {width + classes} training rows, got {count}: "
                "set shrinkage=ridge, or raise data.shots"
            )
        matrix = scatter / (count - classes)
        _check_regular(matrix)
    return np.linalg.solve(matrix, means.T).T


def choose_alpha(cfg: Config, data: precomputed.FeatureSet, weights: np.ndarray, bias: np.ndarray) -> float:
    """α of the best validation accuracy, the first among equals."""
    zero_shot = heads.ZeroShotHead(data.text, data.scale)(data.val)
    own = gaussian_scores(data.val, weights, bias)
    return on_features.best_on_val(cfg.search_alpha, data, lambda alpha: lambda _: zero_shot + alpha * own)[0]


def _check_regular(matrix: np.ndarray) -> None:
    """Raises `DataError` for a covariance that has no inverse, as that of repeated rows or dead channels."""
    try:
        pivots = np.diag(np.linalg.cholesky(matrix)) ** 2
    except np.linalg.LinAlgError:
        pivots = np.zeros(1)
    if pivots.min() <= len(matrix) * np.finfo(np.float64).eps * pivots.max():
        raise DataError(
            "the training rows do not span the feature space, so their covariance is singular: set shrinkage=ridge"
        )
