"""CLIP-LoRA: low-rank updates of the attention in both towers, merged into the weights when training has ended.

Zanella & Ben Ayed, CVPR-W 2024, arXiv 2405.18541.   Trains: 2 r D parameters per updated matrix.
Needs: a few-shot split of photos; validation photos where the epoch is chosen.

    W' = W + (α / √r) B A,   loss = CE(s I T', label) with the text features of all classes in each step

The authors take 500 steps per shot, one set of values for all data sets, and the last step; `steps` are theirs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from jclip import kernels
from jclip.config import DataConfig, OptimConfig, ReadWith
from jclip.data import splits
from jclip.errors import ConfigError
from jclip.features import extraction, heads
from jclip.features import source as sources
from jclip.functional import losses, similarity
from jclip.model import clip, low_rank
from jclip.model.parameter_groups import LowRank
from jclip.postponed import jt
from jclip.prompts.templates import class_prompts, load_templates
from jclip.train import loop, on_features, on_photos
from jclip.train import optim as optimisation
from jclip.train import run as runs


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str
    family: str | None = None  # for weights that don't say their activation
    templates: str = "simple"  # the authors' for all data sets; of several, each step draws one
    augment: str = "coop"
    lora: LowRank = field(default_factory=LowRank)
    steps: int = 0  # of the whole training; 0: 500 per shot
    end_lr: float = 1e-6  # where the cosine ends
    accumulate: int = 1  # parts in which a batch is computed: less memory, a third more time, the same result
    half: bool = False  # keep the merged weights in fp16
    selection: Literal["val", "last"] = "last"  # the epoch that is kept
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-4, weight_decay=1e-2, batch=32))
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {"": ("optim.schedule", "optim.warmup", "optim.epochs", "optim.stop")}

    def __post_init__(self):
        if self.steps < 0 or self.end_lr < 0:
            raise ConfigError(f"steps and end_lr must be at least 0, got {self.steps} and {self.end_lr}")
        if not 1 <= self.accumulate <= self.optim.batch:
            raise ConfigError(f"accumulate must be in [1, optim.batch={self.optim.batch}], got {self.accumulate}")
        self.data.refuse_features()


def rows_of_ranks(cfg: Config) -> tuple[int, str]:
    """Photos of a batch, which several ranks divide, and the name of their number."""
    return cfg.optim.batch, "optim.batch"


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Zero-shot, training, merging, and the same measurements again; writes the merged model as model.safetensors."""
    source, photos = on_photos.model_and_photos(cfg, run)
    adapters = low_rank.Adapters(source.model, cfg.lora, cfg.seed)
    before = extraction.few_shot_features(cfg.data, source, cfg.templates, training=None, photos=photos)
    run.note(**before.facts)
    zero_shot = on_features.zero_shot_report(before)
    prompts = class_prompts(photos.classnames, load_templates(cfg.templates))
    arrays, metrics = train(cfg, run, source, photos, adapters, prompts)

    clip.put_arrays(source.model, adapters.merged(arrays))
    after = on_photos.write_tuned(cfg, run, source, photos, prompts, made_by="lora", further=arrays)
    return {**zero_shot, **after, **metrics, "parameters": sum(a.size for a in arrays.values())}


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """Zero-shot with the merged towers: normalised features (N, E) → scores (N, C)."""
    return heads.ZeroShotHead(learned["text"], float(learned["scale"][0]))


def for_classes(
    learned: dict[str, np.ndarray], cfg: Config, classnames: Sequence[str], source: sources.ModelSource
) -> dict[str, np.ndarray]:
    """What was learned, for other class names, read by the merged text tower."""
    return {**learned, **heads.text_for(source, classnames, cfg.templates)}


