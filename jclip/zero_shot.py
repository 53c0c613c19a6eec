"""`jclip zero-shot`: photos into classes that the user names, without training."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jclip.errors import ConfigError, DataError
from jclip.families import FAMILIES
from jclip.prompts import class_prompts, load_templates, prompt_sets

if TYPE_CHECKING:  # --help answers before NumPy is imported
    from jclip.results import Predictions
    from jclip.source import ModelSource


def classify(
    source: ModelSource,
    photos: Sequence[str],
    classnames: Sequence[str],
    templates: str = "openai80",
    top: int = 5,
    on_error: str = "stop",
    truncate: bool = False,
) -> Predictions:
    """Scores s · x · w_k of each photo and class; w_k averages the class's prompts in embedding space."""
    import numpy as np

    from jclip.data.splits import Split
    from jclip.features import extract
    from jclip.heads import unit, zero_shot_head
    from jclip.results import Predictions

    head = zero_shot_head(source, class_prompts(classnames, load_templates(templates)), truncate)
    split = Split(tuple(photos), np.zeros(len(photos), np.int32))
    rows, features = extract(source, split, on_error=on_error, label="photos")
    return Predictions(tuple(photos[i] for i in rows), tuple(classnames), head(unit(features)), top)


def class_names(names_or_file: str) -> list[str]:
    """Class names from `a,b,c` or from a file: one per line, `name label` lines, or a JSON list. Raises `DataError`."""
    from jclip.data.splits import read_names

    path = Path(names_or_file)
    if os.path.isfile(path):  # noqa: PTH113 - unlike Path's, it answers for what is too long to be a file's name
        names = _json_names(path) if path.suffix == ".json" else list(read_names(path))
    elif "," not in names_or_file and (path.suffix or "/" in names_or_file):
        raise DataError(f"no such file of class names: {path}")
    else:
        names = [n.strip() for n in names_or_file.split(",") if n.strip()]
    if not names:
        raise DataError("no class names given")
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated:
        raise DataError(f"class names stand more than once: {', '.join(repeated[:5])}")
    return names


def _json_names(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as e:
        raise DataError(f"{path} is not valid JSON: {e}") from e
    if not isinstance(names, list):
        raise DataError(f"{path}: expected a JSON list of class names")
    return [str(n) for n in names]


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser("jclip zero-shot", description=__doc__)
    p.add_argument("photos", nargs="+", metavar="PHOTO", help="photos, or folders of photos")
    p.add_argument("--model", required=True, help="a name such as ViT-B/32 (downloaded once), or a weight file")
    p.add_argument("--classes", required=True, metavar="FILE|a,b,c", help="class names, or a file with one per line")
    p.add_argument(
        "--templates",
        default="openai80",
        metavar="SET|FILE",
        help=f"{', '.join(prompt_sets())}, a file, or one template with {{}}",
    )
    p.add_argument("--top", type=int, default=5, help="classes told per photo (default 5)")
    p.add_argument("--out", metavar="FILE", help="results as .csv, .json, or .txt (the Jittor challenge's lines)")
    p.add_argument("--sheet", metavar="FILE.png", help="also a picture of some of the photos with their classes")
    p.add_argument("--family", choices=FAMILIES, help="for weights that don't say their activation")
    p.add_argument(
        "--dtype",
        choices=("fp32", "fp16", "bf16"),
        default="fp32",
        help="bf16 on CPUs with AVX-512, both halves on a GPU",
    )
    p.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="what to do with a photo that does not decode"
    )
    p.add_argument("--draft", action="store_true", help="decode large JPEGs at a fraction of their size: not bit-exact")
    p.add_argument("--truncate", action="store_true", help="cut prompts that are too long")
    return p


def main(argv: list[str]) -> int:
    """Classifies, prints a table, writes the results file. Returns the exit code."""
    args = parser().parse_args(argv)

    from jclip.data.splits import find_photos
    from jclip.results import check_format, show, write_predictions
    from jclip.sheet import check_sheet, write_sheet
    from jclip.source import ModelSource

    check_format(args.out)
    check_sheet(args.sheet)
    if args.top < 1:
        raise ConfigError(f"--top {args.top}: at least one class must be told")
    names = class_names(args.classes)
    photos = find_photos(args.photos)
    source = ModelSource(args.model, args.family, args.dtype, draft=args.draft)
    predictions = classify(source, photos, names, args.templates, args.top, args.on_error, args.truncate)
    print(show(predictions))
    if args.out:
        write_predictions(predictions, args.out)
        print(f"written: {args.out} ({len(predictions.photos)} photos)")
    if args.sheet:
        write_sheet(args.sheet, predictions)
        print(f"written: {args.sheet}")
    return 0
