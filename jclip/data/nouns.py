"""Nouns to labels: which classes a caption names, which it leaves unknown. One deterministic scan. Imports no Jittor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jclip.data.lexicons import Guards, Lexicon
from jclip.data.word_forms import singular, tokens_of
from jclip.errors import ConfigError, quoted

_BEFORE_NOUNS = """a an the this that these those my your his her its our their some any each every another both several many
few one two three four five six seven eight nine ten eleven twelve"""
_BEFORE_VERBS = "to i you he she it we they who can could will would shall should may might must"
_AFTER_NOUNS = """a an the and or but nor with without in on at by of to from for as is are was were be being have has had
that which who where when while into onto over under near next beside besides behind between among around above below inside
outside across along through against off up down out there here this it its not no than then so if cut can will"""
_DETERMINERS = frozenset(_BEFORE_NOUNS.split())
_SUBJECTS = frozenset(_BEFORE_VERBS.split())
_NO_NOUNS = frozenset(_AFTER_NOUNS.split())  # a word behind a noun that is not here is taken for another noun
_NEGATIONS = frozenset(("no", "without", "nobody"))
_ENDS = frozenset(".;!?")
_REACH = 3  # tokens after a negation within which a name is negated
_WORD_CACHE = 1_000_000


class _Phrase(NamedTuple):
    rest: tuple[str, ...]  # the words after the first
    label: int
    doubtful: bool


class Labeller:
    """Finds the classes of a lexicon in texts.

    A scan from left to right takes the longest phrase of the lexicon at each place, and no word twice: "teddy bear" names no
    bear. A word and its singular are tried; forms in -ing and -ed only for `lexicon.verb_forms`. Unknown is a class whose
    word may mean something else here (`lexicon.guards`), whose word is doubtful, that is negated ("no dogs"), or that is
    implied by another; unless another word of the text names it.
    """

    def __init__(self, lexicon: Lexicon, guarded: bool = True):
        """guarded=False takes every word for its class, for sentences that were made of the class names."""
        self.lexicon = lexicon
        self._guards = lexicon.guards if guarded else Guards()
        phrases = _phrases(lexicon, doubtful=guarded)
        self._starts: dict[str, list[_Phrase]] = defaultdict(list)
        for words, (label, doubtful) in phrases.items():
            self._starts[words[0]].append(_Phrase(words[1:], label, doubtful))
        for found in self._starts.values():
            found.sort(key=lambda phrase: (-len(phrase.rest), phrase.rest))
        self._starts = dict(self._starts)
        verbs = frozenset(w[0] for w, (label, _) in phrases.items() if len(w) == 1 and label in lexicon.verb_forms)
        self._forms = _Forms(frozenset(word for words in phrases for word in words), verbs)
        self._implied = any(lexicon.implies)
        self._any_guard = frozenset((*self._guards.adjectives, *self._guards.verbs, *self._guards.beside))

    def label(self, text: str) -> tuple[set[int], set[int]]:
        """Returns (present, unknown): labels of the classes that a text names, and of those it leaves open."""
        tokens = tokens_of(text)
        if self.lexicon.most_tokens:
            tokens = tokens[: self.lexicon.most_tokens]
        forms, starts = self._forms, self._starts
        words = [forms[token] for token in tokens]
        present: set[int] = set()
        unknown: set[int] = set()
        taken = 0
        for place, word in enumerate(words):
            if place < taken or word not in starts:
                continue
            phrase = _longest(starts[word], words, place)
            if phrase is None:
                continue
            taken = place + 1 + len(phrase.rest)
            open_ = phrase.doubtful or self._is_open(tokens, place, taken) or _is_negated(tokens, place)
            (unknown if open_ else present).add(phrase.label)
        if self._implied:
            unknown.update(parent for label in present for parent in self.lexicon.implies[label])
        return present, unknown - present

    def targets(self, texts: Iterable[str]) -> np.ndarray:
        """Returns (N, C) int8: 1 where a text names the class, -1 where that is unknown, else 0."""
        found = [self.label(text) for text in texts]
        targets = np.zeros((len(found), len(self.lexicon.classnames)), np.int8)
        for row, (present, unknown) in zip(targets, found, strict=True):
            row[[*unknown]] = -1
            row[[*present]] = 1
        return targets

    def label_of(self, name: str) -> int | None:
        """Returns the label of the class whose name or synonym a text is as a whole, None where there is none."""
        words = tuple(self._forms[token] for token in tokens_of(name.replace("_", " ")) if token[0].isalnum())
        found = self._starts.get(words[0], ()) if words else ()
        return next((phrase.label for phrase in found if phrase.rest == words[1:]), None)

    def _is_open(self, tokens: Sequence[str], place: int, end: int) -> bool:
        """Whether the guards leave a single word open: it may be an adjective, a verb, or another thing."""
        word = tokens[place]
        guards = self._guards
        if end > place + 1 or (word not in self._any_guard and singular(word) not in guards.beside):
            return False
        before = tokens[place - 1] if place else ""
        after = tokens[end] if end < len(tokens) else ""
        if word in guards.adjectives:
            noun = before in _DETERMINERS or before.isdigit() or before in guards.adjectives[word]
            if not noun or _is_noun_like(after):
                return True
        if word in guards.verbs and before in _SUBJECTS:
            return True
        others = guards.beside.get(singular(word), ())
        return any(singular(token) in others for token in tokens)


class _Forms(dict):
    """Token → the word of the lexicon that it is a form of, "" where it is none. Fills itself."""

    def __init__(self, vocabulary: frozenset[str], verbs: frozenset[str]):
        super().__init__()
        self._vocabulary, self._verbs = vocabulary, verbs

    def __missing__(self, token: str) -> str:
        if len(self) > _WORD_CACHE:
            self.clear()
        self[token] = form = self._form(token)
        return form

    def _form(self, token: str) -> str:
        for form in (singular(token), token):
            if form in self._vocabulary:
                return form
        return next((stem for stem in _stems(token) if stem in self._verbs), "")


def _stems(token: str) -> list[str]:
    """What a form in -ing or -ed may come from: danced → danc, dance; running → running's runn, runne, run."""
    ending = next((ending for ending in ("ing", "ed") if token.endswith(ending) and len(token) > len(ending) + 1), "")
    stem = token.removesuffix(ending)
    return [stem, f"{stem}e", *([stem[:-1]] if stem[-1] == stem[-2] else [])] if ending else []


