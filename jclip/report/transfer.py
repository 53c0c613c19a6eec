"""A finished run on classes and data that it has not learned: base to new, other data sets, shifted domains.

Zhou et al., CVPR 2022, arXiv 2203.05557, sections 4.1-4.3: the protocols. Zero-shot with the model before stands beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jclip.config import apply_overrides, load_groups
from jclip.errors import ConfigError, JclipError, notice
from jclip.features import heads
from jclip.features import source as model_source
from jclip.functional import directions
from jclip.functional import metrics as class_metrics
from jclip.paths import is_file
from jclip.report import evaluation
from jclip.report.classifier import Classifier, scored, test_features, test_photos
from jclip.train.configs import build_config, resolved

HALVES = ("base", "new")
BASE_TO_NEW_FILES, SETS_FILES = ("base_to_new.json", "base_to_new.csv"), ("sets.json", "sets.csv")
WHERE_FROM = (
    "shots",
    "val_shots",
    "pool",
    "seed",
    "on_error",
    "draft",
    "upright",
)  # a set's data has the run's, where it says none
SETTINGS = ("data", "templates")  # that a set may have
SET_COLUMNS = ("set", "classes", "photos", "zero_shot_top1", "top1", "top5", "mean_per_class", "ece")


def base_to_new(done: Classifier, out: Path) -> dict[str, float]:
    """Accuracy of a run on the base classes that it learned, on the new ones among themselves, and their harmonic mean.

    `base_top1`, `new_top1`, `harmonic_mean`, the other metrics of both, and all as `zero_shot_…`; written as
    base_to_new.json and .csv. Raises `ConfigError` for a run that learned other classes than the first half.
    """
    done.check_photos()
    if done.config.data.subset != "base":
        raise ConfigError(f"{done.folder} learned all classes, so none are new: train it with data.subset=base")
    own, before = sources(done)
    report: dict[str, float] = {}
    for half in HALVES:
        there = replace(done, config=replace(done.config, data=replace(done.config.data, subset=half)))
        metrics, names = measured(there, own, before)
        if half == "base" and names != done.classnames:
            raise ConfigError(f"the data's base classes are others than those that {done.folder} learned")
        report |= {_prefixed(k, half): v for k, v in metrics.items()}
    report = {**report, **harmonic(report), **done.marks()}
    _write_base_to_new(report, out)
    return report


def _prefixed(metric: str, half: str) -> str:
    """`top1` → `new_top1`, `zero_shot_top1` → `zero_shot_new_top1`."""
    before = "zero_shot_" if metric.startswith("zero_shot_") else ""
    return f"{before}{half}_{metric.removeprefix(before)}"


def harmonic(metrics: Mapping[str, float]) -> dict[str, float]:
    """`harmonic_mean`, and zero-shot's where it is known."""
    return {
        f"{who}harmonic_mean": class_metrics.harmonic_mean(*(metrics[f"{who}{half}_top1"] for half in HALVES))
        for who in ("zero_shot_", "")
        if f"{who}base_top1" in metrics
    }


def _write_base_to_new(metrics: Mapping[str, float], out: Path) -> None:
    names = {"zero-shot": "zero_shot_", "this run": ""}
    rows = [
        [name, *(f"{metrics[f'{who}{column}']:.4f}" for column in ("base_top1", "new_top1", "harmonic_mean"))]
        for name, who in names.items()
        if f"{who}harmonic_mean" in metrics
    ]
    evaluation.write_csv(out / "base_to_new.csv", ["", "base", "new", "H"], rows)
    evaluation.write_json(out / "base_to_new.json", metrics)


def on_sets(done: Classifier, given: Sequence[Sequence[str]], out: Path) -> dict[str, dict[str, float]]:
    """Metrics of a run on each set that `given` names, see `read_sets`; written as sets.json and sets.csv."""
    done.check_photos()
    places = read_sets(done, given)
    own, before = sources(done)
    sets = {name: measured(there, own, before, whole=True)[0] for name, there in places.items()}
    _write_sets(sets, out)
    return sets


