"""LP++: a linear head beside the zero-shot scores, which are mixed in by one learned weight per class.

Huang et al., CVPR 2024, arXiv 2404.02285, eq. 3-11.   Trains: C x (E + 2) parameters.   Needs: a few-shot split, text features.

    logits_k = f · w_k + b_k + α_k f · t_k          (without CLIP's scale)

Full-batch descent on the cross-entropy with steps from the data: 4 N / λ_max(F' F) for w and b, with momentum, and every
10th epoch N / (4 max_k Σ_i (f_i · t_k)²) for α. From the authors' code rather than the paper: w_k starts as the sum of its
class's features, not their mean; `alpha_grad: accumulate` goes along the sum of all of α's gradients since epoch 1, whose
buffer that code never clears; of equally good validation epochs the last is kept. b starts at 0, there at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jclip.config import DataConfig, Dtype
from jclip.errors import ConfigError, DataError
from jclip.features import extraction, precomputed
from jclip.features import source as sources
from jclip.functional import losses, prototypes
from jclip.postponed import jt
from jclip.train import loop, on_features, scored_photos
from jclip.train import optim as optimisation
from jclip.train import run as runs


@dataclass(frozen=True)
class Config:
    data: DataConfig  # the authors choose on as many validation as training shots: val_shots = shots
    model: str = ""  # a name or weight file; precomputed features with text need none
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"  # int8 on CPUs, bf16 on those with AVX-512, both halves on a GPU
    templates: str = "openai7"
    augment: str = "tip_adapter"  # each training photo is seen in one augmented view
    epochs: int = 300
    momentum: float = 0.9
    init_alpha: float = 250.0  # α starts at this times the mean of f_i · t_k over the photos of k, the same for all k
    alpha_every: int = 10  # epochs between α's steps
    alpha_grad: Literal["accumulate", "fresh"] = "accumulate"
    selection: Literal["val", "last", "test"] = "val"  # the epoch that is kept
    seed: int = 1

    def __post_init__(self):
        if self.epochs < 1 or self.alpha_every < 1:
            raise ConfigError(f"epochs and alpha_every must be at least 1, got {self.epochs} and {self.alpha_every}")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum must be in [0, 1), got {self.momentum}")
        if self.init_alpha < 0:
            raise ConfigError(f"init_alpha must be at least 0, got {self.init_alpha}")


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Start and step sizes from the data, training, evaluation of val and test."""
    rows = extraction.TrainingRows(augment=cfg.augment, seed=cfg.seed)
    data = extraction.few_shot_features(cfg.data, sources.source_of(cfg), cfg.templates, rows)
    run.note(**data.facts)
    on_features.need_text(data)
    on_features.need_val(data, cfg.selection)
    if not len(data.train):
        raise DataError("there is nothing to learn from: the training split is empty")
    rates = step_sizes(data)
    arrays, metrics = train(cfg, run, data, start(cfg, data), rates)
    learned = {**arrays, "text": data.text}
    run.save_learned(learned, classnames=data.classnames, width=data.train.shape[1])
    metrics |= {"lr_w": rates[0], "lr_alpha": rates[1], "mean_alpha": float(arrays["alpha"].mean())}
    return {**on_features.zero_shot_report(data), **scored_photos.measured(run, data, scorer(learned, cfg)), **metrics}


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with normalised features (N, E): scores (N, C)."""
    weight, bias, alpha, text = (jt.array(learned[k]) for k in ("weight", "bias", "alpha", "text"))
    return on_features.in_chunks(lambda f: logits(f, weight, bias, alpha, text))


def logits(features, weight, bias, alpha, text):
    """Eq. 3 as one product: f · (w_k + α_k t_k) + b_k."""
    return prototypes.linear_scores(features, weight + alpha.unsqueeze(1) * text, bias)


def start(cfg: Config, data: precomputed.FeatureSet) -> dict[str, np.ndarray]:
    """w: (C, E) sums of each class's features; b: zeros; α: (C,) `init_alpha` times how near photos are to their text."""
    sums = on_features.one_hot(data.train_labels, data.classes).T.astype(np.float64) @ data.train.astype(np.float64)
    nearness = np.nanmean(
        prototypes.own_class_means(similarities(data), data.train_labels)
    )  # over the classes with photos
    arrays = {"weight": sums, "bias": np.zeros(len(sums)), "alpha": np.full(len(sums), cfg.init_alpha * nearness)}
    return {k: v.astype(np.float32) for k, v in arrays.items()}


def step_sizes(data: precomputed.FeatureSet) -> tuple[float, float]:
    """Step sizes of w and b: 4 N / λ_max(F' F); of α: N / (4 max_k Σ_i (f_i · t_k)²)."""
    features, count = data.train.astype(np.float64), len(data.train)
    gram = features @ features.T if count < features.shape[1] else features.T @ features  # equal but for zeros
    largest = (similarities(data) ** 2).sum(axis=0).max()
    return 4 * count / float(np.linalg.eigvalsh(gram)[-1]), count / (4 * float(largest))


def similarities(data: precomputed.FeatureSet) -> np.ndarray:
    """f_i · t_k: (N, C) float64."""
    return data.train.astype(np.float64) @ data.text.astype(np.float64).T


def train(
    cfg: Config, run: runs.Run, data: precomputed.FeatureSet, begin: dict[str, np.ndarray], rates: tuple[float, float]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Both blocks, `cfg.epochs` steps. Returns the arrays of the chosen epoch, and test accuracy of the last and best."""
    lr_w, lr_alpha = rates
    weight, bias, alpha = (jt.array(begin[k]) for k in ("weight", "bias", "alpha"))
    gathered = jt.zeros_like(alpha).stop_grad()  # α's gradients since its last step, or since the first epoch
    features, text = jt.array(data.train).stop_grad(), jt.array(data.text).stop_grad()
    labels = jt.array(data.train_labels.astype(np.int32)).stop_grad()
    optim = optimisation.SGD({"weight": weight, "bias": bias}, lr_w, cfg.momentum)
    state = optimisation.TrainState(optim, {"alpha": alpha, "alpha_gradient": gathered})

    def scores(features):
        return logits(features, weight, bias, alpha, text)

    def step(_, number: int):
        loss = losses.cross_entropy(scores(features), labels)
        *both, slope = jt.grad(loss, [weight, bias, alpha])
        due = (number + 1) % cfg.alpha_every == 0
        with jt.no_grad():
            gathered.update(gathered + slope if cfg.alpha_grad == "accumulate" else slope)
            if due:
                alpha.update(alpha - lr_alpha * gathered)
        alpha.start_grad()
        optim.apply(both)
        return loss

    seen = on_features.watched(data, cfg.selection)

    def epochs(_: int) -> Iterator[None]:
        yield None  # all rows at once

    outcome = loop.fit(
        step, epochs, state=state, run=run, epochs=cfg.epochs, steps=cfg.epochs,
        evaluate=seen and (lambda: {"top1": seen.top1(scores)}), among_equals="last",
    )  # fmt: skip
    trained = on_features.last_and_best(outcome, state, scores, data, cfg.selection)
    return {k: trained.arrays[k] for k in ("weight", "bias", "alpha")}, trained.metrics
