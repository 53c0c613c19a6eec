"""`jclip boxes`: files of phrases with boxes, checked, converted, made into one. Imports no Jittor."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from jclip.commands.arguments import Parser, add_shared, nonempty, number
from jclip.data import box_detections, box_files, box_rows
from jclip.data.box_forms import BOX_FORMATS, FORMATS, FORMS, SOURCES, WRITTEN
from jclip.errors import ConfigError, DataError, UnknownName, notice, say
from jclip.paths import refuse_overwriting
from jclip.report import predictions


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip boxes", description=main.__doc__)
    p.add_argument(
        "files",
        nargs="+",
        type=nonempty,
        metavar="FILE",
        help="files of phrases with boxes: .pth of CLIP-VG, .jsonl (ours, ODVG), .json (MDETR, refs, RefCOCOs, pred_boxes, a "
        "list), .csv, .tsv, .parquet; several are joined in this order",
    )
    rows = ": rows as .jsonl, .json, .csv, .tsv, .parquet, or .pth as CLIP-VG reads them"
    add_shared(p, "--out", f"{rows} (default: nothing, only check)")
    p.add_argument(
        "--to", choices=[*WRITTEN], help="form of --out (default: by its ending: lines, list, table, parquet, split)"
    )
    p.add_argument("--form", choices=FORMS, help="form of the files (default: by ending and content)")
    p.add_argument(
        "--dataset", choices=[*FORMATS], help="data set of .pth files (default: what their names begin with)"
    )
    p.add_argument("--box-format", choices=BOX_FORMATS, help="how boxes are written (default: as the form has it)")
    p.add_argument(
        "--sources",
        type=nonempty,
        metavar="A,B",
        help=f"where the rows of each file come from, of {', '.join(SOURCES)}; one, or one a file (default: by name)",
    )
    p.add_argument(
        "--root", type=nonempty, metavar="FOLDER", help="the folder of the photos: they and boxes are checked"
    )
    p.add_argument(
        "--instances", type=nonempty, metavar="FILE", help="COCO's instances.json for refs (default: beside)"
    )
    _add_choice_of_rows(p)
    return p


def _add_choice_of_rows(p: argparse.ArgumentParser) -> None:
    """Which rows are kept, and what is done with bad ones."""
    p.add_argument(
        "--split", type=nonempty, metavar="NAME", help="keep only rows of this split, such as val (default: all)"
    )
    p.add_argument("--present", action="store_true", help="keep only rows that have a box, whose thing is there")
    p.add_argument(
        "--dedup",
        choices=("none", "exact"),
        default="none",
        help="exact: drop rows whose photo, box and phrase were there before (default: none)",
    )
    p.add_argument(
        "--proposals",
        type=nonempty,
        metavar="FILE",
        help="also write a detector's boxes that the rows have (pred_boxes) as COCO's results, .json",
    )
    p.add_argument(
        "--max-bad",
        type=number(0, 1),
        default=0.0,
        metavar="SHARE",
        help="leave out up to this share of a file's rows that can't be used (default: 0.0)",
    )


def main(argv: list[str]) -> int:
    """Checks files of phrases with boxes, converts them, and joins several into one."""
    args = parser().parse_intermixed_args(argv)
    out = Path(args.out) if args.out else None
    refuse_overwriting([out, args.proposals], args.files)
    if args.to and not out:
        raise ConfigError("--to is the form of --out, which must be given with it")
    if out:
        box_files.written_form(out, args.to or "")
    if args.proposals and Path(args.proposals).suffix.lower() != ".json":
        raise ConfigError(f"--proposals must end in .json, got {args.proposals}")
    read = [_read(file, source, args) for file, source in zip(args.files, _sources(args), strict=True)]
    for file, source in zip(read, _sources(args), strict=True):
        if others := sum(row.source != source for row in file.rows) if source else 0:
            notice(
                f"{file.path}: {others} of {len(file.rows)} rows state another source than {source}, which they keep"
            )
    parts = [_kept(file, args.split, args.present) for file in read]
    rows, dropped = box_files.merged(parts, args.dedup)
    if args.proposals and not any(row.extra.get(box_detections.PROPOSALS) for row in rows):
        raise DataError(f"{args.proposals} can't be written: no row has boxes of a detector (pred_boxes)")
    say(_report(read, parts))
    for refusal in [r for file in read for r in file.refusals][:5]:
        notice(f"left out: {refusal}")
    if unknown := sum(row.size is None for row in rows):
        notice(
            f"of {unknown} rows the photo's size is unknown: their boxes were not checked against it (--root FOLDER)"
        )
    dropping = f", {dropped} dropped as repeated" if args.dedup == "exact" else ""
    sources = ", ".join(f"{name} {count}" for name, count in box_files.count_sources(rows).items())
    say(f"rows: {len(rows)}{dropping} ({sources})")
    if out:
        box_files.write_box_file(out, rows, args.dataset or "", args.to or "")
        say(f"written: {out}")
    if args.proposals:
        count = box_detections.write_proposals(args.proposals, rows)
        say(f"written: {args.proposals} ({count} boxes of {len({row.image for row in rows})} photos)")
    return 0


def _sources(args: argparse.Namespace) -> list[str]:
    """The source for each file, "" where its name decides."""
    given = args.sources.split(",") if args.sources else [""]
    if len(given) == 1:
        given *= len(args.files)
    if len(given) != len(args.files):
        raise ConfigError(
            f"--sources must name one source, or one for each of {len(args.files)} files, got {len(given)}"
        )
    for name in filter(None, given):
        if name not in SOURCES:
            raise UnknownName("source", name, SOURCES)
    return given


def _read(file: str, source: str, args: argparse.Namespace) -> box_files.BoxFile:
    return box_files.read_box_file(
        file,
        args.form or "",
        dataset=args.dataset or "",
        box_format=args.box_format or "",
        source=source,
        photos=args.root,
        instances=args.instances or "",
        max_bad=args.max_bad,
    )


def _kept(file: box_files.BoxFile, split: str | None, present: bool) -> Sequence[box_rows.BoxRow]:
    rows = [row for row in file.rows if split in (None, row.split)]
    if not rows:
        known = ", ".join(sorted({row.split or "(none)" for row in file.rows}))
        raise DataError(f"{file.path} has no row of the split {split} (there are: {known})")
    kept = [row for row in rows if row.box is not None or not present]
    if not kept:
        raise DataError(f"{file.path} has no row with a box, of {len(rows)} rows")
    return kept


def _report(read: Sequence[box_files.BoxFile], parts: Sequence[Sequence[box_rows.BoxRow]]) -> str:
    rows = [
        (
            Path(file.path).name,
            file.form,
            str(len(part)),
            str(len({row.image for row in part})),
            str(sum(row.box is None for row in part)),
            str(len(file.refusals)),
        )
        for file, part in zip(read, parts, strict=True)
    ]
    return predictions.table(("file", "form", "rows", "photos", "absent", "left out"), rows)
