"""CoCoOp: CoOp whose vectors are shifted by each image, so that they generalise to classes that were not seen.

Zhou et al., CVPR 2022, arXiv 2203.05557, eq. 3-4.   Trains: M x D numbers and a small network on image features.
Needs: a few-shot split and a model, whose text tower the gradient passes.

    logits_k = s f · norm(h([start] v_1 + δ … v_M + δ name_k . [end])),   δ = W2 ReLU(W1 f + b1) + b2

Every image has prompts of its own: C passes through the text tower per image and step, and as many per image that is
measured or predicted, which is why validation is measured where it chooses the epoch alone. Image features are frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from jclip.config import DataConfig, Dtype, OptimConfig
from jclip.errors import ConfigError

if TYPE_CHECKING:  # a wrong YAML is told before these are imported
    from jclip.features.precomputed import FeatureSet
    from jclip.features.source import ModelSource
    from jclip.model.learned_prompts import Frame
    from jclip.runtime import jt
    from jclip.train.run import Run

NARROWER = 16  # the network's hidden layer: E / 16


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str  # a name or weight file; of recorded features the model that made them
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"
    templates: str = "simple"  # of the zero-shot figures beside
    views: int = 0  # augmented views that epochs take in turn; 0: each epoch a new one, as the authors do
    augment: str = "coop"
    context: int = 4  # M, where there are no words
    words: str = "a photo of a"  # start from their embeddings, whose number M then is
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(name="sgd", lr=2e-3, weight_decay=5e-4, epochs=10, batch=1)
    )
    selection: Literal["val", "last", "test"] = "last"  # the epoch that is kept
    seed: int = 1

    def __post_init__(self):
        if self.context < 1 or self.views < 0:
            raise ConfigError(f"context={self.context} is at least 1, views={self.views} at least 0")


def run(cfg: Config, run: Run) -> dict[str, float]:
    """Vectors and network, training, evaluation of val and test; writes the words nearest to each vector."""
    from jclip.train import on_features as adapt
    from jclip.train import prompt_training as context
    from jclip.train.scored_photos import measured

    source, data = context.features_for(cfg, run)
    prompts = context.prompts_for(source, data, cfg.context, cfg.words, cfg.seed)
    params = {"context": prompts.vectors, **network(data.train.shape[1], prompts.vectors.shape[1], cfg.seed)}
    steps, seen = context.steps_of(cfg, data), unmeasured(data) if cfg.selection == "last" else data
    scores, rate = image_scores(params, prompts.frame, data.scale), adapt.coop_rate(cfg.optim, steps)
    learner, batches = adapt.Learner(params, scores, rate=rate), context.view_batches(cfg, data, source)
    trained = adapt.train(run, cfg.optim, learner, batches, steps, seen, cfg.selection)
    learned = {**trained.arrays, **prompts.layout.arrays(), "scale": np.array([data.scale])}
    run.save_learned(learned, classnames=data.classnames, width=data.train.shape[1])
    context.write_nearest(run.file("words.csv"), source.model, learned["context"])
    told = measured(run, data, scorer_of(learned, source))
    last = {"test_top1_last_epoch": told["test_top1"]} if cfg.selection == "last" and len(data.test) else {}
    return {**adapt.zero_shot_report(data), **told, **last, **trained.told}


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with normalised features (N, E): scores (N, C), through the text tower of the model."""
    from jclip.features.source import source_of

    return scorer_of(learned, source_of(cfg))


def for_classes(
    learned: dict[str, np.ndarray], cfg: Config, classnames: Sequence[str], source: ModelSource
) -> dict[str, np.ndarray]:
    """What `scorer` needs for other classes: the vectors around their names."""
    from jclip.model.learned_prompts import Layout

    return {**learned, **Layout.of(source.config.text, classnames, len(learned["context"])).arrays()}


def scorer_of(learned: dict[str, np.ndarray], source: ModelSource) -> Callable[[np.ndarray], np.ndarray]:
    """`scorer` with a model at hand."""
    from jclip.model.learned_prompts import Frame, Layout
    from jclip.runtime import jt
    from jclip.train.on_features import in_chunks

    params = {name: jt.array(learned[name]).stop_grad() for name in ("context", "W1", "b1", "W2", "b2")}
    return in_chunks(image_scores(params, Frame(source.model, Layout.read(learned)), float(learned["scale"][0])))


def network(inputs: int, outputs: int, seed: int) -> dict[str, jt.Var]:
    """W1 (E/16, E), b1, W2 (D, E/16), b2, as torch starts them: uniform within one over the root of the inputs."""
    from jclip.functional.initial_values import linear_start
    from jclip.runtime import jt

    rng, hidden = np.random.default_rng((seed, 0xCC)), max(1, inputs // NARROWER)
    arrays = {}
    for number, (narrow, wide) in enumerate(((inputs, hidden), (hidden, outputs)), start=1):
        arrays[f"W{number}"] = linear_start(rng, wide, narrow)
        arrays[f"b{number}"] = linear_start(rng, wide, narrow)[:, 0]
    return {name: jt.array(array) for name, array in arrays.items()}


def image_scores(params: Mapping[str, jt.Var], frame: Frame, scale: float) -> Callable[[jt.Var], jt.Var]:
    """Features (B, E) of length one → scores (B, C); of many pairs of image and class some at a time are in memory."""
    from jclip.kernels.gradient_parts import in_parts
    from jclip.runtime import jt

    def scores(features):
        hidden = jt.nn.relu(jt.nn.matmul_transpose(features, params["W1"]) + params["b1"])
        shifts = jt.nn.matmul_transpose(hidden, params["W2"]) + params["b2"]

        def cosines(pairs: slice):
            images, classes = np.divmod(np.arange(pairs.start, pairs.stop), len(frame))
            runs = int(1 + images[-1] - images[0])
            images = jt.array(images.astype(np.int32))
            texts = frame.encode(params["context"], classes, shifts[images], runs)
            return (features[images] * texts).sum(dim=1)

        parts = pairs_at_once(features.shape[0], len(frame))
        found = in_parts(cosines, parts, [params["context"], shifts])
        return scale * found.reshape((features.shape[0], len(frame)))

    return scores


def pairs_at_once(images: int, classes: int) -> list[slice]:
    """Pairs of image and class, classes first, in parts: of several images with all their classes, or of one image."""
    from jclip.kernels.gradient_parts import slices
    from jclip.model.learned_prompts import AT_ONCE

    if classes > AT_ONCE:
        of_one = slices(classes, AT_ONCE)
        return [slice(i * classes + part.start, i * classes + part.stop) for i in range(images) for part in of_one]
    return [slice(part.start * classes, part.stop * classes) for part in slices(images, AT_ONCE // classes)]


def unmeasured(data: FeatureSet) -> FeatureSet:
    """The same to learn from, with nothing to measure on."""
    none, labels = data.val[:0], data.val_labels[:0]
    return replace(data, val=none, val_labels=labels, test=none, test_labels=labels)
