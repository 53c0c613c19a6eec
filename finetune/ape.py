"""APE: Tip-Adapter's cache on the channels that discriminate between classes, its keys weighted by how text sees them.

Zhu et al., ICCV 2023, arXiv 2304.01195, section 3.   Trains: nothing, or with `train: true` (-T) C x Q + S parameters.
Needs: a few-shot split with text features, and validation photos where something is searched or chosen.

    logits = s f T' + α exp(-β (1 - f' F')) (Y ∘ exp(γ u)),   u_i = Σ_k Y_ik log2(Y_ik / softmax(F' T')_ik)

f', F' and T' (here) are the Q chosen channels, each row of length one again. -T keeps all channels, and learns a residual
per class on the chosen ones, r, for text and keys alike, and a weight per key: T_k + r_k, F_i + r_y(i), Y_i v_i.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from jclip.config import DataConfig, Dtype, OptimConfig, ReadWith, refuse_average
from jclip.errors import ConfigError, DataError
from jclip.features import extraction, precomputed
from jclip.features import source as sources
from jclip.functional import directions, metrics, similarity
from jclip.postponed import jt
from jclip.train import on_features, scored_photos
from jclip.train import run as runs


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str = ""  # a name or weight file; precomputed features with text need none
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"  # int8 on CPUs, bf16 on those with AVX-512, both halves on a GPU
    templates: str = "openai7"  # the authors add sentences of a language model: openai7+sentences.json
    views: int = 10  # augmented views averaged into each key
    augment: str = "tip_adapter"
    channels: float = 0.7  # Q: how many of the best are kept; up to 1 a share of all
    criterion: tuple[float, float] = (0.7, 0.3)  # weights of similarity between classes and of variance over them
    alpha: float = 1.0  # α, β, γ: what is taken where nothing is searched, α and β what -T trains with
    beta: float = 1.0
    gamma: float = 0.1
    search: bool = True  # look for α, β and, without training, γ on validation
    search_alpha: float = 7.0  # upper ends of the grids; those of α and β start at 0.1, that of γ at 0
    search_beta: float = 7.0
    search_gamma: float = 1.0
    search_steps: tuple[int, int, int] = (20, 200, 5)  # values of α, of β, of γ
    train: bool = False  # APE-T
    train_channels: float = 0.88  # Q and the criterion of -T, which looks at the text alone
    train_criterion: tuple[float, float] = (0.2, 0.8)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-3, eps=1e-3, weight_decay=0.1, epochs=20, batch=256)
    )
    selection: Literal["val", "last", "test"] = "val"  # the epoch of -T that is kept; test only to compare with papers
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {
        "search=true": ("search_alpha", "search_beta", "search_gamma", "search_steps"),
        "train=true": ("optim", "selection", "train_channels", "train_criterion"),
        "train=false": ("channels", "criterion", "gamma", "search_gamma"),
    }

    def __post_init__(self):
        if min(self.channels, self.train_channels) <= 0:
            raise ConfigError("channels and train_channels must be above 0 (up to 1 a share of all, above 1 a count)")
        if min(self.search_steps) < 1 or self.views < 1:
            raise ConfigError("search_steps and views must be at least 1")
        if min(self.alpha, self.gamma) < 0 or self.beta <= 0:
            raise ConfigError(
                f"alpha and gamma must be at least 0 and beta above 0, got {self.alpha}, {self.gamma} and {self.beta}"
            )
        if min(self.search_alpha, self.search_beta) <= 0.1 or self.search_gamma <= 0:
            raise ConfigError(
                "search_alpha and search_beta must be above 0.1, search_gamma above 0: their grids start there"
            )
        if any(min(w) < 0 or not any(w) for w in (self.criterion, self.train_criterion)):
            raise ConfigError("criterion and train_criterion must be two weights of at least 0, one of them above 0")
        if not self.train:
            refuse_average(self.optim, "train=true")


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Channels, cache, training if asked for, search, evaluation of val and test."""
    source = sources.source_of(cfg)
    rows = extraction.TrainingRows(cfg.views, cfg.augment, cfg.seed)
    data = extraction.few_shot_features(cfg.data, source, cfg.templates, rows)
    run.note(**data.facts)
    on_features.need_text(data)
    if cfg.search:
        on_features.need_val(data, "last", searched="α, β and γ (search)")
    cache, metrics = train(cfg, run, data, source) if cfg.train else (training_free(cfg, data), {})
    if cfg.search:
        cache |= search(cfg, data, cache)
    metrics |= {k: float(cache[k][0]) for k in ("alpha", "beta", "gamma")}
    learned = fold(cache)
    run.save_learned(learned, classnames=data.classnames, width=data.text.shape[1])
    return {**on_features.zero_shot_report(data), **scored_photos.measured(run, data, scorer(learned, cfg)), **metrics}


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with normalised features (N, E): scores (N, C)."""
    keys, values, text = (jt.array(learned[k]) for k in ("keys", "values", "text"))
    scale, alpha, beta = (float(learned[k][0]) for k in ("scale", "alpha", "beta"))
    zero_shot = on_features.in_chunks(lambda f: similarity.zero_shot_scores(f, text, scale))
    cache = on_features.in_chunks(lambda f: alpha * similarity.cache_scores(f, keys, values, beta))
    return lambda f: zero_shot(f) + cache(chosen(f, learned["channels"]))


def chosen(features: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """(N, E) → (N, Q) of length one; all channels are left as they are."""
    return features if len(channels) == features.shape[1] else directions.unit(features[:, channels])


def choose_channels(
    text: np.ndarray, keys: np.ndarray, labels: np.ndarray, weights: tuple[float, float], wanted: float
) -> np.ndarray:
    """Ids, ascending, of the channels with the best w1 variance - w0 similarity: text (C, E), keys (S, E), which may be none.

    Similarity is the mean of x_d z_d over all ordered pairs x, z of different classes, of text and keys alike: all pairs
    less those within a class. Variance is that of the text over classes.
    """
    classes, width = text.shape
    if classes < 2:
        raise DataError("channels are chosen by how classes differ: there must be at least two classes, got one")
    count = round(wanted * width) if wanted <= 1 else round(wanted)
    if not 1 <= count <= width:
        raise ConfigError(f"channels and train_channels must keep 1 to {width} of the features, got {count}")
    members, owners = np.concatenate([text, keys]).astype(np.float64), np.concatenate([np.arange(classes), labels])
    hot = np.eye(classes)[owners]
    sums, sizes = hot.T @ members, hot.sum(axis=0)
    similarity = (sums.sum(axis=0) ** 2 - (sums**2).sum(axis=0)) / (sizes.sum() ** 2 - (sizes**2).sum())
    score = weights[1] * text.astype(np.float64).var(axis=0, ddof=1) - weights[0] * similarity
    return np.sort(np.argsort(-score, kind="stable")[:count])


def training_free(cfg: Config, data: precomputed.FeatureSet) -> dict[str, np.ndarray]:
    """The cache of the chosen channels, with u of each key (S,): what `search` and `fold` take."""
    channels = choose_channels(data.text, data.train, data.train_labels, cfg.criterion, cfg.channels)
    keys, values = chosen(data.train, channels), on_features.one_hot(data.train_labels, data.classes)
    u = divergence(keys, chosen(data.text, channels), values)
    cache = {"keys": keys, "values": values, "divergence": u, "text": data.text, "channels": channels}
    return cache | scalars(scale=data.scale, alpha=cfg.alpha, beta=cfg.beta, gamma=cfg.gamma)


def divergence(keys: np.ndarray, text: np.ndarray, values: np.ndarray) -> np.ndarray:
    """u (S,) of keys (S, Q), text (C, Q) and one-hot values (S, C): what the text, at a scale of 1, misses of each key."""
    seen = metrics.softmax(keys.astype(np.float64) @ text.T)
    return (values * np.log2((values + 1e-6) / (seen + 1e-6))).sum(axis=1)


def fold(cache: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The cache with exp(γ u) multiplied into its values: what a finished run needs."""
    values = cache["values"] * np.exp(cache["gamma"] * cache["divergence"])[:, None]
    return {k: cache[k] for k in ("keys", "text", "channels", "scale", "alpha", "beta")} | {
        "values": np.float32(values)
    }


