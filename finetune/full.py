"""Full fine-tuning: the towers themselves, on a few photos per class against the classes' prompts.

Goyal et al., CVPR 2023, arXiv 2212.00638 (FLYP: the loss that pre-trained the model), as the Jittor challenge's entries
do it under the name `no_finetune`; or cross-entropy over all classes.   Trains: what `lock` leaves of both towers.
Needs: a few-shot split of photos, with validation photos where the epoch is chosen.

    contrastive:    L = (CE(s I T', own) + CE(s T I', own)) / 2,  T: prompts of the batch's own classes
    sigmoid:        L = -1/B Σ_ij log σ(y_ij (s I_i T_j + b)),    of weights trained so (SigLIP, arXiv 2303.15343)
    cross_entropy:  L = CE(s I W', label),                        W: prompts of all classes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from jclip import kernels
from jclip.config import DataConfig, Dtype, OptimConfig, ReadWith
from jclip.data import splits
from jclip.errors import ConfigError
from jclip.features import extraction, heads
from jclip.features import source as sources
from jclip.functional import directions, losses
from jclip.model import clip, trainable
from jclip.model.parameter_groups import Lock, trained_patterns
from jclip.postponed import jt
from jclip.prompts.templates import class_prompts, load_templates
from jclip.train import loop, on_features, on_photos, several_ranks
from jclip.train import optim as optimisation
from jclip.train import run as runs
from jclip.weights.variants import CLIPConfig


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"  # bf16: linear maps multiply in it while training, on CPUs with AVX-512
    templates: str = "simple"  # each step draws one of these; they are averaged for measuring
    augment: str = "jittor_challenge"
    loss: Literal["contrastive", "sigmoid", "cross_entropy"] = "contrastive"  # sigmoid: SigLIP's own, with its bias
    positives: Literal["own", "same"] = "own"  # but of cross_entropy, "same": photos of one class share their prompts
    lock: Lock = field(default_factory=Lock)
    statistics: bool = False  # whether batch norms move theirs
    clip: float = 0.0  # bound of the gradient's global norm; 0: none
    accumulate: int = 1  # parts in which a batch is computed: less memory, a third more time, the same result
    half: bool = False  # keep the weights in fp16
    selection: Literal["val", "last"] = "val"  # the epoch that is kept
    every: int = 1  # epochs from one measurement on validation photos to the next
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=2e-6, betas=(0.9, 0.98), eps=1e-6, weight_decay=1e-3, epochs=50, batch=374
        )
    )
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {"loss=contrastive|sigmoid": ("positives",)}

    def __post_init__(self):
        self.data.refuse_features()
        if not 1 <= self.accumulate <= self.optim.batch or self.clip < 0:
            raise ConfigError(
                f"accumulate must be in [1, optim.batch] and clip at least 0, got {self.accumulate} and {self.clip}"
            )
        if self.every < 1:
            raise ConfigError(f"every must be at least 1 epoch, got {self.every}")


def rows_of_ranks(cfg: Config) -> tuple[int, str]:
    """Photos of a batch, which several ranks divide, and the name of their number. Raises `ConfigError`."""
    if cfg.statistics and cfg.accumulate > 1:
        raise ConfigError(f"accumulate must be 1 with statistics=true where several ranks train, got {cfg.accumulate}")
    return cfg.optim.batch, "optim.batch"


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Zero-shot, training, and the same measurements again; writes the model as model.safetensors."""
    source, photos = on_photos.model_and_photos(cfg, run)
    check_loss(cfg, source.config)
    if cfg.statistics:
        several_ranks.require_rows_for_all(len(photos.train), cfg.optim.batch)
    kernels.products_in(cfg.dtype)  # raises for what the device can't compute, before anything else
    before = extraction.few_shot_features(cfg.data, source, cfg.templates, training=None, photos=photos)
    run.note(**before.facts)
    zero_shot = on_features.zero_shot_report(before)

    model, prompts = source.model, class_prompts(photos.classnames, load_templates(cfg.templates))
    patterns = [*trained_patterns(model.config, cfg.lock), *(["logit_bias"] if cfg.loss == "sigmoid" else [])]
    clip.training_mode(model, patterns if cfg.statistics else ())
    optim = optimisation.optimiser(cfg.optim, trainable.trainable(model, patterns), trainable.no_weight_decay)
    steps = cfg.optim.epochs * -(-len(photos.train) // cfg.optim.batch)

    def top1(split: splits.Split) -> float:
        return on_photos.zero_shot_top1(model, prompts, source.preprocess, split, cfg.data.on_error)

    outcome = loop.fit(
        training_step(cfg, model, optim, prompts, steps), on_photos.photo_epochs(cfg, photos, source), run=run,
        state=optimisation.TrainState(optim, clip.running_statistics(model)), epochs=cfg.optim.trained_epochs, steps=steps,
        evaluate=(lambda: {"top1": top1(photos.val)}) if len(photos.val) else None,
        every=cfg.every,
    )  # fmt: skip
    last = {"test_top1_last_epoch": top1(photos.test)} if len(photos.test) else {}
    if cfg.selection == "val":
        clip.put_arrays(model, outcome.best_arrays)
    after = on_photos.write_tuned(cfg, run, source, photos, prompts, made_by="full")
    best = {"best_epoch": outcome.best_epoch + 1} if outcome.best else {}
    return {**zero_shot, **after, **last, **best}


def check_loss(cfg: Config, weights: CLIPConfig) -> None:
    """Raises `ConfigError` for a contrastive loss that the weights were not trained with."""
    if weights.sigmoid and cfg.loss == "contrastive":
        raise ConfigError(
            f"loss=contrastive is CLIP's softmax, which {cfg.model} (SigLIP) was not trained with: set loss=sigmoid, or "
            "cross_entropy"
        )
    if cfg.loss == "sigmoid" and not weights.sigmoid:
        raise ConfigError(f"loss=sigmoid must be of weights with a bias of their logits (SigLIP), got {cfg.model}")


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """Zero-shot with the tuned towers: normalised features (N, E) → scores (N, C)."""
    return heads.ZeroShotHead(learned["text"], float(learned["scale"][0]))


def for_classes(
    learned: dict[str, np.ndarray], cfg: Config, classnames: Sequence[str], source: sources.ModelSource
) -> dict[str, np.ndarray]:
    """What was learned, for other class names, read by the tuned text tower."""
    return {**learned, **heads.text_for(source, classnames, cfg.templates)}


def training_step(cfg: Config, model, optim, prompts: list[list[str]], steps: int):
    """One optimiser step on (pixels, labels); the template of the step is drawn from its number."""
    texts_of = prompt_encoder(cfg, model, prompts, optim.params)

    width = model.config.embed_dim

    def images_of(pixels):
        parts = on_photos.shares(len(pixels), cfg.accumulate)
        return on_photos.features_in_parts(
            model, lambda rows: model.encode_image(pixels[rows]), parts, optim.params, "image"
        )

    def shared_texts_of(labels: np.ndarray, number: int):
        if cfg.lock.freezes_text:
            return texts_of(labels, number)
        return kernels.collectives.shared_rows(lambda own: texts_of(labels[own], number), len(labels), width)

    def step(batch, number: int):
        with kernels.products_in(cfg.dtype):
            return one_step(*batch, number)

    def one_step(pixels, labels, number: int):
        optim.lr = optimisation.learning_rate(cfg.optim, number, steps)
        template = int(np.random.default_rng((cfg.seed, number)).integers(2**31))
        images, scale = on_photos.shared_images(images_of, pixels, len(labels), width), model.logit_scale.exp()
        if cfg.loss == "contrastive":
            targets = losses.positive_targets(labels) if cfg.positives == "same" else None
            loss = losses.contrastive_loss(images, shared_texts_of(labels, template), scale, targets)
        elif cfg.loss == "sigmoid":
            pairs = losses.positive_pairs(labels) if cfg.positives == "same" else None
            loss = losses.sigmoid_loss(images, shared_texts_of(labels, template), scale, model.logit_bias, pairs)
        else:
            scores = scale * jt.nn.matmul_transpose(images, shared_texts_of(np.arange(len(prompts)), template))
            loss = losses.cross_entropy(scores, jt.array(labels.astype(np.int32)))
        optimisation.step_together(optim, loss, cfg.clip, once=on_photos.OF_THE_LOSS.__contains__)
        clip.clamp_logit_scale(model)
        return loss

    return step


def prompt_encoder(cfg: Config, model, prompts: list[list[str]], params: Mapping) -> Callable:
    """(labels, number) → normalised text features (n, E) of one prompt per label, the number choosing among its own.

    A locked text tower is run once.
    """
    tokens = model.tokenize([p for of_class in prompts for p in of_class])
    counts = np.array([len(of_class) for of_class in prompts])
    first = np.cumsum(counts) - counts
    known = directions.unit(heads.encode_prompts(model, tokens)) if cfg.lock.freezes_text else None

    def texts_of(labels: np.ndarray, number: int):
        rows = first[labels] + number % counts[labels]
        if known is not None:
            return jt.array(known[rows])
        parts = on_photos.shares(len(rows), cfg.accumulate, on_photos.TEXTS_AT_ONCE)
        return on_photos.features_in_parts(
            model, lambda part: model.encode_text(tokens[rows[part]]), parts, params, "text"
        )

    return texts_of
