"""A phrase as a thing, what it stands beside, and words such as "leftmost": what ReCLIP's rules are applied to.

Subramanian et al., ACL 2022, arXiv 2204.05991, take this from spaCy's tree of dependencies; here it is read off the order
of the words. The words of each relation are those of the paper's code (allenai/reclip, 3ed4f47, heuristics.py) and, unless
`published`, some that it lacks. English only: of other languages no word is found, and the phrase stays whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RELATIONS: Mapping[str, tuple[str, ...]] = {  # between two things
    "left": ("left", "west"),
    "right": ("right", "east"),
    "above": ("above", "north", "top", "back", "behind"),
    "below": ("below", "south", "under", "front"),
    "bigger": ("bigger", "larger", "closer"),
    "smaller": ("smaller", "tinier", "further"),
    "within": ("inside", "within", "contained"),
}
EXTREMES: Mapping[str, tuple[str, ...]] = {  # of all that a phrase may mean
    "left": ("left", "west", "leftmost", "western"),
    "right": ("right", "rightmost", "east", "eastern"),
    "above": ("above", "north", "top"),
    "below": ("below", "south", "underneath", "front"),
    "bigger": ("bigger", "biggest", "larger", "largest", "closer", "closest"),
    "smaller": ("smaller", "smallest", "tinier", "tiniest", "further", "furthest"),
}
MORE_RELATIONS: Mapping[str, tuple[str, ...]] = {
    "below": ("underneath", "beneath", "bottom"),
    "above": ("over",),
    "smaller": ("farther",),
    "bigger": ("nearer",),
}
MORE_EXTREMES: Mapping[str, tuple[str, ...]] = {
    "above": ("upper", "uppermost", "topmost", "highest", "back", "behind"),
    "below": ("bottom", "lower", "lowest", "lowermost", "bottommost", "foremost"),
    "bigger": ("nearest", "nearer"),
    "smaller": ("farthest", "farther"),
}
BETWEEN = "between"
NO_THINGS = ("part", "image", "side", "picture", "half", "region", "section")  # of the picture, not in it
MORE_NO_THINGS = (
    "photo", "photograph", "frame", "screen", "scene", "corner", "middle", "center", "centre", "end", "view",
    "camera", "viewer", "us",
)  # fmt: skip
BEFORE = (
    "to",
    "on",
    "at",
    "in",
    "from",
    "of",
    "the",
    "is",
    "that",
    "which",
    "who",
    "are",
    "standing",
    "sitting",
    "towards",
)
AFTER = ("of", "than", "to", "from", "by", "in")
COMPARED = ("than", "to", "from", "by")  # "the smaller of the two dogs" compares with no other thing
SIZES = ("bigger", "smaller")
ARTICLES = ("the", "a", "an", "his", "her", "its", "their", "this", "that")
DEGREES = ("far", "most", "very")


@dataclass(frozen=True)
class Thing:
    """What a part of a phrase names.

    text: as the model is asked for it; empty where only places are named. relations: how it stands to others, each a name
    of `jclip.functional.box_relations.RELATIONS` with its one other thing, or "between" with two. extremes: names of
    relations that it has to all others that its text fits.
    """

    text: str
    relations: tuple[tuple[str, tuple[Thing, ...]], ...] = ()
    extremes: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether no rule applies to it."""
        return not self.relations and not self.extremes

    def described(self) -> str:
        """The same as one line, such as `dog [left] right of (chair)`."""
        parts = [self.text or "anything", *(f"[{name}]" for name in self.extremes)]
        parts += [f"{name} of ({' | '.join(t.described() for t in others)})" for name, others in self.relations]
        return " ".join(parts)


def read_places(phrase: str, published: bool = False) -> Thing:
    """The phrase in lower case as a thing with relations and extremes.

    A word for a relation that is followed by another thing relates the two ("left of the car", "behind the car", "bigger
    than the car"), else it is an extreme ("the left car", "the car on the left", "on the left side of the picture"). A
    relation belongs to the nearest thing before it, after a comma or "and" to the first one.
    """
    words = re.findall(r"[^\s,;.!?]+|[,;]", phrase.lower())
    return _Reader(words, published).thing(0, len(words))


@dataclass(frozen=True)
class _Mark:
    """Words start … behind say `name`; others follow it where it is a relation."""

    start: int
    behind: int
    name: str
    relates: bool
    inside: bool  # an adjective: it stays in the text


