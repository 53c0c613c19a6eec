"""`jclip predict`: photos labelled by a finished run."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from jclip.commands.arguments import Parser, add_shared, nonempty, number
from jclip.data import splits
from jclip.errors import say
from jclip.paths import exists, refuse_overwriting
from jclip.report import contact_sheet, sorted_folders
from jclip.report import predictions as predicted
from jclip.report.finished_run import FinishedRun
from jclip.report.predictor import Predictor, unlabelled
from jclip.report.run_table import selected_on_test
from jclip.train.configs import (
    files_named_in,
    resolved,
)


def predict(argv: list[str]) -> int:
    """Classifies photos with a finished run and writes the results file; prints the accuracy where labels are known."""
    args = predict_parser().parse_intermixed_args(argv)
    settings = [a for a in args.photos if re.match(r"[a-z_.0-9]+=", a) and not exists(a)]

    predicted.check_format(args.out)
    contact_sheet.check_sheet(args.sheet)
    if args.sort_into:
        sorted_folders.check_folder(Path(args.sort_into))
    done = Predictor.load(args.run, settings, args.model or "")
    done.check_predict(sheet=bool(args.sheet), sort=bool(args.sort_into))
    places = [a for a in args.photos if a not in settings]
    if places:
        split = unlabelled(splits.find_photos(places))
    else:
        done, split = done.own_split()
    refuse_overwriting([args.out, args.sheet], [*split.paths, *files_of_run(done)])
    predictions, rows = done.label(split, args.on_error or ("skip" if places else "stop"), args.top)
    done.write_predictions(predictions, args.out)
    say("\n".join([done.show(predictions), *selected_on_test(done.metrics)]))
    if not places and (line := done.rightness(predictions, split, rows)):
        say(line)
    if args.sheet:
        upright = getattr(done.config.data, "upright", True)
        contact_sheet.write_sheet(args.sheet, predictions, split.labels[rows], upright=upright)
    if args.sort_into:
        sort_photos(predictions, args)
    say(f"written: {args.out} ({len(rows)} photos){f', {args.sheet}' if args.sheet else ''}")
    return 0


def files_of_run(done: FinishedRun) -> list[str | Path]:
    """The run's own files, and those that its settings name."""
    settings = resolved(done.module, done.config)
    return [*files_named_in(settings), *files_named_in(done.model), *done.folder.iterdir()]


def predict_parser() -> argparse.ArgumentParser:
    """The options of `predict`."""
    p = Parser("jclip predict", description=predict.__doc__)
    add_shared(p, "RUN")
    p.add_argument(
        "photos",
        nargs="*",
        metavar="PHOTO|key=value",
        help="photos, folders of photos, and settings that override the run's (default: the run's own test photos)",
    )
    add_shared(
        p, "--model", " (default: the run's own); needed after precomputed features, or where the file has moved"
    )
    add_shared(p, "--top", " (default: 5)", default=5)
    out = "results/result.txt"
    add_shared(p, "--out", f": .txt (the Jittor challenge's lines), .csv or .json (default: {out})", default=out)
    add_shared(p, "--sheet", ", of some of the photos with their classes")
    add_shared(p, "--on-error", " (default: skip and count them; stop for the run's own test photos)")
    p.add_argument(
        "--sort-into", type=nonempty, metavar="FOLDER", help="also put the photos into one folder per class in FOLDER"
    )
    how = p.add_mutually_exclusive_group()
    how.add_argument(
        "--copy", dest="how", action="store_const", const="copy", help="--sort-into makes copies (the default)"
    )
    how.add_argument(
        "--link", dest="how", action="store_const", const="link", help="--sort-into makes symbolic links, not copies"
    )
    p.add_argument(
        "--unsure",
        type=number(0, 1),
        default=0.0,
        metavar="P",
        help="--sort-into puts photos below this probability into _unsure (default: 0.0)",
    )
    add_shared(p, "--dry-run", " (of --sort-into)")
    return p


def sort_photos(predictions: predicted.Predictions, args: argparse.Namespace) -> None:
    """Puts photos into class folders, or shows where they would go."""
    folder = Path(args.sort_into)
    placed = sorted_folders.plan(predictions, folder, args.unsure)
    say(predicted.table([f"folder in {folder}", "photos"], sorted_folders.counts(placed)))
    if args.dry_run:
        say("nothing was moved: repeat without --dry-run to do it")
    else:
        say(f"sorted: {folder}; `jclip unsort {sorted_folders.place(placed, folder, args.how or 'copy')}` undoes it")
