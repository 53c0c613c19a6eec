"""Classifies photos into classes that you name, without training, with one model or an ensemble of several."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from jclip.choices import LARGEST_SIZE, MODES, RESIZES, VIEWS, default_model
from jclip.commands.arguments import BY_NAME, Parser, add_dtype, add_shared, nonempty, number, whole
from jclip.config import build
from jclip.data import class_names, splits
from jclip.errors import ConfigError, say
from jclip.features import concepts
from jclip.features.member import Member
from jclip.paths import exists, refuse_overwriting
from jclip.report import contact_sheet, predictions
from jclip.report.zero_shot_predictions import classify
from jclip.train import configs

OPTIONS = {  # of one model → the member's setting
    "model": "weights", "templates": "prompts", "mode": "mode", "scale": "scale", "drop_below": "drop_below",
    "drop_below_uniform": "drop_below_uniform", "views": "views", "family": "family", "dtype": "dtype",
    "truncate": "truncate", "article": "article", "plural": "plural",
}  # fmt: skip
LOOKS = ("size", "resize", "sharpness", "draft", "upright")  # options of one model that are its preprocessing


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip zero-shot", description=__doc__)
    p.add_argument(
        "photos",
        nargs="+",
        metavar="PHOTO|key=value",
        help="photos, folders of photos, settings that override --config",
    )
    what = p.add_mutually_exclusive_group()
    add_shared(what, "--model", BY_NAME)
    what.add_argument(
        "--config",
        type=nonempty,
        metavar="YAML",
        help="a config of the recipe zero_shot in place of one model, such as zero_shot/ajou",
    )
    p.add_argument(
        "--classes",
        metavar="SET|FILE|a,b,c",
        help="a benchmark's classes (imagenet1k), a file (a name per line, CSV, JSON, YAML), or their names",
    )
    p.add_argument(
        "--unknown",
        type=number(0, 1, below=True),
        metavar="P",
        help="label photos below this probability as unknown, none of the classes",
    )
    p.add_argument("--explain", action="store_true", help="add the prompt that decided, to .csv, .json and .html")
    add_shared(p, "--top", ": classes of a photo (default: 5)", default=5)
    add_shared(p, "--out", ": .csv, .json or .txt, the Jittor challenge's lines (default: nowhere)")
    p.add_argument(
        "--format", choices=("id_idx",), default="", help="write .csv in the Ajou challenge's form: id_idx,label"
    )
    add_shared(p, "--sheet", ", of the least and the most certain photos with their top-3")
    add_shared(p, "--on-error", " (default: skip and count them; stop with --format)")
    add_model_options(p.add_argument_group("options of --model (in a YAML, below models)"))
    return p


def add_model_options(p: argparse._ArgumentGroup) -> None:
    """How one model reads prompts, sees photos and scores; what is not given is as `jclip.features.member.Member` has it."""
    p.add_argument(
        "--templates", metavar="SET|FILE", help="prompt templates: openai80 (default), openai7, simple, a data set's such as "
        "dtd, a file ({class: [sentences]} in .json), one template with {}, or several joined by +"
    )  # fmt: skip
    p.add_argument(
        "--mode", choices=MODES, help="how a class's prompts become its score (default: embed, the mean embedding)"
    )
    p.add_argument("--scale", type=number(0, 1e6), metavar="X", help="logit scale (default: the weights' own)")
    p.add_argument(
        "--drop-below",
        type=number(0, 1),
        metavar="P",
        help="with prob-prompts, count smaller prompt probabilities as 0",
    )
    p.add_argument(
        "--drop-below-uniform", type=number(0, 1e6), metavar="U", help="the same, in units of 1 / number of prompts"
    )
    _add_looks(p)
    p.add_argument(
        "--article", action="store_true", default=None, help='let "a" and "an" agree with the word that follows'
    )
    p.add_argument("--plural", action="store_true", default=None, help='use the plural of the class in "many {}"')
    add_shared(p, "--truncate", default=None)
    add_shared(p, "--family")
    add_dtype(p)


def _add_looks(p: argparse._ArgumentGroup) -> None:
    """How one model sees photos: views, and `LOOKS`."""
    p.add_argument("--views", choices=VIEWS, help="test-time augmentation, averaged (default: none)")
    p.add_argument(
        "--size", type=whole(1, LARGEST_SIZE), metavar="N", help="input size in pixels (default: the weights' own)"
    )
    p.add_argument("--resize", choices=RESIZES, help="how photos are resized (default: the weights' own)")
    p.add_argument("--sharpness", type=number(0, 1_000), metavar="X", help="2 sharpens, 1 leaves photos unchanged")
    p.add_argument(
        "--draft",
        action="store_true",
        default=None,
        help="decode large JPEGs at a fraction of their size: not bit-exact",
    )
    p.add_argument(
        "--upright",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="apply EXIF orientations (the default), or read photos as stored",
    )


def main(argv: list[str]) -> int:
    """Classifies, prints a table, writes the results file. Returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    settings = [a for a in args.photos if re.match(r"[a-z_.0-9]+=", a) and not exists(a)]
    places = [a for a in args.photos if a not in settings]
    args.model = args.model or (None if args.config else default_model())
    asked = of_config(args, settings) if args.config else of_options(args, settings)

    on_error = args.on_error or ("stop" if args.format else "skip")
    predictions.check_format(args.out, args.format)
    contact_sheet.check_sheet(args.sheet)
    if args.format and on_error == "skip":
        raise ConfigError(f"--on-error must be stop with --format {args.format}, which numbers the photos, got skip")
    if not asked["classes"]:
        raise ConfigError("name the classes with --classes: a,b,c, a file, or a benchmark's set such as imagenet1k")
    if not places:
        raise ConfigError("name the photos, or folders of photos")
    names = class_names.read_class_names(asked.pop("classes")).names
    if concept := next(filter(concepts.is_concept, names), None):
        raise ConfigError(
            f"classes must be names here, got the concept {concept}: give it to `jclip tag` or `jclip predict`"
        )
    photos = splits.find_photos(places)
    predictions.check_format(args.out, args.format, photos)
    read = [args.classes, args.model, args.config, args.templates]
    refuse_overwriting([args.out, args.sheet], [*photos, *filter(None, read)])
    labelled = classify(photos=photos, classnames=names, explain=args.explain, top=args.top, on_error=on_error, **asked)
    say(predictions.show(labelled))
    if args.out:
        predictions.write_predictions(labelled, args.out, args.format)
        say(f"written: {args.out} ({len(labelled.photos)} photos)")
    if args.sheet:
        upright = all(member.preprocess.upright is not False for member in asked["members"])
        contact_sheet.write_sheet(args.sheet, labelled, choice="certainty", upright=upright)
        say(f"written: {args.sheet}")
    return 0


