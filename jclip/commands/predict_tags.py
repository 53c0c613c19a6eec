"""`jclip predict` of runs of several labels: names above thresholds, with probabilities where a labelled list was fitted."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jclip.commands import tag
from jclip.commands.arguments import number
from jclip.data import checks, label_files, loader, multi_label_sets, splits
from jclip.errors import ConfigError, DataError, UnknownName, notice, say
from jclip.functional import calibration
from jclip.paths import file_sha256, is_file
from jclip.report import calibration_file, contact_sheet, score_files, tagging_run
from jclip.report import tags as tagss
from jclip.report.run_table import selected_on_test
from jclip.train import keyed_runs
from jclip.train.configs import resolved
from jclip.train.run_folder import LEARNED, adding_to

CALIBRATION = "calibration.json"  # in the run's folder
RULES = ("global_f1", "class_f1", "prevalence")
HALFWAY = "halfway"


def check(args: argparse.Namespace) -> None:
    """Raises `ConfigError` or `UnknownName` for options that do not go together: asked before the work."""
    tagss.check_tag_file(args.out)
    if args.threshold not in (None, HALFWAY, *RULES):
        try:
            args.threshold = number(-1e6, 1e6)(args.threshold)
        except argparse.ArgumentTypeError:
            raise UnknownName("threshold", args.threshold, ("a number", HALFWAY, *RULES)) from None
    if args.unsure:
        raise ConfigError("--unsure is of runs with one class for a photo: photos without any name go into _none")
    if args.calibrate_on and args.threshold == HALFWAY:
        raise ConfigError(f"--calibrate-on fits thresholds, got --threshold {HALFWAY}: leave one of them out")
    if args.root and not args.calibrate_on:
        raise ConfigError("--root is the folder of the photos of --calibrate-on: give both or none")
    if args.list and not args.list.lower().endswith(".json"):
        raise ConfigError(f"--list is a .json file, got {args.list}")
    if args.list and args.on_error == "skip":
        raise ConfigError("--list has a row for each photo: leave --on-error skip out, or repair the photos")


def predict_tags(
    done: tagging_run.TaggingRun, split: splits.Split, on_error: loader.OnError, args: argparse.Namespace
) -> None:
    """Scores the photos, prints their names and writes what was asked for."""
    fitted = calibration_of(done, args)
    rows, scores = done.scores_of(split, "stop" if args.list else on_error)
    photos = tuple(split.paths[row] for row in rows)
    tags = tags_of(done.classnames, photos, scores, fitted, args)
    tagss.write_tags(tags, args.out)
    if args.list:
        score_files.write_scores(args.list, score_files.Scores(args.list, {"scores": scores}), "seed")
    say("\n".join([tagss.show_tags(tags), *selected_on_test(done.metrics)]))
    if args.sheet:
        contact_sheet.write_tag_sheet(args.sheet, tags, upright=getattr(done.config.data, "upright", True))
    if args.sort_into:
        tag.sort_photos(tags, Path(args.sort_into), args.how or "link", args.dry_run)
    written = [f"{args.out} ({len(rows)} photos)", *filter(None, [args.list, args.sheet])]
    say(f"written: {', '.join(written)}")


def tags_of(
    classnames: Sequence[str], photos: tuple[str, ...], scores: Any, fitted: calibration.Calibration | None,
    args: argparse.Namespace,
) -> tagss.Tags:  # fmt: skip
    """Names above the threshold of each: a number, what was fitted, or halfway between a photo's least and greatest."""
    threshold = args.threshold if isinstance(args.threshold, float) else None
    options: dict[str, Any] = {"threshold": threshold, "top": args.top, "none": bool(fitted) or threshold is not None}
    if fitted:
        scores, passing = tag.calibrated(scores, fitted)
        options |= {"kind": "probability", "passing": passing if threshold is None else None}
    return tagss.Tags(photos, tuple(classnames), scores, **options)


def calibration_of(done: tagging_run.TaggingRun, args: argparse.Namespace) -> calibration.Calibration | None:
    """What is fitted on the list that the options name, and kept beside the run, else what was kept; None without any, or
    where the options want none. Raises `ConfigError` for a rule that nothing was fitted by."""
    if args.threshold == HALFWAY:
        return None
    file, rule = done.folder / CALIBRATION, args.threshold if args.threshold in RULES else None
    if args.calibrate_on:
        labels = labels_of(args.calibrate_on, done.classnames, args.root or "")
        _, scores = done.scores_of(labels.split, "stop")
        made = calibration_file.fitted(scores, labels, rule or "global_f1", made_of=made_of(done))
        with adding_to(done.folder, [CALIBRATION]):
            calibration_file.write_calibration(file, made)
        say(f"fitted: {file} ({made.rule} and probabilities, on {made.photos} photos of {made.photos_of})")
        return made
    kept = kept_calibration(file, done)
    if rule and (kept is None or kept.rule != rule):
        had = "none there" if kept is None else f"one by {kept.rule}"
        raise ConfigError(
            f"--threshold {rule} is fitted on labelled photos, got {had}: name them with --calibrate-on LIST"
        )
    if kept:
        say(f"thresholds: {kept.rule} and probabilities of {file}, fitted on {kept.photos} photos of {kept.photos_of}")
    return kept


def kept_calibration(file: Path, done: tagging_run.TaggingRun) -> calibration.Calibration | None:
    """What was kept beside the run; None without any, and of other scores, which is reported."""
    if not is_file(file):
        return None
    kept = calibration_file.read_calibration(file)
    if kept.made_of != made_of(done):
        notice(
            f"{file} is of other settings or another training, and is not used: fit it again with --calibrate-on LIST"
        )
        return None
    if kept.classnames != tuple(done.classnames):
        notice(f"{file} is of other classes, and is not used: fit it again with --calibrate-on LIST")
        return None
    return kept


def made_of(done: tagging_run.TaggingRun) -> str:
    """A key of what the run's scores depend on but the photos."""
    values = resolved(done.module, done.config)
    settings = {key: value for key, value in values.items() if key not in ("data", "model")}
    upright = getattr(done.config.data, "upright", True)
    return keyed_runs.key_of([settings, file_sha256(done.folder / LEARNED), done.source().weights_sha256, upright])


def labels_of(named: str, classnames: Sequence[str], root: str) -> label_files.PhotoLabels:
    """Labels of the photos of a list, which are all there. Raises `DataError`."""
    labels = multi_label_sets.read_labels(named, classnames, root=root)
    if labels.missing and not root:
        labels = multi_label_sets.read_labels(named, classnames, root=str(Path(named).parent))
    if labels.missing:
        raise DataError(
            f"{named}: {len(labels.missing)} of {len(labels)} photos are missing: {checks.preview(labels.missing)} (name their "
            "folder with --root)"
        )
    if not labels.photos:
        raise DataError(f"{named}: must name its photos, got labels alone")
    return labels
