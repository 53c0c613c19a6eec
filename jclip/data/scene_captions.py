"""Captions made offline from class names alone, by templates and a seed; and those of the embedded world. No Jittor.

Equal class names and seed give equal bytes on every machine. The labels of a sentence are those that the labeller finds in
it, and a sentence counts only where these are the classes that it was built from.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from jclip.data import shapes
from jclip.data.labelled_captions import LabelledCaptions
from jclip.data.lexicons import Lexicon, load_lexicon
from jclip.data.nouns import Labeller
from jclip.data.word_forms import plural, with_article
from jclip.errors import DataError
from jclip.paths import ASSETS
from jclip.readers.strict_yaml import read_yaml

MIN_PER_CLASS = 300
MAX_SHARE = 0.25
_SIZES = (0.2, 0.3, 0.25, 0.15, 0.1)  # shares of sentences about 1, 2, … things of a scene
_NEUTRAL_SIZES = (0.25, 0.25, 0.25, 0.25)
_ADJECTIVES, _DISTRACTORS = 0.25, 0.1  # shares of things with an adjective, of sentences with another thing
_TRIES = 6  # sentences for one set of classes before it is given up
_SLOT = re.compile(r"\{([A-E])(\+?)(?::([a-z ]+))?\}")
_T = TypeVar("_T")


class Draws:
    """Draws from a seed that are the same in every Python: only `random()` is, by its documentation."""

    def __init__(self, seed: int | str):
        self._random = random.Random(str(seed)).random

    def chance(self, share: float) -> bool:
        """Returns True in that share of the calls."""
        return self._random() < share

    def below(self, count: int) -> int:
        """Returns an integer from 0 to count - 1, each as likely."""
        return int(self._random() * count)

    def one(self, values: Sequence[_T]) -> _T:
        """Returns one of the values, each as likely."""
        return values[self.below(len(values))]

    def weighted(self, weights: Sequence[float]) -> int:
        """Returns a place, as likely as its weight; the weights must not all be zero."""
        left = self._random() * sum(weights)
        for place, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return place
        return max(place for place, weight in enumerate(weights) if weight)

    def sample(self, values: Sequence[_T], count: int) -> list[_T]:
        """Returns `count` of the values in drawn order, none twice."""
        rest = [*values]
        return [rest.pop(self.below(len(rest))) for _ in range(count)]


@dataclass(frozen=True)
class _Thing:
    """A class as sentences say it."""

    label: int
    kinds: frozenset[str]
    words: tuple[str, ...]
    fixed: bool  # said so, without article, adjective or plural
    countable: bool


@dataclass(frozen=True)
class _Frame:
    text: str
    slots: tuple[tuple[str, bool, str], ...]  # what stands in the text, several of it or one, kind


@dataclass(frozen=True)
class _Scene:
    places: tuple[str, ...]
    things: tuple[_Thing, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class _World:
    """What can be said of the classes of a lexicon. scenes: empty for classes that none is known of."""

    scenes: tuple[_Scene, ...]
    things: tuple[_Thing, ...]
    frames: Mapping[int, tuple[_Frame, ...]]  # by number of slots
    distractors: tuple[str, ...]
    adjectives: tuple[str, ...]


def template_captions(
    classnames: Sequence[str] | Lexicon, seed: int, count: int | None = None, min_per_class: int = MIN_PER_CLASS
) -> LabelledCaptions:
    """Returns sentences about the classes, `min_per_class` times as many as there are classes where no `count` is given.

    Classes of COCO, VOC2007 and NUS-WIDE appear together as they do in everyday scenes, any others in sets of one to four
    at random. Every class is in at least `min_per_class` sentences, or in its share of `count`; none of many classes is in
    more than a quarter. Raises `DataError` for class names that no sentence can separate.
    """
    lexicon = classnames if isinstance(classnames, Lexicon) else load_lexicon(tuple(classnames))
    labeller = Labeller(lexicon)
    classes = len(lexicon.classnames)
    count = min_per_class * classes if count is None else count
    maker = _Maker(
        lexicon, labeller, _world_of(lexicon, labeller), Draws(seed), count, min(min_per_class, count // classes)
    )
    texts, targets = maker.made()
    return LabelledCaptions(
        lexicon.classnames,
        tuple(texts),
        targets,
        np.ones(len(texts), np.float32),
        tuple(f"template-{seed}-{row}" for row in range(len(texts))),
        ("template",) * len(texts),
        ({},) * len(texts),
    )


class _Maker:
    """Draws sets of things, says each in a sentence, and keeps what reads back as it was meant."""

    def __init__(self, lexicon: Lexicon, labeller: Labeller, world: _World, draws: Draws, count: int, least: int):
        self._names, self._labeller, self._world, self._draws = lexicon.classnames, labeller, world, draws
        self._count = count
        self._missing = [least] * len(self._names)  # sentences that each class still needs
        self._named = [0] * len(self._names)
        sizes = _SIZES if world.scenes else _NEUTRAL_SIZES
        mean = sum(size * share for size, share in enumerate(sizes, start=1))
        self._most = int(count * max(MAX_SHARE, 1.5 * mean / len(self._names)))
        self._scenes_of = [
            [s for s in world.scenes if any(t.label == k for t in s.things)] for k in range(len(self._names))
        ]
        self._places = {p: frozenset(labeller.label(p)[0]) for scene in world.scenes for p in scene.places}

    def made(self) -> tuple[list[str], np.ndarray]:
        """Returns the sentences, and their targets (N, C) int8."""
        texts: list[str] = []
        targets = np.zeros((self._count, len(self._names)), np.int8)
        failures = 0
        while len(texts) < self._count:
            said = self._said(self._count - len(texts))
            if said is None:
                failures += 1
                if failures > 1000 + 20 * self._count:
                    lacking = [name for name, missing in zip(self._names, self._missing, strict=True) if missing > 0]
                    raise DataError(f"sentences must separate the class names, got none for: {', '.join(lacking):.300}")
                continue
            text, present, unknown = said
            row = targets[len(texts)]
            row[[*unknown]], row[[*present]] = -1, 1
            for label in present:
                self._named[label] += 1
                self._missing[label] -= 1
            texts.append(text)
        return texts, targets

    def _said(self, left: int) -> tuple[str, set[int], set[int]] | None:
        """A sentence with its labels; None for a set of things that no sentence was found for."""
        focus = self._focus(left)
        things, places = self._set_with(focus)
        if not things:
            return None
        wanted = {thing.label for thing in things}
        for attempt in range(_TRIES):
            place = self._draws.one(places) if places else ""
            text = self._sentence(things, place) if attempt < _TRIES - 1 else _bare(things)
            present, unknown = self._labeller.label(text)
            meant = wanted | self._places[place] if place and place in text else wanted
            if present == meant and all(self._named[label] < self._most or label == focus for label in present):
                return text, present, unknown
        return None

    def _focus(self, left: int) -> int:
        """The class that the next sentence has to name, -1 for none: more often the less room is left for what is missing."""
        missing = [max(0, number) for number in self._missing]
        total = sum(missing)
        if not total or not self._draws.chance(total / left):
            return -1
        return self._draws.weighted(missing)

    def _set_with(self, focus: int) -> tuple[list[_Thing], tuple[str, ...]]:
        """Things that are said together, of different classes, and the places where they may be."""
        draws, scenes = self._draws, self._world.scenes
        if not scenes:
            return self._any_set(focus), ()
        scene = draws.one(self._scenes_of[focus] if focus >= 0 else scenes)
        size = 1 + draws.weighted(_SIZES)
        chosen = [draws.one([t for t in scene.things if t.label == focus])] if focus >= 0 else []
        while len(chosen) < size:
            taken = {thing.label for thing in chosen}
            weights = [
                0.0 if thing.label in taken or self._named[thing.label] >= self._most else weight
                for thing, weight in zip(scene.things, scene.weights, strict=True)
            ]
            if not any(weights):
                break
            chosen.append(scene.things[draws.weighted(weights)])
        return draws.sample(chosen, len(chosen)), scene.places

    def _any_set(self, focus: int) -> list[_Thing]:
        draws, things = self._draws, self._world.things
        size = min(1 + draws.weighted(_NEUTRAL_SIZES), max(1, len(things) - 1))  # one class at least is absent
        if focus < 0:
            return draws.sample(things, size)
        others = draws.sample([thing for thing in things if thing.label != focus], size - 1)
        return draws.sample([things[focus], *others], size)

    def _sentence(self, things: Sequence[_Thing], place: str) -> str:
        """A sentence of a drawn frame, or of the first after it that takes these things."""
        frames = self._world.frames[len(things)]
        first = self._draws.below(len(frames))
        for number in range(len(frames)):
            frame = frames[(first + number) % len(frames)]
            if (assigned := _assigned(frame, things)) is not None:
                break
        else:
            return _bare(things)
        text = frame.text.replace(" {place}", f" {place}" if place else "")
        for (slot, many, _), thing in zip(frame.slots, assigned, strict=True):
            text = text.replace(slot, self._phrase(thing, many))
        if self._world.distractors and self._draws.chance(_DISTRACTORS):
            text = f"{text.removesuffix('.')} near {with_article(self._draws.one(self._world.distractors))}."
        return text[0].upper() + text[1:] if self._draws.chance(0.5) else text

    def _phrase(self, thing: _Thing, many: bool) -> str:
        word = self._draws.one(thing.words)
        if thing.fixed:
            return word
        if thing.countable and "person" not in thing.kinds and self._draws.chance(_ADJECTIVES):
            word = f"{self._draws.one(self._world.adjectives)} {word}"
        return plural(word) if many else with_article(word)


def _assigned(frame: _Frame, things: Sequence[_Thing]) -> list[_Thing] | None:
    """The things in the order of the frame's slots, None where one does not fit."""
    left, found = [*things], {}
    for number, (_, many, kind) in sorted(enumerate(frame.slots), key=lambda s: (not s[1][2], not s[1][1])):
        fit = next((t for t in left if (not kind or kind in t.kinds) and (not many or t.countable)), None)
        if fit is None:
            return None
        left.remove(fit)
        found[number] = fit
    return [found[number] for number in range(len(frame.slots))]


