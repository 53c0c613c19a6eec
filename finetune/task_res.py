"""TaskRes: a residual beside each class's text feature, the towers and the text features frozen.

Yu et al., CVPR 2023, arXiv 2211.10277, eq. 4-5.   Trains: C x E parameters.   Needs: a few-shot split and text features.

    logits = s f norm(T + α x)',  x = 0 at the start: zero-shot

T are template means that were *not* normalised, as the authors take them: with a model its raw text features, of
precomputed features the stored rows of length one. T of length l at α is T of length one at α / l: ViT-B/32's raw rows
are several units long, so the authors' α = 0.5 moves stored rows further.

The authors' Adam couples its decay, g + λ x; AdamW with weight_decay 0 on the loss + λ/2 |x|² is the same step, and what
happens here: `decay` is λ, and `optim.weight_decay` would be a decoupled one on top.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from jclip.config import DataConfig, Dtype, OptimConfig, ReadWith
from jclip.errors import ConfigError
from jclip.features import extraction, heads, precomputed
from jclip.features import source as sources
from jclip.functional import directions, losses, similarity
from jclip.postponed import jt
from jclip.prompts.templates import class_prompts, load_templates
from jclip.train import on_features, scored_photos
from jclip.train import run as runs


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str = ""  # a name or weight file; precomputed features with text need none
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"  # int8 on CPUs, bf16 on those with AVX-512, both halves on a GPU
    templates: str = "simple"  # the authors': the data set's own template; ImageNet: openai7 and this one
    views: int = 10  # augmented views of each photo that epochs draw from
    augment: str = "coop"
    alpha: float = 0.5  # α: 1.0 for Flowers102
    decay: float = 5e-4  # λ of the coupled decay
    schedule: Literal["coop", "optim"] = "coop"  # coop: an epoch at 1e-5, then a cosine by epochs; or as optim says
    optim: OptimConfig = field(  # the authors' 2e-4 on ImageNet; 100 epochs up to 4 shots
        default_factory=lambda: OptimConfig(lr=2e-3, weight_decay=0.0, epochs=200, batch=256)
    )
    selection: Literal["val", "last", "test"] = "last"  # the epoch that is kept; the authors' is the last
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {"schedule=optim": ("optim.schedule", "optim.warmup")}

    def __post_init__(self):
        if self.views < 1 or self.decay < 0:
            raise ConfigError(f"views must be at least 1 and decay at least 0, got {self.views} and {self.decay}")
        if self.alpha <= 0:
            raise ConfigError(f"alpha must be above 0, got {self.alpha}")


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Base text features, training of the residual, evaluation of val and test."""
    source = sources.source_of(cfg)
    rows = extraction.TrainingRows(cfg.views, cfg.augment, cfg.seed, each_view=True)
    data = extraction.few_shot_features(cfg.data, source, cfg.templates, rows)
    run.note(**data.facts)
    on_features.need_text(data)
    on_features.need_val(data, cfg.selection)
    text = base_text(cfg, data, source)
    trained = train_residual(cfg, run, data, text)
    learned = arrays(cfg, text, data.scale, trained.arrays["residual"])
    run.save_learned(learned, classnames=data.classnames, width=data.train.shape[1])
    return {
        **on_features.zero_shot_report(data),
        **scored_photos.measured(run, data, scorer(learned, cfg)),
        **trained.metrics,
    }


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with normalised features (N, E): scores (N, C)."""
    text = learned["text"] + np.float32(learned["alpha"][0]) * learned["residual"]
    return heads.ZeroShotHead(directions.unit(text), float(learned["scale"][0]))


def logits(features, text, residual, scale: float, alpha: float):
    """Eq. 5 of normalised features: (B, E), (C, E), (C, E) → (B, C)."""
    return similarity.zero_shot_scores(features, similarity.normalise(text + alpha * residual), scale)


def train_residual(cfg: Config, run: runs.Run, data: precomputed.FeatureSet, text: np.ndarray) -> on_features.Trained:
    """Cross-entropy on the logits above plus λ/2 |x|²; from photos, an epoch draws as many views as there are photos."""
    residual, fixed = jt.zeros(text.shape), jt.array(text).stop_grad()
    several = not cfg.data.features and cfg.augment != "none"
    rows = len(data.train) // cfg.views if several else len(data.train)
    batches = on_features.Batches((data.train, data.train_labels), cfg.optim.batch, cfg.seed, rows)

    def scores(features):
        return logits(features, fixed, residual, data.scale, cfg.alpha)

    def loss(features, labels):
        return losses.cross_entropy(scores(features), labels) + cfg.decay / 2 * (residual * residual).sum()

    rate = on_features.coop_rate(cfg.optim, batches.steps) if cfg.schedule == "coop" else None
    learner = on_features.Learner({"residual": residual}, scores, loss, rate)
    return on_features.train(run, cfg.optim, learner, batches, batches.steps, data, cfg.selection)


def arrays(cfg: Config, text: np.ndarray, scale: float, residual: np.ndarray) -> dict[str, np.ndarray]:
    """What `scorer` needs, by name."""
    return {"text": text, "residual": residual, "scale": np.array([scale]), "alpha": np.array([cfg.alpha])}


def base_text(cfg: Config, data: precomputed.FeatureSet, source: sources.ModelSource | None) -> np.ndarray:
    """T (C, E): means over the templates of the model's raw text features, or the precomputed rows without one.

    Raises `ConfigError` for a model of another width.
    """
    if source is None or not data.classnames:
        return data.text
    prompts = class_prompts(data.classnames, load_templates(cfg.templates))
    raw, labels = heads.prompt_features(source, prompts, data.text.shape[1])
    counts = np.bincount(labels)
    return np.add.reduceat(raw, np.cumsum(counts) - counts, axis=0) / counts[:, None].astype(np.float32)
