"""Cross-modal adaptation: class names are training samples too, one head learns from photos and texts.

Lin et al., CVPR 2023, arXiv 2301.06267, eq. 4-6.   Trains: C x E numbers, the adapter E²/2 more.
Needs: a few-shot split and text features; validation photos where the epoch or a setting is chosen.

    logits = e^c h(x) W',  h(x) = x or r ReLU(W2 ReLU(W1 x)) + (1 - r) x,  x a photo's or a text's normalised feature

As in the authors' code, the head's rows and what the adapter makes are not normalised, and c is a constant. Half of each
batch are photos, half texts, each from an endless shuffled stream that drops what a pass leaves over. A photo sample is
a photo as the evaluation sees it or that view's mirror image. A text sample is each template's with a model, each class's
mean where text features are recorded. Beside the trained head stands its mean with the zero-shot one (WiSE). The towers'
own last blocks, the authors' `partial`, stay as they are here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from jclip.config import DataConfig, Dtype, OptimConfig
from jclip.errors import ConfigError

if TYPE_CHECKING:  # a wrong YAML is told before these are imported
    from jclip.adapt import Trained
    from jclip.features import FeatureSet
    from jclip.run import Run
    from jclip.source import ModelSource

    Samples = tuple[np.ndarray, np.ndarray]  # features (N, E) and labels (N,)

WARM_RATE = 1e-5  # of the very first step, where there is a warm-up


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str = ""  # a name or weight file; recorded features with text need none
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"  # bf16 on CPUs with AVX-512, both halves on a GPU
    templates: str = "simple"  # the authors': the data set's own template
    views: int = 1  # augmented views of each photo beside the plain one
    augment: str = "mirror"  # the authors': the plain view's mirror image, of which there is but one
    head: Literal["linear", "adapter"] = "linear"
    init: Literal["zeroshot", "random"] = "zeroshot"  # W: the classes' mean texts, or as torch's Linear starts
    texts: bool = True  # half of each batch; without them it is all photos, the uni-modal baseline
    logit_scale: float = 4.60517  # c
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

    def __post_init__(self):
        if self.views < 0 or self.every < 1 or self.reduction < 1:
            raise ConfigError("views is at least 0, every and reduction at least 1")
        if not (0 <= self.ratio <= 1 and 0 <= self.wise <= 1):
            raise ConfigError(f"ratio and wise are shares between 0 and 1, got {self.ratio} and {self.wise}")


def run(cfg: Config, run: Run) -> dict[str, float]:
    """Samples of both kinds, training with each setting, evaluation of val and test."""
    from jclip import adapt
    from jclip.features import few_shot_features
    from jclip.source import source_of

    source = source_of(cfg)
    data = few_shot_features(cfg.data, source, cfg.templates)
    run.note(**data.facts)
    adapt.need_text(data)
    photos, texts = photo_samples(cfg, data, source), text_samples(cfg, data, source)
    zero_shot = zero_shot_weights(texts, data.classes)
    optim, trained = choose(cfg, run, data, photos, texts)
    learned = arrays(cfg, trained.arrays)
    wise = learned | {"head": (1 - cfg.wise) * learned["head"] + cfg.wise * zero_shot}
    run.save_learned(learned, classnames=data.classnames, width=data.train.shape[1])
    chosen = {"lr": optim.lr, "weight_decay": optim.weight_decay, "batch": optim.batch}
    reports = data.report(scorer(learned, cfg)), data.report(scorer(wise, cfg), prefix="wise_")
    return {**adapt.zero_shot_report(data), **reports[0], **reports[1], **chosen, **trained.told}


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with normalised features (N, E): scores (N, C)."""
    from jclip.adapt import in_chunks
    from jclip.runtime import jt

    params = {k: jt.array(learned[k]) for k in ("head", "down", "up") if k in learned}
    scale, ratio = (float(learned[k][0]) for k in ("scale", "ratio"))
    return in_chunks(lambda f: logits(f, params, scale, ratio))


