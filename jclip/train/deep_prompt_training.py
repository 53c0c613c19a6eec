"""Training deep prompts on photos: both towers' vectors, measured and kept as validation says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jclip.config import WithModel, WithTemplates
from jclip.data.splits import PhotoData, read_photos
from jclip.features.extraction import few_shot_features
from jclip.features.heads import ZeroShotHead, zero_shot_head
from jclip.features.precomputed import FeatureSet
from jclip.features.source import ModelSource, with_vectors
from jclip.functional.losses import cross_entropy
from jclip.functional.similarity import zero_shot_scores
from jclip.model.deep_prompts import Arrays, DeepPrompts, gapped
from jclip.model.learned_prompts import write_nearest
from jclip.model.parameter_groups import Prompting
from jclip.prompts.templates import class_prompts, load_templates
from jclip.runtime import jt
from jclip.train.loop import fit
from jclip.train.on_features import coop_rate, zero_shot_report
from jclip.train.on_photos import (
    AugmentedBatches,
    ChosenOnPhotos,
    check_photos,
    measure,
    photo_epochs,
    photos_digest,
    shared_images,
)
from jclip.train.optim import TrainState, optimiser, step_together
from jclip.train.run import Run
from jclip.train.scored_photos import measured
from jclip.train.several_ranks import note_ranks
from jclip.weights.stored_vocabulary import check_takes_vectors

Penalty = Callable[[Any, Any, Any, Any], Any]  # pixels, image features, text features, scores → a scalar


class Average(Protocol):
    """Sums over the epochs, which are part of what a checkpoint holds."""

    sums: Mapping[str, jt.Var]

    def add(self, epoch: int) -> None:
        """Takes in the parameters as they are after that epoch."""

    def arrays(self) -> Arrays:
        """The averaged parameters, by name."""


def with_names(
    learned: Arrays, config: Prompting, templates: str, classnames: Sequence[str], source: ModelSource
) -> Arrays:
    """What was learned, with text features of other classes' names. Raises `DataError` for names that don't fit."""
    if "context" not in learned:
        return {**learned, "text": zero_shot_head(source, class_prompts(classnames, load_templates(templates))).weights}
    with jt.no_grad():
        text = gapped(source.model, classnames, config).features(jt.array(learned["context"]))
        return {**learned, "text": text.numpy()}


class DeepPromptConfig(WithModel, WithTemplates, ChosenOnPhotos, AugmentedBatches, Protocol):
    """A model whose deep prompts are learned on photos."""

    @property
    def prompts(self) -> Prompting: ...


def photos_for(cfg: DeepPromptConfig, run: Run) -> tuple[ModelSource, PhotoData, FeatureSet]:
    """A recipe's model and photos, and the features of val, test and class names without vectors, noted in the run.

    Raises `ConfigError` or `DataError` for what can't be learned from.
    """
    source = ModelSource(cfg.model, cfg.family, draft=cfg.data.draft, upright=cfg.data.upright).squared()
    cfg.prompts.check(source.config)
    if cfg.prompts.text:
        check_takes_vectors(source.config.text)
    photos = read_photos(cfg.data)
    check_photos(cfg, photos)
    note_ranks(run, photos_digest(photos))
    data = few_shot_features(cfg.data, source, cfg.templates, training=None, photos=photos)
    run.note(**data.facts)
    return source, photos, data


def learn(
    cfg: DeepPromptConfig,
    run: Run,
    source: ModelSource,
    photos: PhotoData,
    data: FeatureSet,
    prompts: DeepPrompts,
    penalty: Penalty | None = None,
    average: Average | None = None,
) -> dict[str, float]:
    """`train`, what was learned as arrays and as the words nearest to it, and the run's metrics.

    cfg: a recipe's config with data, templates, augment, prompts, optim, selection and seed.
    """
    kept, figures = train(cfg, run, source, photos, data, prompts, penalty, average)
    prompts.put(kept)
    learned = prompts.learned(data.scale)
    run.save_learned(learned, classnames=photos.classnames, width=learned["text"].shape[1])
    if "context" in learned:
        write_nearest(run.file("words.csv"), source.model, learned["context"][0])
    seen = few_shot_features(cfg.data, with_vectors(source, learned), cfg.templates, training=None, photos=photos)
    metrics = measured(run, seen, ZeroShotHead(learned["text"], data.scale))
    if cfg.selection == "last" and len(photos.test):
        figures["test_top1_last_epoch"] = metrics["test_top1"]
    parameters = sum(array.size for array in prompts.arrays().values())
    return {**zero_shot_report(data), **metrics, **figures, "parameters": parameters}


def train(
    cfg: DeepPromptConfig,
    run: Run,
    source: ModelSource,
    photos: PhotoData,
    data: FeatureSet,
    prompts: DeepPrompts,
    penalty: Penalty | None,
    average: Average | None,
) -> tuple[Arrays, dict[str, float]]:
    """Returns (arrays, metrics): the parameters that `cfg.selection` keeps. The schedule is CoOp's."""
    optim, steps = optimiser(cfg.optim, prompts.params), -(-len(photos.train) // cfg.optim.batch)
    rate, every_epoch = coop_rate(cfg.optim, steps), photo_epochs(cfg, photos, source)
    loss_of = batch_loss(prompts, data.scale, penalty)

    def step(batch, number: int):
        optim.lr = rate(number)
        loss = loss_of(*batch)
        step_together(optim, loss)
        return loss

    def epochs(epoch: int):
        yield from every_epoch(epoch)
        if average:  # after the epoch's last step, before it is saved
            average.add(epoch)

    def top1(part: str) -> float:
        with jt.no_grad():
            head, seeing = ZeroShotHead(prompts.text().numpy(), data.scale), prompts.seeing()
        if seeing is None:
            return data.top1(part, head)
        return measure(seeing, head, source.preprocess, getattr(photos, part), cfg.data.on_error)["top1"]

    count, state = cfg.optim.trained_epochs, TrainState(optim, average.sums if average else None)
    evaluate = (lambda: {"top1": top1("val")}) if len(photos.val) else None
    outcome = fit(step, epochs, state=state, run=run, epochs=count, evaluate=evaluate, steps=count * steps)
    metrics = {"test_top1_last_epoch": top1("test")} if cfg.selection != "last" and len(photos.test) else {}
    metrics |= {"best_epoch": outcome.best_epoch + 1} if outcome.best_arrays else {}
    if cfg.selection == "val":
        return outcome.best_arrays, metrics
    return (average if cfg.selection == "aggregate" else prompts).arrays(), metrics


def batch_loss(prompts: DeepPrompts, scale: float, penalty: Penalty | None = None) -> Callable:
    """(pixels, labels) → cross-entropy of s f T' over all classes, plus the penalty; pixels are this rank's rows."""
    width = prompts.width

    def loss(pixels: np.ndarray, labels: np.ndarray):
        pixels = jt.array(pixels).stop_grad() if len(pixels) else pixels
        images = shared_images(prompts.images, pixels, len(labels), width)
        text = prompts.text()
        scores = zero_shot_scores(images, text, scale)
        own = cross_entropy(scores, jt.array(labels.astype(np.int32)))
        return own + penalty(pixels, images, text, scores) if penalty else own

    return loss
