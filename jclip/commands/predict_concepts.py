"""`jclip predict` with a concept of `jclip teach` in place of a run: photos above its line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from jclip.commands import concept_classes, predict_tags, tag
from jclip.data import splits
from jclip.errors import ConfigError, say
from jclip.features import concepts
from jclip.paths import refuse_overwriting
from jclip.report import concept_tags, contact_sheet, tag_rules
from jclip.report import tags as tagss


def predict_concept(place: str, photos: Sequence[str], args: argparse.Namespace) -> int:
    """Prints and writes which photos show it. Returns the exit code. Raises `ConfigError` for options of runs."""
    if not photos:
        raise ConfigError(f"name the photos: `jclip predict {place} PHOTO…`; a concept has none of its own")
    given = {"--calibrate-on": args.calibrate_on, "--root": args.root, "--list": args.list}
    if odd := [option for option, value in given.items() if value is not None]:
        raise ConfigError(f"{odd[0]} is of runs with several labels for a photo, got a concept: {place}")
    predict_tags.check(args)
    if isinstance(args.threshold, str):
        raise ConfigError(f"--threshold must be a probability for a concept, got {args.threshold}")
    scorer = concept_classes.scorer_of([concepts.read_concept(concepts.concept_path(place))], args)
    found = splits.find_photos(photos)
    tagss.check_tag_file(args.out, found)
    refuse_overwriting([args.out, args.sheet], [*found, concepts.concept_path(place)])
    rules = tag_rules.TagRules(args.threshold, args.top)
    tags = concept_tags.concept_tags(scorer, scorer.scored(found, args.on_error or "skip"), rules)
    tagss.write_tags(tags, args.out)
    say(tagss.show_tags(tags))
    if args.sheet:
        contact_sheet.write_tag_sheet(args.sheet, tags, upright=scorer.source.preprocess.upright)
    if args.sort_into:
        tag.sort_photos(tags, Path(args.sort_into), args.how or "link", args.dry_run)
    say(f"written: {', '.join([f'{args.out} ({len(tags.photos)} photos)', *filter(None, [args.sheet])])}")
    return 0
