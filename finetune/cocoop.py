"""CoCoOp: CoOp whose vectors are shifted by each image, so that they generalise to classes that were not seen.

Zhou et al., CVPR 2022, arXiv 2203.05557, eq. 3-4.   Trains: M x D parameters and a small network on image features.
Needs: a few-shot split and a model, whose text tower the gradient passes.

    logits_k = s f · norm(h([start] v_1 + δ … v_M + δ name_k . [end])),   δ = W2 ReLU(W1 f + b1) + b2

Every image has prompts of its own: C passes through the text tower per image and step, and as many per image that is
measured or predicted, which is why validation is measured where it chooses the epoch alone. Image features are frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from jclip import kernels
from jclip.config import DataConfig, Dtype, OptimConfig, ReadWith
from jclip.errors import ConfigError
from jclip.features import precomputed
from jclip.features import source as sources
from jclip.functional import initial_values
from jclip.model import learned_prompts
from jclip.postponed import jt
from jclip.train import on_features, prompt_training, scored_photos
from jclip.train import run as runs

NARROWER = 16  # the network's hidden layer: E / 16


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str  # a name or weight file; the model that made the features, where they are precomputed
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
    READ_WITH: ClassVar[ReadWith] = {
        "": ("optim.schedule", "optim.warmup"),
        "words=": ("context",),
    }

    def __post_init__(self):
        if self.context < 1 or self.views < 0:
            raise ConfigError(f"context must be at least 1 and views at least 0, got {self.context} and {self.views}")


def rows_of_ranks(cfg: Config) -> None:
    """Several ranks divide the images of a batch, however many there are."""


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Vectors and network, training, evaluation of val and test; writes the words nearest to each vector."""
    source, data = prompt_training.features_for(cfg, run)
    prompts = prompt_training.prompts_for(source, data, cfg.context, cfg.words, cfg.seed)
    params = {"context": prompts.vectors, **network(data.train.shape[1], prompts.vectors.shape[1], cfg.seed)}
    steps, seen = prompt_training.steps_of(cfg, data), unmeasured(data) if cfg.selection == "last" else data
    scores, rate = image_scores(params, prompts.frame, data.scale), on_features.coop_rate(cfg.optim, steps)
    learner, batches = (
        on_features.Learner(params, scores, rate=rate, by_ranks=True),
        prompt_training.view_batches(cfg, data, source),
    )
    trained = on_features.train(run, cfg.optim, learner, batches, steps, seen, cfg.selection)
    learned = {**trained.arrays, **prompts.layout.arrays(), "scale": np.array([data.scale])}
    run.save_learned(learned, classnames=data.classnames, width=data.train.shape[1])
    prompt_training.write_nearest(run.file("words.csv"), source.model, learned["context"])
    metrics = scored_photos.measured(run, data, scorer_of(learned, source))
    last = {"test_top1_last_epoch": metrics["test_top1"]} if cfg.selection == "last" and len(data.test) else {}
    return {**on_features.zero_shot_report(data), **metrics, **last, **trained.metrics}


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with normalised features (N, E): scores (N, C), through the text tower of the model."""
    return scorer_of(learned, sources.source_of(cfg))


def for_classes(
    learned: dict[str, np.ndarray], cfg: Config, classnames: Sequence[str], source: sources.ModelSource
) -> dict[str, np.ndarray]:
    """What `scorer` needs for other classes: the vectors around their names."""
    return {**learned, **learned_prompts.Layout.of(source, classnames, len(learned["context"])).arrays()}


def scorer_of(learned: dict[str, np.ndarray], source: sources.ModelSource) -> Callable[[np.ndarray], np.ndarray]:
    """`scorer` with a model at hand."""
    params = {name: jt.array(learned[name]).stop_grad() for name in ("context", "W1", "b1", "W2", "b2")}
    return on_features.in_chunks(
        image_scores(
            params,
            learned_prompts.Frame(source.model, learned_prompts.Layout.read(learned)),
            float(learned["scale"][0]),
        )
    )


def network(inputs: int, outputs: int, seed: int) -> dict[str, jt.Var]:
    """W1 (E/16, E), b1, W2 (D, E/16), b2, as torch starts them: uniform within one over the root of the inputs."""
    rng, hidden = np.random.default_rng((seed, 0xCC)), max(1, inputs // NARROWER)
    arrays = {}
    for number, (narrow, wide) in enumerate(((inputs, hidden), (hidden, outputs)), start=1):
        arrays[f"W{number}"] = initial_values.linear_start(rng, wide, narrow)
        arrays[f"b{number}"] = initial_values.linear_start(rng, wide, narrow)[:, 0]
    return {name: jt.array(array) for name, array in arrays.items()}


def image_scores(
    params: Mapping[str, jt.Var], frame: learned_prompts.Frame, scale: float
) -> Callable[[jt.Var], jt.Var]:
    """Features (B, E) of length one → scores (B, C); of many pairs of image and class some at a time are in memory."""

    def scores(features):
        hidden = jt.nn.relu(jt.nn.matmul_transpose(features, params["W1"]) + params["b1"])
        shifts = jt.nn.matmul_transpose(hidden, params["W2"]) + params["b2"]

        def cosines(pairs: slice):
            images, classes = np.divmod(np.arange(pairs.start, pairs.stop), len(frame))
            runs = int(1 + images[-1] - images[0])
            images = jt.array(images.astype(np.int32))
            texts = frame.encode(params["context"], classes, shifts[images], runs)
            return (features[images] * texts).sum(dim=1)

        def of_images(own: slice):
            first = own.start * len(frame)
            parts = pairs_at_once(own.stop - own.start, len(frame))
            parts = [slice(first + part.start, first + part.stop) for part in parts]
            found = kernels.gradient_parts.in_parts(cosines, parts, [params["context"], shifts])
            return found.reshape((own.stop - own.start, len(frame)))

        return scale * kernels.collectives.shared_rows(of_images, features.shape[0], len(frame))

    return scores


def pairs_at_once(images: int, classes: int) -> list[slice]:
    """Pairs of image and class, classes first, in parts: of several images with all their classes, or of one image."""
    if classes > learned_prompts.AT_ONCE:
        of_one = kernels.gradient_parts.slices(classes, learned_prompts.AT_ONCE)
        return [slice(i * classes + part.start, i * classes + part.stop) for i in range(images) for part in of_one]
    return [
        slice(part.start * classes, part.stop * classes)
        for part in kernels.gradient_parts.slices(images, learned_prompts.AT_ONCE // classes)
    ]


def unmeasured(data: precomputed.FeatureSet) -> precomputed.FeatureSet:
    """The features with the training part alone, nothing to measure on."""
    none, labels = data.val[:0], data.val_labels[:0]
    return replace(data, val=none, val_labels=labels, test=none, test_labels=labels)
