"""When two spellings are one class's name: the only place where names are compared."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence


def name_key(name: str) -> str:
    """What two spellings of one name share: without regard to case, blanks, underscores, invisible characters and Unicode
    form, full-width letters and digits (NFKC) included."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    seen = "".join(c for c in folded if unicodedata.category(c) != "Cf")
    return " ".join(seen.replace("_", " ").split())


def difference(one: str, other: str) -> str:
    """In words, what two spellings of one name differ in: "case", "blanks" or "Unicode form"; nothing where they are equal
    or are two names."""
    if one == other or name_key(one) != name_key(other):
        return ""
    if one.casefold() == other.casefold():
        return "case"
    return "blanks" if _close_up(one) == _close_up(other) else "Unicode form"


def alike(names: Iterable[str]) -> tuple[int, int] | None:
    """Places of the first two names that are one name."""
    first: dict[str, int] = {}
    for place, name in enumerate(names):
        if (before := first.setdefault(name_key(name), place)) != place:
            return before, place
    return None


def nearest(name: str, known: Sequence[str], count: int = 1) -> list[str]:
    """Up to `count` of the `known` names that are spelled like `name`, the nearest first."""
    import difflib

    by_key = {name_key(k): k for k in reversed(known)}
    return [by_key[key] for key in difflib.get_close_matches(name_key(name), by_key, n=count, cutoff=0.6)]


def _close_up(name: str) -> str:
    return "".join(name.replace("_", " ").casefold().split())
