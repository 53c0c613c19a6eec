"""`jclip measure`: score files of photos with several labels each, against labels of any source. Imports no Jittor."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jclip.commands.arguments import number
from jclip.commands.measure_options import KINDS, RULES, check, parser
from jclip.data import class_names, label_files, multi_label_sets
from jclip.errors import ConfigError, DataError, UnknownName, notice, quoted, say
from jclip.functional import calibration, multi_label_metrics, score_ensemble
from jclip.paths import is_file, refuse_overwriting
from jclip.readers import strict_yaml
from jclip.report import calibration_file, ensemble_files, evaluation, multi_label_report, score_files


def measure(argv: list[str]) -> int:
    """Measures score files of photos with several labels each: mAP; precision, recall and F1 at k and at thresholds.

    Several files are measured one by one, and with --ensemble together. A score file is an .npz with arrays (photos x
    classes), a .json, or lines of predicted labels; of an .npz with more, FILE:ARRAY, or FILE:PREFIX for PREFIX_global and
    PREFIX_local.
    """
    args = parser(measure.__doc__).parse_args(argv)
    check(args)

    named = [*args.scores, args.labels]
    inputs = [
        *named,
        *(name.rpartition(":")[0] for name in named),
        args.columns,
        args.ensemble,
        args.threshold,
        args.classes,
        args.images,
    ]
    refuse_overwriting([args.out, args.per_class, args.calibrate], filter(None, inputs))
    rule = rule_of(args) if args.ensemble else None
    files, labels = matched(*read_all(args), args.common)
    merge = merge_of(args.merge, files, labels)
    files = [scores.with_merged(merge) for scores in files] if merge is not None else files
    settings = settings_of(args, labels)
    ensemble = together(args, files, rule) if rule else None
    rows = rows_of(files, labels, settings, last=not ensemble)
    if ensemble:
        rows.append(row_of("ensemble", ensemble_name(args), ensemble, labels, settings))
    write_all(args, files, labels, rows, ensemble, merge, settings)
    return 0


def read_all(args: argparse.Namespace) -> tuple[list[score_files.Scores], label_files.PhotoLabels]:
    """Score files and labels, with one another's class names where they have none of their own."""

    names = class_names.read_class_names(args.classes).names if args.classes else None
    images = score_files.read_image_names(Path(args.images)) if args.images else None
    rules = multi_label_sets.LabelRules(args.difficult, args.crowd, args.label_values)
    if not names and any(_has_numbers(name) for name in args.scores):
        labels = multi_label_sets.read_labels(args.labels, None, rules)
        return [score_files.read_scores(name, labels.classnames, images) for name in args.scores], labels
    files = [score_files.read_scores(name, names, images) for name in args.scores]
    own = next((scores.classnames for scores in files if scores.classnames), None)
    return files, multi_label_sets.read_labels(args.labels, names or own, rules)


def _has_numbers(name: str) -> bool:
    """Whether a score file's classes are numbers alone, which the labels' source has names for."""
    return not re.search(r"\.(npz|json)(:[^/]*)?$", name.lower())


def matched(
    files: Sequence[score_files.Scores], labels: label_files.PhotoLabels, common: bool
) -> tuple[list[score_files.Scores], label_files.PhotoLabels]:
    """Score files and labels of the same photos and classes, in the labels' order.

    Photos with labels but no scores are counted; scores without labels are refused, or with `common` left out. Raises
    `DataError`.
    """

    files = score_files.aligned([score_files.ordered_classes(scores, labels.classnames) for scores in files])
    photos = next((scores.photos for scores in files if scores.photos), ())
    if not photos or not labels.photos:
        if files[0].shape[0] != len(labels):
            raise DataError(
                f"scores must have a row for each of the {len(labels)} photos of {labels.source}, got {files[0].shape[0]}"
            )
        notice("photos are taken in order: scores or labels do not name them")
        return files, labels
    rows, places = score_files.photo_places(photos, labels.photos)
    lacking, extra = len(labels) - len(rows), len(photos) - len(rows)
    if not len(rows) or (extra and not common):
        first = next(photo for n, photo in enumerate(photos) if n not in {*rows.tolist()})
        raise DataError(
            f"{files[0].name}: photos must have labels in {labels.source}, got {extra} of {len(photos)} without "
            f"(first: {first}){'' if not len(rows) else ': --common measures the others'}"
        )
    if lacking or extra:
        notice(f"measured are {len(rows)} photos: {lacking} have labels without scores, {extra} scores without labels")
    return [scores.take(rows) for scores in files], labels.take(places)


