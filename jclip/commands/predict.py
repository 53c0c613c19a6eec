"""`jclip predict`: photos labelled by a finished run."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from jclip.commands import predict_boxes, predict_concepts, predict_tags
from jclip.commands.arguments import Parser, add_shared, nonempty, number
from jclip.data import photo_file, splits
from jclip.errors import ConfigError, say
from jclip.features import concepts
from jclip.paths import exists, is_file, refuse_overwriting
from jclip.report import contact_sheet, sorted_folders
from jclip.report import predictions as predicted
from jclip.report import tags as tagss
from jclip.report.finished_run import FinishedRun
from jclip.report.predictor import Predictor, unlabelled
from jclip.report.run_table import selected_on_test
from jclip.train.configs import (
    files_named_in,
    resolved,
)

OUT = "results/result.txt"


def predict(argv: list[str]) -> int:
    """Classifies photos with a finished run and writes the results file; prints the accuracy where labels are known.

    A run of grounding takes a file of phrases in place of photos, and writes their boxes.
    """
    args = predict_parser().parse_intermixed_args(argv)
    place, photos = (args.run, args.photos) if args.run_folder is None else (args.run_folder, [args.run, *args.photos])
    if place is None:
        raise ConfigError("name the run: `jclip predict RUN PHOTO…`, or --run FOLDER")
    photos = [*filter(None, photos)]
    settings = [a for a in photos if re.match(r"[a-z_.0-9]+=", a) and not exists(a)]

    if Path(args.out).suffix.lower() not in tagss.FORMATS:
        predicted.check_format(args.out)
    contact_sheet.check_sheet(args.sheet)
    if args.sort_into:
        sorted_folders.check_folder(Path(args.sort_into))
    places = [a for a in photos if a not in settings]
    if concepts.is_concept(place):
        return predict_concepts.predict_concept(place, photos, args)
    done = Predictor.load(place, settings, args.model or "")
    if done.task == "ground":
        return predict_phrases(done, places, args)
    done.check_predict(sheet=bool(args.sheet), sort=bool(args.sort_into))
    tagging = done.task == "multi_label"
    check_options(done, tagging, args)
    if places:
        split = unlabelled(splits.find_photos(places))
    else:
        done, split = done.own_split()
    read = [*split.paths, *files_of_run(done), *filter(is_file, filter(None, [args.calibrate_on]))]
    refuse_overwriting([args.out, args.sheet, args.list], read)
    on_error = args.on_error or ("skip" if places else "stop")
    (tagss.check_tag_file if tagging else predicted.check_format)(args.out, photos=split.paths)
    if tagging:
        predict_tags.predict_tags(done, split, on_error, args)
    else:
        predict_classes(done, split, on_error, args, known=not places)
    return 0


def predict_classes(
    done: FinishedRun, split: splits.Split, on_error: str, args: argparse.Namespace, known: bool
) -> None:
    """Prints and writes the class of each photo. known: the photos are the run's own, with their labels."""
    predictions, rows = done.label(split, on_error, args.top or 5)
    done.write_predictions(predictions, args.out)
    say("\n".join([done.show(predictions), *selected_on_test(done.metrics)]))
    if known and (line := done.rightness(predictions, split, rows)):
        say(line)
    if args.sheet:
        upright = getattr(done.config.data, "upright", True)
        contact_sheet.write_sheet(args.sheet, predictions, split.labels[rows], upright=upright)
    if args.sort_into:
        sort_photos(predictions, args)
    say(f"written: {args.out} ({len(rows)} photos){f', {args.sheet}' if args.sheet else ''}")


def predict_phrases(done: FinishedRun, places: list[str], args: argparse.Namespace) -> int:
    """Boxes of a file's phrases, by a run of grounding. Raises `ConfigError` for options of other runs."""
    given = {"--top": args.top, "--sort-into": args.sort_into, "--threshold": args.threshold, "--list": args.list,
             "--calibrate-on": args.calibrate_on}  # fmt: skip
    if odd := [option for option, value in given.items() if value is not None]:
        raise ConfigError(f"{odd[0]} is of runs that label photos, got {done.folder}, recipe {done.recipe}")
    if any(Path(place).is_dir() or Path(place).suffix.lower() in photo_file.PHOTO_ENDINGS for place in places):
        done.check_predict(sheet=False, sort=False)
    out = predict_boxes.out_of(args, OUT)
    read = [*places, *files_of_run(done)]
    refuse_overwriting([out, args.sheet], read)
    return predict_boxes.predict_boxes(done, places, out, args)


