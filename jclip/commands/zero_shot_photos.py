"""`jclip zero-shot`: photos into classes that the user names, without training; by one model, or by several mixed."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jclip.choices import LARGEST_SIZE, MODES, RESIZES, VIEWS, default_model
from jclip.commands.arguments import Parser, nonempty, number, whole
from jclip.errors import ConfigError, say
from jclip.paths import exists
from jclip.weights.families import FAMILIES

if TYPE_CHECKING:  # --help answers before NumPy is imported
    from jclip.features.member import Member
    from jclip.report.predictions import Predictions

OPTIONS = {  # of one model → the member's setting
    "model": "weights", "templates": "prompts", "mode": "mode", "scale": "scale", "drop_below": "drop_below",
    "drop_below_uniform": "drop_below_uniform", "views": "views", "family": "family", "dtype": "dtype",
    "truncate": "truncate", "article": "article", "plural": "plural",
}  # fmt: skip
MOST_TOP = 1_000_000  # classes
LOOKS = ("size", "resize", "sharpness", "draft", "upright")  # options of one model that are its preprocessing


def classify(
    members: Sequence[Member],
    photos: Sequence[str],
    classnames: Sequence[str],
    *,
    mix: str = "prob",
    drop_below: float = 0.0,
    drop_below_uniform: float = 0.0,
    unknown: float = 0.0,
    explain: bool = False,
    top: int = 5,
    on_error: str = "stop",
) -> Predictions:
    """Scores of each photo and class, by one model or several.

    How is written in `jclip.features.several_models` and `jclip.functional.prompt_scores`.

    unknown: below this probability a photo is of none of the classes. explain: also which prompt decided. Raises
    `ConfigError` for members that can't be mixed so, `DataError` for a photo that does not decode, unless on_error is
    "skip".
    """
    import numpy as np

    from jclip.data.splits import Split
    from jclip.features.extraction import extract
    from jclip.features.several_models import build_mixture, deciding
    from jclip.features.source import SideBySide
    from jclip.report.predictions import Predictions

    together = SideBySide.of(members)
    split = Split(tuple(photos), np.full(len(photos), -1, np.int32))
    mixture = build_mixture(
        together, members, classnames, {"photos": split}, mix=mix, drop_below=drop_below,
        drop_below_uniform=drop_below_uniform, on_error=on_error, whole=explain,
    )  # fmt: skip
    rows, features = extract(together, split, on_error=on_error, label="photos")
    scores = mixture(features)
    prompts = deciding(mixture, members, classnames, features, scores.argmax(axis=1)) if explain else ()
    seen = tuple(photos[i] for i in rows)
    return Predictions(seen, tuple(classnames), scores, top, unknown, tuple(prompts))


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip zero-shot", description=__doc__)
    p.add_argument(
        "photos", nargs="+", metavar="PHOTO|key=value", help="photos, folders of photos, settings of --config"
    )
    what = p.add_mutually_exclusive_group()
    what.add_argument(
        "--model",
        type=nonempty,
        help="a name such as ViT-B/32 (downloaded once), or a weight file (default: JCLIP_MODEL, else ViT-B/32)",
    )
    what.add_argument(
        "--config",
        type=nonempty,
        metavar="YAML",
        help="one of the recipe zero_shot, such as zero_shot/ajou: several models",
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
        help="below this probability a photo is of none of the classes",
    )
    p.add_argument("--explain", action="store_true", help="tell which prompt decided, in .csv, .json and .html")
    p.add_argument("--top", type=whole(1, MOST_TOP), default=5, help="classes told per photo (default 5)")
    p.add_argument(
        "--out", type=nonempty, metavar="FILE", help="results as .csv, .json, or .txt (the Jittor challenge's lines)"
    )
    p.add_argument(
        "--format", choices=("id_idx",), default="", help=".csv as the Ajou challenge takes it: id_idx,label"
    )
    p.add_argument(
        "--sheet",
        type=nonempty,
        metavar="FILE",
        help="also a .png or .html of the least and the most certain photos with their top-3",
    )
    p.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        help="what to do with photos that do not decode (default: skip and count them; stop with --format)",
    )
    add_model_options(p.add_argument_group("of --model (a YAML has them below models)"))
    return p


def add_model_options(p: argparse._ArgumentGroup) -> None:
    """How one model reads prompts, sees photos and scores; what is not given is as `jclip.features.member.Member` has it."""
    p.add_argument(
        "--templates", metavar="SET|FILE", help="openai80 (default), openai7, simple, a data set's such as dtd, a file "
        "({class: [sentences]} in .json), one template with {}, or several joined by +"
    )  # fmt: skip
    p.add_argument("--mode", choices=MODES, help="how prompts make a class's score (default embed: averaged)")
    p.add_argument("--scale", type=number(0, 1e6), help="of the logits (default: the weights' own)")
    p.add_argument(
        "--drop-below", type=number(0, 1), metavar="P", help="prob-prompts: smaller probabilities of prompts are none"
    )
    p.add_argument(
        "--drop-below-uniform", type=number(0, 1e6), metavar="U", help="the same, times 1 / the number of prompts"
    )
    p.add_argument("--views", choices=VIEWS, help="the mean of several views of a photo (default none)")
    p.add_argument("--size", type=whole(1, LARGEST_SIZE), help="pixels (default: the weights' own)")
    p.add_argument("--resize", choices=RESIZES, help="how photos are brought to it")
    p.add_argument("--sharpness", type=number(0, 1_000), help="2 sharpens, 1 leaves photos as they are")
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
        help="apply EXIF orientations (the default), or leave photos as they are stored",
    )
    p.add_argument("--article", action="store_true", default=None, help='"a" and "an" agree with what follows')
    p.add_argument("--plural", action="store_true", default=None, help='"many {}" takes the plural of the class')
    p.add_argument("--truncate", action="store_true", default=None, help="cut prompts that are too long")
    p.add_argument("--family", choices=FAMILIES, help="for weights that don't say their activation")
    p.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), help="bf16 on CPUs with AVX-512, both halves on a GPU")


def main(argv: list[str]) -> int:
    """Classifies, prints a table, writes the results file. Returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    settings = [a for a in args.photos if re.match(r"[a-z_.0-9]+=", a) and not exists(a)]
    places = [a for a in args.photos if a not in settings]
    args.model = args.model or (None if args.config else default_model())
    asked = of_config(args, settings) if args.config else of_options(args, settings)

    from jclip.data.class_names import read_class_names
    from jclip.data.splits import find_photos
    from jclip.paths import refuse_overwriting
    from jclip.report.contact_sheet import check_sheet, write_sheet
    from jclip.report.predictions import check_format, show, write_predictions

    on_error = args.on_error or ("stop" if args.format else "skip")
    check_format(args.out, args.format)
    check_sheet(args.sheet)
    if args.format and on_error == "skip":
        raise ConfigError(
            f"--format {args.format} counts photos: leaving some out with --on-error skip shifts the others"
        )
    if not asked["classes"]:
        raise ConfigError("name the classes with --classes: a,b,c, a file, or a benchmark's set such as imagenet1k")
    if not places:
        raise ConfigError("name the photos, or folders of photos")
    names = read_class_names(asked.pop("classes")).names
    photos = find_photos(places)
    read = [args.classes, args.model, args.config, args.templates]
    refuse_overwriting([args.out, args.sheet], [*photos, *filter(None, read)])
    predictions = classify(
        photos=photos, classnames=names, explain=args.explain, top=args.top, on_error=on_error, **asked
    )
    say(show(predictions))
    if args.out:
        write_predictions(predictions, args.out, args.format)
        say(f"written: {args.out} ({len(predictions.photos)} photos)")
    if args.sheet:
        upright = all(member.preprocess.upright is not False for member in asked["members"])
        write_sheet(args.sheet, predictions, choice="certainty", upright=upright)
        say(f"written: {args.sheet}")
    return 0


