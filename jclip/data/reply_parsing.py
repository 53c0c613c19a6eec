"""What a chat model's reply says: its sentences, the groups of classes in it, a verdict; and which captions to keep.

Pure functions of texts, so that rules can change without asking again. Imports no Jittor.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from jclip.data.nouns import Labeller

SHORTEST, LONGEST, MOST_WORDS, FEWEST_WORDS = 5, 150, 40, 3
LONGEST_LINE = 4000
SHARE_FLOOR = 20  # captions of one class that are always kept
_ITEM = re.compile(r"^\s*(?:(\d+)[.)]|[-*\u2022])\s*")
_NOTE = re.compile(r"\s*[(\[][^()\[\]]*[)\]]\s*$")
_MARKS = re.compile(r"(\*\*|__|`|~~|^#+\s*|(?<!\w)[*_](?=\w)|(?<=\w)[*_](?!\w))")
_QUOTES = "\"'\u201c\u201d\u2018\u2019\u00ab\u00bb "
_LEAD_IN = re.compile(r"^(sure|certainly|of course|here (are|is)|below (are|is)|okay|ok)\b", re.IGNORECASE)
_SPEAKS_OF_ITSELF = re.compile(r"\bimage \d|\bsentences?\b|\bcategor(y|ies)\b|\bas an ai\b", re.IGNORECASE)
_OTHER_LETTER = re.compile(r"[^\W\d_a-zA-Z\u00aa\u00b5\u00ba\u00c0-\u024f]")


def sentences_of(reply: str) -> list[str]:
    """Returns the listed sentences of a reply in order, without numbers, bullets, quotes, markdown and notes in brackets.

    A line that is no item of a list is left out, as is one that only leads in. "1. … 2. …" on one line are two.
    """
    found = []
    for line in reply.splitlines():
        match = _ITEM.match(line) if len(line) <= LONGEST_LINE else None
        if not match:
            continue
        for item in _split(line[match.end() :], int(match[1]) if match[1] and len(match[1]) < 6 else None):
            text = _bare(item)
            if text and not (_LEAD_IN.match(text) and text.endswith(":")):
                found.append(text)
    return found


def _split(text: str, number: int | None) -> list[str]:
    """The items of one line, of which the first has that number: the next has the next one."""
    items = []
    while number is not None and (match := re.search(rf"(?:^|\s){number + 1}[.)]\s+", text)):
        items.append(text[: match.start()])
        text, number = text[match.end() :], number + 1
    return [*items, text]


def _bare(text: str) -> str:
    text = _MARKS.sub("", text).strip(_QUOTES)
    while (shorter := _NOTE.sub("", text).strip(_QUOTES)) != text:
        text = shorter
    return " ".join(text.split())


def groups_of(reply: str, labeller: Labeller) -> list[tuple[int, ...]]:
    """Returns the groups of at least two classes in the listed lines of a reply, as ascending labels.

    Names are found as whole words by the labeller: "carrot" names no car.
    """
    found = (tuple(sorted(labeller.label(line)[0])) for line in sentences_of(reply))
    return [group for group in found if len(group) > 1]


def approves(reply: str) -> bool:
    """Returns whether a judge's reply says True and not False."""
    return "True" in reply and "False" not in reply


@dataclass(frozen=True)
class Rules:
    """What captions are kept. require_all: all asked classes are named; max_share: of captions that name one class, which is
    more where there are fewer than sixteen classes (4 / C)."""

    require_all: bool = True
    max_per_set: int = 20
    max_share: float = 0.25


@dataclass(frozen=True)
class Candidate:
    """A sentence, and the labels of the classes that it was asked to name."""

    text: str
    asked: tuple[int, ...]
    key: str  # of its job


@dataclass
class Kept:
    """The captions that pass, their labels in the same order, and how many each rule dropped."""

    candidates: list[Candidate] = field(default_factory=list)
    labels: list[tuple[set[int], set[int]]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def filtered(candidates: Iterable[Candidate], labeller: Labeller, rules: Rules) -> Kept:
    """Returns the candidates that pass the rules, which are applied in order, each drop counted under the first that failed."""
    so_far = _SoFar(rules, max(rules.max_share, 4 / len(labeller.lexicon.classnames)))
    kept = Kept()
    for candidate in candidates:
        present, unknown = labeller.label(candidate.text)
        why = (
            _fault_of(candidate.text)
            or _fault_of_labels(candidate, present, rules)
            or so_far.fault_of(candidate.text, present)
        )
        if why:
            kept.dropped[why] += 1
            continue
        so_far.add(candidate.text, present)
        kept.candidates.append(candidate)
        kept.labels.append((present, unknown))
    return kept


class _SoFar:
    """What was kept before, of which there must not be too much."""

    def __init__(self, rules: Rules, share: float):
        self._rules, self._share, self._count = rules, share, 0
        self._letters: set[str] = set()
        self._bags: set[tuple] = set()
        self._sets: Counter[tuple[int, ...]] = Counter()
        self._classes: Counter[int] = Counter()

    def fault_of(self, text: str, present: set[int]) -> str:
        """Why a caption would be one too many, empty where it is not."""
        letters, bag, own = _keys_of(text, present)
        if letters in self._letters:
            return "duplicate"
        if bag in self._bags:
            return "near-duplicate"
        if self._sets[own] >= self._rules.max_per_set:
            return "too many of one set"
        most = max(SHARE_FLOOR, self._share * (self._count + 1))
        return "too many of one class" if any(self._classes[label] + 1 > most for label in present) else ""

    def add(self, text: str, present: set[int]) -> None:
        letters, bag, own = _keys_of(text, present)
        self._letters.add(letters)
        self._bags.add(bag)
        self._sets[own] += 1
        self._classes.update(present)
        self._count += 1


def _keys_of(text: str, present: set[int]) -> tuple[str, tuple, tuple[int, ...]]:
    """What makes captions duplicates, near-duplicates (the same long words and classes: short names are no long words),
    and of one set."""
    low, own = text.lower(), tuple(sorted(present))
    return re.sub(r"[^a-z]", "", low), (tuple(sorted(re.findall(r"[a-z]{4,}", low))), own), own


def _fault_of_labels(candidate: Candidate, present: set[int], rules: Rules) -> str:
    if rules.require_all and not present >= {*candidate.asked}:
        return "asked names missing"
    return "" if present else "names no class"


def in_another_script(text: str) -> bool:
    """Returns whether a text has letters that are not Latin."""
    return bool(_OTHER_LETTER.search(text))


def _fault_of(text: str) -> str:
    """Why a text is no caption, by its form alone; empty where it may be one."""
    words = len(text.split())
    if in_another_script(text):
        return "letters of another script"
    if not SHORTEST < len(text) < LONGEST or words > MOST_WORDS:
        return "too short or too long"
    if words < FEWEST_WORDS:
        return "fewer than three words"
    return "speaks of itself" if _SPEAKS_OF_ITSELF.search(text) else ""


def list_of(names: Sequence[str]) -> str:
    """Returns names as a sentence lists them: a, b and c."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