def _bare(things: Sequence[_Thing]) -> str:
    """The names alone, which every lexicon reads back."""
    *first, last = [thing.words[0] if thing.fixed else with_article(thing.words[0]) for thing in things]
    return f"{', '.join(first)} and {last}" if first else last


@lru_cache(maxsize=1)
def _tables() -> dict[str, Any]:
    return read_yaml(ASSETS / "scenes.yaml")


def _world_of(lexicon: Lexicon, labeller: Labeller) -> _World:
    """Scenes where every class is a thing of the tables; else neutral frames and the classes' own names."""
    tables = _tables()
    known = _known_things(labeller)
    scened = {thing.label for thing in known.values()} == set(range(len(lexicon.classnames)))
    scenes = tuple(filter(None, (_scene(s, known) for s in tables["scenes"].values()))) if scened else ()
    own = tuple(
        _Thing(label, frozenset(), (" ".join(name.replace("_", " ").split()),), False, False)
        for label, name in enumerate(lexicon.classnames)
    )
    texts = [*tables["frames"]["neutral"], *(tables["frames"]["scenes"] if scenes else ())]
    silent = [frame for frame in map(_frame, texts) if not any(labeller.label(_SLOT.sub("", frame.text)))]
    sizes = range(1, 1 + len(_SIZES if scenes else _NEUTRAL_SIZES))
    frames = {size: tuple(f for f in silent if len(f.slots) == size) or (_plain(size),) for size in sizes}
    distractors, adjectives = (
        tuple(word for word in tables[key] if not any(labeller.label(word))) for key in ("distractors", "adjectives")
    )
    return _World(scenes, own, frames, distractors, adjectives)


