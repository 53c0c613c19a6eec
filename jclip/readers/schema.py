"""Strict JSON, and conditions of type and range that each value must meet before it is used.

A condition is data: a phrase for the error message and a test. All files that describe models are read by `parse` and
checked by `obey`, so that an error names the place, the key, what must hold and what was got.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jclip.errors import CheckpointError, ConfigError
from jclip.paths import open_regular

LARGEST_DESCRIPTION = 4 << 20  # bytes of a JSON file that describes a model
LARGEST_INDEX = 16 << 20  # of one that places tensors in shards
MOST_SHARDS = 1000
_DEEPEST, _MOST_DIGITS = 32, 30


@dataclass(frozen=True)
class Condition:
    """A phrase for "must be …", and the test `holds` for a value."""

    phrase: str  # "an integer from 1 to 1000", after "must be"
    holds: Callable[[Any], bool]


def whole(least: int, most: int) -> Condition:
    """Return the condition: an integer within the range, neither bool nor float."""
    return Condition(f"an integer from {least} to {most}", lambda v: type(v) is int and least <= v <= most)


def number(least: float, most: float, above: bool = False) -> Condition:
    """Return the condition: a finite number within the range; `above` excludes `least` itself."""

    def holds(value: Any) -> bool:
        if type(value) not in (int, float) or not least <= value <= most:
            return False
        return math.isfinite(value) and (value > least or not above)

    return Condition(
        f"a number {'above' if above else 'from'} {least:g} {'and at most' if above else 'to'} {most:g}", holds
    )


def one_of(*values: Any) -> Condition:
    """Return the condition: one of the given texts or numbers."""
    shown = ", ".join(map(str, values))
    return Condition(f"one of {shown}", lambda v: any(type(v) is type(known) and v == known for known in values))


def several(condition: Condition, count: int) -> Condition:
    """Return the condition: a list of `count` values that all meet `condition`."""

    def holds(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and len(value) == count and all(map(condition.holds, value))

    return Condition(f"a list of {count}, each {condition.phrase}", holds)


def some(condition: Condition, most: int) -> Condition:
    """Return the condition: a list of at most `most` values that all meet `condition`."""

    def holds(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and len(value) <= most and all(map(condition.holds, value))

    return Condition(f"a list of at most {most}, each {condition.phrase}", holds)


def either(*conditions: Condition) -> Condition:
    """Return the condition: at least one of the conditions holds."""
    return Condition(", or ".join(c.phrase for c in conditions), lambda v: any(c.holds(v) for c in conditions))


FLAG = Condition("true or false", lambda v: isinstance(v, bool))
TEXT = Condition("a text of at most 256 characters", lambda v: isinstance(v, str) and len(v) <= 256)
TABLE = Condition("a table", lambda v: isinstance(v, dict))
NOTHING = Condition("null", lambda v: v is None)


def obey(values: Any, conditions: Mapping[str, Condition], place: str = "", needed: Collection[str] = ()) -> None:
    """Raise `ConfigError` for the first value of a table that breaks its condition, and for a missing key of
    `needed`.

    Keys without a condition pass. place: the table's name, put before its keys.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{place or 'the description'} must be a table, got {shown(values)}")
    prefix = f"{place}." if place else ""
    for key, condition in conditions.items():
        if key in values and not condition.holds(values[key]):
            raise ConfigError(f"{prefix}{key} must be {condition.phrase}, got {shown(values[key])}")
    for key in needed:
        if key not in values:
            raise ConfigError(f"{prefix}{key} must be given ({conditions[key].phrase})")


def refuse_unknown(values: Mapping[str, Any], known: Collection[str], place: str) -> None:
    """Raise `ConfigError` for a key that is not known."""
    strange = [key for key in values if key not in known]
    if strange:
        raise ConfigError(f"{place} must hold only {', '.join(known)}, got {shown(strange[0])}")


def shown(value: Any) -> str:
    """Return a short text for a value, however large or deep it is."""
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxtuple, short.maxdict, short.maxstring = 2, 4, 4, 3, 60
    if type(value) is int and value.bit_length() > 100:
        return f"an integer of {value.bit_length()} bits"
    return short.repr(value)


def parse(text: str | bytes, place: object) -> dict[str, Any]:
    """Return the table that a JSON text holds. Raises `CheckpointError`.

    Stricter than JSON's readers: keys are unique in their table, numbers are finite, integers have at most 30 digits,
    and tables nest at most 32 deep.
    """
    try:
        values = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite, parse_int=_integer
        )
    except RecursionError:
        raise CheckpointError(f"{place} must nest at most {_DEEPEST} tables, got deeper ones") from None
    except ValueError as e:  # not Unicode, not JSON, or one of those below
        raise CheckpointError(f"{place} is not valid JSON: {e}") from e
    if not isinstance(values, dict):
        raise CheckpointError(f"{place} is not a table: got {shown(values)}")
    if _depth(values) > _DEEPEST:
        raise CheckpointError(f"{place} must nest at most {_DEEPEST} tables, got deeper ones")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {shown(key)} appears twice")
        table[key] = value
    return table


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"numbers must be finite, got {text[:30]}")
    return value


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"an integer must have at most {_MOST_DIGITS} digits, got {len(text)}")
    return int(text)


def _depth(value: Any) -> int:
    """Return how deep tables and lists nest."""
    level, depth = [value], 0
    while level := [v for v in level if isinstance(v, (dict, list))]:
        depth += 1
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return depth


def read_table(file: Path, most: int = LARGEST_DESCRIPTION) -> dict[str, Any]:
    """Return the table in a JSON file of at most `most` bytes. Raises `CheckpointError`."""
    try:
        with open_regular(file) as f:
            text = f.read(most + 1)
    except OSError as e:
        raise CheckpointError(f"can't read {file}: {e.strerror}") from e
    if len(text) > most:
        raise CheckpointError(f"{file} must be a description of at most {most:,} bytes, got {file.stat().st_size:,}")
    return parse(text, file)


def read_weight_map(index: Path) -> dict[str, str]:
    """Return the shard of each tensor from an index of shards; every shard is a plain file name beside the index.

    Raises `CheckpointError`.
    """
    placed = read_table(index, LARGEST_INDEX).get("weight_map")
    if not isinstance(placed, dict):
        raise CheckpointError(f"{index} is not an index of shards: weight_map must be a table, got {shown(placed)}")
    for key, file in placed.items():
        if not is_plain_name(file):
            raise CheckpointError(
                f"{index} is not an index of shards beside it: the shard of {shown(key)} must be the plain name of a file, "
                f"got {shown(file)}"
            )
    if (count := len(set(placed.values()))) > MOST_SHARDS:
        raise CheckpointError(f"{index} must name at most {MOST_SHARDS} shards, got {count}")
    return placed


def is_plain_name(name: Any) -> bool:
    """Return whether this is a file name without folders on every system, and not hidden."""
    if not isinstance(name, str) or not name.isprintable() or name.startswith("."):
        return False
    return 0 < len(os.fsencode(name)) <= 255 and not set(name) & set("/\\:")


# Limits of architectures: far beyond published models, small enough to allocate names and shapes quickly.
SIDE = whole(1, 8192)