def read_sets(done: Classifier, given: Sequence[Sequence[str]]) -> dict[str, Classifier]:
    """name → the run with that set's data in its config, all of them before anything is computed.

    given: `[NAME, key=value, …]` each, or `[FILE.yaml]`, which holds names with their settings. Raises `ConfigError`.
    """
    found: dict[str, Classifier] = {}
    for name, *settings in given:
        if not settings and is_file(name):
            groups = load_groups(Path(name))
        elif settings and "=" not in name:
            groups = {name: apply_overrides({}, settings)}
        else:
            raise ConfigError(f"--on {name}: must be NAME data.root=… or a YAML with names and their settings")
        for one, values in groups.items():
            if one in found:
                raise ConfigError(f"--on: {one} stands there twice")
            found[one] = _with_data(done, values, f"--on {one}")
    return found


def _with_data(done: Classifier, values: Mapping[str, Any], place: str) -> Classifier:
    """The run with a set's data in place of its own: what says where photos are is not mixed with the run's."""
    unknown = sorted({*values} - {*SETTINGS})
    if unknown or not isinstance(values.get("data", {}), Mapping):
        raise ConfigError(f"{place}: a set has data.… settings and templates, got {', '.join(unknown) or 'data'}")
    if of_all := [key for key in ("draft", "upright", "exif_rotate") if key in values.get("data", {})]:
        raise ConfigError(f"{place}: data.{of_all[0]} must be set for all sets, after the run")
    whole = resolved(done.module, done.config)
    kept = {k: whole["data"][k] for k in WHERE_FROM}
    whole |= {"classes": ""} if "classes" in whole else {}  # a set has its own
    whole |= {**values, "data": {**kept, **values.get("data", {})}}
    return replace(done, config=build_config(whole, place)[1])


def sources(done: Classifier) -> tuple[model_source.ModelSource | None, model_source.ModelSource | None]:
    """The run's model and the one before it, which are one where no tower was tuned.

    The one before is None, which is reported on stderr, where its weights are no longer there.
    """
    own = done.source()
    if own is None or not done.config.model:
        return own, own
    try:
        before = model_source.source_of(done.config)
    except JclipError as e:
        notice(f"zero-shot is left out: {e}")
        return own, None
    return own, own if before.identity == own.identity else before


def measured(
    done: Classifier, own: model_source.ModelSource | None, before: model_source.ModelSource | None, whole: bool = False
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Metrics of the run on its config's test data, and as `zero_shot_…` of the model before; the classes' names."""
    photos = test_photos(done, whole)
    data, scores, names = scored(done, own, photos)
    report = {"classes": len(names), **class_metrics.classification_report(scores, data.test_labels)}
    if before is not own:
        data = test_features(done, before, photos, normalise=True) if before else replace(data, text=None)
    if data.text is not None:
        zero_shot = heads.ZeroShotHead(data.text, data.scale)(directions.unit(data.test))
        report |= {
            f"zero_shot_{k}": v for k, v in class_metrics.classification_report(zero_shot, data.test_labels).items()
        }
    return report, names


def means(sets: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean over sets of the accuracies that all of them have."""
    kinds = ("zero_shot_top1", "top1")
    return {k: sum(m[k] for m in sets.values()) / len(sets) for k in kinds if all(k in m for m in sets.values())}


def _write_sets(sets: Mapping[str, Mapping[str, float]], out: Path) -> None:
    rows = [
        [name, m["classes"], m["count"], *(f"{m[k]:.4f}" if k in m else "" for k in SET_COLUMNS[3:])]
        for name, m in [*sets.items()]
    ]
    mean = means(sets)
    rows.append(["mean", "", "", *(f"{mean[k]:.4f}" if k in mean else "" for k in SET_COLUMNS[3:])])
    evaluation.write_csv(out / "sets.csv", SET_COLUMNS, rows)
    evaluation.write_json(out / "sets.json", {"sets": sets, "mean": mean})
