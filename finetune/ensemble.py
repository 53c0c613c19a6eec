"""Ensemble: the scores of several finished runs on the same features, added up with weights that sum to one.

As the Jittor challenge's entries do it under the name `fusion`; temperatures: Guo et al., ICML 2017, arXiv 1706.04599.
Trains: a weight and a temperature per run.   Needs: finished runs (or configs, which are run first); validation photos.

    scores = Σ_m w_m ℓ_m,    ℓ_m: log softmax(z_m / τ_m) with τ_m of the best validation likelihood, or softmax(z_m), or z_m

Up to three runs: all weights in steps of `step`, of equally good ones those nearest to the mean of all runs. More runs:
one weight at a time, the others keeping their proportions, from the mean until nothing gets better. `shrink` s draws the
weights found to the mean: (1 - s) w + s / M, which few validation photos call for. `per_class` splits them by class, in
proportion to w_m times the mean probability that run m gives class k on its own validation photos. A run that has all
the weight is passed on unchanged. The runs and their settings are kept in what is learned: their folders may go.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from jclip.config import DataConfig, Dtype, ReadWith
from jclip.errors import ConfigError
from jclip.features import extraction, precomputed
from jclip.features import source as sources
from jclip.functional import metrics, prototypes
from jclip.functional.fusion import Inputs, best_weights, fitted_temperature, transformed, weighted_sum
from jclip.report.predictor import Classifier
from jclip.train import on_features, scored_photos
from jclip.train import run as runs
from jclip.train.configs import build_config, read_config, resolved
from jclip.train.recipe_runs import finished


@dataclass(frozen=True)
class Config:
    data: DataConfig  # the runs' own: where val and test are measured
    runs: tuple[
        str, ...
    ]  # folders, from here, of finished runs; or YAMLs and names of configs, run on `data` below this run's own
    model: str = ""  # of photos: the model of all runs
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"  # int8 on CPUs, bf16 on those with AVX-512, both halves on a GPU
    templates: str = "openai7"
    inputs: Inputs = "log_softmax"
    weights: tuple[float, ...] = ()  # one per run, in place of the search
    search: bool = True  # off: the mean of all runs, or `weights`
    step: float = 0.05
    shrink: float = 0.0
    per_class: bool = False
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {"search=true": ("step",)}

    def __post_init__(self):
        if not self.runs:
            raise ConfigError("runs must name at least one folder of a finished run, got none")
        if not 0.001 <= self.step <= 1 or not 0 <= self.shrink <= 1:
            raise ConfigError(f"step must be in [0.001, 1] and shrink in [0, 1], got {self.step} and {self.shrink}")
        if self.weights and (len(self.weights) != len(self.runs) or min(self.weights) < 0 or not any(self.weights)):
            raise ConfigError(f"weights must be {len(self.runs)}, one per run, at least 0 and not all 0")


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Runs what has not been run, temperatures and weights from validation, evaluation of val and test."""
    members = [member(place, number, cfg, run) for number, place in enumerate(cfg.runs)]
    data = extraction.few_shot_features(cfg.data, sources.source_of(cfg), cfg.templates, training=None)
    run.note(**data.facts, members=[str(m.folder) for m in members])
    for one in members:
        check(one, data, recorded=bool(cfg.data.features))
    searched = cfg.search and not cfg.weights
    needs = {"the weights": searched or cfg.per_class, "the temperature": cfg.inputs == "log_softmax"}
    on_features.need_val(data, "last", " and ".join(what for what, needed in needs.items() if needed))

    raw = [one.scorer()(data.val) for one in members] if len(data.val) else []
    temperatures = np.array([fitted_temperature(z, data.val_labels) if cfg.inputs == "log_softmax" else 1.0 for z in raw]
                            or [1.0] * len(members))  # fmt: skip
    given = np.array(cfg.weights or [1.0] * len(members)) / sum(cfg.weights or [1.0] * len(members))
    values = np.stack([transformed(z, cfg.inputs, t) for z, t in zip(raw, temperatures, strict=True)]) if raw else None
    weights = best_weights(values, data.val_labels, cfg.step) if searched else given
    weights = (1 - cfg.shrink) * weights + cfg.shrink / len(members)
    table = by_class(weights, raw, temperatures, data.val_labels) if cfg.per_class else weights[:, None]

    learned = {"weights": table, "temperatures": temperatures}
    for number, one in enumerate(members):
        settings = json.dumps(resolved(one.module, one.config)).encode()
        learned |= {f"{number}.config": np.frombuffer(settings, np.uint8).copy()}
        learned |= {f"{number}.learned.{k}": v for k, v in one.learned.items()}
    run.save_learned(learned, classnames=data.classnames, width=members[0].width)
    metrics = {f"weight_{i}": float(w) for i, w in enumerate(weights)}
    metrics |= {f"temperature_{i}": float(t) for i, t in enumerate(temperatures)}
    metrics |= {f"{part}_top1_of_{i}": data.top1(part, one.scorer()) for part in ("val", "test")
             if len(getattr(data, part)) for i, one in enumerate(members)}  # fmt: skip
    return {**on_features.zero_shot_report(data), **scored_photos.measured(run, data, scorer(learned, cfg)), **metrics}


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with normalised features (N, E): scores (N, C)."""
    weights, temperatures = learned["weights"], learned["temperatures"]
    scorers = []
    for number in range(len(weights)):
        module, settings = build_config(json.loads(learned[f"{number}.config"].tobytes()), f"run {number}")
        prefix = f"{number}.learned."
        own = {k.removeprefix(prefix): v for k, v in learned.items() if k.startswith(prefix)}
        scorers.append(module.scorer(own, settings))
    used = [i for i, w in enumerate(weights) if w.any()]
    if len(used) == 1:
        return scorers[used[0]]

    def score(features: np.ndarray) -> np.ndarray:
        scores = (scorers[i](features) for i in used)
        total = weighted_sum(scores, weights[used], temperatures[used], cfg.inputs)
        if (
            cfg.inputs == "softmax"
        ):  # its logarithm ranks alike and is what a softmax undoes; the floor is not as_scores'
            total = np.log(np.maximum(total, 1e-300))
        return total.astype(np.float32)

    return score


def member(place: str, number: int, ensemble: Config, run: runs.Run) -> Classifier:
    """The finished run in folder `place`; or that of the config `place` on the ensemble's data and seed, which is run now
    unless that was done before."""
    if Path(place).is_dir():
        return Classifier.load(place)
    module, cfg, path = read_config(place)
    cfg = replace(cfg, data=ensemble.data, seed=ensemble.seed)
    folder = run.inner(f"{number}-{path.parent.name}-{path.stem}")
    finished(folder, module, cfg, writer=run.writer)
    return Classifier.load(folder)


def check(one: Classifier, data: precomputed.FeatureSet, recorded: bool) -> None:
    """Raises `ConfigError` for a run whose scores do not belong beside others' on these features."""
    if one.classnames != data.classnames:
        raise ConfigError(f"{one.folder} must have the data's classes in their order, got others: leave it out")
    if (one.folder / "model.safetensors").is_file():
        raise ConfigError(
            f"{one.folder} trained the towers, so its features are not those of the other runs: leave it out"
        )
    if not one.normalised and not recorded:
        raise ConfigError(f"{one.folder} takes unnormalised features, unlike the other runs: leave it out")
    made_of = one.provenance
    common = [k for k in data.facts if k in made_of]
    differing = [k.removesuffix("_sha256") for k in common if made_of[k] != data.facts[k]]
    if differing or not common:
        raise ConfigError(
            f"{one.folder} was made from other data: {', '.join(differing) or 'nothing in common'} differs"
        )


def by_class(weights: np.ndarray, raw: list[np.ndarray], temperatures: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(M,) → (M, C): w_m times the mean probability of class k on its own photos, over the sum; w_m without photos."""
    trust = np.stack(
        [prototypes.own_class_means(metrics.softmax(z / t), labels) for z, t in zip(raw, temperatures, strict=True)]
    )
    parts = weights[:, None] * np.maximum(np.nan_to_num(trust, nan=1.0), 1e-12)
    return parts / parts.sum(axis=0)
