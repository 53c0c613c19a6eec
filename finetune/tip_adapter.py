"""Tip-Adapter: the support photos' features as the keys of a cache, their labels as its values, beside zero-shot.

Zhang et al., ECCV 2022, arXiv 2207.09519, eq. 5-6.   Trains: nothing, or with `train: true` (-F) the S x E keys.
Needs: a few-shot split with validation photos where something is searched or chosen.

    logits = s f T' + α exp(-β (1 - f K')) Y
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from jclip.config import DataConfig, Dtype, OptimConfig, ReadWith, refuse_average
from jclip.errors import ConfigError
from jclip.features import extraction, precomputed
from jclip.features import source as sources
from jclip.functional import similarity
from jclip.postponed import jt
from jclip.train import on_features, scored_photos
from jclip.train import run as runs


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str = ""  # a name or weight file; precomputed features with text need none
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"  # int8 on CPUs, bf16 on those with AVX-512, both halves on a GPU
    templates: str = "openai7"
    views: int = 10  # augmented views averaged into each key
    augment: str = "tip_adapter"
    alpha: float = 1.17  # α: weight of the cache; where searched, the start and the value that trains
    beta: float = 1.0  # β: sharpness of the cache
    search: bool = False  # look for α and β on validation, before and after training
    search_alpha: float = 3.0  # upper ends of the grids, which start at 0.1
    search_beta: float = 7.0
    search_steps: tuple[int, int] = (20, 200)  # values of α, of β
    train: bool = False  # Tip-Adapter-F
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-3, eps=1e-4, weight_decay=1e-2, epochs=20, batch=256)
    )
    selection: Literal["val", "last", "test"] = "val"  # the epoch whose keys are kept; "test" to compare with papers
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {
        "search=true": ("search_alpha", "search_beta", "search_steps"),
        "train=true": ("optim", "selection"),
    }

    def __post_init__(self):
        if self.views < 1 or min(self.search_steps) < 1:
            raise ConfigError(
                f"views and search_steps must be at least 1, got {self.views} and {list(self.search_steps)}"
            )
        if self.alpha < 0 or self.beta <= 0:
            raise ConfigError(f"alpha must be at least 0 and beta above 0, got {self.alpha} and {self.beta}")
        if min(self.search_alpha, self.search_beta) <= 0.1:
            raise ConfigError("search_alpha and search_beta must be above 0.1, where their grids start")
        if not self.train:
            refuse_average(self.optim, "train=true")


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Cache, search, training if asked for, evaluation of val and test."""
    source = sources.source_of(cfg)
    rows = extraction.TrainingRows(cfg.views, cfg.augment, cfg.seed)
    data = extraction.few_shot_features(cfg.data, source, cfg.templates, rows)
    run.note(**data.facts)
    on_features.need_text(data)
    on_features.need_val(
        data, cfg.selection if cfg.train else "last", searched="α and β (search)" if cfg.search else ""
    )
    values = on_features.one_hot(data.train_labels, data.classes)

    keys, alpha, beta, trained = data.train, cfg.alpha, cfg.beta, {}
    if cfg.train:
        keys, trained = train_keys(cfg, run, data, values, source)
    if cfg.search:
        alpha, beta = search(cfg, data, keys, values)
    learned = {
        "keys": keys, "values": values, "text": data.text,
        "scale": np.array([data.scale]), "alpha": np.array([alpha]), "beta": np.array([beta]),
    }  # fmt: skip
    run.save_learned(learned, classnames=data.classnames, width=data.text.shape[1])
    return {
        **on_features.zero_shot_report(data),
        **scored_photos.measured(run, data, scorer(learned, cfg)),
        "alpha": alpha,
        "beta": beta,
        **trained,
    }


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with normalised features (N, E): scores (N, C)."""
    keys, values, text = (jt.array(learned[k]) for k in ("keys", "values", "text"))
    scale, alpha, beta = (float(learned[k][0]) for k in ("scale", "alpha", "beta"))
    return on_features.in_chunks(lambda f: logits(f, keys, values, text, scale, alpha, beta))


def logits(features, keys, values, text, scale: float, alpha: float, beta: float):
    """Eq. 6: zero-shot scores plus α times the cache's."""
    return similarity.zero_shot_scores(features, text, scale) + alpha * similarity.cache_scores(
        features, keys, values, beta
    )


def train_keys(
    cfg: Config, run: runs.Run, data: precomputed.FeatureSet, values: np.ndarray, source: sources.ModelSource | None
) -> tuple[np.ndarray, dict[str, float]]:
    """-F: the keys as weights of a bias-free layer, cross-entropy on the logits above with α and β held fixed.

    From photos, every epoch sees a fresh augmented view, as the authors do; precomputed features have one view. The
    keys are not renormalised. Returns the keys of the chosen epoch, and test accuracy of the last and the best epoch.
    """
    keys, fixed = jt.array(data.train), [jt.array(values).stop_grad(), jt.array(data.text).stop_grad()]
    size = min(cfg.optim.batch, len(data.train))

    def batches(epoch: int):
        features, labels = extraction.training_view(
            cfg.data, source, data, cfg.augment, cfg.seed, view=cfg.views + epoch
        )
        return on_features.Batches([features, labels], size, cfg.seed)(epoch)

    def scores(features):
        return logits(features, keys, *fixed, data.scale, cfg.alpha, cfg.beta)

    steps = -(-len(data.train) // size)
    learner = on_features.Learner({"keys": keys}, scores)
    trained = on_features.train(run, cfg.optim, learner, batches, steps, data, cfg.selection)
    return trained.arrays["keys"], trained.metrics


def search(cfg: Config, data: precomputed.FeatureSet, keys: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """α and β of the best validation accuracy over the authors' grid; the first, β outer and α inner, among equals."""
    alphas, betas = grid(cfg.search_alpha, cfg.search_steps[0]), grid(cfg.search_beta, cfg.search_steps[1])
    cache = {"keys": keys, "values": values[:, None], "text": data.text}
    right = on_features.cache_hits(data, data.val, cache, alphas, betas)[:, :, 0]
    best = np.unravel_index(right.argmax(), right.shape)
    return float(alphas[best[1]]), float(betas[best[0]])


def grid(high: float, steps: int) -> np.ndarray:
    """i (high - 0.1) / steps + 0.1 for i = 0 … steps - 1: the authors' grid, which leaves out `high` itself."""
    return np.arange(steps) * (high - 0.1) / steps + 0.1
