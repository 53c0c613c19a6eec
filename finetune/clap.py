"""CLAP: one prototype per class, trained from its text feature and kept near it, the nearer the better zero-shot is there.

Silva-Rodriguez et al., CVPR 2024, arXiv 2312.12730, eq. 4-9.   Trains: C x E parameters.
Needs: a few-shot split, text features.

    logits = s f · c_k / ‖c_k‖        loss = cross-entropy + mean_k λ_k ‖c_k - t_k‖²

λ_k is the mean zero-shot probability of class k on its own support photos. `constraint: none` is the paper's ZS-LP;
`adaptive` moves λ after every epoch: λ ← max(0, λ + ρ ‖c_k - t_k‖²), then ρ ← ‖c_k - t_k‖², from ρ = 0. The same settings
serve everywhere: nothing is chosen, the last epoch is kept. An epoch is as many rows as there are photos, redrawn from
the rows of all views, in whole batches. Text features come here with length one and get back a common `text_length`, as
the authors don't normalise theirs: step and penalty mean the same only at that length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from jclip.config import DataConfig, Dtype, OptimConfig
from jclip.errors import ConfigError, DataError
from jclip.features import extraction, precomputed
from jclip.features import source as sources
from jclip.functional import losses, metrics, prototypes
from jclip.postponed import jt
from jclip.train import loop, on_features, scored_photos
from jclip.train import optim as optimisation
from jclip.train import run as runs


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str = ""  # a name or weight file; precomputed features with text need none
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"  # int8 on CPUs, bf16 on those with AVX-512, both halves on a GPU
    templates: str = "openai7"
    views: int = 20  # augmented views of each training photo, each a row of its own
    augment: str = "coop"
    constraint: Literal["none", "l2", "adaptive"] = "l2"
    text_length: float = 10.0  # of t_k: OpenAI's models make text features about so long
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(name="sgd", lr=0.1, weight_decay=0.0, epochs=300, batch=256)
    )
    warmup_epochs: int = 1  # at warmup_lr; the cosine starts after them and does not reach its end
    warmup_lr: float = 1e-5
    seed: int = 1

    def __post_init__(self):
        if self.views < 1 or self.text_length <= 0:
            raise ConfigError(
                f"views must be at least 1 and text_length above 0, got {self.views} and {self.text_length}"
            )
        if self.warmup_epochs < 0 or self.warmup_lr < 0:
            raise ConfigError(
                f"warmup_epochs and warmup_lr must be at least 0, got {self.warmup_epochs} and {self.warmup_lr}"
            )
        if self.optim.warmup:
            raise ConfigError("optim.warmup counts steps; here whole epochs warm up: set warmup_epochs")


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Multipliers from zero-shot, training, evaluation of val and test."""
    rows = extraction.TrainingRows(cfg.views, cfg.augment, cfg.seed, each_view=True)
    data = extraction.few_shot_features(cfg.data, sources.source_of(cfg), cfg.templates, rows)
    run.note(**data.facts)
    on_features.need_text(data)
    if not len(data.train):
        raise DataError("there is nothing to learn from: the training split is empty")
    trained = train(cfg, run, data)
    learned = {"prototypes": trained.arrays["prototypes"], "scale": np.array([data.scale])}
    run.save_learned(learned, classnames=data.classnames, width=data.train.shape[1])
    metrics = {"mean_multiplier": float(trained.arrays["multipliers"].mean())} if cfg.constraint != "none" else {}
    return {
        **on_features.zero_shot_report(data),
        **scored_photos.measured(run, data, scorer(learned, cfg)),
        **metrics,
        **trained.metrics,
    }


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with normalised features (N, E): scores (N, C)."""
    weights, scale = jt.array(learned["prototypes"]), float(learned["scale"][0])
    return on_features.in_chunks(lambda f: prototypes.cosine_scores(f, weights, scale))


def train(cfg: Config, run: runs.Run, data: precomputed.FeatureSet) -> on_features.Trained:
    """The prototypes (C, E) and the multipliers (C,) after the last epoch."""
    text = jt.array(np.float32(cfg.text_length) * data.text).stop_grad()
    weights = jt.array(text.numpy())
    held = jt.array(multipliers(data)).stop_grad()
    growth = jt.zeros_like(held).stop_grad()  # ρ
    batches = epochs(cfg, data)
    optim = optimisation.optimiser(cfg.optim, {"prototypes": weights})
    state = optimisation.TrainState(optim, {"multipliers": held, "growth": growth})

    def scores(features):
        return prototypes.cosine_scores(features, weights, data.scale)

    def distances():
        return ((weights - text) ** 2).sum(dim=1)

    def raise_multipliers() -> None:
        with jt.no_grad():
            away = distances()
            held.update(jt.maximum(held + growth * away, 0.0))
            growth.update(away)

    def step(batch, number: int):
        features, labels = batch
        optim.lr = rate(cfg, number // batches.steps)
        loss = losses.cross_entropy(scores(features), labels)
        if cfg.constraint != "none":
            loss = loss + (held * distances()).mean()
        optim.step(loss)
        if cfg.constraint == "adaptive" and (number + 1) % batches.steps == 0:
            raise_multipliers()
        return loss

    seen, count = on_features.watched(data, "last"), cfg.optim.trained_epochs
    evaluate = seen and (lambda: {"top1": seen.top1(scores)})  # reported, not used to choose
    outcome = loop.fit(
        step, batches, state=state, run=run, epochs=count, evaluate=evaluate, steps=count * batches.steps
    )
    return on_features.last_and_best(outcome, state, scores, data, "last")


def epochs(cfg: Config, data: precomputed.FeatureSet) -> on_features.Batches:
    """Batches of the rows of all views: as many whole ones in each epoch as the photos fill, at least one."""
    views = 1 if cfg.data.features or cfg.augment == "none" else cfg.views  # precomputed features have one view
    rows = max(len(data.train) // views // cfg.optim.batch, 1) * cfg.optim.batch
    return on_features.Batches((data.train, data.train_labels), cfg.optim.batch, cfg.seed, rows=rows)


def rate(cfg: Config, epoch: int) -> float:
    """Learning rate of an epoch from 0: warm-up, then half a cosine that counts from the first epoch after it."""
    if epoch < cfg.warmup_epochs:
        return cfg.warmup_lr
    if cfg.optim.schedule != "cosine":
        return optimisation.learning_rate(cfg.optim, epoch, cfg.optim.epochs)
    return optimisation.cosine(epoch - cfg.warmup_epochs, cfg.optim.epochs, cfg.optim.lr)


def multipliers(data: precomputed.FeatureSet) -> np.ndarray:
    """λ: (C,) mean zero-shot probability of each class on its own rows; 1 for a class without any, which is held most."""
    scores = data.scale * (data.train.astype(np.float64) @ data.text.astype(np.float64).T)
    return np.nan_to_num(prototypes.own_class_means(metrics.softmax(scores), data.train_labels), nan=1.0).astype(
        np.float32
    )
