"""YAML for settings: plain values, read with bounded work. Imports no Jittor.

Refused: aliases (nine lines of them can expand to a billion values), tags, keys that are not words, duplicate keys.
Numbers are read as people write them: 1e-5 is a number, 010 and 1_000 are text (YAML 1.1 reads them as text, 8 and
1000).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from jclip.errors import ConfigError, printable, quoted
from jclip.paths import open_regular

MOST_BYTES = 2**18  # of a file, or of one value on the command line
MOST_VALUES = 20_000
MOST_DEPTH = 32  # groups and lists inside each other
MOST_DIGITS = 18  # of an integer
MOST_LETTERS = 255  # of a key


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the nested values of a YAML file of `key: value` lines. Raises `ConfigError`."""
    try:
        with open_regular(path) as f:
            data = f.read(MOST_BYTES + 1)
        values = parse_yaml(data.decode("utf-8"))
    except OSError as e:
        raise ConfigError(f"can't read {path}: {e.strerror}") from e
    except ValueError as e:  # UnicodeDecodeError, and a NUL in the path
        raise ConfigError(f"{path} is not UTF-8 text: save it as UTF-8") from e
    except ConfigError as e:
        raise ConfigError(f"{path} {e}") from e
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no settings (expected `key: value` lines)")
    return values


def parse_yaml(text: str) -> Any:
    """Return the value that `text` holds. Raises `ConfigError`, whose message begins with "is"."""
    if len(text) > MOST_BYTES:
        raise ConfigError(f"is too long: settings must have at most {MOST_BYTES:,} bytes")
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as e:
        raise ConfigError(f"is not valid YAML: {printable(' '.join(str(e).split()), 400)}") from e


def unusable(text: str) -> str:
    """Return why `text` can be neither a name nor a path: "NUL", "half a character" (a lone surrogate); "" where it
    can.

    Bytes of a path in another encoding, which Python keeps as U+DC80 … U+DCFF, are usable.
    """
    if "\0" in text:
        return "NUL"
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "half a character"
    return ""


class _StrictLoader(yaml.SafeLoader):
    """A loader that counts what it composes, and refuses what YAML would expand or convert implicitly."""

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = self._values = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        self._values += 1
        self._depth += 1
        if getattr(event, "anchor", None) is not None:
            raise _fault(event, "anchors and aliases (&a, *a) are not allowed in settings: write the value out")
        if getattr(event, "tag", None) is not None:
            raise _fault(event, f"the tag {event.tag!r} is not allowed in settings: write the value plainly")
        if self._depth > MOST_DEPTH:
            raise _fault(event, f"groups and lists must stand at most {MOST_DEPTH} deep inside each other")
        if self._values > MOST_VALUES:
            raise _fault(event, f"settings must have at most {MOST_VALUES:,} values")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _fault(place: yaml.Event | yaml.Node, message: str) -> yaml.YAMLError:
    return yaml.YAMLError(f"line {place.start_mark.line + 1}: {message}")


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[str, Any]:
    """Construct a mapping whose keys are text as written: `0:` is "0"."""
    values, lines = {}, {}
    for key_node, value_node in node.value:
        key, line = _key(key_node), key_node.start_mark.line + 1
        if key in lines:
            raise yaml.YAMLError(f"key {key!r} stands on line {lines[key]} and again on line {line}")
        lines[key] = line
        values[key] = loader.construct_object(value_node, deep=True)
    return values


def _key(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _fault(node, "a key must be a word, got a list or a group")
    if len(node.value) > MOST_LETTERS or not node.value.isprintable():
        shown = quoted(node.value, 60)
        raise _fault(node, f"a key must be printable text of at most {MOST_LETTERS} letters, got {shown}")
    return node.value


def _text(loader: _StrictLoader, node: yaml.ScalarNode) -> str:
    if why := unusable(node.value):
        raise _fault(node, f"text must not hold {why}, got {quoted(node.value, 60)}")
    return node.value


def _whole(loader: _StrictLoader, node: yaml.ScalarNode) -> int:
    if (digits := len(node.value.lstrip("+-"))) > MOST_DIGITS:
        raise _fault(node, f"an integer must have at most {MOST_DIGITS} digits, got {digits:,}")
    return int(node.value)


_NUMBER = r"[-+]?(?:0|[1-9][0-9]*)"
_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (_NUMBER, "-+0123456789"),
    "float": (
        rf"{_NUMBER}(?:\.[0-9]*)?[eE][-+]?[0-9]+|{_NUMBER}\.[0-9]*|[-+]?\.[0-9]+(?:[eE][-+]?[0-9]+)?",
        "-+.0123456789",
    ),
}
_StrictLoader.yaml_implicit_resolvers = {}
for _kind, (_pattern, _first) in _SCALARS.items():
    _letters = ["" if c == "\0" else c for c in _first]
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), _letters)
for _kind, _constructor in (("map", _mapping), ("str", _text), ("int", _whole)):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _constructor)