def train(
    cfg: Config, run: runs.Run, data: precomputed.FeatureSet, source: sources.ModelSource | None
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """-T: r (C, Q) and v (1, S) by cross-entropy on the logits, with α and β held fixed. Returns (cache, metrics).

    From photos, every epoch sees a fresh augmented view, as the authors do; precomputed features have one view.
    """
    nothing = data.train[:0], data.train_labels[:0]
    channels = choose_channels(data.text, *nothing, cfg.train_criterion, cfg.train_channels)
    hot = on_features.one_hot(data.train_labels, data.classes)
    params = {
        "residual": jt.array(np.zeros((data.classes, len(channels)), np.float32)),
        "weights": jt.array(np.ones((1, len(hot)), np.float32)),
    }
    fixed = {"text": data.text, "keys": data.train, "values": hot, "owners": np.ascontiguousarray(hot.T)}
    constants = {k: jt.array(v).stop_grad() for k, v in fixed.items()}
    picked = jt.array(channels.astype(np.int32)).stop_grad()

    def scores(features):
        return trained_logits(features, picked, params, constants, data.scale, cfg.alpha, cfg.beta)

    def batches(epoch: int):
        rows = extraction.training_view(cfg.data, source, data, cfg.augment, cfg.seed, view=cfg.views + epoch)
        return on_features.Batches(rows, cfg.optim.batch, cfg.seed)(epoch)

    steps = -(-len(hot) // min(cfg.optim.batch, len(hot)))
    trained = on_features.train(
        run, cfg.optim, on_features.Learner(params, scores), batches, steps, data, cfg.selection
    )
    return moved(cfg, data, channels, trained.arrays), trained.metrics


def trained_logits(features, channels, params, constants, scale: float, alpha: float, beta: float):
    """-T: (B, E) → (B, C). A residual adds the same to every product with its class: it is multiplied once."""
    moved_by = jt.nn.matmul_transpose(features[:, channels], params["residual"])  # (B, C)
    affinity = jt.nn.matmul_transpose(features, constants["keys"]) + jt.matmul(moved_by, constants["owners"])
    cache = jt.matmul(params["weights"] * jt.exp(beta * affinity - beta), constants["values"])
    return scale * (jt.nn.matmul_transpose(features, constants["text"]) + moved_by) + alpha * cache


def moved(
    cfg: Config, data: precomputed.FeatureSet, channels: np.ndarray, arrays: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The cache of trained r and v, all channels of it, not renormalised."""
    step, values = np.zeros_like(data.text), on_features.one_hot(data.train_labels, data.classes) * arrays["weights"].T
    step[:, channels] = arrays["residual"]
    cache = {"keys": data.train + step[data.train_labels], "values": values, "divergence": np.zeros(len(values))}
    cache |= {"text": data.text + step, "channels": np.arange(data.text.shape[1])}
    return cache | scalars(scale=data.scale, alpha=cfg.alpha, beta=cfg.beta, gamma=0.0)


def search(cfg: Config, data: precomputed.FeatureSet, cache: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """α, β and γ of the best validation accuracy; the first, β outer, then α, then γ, among equals.

    After training there is no γ.
    """
    alphas = grid(0.1, cfg.search_alpha, cfg.search_steps[0])
    betas = grid(0.1, cfg.search_beta, cfg.search_steps[1])
    gammas = np.zeros(1) if cfg.train else grid(0.0, cfg.search_gamma, cfg.search_steps[2])
    weights = np.exp(cache["divergence"][:, None] * gammas).astype(np.float32)  # (S, G)
    kinds = cache | {"values": weights[:, :, None] * cache["values"][:, None]}
    right = on_features.cache_hits(data, chosen(data.val, cache["channels"]), kinds, alphas, betas)
    best = np.unravel_index(right.argmax(), right.shape)
    return scalars(beta=betas[best[0]], alpha=alphas[best[1]], gamma=gammas[best[2]])


def grid(low: float, high: float, steps: int) -> np.ndarray:
    """i (high - low) / steps + low for i = 0 … steps - 1: the authors' grids, which leave out `high` itself."""
    return np.arange(steps) * (high - low) / steps + low


def scalars(**named: float) -> dict[str, np.ndarray]:
    """Scalars as arrays of one element, as they are saved."""
    return {k: np.array([float(v)]) for k, v in named.items()}