def merge_of(
    given: float | str | None, files: Sequence[score_files.Scores], labels: label_files.PhotoLabels
) -> float | None:
    """The weight of the global scores, or None; with `search` the one of the best mAP, of one file. Raises `ConfigError`."""

    both = [scores.parts for scores in files if {"global", "local"} <= {*scores.parts}]
    if given is None:
        return None
    if not both:
        raise ConfigError("--merge needs a score file with global and local scores, got none")
    if given != "search":
        return float(given)
    if len(both) > 1:
        raise ConfigError(f"--merge search is for one file with global and local scores, got {len(both)}")
    return score_ensemble.searched_merge(both[0]["global"], both[0]["local"], labels.targets)


def settings_of(args: argparse.Namespace, labels: label_files.PhotoLabels) -> multi_label_report.Settings:
    """How to count, of the options."""
    import numpy as np

    groups: dict[str, Any] = {}
    if args.unseen:
        finder = label_files.ClassFinder(labels.classnames)
        named = [args.unseen] if finder.knows(args.unseen) else class_names.read_class_names(args.unseen).names
        unseen = sorted({finder.find(name, "--unseen") for name in named})
        groups = {"seen": np.setdiff1d(np.arange(len(finder.names)), unseen), "unseen": np.array(unseen)}
    if args.thirds:
        groups |= multi_label_metrics.thirds((labels.targets == 1).sum(axis=0))
    return multi_label_report.Settings(
        args.ap, args.ties, args.no_positive, args.skip_empty, tuple(dict.fromkeys(args.at)),
        threshold_of(args.threshold, labels), args.quantiles, groups,
    )  # fmt: skip


def threshold_of(given: str | None, labels: label_files.PhotoLabels) -> float | str | calibration.Calibration | None:
    """A number, the name of a rule, or what a calibration file holds. Raises `UnknownName` for none of these."""

    if given is None or given in RULES[1:]:
        return given
    if is_file(given):
        found = calibration_file.calibration_for(given, labels.classnames)
        if found.sha256 == labels.sha256():
            notice(f"{given} was fitted on the photos that are measured: for comparing, no result")
        return found
    try:
        return number(-1e30, 1e30)(given)
    except argparse.ArgumentTypeError:
        if any(mark in given for mark in "./"):
            raise ConfigError(f"--threshold: no such calibration file: {quoted(given)}") from None
        raise UnknownName("threshold", given, ("a number", *RULES[1:], "a calibration file")) from None


def rows_of(
    files: Sequence[score_files.Scores],
    labels: label_files.PhotoLabels,
    settings: multi_label_report.Settings,
    last: bool,
) -> list[multi_label_report.Measured]:
    """A row of metrics for each part of each score file. Thresholds of a calibration file are those of the last row alone,
    which `last` says to be among these."""

    parts = [(scores, part, matrix) for scores in files for part, matrix in scores.parts.items()]
    others = replace(settings, threshold=None) if isinstance(settings.threshold, calibration.Calibration) else settings
    return [
        multi_label_report.measured(
            scores.name,
            part,
            matrix,
            labels.targets,
            settings if last and n == len(parts) else others,
            decided=scores.decided,
            comparable=scores.comparable,
        )
        for n, (scores, part, matrix) in enumerate(parts, start=1)
    ]


def row_of(
    name: str,
    part: str,
    ensemble: score_files.Scores,
    labels: label_files.PhotoLabels,
    settings: multi_label_report.Settings,
) -> multi_label_report.Measured:
    """The row of an ensemble."""

    return multi_label_report.measured(
        name, part, ensemble.main, labels.targets, settings, comparable=ensemble.comparable
    )


def ensemble_name(args: argparse.Namespace) -> str:
    """`weighted 0.8`, for the table."""
    if args.ensemble not in KINDS:
        return Path(args.ensemble).stem
    return f"{args.ensemble} {args.rho:g}" if args.rho is not None else args.ensemble


def rule_of(args: argparse.Namespace) -> ensemble_files.EnsembleRule:
    """The ensemble that the options name. Raises `ConfigError`."""
    if args.ensemble not in KINDS:
        return ensemble_files.read_ensemble(args.ensemble)
    if args.ensemble == "columns":
        return ensemble_files.EnsembleRule("columns", read_columns(args.columns), column_norm=args.column_norm)
    return ensemble_files.EnsembleRule(args.ensemble)


