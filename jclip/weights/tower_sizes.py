"""Ranges that the sizes of every tower must keep, and the checks that all kinds of towers share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal

from jclip.errors import ConfigError
from jclip.readers.schema import number, obey, refuse_unknown, whole

Activation = Literal["quickgelu", "gelu", "gelu_tanh"]

WIDTH, HIDDEN = whole(1, 65536), whole(1, 1 << 20)
LAYERS, HEADS, PATCH = whole(1, 1000), whole(1, 4096), whole(1, 1024)
CONTEXT, VOCABULARY = whole(1, 1 << 16), whole(1, 1 << 24)
TOKEN = whole(0, (1 << 24) - 1)
EPSILON = number(0, 1, above=True)
BLOCKS = whole(0, 1000)  # none: of a tower whose blocks stay on disk


def check_heads(heads: int, width: int, place: str, of: str = "width") -> None:
    """Raise `ConfigError` unless the heads share the width equally."""
    if width % heads:
        raise ConfigError(f"{place}.heads must divide {of} {width}, got {heads}")


def tower_from_table(kind: type, values: Any, place: str) -> Any:
    """Return one tower, a dataclass of that kind, from a table. Raises `ConfigError` for unknown or missing keys, and
    no blocks."""
    obey(values, {}, place)
    refuse_unknown(values, [field.name for field in fields(kind)], place)
    for field in fields(kind):
        if field.default is MISSING and field.name not in values:
            raise ConfigError(f"{place}.{field.name} must be given")
    if values.get("layers") == 0:
        raise ConfigError(f"{place}.layers must be {LAYERS.phrase}, got 0")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def without_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values but those that say what `defaults` do: files written before a key existed stay the same."""
    return {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}
