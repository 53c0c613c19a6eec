"""Phrases with boxes that no one wrote: from detections, from triplets, from captions. Imports no Jittor.

Three sources, as CLIP-VG (Xiao et al., arXiv 2305.08685) has them: templates over detections, "subject predicate object"
with the subject's box, whole captions with the box of what they name. What a photo gives depends on the photo, its name
and the seed alone.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jclip.config import require
from jclip.data.box_forms import FORMATS
from jclip.data.box_rows import BoxRow, Corners
from jclip.data.detected_things import PhotoFacts, Triplet
from jclip.data.scene_captions import Draws
from jclip.data.template_phrases import (
    WordGroups,
    best_targets,
    filtered,
    phrases_of,
    shipped,
    targets_of,
    word_groups,
)
from jclip.data.word_forms import singular, tokens_of
from jclip.errors import DataError, UnknownName

Source = Literal["template", "relation", "caption"]
MADE = ("template", "relation", "caption")
LEAST_SCORE, MOST_TRIPLETS = 0.2, 10
MOST_CAPTIONED = 6  # rows of the caption source of one photo
SEED = 20211024  # the published one
USUAL = "unc"
Labelled = list[tuple[Corners, str]]


@dataclass(frozen=True)
class PseudoLabelConfig:
    """What to make of which files.

    files: JSON of photos with detections, triplets, captions; sources: of `template`, `relation`, `caption`, empty for
    those that the files allow; dataset: whose N and M hold (`unc` without one), and what rows are called after; objects,
    phrases: N and M themselves, 0 for the data set's; words: a YAML of word groups; compat: the published pixel constants
    and substring attributes; out: .jsonl, or .pth as CLIP-VG reads them, empty for a report alone.
    """

    files: tuple[str, ...]
    out: str = ""
    sources: tuple[Source, ...] = ()
    dataset: str = ""
    objects: int = 0
    phrases: int = 0
    seed: int = SEED
    compat: bool = False
    words: str = ""

    def __post_init__(self) -> None:
        require(len(self.files) > 0, "pseudo-labels", "files", "at least one file", list(self.files))
        for name in ("objects", "phrases", "seed"):
            require(getattr(self, name) >= 0, "pseudo-labels", name, "at least 0", getattr(self, name))
        require(
            len({*self.sources}) == len(self.sources), "pseudo-labels", "sources", "different names", list(self.sources)
        )
        if self.dataset and self.dataset not in FORMATS:
            raise UnknownName("data set", self.dataset, FORMATS)


@dataclass(frozen=True)
class PseudoLabels:
    """Rows, photo by photo, those of one source together; and what came of how many photos."""

    rows: tuple[BoxRow, ...]
    sources: tuple[Source, ...]
    photos: int
    without: tuple[str, ...]  # photos that gave no row
    photos_of: dict[str, int]  # source → photos that gave rows

    @property
    def rows_of(self) -> dict[str, int]:
        """Source → rows."""
        found = Counter(row.source for row in self.rows)
        return {source: found[source] for source in self.sources}


def make_pseudo_labels(
    facts: Sequence[PhotoFacts], cfg: PseudoLabelConfig, words: WordGroups | None = None
) -> PseudoLabels:
    """Return the rows of all sources, source by source, each in the order of the photos.

    Raises `DataError` where a source that was asked for finds nothing to read, or no row comes of all photos.
    """
    words = words or word_groups(cfg.words)
    usual = shipped()["data_sets"][cfg.dataset or USUAL]
    count, most = cfg.objects or usual["objects"], cfg.phrases or usual["phrases"]
    makers: dict[str, Callable[[PhotoFacts], Labelled]] = {
        "template": lambda one: template_rows(one, words, count, most, cfg.seed, cfg.compat),
        "relation": lambda one: relation_rows(one),
        "caption": lambda one: caption_rows(one, words, cfg.seed, cfg.compat),
    }
    sources = _sources(facts, cfg.sources)
    rows: list[BoxRow] = []
    photos_of = {}
    for source in sources:
        made = [(one, makers[source](one)) for one in facts]
        photos_of[source] = sum(bool(own) for _, own in made)
        rows += [_row(one, box, phrase, source, cfg.dataset) for one, own in made for box, phrase in own]
    if not rows:
        raise DataError(f"{len(facts)} photos gave no row ({', '.join(sources)}): boxes too small, scores too low?")
    there = {row.image for row in rows}
    return PseudoLabels(
        tuple(replace(row, id=number) for number, row in enumerate(rows)),
        sources,
        len(facts),
        tuple(one.image for one in facts if one.image not in there),
        photos_of,
    )


def template_rows(
    facts: PhotoFacts, words: WordGroups, objects: int, phrases: int, seed: int = SEED, compat: bool = False
) -> Labelled:
    """Return box and phrase of up to `phrases` drawn from all phrases of the best `objects` (N and M)."""
    pool = [(t.found.box, p) for t in best_targets(targets_of(facts, words, compat), objects) for p in phrases_of(t)]
    return _drawn(pool, phrases, seed, "template", facts.image)


def relation_rows(facts: PhotoFacts) -> Labelled:
    """Return the subject's box and "subject predicate object" of the ten best triplets whose three scores exceed 0.2."""
    sure = [t for t in facts.triplets if min(t.scores) > LEAST_SCORE and _has_area(t.box)]
    best = sorted(sure, key=lambda t: -t.score)[:MOST_TRIPLETS]
    return [(t.box, _said(t)) for t in best]


