"""Texts as images: prompts for several classes at once are learned from sentences alone, and applied to photos.

Guo et al., CVPR 2023, arXiv 2211.12739 (TaI-DPT).   Trains: M x D parameters for each of two sets of prompts, or three.
Needs: class names, and captions if you have some; without any they are made of the names. No labelled photo.

    S_global = s g · G'      S_local = s Σ_p x_p · L' w_p,  w = softmax over p of τ x_p · L'

In training g is a sentence's end token and x_p its tokens, on photos g is the pooled feature and x_p the places of the
map. Both towers are frozen, so a sentence is encoded once. A third set of prompts, `evidence`, may say where to look, and
`winner` which class a place is of. The teacher is the moving average of the prompts (`optim.average`), and `keep` says
which of the two is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from jclip.choices import PreprocessChoice
from jclip.config import DataConfig, Dtype, OptimConfig, ReadWith, warmed_sgd
from jclip.data import lexicons
from jclip.errors import ConfigError
from jclip.features import photo_maps, sentence_features, tagging
from jclip.features import source as sources
from jclip.model import prompt_sets, trainable
from jclip.report import tagging_run
from jclip.train import caption_training, multi_label_photos, several_ranks
from jclip.train import run as runs
from jclip.weights import stored_vocabulary

TASK = "multi_label"
NORMALISED = False  # rows of maps: each place has a length of its own


@dataclass(frozen=True)
class Config:
    model: str  # a name or weight file
    data: DataConfig = field(
        default_factory=DataConfig
    )  # classes; photos of several classes each to measure on: val, test
    classes: str = ""  # names a,b,c, a set's name or a file, in place of data.classes
    captions: tuple[str, ...] = ()  # files of labelled captions; none: made of the names; shapes: the embedded world's
    scenes: int = 4000  # captions of the embedded world
    per_name: int = 300  # captions that are made, for each class at least
    sentences: tuple[Literal["single", "pairs"], ...] = ()  # templates filled with each class, and with each two
    only: tuple[str, ...] = ()  # classes that are learned: others are unknown where a caption does not name them
    stored: Literal["fp16", "fp32"] = "fp16"  # numbers that the captions' features are kept in
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"
    templates: str = "simple"  # of the zero-shot figures beside
    preprocess: PreprocessChoice = field(default_factory=PreprocessChoice)  # of photos: size, resize
    positions: bool = False  # whether a ResNet's attention pool adds its table of positions
    vit: Literal["value", "token"] = "value"  # what a ViT's map is made of
    context: int = 16  # M
    words: str = ""  # start from their tokens, whose number M then is: "a photo of a"
    position: Literal["end", "middle", "front"] = "end"  # where the name stands
    per_class: bool = False  # vectors of each class's own
    evidence: bool = False  # a third set of prompts, which says where to look
    evidence_per_class: bool = True  # whether it follows per_class
    winner: Literal["none", "seed", "pp_norm", "pp_plus"] = "none"  # at each place the class that fits best stands out
    init_from: str = ""  # a finished run whose prompts are the start
    scale: float = 4.0  # s
    tau_text: float = 50.0  # τ over a sentence's tokens
    tau_image: float = 40.0  # τ over a photo's places
    merge: float = 0.5  # share of the global scores
    search: bool = False  # choose merge on labelled validation photos
    loss: Literal["ranking", "asymmetric"] = "ranking"
    margin: float = 1.0  # of the ranking loss
    cooccurrence: bool = False  # weighs its pairs by how rarely both classes share a caption
    teacher_global: float = 0.0  # weight of the pull towards the average's scores
    teacher_local: float = 0.0
    keep: Literal["student", "average"] = "average"  # what is measured and kept, where there is an average
    modulation: float = 0.0  # share of local scores passed on to classes that often share a caption
    bank: int = 0  # nearest captions that a photo's global feature is pulled towards; 0: none
    bank_mix: float = 0.5
    optim: OptimConfig = field(
        default_factory=lambda: warmed_sgd(lr=1e-4, epochs=20, batch=512)
    )  # the authors' for VOC2007 and COCO
    selection: Literal["last", "val"] = "last"  # the epoch that is kept
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {
        "": tuple(f"data.{name}" for name in ("shots", "val_shots", "pool", "seed", "features", "text_features")),
        "loss=ranking": ("margin",),
        "evidence=true": ("evidence_per_class",),
        "bank!=0": ("bank_mix",),
        "words=": ("context",),
    }

    def __post_init__(self):
        for names, least in ((("context", "scenes", "per_name"), 1), (("teacher_global", "teacher_local", "bank"), 0)):
            _require(all(getattr(self, name) >= least for name in names), self, names, f"at least {least}")
        _require(min(self.modulation, self.margin) >= 0, self, ("modulation", "margin"), "at least 0")
        names = ("scale", "tau_text", "tau_image")
        _require(all(getattr(self, name) > 0 for name in names), self, names, "above 0")
        _require(all(0 <= x <= 1 for x in (self.merge, self.bank_mix)), self, ("merge", "bank_mix"), "in [0, 1]")
        if (self.teacher_global or self.teacher_local) and not self.optim.average:
            raise ConfigError(
                "a teacher must have a moving average, got optim.average=0: set optim.average, such as 0.995"
            )
        if self.cooccurrence and self.loss != "ranking":
            raise ConfigError(
                f"cooccurrence weighs pairs of the ranking loss, got loss={self.loss}: leave one of them out"
            )

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the sets of prompts."""
        return ("global", "local", "evidence") if self.evidence else ("global", "local")

    @property
    def per_class_sets(self) -> tuple[str, ...]:
        """Those in which each class has vectors of its own."""
        own = [name for name in self.sets if name != "evidence" or self.evidence_per_class]
        return tuple(own) if self.per_class else ()


