"""Zero-shot: classes named in prompts, nothing trained; one model, or several mixed.

Radford et al., 2021, arXiv 2103.00020, section 3.1; prompts scored one by one and models mixed as the entry that won the
third Ajou challenge does it.   Trains: nothing, but weights of several models with `search`.   Needs: photos or precomputed
features with labels; validation photos where weights are searched.

    one model:  s x · w_k,   w_k = norm(mean_j norm(h(prompt_kj)))      several:  see `jclip.features.several_models`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from jclip.choices import Mix, PreprocessChoice, TagMethod
from jclip.config import DataConfig, Dtype, ReadWith
from jclip.data import class_names, label_files, labelled_photos, splits
from jclip.errors import ConfigError, DataError
from jclip.features import extraction, heads, precomputed, run_data, several_models, tagging
from jclip.features import source as sources
from jclip.features.member import Member, check_mixture
from jclip.functional import metrics, multi_label_metrics, score_ensemble
from jclip.prompts.templates import prompts_of
from jclip.report import evaluation
from jclip.train import run as runs
from jclip.train import scored_photos

MEASURES_ALL = True  # photos of data without parts: there is nothing to learn from

Learned: TypeAlias = "dict[str, np.ndarray]"


@dataclass(frozen=True)
class Config:
    data: DataConfig = field(default_factory=DataConfig)
    model: str = ""  # a name or weight file; precomputed features with text need none
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"  # int8 on CPUs, bf16 on those with AVX-512, both halves on a GPU
    templates: str = "openai7"
    models: tuple[Member, ...] = ()  # in place of model, family, dtype and templates: several, or one in another mode
    classes: str = ""  # names in place of the data's own: a benchmark's such as imagenet1k, a file, or a,b,c
    mix: Mix = "prob"
    search: bool = False  # weights of the models by validation photos
    step: float = 0.05  # of that search
    drop_below: float = 0.0  # of `prob-prompts`: mixed probabilities of prompts up to it count as none
    drop_below_uniform: float = 0.0  # the same in units of uniform mass, 1 / the number of all prompts
    multi_label: bool = False  # photos may be of several classes: measures mAP, see `jclip.data.multi_label`
    method: TagMethod = "whole"  # of multi_label: how a photo's places are read, see `jclip.features.tagging`
    normalise: Literal["none", "image+class"] = (
        "none"  # of multi_label: each photo's scores, then each class's, to z-scores
    )
    background: str = "coco"  # of tagclip and places: names of what is none of the classes, "none" or a,b,c
    unknown: float = 0.0  # photos whose best class has a smaller probability are of none
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {
        "search=true": ("step",),
        "models!=": ("mix",),
        "method=tagclip|places": ("background",),
    }

    def __post_init__(self):
        if self.models and (self.model or self.data.features):
            raise ConfigError("models look at photos, and each names its weights: leave model and data.features out")
        if self.models and self.data.draft:
            raise ConfigError("data.draft is of one model: with models, set models.0.preprocess.draft and so on")
        if self.multi_label and (self.search or self.classes or self.data.features):
            raise ConfigError("multi_label=true measures photos among their own classes: leave search, classes and "
                              "data.features out")  # fmt: skip
        if not self.multi_label and (self.method, self.normalise) != ("whole", "none"):
            raise ConfigError(
                f"method and normalise are of photos of several classes, got method={self.method}, "
                f"normalise={self.normalise}: set multi_label=true, or leave them out"
            )
        if self.models and self.method != "whole":
            raise ConfigError(f"method={self.method} reads one model's places, got models: set model")
        if self.search and len(self.models) < 2:
            raise ConfigError("search=true weighs several models: name them below models")
        if not 0.001 <= self.step <= 1 or not 0 <= self.unknown < 1:
            raise ConfigError(f"step must be in [0.001, 1] and unknown in [0, 1), got {self.step} and {self.unknown}")
        if min(self.drop_below, self.drop_below_uniform) < 0:
            raise ConfigError("drop_below and drop_below_uniform must be at least 0")
        if self.drop_below and self.drop_below_uniform:
            raise ConfigError("drop_below and drop_below_uniform are one threshold in two units: set one of them")
        if self.models:
            check_mixture(self.models, self.mix, self.drop_below or self.drop_below_uniform)
        elif self.drop_below or self.drop_below_uniform:
            raise ConfigError(
                "drop_below is of probabilities of prompts: name the model below models, mode prob-prompts"
            )


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Builds the head, or those of all models, scores val and test."""
    if cfg.multi_label:
        return run_multi_label(cfg, run)

    data, learned, width = of_models(cfg) if cfg.models else of_one_model(cfg)
    run.note(**data.facts)
    if not len(data.val) + len(data.test):
        raise DataError("there are no photos to measure on: set data.val or data.test")
    run.save_learned(learned, classnames=data.classnames, width=width)
    score = scorer(learned, cfg)
    metrics = {**scored_photos.measured(run, data, score), **known(cfg, run)}
    write_benchmark(cfg, run, metrics, data.classes)
    weights = learned["weights"] if cfg.models else ()
    return {**metrics, **{f"weight_{number}": float(weight) for number, weight in enumerate(weights)}}


