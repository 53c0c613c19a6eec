"""DualCoOp: a positive and a negative prompt of each class learn which places of a photo show it, from labels known in part.

Sun, Hu & Saenko, NeurIPS 2022, arXiv 2206.09541; with `kind: dualcoop_pp` DualCoOp++, Hu, Sun, Sclaroff & Saenko, arXiv
2308.01890.   Trains: M x D parameters for each of two sets of prompts, or three; of each class with `per_class`.
Needs: photos of several classes each, of whose labels some may be unknown.

    S± = s Σ_p (x_p · t±) w_p,  w = softmax over p of τ x_p · t+      score: S+ - S-

x_p are the places of a photo, of a ResNet its cells' values and their mean's. DualCoOp++ looks where a third set of prompts
says, the evidence, and lets at each place the class stand out that fits best. A label that is not known has no part in the
asymmetric loss. The towers are frozen: without augmentation photos are encoded once, else again in each epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from jclip.choices import Interpolation, Resize
from jclip.config import DataConfig, Dtype, OptimConfig, ReadWith, warmed_sgd
from jclip.data import known_labels, label_files, labelled_photos, multi_label
from jclip.errors import ConfigError, DataError, UnknownName
from jclip.features import pair_maps, tagging
from jclip.features import source as sources
from jclip.model import prompt_sets, trainable
from jclip.prompts.spelling import name_key
from jclip.report import tagging_run
from jclip.train import pair_training
from jclip.train import run as runs
from jclip.weights import stored_vocabulary

TASK = "multi_label"
NORMALISED = False  # rows of places: each has a length of its own
LEARNS_FROM_LABELS = True  # of photos, which files of its scores say


@dataclass(frozen=True)
class Config:
    model: str  # a name or weight file
    data: DataConfig = field(default_factory=DataConfig)  # photos of several classes each: train, val, test
    kind: Literal["dualcoop", "dualcoop_pp"] = "dualcoop"  # the latter with evidence and a winner
    known: float = 1.0  # share of the training labels that is known, drawn by seed and written to mask.npz
    mask: str = ""  # a file of such a mask in its place
    only: tuple[str, ...] = ()  # classes with labels in training; the others are measured as unseen ones
    augment: str = "none"  # of training photos: "dualcoop" as its authors have it, "tai_dual" as TaI-DPT's
    size: int = 0  # pixels of a photo's sides; 0: the model's own
    resize: Resize = "squash"
    interpolation: Interpolation | None = None
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"
    # of a ResNet: mean and cells with positions, these resampled by size or (TaI-DPT) by factor, or the cells alone without
    places: Literal["dualcoop", "tai_dpt", "cells"] = "dualcoop"
    vit: Literal["value", "token"] = "value"  # what a ViT's places are made of
    context: int = 16  # M
    words: str = ""  # start from their tokens, whose number M then is
    position: Literal["end", "middle", "front"] = "end"  # where the name stands
    per_class: bool = False  # vectors of each class's own
    scale: float = 100.0  # s
    sharpness: float = 20.0  # τ
    learn: tuple[Literal["scale", "sharpness"], ...] = ()  # which of these are learned too, as logarithms
    # of dualcoop_pp: what the best class at a place does to the others
    winner: Literal["pp_norm", "pp_plus"] = "pp_norm"
    # pair: of the softmax over S+ and S-, summed; difference: of sigmoid(S+ - S-), a photo's mean; ranking: text_as_image's of
    # S+ - S-, a photo's mean, which needs far fewer photos
    loss: Literal["pair", "difference", "ranking"] = "pair"
    margin: float = 1.0  # of the ranking loss
    loss_weight: float = 0.03
    negative_power: float = 2.0  # γ-
    positive_power: float = 1.0  # γ+
    clip: float = 0.05
    optim: OptimConfig = field(default_factory=lambda: warmed_sgd(lr=2e-3, epochs=50, batch=32))  # the authors'
    selection: Literal["last", "val"] = "last"  # the epoch that is kept
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {
        "": tuple(f"data.{name}" for name in ("shots", "val_shots", "pool", "seed", "features", "text_features")),
        "kind=dualcoop_pp": ("winner",),
        "loss=ranking": ("margin",),
        "words=": ("context",),
    }

    def __post_init__(self):
        must = (
            (0 < self.known <= 1, "known", "in (0, 1]"),
            (self.context >= 1, "context", "at least 1"),
            (self.size >= 0, "size", "at least 0"),
            (self.scale > 0, "scale", "above 0"),
            (self.sharpness > 0, "sharpness", "above 0"),
            (self.loss_weight > 0, "loss_weight", "above 0"),
            (min(self.negative_power, self.positive_power) >= 0, "negative_power", "at least 0, and positive_power"),
            (0 <= self.clip < 1, "clip", "in [0, 1)"),
            (self.margin >= 0, "margin", "at least 0"),
        )
        for holds, name, phrase in must:
            if not holds:
                raise ConfigError(f"{name} must be {phrase}, got {getattr(self, name)}")
        if self.mask and self.known != 1:
            raise ConfigError(
                f"mask and known must not both be set, got mask={self.mask} and known={self.known}: set one"
            )
        if self.only and self.per_class:
            raise ConfigError(
                "per_class=true and only must not both be set: classes outside `only` would stay untrained"
            )
        if len({*self.learn}) < len(self.learn):
            raise ConfigError(f"learn must name each factor once, got {', '.join(self.learn)}")

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the sets of prompts."""
        return pair_maps.SETS if self.kind == "dualcoop_pp" else pair_maps.SETS[:2]

    @property
    def winner_among(self) -> Literal["none", "seed", "pp_norm", "pp_plus"]:
        """The winner that takes part in scores."""
        return self.winner if self.kind == "dualcoop_pp" else "none"