def _longest(phrases: Sequence[_Phrase], words: Sequence[str], place: int) -> _Phrase | None:
    for phrase in phrases:
        rest = phrase.rest
        if not rest or tuple(words[place + 1 : place + 1 + len(rest)]) == rest:
            return phrase
    return None


def _is_negated(tokens: Sequence[str], place: int) -> bool:
    """Whether the name at `place` stands within three tokens after "no", "without", "nobody" or "not a"."""
    for before in range(place - 1, max(-1, place - 2 - _REACH), -1):
        token = tokens[before]
        if token in _ENDS:
            return False
        if token in _NEGATIONS and place - before <= _REACH:
            return True
        if (token == "not" or token.endswith("n't")) and tokens[before + 1] in ("a", "an"):
            return True
    return False


def _is_noun_like(token: str) -> bool:
    return token[:1].isalpha() and token not in _NO_NOUNS and not token.endswith(("ing", "ed"))


def _phrases(lexicon: Lexicon, doubtful: bool) -> dict[tuple[str, ...], tuple[int, bool]]:
    """Words of each phrase in the singular → its label, and whether it leaves the class unknown.

    Names of several words count joined as well, where no other class is called so. Raises `ConfigError` for a word of two
    classes, and for a name without words.
    """
    found: dict[tuple[str, ...], tuple[int, bool]] = {}
    said: dict[tuple[str, ...], str] = {}
    joined: list[tuple[tuple[str, ...], tuple[int, bool]]] = []
    for label, name in enumerate(lexicon.classnames):
        open_ones = lexicon.doubtful[label] if doubtful else ()
        for text in (name, lexicon.prompt_names[label], *lexicon.synonyms[label], *open_ones):
            tokens = [token for token in tokens_of(text.replace("_", " ")) if token[0].isalnum()]
            words = tuple(map(singular, tokens))
            entry = (label, text in open_ones)
            if not words:
                raise ConfigError(
                    f"lexicon {lexicon.name}: the class {quoted(name)} must have a word, got {quoted(text)}"
                )
            if found.setdefault(words, entry)[0] != label:
                other = lexicon.classnames[found[words][0]]
                raise ConfigError(
                    f"lexicon {lexicon.name}: a word must name one class, got {text!r} for {other!r}"
                    f"{_as_said(said[words], text)} and {name!r}: remove it from one of them"
                )
            said.setdefault(words, text)
            if len(words) > 1:
                joined += [((singular("".join(own)),), entry) for own in (tokens, words)]
    return {**dict(reversed(joined)), **found}


def _as_said(other: str, text: str) -> str:
    return "" if other == text else f" (there as {other!r})"