def together(
    args: argparse.Namespace, files: Sequence[score_files.Scores], rule: ensemble_files.EnsembleRule
) -> score_files.Scores:
    """All score files as one."""
    if args.rho is not None:
        weights = score_ensemble.pair_weights(args.rho)
        rule = replace(rule, weights=dict(zip((scores.name for scores in files), weights, strict=True)))
    return ensemble_files.put_together(files, rule)


def read_columns(path: str) -> dict[str, list[str]]:
    """Which score file decides which classes. Raises `ConfigError`."""

    values = strict_yaml.read_yaml(Path(path))
    for name, classes in values.items():
        if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
            raise ConfigError(f"{path}, {name}: must be a list of class names, got {quoted(classes, 80)}")
    return values


def write_all(
    args: argparse.Namespace,
    files: Sequence[score_files.Scores],
    labels: label_files.PhotoLabels,
    rows: Sequence[multi_label_report.Measured],
    ensemble: score_files.Scores | None,
    merge: float | None,
    settings: multi_label_report.Settings,
) -> None:
    """Prints the tables and writes the files that were asked for."""

    chosen = (["merge"] if args.merge == "search" else []) + (["threshold"] if args.threshold in RULES[1:] else [])
    last = ensemble.main if ensemble else [*files[-1].parts.values()][-1]
    written = []
    if args.calibrate:
        fitted_on = ensemble or files[-1]
        write_fitted(args, last, labels, fitted_on.decided, fitted_on.comparable)
        written.append(args.calibrate)
    if args.per_class:
        evaluation.write_csv(
            Path(args.per_class), *multi_label_report.per_class(rows[-1], labels.targets, labels.classnames)
        )
        written.append(args.per_class)
    if args.out:
        counted = {key: getattr(args, key) for key in ("ap", "ties", "no_positive", "skip_empty", "ensemble", "rho")}
        evaluation.write_json(Path(args.out), {
            **multi_label_report.as_json(rows, labels.classnames),
            "labels": described(labels),
            "settings": {**counted, "merge": merge, "threshold": args.threshold, "quantiles": args.quantiles},
            "chosen_on_measured_photos": chosen,
            "uses_label_statistics": any(f.uses_label_statistics for f in [*files, *filter(None, [ensemble])]),
        })  # fmt: skip
        written.append(args.out)
    say(multi_label_report.tables(rows))
    notes = [f"{name} {multi_label_report.SAME_PHOTOS}" for name in chosen]
    if merge is not None and args.merge == "search":
        notes.insert(0, f"merge {merge:g}")
    for line in [*notes, *([f"written: {', '.join(written)}"] if written else [])]:
        say(line)


def described(labels: label_files.PhotoLabels) -> Mapping[str, Any]:
    """What was measured on, for metrics.json."""
    states = {
        name: int((labels.targets == state).sum()) for name, state in (("present", 1), ("absent", 0), ("unknown", -1))
    }
    present = labels.targets == 1
    empty, full = int((~present.any(axis=1)).sum()), int(present.all(axis=1).sum())
    return {
        "source": labels.source, "sha256": labels.sha256(), "photos": len(labels), "classes": len(labels.classnames),
        **states, "photos_without_label": empty, "photos_with_every_label": full, **labels.rules,
    }  # fmt: skip


def write_fitted(
    args: argparse.Namespace, scores: Any, labels: label_files.PhotoLabels, decided: bool, comparable: bool
) -> None:
    """Fits thresholds and sigmoids to these scores and labels, and writes them."""

    if decided:
        raise ConfigError("--calibrate needs scores, got a list of predicted labels")
    given = threshold_of(args.threshold, labels)
    rule = given if isinstance(given, str) else "global_f1" if given is None else "fixed"
    if isinstance(given, calibration.Calibration):
        raise ConfigError("--calibrate fits thresholds: give --threshold a number or a rule, got a calibration file")
    if not comparable and rule not in ("class_f1", "prevalence"):
        raise ConfigError(
            "--calibrate fits one threshold of all classes, which means nothing where scores of different models stand side by "
            "side: fit each class's own with --threshold class_f1 or prevalence"
        )
    fixed = given if isinstance(given, float) else 0.5
    fitted = calibration_file.fitted(scores, labels, rule, fixed, args.quantiles)
    calibration_file.write_calibration(args.calibrate, fitted)