def rows_of_ranks(cfg: Config) -> tuple[int, str]:
    """Photos of a batch, which several ranks divide, and the name of their number. Raises `ConfigError`."""
    if cfg.augment != "none" and cfg.data.on_error == "skip":
        raise ConfigError(
            "data.on_error must be stop where several ranks train, got skip: remove photos that are broken"
        )
    return cfg.optim.batch, "optim.batch"


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Photos and which of their labels are known, training, evaluation of val and test photos."""
    source = prompted_source({}, cfg, sources.source_of(cfg))
    trainable.check_in_memory(source)
    stored_vocabulary.check_takes_vectors(source.config.text)
    photos = read_photos(cfg)
    training = photos.pop("train")
    taught = taught_of(cfg, training.classnames)
    known = known_of(cfg, training, run) & taught
    targets = known_labels.masked(training.targets, known)
    known_labels.check_known(targets, training.classnames, taught)
    parts = {"train": training, **photos}
    run.note(weights_sha256=source.weights_sha256, mask_sha256=label_files.PhotoLabels((), (), targets).sha256())
    run.note(**{f"{name}_sha256": part.split.digest() for name, part in parts.items()})

    batches = pair_training.PlaceBatches(cfg, source, training, targets)
    head = pair_training.PairHead(cfg, prompts_of(cfg, source, training.classnames))
    measured = pair_training.MeasuredPairs(cfg, source, photos, taught)
    outcome, state = pair_training.train(cfg, run, head, batches, measured.validation(head))
    learned = head.learned(outcome.best_arrays if cfg.selection == "val" else state.arrays())
    run.save_learned(learned, classnames=training.classnames, width=source.config.embed_dim)
    best = {"best_epoch": outcome.best_epoch + 1} if outcome.best_arrays else {}
    metrics = {"train_loss": outcome.last["loss"], "train_count": len(training), "known": float(known.mean())}
    return {**metrics, **measured.report(learned, run), **best}


def read_photos(cfg: Config) -> dict[str, label_files.PhotoLabels]:
    """The photos that `cfg.data` names, by part. Raises `ConfigError` or `DataError` for what is missing."""
    if not multi_label.has_photos(cfg.data, "train"):
        raise ConfigError("data.train must have labelled photos, got none: set a list, or labels of a set")
    parts = [part for part in ("train", "val", "test") if multi_label.has_photos(cfg.data, part)]
    if cfg.selection == "val" and "val" not in parts:
        raise ConfigError("selection=val needs labelled validation photos, got none: set data.val, or selection=last")
    photos = {part: labelled_photos.read_labelled_photos(cfg.data, part) for part in parts}
    names = photos["train"].classnames
    for part, labels in photos.items():
        if [*map(name_key, labels.classnames)] != [*map(name_key, names)]:
            raise DataError(f"data.{part} must have the classes of data.train, in their order: set data.classes")
    return photos


def taught_of(cfg: Config, classnames: Sequence[str]) -> np.ndarray:
    """(C,) bool: which classes training knows. Raises `UnknownName`, or `ConfigError` where those are none."""
    own = [name_key(name) for name in classnames]
    for name in cfg.only:
        if name_key(name) not in own:
            raise UnknownName("class in only", name, classnames)
    chosen = {name_key(name) for name in cfg.only} or {*own}
    return np.array([key in chosen for key in own])


def known_of(cfg: Config, labels: label_files.PhotoLabels, run: runs.Run) -> np.ndarray:
    """(N, C) bool: which labels are known; a mask that is drawn is written into the run's folder."""
    if cfg.mask:
        return known_labels.read_mask(cfg.mask, labels)
    known = known_labels.draw_mask(*labels.targets.shape, cfg.known, cfg.seed)
    if cfg.known < 1 and run.writer:
        known_labels.write_mask(run.file("mask.npz"), known, labels)
    return known


