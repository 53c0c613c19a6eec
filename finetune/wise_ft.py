"""WiSE-FT: the zero-shot head tuned as a linear layer, then mixed with itself as it was: (1 - α) before + α after.

Wortsman et al., CVPR 2022, arXiv 2109.01903, eq. 1; on frozen features, the paper's "linear classifier".
Trains: C x (E + 1) parameters.   Needs: a few-shot split, text features; validation photos where α is searched.

    logits = W f + b,   before: W = exp(scale) T, b = 0,   after: AdamW on the cross-entropy, to its last epoch

Both ends fold the scale in: a head that did not would be mixed with one a hundred times as large. The result has the
accuracy along the whole way, on validation and on test photos; α is 0.5, the paper's advice, or the best on validation.
With `tuned`, a weight file made from `model` or the folder of a run that tuned its towers, nothing is trained: whole towers
are mixed, and the classes' prompts read by the mixed text tower; the mixture is written as model.safetensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeAlias

import numpy as np

from jclip.config import DataConfig, Dtype, OptimConfig, ReadWith, refuse_average
from jclip.data import splits
from jclip.errors import ConfigError, DataError, MisfitError
from jclip.features import extraction, heads, precomputed
from jclip.features import source as sources
from jclip.functional import losses, prototypes
from jclip.postponed import jt
from jclip.readers import safetensors, tensors
from jclip.train import on_features, scored_photos
from jclip.train import run as runs
from jclip.weights import checkpoint, stored_vocabulary
from jclip.weights.interpolation import between, grid, interpolate

Weights: TypeAlias = "dict[str, np.ndarray]"


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str = ""  # a name or weight file; precomputed features with text need none
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"  # int8 on CPUs, bf16 on those with AVX-512, both halves on a GPU
    templates: str = "openai80"
    views: int = 1  # augmented views of each training photo, each a row of its own
    augment: str = "wise_ft"
    tuned: str = ""  # end-to-end: the weight file or run folder, from here, that `model` became
    alpha: float = 0.5  # α: 0 is zero-shot, 1 the tuned head
    search: bool = False  # take the α of the best validation accuracy, the smallest among equals
    steps: int = 10  # α is looked at in steps of 1 / steps
    smoothing: float = 0.0  # of labels
    clip: float = 1.0  # bound of the gradient's global norm; 0: none
    optim: OptimConfig = field(  # the scale is folded in: weights are of order ten, and so are steps
        default_factory=lambda: OptimConfig(lr=1e-1, weight_decay=0.1, epochs=10, batch=512, warmup=0.1)
    )
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {
        "search=false": ("alpha",),
        "tuned=": ("optim", "smoothing", "clip", "views", "augment"),
    }

    def __post_init__(self):
        if not 0 <= self.alpha <= 1 or not 1 <= self.steps <= 100:
            raise ConfigError(f"alpha must be in [0, 1] and steps in [1, 100], got {self.alpha} and {self.steps}")
        if not 0 <= self.smoothing < 1 or self.clip < 0 or self.views < 1:
            raise ConfigError("smoothing must be in [0, 1), clip at least 0, views at least 1")
        if self.tuned:
            refuse_average(self.optim, "training: leave tuned out")


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Training, accuracy along α, the head at the chosen α, evaluation of val and test."""
    if cfg.tuned:
        return mix_towers(cfg, run)
    rows = extraction.TrainingRows(cfg.views, cfg.augment, cfg.seed, each_view=True)
    data = extraction.few_shot_features(cfg.data, sources.source_of(cfg), cfg.templates, rows)
    run.note(**data.facts)
    on_features.need_text(data)
    on_features.need_val(data, "last", searched="α" if cfg.search else "")
    if not len(data.train):
        raise DataError("there is nothing to learn from: the training split is empty")
    before = start(data)
    trained = train(cfg, run, data, before)
    after = trained.arrays

    def score_at(alpha: float) -> Callable[[np.ndarray], np.ndarray]:
        return scorer(interpolate(before, after, alpha), cfg)

    alphas = grid(cfg.steps)
    alpha = on_features.best_on_val(alphas, data, score_at)[0] if cfg.search else cfg.alpha
    learned = {**interpolate(before, after, alpha), "alpha": np.array([alpha])}
    run.save_learned(learned, classnames=data.classnames, width=data.train.shape[1])
    curve = {f"{part}_top1_at_{a:.2f}": data.top1(part, score_at(a))
             for part in ("val", "test") if len(getattr(data, part)) for a in alphas}  # fmt: skip
    return {
        **on_features.zero_shot_report(data),
        **scored_photos.measured(run, data, scorer(learned, cfg)),
        "alpha": alpha,
        **curve,
        **trained.metrics,
    }


