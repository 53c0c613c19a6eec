"""The options of `jclip measure`, and which of them go together. Imports no Jittor."""

from __future__ import annotations

import argparse

from jclip.commands.arguments import Parser, add_shared, nonempty, number, whole
from jclip.errors import ConfigError, UnknownName

KINDS = ("columns", "mean", "weighted", "rank")  # of ensembles, see `jclip.functional.score_ensemble`
RULES = ("fixed", "global_f1", "class_f1", "prevalence")  # of thresholds, see `jclip.functional.calibration`


def parser(description: str) -> argparse.ArgumentParser:
    """The options; `description` is what the command does."""
    p = Parser("jclip measure", description=description)
    p.add_argument("scores", nargs="+", type=nonempty, metavar="SCORES", help="score files, see above")
    p.add_argument(
        "--labels", required=True, type=nonempty, metavar="SOURCE",
        help="labels: a folder of VOC or NUS-WIDE (FOLDER:test), COCO's instances .json, .csv or .jsonl with names, "
        "an .npz (FILE:ARRAY), lines `photo label label …`, or photos in a folder per class",
    )  # fmt: skip
    p.add_argument(
        "--classes", type=nonempty, metavar="NAMES|FILE",
        help="class names in order, where files have none: a,b,c, a file, or a set such as voc2007",
    )  # fmt: skip
    p.add_argument(
        "--images", type=nonempty, metavar="FILE", help="names of the photos of a score file that has none, one a line"
    )
    p.add_argument(
        "--common", action="store_true", help="measure photos that have both scores and labels, leave out the others"
    )
    _add_counting(p.add_argument_group("what is counted"))
    _add_combining(p.add_argument_group("global and local scores, several files"))
    _add_deciding(p.add_argument_group("decisions"))
    p.add_argument("--per-class", type=nonempty, metavar="FILE", help="also write a .csv of the last row by class")
    add_shared(p, "--out", ": a .json with all metrics and how they were counted")
    return p


def _add_counting(p: argparse._ArgumentGroup) -> None:
    p.add_argument(
        "--difficult", choices=("as_negative", "ignore"), default="as_negative",
        help="VOC's difficult objects: absent, or their class left out of that photo (default: as_negative)",
    )  # fmt: skip
    p.add_argument(
        "--crowd",
        choices=("count", "skip"),
        default="count",
        help="COCO's crowd boxes: objects or not (default: count)",
    )
    p.add_argument(
        "--label-values", choices=("jclip", "voc"), default="jclip",
        help="of a label array: jclip 0 absent, -1 unknown; voc -1 absent, 0 difficult (default: jclip)",
    )  # fmt: skip
    p.add_argument(
        "--ap", choices=("rank", "interp", "voc11"), default="rank",
        help="average precision by rank, of the envelope (VOC from 2010), at 11 recalls (VOC 2007) (default: rank)",
    )  # fmt: skip
    p.add_argument(
        "--ties", choices=("stable", "pessimistic", "expected"), default="stable",
        help="equal scores: in the files' order, negatives first, or the mean of all orders (default: stable)",
    )  # fmt: skip
    p.add_argument(
        "--no-positive", choices=("skip", "zero"), default="skip",
        help="classes without a positive: left out of means, or 0 as older code has it (default: skip)",
    )  # fmt: skip
    p.add_argument(
        "--skip-empty", action="store_true", help="leave photos without any label out of precision and recall"
    )
    p.add_argument("--unseen", type=nonempty, metavar="NAMES|FILE", help="also mAP of these classes, and of the others")
    p.add_argument(
        "--thirds", action="store_true", help="also mAP of the frequent, medium and rare third of the classes"
    )


def _add_combining(p: argparse._ArgumentGroup) -> None:
    p.add_argument(
        "--merge", type=_merge, metavar="R|search",
        help="of files with global and local scores, also R global + (1 - R) local; search: the R of the best mAP",
    )  # fmt: skip
    p.add_argument(
        "--ensemble", type=nonempty, metavar="KIND|FILE",
        help="also all files together: columns (classes by --columns), mean, weighted (--rho or equal weights of scaled "
        "scores), rank, or a .yaml that says it by models and classes",
    )  # fmt: skip
    p.add_argument(
        "--rho", type=number(0, 1), metavar="X", help="weight of the second of two files, 1 - X of the first"
    )
    p.add_argument(
        "--columns", type=nonempty, metavar="FILE",
        help="of --ensemble columns, YAML of `SCORES: [class, …]`: the classes that each decides; the first decides all others",
    )  # fmt: skip
    p.add_argument(
        "--column-norm", choices=("none", "zscore", "rank"), default="none",
        help="make columns of different files comparable (default: none)",
    )  # fmt: skip


def _add_deciding(p: argparse._ArgumentGroup) -> None:
    p.add_argument(
        "--at",
        nargs="+",
        type=whole(1, 10_000),
        metavar="K",
        default=[],
        help="precision and recall of the K best classes",
    )
    p.add_argument(
        "--threshold", type=nonempty, metavar="T|RULE|FILE",
        help=f"precision and recall above a number, above thresholds by {', '.join(RULES[1:])}, or those of a calibration file",
    )  # fmt: skip
    p.add_argument(
        "--quantiles", type=whole(2, 100_000), metavar="N",
        help="search the best F1 among N quantiles from .5 to .99 instead of all scores",
    )  # fmt: skip
    p.add_argument(
        "--calibrate", type=nonempty, metavar="FILE",
        help="write thresholds by the RULE (global_f1 where none is given) and sigmoids of the last row, a .json",
    )  # fmt: skip


def _merge(text: str) -> float | str:
    return text if text == "search" else number(0, 1)(text)


def check(args: argparse.Namespace) -> None:
    """Raises `ConfigError` for options that do not go together: asked before any file is read."""
    if args.ensemble and args.ensemble not in KINDS and not args.ensemble.lower().endswith((".yaml", ".yml")):
        raise UnknownName("ensemble", args.ensemble, (*KINDS, "a .yaml file"))
    if (args.rho is not None) and (args.ensemble != "weighted" or len(args.scores) != 2):
        raise ConfigError("--rho weighs two score files: give two, and --ensemble weighted")
    if args.ensemble and len(args.scores) < 2:
        raise ConfigError(f"--ensemble {args.ensemble} needs at least two score files, got one")
    if (args.ensemble == "columns") != bool(args.columns):
        raise ConfigError("--ensemble columns and --columns FILE belong together: give both or none")
    if args.column_norm != "none" and args.ensemble != "columns":
        raise ConfigError("--column-norm belongs to --ensemble columns")
    if args.quantiles and args.threshold not in RULES[1:3] and not args.calibrate:
        raise ConfigError("--quantiles belongs to --threshold global_f1 or class_f1")
    if args.ties == "expected" and args.ap != "rank":
        raise ConfigError(f"--ties expected is defined for --ap rank, got {args.ap}")
