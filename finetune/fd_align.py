"""FD-Align: the image tower tuned on a few photos per class, its view of their style regularised towards the frozen model's.

Song et al., NeurIPS 2023, arXiv 2310.15105, section 3.   Trains: the image tower and a linear head, (E + 1) x C parameters.
Needs: a few-shot split of photos, with validation photos where the epoch is chosen.

    L = CE(f W' + b, label) + β mean_ij q0_ij (log q0_ij - log q_ij),   q = softmax(f S'),   q0 = softmax(f0 S')

f0 is what the tower made of the same view before it was tuned. S are spurious prototypes, of all that is in a prompt but the
class: each template's texts averaged over the classes, times s; those unlike the others left out; centres of the rest. As in
the authors' code, the mean is over photos and prototypes, W starts as s T, and both parts learn at one rate.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from jclip import kernels
from jclip.config import DataConfig, Dtype, OptimConfig, ReadWith
from jclip.data import splits
from jclip.errors import ConfigError
from jclip.features import extraction, heads, precomputed
from jclip.features import source as sources
from jclip.functional import directions, losses, similarity
from jclip.functional import prototypes as class_prototypes
from jclip.model import clip, trainable
from jclip.postponed import jt
from jclip.prompts.templates import class_prompts, load_templates
from jclip.train import loop, on_features, on_photos, several_ranks
from jclip.train import optim as optimisation
from jclip.train import run as runs
from jclip.weights import checkpoint

Weights: TypeAlias = "dict[str, np.ndarray]"


@dataclass(frozen=True)
class Spurious:
    """How the templates' mean texts become the prototypes S."""

    outliers: Literal["isolation_forest", "lof", "none"] = "isolation_forest"  # how outliers are found
    kept: int = 60  # the most normal templates; with none, all are
    clusters: int = 20  # centres of k-means; 0: the kept templates themselves
    scale: float = 0.0  # s of S; 0: the model's, which is 100 of all released ones

    def __post_init__(self):
        if self.kept < 1 or self.clusters < 0 or self.scale < 0:
            raise ConfigError("spurious.kept must be at least 1, spurious.clusters and spurious.scale at least 0")


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"  # bf16: linear maps multiply in it while training, on CPUs with AVX-512
    templates: str = "openai80"  # of the head's start, and of the prototypes
    unit_texts: bool = True  # texts get length one before they are averaged, and not only after it
    spurious: Spurious = field(default_factory=Spurious)
    beta: float = 20.0  # β
    augment: str = "fd_align"
    train_head: bool = True  # off: the head stays s T
    head_first: bool = False  # train the head alone before, on frozen features of augmented views
    head_views: int = 10  # which its epochs take in turn; 0: each epoch a new one, as the authors do
    head_optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(name="sgd", nesterov=True, lr=0.5, weight_decay=5e-4, epochs=60, batch=256)
    )
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(name="sgd", nesterov=True, lr=5e-5, weight_decay=5e-4, epochs=60, batch=256)
    )  # batches are as large as there are photos at most
    lr_batch: int = 256  # rates are for batches of this size, and in proportion of others; 0: for any
    selection: Literal["val", "last"] = "val"  # the epoch that is kept
    wise: float = 0.0  # share of the weights before in what is saved; the authors' WiSE step has 0.5
    half: bool = False  # keep the weights in fp16
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {"head_first=true": ("head_views", "head_optim")}

    def __post_init__(self):
        self.data.refuse_features()
        if self.beta < 0 or self.head_views < 0 or self.lr_batch < 0 or not 0 <= self.wise <= 1:
            raise ConfigError("beta, head_views and lr_batch must be at least 0, wise in [0, 1]")
        if self.head_first and not self.train_head:
            raise ConfigError("head_first=true trains the head: set train_head=true")