def of_options(args: argparse.Namespace, settings: Sequence[str]) -> dict[str, Any]:
    """What `classify` is asked, of one model. Raises `ConfigError`."""
    from jclip.config import build
    from jclip.features.member import Member

    if settings:
        raise ConfigError(f"{settings[0]} is a setting of a YAML: name it with --config, or use an option")
    given = {setting: getattr(args, option) for option, setting in OPTIONS.items()}
    looks = {name: getattr(args, name) for name in LOOKS}
    values = {k: v for k, v in given.items() if v is not None} | {"preprocess": looks}
    return {"members": [build(Member, values, "options")], "classes": args.classes, "unknown": args.unknown or 0.0}


def of_config(args: argparse.Namespace, settings: Sequence[str]) -> dict[str, Any]:
    """What `classify` is asked, of a config of the recipe zero_shot. Raises `ConfigError` for another one."""
    places = {**OPTIONS, **{look: f"preprocess.{look}" for look in LOOKS}}
    for option, setting in places.items():
        if option != "model" and getattr(args, option) is not None:
            told = option.replace("_", "-")
            raise ConfigError(f"--{told} is of one model: with --config, set it as models.0.{setting}=…")
    from jclip.train import configs

    module, cfg, path = configs.read_config(args.config, settings)
    if module.__name__.rpartition(".")[2] != "zero_shot":
        raise ConfigError(f"{path} is of another recipe: train it, and label photos with `jclip predict`")
    if cfg.search:
        raise ConfigError(f"{path} searches its weights by labelled photos: train it, and label with `jclip predict`")
    told = {name: getattr(cfg, name) for name in ("mix", "drop_below", "drop_below_uniform")}
    unknown = cfg.unknown if args.unknown is None else args.unknown
    return {"members": module.members(cfg), "classes": args.classes or cfg.classes, "unknown": unknown, **told}