def check_options(done: FinishedRun, tagging: bool, args: argparse.Namespace) -> None:
    """Raises `ConfigError` for options of runs of another task."""
    if tagging:
        predict_tags.check(args)
        return
    predicted.check_format(args.out)
    given = {
        "--threshold": args.threshold,
        "--calibrate-on": args.calibrate_on,
        "--root": args.root,
        "--list": args.list,
    }
    if odd := [option for option, value in given.items() if value is not None]:
        raise ConfigError(
            f"{odd[0]} is of runs with several labels for a photo, got {done.folder}, recipe {done.recipe}"
        )


def files_of_run(done: FinishedRun) -> list[str | Path]:
    """The run's own files, and those that its settings name."""
    settings = resolved(done.module, done.config)
    return [*files_named_in(settings), *files_named_in(done.model), *done.folder.iterdir()]


def predict_parser() -> argparse.ArgumentParser:
    """The options of `predict`."""
    p = Parser("jclip predict", description=predict.__doc__)
    p.add_argument(
        "run",
        nargs="?",
        type=nonempty,
        metavar="RUN",
        help="the folder of a finished run, or the config that was trained; or a concept of `jclip teach`",
    )
    p.add_argument(
        "photos",
        nargs="*",
        metavar="PHOTO|key=value",
        help="photos, folders of photos, and settings that override the run's (default: the run's own test photos); for a run "
        "of grounding a file of photos and phrases, in a form of `jclip boxes`",
    )
    add_shared(
        p, "--model", " (default: the run's own); needed after precomputed features, or where the file has moved"
    )
    add_shared(p, "--run", ", in place of RUN", dest="run_folder")
    add_shared(
        p,
        "--top",
        ": classes of a photo (default: 5; of several labels, all above the threshold)",
    )
    add_shared(
        p,
        "--out",
        ": .txt (the Jittor challenge's lines), .csv or .json; of several labels also .jsonl, and .npz for all scores; "
        f"of phrases .jsonl, or .json for COCO's results (default: {OUT}, of phrases {predict_boxes.OUT})",
        default=OUT,
    )
    add_shared(p, "--sheet", ", of some of the photos with their classes")
    add_shared(p, "--on-error", " (default: skip and count them; stop for the run's own test photos)")
    _add_sorting_options(p)
    _add_options_of_several_labels(p.add_argument_group("where photos have several labels"))
    return p


def _add_sorting_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--sort-into", type=nonempty, metavar="FOLDER", help="also put the photos into one folder per class in FOLDER"
    )
    how = p.add_mutually_exclusive_group()
    how.add_argument(
        "--copy",
        dest="how",
        action="store_const",
        const="copy",
        help="--sort-into makes copies (the default, of one label a photo)",
    )
    how.add_argument(
        "--link",
        dest="how",
        action="store_const",
        const="link",
        help="--sort-into makes symbolic links (the default, of several labels)",
    )
    p.add_argument(
        "--unsure",
        type=number(0, 1),
        default=0.0,
        metavar="P",
        help="--sort-into puts photos below this probability into _unsure (default: 0.0)",
    )
    add_shared(p, "--dry-run", " (of --sort-into)")


def _add_options_of_several_labels(p: argparse._ArgumentGroup) -> None:
    p.add_argument(
        "--threshold", type=nonempty, metavar="X|RULE",
        help="names above X, a probability where a list was fitted, else a score; or above thresholds fitted by global_f1, "
        "class_f1 or prevalence; or halfway, between a photo's least and greatest score (default: as fitted, else halfway)",
    )  # fmt: skip
    p.add_argument(
        "--calibrate-on", type=nonempty, metavar="LIST",
        help="fit thresholds and probabilities on these labelled photos (as `jclip measure --labels` takes them), and keep "
        "them as calibration.json in the run's folder for later calls",
    )  # fmt: skip
    p.add_argument(
        "--root",
        type=nonempty,
        metavar="FOLDER",
        help="where the photos of --calibrate-on, or of a file of phrases, are (default: the list's folder)",
    )
    p.add_argument(
        "--list", type=nonempty, metavar="FILE",
        help="also write the contest's list: a .json of a list of scores for each photo, in order",
    )  # fmt: skip


def sort_photos(predictions: predicted.Predictions, args: argparse.Namespace) -> None:
    """Puts photos into class folders, or shows where they would go."""
    folder = Path(args.sort_into)
    placed = sorted_folders.plan(predictions, folder, args.unsure)
    say(predicted.table([f"folder in {folder}", "photos"], sorted_folders.counts(placed)))
    if args.dry_run:
        say("nothing was moved: repeat without --dry-run to do it")
    else:
        say(f"sorted: {folder}; `jclip unsort {sorted_folders.place(placed, folder, args.how or 'copy')}` undoes it")