def of_one_model(cfg: Config) -> tuple[precomputed.FeatureSet, Learned, int]:
    """Features of photos, or precomputed ones, and the text of their classes."""
    data = run_data.run_features(cfg, sources.source_of(cfg), run_data.run_photos(cfg, MEASURES_ALL), training=None)
    if data.text is None:
        raise DataError("these features come without text features: set model= to the model that made them")
    return data, {"text": data.text, "scale": np.array([data.scale])}, data.text.shape[1]


def of_models(cfg: Config) -> tuple[precomputed.FeatureSet, Learned, int]:
    """Features of photos by all models, side by side, and what mixes their scores."""
    source, photos = sources.source_of(cfg), run_data.run_photos(cfg, MEASURES_ALL)
    if cfg.search and not len(photos.val):
        raise DataError("search=true weighs the models by validation photos: set data.val, or search=false")
    mixture = mixture_for(cfg, source, photos.classnames, {"val": photos.val, "test": photos.test})
    data = extraction.few_shot_features(cfg.data, source, "", training=None, photos=photos)
    mixture = mixture.searched(data.val, data.val_labels, cfg.step) if cfg.search else mixture
    return data, mixture.arrays(), mixture.width


def run_multi_label(cfg: Config, run: runs.Run) -> dict[str, float]:
    """The run on photos of several classes each: their mAP, and per_class.csv."""
    figures, classes = multi_label_figures(cfg, run.file("per_class.csv"), run)
    write_benchmark(cfg, run, figures, classes)
    return figures


def measured_again(cfg: Config, out: Path) -> dict[str, float]:
    """`eval` of a run on photos of several classes each, whose text comes anew of the config: eval.json, per_class.csv."""
    figures = {
        name.removeprefix("test_"): value for name, value in multi_label_figures(cfg, out / "per_class.csv")[0].items()
    }
    evaluation.write_json(out / "eval.json", figures)
    return figures


def multi_label_figures(cfg: Config, table_file: Path, run: runs.Run | None = None) -> tuple[dict[str, float], int]:
    """mAP and the number of the test photos, and how many classes there are; writes the table of the classes."""
    found = labelled_photos.read_labelled_photos(cfg.data)
    rows, scores = whole_scores(cfg, run, found) if cfg.method == "whole" else place_scores(cfg, run, found)
    if cfg.normalise == "image+class":
        scores = score_ensemble.by_image_and_class(scores)
    targets = found.targets[rows]
    precisions = multi_label_metrics.average_precision_per_class(scores, targets)
    table = zip(found.classnames, (targets == 1).sum(axis=0), precisions, strict=True)
    evaluation.write_csv(table_file, ["class", "n", "ap"], [[name, n, f"{ap:.4f}"] for name, n, ap in table])
    figures = {"test_map": multi_label_metrics.mean_over_classes(precisions), "test_count": len(rows)}
    return figures, len(found.classnames)


