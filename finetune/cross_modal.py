"""Cross-modal adaptation: class names are training samples too, one head learns from photos and texts.

Lin et al., CVPR 2023, arXiv 2301.06267, eq. 4-6.   Trains: C x E parameters, the adapter E²/2 more, or the last block.
Needs: a few-shot split and text features, `partial` photos; validation photos where the epoch or a setting is chosen.

    logits = e^c h(x) W',  h(x) = x or r ReLU(W2 ReLU(W1 x)) + (1 - r) x,  x a photo's or a text's normalised feature

As in the authors' code, the head's rows and what the adapter makes are not normalised, and c is a constant. Half of each
batch are photos, half texts, each from an endless shuffled stream that drops what a pass leaves over. A photo sample is
a photo as the evaluation sees it or that view's mirror image. A text sample is each template's with a model, each class's
mean where text features are precomputed. Beside the trained head stands its mean with the zero-shot one (WiSE).

`partial` trains what the image tower ends with as well, a transformer's last block or a ResNet's attention pool: what goes in
there is computed once for each view, and texts go straight to the head. The tuned model is written as model.safetensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from jclip.config import DataConfig, Dtype, OptimConfig, ReadWith, check_grid
from jclip.data import augment, checks, splits
from jclip.errors import ConfigError
from jclip.features import extraction, heads, precomputed
from jclip.features import source as sources
from jclip.functional import directions, initial_values, similarity
from jclip.model import last_block
from jclip.postponed import jt
from jclip.prompts.templates import class_prompts, load_templates
from jclip.train import on_features, on_photos, scored_photos
from jclip.train import run as runs


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str = ""  # a name or weight file; precomputed features with text need none
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"  # int8 on CPUs, bf16 on those with AVX-512, both halves on a GPU
    templates: str = "simple"  # the authors': the data set's own template
    views: int = 1  # augmented views of each photo beside the plain one
    augment: str = "mirror"  # the authors': the plain view's mirror image, of which there is but one
    head: Literal["linear", "adapter", "partial"] = "linear"
    init: Literal["zeroshot", "random"] = "zeroshot"  # W: the classes' mean texts, or as torch's Linear starts
    texts: bool = True  # half of each batch; without them it is all photos, the uni-modal baseline
    logit_scale: float | None = None  # c; the authors': 4.60517, of partial 4.0
    ratio: float = 0.2  # r of the adapter
    reduction: int = 4  # the adapter's bottleneck is E / reduction wide
    wise: float = 0.5  # share of the zero-shot head in the figures `wise_…`
    every: int = 100  # steps of an epoch, after which it is validated
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, warmup=50, epochs=128, batch=8))
    grid_lr: tuple[float, ...] = ()  # where given, each combination is trained and the best on validation kept
    grid_weight_decay: tuple[float, ...] = ()
    grid_batch: tuple[int, ...] = ()  # those that are too large for the samples are left out
    selection: Literal["val", "last", "test"] = "val"  # the epoch that is kept
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {"head=adapter": ("ratio", "reduction")}

    def __post_init__(self):
        check_grid(self.optim, lr=self.grid_lr, weight_decay=self.grid_weight_decay, batch=self.grid_batch)
        if self.views < 0 or self.every < 1 or self.reduction < 1:
            raise ConfigError("views must be at least 0, every and reduction at least 1")
        if not (0 <= self.ratio <= 1 and 0 <= self.wise <= 1):
            raise ConfigError(f"ratio and wise must be in [0, 1], got {self.ratio} and {self.wise}")
        if abs(self.c) > 10:
            raise ConfigError(
                f"logit_scale must be the scale's logarithm, such as 4.60517 for 100, got {self.logit_scale}"
            )
        if self.head == "partial" and self.data.features:
            raise ConfigError("head=partial needs photos, not precomputed features: set data.root or data.train")
        if self.head == "partial" and (self.dtype != "fp32" or self.selection == "test"):
            raise ConfigError("head=partial needs dtype=fp32 and selection=val or last")

    @property
    def c(self) -> float:
        """The logarithm of what logits are multiplied by."""
        given = self.logit_scale
        return given if given is not None else 4.0 if self.head == "partial" else 4.60517


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Samples of both kinds, training with each setting, evaluation of val and test."""
    if cfg.head == "partial":
        return run_partial(cfg, run)
    source = sources.source_of(cfg)
    photos_alone = not cfg.texts and cfg.init == "random"
    data = extraction.few_shot_features(
        cfg.data, source, cfg.templates, extraction.TrainingRows(every_class=photos_alone)
    )
    run.note(**data.facts)
    on_features.need_text(data)
    photos, texts = on_features.photo_samples(cfg, data, source), text_samples(cfg, data, source)
    zero_shot = zero_shot_weights(texts, data.classes)
    trained, chosen = choose(cfg, run, data, photos, texts)
    learned = arrays(cfg, trained.arrays)
    run.save_learned(learned, classnames=data.classnames, width=data.train.shape[1])
    of_head = scored_photos.measured(run, data, scorer(learned, cfg))
    wise = of_mean(cfg, data, learned, zero_shot)
    return {**on_features.zero_shot_report(data), **of_head, **wise, **chosen, **trained.metrics}


