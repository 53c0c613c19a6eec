"""Contrastive training on images with captions, from scratch or from weights: how CLIP itself was made.

Radford et al., 2021, arXiv 2103.00020, section 2.3 and figure 3.   Trains: both towers, or what `lock` leaves of them.
Needs: image-caption pairs, or the embedded world (`data.train: shapes`).

    L = (CE(s I T', own) + CE(s T I', own)) / 2,   s = exp(logit scale) <= 100
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from jclip import kernels
from jclip.config import CaptionConfig, DataConfig, Dtype, OptimConfig
from jclip.data import augment, captions, splits
from jclip.data import preprocess as preprocessing
from jclip.errors import ConfigError, DataError, notice
from jclip.features import caption_features, extraction, heads
from jclip.features import source as sources
from jclip.functional import directions, losses, metrics
from jclip.model import clip, trainable
from jclip.model.parameter_groups import Lock, trained_patterns
from jclip.postponed import jt
from jclip.prompts.templates import class_prompts, load_templates
from jclip.train import loop, on_photos
from jclip.train import optim as optimisation
from jclip.train import run as runs
from jclip.weights.variants import config_of

TASK = "retrieve"


@dataclass(frozen=True)
class Config:
    data: CaptionConfig
    model: str  # a name or weight file; with `scratch` the name of an architecture
    scratch: bool = False  # random weights to begin with
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"  # bf16: linear maps multiply in it while training, on CPUs with AVX-512
    augment: str = "none"
    positives: Literal["own", "same"] = "own"  # "same": captions of one meaning belong to each other's images as well
    accumulate: int = 1  # batches of optim.batch that share one step and one matrix of scores
    clip: float = 0.0  # bound of the gradient's global norm; 0: none
    lock: Lock = field(default_factory=Lock)
    zero_shot: tuple[str, ...] = ()  # photo folders (or shapes:…) to classify while training
    templates: str = "simple"
    every: int = 1  # epochs between measurements
    select: str = ""  # the metric of the best epoch; by default i2t_r1, without data.val the first zero-shot accuracy
    selection: Literal["val", "last"] = "last"  # the epoch that is kept
    half: bool = False  # keep the weights in fp16
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, warmup=0.05, epochs=10, batch=64
        )
    )
    seed: int = 1

    def __post_init__(self):
        if self.accumulate < 1 or self.clip < 0 or self.every < 1:
            raise ConfigError("accumulate and every are at least 1, clip at least 0")
        if self.scratch:
            config_of(self.model)


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Training, with retrieval and zero-shot measured on the way; writes the model as model.safetensors."""
    kernels.products_in(cfg.dtype)  # what the device doesn't do is told before anything is computed
    model, preprocess = start_model(cfg, run)
    train = captions.read_pairs(cfg.data, "train", preprocess.size, cfg.seed)
    val = captions.read_pairs(cfg.data, "val", preprocess.size, cfg.seed)
    size = cfg.optim.batch * cfg.accumulate
    check(cfg, train, val, size)
    total = cfg.optim.epochs * (len(train) // size)
    patterns = trained_patterns(model.config, cfg.lock)
    clip.training_mode(model, patterns)
    optim = optimisation.optimiser(cfg.optim, trainable.trainable(model, patterns), trainable.no_weight_decay)
    prepare = Batches(cfg, model, preprocess, train)
    folders = {name_of(root): splits.read_photos(DataConfig(root=root, shots=0, val_shots=0)) for root in cfg.zero_shot}

    def step(batch, number: int):
        optim.lr = optimisation.learning_rate(cfg.optim, number, total)
        with kernels.products_in(cfg.dtype):
            loss, gradients = contrastive_gradients(model, batch, list(optim.params), cfg.positives)
            optim.apply(optimisation.clip_by_norm(gradients, cfg.clip) if cfg.clip else gradients)
        clip.clamp_logit_scale(model)
        return loss

    outcome = loop.fit(
        step, prepare.epoch, state=optimisation.TrainState(optim, clip.running_statistics(model)), run=run,
        epochs=cfg.optim.trained_epochs, every=cfg.every, evaluate=measure(cfg, model, preprocess, val, folders),
        select=selected(cfg), steps=total,
    )  # fmt: skip
    if cfg.selection == "val":
        clip.put_arrays(model, outcome.best_arrays)
    clip.save_model(run.file("model.safetensors"), model, preprocess, cfg.half, made_by="contrastive")
    if not outcome.best:
        return outcome.last
    best = {f"best_epoch_{selected(cfg)}": outcome.best[selected(cfg)], "best_epoch": outcome.best_epoch + 1}
    return {**(outcome.best if cfg.selection == "val" else outcome.last), **best}


def start_model(cfg: Config, run: runs.Run):
    """The model that training starts from, and its preprocessing."""
    if not cfg.scratch:
        source = sources.ModelSource(cfg.model, cfg.family, upright=cfg.data.upright)
        run.note(weights_sha256=source.checkpoint.sha256)
        return source.model, source.preprocess

    config = config_of(cfg.model)
    jt.set_global_seed(cfg.seed)
    return clip.CLIP(config), preprocessing.Preprocess(size=config.vision.image_size, upright=cfg.data.upright)


def check(cfg: Config, train: captions.Pairs | None, val: captions.Pairs | None, size: int) -> None:
    """Raises `DataError` or `ConfigError` for what would only show, or not even show, after hours."""
    if train is None:
        raise DataError("no training pairs named: set data.train to a table of captions, or to shapes")
    if size > len(train):
        raise DataError(
            f"a step of {size} pairs (optim.batch x accumulate) is larger than the data set of {len(train)}: lower them"
        )
    if cfg.selection == "val" and val is None and not cfg.zero_shot:
        raise ConfigError("choosing the best epoch needs data.val or zero_shot, or set selection=last")
    total = cfg.optim.epochs * (len(train) // size)
    if (warm := optimisation.warmup_steps(cfg.optim, total)) > 0.2 * total:
        notice(f"the warm-up takes {warm} of {total} steps, more than a fifth: lower optim.warmup?")


class Batches:
    """The pairs of an epoch in seeded order, prepared ahead; what a locked tower makes of them is computed once."""

    def __init__(self, cfg: Config, model, preprocess: preprocessing.Preprocess, pairs: captions.Pairs):
        self._cfg, self._model, self._preprocess, self._pairs = cfg, model, preprocess, pairs
        self._pipeline = augment.augment(cfg.augment)
        self._rows, self._known = np.arange(len(pairs)), None
        if cfg.lock.freezes_image and pairs.paths and self._pipeline is None:
            encoded = caption_features.encode_pairs(model, pairs, preprocess)
            self._rows, self._known = encoded.rows, dict(zip(encoded.rows.tolist(), encoded.images, strict=True))

    def epoch(self, epoch: int):
        """Lists of `accumulate` parts (images, tokens, meanings); a rest that fills no step is left out."""
        size, parts = self._cfg.optim.batch, []
        for rows, images in self._images(epoch, size):
            if len(rows) < size:
                return
            texts, meanings = self._pairs.texts(rows, epoch)
            parts.append((images, self._model.tokenize(texts, truncate=True), np.array(meanings)))
            if len(parts) == self._cfg.accumulate:
                yield parts
                parts = []

    def _images(self, epoch: int, size: int):
        """Rows and their pixels, or the features of a locked tower."""
        order = np.random.default_rng((self._cfg.seed, epoch)).permutation(self._rows)
        if self._known is None:
            views = augment.Views(self._preprocess, self._pipeline, self._cfg.seed, (epoch,))
            return self._pairs.batches(order, epoch, size, views)
        chunks = (order[i : i + size] for i in range(0, len(order), size))
        return ((rows, np.stack([self._known[row] for row in rows.tolist()])) for rows in chunks)


def contrastive_gradients(model, parts: list, names: list[str], positives: str):
    """Loss and gradients of one step over all `parts` together, those of `names`' parameters in their order.

    Of several parts one at a time is kept in memory (`jclip.kernels.gradient_parts`).
    """
    params = model.state_dict()
    wanted = {name: params[name] for name in names}
    images = on_photos.features_in_parts(model, lambda part: image_features(model, part[0]), parts, wanted, "image")
    texts = on_photos.features_in_parts(model, lambda part: model.encode_text(part[1]), parts, wanted, "text")
    meanings = np.concatenate([meaning for _, _, meaning in parts])
    targets = losses.positive_targets(caption_features.ids_of(meanings)) if positives == "same" else None
    loss = losses.contrastive_loss(images, texts, params["logit_scale"].exp(), targets)
    return loss, jt.grad(loss, list(wanted.values()))


def image_features(model, images):
    """Of pixels (n, 3, H, W); what comes as features (n, E) is that."""
    return model.encode_image(images) if images.ndim == 4 else jt.array(images)


def measure(
    cfg: Config,
    model,
    preprocess: preprocessing.Preprocess,
    val: captions.Pairs | None,
    folders: Mapping[str, splits.PhotoData],
) -> Callable[[], dict[str, float]] | None:
    """What is measured on the way: retrieval among the validation pairs, zero-shot on each named folder."""
    templates = load_templates(cfg.templates)

    def zero_shot(photos: splits.PhotoData) -> float:
        split = photos.test if len(photos.test) else photos.train
        head = heads.head_of(model, class_prompts(photos.classnames, templates))
        rows, features = extraction.encode_photos(model, preprocess, split, cfg.data.on_error)
        return metrics.top_k(head(directions.unit(features)), split.labels[rows])

    def evaluate() -> dict[str, float]:
        report: dict[str, float] = {}
        with clip.inference(model):
            if val is not None:
                report = caption_features.encode_pairs(model, val, preprocess).report()
            report.update({f"{name}_top1": zero_shot(photos) for name, photos in folders.items()})
        return report

    return evaluate if val is not None or folders else None


def selected(cfg: Config) -> str:
    """The metric by which the best epoch is told."""
    if cfg.select or not cfg.zero_shot or cfg.data.val:
        return cfg.select or "i2t_r1"
    return f"{name_of(cfg.zero_shot[0])}_top1"


def name_of(root: str) -> str:
    """`shapes:sketch` → sketch, /photos/birds → birds."""
    return Path(root.partition(":")[2] or root).name
