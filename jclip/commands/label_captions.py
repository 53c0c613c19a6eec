"""`jclip captions label`: captions of files, labelled by the class names in them, with a report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jclip.config import to_json
from jclip.data.caption_formats import CaptionFile, label_files
from jclip.data.checks import preview
from jclip.data.labelled_captions import LabelledCaptions, balanced_rows, write_captions
from jclip.data.lexicons import load_lexicon
from jclip.data.nouns import Labeller
from jclip.data.reply_parsing import in_another_script
from jclip.errors import DataError, notice, say
from jclip.paths import refuse_overwriting, replacing
from jclip.report.predictions import table

FEW_NAMED = 0.05  # share of captions that name a class, below which something is likely wrong
SHOWN = 20


def label(files: Sequence[str], args: argparse.Namespace) -> int:
    """Writes the captions that name a class, and a report as a table and as JSON beside them."""
    lexicon = load_lexicon(args.classes, args.lexicon)
    out = Path(args.out) if args.out else None
    report_file = out.parent / f"{out.stem}.report.json" if out else None
    refuse_overwriting([out, report_file], files)
    everything, read = label_files([Path(file) for file in files], Labeller(lexicon), args.max_bad)
    named = np.flatnonzero((everything.targets == 1).any(axis=1))
    check_language(everything, len(named), files)
    kept = everything.at(named)
    if args.max_per_class:
        kept = kept.at(balanced_rows(kept.targets, args.max_per_class, args.seed))
    report = report_of(kept, everything, read, lexicon.name, args.lexicon)
    say(report_table(report))
    if without := report["classes_without_a_caption"]:
        notice(f"no caption names {len(without)} of {len(lexicon.classnames)} classes: {', '.join(without):.400}")
    if args.dry_run or out is None:
        say("nothing is written")
        return 0
    write_captions(out, kept)
    with replacing(report_file) as temporary:
        temporary.write_text(f"{to_json(report, indent=1)}\n", encoding="utf-8")
    say(f"written: {out}, {report_file}")
    return 0


def check_language(captions: LabelledCaptions, named: int, files: Sequence[str]) -> None:
    """Raises `DataError` where no caption names a class; reports where few do. named: how many do."""
    if named >= FEW_NAMED * len(captions):
        return
    foreign = sum(map(in_another_script, captions.texts))
    why = f", {foreign} are in another script than the Latin" if foreign else ""
    place, names = ", ".join(map(str, files)), preview(captions.classnames, 3)
    found = f"{place:.200}: {named or 'none'} of {len(captions)} captions name one of the classes ({names}){why}"
    if not named:
        raise DataError(f"{found}: captions must be in the language of the class names")
    notice(f"{found}: are they in the language of the class names?")


def report_of(
    kept: LabelledCaptions, everything: LabelledCaptions, read: Sequence[CaptionFile], lexicon: str, kind: str
) -> dict[str, Any]:
    """What was read and kept, and for each class how many captions name it or leave it unknown."""
    counts, unknown = kept.counts(), (kept.targets == -1).sum(axis=0)
    unnamed = [own for own, row in zip(everything.ids, everything.targets, strict=True) if not (row == 1).any()]
    return {
        "lexicon": lexicon,
        "kind": kind,
        "files": [
            {
                "path": str(file.path),
                "format": file.format,
                "captions": len(file.captions),
                "dropped": dict(file.dropped),
                "bad": len(file.bad),
                "first_bad": file.bad[:5],
            }
            for file in read
        ],
        "captions_read": len(everything),
        "captions_without_a_class": len(unnamed),
        "first_ids_without_a_class": unnamed[:SHOWN],
        "captions_kept": len(kept),
        "labels": int(counts.sum()),
        "unknown": int(unknown.sum()),
        "labels_per_class": dict(zip(kept.classnames, counts.tolist(), strict=True)),
        "unknown_per_class": dict(zip(kept.classnames, unknown.tolist(), strict=True)),
        "classes_without_a_caption": [n for n, count in zip(kept.classnames, counts, strict=True) if not count],
    }


def report_table(report: dict[str, Any]) -> str:
    """The report for a terminal: files, the classes with most captions and those with least, sums."""
    files = [
        [Path(f["path"]).name, f["format"], f"{f['captions']}", f"{sum(f['dropped'].values())}", f"{f['bad']}"]
        for f in report["files"]
    ]
    labels, unknown = report["labels_per_class"], report["unknown_per_class"]
    order = sorted(labels, key=lambda name: -labels[name])
    rows = [[name, f"{labels[name]}", f"{unknown[name]}"] for name in order]
    if len(rows) > SHOWN:
        rows = [*rows[: SHOWN // 2], ["…", "", ""], *rows[-SHOWN // 2 :]]
    rows.append([f"{len(labels)} classes", f"{report['labels']}", f"{report['unknown']}"])
    return "\n".join(
        [
            table(["file", "format", "captions", "dropped", "bad"], files),
            "",
            table(["class", "captions", "unknown"], rows),
            "",
            f"captions: {report['captions_kept']} kept of {report['captions_read']}, {report['captions_without_a_class']} name "
            f"no class; {report['labels'] / max(1, report['captions_kept']):.2f} labels per caption",
        ]
    )