def prompts_of(cfg: Config, source: sources.ModelSource, classnames: Sequence[str]) -> prompt_sets.PromptSets:
    """The sets of prompts at their start."""
    trainable.check_in_memory(source.model)
    own = cfg.sets if cfg.per_class else ()
    options = {"words": cfg.words, "position": cfg.position, "per_class": own, "seed": cfg.seed}
    return prompt_sets.PromptSets(source.model, classnames, cfg.sets, cfg.context, **options)


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with rows of places (N, P E), see `jclip.features.pair_maps`: S+ - S- (N, C)."""
    return pair_maps.PairScorer(learned, cfg)


def part_scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Scores by part: all are of the places."""
    score = scorer(learned, cfg)

    def parts(rows: np.ndarray) -> dict[str, np.ndarray]:
        scores = score(rows)
        return {"local": scores, "merged": scores}

    return parts


def window_scorer(learned: dict[str, np.ndarray], cfg: Config) -> pair_maps.PairScorer:
    """What scores a photo and its windows, see `jclip.features.window_scores`."""
    return pair_maps.PairScorer(learned, cfg)


def tagger(folder: Path, config: Config) -> tagging.Scorer:
    """A finished run as what gives tags to photos."""
    return tagging_run.TaggingRun.load(folder)


def prompted_source(learned: dict[str, np.ndarray], cfg: Config, source: sources.ModelSource) -> pair_maps.PairSource:
    """The model as what makes rows of places."""
    return pair_maps.PairSource(source, cfg.size, cfg.resize, cfg.interpolation, cfg.places, cfg.vit)


def for_classes(
    learned: dict[str, np.ndarray], cfg: Config, classnames: Sequence[str], source: sources.ModelSource
) -> dict[str, np.ndarray]:
    """What `scorer` needs for other classes: the vectors around their names."""
    if cfg.per_class:
        raise ConfigError("classes must be the run's own with per_class=true, got others: train with per_class=false")
    return pair_training.with_names(learned, source, classnames, cfg.position)
