"""The language of queries: texts, photos and stored rows, added and subtracted with weights.

Each argument is a term. A lone `+` or `-` gives the sign of the next one, `N:` in front of a term is its weight. What
begins with `./`, `/` or `@` is a photo, `row:17` a stored row, all else text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jclip.errors import ConfigError, quoted

Kind = Literal["text", "photo", "row"]
_WEIGHT = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+):(.*)", re.DOTALL)
_ROW = re.compile(r"row:([0-9]{1,15})")
_LONE_SIGN = re.compile(r"(?:^|\s)([+-])(?=\s)")
MOST_WEIGHT = 1e6


@dataclass(frozen=True)
class Term:
    """One term: its kind, the text, path or row number, and its weight with its sign."""

    kind: Kind
    value: str
    weight: float = 1.0


@dataclass(frozen=True)
class Query:
    """What is looked for, and what it is called in results."""

    name: str
    terms: tuple[Term, ...]


def parse_terms(words: Sequence[str]) -> Query:
    """A query of several arguments. Raises `ConfigError` for a sign without a term, an empty term, a weight that is 0."""
    terms, sign = [], 0
    for word in words:
        if word in ("+", "-"):
            if sign:
                raise ConfigError(f"a lone + or - must stand in front of a term, got two signs: {' '.join(words)[:80]}")
            sign = 1 if word == "+" else -1
        else:
            terms.append(parse_term(word, sign or 1))
            sign = 0
    if sign:
        raise ConfigError(f"a lone + or - must stand in front of a term, got it last: {' '.join(words)[:80]}")
    if not terms:
        raise ConfigError("a query must have a term: a text, a photo (./, / or @ in front), or row:NUMBER")
    return Query(" ".join(words), tuple(terms))


def parse_term(word: str, sign: int = 1) -> Term:
    """One term. Raises `ConfigError`."""
    weight, rest = 1.0, word.strip()
    if found := _WEIGHT.fullmatch(rest):
        weight, rest = float(found[1]), found[2].strip()
        if not 0 < weight <= MOST_WEIGHT:
            raise ConfigError(f"a term's weight must be in (0, {MOST_WEIGHT:g}], got {quoted(word, 60)}")
    if not rest or rest == "@":
        raise ConfigError(f"a term must hold a text, a photo or a row, got {quoted(word, 60)}")
    if found := _ROW.fullmatch(rest):
        return Term("row", str(int(found[1])), sign * weight)
    if rest.startswith("@"):
        return Term("photo", rest[1:], sign * weight)
    return Term("photo" if rest.startswith(("./", "/")) else "text", rest, sign * weight)


def parse_typed(line: str) -> Query:
    """A query typed on one line: lone signs stand between blanks, and between them each term is whole."""
    pieces = _LONE_SIGN.split(line.strip())
    return parse_terms([piece.strip() for piece in pieces if piece.strip()])


def parse_listed(line: str) -> Query:
    """A query of a list: the whole line is one term, so that sentences may hold any sign."""
    return Query(line, (parse_term(line),))
