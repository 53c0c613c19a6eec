"""`jclip measure-boxes`: predicted boxes of phrases against true ones, whoever predicted them. Imports no Jittor."""

from __future__ import annotations

import argparse
from pathlib import Path

from jclip.commands.arguments import Parser, add_shared, nonempty, number, whole
from jclip.data import box_files, predicted_boxes
from jclip.data.box_forms import BOX_FORMATS, FORMATS, FORMS
from jclip.errors import ConfigError, DataError, counted, notice, say
from jclip.paths import refuse_overwriting
from jclip.report import box_measures, contact_sheet, evaluation

WORST, MOST_SHOWN = 24, 1000  # phrases of a sheet


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip measure-boxes", description=main.__doc__)
    p.add_argument(
        "predicted",
        type=nonempty,
        metavar="PREDICTED",
        help="JSON lines of `jclip predict`, of a run's boxes.jsonl or of `jclip ground --json`; or COCO's results, .json, "
        "with row or phrase",
    )
    p.add_argument(
        "true",
        nargs="?",
        type=nonempty,
        metavar="TRUE",
        help="phrases with their true boxes, in any form of `jclip boxes` (default: those that PREDICTED has)",
    )
    add_shared(p, "--out", ": all figures as .json (default: they are only printed)")
    p.add_argument(
        "--criterion",
        choices=("iou", "giou"),
        default="iou",
        help="what must reach a threshold; giou is stricter, as MDETR counts (default: iou)",
    )
    p.add_argument(
        "--frame",
        choices=("image", "square"),
        default="image",
        help="image: boxes as they are; square: true ones cut to integers, as CLIP-VG counts (default: image)",
    )
    p.add_argument("--at", type=number(0, 1), nargs="+", metavar="T", help="thresholds (default: 0.25 0.5 0.75 0.9)")
    p.add_argument("--common", action="store_true", help="measure what both files have, leave out the rest")
    _add_sheet_options(p)
    p.add_argument(
        "--box-format", choices=BOX_FORMATS, help="how predicted boxes are written (default: as the form has it)"
    )
    p.add_argument("--form", choices=FORMS, help="form of TRUE (default: by ending and content)")
    p.add_argument("--dataset", choices=[*FORMATS], help="data set of a .pth (default: what its name begins with)")
    return p


def _add_sheet_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--root", type=nonempty, metavar="FOLDER", help="the folder of the photos")
    p.add_argument(
        "--worst", type=nonempty, metavar="FILE", help="also write a sheet of the worst, both boxes drawn; needs --root"
    )
    p.add_argument(
        "--worst-count",
        type=whole(1, MOST_SHOWN),
        default=WORST,
        metavar="N",
        help="how many (default: 24)",
    )


def main(argv: list[str]) -> int:
    """Measures predicted boxes of phrases: Acc@t, mean and cumulative IoU, by length, direction words and size of the box."""
    args = parser().parse_intermixed_args(argv)
    out = Path(args.out) if args.out else None
    refuse_overwriting([out, args.worst], [args.predicted, *filter(None, [args.true])])
    if out and out.suffix.lower() != ".json":
        raise ConfigError(f"--out must end in .json, got {out}")
    contact_sheet.check_sheet(args.worst)
    if args.worst and not args.root:
        raise ConfigError("--worst shows photos: give their folder with --root")
    if args.root and not Path(args.root).is_dir():
        raise DataError(f"the folder of photos must be there, got {args.root}")
    measured = _measured(args)
    say(measured.tables())
    written = []
    if out:
        evaluation.write_json(out, measured.as_json())
        written.append(args.out)
    if args.worst:
        count = box_measures.write_worst(args.worst, measured, args.root, args.worst_count)
        written.append(f"{args.worst} ({count} phrases)")
    if written:
        say(f"written: {', '.join(written)}")
    return 0


def _measured(args: argparse.Namespace) -> box_measures.MeasuredBoxes:
    found = predicted_boxes.read_predicted_boxes(args.predicted, args.box_format or "")
    if args.true:
        file = box_files.read_box_file(args.true, args.form or "", dataset=args.dataset or "", photos=args.root)
        rows, place = file.rows, args.true
    else:
        rows, place = predicted_boxes.rows_within(args.predicted, found), args.predicted
    kept, own = (
        predicted_boxes.matched(found, rows, place, args.common)
        if args.true
        else (range(len(rows)), [[p] for p in found])
    )
    if len(kept) < len(rows):
        notice(f"measured are {len(kept)} of {len(rows)} rows of {place}")
    rows = [rows[n] for n in kept]
    thresholds = tuple(args.at) if args.at else box_measures.box_metrics.THRESHOLDS
    measured = box_measures.measured_boxes(
        rows, [predicted_boxes.corners_in(ps) for ps in own], args.criterion, args.frame, thresholds,
        [ps[0].present for ps in own],
    )  # fmt: skip
    if absent := measured.metrics["absent"]:
        notice(f"{counted(absent, 'row')} without a box, whose thing is not there: for presence alone")
    if not any(name.endswith(" box") for name in measured.groups):
        notice("the photos' sizes are unknown: no groups by the box's share of the photo (--root FOLDER)")
    return measured