def rows_of_ranks(cfg: Config) -> tuple[int, str]:
    """Photos of a batch, which several ranks divide, and the name of their number."""
    return cfg.optim.batch, "optim.batch"


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Prototypes, zero-shot, the head, the tower; writes the tuned model as model.safetensors."""
    source, photos = (
        sources.ModelSource(cfg.model, cfg.family, draft=cfg.data.draft, upright=cfg.data.upright).squared(),
        splits.read_photos(cfg.data),
    )
    cfg = fitted(cfg, len(photos.train))
    on_photos.check_photos(cfg, photos)
    several_ranks.note_ranks(run, on_photos.photos_digest(photos))
    kernels.products_in(cfg.dtype)  # raises for what the device can't compute, before anything else
    prompts = class_prompts(photos.classnames, load_templates(cfg.templates))
    check_templates(cfg.spurious, len(prompts[0]))
    zero_shot, means = heads.text_means(source, prompts, cfg.unit_texts)
    spurious = prototypes(cfg.spurious, means, zero_shot.scale, cfg.seed)
    before = extraction.few_shot_features(cfg.data, source, cfg.templates, training=None, photos=photos)
    run.note(**before.facts)
    metrics = {**before.report(zero_shot, prefix="zero_shot_"), "prototypes": len(spurious)}
    start = start_of(zero_shot)
    head = train_head(cfg, run, source, photos, before, start) if cfg.head_first else start
    metrics |= before.report(scorer(head, cfg), prefix="head_") if cfg.head_first else {}
    tuned, of_training = train(cfg, run, source, photos, head, spurious)

    clip.put_arrays(source.model, of_tower(tuned))
    final = tuned
    if cfg.wise:
        metrics |= measured(cfg, source, photos, tuned, "tuned_")
        final = mixed(cfg.wise, itertools.chain(untuned(source), start.items()), tuned)
        clip.put_arrays(source.model, of_tower(final))
    after = measured(cfg, source, photos, final)
    on_photos.write_model(run, source, "fd_align", cfg.half)
    learned = {k: final[k] for k in start}
    run.save_learned(learned, classnames=photos.classnames, width=learned["weight"].shape[1])
    run.slot("head").clear()
    return {**metrics, **after, **of_training}


def scorer(learned: Weights, cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with normalised features (N, E) of its tower: scores (N, C)."""
    weight, bias = jt.array(learned["weight"]), jt.array(learned["bias"])
    return on_features.in_chunks(lambda f: class_prototypes.linear_scores(f, weight, bias))


def for_classes(learned: Weights, cfg: Config, classnames: tuple[str, ...], source: sources.ModelSource) -> Weights:
    """For classes without training photos: the zero-shot head beside the tuned tower, whose text tower stayed as it was."""
    return start_of(
        heads.text_means(source, class_prompts(classnames, load_templates(cfg.templates)), cfg.unit_texts)[0]
    )


def start_of(zero_shot: heads.ZeroShotHead) -> Weights:
    """The zero-shot head as a linear layer: W = s T (C, E), b = 0 (C,)."""
    weights = zero_shot.weights
    return {"weight": np.float32(zero_shot.scale) * weights, "bias": np.zeros(len(weights), np.float32)}


def measured(
    cfg: Config, source: sources.ModelSource, photos: splits.PhotoData, head: Weights, prefix: str = ""
) -> dict[str, float]:
    """`val_top1`, … of the model as it is, which it leaves so, below this head."""
    parts = on_photos.measured_parts(source.model, scorer(head, cfg), source.preprocess, photos, cfg.data.on_error)
    return {f"{prefix}{k}": v for k, v in parts.items()}


def of_tower(weights: Weights) -> Weights:
    """Those of the image tower, without the head's."""
    return {k: v for k, v in weights.items() if k.startswith("visual.")}


