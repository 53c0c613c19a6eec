"""Tags photos with the names that you give, several to a photo or none, without training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from jclip.choices import LARGEST_SIZE, TAG_METHODS, default_model
from jclip.commands import concept_classes, shared_parts
from jclip.commands.arguments import BY_NAME, Parser, add_dtype, add_shared, nonempty, number, scales, whole
from jclip.data import class_names, splits
from jclip.errors import ConfigError, say
from jclip.features import concept_tagging, scored_parts, tagging
from jclip.features import source as sources
from jclip.paths import file_sha256, is_file, refuse_overwriting
from jclip.prompts.background_names import BACKGROUNDS
from jclip.report import calibration_file, concept_tags, contact_sheet, predictions, sorted_folders, tag_rules
from jclip.report import tags as tagss
from jclip.train import configs
from jclip.train import run as runs
from jclip.train.run_folder import LEARNED

TASK = "multi_label"  # of the runs that --run takes


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip tag", description=__doc__)
    p.add_argument("photos", nargs="+", metavar="PHOTO", help="photos, and folders of photos")
    p.add_argument(
        "--classes",
        metavar="SET|FILE|a,b,c",
        help="one name or more, a file of them, or a benchmark's (coco, voc2007); concept:FILE is one that `jclip teach` made",
    )
    what = p.add_mutually_exclusive_group()
    add_shared(what, "--model", BY_NAME)
    add_shared(what, "--run", " of a recipe of several labels per photo, with its own classes")
    p.add_argument(
        "--threshold", type=number(-1e6, 1e6), metavar="X",
        help="tags are names with scores above X (default: halfway between a photo's least and greatest score)",
    )  # fmt: skip
    p.add_argument(
        "--none", action="store_true",
        help="leave photos without a tag where no score is above the threshold, for which halfway is of background names "
        "as well; else they get their best name (always so with one class)",
    )  # fmt: skip
    p.add_argument(
        "--calibration", type=nonempty, metavar="FILE",
        help="thresholds and probabilities of each class, fitted by `jclip measure --calibrate` on scores of labelled photos",
    )  # fmt: skip
    add_shared(p, "--top", ": tags of a photo (default: all that are tags)")
    add_shared(
        p,
        "--out",
        ": .csv, .json, .jsonl; .txt, with numbers of tags; .npz, all scores (default: nowhere)",
    )
    add_shared(p, "--sheet", ", of some of the photos with their tags")
    add_shared(p, "--on-error", " (default: skip and count them)")
    _add_sorting_options(p)
    add_shared(p, "--dry-run", " and write nothing, but for the tables")
    _add_method_options(p.add_argument_group("how --model scores"))
    return p


def _add_sorting_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--sort-into", type=nonempty, metavar="FOLDER",
        help="also put each photo into a folder for each of its tags in FOLDER, without any into _none",
    )  # fmt: skip
    how = p.add_mutually_exclusive_group()
    how.add_argument(
        "--link", dest="how", action="store_const", const="link", help="--sort-into makes links (the default)"
    )
    how.add_argument("--copy", dest="how", action="store_const", const="copy", help="--sort-into makes copies")


def _add_method_options(p: argparse._ArgumentGroup) -> None:
    p.add_argument(
        "--method", choices=TAG_METHODS, default="auto",
        help="tagclip: patches of a vision transformer, refined by its attention; places: the best place of any tower's map; "
        "dense: all places, by their cosines; whole: the photo as one (default: auto, tagclip, for SigLIP "
        "whole by its own sigmoid, for ResNets, EVA, PE-Core and MobileCLIP places)",
    )  # fmt: skip
    p.add_argument(
        "--background", default="coco", metavar="SET|FILE|a,b,c",
        help=f"names of what else photos show, never given as tags: {', '.join(BACKGROUNDS)}, a file, or names "
        "(default: coco)",
    )  # fmt: skip
    p.add_argument(
        "--templates", metavar="SET|FILE",
        help="prompt templates, as `jclip zero-shot` takes them (default: tagclip85)",
    )  # fmt: skip
    add_shared(p, "--truncate")
    p.add_argument(
        "--size", type=whole(1, LARGEST_SIZE), metavar="N",
        help="pixels: for tagclip of the long side, to which larger photos are reduced (default: 640), else of the "
        "short side (default: the weights' own)",
    )  # fmt: skip
    p.add_argument(
        "--windows", type=scales, metavar="B,…",
        help="also score overlapping windows of 1/B of each side, 2 for 16 of them, 2,3 for 52; made for --method whole",
    )  # fmt: skip
    p.add_argument(
        "--per-class-norm", action="store_true",
        help="normalise scores within each photo, then each name's over all photos of this call",
    )  # fmt: skip
    shared_parts.add_options(p)
    add_shared(p, "--family")
    add_dtype(p)


def main(argv: list[str]) -> int:
    """Tags photos, prints a table, writes what was asked for. Returns the exit code."""
    args = parser().parse_args(argv)

    tagss.check_tag_file(args.out)
    contact_sheet.check_sheet(args.sheet)
    if args.sort_into:
        sorted_folders.check_folder(Path(args.sort_into))
    photos, scorer = splits.find_photos(args.photos), scorer_of(args)
    tagss.check_tag_file(args.out, photos)
    fitted = calibration_file.calibration_for(args.calibration, scorer.classnames) if args.calibration else None
    named = (args.classes, args.model, args.templates, args.background, args.calibration)
    read = [f for f in named if f and is_file(f)]
    refuse_overwriting([args.out, args.sheet], [*photos, *read])
    parts = job_of(args, photos, scorer)
    if not shared_parts.helped("tag", __name__, argv, args, parts).ends:
        return 0
    found = parts.together()
    if isinstance(scorer, concept_tagging.ConceptTagger):
        tags = concept_tags.concept_tags(scorer, found, rules_of(args))
    else:
        tags = tag_rules.tags_of(scorer.classnames, found, rules_of(args), fitted)
    say(tagss.show_tags(tags))
    write(tags, args)
    parts.forget()
    return 0


def scorer_of(args: argparse.Namespace) -> tagging.Scorer:
    """What scores the photos. Raises `ConfigError`."""
    return of_run(args.run, args.classes) if args.run else of_model(args)


def job_of(
    args: argparse.Namespace, photos: Sequence[str] = (), scorer: tagging.Scorer | None = None
) -> scored_parts.ScoredParts:
    """The photos in parts, which several processes may share."""
    scorer = scorer or scorer_of(args)
    if isinstance(scorer, tagging.Tagger | concept_tagging.ConceptTagger):
        made_of = scorer.made_of
    else:
        learned = Path(args.run, LEARNED)
        made_of = [file_sha256(learned) if is_file(learned) else "", runs.read_result(args.run)["config"]]
    return scored_parts.ScoredParts(scorer, made_of, photos or splits.find_photos(args.photos), args.on_error or "skip")


def of_model(args: argparse.Namespace) -> tagging.Scorer:
    """What scores without training, as the options say. Raises `ConfigError`."""

    if not args.classes:
        raise ConfigError("name the classes with --classes: a,b,c, a file, or a benchmark's set such as coco")
    if classes := concept_classes.classes_of(args.classes):
        return concept_classes.scorer_of(classes, args)
    names = class_names.read_class_names(args.classes, least=1).names
    source = sources.ModelSource(args.model or default_model(), args.family, args.dtype or "fp32")
    return tag_rules.tagger_of(
        source, names, args.templates or "", args.background, method=args.method, size=args.size,
        windows=args.windows or (), truncate=args.truncate,
    )  # fmt: skip


def of_run(run: str, classes: str | None = None) -> tagging.Scorer:
    """What a finished run scores photos with. Raises `ConfigError` for one of another task.

    Its recipe says `TASK = "multi_label"` and has `tagger(folder, config)`, which gives a `Scorer`.
    """

    if classes:
        raise ConfigError("--classes must not stand beside --run, which has its own")
    module, config = configs.build_config(runs.read_result(run)["config"], f"{run}/config.yaml")
    recipe, task = module.__name__.rpartition(".")[2], getattr(module, "TASK", "classify")
    if task != TASK or not hasattr(module, "tagger"):
        raise ConfigError(
            f"{run} must be a run of a recipe that gives several labels, got {recipe} of the task {task}: use `jclip "
            f"predict {run}`, or tag with --model"
        )
    return module.tagger(Path(run), config)


def rules_of(args: argparse.Namespace) -> tag_rules.TagRules:
    """What makes a tag of a score, as the options say."""
    return tag_rules.TagRules(args.threshold, args.top, args.none, args.per_class_norm)


def write(tags: tagss.Tags, args: argparse.Namespace) -> None:
    """Results file, sheet and sorted folders, as far as they were asked for."""

    if args.out and not args.dry_run:
        tagss.write_tags(tags, args.out)
        say(f"written: {args.out} ({len(tags.photos)} photos)")
    if args.sheet and not args.dry_run:
        contact_sheet.write_tag_sheet(args.sheet, tags)
        say(f"written: {args.sheet}")
    if args.sort_into:
        sort_photos(tags, Path(args.sort_into), args.how or "link", args.dry_run)
    if args.dry_run:
        say("nothing was written: repeat without --dry-run to do it")


def sort_photos(tags: tagss.Tags, folder: Path, how: str, dry_run: bool) -> None:
    """Puts each photo into the folder of each of its tags, or shows how many would go there."""
    placed = tagss.plan_tags(tags, folder)
    say(predictions.table([f"folder in {folder}", "photos"], sorted_folders.counts(placed)))
    if not dry_run:
        say(f"sorted: {folder}; `jclip unsort {sorted_folders.place(placed, folder, how)}` undoes it")
