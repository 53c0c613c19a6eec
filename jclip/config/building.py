"""Nested values to frozen dataclasses, strictly, and back to plain values, JSON and YAML."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import yaml

from jclip.config import protocols
from jclip.config.groups import OutOfRange
from jclip.errors import ConfigError, did_you_mean, printable, quoted
from jclip.readers.strict_yaml import unusable

ALIASES = {
    "epoches": "epochs", "ckt_gap": "every",  # as an entry of the Jittor challenge spells them
    "exif_rotate": "upright",  # as it was called while it was off by default
    "root": "images",  # of phrases with boxes, as other data call the folder of the photos
}  # fmt: skip
MOST_NUMBER = 3.4e38  # a float32 holds no more
MOST_WHOLE = 1_000_000
MOST_OF = {  # integers of that name, in whatever recipe: a seed allocates nothing, the others photos and prompts
    "seed": 2**32 - 1,
    "views": 1_000,
    "head_views": 1_000,
    "context": 256,
    "search_steps": 10_000,
    "max_requests": 10**9,
    "max_tokens": 10**12,
}


def build(schema: type, values: Mapping[str, Any], place: str) -> Any:
    """`schema`, a frozen dataclass, from nested `values`; `place` is the file named in errors. Raises `ConfigError`.

    What a group of settings leaves out stays as the schema above it has it: `optim: {lr: 1e-3}` keeps a recipe's optimiser.
    """
    return _build(schema, values, place, "")


def _build(schema: type, values: Any, place: str, prefix: str, default: Any = None) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{place}: {prefix or 'the file'} must be a group of settings, got {quoted(values)}")
    fields = {f.name: f for f in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema)
    values = {new if (new := ALIASES.get(key)) in fields and new not in values else key: v for key, v in values.items()}
    for key in values:
        if key not in fields:
            where = f"{prefix}.{printable(key, 60)}" if prefix else printable(key, 60)
            near = _of_a_group(key, hints) or did_you_mean(key, fields)
            raise ConfigError(f"{place}: unknown key {where}{near} (known: {', '.join(fields)})")
    made = {} if default is None else {name: getattr(default, name) for name in fields}
    for name, field in fields.items():
        dotted = f"{prefix}.{name}" if prefix else name
        if name in values and dataclasses.is_dataclass(hints[name]):
            made[name] = _build(hints[name], values[name], place, dotted, made.get(name, _default_of(field)))
        elif name in values:
            made[name] = _convert(hints[name], values[name], place, dotted)
        elif name in made:
            continue
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{place}: {dotted} is missing")
        if name == "seed" and made.get(name, 0) < 0:
            raise ConfigError(f"{place}: {dotted} must be at least 0, got {made[name]}")
    try:
        return schema(**made)
    except OutOfRange as e:
        raise ConfigError(f"{place}: {e.below(prefix)}") from e
    except ConfigError as e:
        raise ConfigError(f"{place}: {e}") from e


def _of_a_group(key: str, hints: Mapping[str, Any]) -> str:
    """Return `", did you mean 'data.shots'?"` where a group of settings has the key, an empty string where none has."""
    groups = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    found = [f"{name}.{key}" for name, hint in groups.items() if key in {f.name for f in dataclasses.fields(hint)}]
    return f", did you mean {' or '.join(map(repr, found))}?" if found else ""


def _default_of(field: dataclasses.Field) -> Any:
    """The group of settings that a schema has in this place by default, None where it has to be given."""
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def _convert(hint: Any, value: Any, place: str, dotted: str) -> Any:
    """`value` as `hint`, or a `ConfigError`. Integers pass as float; nothing else is converted silently."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, place, dotted)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != isinstance(arguments[0], bool):
            near = did_you_mean(str(value), map(str, arguments))
            raise ConfigError(
                f"{place}: {dotted} must be one of {', '.join(map(str, arguments))}, got {quoted(value)}{near}"
            )
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, place, dotted)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, place, dotted)
    if (
        hint is int
        and isinstance(value, int)
        and abs(value) > (most := MOST_OF.get(dotted.rpartition(".")[2], MOST_WHOLE))
    ):
        shown = value if value.bit_length() < 100 else f"a number of {value.bit_length()} bits"
        raise ConfigError(f"{place}: {dotted} must be in [-{most}, {most}], got {shown}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= MOST_NUMBER else math.inf
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{place}: {dotted} must be {_TYPE_NAMES.get(hint, hint.__name__)}, got {quoted(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{place}: {dotted} must be a finite number, got {value}")
    if isinstance(value, float) and abs(value) > MOST_NUMBER:
        raise ConfigError(f"{place}: {dotted} must be in [-{MOST_NUMBER}, {MOST_NUMBER}], got {value}")
    if isinstance(value, str) and (why := unusable(value)):
        raise ConfigError(f"{place}: {dotted} must not hold {why}, got {quoted(value)}")
    return value


_TYPE_NAMES = {int: "an integer", float: "a number", str: "text", bool: "true or false", dict: "a group of settings"}


def _convert_tuple(arguments: tuple, value: Any, place: str, dotted: str) -> tuple:
    items = list(value) if isinstance(value, list | tuple) else [value]
    if arguments and arguments[-1] is Ellipsis:
        numbered = dataclasses.is_dataclass(arguments[0])
        names = [f"{dotted}.{i}" if numbered else dotted for i in range(len(items))]
        return tuple(_convert(arguments[0], item, place, name) for item, name in zip(items, names, strict=True))
    if len(items) != len(arguments):
        raise ConfigError(f"{place}: {dotted} must be a list of {len(arguments)} values, got {quoted(value)}")
    return tuple(_convert(hint, item, place, dotted) for hint, item in zip(arguments, items, strict=True))


def to_values(config: protocols.Dataclass) -> dict[str, Any]:
    """The resolved configuration as plain values, which `build` reads back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_json(values: Any, indent: int | None = None) -> str:
    """JSON text that is UTF-8, whatever names of files it holds: bytes that are none are escaped, and read back equal."""
    text = json.dumps(values, indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def to_yaml(values: Mapping[str, Any]) -> str:
    """YAML text of plain values, in their order."""
    fast = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # PyYAML may come without its C parts
    try:
        return yaml.dump(dict(values), Dumper=fast, sort_keys=False, allow_unicode=True)
    except UnicodeEncodeError:  # a path whose bytes are no UTF-8
        return yaml.dump(dict(values), Dumper=yaml.SafeDumper, sort_keys=False)
