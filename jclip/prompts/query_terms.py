"""The language of queries: texts, photos and stored rows, added and subtracted with weights.

Each argument is a term. A lone `+` or `-` gives the sign of the next one, `N:` in front of a term is its weight. What
begins with `./`, `/` or `@` is a photo, or with the ending .npy a stored feature, with .concept one that `jclip teach` has
learned; `row:17` is a stored row, `concept:FILE` a concept as well, all else text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jclip.errors import ConfigError, DataError, quoted
from jclip.readers.text import read_json, read_lines

Kind = Literal["text", "photo", "row", "feature", "concept"]
IN_FILES = ("photo", "feature", "concept")  # kinds whose value is a path
CONCEPT, CONCEPT_ENDING = "concept:", ".concept"
_WEIGHT = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+):(.*)", re.DOTALL)
_ROW = re.compile(r"row:([+-]?[0-9]+)")
_LONE_SIGN = re.compile(r"(?:^|\s)([+-])(?=\s)")
MOST_WEIGHT, MOST_DIGITS = 1e6, 15


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
        return Term("row", _row_number(found[1]), sign * weight)
    if rest.startswith(CONCEPT):
        if not (file := rest.removeprefix(CONCEPT).strip()):
            raise ConfigError(f"{CONCEPT} must be followed by a file of `jclip teach`, got {quoted(word, 60)}")
        return Term("concept", file, sign * weight)
    if not rest.startswith(("@", "./", "../", "/")):
        return Term("text", rest, sign * weight)
    path = rest.removeprefix("@")
    kind: Kind = "feature" if path.endswith(".npy") else "concept" if path.endswith(CONCEPT_ENDING) else "photo"
    return Term(kind, path, sign * weight)


def _row_number(digits: str) -> str:
    if not digits.isdecimal() or len(digits) > MOST_DIGITS:
        raise ConfigError(f"row: must be followed by a row's number, from 0, got {quoted(digits, 60)}")
    return str(int(digits))


def parse_typed(line: str) -> Query:
    """A query typed on one line: lone signs stand between blanks, and between them each term is whole."""
    return parse_terms(typed_terms(line))


def typed_terms(line: str) -> list[str]:
    """The arguments that a typed line stands for."""
    return [piece.strip() for piece in _LONE_SIGN.split(line.strip()) if piece.strip()]


def parse_listed(line: str) -> Query:
    """A query of a list: the whole line is one term, so that sentences may hold any sign."""
    return Query(line, (parse_term(line),))


def read_queries(path: Path) -> list[Query]:
    """Queries of a file: one a line, or, of a .json, a list of texts and of lists of terms.

    Photos are relative to the file's folder. Raises `ConfigError` with the place, `DataError` for no queries.
    """
    queries = []
    entries = _json_entries(path) if path.suffix.lower() == ".json" else enumerate(read_lines(path), start=1)
    for number, entry in entries:
        if not entry:
            continue
        try:
            query = parse_listed(entry) if isinstance(entry, str) else parse_terms(entry)
        except ConfigError as e:
            raise ConfigError(f"{path}, query {number}: {e}") from None
        queries.append(Query(query.name, tuple(_beside(term, path.parent) for term in query.terms)))
    if not queries:
        raise DataError(f"{path} must hold queries, one a line, got none")
    return queries


def _json_entries(path: Path) -> list[tuple[int, str | list[str]]]:
    found = read_json(path)
    if not isinstance(found, list) or not all(isinstance(q, str) or _is_texts(q) for q in found):
        raise DataError(f"{path} must hold a list of queries, each a text or a list of terms")
    return list(enumerate(found, start=1))


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _beside(term: Term, folder: Path) -> Term:
    """The term with its file where the list stands; absolute paths stay."""
    if term.kind not in IN_FILES:
        return term
    return Term(term.kind, str(folder / term.value), term.weight)