def fitted(cfg: Config, photos: int) -> Config:
    """The config with batches of at most all photos, and rates for batches of that size."""

    def fit(optim: OptimConfig) -> OptimConfig:
        batch = max(1, min(optim.batch, photos))
        return replace(optim, batch=batch, lr=optim.lr * (batch / cfg.lr_batch if cfg.lr_batch else 1))

    return replace(cfg, optim=fit(cfg.optim), head_optim=fit(cfg.head_optim))


def check_templates(spurious: Spurious, templates: int) -> None:
    """Raises `ConfigError` where there are fewer of them than are to be kept, or are to have centres."""
    chosen = spurious.outliers != "none"
    if chosen and spurious.kept > templates:
        raise ConfigError(
            f"spurious.kept must be at most {templates} (templates), got {spurious.kept}; or set spurious.outliers=none"
        )
    if spurious.clusters > (left := spurious.kept if chosen else templates):
        raise ConfigError(
            f"spurious.clusters must be at most {left}, the templates kept, got {spurious.clusters} (0: no clustering)"
        )


def prototypes(cfg: Spurious, means: np.ndarray, scale: float, seed: int) -> np.ndarray:
    """S (J, E) of the templates' mean texts (T, E); `scale` is the model's. k-means starts alike in every run."""
    rows = (cfg.scale or scale) * means.astype(np.float64)
    if cfg.outliers != "none":
        best = np.argsort(-normality(cfg.outliers, rows, seed), kind="stable")[: cfg.kept]
        rows = rows[np.sort(best)]
    if cfg.clusters:
        from sklearn.cluster import KMeans

        rows = KMeans(cfg.clusters, n_init=10, random_state=0).fit(rows).cluster_centers_
    return rows.astype(np.float32)


def normality(kind: str, rows: np.ndarray, seed: int) -> np.ndarray:
    """(T, E) → (T,): the higher, the more is a row like the others."""
    if kind == "lof":
        from sklearn.neighbors import LocalOutlierFactor

        return LocalOutlierFactor(min(20, len(rows) - 1)).fit(rows).negative_outlier_factor_
    from sklearn.ensemble import IsolationForest

    return IsolationForest(random_state=seed).fit(rows).decision_function(rows)