def whole_scores(cfg: Config, run: runs.Run | None, found: label_files.PhotoLabels) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the photos that decode, and scores of the whole photos, by all models."""
    together = sources.SideBySide.of(members(cfg))
    mixture = mixture_for(cfg, together, found.classnames, {"test": found.split})
    rows, features = extraction.extract(together, found.split, on_error=cfg.data.on_error, label="test")
    if run:
        run.note(weights_sha256=together.weights_sha256, test_sha256=found.split.digest())
        one = {"text": mixture.heads[0].prompts, "scale": np.array([mixture.heads[0].scale])}
        run.save_learned(mixture.arrays() if cfg.models else one, classnames=found.classnames, width=mixture.width)
    return rows, mixture(features)


def place_scores(cfg: Config, run: runs.Run | None, found: label_files.PhotoLabels) -> tuple[np.ndarray, np.ndarray]:
    """Scores by `cfg.method`, which reads a photo's places."""
    source, paths = members(cfg)[0].source(), found.paths
    names = class_names.read_background(cfg.background)
    tagger = tagging.Tagger(source, found.classnames, cfg.templates, names, cfg.method)
    scored = tagger.scored(paths, cfg.data.on_error, "test")
    if run:
        run.note(weights_sha256=source.weights_sha256, test_sha256=found.split.digest(), method=tagger.method)
        head = heads.zero_shot_head(source, prompts_of(found.classnames, cfg.templates))
        learned = {"text": head.weights, "scale": np.array([head.scale])}
        run.save_learned(learned, classnames=found.classnames, width=source.width)
    row = {path: number for number, path in enumerate(paths)}
    return np.array([row[path] for path in scored.photos]), scored.scores


def scorer(learned: Learned, cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with normalised features (N, E), of several models side by side: scores (N, C)."""
    if cfg.models:
        return several_models.Mixture.from_arrays(learned, [member.mode for member in cfg.models], cfg.mix)
    return heads.ZeroShotHead(learned["text"], float(learned["scale"][0]))


def for_classes(
    learned: Learned, cfg: Config, classnames: Sequence[str], source: sources.ModelSource | sources.SideBySide
) -> Learned:
    """What was learned, for other class names, with the weights that it has."""
    if cfg.models:
        return {**mixture_for(cfg, source, classnames).arrays(), "weights": learned["weights"]}
    return {**learned, **heads.text_for(source, classnames, cfg.templates)}


def mixture_for(
    cfg: Config, source: sources.SideBySide, classnames: Sequence[str], photos: Mapping[str, splits.Split] | None = None
) -> several_models.Mixture:
    """All models' heads for these classes; features of the photos in `photos` are computed on the way."""
    drop = {"drop_below": cfg.drop_below, "drop_below_uniform": cfg.drop_below_uniform}
    given = {"mix": cfg.mix, "on_error": cfg.data.on_error, **drop}
    return several_models.build_mixture(source, members(cfg), classnames, photos or {}, **given)


def members(cfg: Config) -> tuple[Member, ...]:
    """The models of a config, also where it has but one."""
    if not cfg.models and not cfg.model:
        raise ConfigError("a config must name a model or models, got neither: set model, or models")
    look = PreprocessChoice(draft=cfg.data.draft or None)
    one = {"weights": cfg.model, "prompts": cfg.templates, "family": cfg.family, "dtype": cfg.dtype}
    return tuple(member.reading(cfg.data.upright) for member in cfg.models or (Member(**one, preprocess=look),))


def known(cfg: Config, run: runs.Run) -> dict[str, float]:
    """The figures of `unknown`: the share of test photos that are given a class, and the accuracy among these."""
    if not cfg.unknown or run.handed_over is None:
        return {}
    scores, labels = run.handed_over.scores, run.handed_over.targets
    sure = metrics.softmax(scores).max(axis=1) >= cfg.unknown
    figures = {"test_known": float(sure.mean())}
    return figures | ({"test_known_top1": metrics.top_k(scores[sure], labels[sure])} if sure.any() else {})


def write_benchmark(cfg: Config, run: runs.Run, metrics: dict[str, float], classes: int) -> None:
    """benchmark.json, in the fields of CLIP_benchmark."""
    data = cfg.data
    dataset = data.features or data.split_file or data.root or data.test or data.train
    models = [member.weights for member in cfg.models] or [cfg.model or "precomputed features"]
    evaluation.write_json(run.file("benchmark.json"), evaluation.benchmark_of(metrics, classes, dataset, models))
