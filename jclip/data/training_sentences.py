"""Sentences for training that are made of class names by templates: single, pairs, sets, sub-sets. Imports no Jittor.

Each has the labels that its words say, by the labeller without guards: what was put in is named, and whatever else the words
of a template name. Classes outside of a hard list are unknown, not absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

from jclip.data.labelled_captions import LabelledCaptions, joined, labelled
from jclip.data.lexicons import Lexicon
from jclip.data.nouns import Labeller
from jclip.data.scene_captions import Draws
from jclip.errors import DataError, UnknownName
from jclip.prompts.templates import fill, load_templates
from jclip.readers.text import parse_json, read_text

COPIES = 9
SUBSETS = 5
SMALLEST = 3  # names of a drawn sub-set at least
PHOTO = "a photo of a {}."


def single_sentences(lexicon: Lexicon, labels: Iterable[int] | None = None) -> LabelledCaptions:
    """Returns for each class nine copies of "a photo of a {}." and the 80 templates of ImageNet once each, 89 sentences.

    labels: the classes, in order; None: all of them.
    """
    labels = range(len(lexicon.classnames)) if labels is None else labels
    texts = [fill(t, lexicon.prompt_names[label]) for label in labels for t in _templates()]
    return _made(texts, lexicon, "single")


def pair_sentences(lexicon: Lexicon) -> LabelledCaptions:
    """Returns nine copies of "a photo of a A and a B." for each pair of classes, in the order of their labels."""
    pairs = combinations(range(len(lexicon.classnames)), 2)
    return _made([text for pair in pairs for text in [_together(pair, lexicon)] * COPIES], lexicon, "pair")


def set_sentences(lexicon: Lexicon, sets: Sequence[Sequence[int]]) -> LabelledCaptions:
    """Returns a sentence that names all classes of a set for each of the sets, repeated ones too."""
    return _made([_together(own, lexicon) for own in sets if own], lexicon, "set")


def subset_sentences(lexicon: Lexicon, sets: Sequence[Sequence[int]], seed: int) -> LabelledCaptions:
    """Returns sentences about parts of each distinct set of at least two classes.

    A set of fewer than four gives itself once. Any other gives five draws of 3 … all of its classes, each size as likely,
    without replacement, named in the order drawn; labelled with what they name, not with the whole set.
    """
    draws, texts = Draws(seed), []
    for own in dict.fromkeys(tuple(sorted({*one})) for one in sets):
        if len(own) < 2:
            continue
        if len(own) < SMALLEST + 1:
            texts.append(_together(own, lexicon))
            continue
        for _ in range(SUBSETS):
            size = SMALLEST + draws.below(len(own) - SMALLEST + 1)
            texts.append(_together(draws.sample(own, size), lexicon))
    return _made(texts, lexicon, "set")


def hard_sentences(
    lexicon: Lexicon, hard: Sequence[int], sets: Sequence[Sequence[int]] = (), partner: int | None = None
) -> LabelledCaptions:
    """Returns the sentences for a model of a few hard classes; unnamed classes outside of the list are unknown.

    For each class of the list nine copies and 80 templates; with `partner` (person, in the seed's lists) for each other class
    X nine copies of "a photo of a partner and a X." and the 80 templates filled with both; and for each set its part in the
    list, where it has one.
    """
    parts = [single_sentences(lexicon, hard)]
    others = [label for label in hard if label != partner] if partner is not None else []
    texts = [fill(t, _names((partner, label), lexicon)) for label in others for t in _templates()]
    parts.append(_made(texts, lexicon, "pair"))
    chosen = {*hard}
    parts.append(set_sentences(lexicon, [part for own in sets if (part := [k for k in own if k in chosen])]))
    own = joined([part for part in parts if len(part)]).only(hard)
    return LabelledCaptions(
        own.classnames, own.texts, own.targets, own.weights, own.ids, ("hard",) * len(own), own.meta
    )


def read_sets(path: Path, lexicon: Lexicon) -> list[tuple[int, ...]]:
    """Returns the sets of classes of a file, as labels, repeats kept: a line `a, b, c` or `{"names": ["a", "b"]}` for each.

    Raises `DataError` for a file that is absent or empty, `UnknownName` for a name that is not a class.
    """
    labeller, sets = Labeller(lexicon, guarded=False), []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        names = _names_of(line.strip(), f"{path}, line {number}")
        found = [labeller.label_of(name) for name in names]
        if None in found:
            raise UnknownName(f"class in {path}, line {number}", names[found.index(None)], lexicon.classnames)
        sets.append(tuple(dict.fromkeys(found)))
    return sets


def _names_of(line: str, place: str) -> list[str]:
    if line[0] != "{":
        return [name.strip() for name in line.split(",") if name.strip()]
    names = parse_json(line, place).get("names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f'{place}: must be a set such as {{"names": ["dog", "bench"]}}, got {line:.80}')
    return names


def _made(texts: Sequence[str], lexicon: Lexicon, source: str) -> LabelledCaptions:
    return labelled(texts, Labeller(lexicon, guarded=False), source)


def _names(labels: Sequence[int], lexicon: Lexicon) -> str:
    return " and a ".join(lexicon.prompt_names[label] for label in labels)


def _together(labels: Sequence[int], lexicon: Lexicon) -> str:
    return PHOTO.format(_names(labels, lexicon))


def _templates() -> list[str]:
    return [PHOTO] * COPIES + [*load_templates("openai80")]
