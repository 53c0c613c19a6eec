"""Concepts of `jclip teach` among the class names of a command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from jclip.data import class_names
from jclip.errors import ConfigError
from jclip.features import concept_tagging, concepts
from jclip.features.tagging import Tagger
from jclip.paths import is_file
from jclip.report import tag_rules


def classes_of(named: str) -> list[str | concepts.Concept]:
    """Names and concepts, in order, where there is a concept among the classes that are named; else nothing.

    Concepts in a file of classes are relative to the file. Raises `DataError` for one that is absent or damaged.
    """
    if concepts.is_concept(named) and is_file(concepts.concept_path(named)):
        return [concepts.read_concept(concepts.concept_path(named))]
    words = [" ".join(word.split()) for word in named.split(",") if word.strip()]
    folder = Path()
    if is_file(named):
        words, folder = [*class_names.read_class_names(named, least=1).names], Path(named).parent
    if not any(map(concepts.is_concept, words)):
        return []
    return [
        concepts.read_concept(folder / concepts.concept_path(word)) if concepts.is_concept(word) else word
        for word in words
    ]


def scorer_of(classes: Sequence[str | concepts.Concept], args: argparse.Namespace) -> concept_tagging.ConceptTagger:
    """What scores photos for them, with the model that the concepts were taught with. Raises `ConfigError`."""
    first, *others = (one for one in classes if isinstance(one, concepts.Concept))
    if getattr(args, "family", None) or getattr(args, "dtype", None):
        raise ConfigError(f"the concept {first.name!r} states family and dtype: leave --family and --dtype out")
    if getattr(args, "calibration", None):
        raise ConfigError("--calibration must not stand beside a concept, which has its own line: leave it out")
    source = first.source(args.model or "")
    for other in others:
        other.check_concept(first)
    names = [one for one in classes if isinstance(one, str)]
    return concept_tagging.ConceptTagger(source, classes, _tagger(source, names, args) if names else None)


def _tagger(source, names: Sequence[str], args: argparse.Namespace) -> Tagger:
    return tag_rules.tagger_of(
        source, names, args.templates or "", args.background, method=args.method, size=args.size,
        windows=args.windows or (), truncate=args.truncate,
    )  # fmt: skip