def _known_things(labeller: Labeller) -> dict[str, _Thing]:
    """The things of the tables that the lexicon has a class for, with the words for them that it has for this class."""
    tables = _tables()
    kinds: dict[str, set[str]] = {}
    for kind, names in tables["kinds"].items():
        for name in names:
            kinds.setdefault(name, set()).add(kind)
    known = {}
    for name, own in kinds.items():
        if (label := labeller.label_of(name)) is None:
            continue
        fixed = name in tables["fixed"]
        words = tables["fixed"][name] if fixed else [name, *tables["words"].get(name, ())]
        words = [word for word in words if labeller.label(with_article(word) if not fixed else word)[0] == {label}]
        if words:
            known[name] = _Thing(label, frozenset(own), tuple(words), fixed, not fixed)
    return known


def _scene(values: Mapping[str, Any], known: Mapping[str, _Thing]) -> _Scene | None:
    pairs = [
        (known[name], weight) for key, weight in (("core", 3.0), ("side", 1.0)) for name in values[key] if name in known
    ]
    things, weights = zip(*pairs, strict=True) if pairs else ((), ())
    return _Scene(tuple(values["places"]), things, weights) if things else None


def _frame(text: str) -> _Frame:
    return _Frame(text, tuple((m[0], bool(m[2]), m[3] or "") for m in _SLOT.finditer(text)))


def _plain(size: int) -> _Frame:
    slots = [f"{{{letter}}}" for letter in "ABCDE"[:size]]
    return _frame(f"{', '.join(slots[:-1])} and {slots[-1]}." if size > 1 else f"{slots[0]}.")


def world_captions(
    seed: int,
    count: int,
    pairs: Sequence[tuple[str, str]] = shapes.PAIRS,
    styles: Sequence[str] = shapes.STYLES,
    things: tuple[int, int] = (1, 4),
) -> LabelledCaptions:
    """Returns captions of `count` scenes of the embedded world, with the classes that are in them; all 100 classes.

    things: the least and the most things of a scene. The labels are the scenes' own, which the words of the caption give
    as well.
    """
    scenes = [shapes.draw_scene((seed, row), pairs=pairs, styles=styles, count=things) for row in range(count)]
    labels = {name: label for label, name in enumerate(shapes.CLASSNAMES)}
    targets = np.zeros((count, len(labels)), np.int8)
    for target, scene in zip(targets, scenes, strict=True):
        target[[labels[name] for name in scene.labels]] = 1
    return LabelledCaptions(
        shapes.CLASSNAMES,
        tuple(scene.caption for scene in scenes),
        targets,
        np.ones(count, np.float32),
        tuple(f"shapes-{seed}-{row}" for row in range(count)),
        ("shapes",) * count,
        ({},) * count,
    )