def caption_rows(facts: PhotoFacts, words: WordGroups, seed: int = SEED, compat: bool = False) -> Labelled:
    """Return whole captions with the boxes of detections whose class they name, up to six drawn.

    Of a caption with heads any head may be a class; as published, one word. Without heads the class that is named first
    counts: its words, singular or plural, as they follow each other in the caption.
    """
    left = filtered(facts, words, compat)
    found = [*left.people, *left.clothes, *left.things]
    pool = []
    for caption, heads in zip(facts.captions, facts.heads, strict=True):
        names = {*heads} if heads is not None else _first_named(caption, [d.classname for d in found])
        pool += [(d.box, caption) for d in found if d.classname in names and _has_area(d.box)]
    return _drawn(pool, MOST_CAPTIONED, seed, "caption", facts.image)


def _sources(facts: Sequence[PhotoFacts], asked: Sequence[Source]) -> tuple[Source, ...]:
    """Raises `DataError` for a source without anything to read."""
    detected = any(one.detections for one in facts)
    readable = {
        "template": detected,
        "relation": any(one.triplets for one in facts),
        "caption": detected and any(one.captions for one in facts),
    }
    needs = {"template": "detections", "relation": "triplets", "caption": "detections and captions"}
    for source in asked:
        if not readable[source]:
            raise DataError(f"the source {source} needs {needs[source]}, none of {len(facts)} photos has them")
    sources = tuple(asked or (source for source in MADE if readable[source]))
    if not sources:
        raise DataError(f"{len(facts)} photos have no detections and no triplets: there is nothing to make rows of")
    return sources


def _first_named(caption: str, classnames: Sequence[str]) -> set[str]:
    """The class that the caption names first; of those that begin there the longest."""
    tokens = tokens_of(caption)
    plain = [singular(token) for token in tokens]
    best: tuple[int, int, str] | None = None
    for name in dict.fromkeys(classnames):
        own = tokens_of(name)
        for start in range(len(tokens) - len(own) + 1) if own else ():
            end = start + len(own)
            if tokens[start:end] == own or plain[start:end] == [*map(singular, own)]:
                place = (start, -len(own), name)
                best = place if best is None else min(best, place)
                break
    return set() if best is None else {best[2]}


def _drawn(pool: Labelled, most: int, seed: int, source: str, image: str) -> Labelled:
    """Up to `most` of a pool, drawn by seed, source and the photo's name."""
    return pool if len(pool) < most else Draws(f"{seed} {source} {image}").sample(pool, most)


def _said(triplet: Triplet) -> str:
    return f"{triplet.subject} {triplet.predicate} {triplet.object}"


def _has_area(box: Corners) -> bool:
    return box[2] > box[0] and box[3] > box[1]


def _row(one: PhotoFacts, box: Corners, phrase: str, source: str, dataset: str) -> BoxRow:
    box = tuple(map(float, box))
    size = (one.width, one.height)
    return BoxRow(one.image, box, phrase, size, source, dataset=dataset, split="train_pseudo", box_raw=box)


def describe_photos(names: Sequence[str | os.PathLike], most: int = 3) -> str:
    """Return the first names of a list, and how many there are more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
