"""Conditions on a gallery's columns, `year>=2020`, `city=Paris`, `path~holiday`: parsed, never evaluated as code."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jclip.data.gallery_store import FIXED, Store
from jclip.data.row_columns import read_columns
from jclip.errors import ConfigError, DataError, UnknownName, quoted

_CONDITION = re.compile(r"\s*([^<>=!~]+?)\s*(<=|>=|!=|==|=|<|>|!~|~)\s*(.*?)\s*", re.DOTALL)
FORM = "must be COLUMN, one of = != < <= > >= ~ !~, and a value, such as year>=2020"


@dataclass(frozen=True)
class Condition:
    """One comparison. Numbers are compared as numbers where both sides are, else texts without regard to case."""

    column: str
    sign: str
    value: str

    def holds(self, found: Any) -> bool:
        """Whether a row's value meets it; an absent one meets only `!=` and `!~`."""
        if found is None:
            return self.sign in ("!=", "!~")
        text, wanted = str(found).casefold(), self.value.casefold()
        if self.sign in ("~", "!~"):
            return (wanted in text) == (self.sign == "~")
        left, right = _number(found), _number(self.value)
        return _COMPARED[self.sign](*((text, wanted) if left is None or right is None else (left, right)))


_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b, "==": lambda a, b: a == b, "!=": lambda a, b: a != b, "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
}  # fmt: skip


def parse_condition(text: str) -> Condition:
    """A condition from its text. Raises `ConfigError`."""
    found = _CONDITION.fullmatch(text)
    if not found:
        raise ConfigError(f"a condition {FORM}, got {quoted(text, 80)}")
    return Condition(*found.groups())


def rows_where(store: Store, conditions: Sequence[Condition]) -> np.ndarray | None:
    """The rows (n,) that meet all conditions, ascending; None where there is no condition.

    Raises `UnknownName` for a column that the gallery lacks, `DataError` where no row is left.
    """
    if not conditions:
        return None
    known = [name for name in (*FIXED, *store.manifest.columns) if name != "member"]
    for condition in conditions:
        if condition.column not in known:
            raise UnknownName("column", condition.column, known)
    columns = read_columns(store, list(dict.fromkeys(c.column for c in conditions)))
    kept = np.ones(len(store), bool)
    for condition in conditions:
        column = columns[condition.column]
        kept &= np.array([condition.holds(value) for value in column.values], bool)[column.codes]
    rows = np.flatnonzero(kept)
    if not len(rows):
        said = ", ".join(f"{c.column}{c.sign}{c.value}" for c in conditions)
        raise DataError(f"no row meets {said}: none of {len(store):,} is left to search")
    return rows


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