def logits(features, params, scale: float, ratio: float):
    """Of normalised features (B, E) → (B, C). params: W (C, E), of the adapter W1 `down` (E/4, E) and W2 `up` (E, E/4)."""
    from jclip.functional.similarity import zero_shot_scores
    from jclip.runtime import jt

    if "down" in params:
        hidden = jt.nn.relu(jt.nn.matmul_transpose(features, params["down"]))
        adapted = jt.nn.relu(jt.nn.matmul_transpose(hidden, params["up"]))
        features = ratio * adapted + (1 - ratio) * features
    return zero_shot_scores(features, params["head"], scale)


def photo_samples(cfg: Config, data: FeatureSet, source: ModelSource | None) -> Samples:
    """The training photos as they are seen plainly, then `views` augmented views; recorded ones are what they are."""
    from jclip.features import training_view

    seen = [(data.train, data.train_labels)]
    if not cfg.data.features and cfg.augment != "none":
        seen += [training_view(cfg.data, source, data, cfg.augment, cfg.seed, view) for view in range(cfg.views)]
    features, labels = zip(*seen, strict=True)
    return np.concatenate(features), np.concatenate(labels)


def text_samples(cfg: Config, data: FeatureSet, source: ModelSource | None) -> Samples:
    """Normalised text features: of each prompt with a model, of each class without. Raises `ConfigError`."""
    from jclip.heads import prompt_features, unit
    from jclip.prompts import class_prompts, load_templates

    if source is None or not data.classnames:
        return data.text, np.arange(len(data.text))
    prompts = class_prompts(data.classnames, load_templates(cfg.templates))
    raw, labels = prompt_features(source, prompts, data.text.shape[1])
    return unit(raw), labels


def zero_shot_weights(texts: Samples, classes: int) -> np.ndarray:
    """(C, E) float32, rows of length one: each class's mean text."""
    from jclip import adapt, heads

    return heads.unit(adapt.class_means(*texts, classes)).astype(np.float32)


def settings(cfg: Config, photos: int, texts: int) -> list[OptimConfig]:
    """The grid, batch fastest. Raises `ConfigError` where no batch can be filled from so many samples."""
    batches = []
    for batch in cfg.grid_batch or (cfg.optim.batch,):
        of_photos, of_texts = halves(cfg, batch)
        if of_photos <= photos and cfg.texts <= of_texts <= texts:
            batches.append(batch)
    if not batches:
        kinds = f"{photos} photos and {texts} texts, half of it each" if cfg.texts else f"{photos} photos"
        raise ConfigError(f"no batch of that size can be filled from {kinds}: set optim.batch, or grid_batch")
    rates, decays = cfg.grid_lr or (cfg.optim.lr,), cfg.grid_weight_decay or (cfg.optim.weight_decay,)
    combined = itertools.product(rates, decays, batches)
    return [replace(cfg.optim, lr=lr, weight_decay=decay, batch=batch) for lr, decay, batch in combined]