def of_mean(
    cfg: Config, data: precomputed.FeatureSet, learned: dict[str, np.ndarray], zero_shot: np.ndarray
) -> dict[str, float]:
    """Metrics of the mean of the trained head and the zero-shot one: `wise_val_top1`, …"""
    wise = learned | {"head": (1 - cfg.wise) * learned["head"] + cfg.wise * zero_shot}
    return data.report(scorer(wise, cfg), prefix="wise_")


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with normalised features (N, E): scores (N, C)."""
    params = {k: jt.array(learned[k]) for k in ("head", "down", "up") if k in learned}
    scale, ratio = (float(learned[k][0]) for k in ("scale", "ratio"))
    return on_features.in_chunks(lambda f: logits(f, params, scale, ratio))


def logits(features, params, scale: float, ratio: float):
    """Normalised features (B, E) → scores (B, C). params: W (C, E), of the adapter W1 `down` (E/4, E) and W2 `up` (E, E/4)."""
    if "down" in params:
        hidden = jt.nn.relu(jt.nn.matmul_transpose(features, params["down"]))
        adapted = jt.nn.relu(jt.nn.matmul_transpose(hidden, params["up"]))
        features = ratio * adapted + (1 - ratio) * features
    return similarity.zero_shot_scores(features, params["head"], scale)


def text_samples(cfg: Config, data: precomputed.FeatureSet, source: sources.ModelSource | None) -> on_features.Samples:
    """Normalised text features: of each prompt with a model, of each class without. Raises `ConfigError`."""
    if source is None or not data.classnames:
        return data.text, np.arange(len(data.text))
    prompts = class_prompts(data.classnames, load_templates(cfg.templates))
    raw, labels = heads.prompt_features(source, prompts, data.text.shape[1])
    return directions.unit(raw), labels


def zero_shot_weights(texts: on_features.Samples, classes: int) -> np.ndarray:
    """(C, E) float32, rows of length one: each class's mean text."""
    return heads.unit(on_features.class_means(*texts, classes)).astype(np.float32)


def settings(cfg: Config, photos: int, texts: int) -> list[OptimConfig]:
    """The grid. Raises `ConfigError` where no batch can be filled from that many samples."""

    def fits(batch: int) -> bool:
        of_photos, of_texts = halves(cfg, batch)
        return of_photos <= photos and cfg.texts <= of_texts <= texts

    return on_features.grid(
        cfg, fits, f"{photos} photos and {texts} texts, half of it each" if cfg.texts else f"{photos} photos"
    )