def train(
    cfg: Config,
    run: runs.Run,
    source: sources.ModelSource,
    photos: splits.PhotoData,
    adapters: low_rank.Adapters,
    prompts: list[list[str]],
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Returns (arrays, metrics): the updates of the chosen epoch. Afterwards the model is as it was."""
    model, optim = source.model, optimisation.optimiser(cfg.optim, adapters.params)
    total, of_epoch = total_steps(cfg), -(-len(photos.train) // cfg.optim.batch)
    every_epoch = on_photos.photo_epochs(cfg, photos, source)
    loss_of, whole_texts = batch_loss(cfg, model, prompts, adapters), bool(cfg.lora.dropout)

    def step(batch, number: int):
        optim.lr = optimisation.cosine(number, total, cfg.optim.lr, cfg.end_lr)
        adapters.train(True)
        loss = loss_of(*batch, number)
        optimisation.step_together(optim, loss, once=lambda name: whole_texts and not name.startswith("visual."))
        adapters.train(False)
        return loss

    def epochs(epoch: int):
        return itertools.islice(every_epoch(epoch), total - epoch * of_epoch)

    def top1(split: splits.Split) -> float:
        return on_photos.zero_shot_top1(model, prompts, source.preprocess, split, cfg.data.on_error)

    adapters.attach()
    try:
        outcome = loop.fit(
            step, epochs, state=optimisation.TrainState(optim), run=run, epochs=-(-total // of_epoch), steps=total,
            evaluate=(lambda: {"top1": top1(photos.val)}) if len(photos.val) else None,
        )  # fmt: skip
        metrics = {"test_top1_last_epoch": top1(photos.test)} if len(photos.test) else {}
        last = {k: v.numpy() for k, v in adapters.params.items()}
    finally:
        adapters.detach()
    metrics |= {"best_epoch": outcome.best_epoch + 1} if outcome.best_arrays else {}
    return (outcome.best_arrays if cfg.selection == "val" else last), metrics


def batch_loss(cfg: Config, model: clip.CLIP, prompts: list[list[str]], adapters: low_rank.Adapters) -> Callable:
    """(pixels, labels, number) → cross-entropy over all classes, text features recomputed; a template by number."""
    scale = float(model.logit_scale.exp().item())
    tokens = [
        model.tokenize([of_class[i % len(of_class)] for of_class in prompts]) for i in range(max(map(len, prompts)))
    ]

    def loss(pixels, labels, number: int):
        drawn = int(np.random.default_rng((cfg.seed, number)).integers(len(tokens)))

        def image_features(own: slice):
            def image_part(part: tuple[slice, slice]):
                whole, rows = part
                adapters.draw(
                    cfg.seed, number, 0, whole.start, rows=(rows.start - whole.start, whole.stop - whole.start)
                )
                return model.encode_image(pixels[rows.start - own.start : rows.stop - own.start])

            parts = shared_parts(on_photos.shares(len(labels), cfg.accumulate), own)
            return on_photos.features_in_parts(model, image_part, parts, adapters.params, "image")

        def text_part(rows: slice):
            adapters.draw(cfg.seed, number, 1, rows.start)
            return model.encode_text(tokens[drawn][rows])

        def text_features(own: slice):
            parts = on_photos.shares(own.stop - own.start, cfg.accumulate, on_photos.TEXTS_AT_ONCE)
            parts = [slice(own.start + part.start, own.start + part.stop) for part in parts]
            return on_photos.features_in_parts(model, text_part, parts, adapters.params, "text")

        width, every = model.config.embed_dim, slice(0, len(prompts))
        images = kernels.collectives.shared_rows(image_features, len(labels), width)
        if cfg.lora.dropout:  # whose draws depend on which texts are read together
            texts = text_features(every)
        else:
            texts = kernels.collectives.shared_rows(text_features, len(prompts), width)
        return losses.cross_entropy(
            similarity.zero_shot_scores(images, texts, scale), jt.array(labels.astype(np.int32))
        )

    return loss


def shared_parts(parts: Sequence[slice], own: slice) -> list[tuple[slice, slice]]:
    """Each part that has rows of `own`, and which of its rows these are."""
    cut = [(part, slice(max(part.start, own.start), min(part.stop, own.stop))) for part in parts]
    return [(part, rows) for part, rows in cut if rows.start < rows.stop]


def total_steps(cfg: Config) -> int:
    """Steps of the training: the config's, else 500 per shot. Raises `ConfigError` where there are neither."""
    if not (cfg.steps or cfg.data.shots):
        raise ConfigError("steps must be set where data.shots=0 takes all photos: by default they are counted per shot")
    return cfg.steps or 500 * cfg.data.shots
