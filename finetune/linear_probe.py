"""Linear probe: logistic regression on image features, by L-BFGS or in small steps; text is not used.

Radford et al., 2021, arXiv 2103.00020, section 3.2; the search of CoOp, arXiv 2109.01134.   Trains: (E + 1) x C parameters.
Needs: labelled photos or precomputed features of every class; validation photos where C, a step or a setting is chosen.

    lbfgs: logits = f W + b,   min ‖W‖² / 2 + C Σ_i CE(logits_i, y_i)
    sgd:   logits = e^c f W' / ‖f‖,   AdamW on the mean CE of small batches,   c a constant

`sgd` is the uni-modal probe of Lin et al., CVPR 2023, arXiv 2301.06267: no bias, batches from an endless shuffled stream
of photos alone that drops what a pass leaves over, validated every few steps, the best head kept. Its samples are the
photos as the evaluation sees them and then `views` augmented ones, the authors' `mirror`; those of `lbfgs` are the views.

`features: penultimate` are a vision transformer's before its projection, as in Radford et al.: E is the tower's width.
No text lives in that space, so such runs report no zero-shot figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from jclip.config import DataConfig, Dtype, OptimConfig, ReadWith, check_grid, refuse_average
from jclip.errors import ConfigError, DataError, notice
from jclip.features import extraction, precomputed
from jclip.features import source as sources
from jclip.functional import initial_values, lbfgs, metrics, similarity
from jclip.functional.directions import unit
from jclip.postponed import jt
from jclip.train import on_features, scored_photos
from jclip.train import run as runs

# arrays for `scorer`, and what the run reports of them
Learned: TypeAlias = "tuple[dict[str, np.ndarray], dict[str, float]]"
NORMALISED = False  # the scorer takes unnormalised features


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str = ""  # a name or weight file; precomputed features need none
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"  # int8 on CPUs, bf16 on those with AVX-512, both halves on a GPU
    templates: str = "openai7"  # of the zero-shot figures beside
    features: Literal["projected", "penultimate"] = "projected"  # of photos; precomputed ones are projected
    views: int = 1  # augmented views of each training photo, every one a row of its own
    augment: str = "none"
    solver: Literal["lbfgs", "sgd"] = "lbfgs"
    # of lbfgs alone, from here
    normalize: bool = False  # features of length one (precomputed ones always are, and sgd's)
    C: float = 0.316  # weight of the data against ‖W‖², where it is not searched
    search: bool = True  # choose C on validation
    search_C: tuple[float, ...] = (1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6)  # the first look
    search_rounds: int = 8  # halvings of the interval from a tenth to ten times the best of these
    iterations: int = 1000  # of L-BFGS at most
    # the largest entry of the gradient that counts as zero, times C where C < 1 or in the search
    tolerance: float = 1e-4
    # of sgd alone, from here
    init: Literal["random", "zeroshot"] = "random"  # W: as torch's Linear starts, or the classes' text features
    logit_scale: float = 4.60517  # c
    every: int = 100  # steps of an epoch, after which it is validated
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, warmup=50, epochs=128, batch=8))
    grid_lr: tuple[float, ...] = ()  # where given, each combination is trained and the best on validation kept
    grid_weight_decay: tuple[float, ...] = ()
    grid_batch: tuple[int, ...] = ()  # those that are larger than the samples are left out
    selection: Literal["val", "last", "test"] = "val"  # the epoch that is kept
    # of both
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {
        "solver=lbfgs": ("normalize", "C", "search", "search_C", "search_rounds", "iterations", "tolerance"),
        "solver=sgd": (
            "init",
            "logit_scale",
            "every",
            "optim",
            "grid_lr",
            "grid_weight_decay",
            "grid_batch",
            "selection",
        ),
        "search=true": ("search_C", "search_rounds"),
        "search=false": ("C",),
    }

    def __post_init__(self):
        check_grid(self.optim, lr=self.grid_lr, weight_decay=self.grid_weight_decay, batch=self.grid_batch)
        if not self.search_C or min(self.C, *self.search_C) <= 0:
            raise ConfigError("C and search_C must be above 0, and search_C have at least one value")
        if min(self.views, self.iterations, self.every) < 1 or self.search_rounds < 0 or self.tolerance <= 0:
            raise ConfigError(
                "views, iterations and every must be at least 1, search_rounds at least 0, tolerance above 0"
            )
        if self.features == "penultimate" and self.data.features:
            raise ConfigError(
                "features=penultimate needs photos and a model, precomputed features are projected: set data.root and model"
            )
        if self.features == "penultimate" and (self.solver, self.init) == ("sgd", "zeroshot"):
            raise ConfigError("init=zeroshot needs features=projected: no text lives before the projection")
        if abs(self.logit_scale) > 10:
            raise ConfigError(
                f"logit_scale must be a scale's logarithm in [-10, 10], such as 4.60517 for 100, got {self.logit_scale}"
            )
        if self.solver == "lbfgs":
            refuse_average(self.optim, "solver=sgd")


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Features, choice and fit by the solver, evaluation of val and test."""
    source, in_steps = sources.source_of(cfg), cfg.solver == "sgd"
    if in_steps:
        rows = extraction.TrainingRows(every_class=cfg.init == "random")
    else:
        rows = extraction.TrainingRows(cfg.views, cfg.augment, cfg.seed, each_view=True, every_class=True)
    data = extraction.few_shot_features(cfg.data, source, cfg.templates, rows, normalise=in_steps)
    run.note(**data.facts)
    learned, metrics = trained(cfg, run, data, source) if in_steps else regressed(cfg, data)
    run.save_learned(learned, classnames=data.classnames, width=data.train.shape[1])
    of_length_one = replace(data, val=unit(data.val), test=unit(data.test))
    return {
        **on_features.zero_shot_report(of_length_one),
        **scored_photos.measured(run, data, scorer(learned, cfg)),
        **metrics,
    }


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with features (N, E), not normalised: scores (N, C) float64."""
    if cfg.solver == "sgd":
        weights = math.exp(cfg.logit_scale) * learned["weights"].T.astype(np.float64)
        return lambda f: unit(f) @ weights
    return lambda f: prepared(cfg, f) @ learned["weights"].T + learned["bias"]


# solver: lbfgs


def regressed(cfg: Config, data: precomputed.FeatureSet) -> Learned:
    """W and b at the minimum, with C as it is set or chosen. Raises `ConfigError` or `DataError`."""
    if cfg.search:
        on_features.need_val(data, "last", searched="C")
    c, fitted = search(cfg, data) if cfg.search else (cfg.C, fit(cfg, data, cfg.C))
    if not fitted.converged:
        notice(f"L-BFGS had not converged after {fitted.iterations} iterations: raise iterations")
    learned = dict(zip(("weights", "bias"), parted(fitted.x, data.classes), strict=True))
    metrics = {"C": c, "converged": int(fitted.converged), "iterations": fitted.iterations, "objective": fitted.value}
    return learned, metrics


def prepared(cfg: Config, features: np.ndarray) -> np.ndarray:
    """(N, E) as the regression sees it, float64."""
    return (unit(features) if cfg.normalize else features).astype(np.float64)


def fit(cfg: Config, data: precomputed.FeatureSet, c: float, near: np.ndarray | None = None) -> lbfgs.Minimum:
    """The regression with C = `c`, from zeros; `x` holds W (C, E) and b (C,). Raises `DataError` for an empty class.

    near: where a first look starts instead, which stops as scikit-learn did for the authors: its objective is divided
    by C, so that the same tolerance lets go of large C early.
    """
    missing = data.classes - len(np.unique(data.train_labels))
    if missing:
        raise DataError(f"{missing} of {data.classes} classes have no training photos, so their bias has no minimum")
    rows = prepared(cfg, data.train)
    start = np.zeros(data.classes * (rows.shape[1] + 1)) if near is None else near
    stop = {"iterations": cfg.iterations, "tolerance": cfg.tolerance * (min(1.0, c) if near is None else c)}
    return lbfgs.minimise(lambda x: objective(x, rows, data.train_labels, data.classes, c), start, **stop)


def objective(x: np.ndarray, rows: np.ndarray, labels: np.ndarray, classes: int, c: float) -> tuple[float, np.ndarray]:
    """‖W‖² / 2 + c Σ CE and its gradient, of W (C, E) and b (C,) in one array `x`; the bias is not penalised.

    A large c calls for cross-entropies near zero to be exact: they come of the other classes alone, not of 1 less the own.
    """
    weights, bias = parted(x, classes)
    scores = rows @ weights.T + bias
    scores -= scores.max(axis=1, keepdims=True)
    own = np.arange(len(rows)), labels
    odds = np.exp(scores)
    mine, odds[own] = odds[own], 0
    others = odds.sum(axis=1)
    value = (weights**2).sum() / 2 + c * (np.log1p(others + (mine - 1)) - scores[own]).sum()
    odds[own] = -others
    odds *= (c / (others + mine))[:, None]  # c (probabilities - one-hot)
    return value, np.concatenate([(weights + odds.T @ rows).ravel(), odds.sum(axis=0)])


def parted(x: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """W (C, E) and b (C,) of one array."""
    return x[:-classes].reshape(classes, -1), x[-classes:]


def search(cfg: Config, data: precomputed.FeatureSet) -> tuple[float, lbfgs.Minimum]:
    """C by validation accuracy, and its fit: the best of `search_C`, then halvings around it; ties go to the smaller C.

    The interval's ends are compared and the worse one moves to the middle, on a logarithmic scale, as CoOp's probe does.
    Each look starts where that at the nearest C ended; the chosen C is fitted to the end, from zeros.
    """
    looks: dict[float, tuple[float, np.ndarray]] = {}

    def accuracy(c: float) -> float:
        if c not in looks:
            x = look(cfg, data, c, {other: x for other, (_, x) in looks.items()})
            weights, bias = parted(x, data.classes)
            looks[c] = metrics.top_k(scorer({"weights": weights, "bias": bias}, cfg)(data.val), data.val_labels), x
        return looks[c][0]

    peak = max(sorted(cfg.search_C), key=accuracy)  # the first among equals
    left, right = 0.1 * peak, 10 * peak
    for _ in range(cfg.search_rounds):
        middle = float(np.sqrt(left * right))
        left, right = (left, middle) if accuracy(left) >= accuracy(right) else (middle, right)
    chosen = max((left, right), key=accuracy)
    return chosen, fit(cfg, data, chosen)


def look(cfg: Config, data: precomputed.FeatureSet, c: float, known: dict[float, np.ndarray]) -> np.ndarray:
    """W and b for `c`, as near to the minimum as a choice needs, from those of the nearest C that is known."""
    nearest = min(known, key=lambda other: abs(np.log(other / c)), default=None)
    start = np.zeros(data.classes * (data.train.shape[1] + 1)) if nearest is None else known[nearest]
    return fit(cfg, data, c, start).x


# solver: sgd


def trained(cfg: Config, run: runs.Run, data: precomputed.FeatureSet, source: sources.ModelSource | None) -> Learned:
    """W of the best epoch, with the config's setting or the best of its grid. Raises `ConfigError` or `DataError`."""
    photos = on_features.photo_samples(cfg, data, source)
    start, count = initial(cfg, data), len(photos[0])
    settings = on_features.grid(cfg, lambda batch: batch <= count, f"{count} photos")
    kept, chosen = on_features.best_setting(
        settings, data, cfg.selection,
        lambda optim, slot: train_head(cfg, run, data, photos, start, optim, slot),
        lambda learnt: scorer(learnt, cfg),
    )  # fmt: skip
    return kept.arrays, {**chosen, **kept.metrics}


def initial(cfg: Config, data: precomputed.FeatureSet) -> np.ndarray:
    """W (C, E) float32 at the start. Raises `DataError` where it is text and there is none."""
    if cfg.init == "zeroshot":
        return on_features.need_text(data)

    return initial_values.linear_start(np.random.default_rng((cfg.seed, 2)), data.classes, data.train.shape[1])


def train_head(
    cfg: Config,
    run: runs.Run,
    data: precomputed.FeatureSet,
    photos: on_features.Samples,
    start: np.ndarray,
    optim: OptimConfig,
    slot: str = "train",
) -> on_features.Trained:
    """Cross-entropy over batches of normalised features from `start`."""
    head, scale = jt.array(start), math.exp(cfg.logit_scale)
    batches = on_features.Streams([photos], [optim.batch], cfg.seed, cfg.every)
    rate = on_features.warmed_rate(optim, optim.epochs * cfg.every)
    learner = on_features.Learner({"weights": head}, lambda f: similarity.zero_shot_scores(f, head, scale), rate=rate)
    return on_features.train(run, optim, learner, batches, cfg.every, data, cfg.selection, slot)