def halves(cfg: Config, batch: int) -> tuple[int, int]:
    """Photos and texts of a batch of that size."""
    return (batch - batch // 2, batch // 2) if cfg.texts else (batch, 0)


def choose(
    cfg: Config, run: runs.Run, data: precomputed.FeatureSet, photos: on_features.Samples, texts: on_features.Samples
) -> tuple[on_features.Trained, dict[str, float]]:
    """What was trained, and its setting: the config's, or the best on validation of all in the grid."""
    return on_features.best_setting(
        settings(cfg, len(photos[0]), len(texts[0])), data, cfg.selection,
        lambda optim, slot: train_head(cfg, run, data, photos, texts, optim, slot),
        lambda learnt: scorer(arrays(cfg, learnt), cfg),
    )  # fmt: skip


def train_head(
    cfg: Config,
    run: runs.Run,
    data: precomputed.FeatureSet,
    photos: on_features.Samples,
    texts: on_features.Samples,
    optim: OptimConfig,
    slot: str = "train",
) -> on_features.Trained:
    """Cross-entropy over the joined batch, every sample of equal weight."""
    params = {k: jt.array(a) for k, a in initial(cfg, zero_shot_weights(texts, data.classes)).items()}
    batches = on_features.Streams((photos, texts), halves(cfg, optim.batch), cfg.seed, cfg.every)
    scale = math.exp(cfg.c)

    def scores(features):
        return logits(features, params, scale, cfg.ratio)

    rate = on_features.warmed_rate(optim, optim.epochs * cfg.every)
    learner = on_features.Learner(params, scores, rate=rate)
    return on_features.train(run, optim, learner, batches, cfg.every, data, cfg.selection, slot)


def arrays(cfg: Config, params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `scorer` needs, by name."""
    return {**params, "scale": np.array([math.exp(cfg.c)]), "ratio": np.array([cfg.ratio])}


def initial(cfg: Config, zero_shot: np.ndarray) -> dict[str, np.ndarray]:
    """The parameters at the start, random ones as torch's Linear starts. Raises `ConfigError`."""
    rng = np.random.default_rng((cfg.seed, 2))
    head = initial_values.linear_start(rng, *zero_shot.shape) if cfg.init == "random" else zero_shot
    if cfg.head != "adapter":
        return {"head": head}
    width = zero_shot.shape[1]
    if width < cfg.reduction:
        raise ConfigError(f"reduction must be at most {width}, the width of the features, got {cfg.reduction}")
    hidden = width // cfg.reduction
    return {
        "head": head,
        "down": initial_values.linear_start(rng, hidden, width),
        "up": initial_values.linear_start(rng, width, hidden),
    }


def run_partial(cfg: Config, run: runs.Run) -> dict[str, float]:
    """The run with the tower's last block trained, which is merged into the model that is then measured from photos."""
    source, photos = sources.source_of(cfg), splits.read_photos(cfg.data)
    if source is not None:
        source.squared("photos whose tokens are kept")
    data = extraction.few_shot_features(cfg.data, source, cfg.templates, training=None, photos=photos)
    checks.check_taught(photos.train.labels, data.classes, data.classnames, has_text=True)
    on_features.need_val(data, cfg.selection)
    extraction.warn_photos(photos, cfg.data.shots)
    run.note(**data.facts)
    texts, block = text_samples(cfg, data, source), last_block.LastBlock(source.model)
    zero_shot = zero_shot_weights(texts, data.classes)
    settings(cfg, len(views(cfg)) * len(photos.train), len(texts[0]))  # raises early where no batch can be filled
    entering = entering_features(cfg, data, source, photos)
    grid = settings(cfg, len(entering.train), len(texts[0]))

    def train_with(optim: OptimConfig, slot: str) -> on_features.Trained:
        return train_block(cfg, run, block, zero_shot, entering, texts, optim, slot)

    def scorer_of(learnt: dict[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        block.put(learnt)
        return on_features.in_chunks(block_scores(cfg, block, learnt["head"]))

    trained, metrics = on_features.best_setting(grid, entering, cfg.selection, train_with, scorer_of)
    if len(photos.test):
        block.put(trained.last)
        of_last = scorer(arrays(cfg, trained.last), cfg)
        report = on_photos.measure(source.model, of_last, source.preprocess, photos.test, cfg.data.on_error)
        metrics["test_top1_last_epoch"] = report["top1"]
    block.put(trained.arrays)
    on_photos.write_model(run, source, "cross_modal")
    learned = arrays(cfg, {"head": trained.arrays["head"]})
    run.save_learned(learned, classnames=data.classnames, width=source.width)
    for i in range(len(grid)):
        run.slot(f"train-{i}").clear()  # each as large as the block
    after = on_photos.features_of_now(source.model, source.preprocess, photos, data, cfg.data.on_error)
    metrics = {**after.report(scorer(learned, cfg)), **of_mean(cfg, after, learned, zero_shot), **metrics}
    return {**on_features.zero_shot_report(data), **metrics, **trained.metrics}


def views(cfg: Config) -> list[dict[str, str | int]]:
    """How a training photo is seen: plainly, and augmented."""
    augmented = range(cfg.views if augment.augment(cfg.augment) else 0)
    return [{}, *({"augment": cfg.augment, "first_view": view} for view in augmented)]


def entering_features(
    cfg: Config, data: precomputed.FeatureSet, source: sources.ModelSource, photos: splits.PhotoData
) -> precomputed.FeatureSet:
    """`data` with the last block's inputs in place of features: training photos in each view, validation photos, no test."""
    options = {"seed": cfg.seed, "on_error": cfg.data.on_error, "entering": True}
    seen = [
        extraction.extract(source, photos.train, label=f"view {i}", **view, **options)
        for i, view in enumerate(views(cfg))
    ]
    rows, features = (np.concatenate(column) for column in zip(*seen, strict=True))
    val_rows, val = extraction.extract(source, photos.val, label="val", **options)
    return replace(
        data, train=features, train_labels=photos.train.labels[rows], val=val, val_labels=photos.val.labels[val_rows],
        test=data.test[:0], test_labels=data.test_labels[:0],
    )  # fmt: skip


def train_block(
    cfg: Config, run: runs.Run, block: last_block.LastBlock, zero_shot: np.ndarray, data: precomputed.FeatureSet,
    texts: on_features.Samples, optim: OptimConfig, slot: str = "train",
) -> on_features.Trained:  # fmt: skip
    """The training as of `train_head`, of the block as it was and the head; data: as of `entering_features`."""
    params = {**block.fresh(), "head": jt.array(initial(cfg, zero_shot)["head"])}
    photos, sizes = (data.train, data.train_labels), halves(cfg, optim.batch)

    def batches(epoch: int) -> Iterator[tuple]:
        numbers = range(epoch * cfg.every, (epoch + 1) * cfg.every)
        for rows in on_features.streamed_rows((len(photos[0]), len(texts[0])), sizes, cfg.seed, numbers):
            at = rows[: sizes[0]], rows[sizes[0] :] - len(photos[0])
            labels = np.concatenate([photos[1][at[0]], texts[1][at[1]]]).astype(np.int32)
            yield (jt.array(photos[0][at[0]]), texts[0][at[1]]), jt.array(labels)

    scores = block_scores(cfg, block, params["head"])
    rate = on_features.warmed_rate(optim, optim.epochs * cfg.every)
    learner = on_features.Learner(
        params, lambda given: scores(*given) if isinstance(given, tuple) else scores(given), rate=rate
    )
    return on_features.train(run, optim, learner, batches, cfg.every, data, cfg.selection, slot)


def block_scores(cfg: Config, block: last_block.LastBlock, head) -> Callable:
    """(what enters the block (B, N D), normalised texts (T, E) or none) → (B + T, C)."""
    weights, scale = jt.array(head) if isinstance(head, np.ndarray) else head, math.exp(cfg.c)

    def scores(rows, texts=()):
        features = similarity.normalise(block.leaving(rows))
        joined = jt.concat([features, jt.array(texts)], dim=0) if len(texts) else features
        return similarity.zero_shot_scores(joined, weights, scale)

    return scores
