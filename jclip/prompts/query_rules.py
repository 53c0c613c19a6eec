"""Rules that rewrite queries by kind, as data: prefixes and suffixes stripped or added, kinds told apart by word lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jclip.errors import ConfigError, UnknownName
from jclip.paths import ASSETS, is_file
from jclip.readers.strict_yaml import read_yaml

OTHER = "other"
KEYS = ("words", "strip", "strip_end", "prefix", "suffix")


@dataclass(frozen=True)
class Rule:
    """What is done with queries of one kind."""

    kind: str
    words: tuple[str, ...] = ()
    strip: tuple[str, ...] = ()
    strip_end: tuple[str, ...] = ()
    prefix: str = ""
    suffix: str = ""

    def rewritten(self, text: str) -> str:
        """The query as it is encoded."""
        end = next((s for s in self.strip_end if text.endswith(s)), "")
        text = text[: len(text) - len(end)]
        start = next((s for s in self.strip if text.startswith(s)), "")
        return f"{self.prefix}{text[len(start) :]}{self.suffix}"


@dataclass(frozen=True)
class QueryRules:
    """Rules of several kinds; the last is for queries of no other."""

    rules: tuple[Rule, ...]

    def kind_of(self, text: str) -> str:
        """The kind of a query: the first whose word stands in it."""
        return self._rule(text).kind

    def __call__(self, text: str) -> str:
        """The query as it is encoded."""
        return self._rule(text).rewritten(text)

    def _rule(self, text: str) -> Rule:
        return next((rule for rule in self.rules if any(word in text for word in rule.words)), self.rules[-1])


def load_rules(name_or_file: str) -> QueryRules:
    """Rules of a set by name, or of a YAML file of the same form. Raises `ConfigError` and `UnknownName`."""
    own = ASSETS / "query_rules.yaml"
    if is_file(name_or_file) and Path(name_or_file).suffix.lower() in (".yaml", ".yml"):
        return build_rules(read_yaml(Path(name_or_file)), name_or_file)
    sets = read_yaml(own)
    if name_or_file not in sets:
        raise UnknownName("set of query rules", name_or_file, sets)
    return build_rules(sets[name_or_file], f"{own.name}: {name_or_file}")


def build_rules(kinds: Mapping[str, Any], place: str) -> QueryRules:
    """Rules from plain values, compared with what they must be. Raises `ConfigError`."""
    rules = []
    for kind, values in kinds.items():
        if not isinstance(values, dict):
            raise ConfigError(f"{place}: {kind} must be a group of {', '.join(KEYS)}, got {values!r:.60}")
        if unknown := [key for key in values if key not in KEYS]:
            raise UnknownName(f"key of {place}, {kind},", unknown[0], KEYS)
        rules.append(Rule(kind, **{key: _value(key, value, f"{place}: {kind}") for key, value in values.items()}))
    if not any(rule.kind == OTHER for rule in rules):
        rules.append(Rule(OTHER))
    if lost := [rule.kind for rule in rules if rule.kind != OTHER and not rule.words]:
        raise ConfigError(f"{place}: {lost[0]} must have words that its queries are known by")
    return QueryRules(tuple(sorted(rules, key=lambda rule: rule.kind == OTHER)))


def _value(key: str, value: Any, place: str) -> str | tuple[str, ...]:
    if key in ("prefix", "suffix"):
        if not isinstance(value, str):
            raise ConfigError(f"{place}.{key} must be text, got {value!r:.60}")
        return value
    if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
        raise ConfigError(f"{place}.{key} must be a list of texts, got {value!r:.60}")
    return tuple(value)
