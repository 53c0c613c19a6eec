"""`jclip captions`: labels captions by the class names in them, or makes captions of class names."""

from __future__ import annotations

import argparse

from jclip.commands import generate_captions, label_captions
from jclip.commands.arguments import Parser, add_shared, nonempty, number, whole
from jclip.errors import ConfigError

LABEL, GENERATE = "label", "generate"


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip captions", description=main.__doc__)
    p.add_argument(
        "what",
        metavar="label|generate",
        choices=(LABEL, GENERATE),
        help="label: find the classes that the captions of files name; generate: make captions of class names",
    )
    p.add_argument(
        "inputs",
        nargs="+",
        type=nonempty,
        metavar="FILE|CONFIG",
        help="files of captions to label (docs/captions.md lists the formats), or a YAML of captions to generate with settings "
        "that override it, such as seed=1",
    )
    p.add_argument(
        "--classes",
        type=nonempty,
        metavar="NAMES",
        help="label: coco, voc2007, nuswide, another set of class names, a file of names, or a,b,c",
    )
    p.add_argument(
        "--lexicon",
        type=nonempty,
        metavar="NAME|FILE",
        help="label: the words for each class: extended, compat (the published ones, no guards), or a YAML of class: [words] "
        "(default: extended)",
        default="extended",
    )
    add_shared(p, "--out", ": the file of labelled captions, or the folder of generated ones")
    _add_limits(p)
    add_shared(p, "--dry-run", ": generate prints the questions to a chat server and their tokens")
    return p


def _add_limits(p: argparse.ArgumentParser) -> None:
    """How many captions may be bad, and how many are kept."""
    p.add_argument(
        "--max-bad",
        type=number(0, 1),
        metavar="SHARE",
        help="label: stop where more than this share of a file's rows is no caption (default: 0.01)",
        default=0.01,
    )
    p.add_argument(
        "--max-per-class",
        type=whole(1, 10**9),
        metavar="N",
        help="label: keep at most N captions for each class, each counted for its rarest (default: all)",
    )
    add_shared(p, "--seed", " of the order in which --max-per-class keeps captions (default: the files' order)")


def main(argv: list[str]) -> int:
    """Labels captions by the class names in them, or makes captions of class names."""
    args = parser().parse_intermixed_args(argv)
    if not args.out and not args.dry_run:
        raise ConfigError("--out must name where to write, such as --out captions.jsonl")
    if args.what == GENERATE:
        given = {"--classes": args.classes, "--max-per-class": args.max_per_class, "--seed": args.seed}
        if wrong := [option for option, value in given.items() if value is not None]:
            raise ConfigError(
                f"{wrong[0]} belongs to `captions label`: for generate write {wrong[0][2:]}=… as a setting"
            )
        return generate_captions.generate(args.inputs[0], args.inputs[1:], args.out, args.dry_run)

    if not args.classes:
        raise ConfigError("--classes must name the classes to look for, such as --classes coco")
    return label_captions.label(args.inputs, args)
