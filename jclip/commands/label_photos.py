"""`jclip pseudo-labels`: phrases with boxes made of detections, triplets and captions. Imports no Jittor."""

from __future__ import annotations

import argparse
from pathlib import Path

from jclip.commands.arguments import Parser, add_shared, nonempty, whole
from jclip.config import build, load_values, project_of
from jclip.data import box_files, detected_things, pseudo_labels
from jclip.data.box_forms import FORMATS
from jclip.errors import notice, say
from jclip.paths import is_file, refuse_overwriting
from jclip.report import predictions

CONFIGS = (".yaml", ".yml")
OPTIONS = ("out", "sources", "dataset", "objects", "phrases", "seed", "compat", "words")


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip pseudo-labels", description=main.__doc__)
    p.add_argument(
        "files",
        nargs="+",
        type=nonempty,
        metavar="CONFIG|FILE",
        help="JSON or JSON lines of photos with detections, triplets, captions (docs/pseudo_labels.md); or one YAML with "
        "files and the options below as keys, and key=value settings",
    )
    rows = ": rows as .jsonl, .json, .csv, .tsv, .parquet, or .pth as CLIP-VG reads them"
    add_shared(p, "--out", f"{rows} (default: nothing, only report)")
    p.add_argument(
        "--sources",
        type=nonempty,
        metavar="A,B",
        help="of template, relation, caption (default: those that the files allow)",
    )
    p.add_argument(
        "--dataset", choices=[*FORMATS], help="data set whose numbers of objects and phrases hold (default: unc)"
    )
    p.add_argument(
        "--objects", type=whole(1, 10**6), metavar="N", help="objects kept in a photo (default: the data set's)"
    )
    p.add_argument(
        "--phrases", type=whole(1, 10**6), metavar="M", help="template phrases of a photo (default: the data set's)"
    )
    add_shared(p, "--seed", " of the draws (default: 20211024)")
    p.add_argument(
        "--compat", action="store_true", default=None, help="constants in pixels and attributes as published"
    )
    p.add_argument(
        "--words", type=nonempty, metavar="FILE", help="YAML of the words of people, hat, shirt, pants, shoes"
    )
    return p


def main(argv: list[str]) -> int:
    """Makes phrases with boxes from what detectors, relation finders and captioners found in photos."""
    args = parser().parse_intermixed_args(argv)
    cfg = _config(args)
    out = Path(cfg.out) if cfg.out else None
    refuse_overwriting([out], [*cfg.files, *filter(None, [cfg.words])])
    if out:
        box_files.written_form(out)
    made = pseudo_labels.make_pseudo_labels(detected_things.read_photo_facts(cfg.files), cfg)
    say(predictions.table(("source", "rows", "photos"), _counts(made)))
    say(f"rows: {len(made.rows)} of {made.photos} photos")
    if made.without:
        photos = "1 photo" if len(made.without) == 1 else f"{len(made.without)} photos"
        notice(f"{photos} gave no row: {pseudo_labels.describe_photos(made.without)}")
    if out:
        box_files.write_box_file(out, made.rows, cfg.dataset)
        say(f"written: {out}")
    return 0


def _counts(made: pseudo_labels.PseudoLabels) -> list[tuple[str, str, str]]:
    return [(source, str(made.rows_of[source]), str(made.photos_of[source])) for source in made.sources]


def _config(args: argparse.Namespace) -> pseudo_labels.PseudoLabelConfig:
    """The settings of a YAML, or of files alone; options win. Raises `ConfigError`."""
    first, *others = args.files
    if first.lower().endswith(CONFIGS):
        values, place = load_values(Path(first), others), first
        project = project_of(Path(first))
        if "files" in values:
            files = values["files"]
            values["files"] = (
                [_beside(project, f) for f in files] if isinstance(files, list) else _beside(project, files)
            )
        if isinstance(values.get("words"), str):
            values["words"] = _beside(project, values["words"])
    else:
        values, place = {"files": args.files}, "the command line"
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    if "sources" in given:
        given["sources"] = given["sources"].split(",")
    return build(pseudo_labels.PseudoLabelConfig, {**values, **given}, place)


def _beside(project: Path, name: object) -> object:
    """A file that a YAML names: relative to the YAML's project where it is there."""
    return str(project / name) if isinstance(name, str) and is_file(project / name) else name