def scorer(learned: Weights, cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with normalised features (N, E): scores (N, C)."""
    weight, bias = jt.array(learned["weight"]), jt.array(learned["bias"])
    return on_features.in_chunks(lambda f: prototypes.linear_scores(f, weight, bias))


def for_classes(learned: Weights, cfg: Config, classnames: Sequence[str], source: sources.ModelSource) -> Weights:
    """Mixed towers with the prompts of other class names. Raises `ConfigError` for a tuned head, which is of its own."""
    if not cfg.tuned:
        raise ConfigError("classes must be the run's own for wise_ft without `tuned`, a linear head, got others")
    new = heads.text_for(source, classnames, cfg.templates)
    return {
        **learned,
        "weight": np.float32(new["scale"][0]) * new["text"],
        "bias": np.zeros(len(classnames), np.float32),
    }


def start(data: precomputed.FeatureSet) -> Weights:
    """The zero-shot head as a linear layer: W = exp(scale) T (C, E), b = 0 (C,)."""
    return {"weight": np.float32(data.scale) * data.text, "bias": np.zeros(len(data.text), np.float32)}


def train(cfg: Config, run: runs.Run, data: precomputed.FeatureSet, before: Weights) -> on_features.Trained:
    """The head after the last epoch."""
    head = {k: jt.array(v) for k, v in before.items()}
    batches = on_features.Batches((data.train, data.train_labels), cfg.optim.batch, cfg.seed)

    def scores(features):
        return prototypes.linear_scores(features, **head)

    def loss(features, labels):
        given = scores(features)
        own = losses.cross_entropy(given, labels)
        if not cfg.smoothing:
            return own
        return (1 - cfg.smoothing) * own - cfg.smoothing * jt.nn.log_softmax(given, dim=1).mean()

    learner = on_features.Learner(head, scores, loss, clip=cfg.clip)
    return on_features.train(run, cfg.optim, learner, batches, batches.steps, data, selection="last")


def mix_towers(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Zero-shot with towers between `model` and `tuned`: at 0, α and 1, or along the whole way where α is searched."""
    if not cfg.model or cfg.data.features:
        raise ConfigError("mixing towers needs photos and the weights before tuning: set data.root and model")
    ends, photos = [sources.source_of(cfg), sources.source_of(cfg, cfg.tuned)], splits.read_photos(cfg.data)
    if ends[0].config != ends[1].config:
        raise MisfitError(f"{cfg.tuned} must have the architecture of {cfg.model} to be mixed with it, got another")
    file = run.file("model.safetensors")

    def at(alpha: float) -> precomputed.FeatureSet:
        save_mixture(file, *(end.checkpoint for end in ends), alpha)
        mixed = sources.ModelSource(file, dtype=cfg.dtype, draft=cfg.data.draft, upright=cfg.data.upright)
        return extraction.few_shot_features(cfg.data, mixed, cfg.templates, training=None, photos=photos)

    seen = {alpha: at(alpha) for alpha in (grid(cfg.steps) if cfg.search else sorted({0.0, cfg.alpha, 1.0}))}
    head_at = {alpha: heads.ZeroShotHead(data.text, data.scale) for alpha, data in seen.items()}
    on_features.need_val(seen[0.0], "last", searched="α" if cfg.search else "")
    alpha = max(seen, key=lambda a: seen[a].top1("val", head_at[a])) if cfg.search else cfg.alpha
    data = at(alpha)  # which leaves its file
    run.note(**data.facts, before_sha256=ends[0].checkpoint.sha256, tuned_sha256=ends[1].checkpoint.sha256)
    learned = {**start(data), "alpha": np.array([alpha])}
    run.save_learned(learned, classnames=data.classnames, width=data.text.shape[1])
    curve = {f"{part}_top1_at_{a:.2f}": some.top1(part, head_at[a])
             for part in ("val", "test") if len(getattr(data, part)) for a, some in seen.items()}  # fmt: skip
    zero_shot = seen[0.0].report(head_at[0.0], prefix="zero_shot_")
    return {**zero_shot, **data.report(scorer(learned, cfg)), "alpha": alpha, **curve}


def save_mixture(file: Path, before: checkpoint.Checkpoint, after: checkpoint.Checkpoint, alpha: float) -> None:
    """Writes what `interpolate` makes of two checkpoints tensor by tensor: no model is ever whole in memory."""
    ends = before.tensors, after.tensors
    checkpoint.compare_keys(*({k: t.shape or (1,) for k, t in end.items()} for end in ends), str(after.path))

    def mixed(name: str) -> tensors.LazyTensor:
        return tensors.LazyTensor(
            ends[0][name].shape, "float32", lambda: between(name, *(end[name].read() for end in ends), alpha)
        )

    merged = {name: mixed(name) for name in ends[0]}
    scale = merged["logit_scale"].read().reshape(())
    merged["logit_scale"] = checkpoint.in_memory(scale)
    described = checkpoint.describe(before.config, before.preprocess, float(scale), before.vocabulary)
    words = {k: checkpoint.in_memory(a) for k, a in stored_vocabulary.stored(before.vocabulary)[0].items()}
    dtypes = dict.fromkeys(merged, "float32") | dict.fromkeys(words, "uint8")
    safetensors.write_tensors(file, {**merged, **words}, dtypes, {"made_by": "wise_ft", **described})