def of_options(args: argparse.Namespace, settings: Sequence[str]) -> dict[str, Any]:
    """What `classify` is asked, of one model. Raises `ConfigError`."""
    if settings:
        raise ConfigError(f"settings must follow --config, got {settings[0]} without it: use an option instead")
    given = {setting: getattr(args, option) for option, setting in OPTIONS.items()}
    looks = {name: getattr(args, name) for name in LOOKS}
    values = {k: v for k, v in given.items() if v is not None} | {"preprocess": looks}
    return {"members": [build(Member, values, "options")], "classes": args.classes, "unknown": args.unknown or 0.0}


def of_config(args: argparse.Namespace, settings: Sequence[str]) -> dict[str, Any]:
    """What `classify` is asked, of a config of the recipe zero_shot. Raises `ConfigError` for another one."""
    places = {**OPTIONS, **{look: f"preprocess.{look}" for look in LOOKS}}
    for option, setting in places.items():
        if option != "model" and getattr(args, option) is not None:
            spelt = option.replace("_", "-")
            raise ConfigError(f"--{spelt} must not stand beside --config: set models.0.{setting}=… instead")

    module, cfg, path = configs.read_config(args.config, settings)
    if module.__name__.rpartition(".")[2] != "zero_shot":
        recipe = module.__name__.rpartition(".")[2]
        raise ConfigError(
            f"{path} must be of the recipe zero_shot, got {recipe}: train it, then classify with `jclip predict`"
        )
    if cfg.search:
        raise ConfigError(
            f"{path} must not set search, which needs labelled photos: train it, then classify with `jclip predict`"
        )
    mixing = {name: getattr(cfg, name) for name in ("mix", "drop_below", "drop_below_uniform")}
    unknown = cfg.unknown if args.unknown is None else args.unknown
    return {"members": module.members(cfg), "classes": args.classes or cfg.classes, "unknown": unknown, **mixing}