class _Reader:
    def __init__(self, words: Sequence[str], published: bool):
        self.words = words
        self._relations = _by_word(RELATIONS, {} if published else MORE_RELATIONS)
        self._extremes = _by_word(EXTREMES, {} if published else MORE_EXTREMES)
        self._no_things = (*NO_THINGS, *(() if published else MORE_NO_THINGS))

    def thing(self, start: int, end: int) -> Thing:
        """The thing that words start … end name."""
        marks = self._marks(start, end)
        first = next((m for m in marks if m.relates), None)
        own_end = first.start if first else end
        extremes = [m.name for m in marks if not m.relates and m.start < own_end]
        text = self._text(start, own_end, marks)
        relations = []
        if first:
            later = self._next_of_first(first.behind, end)
            relations.append(self._relation(first, later or end))
            if later:
                rest = self.thing(later, end)
                relations += rest.relations
                extremes += rest.extremes
        return Thing(text, tuple(relations), tuple(dict.fromkeys(extremes)))

    def _relation(self, mark: _Mark, end: int) -> tuple[str, tuple[Thing, ...]]:
        if mark.name == BETWEEN:
            joint = next((i for i in range(mark.behind + 1, end) if self.words[i] == "and"), None)
            if joint:
                return BETWEEN, (self.thing(mark.behind, joint), self.thing(joint + 1, end))
        return mark.name, (self.thing(mark.behind, end),)

    def _next_of_first(self, start: int, end: int) -> int | None:
        """Where, after a comma or "and", words begin that say more of the first thing."""
        for i in range(start, end - 1):
            if self.words[i] in (",", ";", "and"):
                marks = self._marks(i + 1, end)
                if marks and not self._said(i + 1, marks[0].start):
                    return i + 1
        return None

    def _marks(self, start: int, end: int) -> list[_Mark]:
        found, at = [], start
        while at < end:
            mark = self._mark(at, start if not found else found[-1].behind, end)
            if mark:
                found.append(mark)
            at = mark.behind if mark else at + 1
        return found

    def _mark(self, at: int, low: int, end: int) -> _Mark | None:
        word = self.words[at]
        relation, extreme = self._relations.get(word), self._extremes.get(word)
        if relation is None and extreme is None and word != BETWEEN:
            return None
        start, behind = at, at + 1
        while start > low and self.words[start - 1] in (*BEFORE, *DEGREES):
            start -= 1
        if word == BETWEEN:
            joined = "and" in self.words[behind:end]
            return _Mark(start, behind, BETWEEN, True, False) if joined else None
        where = behind
        if where < end and self.words[where] in ("side", "part", "half", "hand", "corner", "end", "edge"):
            where += 1
        linked = where < end and self.words[where] in (COMPARED if relation in SIZES else AFTER)
        where += linked
        other = self._other(where, end)
        direct = word in _PREPOSITIONS
        if relation and other and (linked or direct):
            return _Mark(start, where, relation, True, False)
        if extreme is None:
            return None
        led = start < at and self.words[start] in ("to", "on", "at", "in", "from", "towards")
        if led or linked or self._ends(where, end):
            return _Mark(start, self._behind_noun(where, end) if linked else where, extreme, False, False)
        return _Mark(at, at + 1, extreme, False, True)

    def _behind_noun(self, start: int, end: int) -> int:
        """After the articles at `start` and one word more: "the camera"."""
        while start < end - 1 and self.words[start] in ARTICLES:
            start += 1
        return min(start + 1, end)

    def _other(self, start: int, end: int) -> bool:
        """Whether words from `start` on name a thing, and no part of the picture."""
        named = self._content(start, end)
        return bool(named) and named[0] not in self._no_things

    def _ends(self, start: int, end: int) -> bool:
        return start >= end or self.words[start] in (",", ";", "and")

    def _content(self, start: int, end: int) -> list[str]:
        skipped = (*ARTICLES, *DEGREES, ",", ";")
        return [word for word in self.words[start:end] if word not in skipped]

    def _said(self, start: int, end: int) -> list[str]:
        """Words that name something."""
        return [word for word in self._content(start, end) if word not in (*BEFORE, *AFTER, "and", *self._no_things)]

    def _text(self, start: int, end: int, marks: Sequence[_Mark]) -> str:
        """Words start … end without those that say places, unless they are adjectives; empty where nothing is named."""
        out = {i for m in marks if not m.inside for i in range(m.start, m.behind)}
        kept = [i for i in range(start, end) if i not in out]
        named = [i for i in kept if self.words[i] not in self._extremes and self._said(i, i + 1)]
        words = [self.words[i] for i in kept] if named else []
        while words and words[-1] in (",", ";", "and", *BEFORE):
            words.pop()
        return " ".join(words).replace(" ,", ",").replace(" ;", ";")


_PREPOSITIONS = (
    "above", "behind", "below", "under", "underneath", "beneath", "over", "inside", "within",
)  # fmt: skip


def _by_word(*tables: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {word: name for table in tables for name, words in table.items() for word in words}