def halves(cfg: Config, batch: int) -> tuple[int, int]:
    """Photos and texts of a batch of that size."""
    return (batch - batch // 2, batch // 2) if cfg.texts else (batch, 0)


def choose(cfg: Config, run: Run, data: FeatureSet, photos: Samples, texts: Samples) -> tuple[OptimConfig, Trained]:
    """The setting and what was trained with it: the config's, or the best on validation of all in the grid."""
    from jclip import adapt

    grid = settings(cfg, len(photos[0]), len(texts[0]))
    adapt.need_val(data, cfg.selection, searched="the grid's setting" if len(grid) > 1 else "")
    trained = [train_head(cfg, run, data, photos, texts, optim, f"train-{i}") for i, optim in enumerate(grid)]
    if len(grid) == 1:
        return grid[0], trained[0]
    best, _ = adapt.best_on_val(range(len(grid)), data, lambda i: scorer(arrays(cfg, trained[i].arrays), cfg))
    return grid[best], trained[best]


def train_head(
    cfg: Config, run: Run, data: FeatureSet, photos: Samples, texts: Samples, optim: OptimConfig, slot: str = "train"
) -> Trained:
    """Cross-entropy over the joined batch, every sample of equal weight."""
    from jclip import adapt
    from jclip.runtime import jt

    params = {k: jt.array(a) for k, a in initial(cfg, zero_shot_weights(texts, data.classes)).items()}
    features, labels = (np.concatenate(pair) for pair in zip(photos, texts, strict=True))
    samples = jt.array(features).stop_grad(), jt.array(labels.astype(np.int32)).stop_grad()
    scale = math.exp(cfg.logit_scale)

    def batches(epoch: int) -> Iterator[tuple]:
        for rows in batch_rows(cfg, optim.batch, len(photos[0]), len(texts[0]), epoch):
            at = jt.array(rows)
            yield tuple(of_all[at] for of_all in samples)

    def scores(features):
        return logits(features, params, scale, cfg.ratio)

    return adapt.train(
        run, optim, params, scores, batches, cfg.every, data, cfg.selection,
        rate=lambda step: learning_rate(optim, step, optim.epochs * cfg.every), slot=slot,
    )  # fmt: skip


def batch_rows(cfg: Config, batch: int, photos: int, texts: int, epoch: int) -> Iterator[np.ndarray]:
    """The rows (B,) int32 of an epoch's batches, photos before texts, which are numbered after all photos."""
    of_photos, of_texts = halves(cfg, batch)

    @lru_cache(maxsize=2)  # of photos and of texts, one turn each at a time
    def shuffled(kind: int, count: int, turn: int) -> np.ndarray:
        return np.random.default_rng((cfg.seed, kind, turn)).permutation(count)

    def stream(kind: int, count: int, size: int, number: int) -> np.ndarray:
        turn, place = divmod(number, count // size)
        return shuffled(kind, count, turn)[place * size : (place + 1) * size]

    for number in range(epoch * cfg.every, (epoch + 1) * cfg.every):
        rows = [stream(0, photos, of_photos, number)]
        rows += [photos + stream(1, texts, of_texts, number)] if of_texts else []
        yield np.concatenate(rows).astype(np.int32)


def learning_rate(optim: OptimConfig, step: int, total: int) -> float:
    """1e-5, then linearly up over the warm-up; the cosine after it counts from 0 again, so it ends above 0."""
    from jclip.optim import cosine, warmup_steps

    warmup = warmup_steps(optim, total)
    if step < warmup:
        return optim.lr * step / warmup if step else WARM_RATE
    return cosine(step - warmup, total, optim.lr) if optim.schedule == "cosine" else optim.lr


def arrays(cfg: Config, params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `scorer` needs, by name."""
    return {**params, "scale": np.array([math.exp(cfg.logit_scale)]), "ratio": np.array([cfg.ratio])}


def initial(cfg: Config, zero_shot: np.ndarray) -> dict[str, np.ndarray]:
    """The parameters at the start; random ones are uniform within 1 / sqrt(inputs). Raises `ConfigError`."""
    rng = np.random.default_rng((cfg.seed, 2))

    def random(*shape: int) -> np.ndarray:
        return (rng.uniform(-1, 1, shape) / np.sqrt(shape[1])).astype(np.float32)

    head = random(*zero_shot.shape) if cfg.init == "random" else zero_shot
    if cfg.head == "linear":
        return {"head": head}
    width = zero_shot.shape[1]
    if width < cfg.reduction:
        raise ConfigError(f"reduction={cfg.reduction} leaves nothing of features of {width} numbers: lower it")
    return {"head": head, "down": random(width // cfg.reduction, width), "up": random(width, width // cfg.reduction)}
