"""`jclip predict` of runs of several labels: names above thresholds, with probabilities where a labelled list was fitted."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from jclip.commands import tag
from jclip.commands.arguments import number
from jclip.data import checks, label_files, loader, multi_label_sets, splits
from jclip.errors import ConfigError, DataError, UnknownName, say
from jclip.functional import calibration
from jclip.report import calibration_file, contact_sheet, score_files, tag_rules, tagging_run
from jclip.report import tags as tagss
from jclip.report.run_table import selected_on_test
from jclip.train.run_folder import adding_to

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
    threshold = args.threshold if isinstance(args.threshold, float) else None
    tags = tag_rules.tags_of_run(done.classnames, photos, scores, fitted, threshold, args.top)
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


def calibration_of(done: tagging_run.TaggingRun, args: argparse.Namespace) -> calibration.Calibration | None:
    """What is fitted on the list that the options name, and kept beside the run, else what was kept; None without any, or
    where the options want none. Raises `ConfigError` for a rule that nothing was fitted by."""
    if args.threshold == HALFWAY:
        return None
    file, rule = done.folder / tag_rules.CALIBRATION, args.threshold if args.threshold in RULES else None
    if args.calibrate_on:
        labels = labels_of(args.calibrate_on, done.classnames, args.root or "")
        _, scores = done.scores_of(labels.split, "stop")
        made = calibration_file.fitted(scores, labels, rule or "global_f1", made_of=tag_rules.made_of(done))
        with adding_to(done.folder, [tag_rules.CALIBRATION]):
            calibration_file.write_calibration(file, made)
        say(f"fitted: {file} ({made.rule} and probabilities, on {made.photos} photos of {made.photos_of})")
        return made
    kept = tag_rules.kept_calibration(done)
    if rule and (kept is None or kept.rule != rule):
        had = "none there" if kept is None else f"one by {kept.rule}"
        raise ConfigError(
            f"--threshold {rule} is fitted on labelled photos, got {had}: name them with --calibrate-on LIST"
        )
    if kept:
        say(f"thresholds: {kept.rule} and probabilities of {file}, fitted on {kept.photos} photos of {kept.photos_of}")
    return kept


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