def train_head(
    cfg: Config,
    run: runs.Run,
    source: sources.ModelSource,
    photos: splits.PhotoData,
    before: precomputed.FeatureSet,
    start: Weights,
) -> Weights:
    """The head alone, on features of the tower as it is; the epoch is chosen as the tower's."""
    params = {k: jt.array(v) for k, v in start.items()}
    if cfg.augment == "none":
        rows, features = extraction.extract(source, photos.train, on_error=cfg.data.on_error, label="train")
        before = replace(before, train=directions.unit(features), train_labels=photos.train.labels[rows])

    def batches(epoch: int) -> Iterator[tuple]:
        view = epoch % cfg.head_views if cfg.head_views else epoch
        seen = extraction.training_view(cfg.data, source, before, cfg.augment, cfg.seed, view)
        return on_features.Batches(seen, cfg.head_optim.batch, cfg.seed)(epoch)

    steps = -(-len(photos.train) // cfg.head_optim.batch)
    learner = on_features.Learner(params, lambda f: class_prototypes.linear_scores(f, **params))
    return on_features.train(run, cfg.head_optim, learner, batches, steps, before, cfg.selection, slot="head").arrays


def train(
    cfg: Config,
    run: runs.Run,
    source: sources.ModelSource,
    photos: splits.PhotoData,
    start: Weights,
    spurious: np.ndarray,
) -> tuple[Weights, dict[str, float]]:
    """Returns (arrays, metrics): tower and head of the chosen epoch, by name. Batch norms keep their statistics."""
    model, head = source.model, {k: jt.array(v) for k, v in start.items()}
    before = features_before(cfg, source, photos.train)
    clip.training_mode(model, ())
    optim = optimisation.optimiser(
        cfg.optim, trainable.trainable(model, ["visual.*"]) | (head if cfg.train_head else {})
    )
    state, loss_of = optimisation.TrainState(optim), batch_loss(cfg, model, head, spurious)
    steps = cfg.optim.epochs * -(-len(photos.train) // cfg.optim.batch)
    numbered = replace(photos, train=splits.Split(photos.train.paths, np.arange(len(photos.train))))

    def step(batch, number: int):
        pixels, rows = jt.array(batch[0]) if len(batch[0]) else batch[0], batch[1]
        optim.lr = optimisation.learning_rate(cfg.optim, number, steps)
        with kernels.products_in(cfg.dtype):
            loss = loss_of(pixels, photos.train.labels[rows], before(pixels, rows))
            optimisation.step_together(optim, loss, once=head.__contains__)
        return loss

    def top1(split: splits.Split) -> float:
        now = scorer({k: v.numpy() for k, v in head.items()}, cfg)
        return on_photos.measure(model, now, source.preprocess, split, cfg.data.on_error)["top1"]

    outcome = loop.fit(
        step, on_photos.photo_epochs(cfg, numbered, source), state=state, run=run, epochs=cfg.optim.trained_epochs, steps=steps,
        evaluate=(lambda: {"top1": top1(photos.val)}) if len(photos.val) else None,
    )  # fmt: skip
    metrics = {"test_top1_last_epoch": top1(photos.test)} if len(photos.test) else {}
    metrics |= {"best_epoch": outcome.best_epoch + 1} if outcome.best else {}
    return start | (outcome.best_arrays if cfg.selection == "val" else state.arrays()), metrics


def batch_loss(cfg: Config, model: clip.CLIP, head: dict, spurious: np.ndarray) -> Callable:
    """(pixels, labels (B,), f0 (B, E)) → L, a scalar. head: W and b as Vars."""
    S = jt.array(spurious).stop_grad()

    def loss(pixels, labels: np.ndarray, before):
        features = on_photos.shared_images(
            lambda own: similarity.normalise(model.encode_image(own)), pixels, len(labels), S.shape[1]
        )
        own = losses.cross_entropy(
            class_prototypes.linear_scores(features, head["weight"], head["bias"]), jt.array(labels.astype(np.int32))
        )
        styles, held = (jt.nn.matmul_transpose(f, S) for f in (features, before))
        return own + cfg.beta * losses.kl_divergence(styles, held) / (len(labels) * len(spurious))

    return loss


def features_before(cfg: Config, source: sources.ModelSource, train: splits.Split) -> Callable:
    """(pixels, rows) → f0 (B, E), normalised: of a frozen copy of the image tower, or kept where each epoch sees the same."""
    if cfg.augment == "none":
        rows, features = extraction.extract(source, train, on_error=cfg.data.on_error, label="train")
        known = np.zeros((len(train), features.shape[1]), np.float32)
        known[rows] = directions.unit(features)  # photos that don't decode are in no batch
        return lambda pixels, rows: jt.array(known[rows]).stop_grad()
    frozen = clip.image_tower(source.config)
    checkpoint.load_strict(frozen, ((k.removeprefix("visual."), v) for k, v in untuned(source)), cfg.model)
    frozen.eval()
    width = source.config.embed_dim

    def encode(pixels, rows):
        with jt.no_grad():
            seen = on_photos.shared_images(lambda own: similarity.normalise(frozen(own)), pixels, len(rows), width)
            return seen.stop_grad()

    return encode


def untuned(source: sources.ModelSource) -> Iterator[tuple[str, np.ndarray]]:
    """The image tower's weights as the file has them, by name, one after the other."""
    return ((k, v) for k, v in source.checkpoint.arrays() if k.startswith("visual."))


def mixed(share: float, before: Iterable[tuple[str, np.ndarray]], after: Weights) -> Weights:
    """share · before + (1 - share) · after of all that was tuned; the rest is as before."""
    return {k: np.float32(share) * v + np.float32(1 - share) * after[k] if k in after else v for k, v in before}
