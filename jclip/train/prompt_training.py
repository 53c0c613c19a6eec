"""Training learned prompts on image features: CoOp's loop, which its relatives share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from jclip.config import WithModel, WithOptimiser, WithSelection, WithTemplates, WithViews
from jclip.features.extraction import TrainingRows, few_shot_features, training_view
from jclip.features.heads import ZeroShotHead, check_width
from jclip.features.precomputed import FeatureSet
from jclip.features.source import ModelSource, source_of
from jclip.functional.losses import cross_entropy
from jclip.functional.similarity import zero_shot_scores
from jclip.model.learned_prompts import Frame, Layout, Position, Prompts, write_nearest
from jclip.model.trainable import check_in_memory
from jclip.runtime import jt
from jclip.train.on_features import Batches, Learner, Trained, coop_rate, need_val, zero_shot_report
from jclip.train.on_features import train as adapt_train
from jclip.train.run import Run
from jclip.train.scored_photos import measured
from jclip.train.several_ranks import note_ranks
from jclip.weights.stored_vocabulary import check_takes_vectors


class PromptConfig(WithModel, WithTemplates, WithViews, WithSelection, Protocol):
    """A model whose prompts are learned on views of photos."""


class ViewsInBatches(WithViews, WithOptimiser, Protocol):
    """Views of photos, in batches of the optimiser's size."""


def features_for(cfg: PromptConfig, run: Run) -> tuple[ModelSource, FeatureSet]:
    """A recipe's model and data, noted in the run. Raises `ConfigError` or `DataError` for what can't be learned from."""
    source = source_of(cfg)
    check_in_memory(source)
    check_takes_vectors(source.config.text)
    rows = TrainingRows(augment=cfg.augment, seed=cfg.seed)
    data = few_shot_features(cfg.data, source, cfg.templates, rows)
    run.note(**data.facts)
    note_ranks(run)
    need_val(data, cfg.selection)
    return source, data


def learn(
    cfg: PromptConfig,
    run: Run,
    data: FeatureSet,
    source: ModelSource,
    prompts: Prompts,
    penalty: Callable[[jt.Var], jt.Var] | None = None,
) -> dict[str, float]:
    """`train`, what was learned as arrays and as the words nearest to it, and the run's metrics."""
    trained = train(cfg, run, data, source, prompts, penalty)
    learned = {**trained.arrays, **text_of(prompts, trained.arrays["context"], data)}
    run.save_learned(learned, classnames=data.classnames, width=data.text.shape[1])
    write_nearest(run.file("words.csv"), source.model, learned["context"])
    metrics = measured(run, data, ZeroShotHead(learned["text"], data.scale))
    return {**zero_shot_report(data), **metrics, **trained.metrics}


def prompts_for(source: ModelSource, data: FeatureSet, length: int, words: str, seed: int, **options) -> Prompts:
    """The prompts of the data's classes. Raises `ConfigError` for a model of another width or on disk, `DataError` for
    names that do not fit."""
    check_width(source, data.train.shape[1])
    check_in_memory(source.model)
    return Prompts(source.model, data.classnames, length, words, seed=seed, **options)


def train(
    cfg: PromptConfig,
    run: Run,
    data: FeatureSet,
    source: ModelSource,
    prompts: Prompts,
    penalty: Callable[[jt.Var], jt.Var] | None = None,
) -> Trained:
    """Cross-entropy of s f T' with the text features T (C, E) of each step, plus `penalty(T)`.

    cfg: a recipe's config with data, augment, views, optim, selection and seed. From photos, epochs take augmented views
    in turn, or with `views` 0 a new one each; the schedule is CoOp's.
    """

    def scores_of(text, features):
        return zero_shot_scores(features, text, data.scale)

    def loss(features, labels):
        text = prompts.features()  # once a step: scores and penalty share it
        own = cross_entropy(scores_of(text, features), labels)
        return own + penalty(text) if penalty else own

    def scores(features):
        return scores_of(prompts.features(), features)

    steps = steps_of(cfg, data)
    learner = Learner({"context": prompts.vectors}, scores, loss, coop_rate(cfg.optim, steps), by_ranks=True)
    return adapt_train(run, cfg.optim, learner, view_batches(cfg, data, source), steps, data, cfg.selection)


def steps_of(cfg: WithOptimiser, data: FeatureSet) -> int:
    """Steps of an epoch."""
    return -(-len(data.train) // min(cfg.optim.batch, len(data.train)))


def view_batches(cfg: ViewsInBatches, data: FeatureSet, source: ModelSource) -> Callable[[int], Iterator[tuple]]:
    """epoch → batches (features, labels) of its augmented view: these are taken in turn, or each is a new one."""

    def batches(epoch: int):
        view = epoch % cfg.views if cfg.views else epoch
        seen = training_view(cfg.data, source, data, cfg.augment, cfg.seed, view)
        return Batches(seen, cfg.optim.batch, cfg.seed)(epoch)

    return batches


def text_of(prompts: Prompts, vectors: np.ndarray, data: FeatureSet) -> dict[str, np.ndarray]:
    """`text` (C, E) and `scale`: the zero-shot head of learned vectors."""
    with jt.no_grad():
        return {"text": prompts.frame.features(jt.array(vectors)).numpy(), "scale": np.array([data.scale])}


def with_names(
    learned: dict[str, np.ndarray], source: ModelSource, classnames: Sequence[str], position: Position = "end"
) -> dict[str, np.ndarray]:
    """What was learned, its text features those of other classes' names. Raises `DataError` for names that don't fit."""
    vectors = learned["context"]
    frame = Frame(source.model, Layout.of(source, classnames, len(vectors), position))
    with jt.no_grad():
        return {**learned, "text": frame.features(jt.array(vectors)).numpy()}
