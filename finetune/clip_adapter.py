"""CLIP-Adapter: a bottleneck of two linear maps after the image tower, mixed with the feature it was given.

Gao et al., IJCV 2023, arXiv 2110.04544, eq. 3-6.   Trains: E²/2 parameters.   Needs: a few-shot split and text features;
validation photos where the ratio is searched.

    logits = s norm(r ReLU(W2 ReLU(W1 g)) + (1 - r) g) T',  r = 0: zero-shot

g is the tower's unnormalised feature. Nothing here has a bias, so the logits do not depend on its length: what
was learned serves for features of length one as well, such as precomputed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from jclip.config import DataConfig, Dtype, OptimConfig, ReadWith
from jclip.errors import ConfigError
from jclip.features import extraction, heads, precomputed
from jclip.features import source as sources
from jclip.functional import directions, initial_values, similarity
from jclip.postponed import jt
from jclip.train import on_features, scored_photos
from jclip.train import run as runs

NORMALISED = False  # features come unnormalised


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str = ""  # a name or weight file; precomputed features with text need none
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"  # int8 on CPUs, bf16 on those with AVX-512, both halves on a GPU
    templates: str = "simple"  # the authors': the data set's own template
    views: int = 10  # augmented views of each photo that epochs draw from
    augment: str = "coop"
    ratio: float = 0.2  # r where it is not searched
    search: bool = False  # train once for each r below, and keep the best on validation
    search_ratio: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # the first of the best is taken
    reduction: int = 4  # the bottleneck is E / reduction wide
    schedule: Literal["coop", "optim"] = "coop"  # coop: an epoch at 1e-5, then a cosine by epochs; or as optim says
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=1e-2, epochs=200, batch=32))
    selection: Literal["val", "last", "test"] = "last"  # the epoch that is kept; the authors' is the last
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {
        "search=true": ("search_ratio",),
        "search=false": ("ratio",),
        "schedule=optim": ("optim.schedule", "optim.warmup"),
    }

    def __post_init__(self):
        if self.views < 1 or self.reduction < 1:
            raise ConfigError(f"views and reduction must be at least 1, got {self.views} and {self.reduction}")
        if self.search and not self.search_ratio:
            raise ConfigError("search_ratio must have at least one value, or search be false")
        if not all(0 <= r < 1 for r in (self.ratio, *self.search_ratio)):
            raise ConfigError("ratio and search_ratio must be in [0, 1)")


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Training of the adapter, once or for each ratio, evaluation of val and test."""
    rows = extraction.TrainingRows(cfg.views, cfg.augment, cfg.seed, each_view=True)
    data = extraction.few_shot_features(cfg.data, sources.source_of(cfg), cfg.templates, rows, normalise=NORMALISED)
    run.note(**data.facts)
    on_features.need_text(data)
    on_features.need_val(data, cfg.selection, searched="the ratio" if cfg.search else "")
    ratio, trained = choose(cfg, run, data)
    learned = arrays(data, trained.arrays, ratio)
    run.save_learned(learned, classnames=data.classnames, width=data.train.shape[1])
    zero_shot = on_features.zero_shot_report(
        replace(data, val=directions.unit(data.val), test=directions.unit(data.test))
    )
    return {**zero_shot, **scored_photos.measured(run, data, scorer(learned, cfg)), "ratio": ratio, **trained.metrics}


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with features (N, E) of any length: scores (N, C)."""
    down, up, text = (jt.array(learned[k]) for k in ("down", "up", "text"))
    scale, ratio = (float(learned[k][0]) for k in ("scale", "ratio"))
    return on_features.in_chunks(lambda f: logits(f, down, up, text, scale, ratio))


def for_classes(
    learned: dict[str, np.ndarray], cfg: Config, classnames: Sequence[str], source: sources.ModelSource
) -> dict[str, np.ndarray]:
    """What was learned, for other class names: the adapter only changes the photos' features."""
    return {**learned, **heads.text_for(source, classnames, cfg.templates)}


def logits(features, down, up, text, scale: float, ratio: float):
    """Eq. 3-6 of features of any length: (B, E), W1 (E/4, E), W2 (E, E/4), (C, E) → (B, C)."""
    hidden = jt.nn.relu(jt.nn.matmul_transpose(features, down))
    adapted = jt.nn.relu(jt.nn.matmul_transpose(hidden, up))
    return similarity.zero_shot_scores(similarity.normalise(ratio * adapted + (1 - ratio) * features), text, scale)


def choose(cfg: Config, run: runs.Run, data: precomputed.FeatureSet) -> tuple[float, on_features.Trained]:
    """The ratio and what was trained with it: the config's, or the best on validation of a training for each."""
    if not cfg.search:
        return cfg.ratio, train_adapter(cfg, run, data, cfg.ratio)
    trained = {ratio: train_adapter(cfg, run, data, ratio) for ratio in cfg.search_ratio}
    ratio, _ = on_features.best_on_val(trained, data, lambda r: scorer(arrays(data, trained[r].arrays, r), cfg))
    return ratio, trained[ratio]


def train_adapter(cfg: Config, run: runs.Run, data: precomputed.FeatureSet, ratio: float) -> on_features.Trained:
    """Cross-entropy on the logits above; from photos, an epoch draws as many views as there are photos."""
    params = {k: jt.array(a) for k, a in initial(cfg, data.train.shape[1]).items()}
    text = jt.array(data.text).stop_grad()
    several = not cfg.data.features and cfg.augment != "none"
    rows = len(data.train) // cfg.views if several else len(data.train)
    batches = on_features.Batches((data.train, data.train_labels), cfg.optim.batch, cfg.seed, rows)

    def scores(features):
        return logits(features, **params, text=text, scale=data.scale, ratio=ratio)

    rate = on_features.coop_rate(cfg.optim, batches.steps) if cfg.schedule == "coop" else None
    learner = on_features.Learner(params, scores, rate=rate)
    return on_features.train(
        run, cfg.optim, learner, batches, batches.steps, data, cfg.selection, slot=f"ratio-{ratio}"
    )


def arrays(data: precomputed.FeatureSet, adapter: dict[str, np.ndarray], ratio: float) -> dict[str, np.ndarray]:
    """What `scorer` needs, by name."""
    return {**adapter, "text": data.text, "scale": np.array([data.scale]), "ratio": np.array([ratio])}


def initial(cfg: Config, width: int) -> dict[str, np.ndarray]:
    """W1 `down` and W2 `up` as torch's Linear starts. Raises `ConfigError`."""
    hidden = width // cfg.reduction
    if not hidden:
        raise ConfigError(f"reduction must be at most {width}, the width of the features, got {cfg.reduction}")
    rng = np.random.default_rng((cfg.seed, 0xADA))
    return {
        "down": initial_values.linear_start(rng, hidden, width),
        "up": initial_values.linear_start(rng, width, hidden),
    }