def _require(holds: bool, cfg: Config, names: Sequence[str], must: str) -> None:
    """Raises `ConfigError` unless `holds`."""
    if not holds:
        raise ConfigError(f"{', '.join(f'{name}={getattr(cfg, name)}' for name in names)} must be {must}")


def rows_of_ranks(cfg: Config) -> None:
    """Several ranks divide the class names, however many there are."""


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Captions and their features, training, the share of the global scores, evaluation of val and test photos."""
    source = sources.source_of(cfg)
    trainable.check_in_memory(source)
    stored_vocabulary.check_takes_vectors(source.config.text)
    parts = multi_label_photos.read_parts(cfg)
    captions = caption_training.read_captions(cfg, multi_label_photos.names_of(cfg, parts), run)
    run.note(weights_sha256=source.weights_sha256, captions_sha256=caption_training.captions_digest(captions))
    run.note(**multi_label_photos.facts(parts))
    several_ranks.note_ranks(run)
    features = sentence_features.sentence_features(source, captions.texts, cfg.stored)
    prompts = prompts_of(cfg, source, captions.classnames)
    loss = caption_training.CaptionLoss(
        cfg, prompts, features, captions.targets, caption_training.weights_of_pairs(cfg, captions)
    )
    batches = caption_training.CaptionBatches(captions.weights, cfg.optim.batch, cfg.seed)

    extras = caption_training.extras_of(cfg, captions, features)
    photos = multi_label_photos.Measured(cfg, photo_maps.MapSource(source, cfg.positions, cfg.vit), parts, extras)
    outcome, state = caption_training.train(cfg, run, prompts, loss, batches, photos.validation(prompts))
    chosen = outcome.best_arrays if cfg.selection == "val" else state.arrays()
    learned = {**caption_training.learned_of(prompts, chosen, state), **extras}
    merge, metrics = photos.report(learned, run)
    run.save_learned(
        {**learned, "merge": np.array([merge])}, classnames=captions.classnames, width=source.config.embed_dim
    )
    best = {"best_epoch": outcome.best_epoch + 1} if outcome.best_arrays else {}
    figures = {"train_loss": outcome.last["loss"], "captions": len(captions)}
    return {**figures, **photos.zero_shot(captions.classnames), **metrics, **best}


def prompts_of(cfg: Config, source: sources.ModelSource, classnames: Sequence[str]) -> prompt_sets.PromptSets:
    """The sets of prompts at their start."""
    trainable.check_in_memory(source.model)
    options = {"words": cfg.words, "position": cfg.position, "per_class": cfg.per_class_sets, "seed": cfg.seed}
    prompts = prompt_sets.PromptSets(source.model, lexicons.spoken_names(classnames), cfg.sets, cfg.context, **options)
    if cfg.init_from:
        caption_training.start_from(prompts, cfg.init_from)
    return prompts


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with rows of maps (N, (1 + P) E), see `jclip.features.photo_maps`: merged scores (N, C)."""
    parts = part_scorer(learned, cfg)
    return lambda rows: parts(rows)["merged"]


def part_scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Scores by part: merged, global and local."""
    both, share = photo_maps.MapScorer(learned, cfg), float(learned["merge"][0])

    def score(rows: np.ndarray) -> dict[str, np.ndarray]:
        scored = both(rows)
        return {"global": scored.whole, "local": scored.places, "merged": scored.merged(share)}

    return score


def window_scorer(learned: dict[str, np.ndarray], cfg: Config) -> photo_maps.MapScorer:
    """What scores a photo and its windows, see `jclip.features.window_scores`."""
    return photo_maps.MapScorer(learned, cfg)


def tagger(folder: Path, config: Config) -> tagging.Scorer:
    """A finished run as what gives tags to photos."""
    return tagging_run.TaggingRun.load(folder)


def prompted_source(learned: dict[str, np.ndarray], cfg: Config, source: sources.ModelSource) -> sources.ModelSource:
    """The model as what makes rows of maps."""
    return photo_maps.MapSource(source, cfg.positions, cfg.vit)


def for_classes(
    learned: dict[str, np.ndarray], cfg: Config, classnames: Sequence[str], source: sources.ModelSource
) -> dict[str, np.ndarray]:
    """What `scorer` needs for other classes: the vectors around their names."""
    if cfg.per_class:
        raise ConfigError("classes must be the run's own with per_class=true, got others: train with per_class=false")
    if cfg.modulation:
        raise ConfigError("modulation must be of classes in the captions, got other names: train on captions of these")
    return caption_training.with_names(learned, source, classnames, cfg.position)
