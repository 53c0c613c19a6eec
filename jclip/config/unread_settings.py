"""Settings that are given and would change nothing, because a switch beside them is off, or nothing reads them at all.

A group of settings says it itself, in a class variable `READ_WITH`: what must hold → the settings that are read then alone.

    READ_WITH = {"search=true": ("search_alpha", "search_steps"), "train=true": ("optim",), "": ("optim.warmup",)}

`""` never holds; `head=linear|adapter` holds for either, `teacher!=` for any but the empty value. `optim` stands for all
that is in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from jclip.config import protocols
from jclip.config.settings import apply_overrides
from jclip.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Switch:
    """What a setting is read with, in a group: `name` must be one of `wanted`, or with `other` none of them."""

    group: str  # with a dot behind it, as in `optim.`
    name: str = ""  # none: nothing reads the setting
    wanted: tuple[str, ...] = ()
    other: bool = False

    @staticmethod
    def of(group: str, text: str) -> Switch:
        """As `READ_WITH` has it."""
        name, _, wanted = text.partition("=")
        return Switch(group, name.rstrip("!"), tuple(wanted.split("|")), name.endswith("!"))

    def holds(self, node: Any) -> bool:
        """Whether the group's values are so."""
        return bool(self.name) and (_shown(getattr(node, self.name)) in self.wanted) != self.other

    def phrase(self, node: Any) -> str:
        """Why a setting is not read."""
        if not self.name:
            return "this recipe does not read it"
        name, sign = f"{self.group}{self.name}", "!=" if self.other else "="
        values = " or ".join(f"{name}{sign}{_text(value)}" for value in self.wanted)
        return f"it is read with {values} alone, got {name}={_text(_shown(getattr(node, self.name)))}"


def refuse_unread(
    config: protocols.Dataclass, values: Mapping[str, Any], overrides: Sequence[str], place: str, below: str = ""
) -> None:
    """Raises `ConfigError` for the first setting that was given and is not read.

    values: what the file `place` holds. A switch that `overrides` (`key=value`) set leaves the file's settings for it in
    peace, and a file that holds every setting gives none: a run wrote it. below: the group of a larger file that the
    config is, with a dot behind it as in `members.zero_shot.`; of the overrides those that begin so are its own.
    """
    own = [override.removeprefix(below) for override in overrides if override.startswith(below)]
    given = [*dotted_names(apply_overrides({}, own))]
    for name in given:
        if why := why_unread(config, name):
            raise ConfigError(f"{below}{name} must be left out: {why}")
    if {field.name for field in dataclasses.fields(config)} <= {*values}:
        return
    for name in dotted_names(values):
        if why := why_unread(config, name, set_elsewhere=given):
            raise ConfigError(f"{place}: {name} must be left out: {why}")


def why_unread(config: Any, name: str, set_elsewhere: Collection[str] = ()) -> str:
    """Why nothing reads the setting of this dotted name, but for switches that are `set_elsewhere`; "" where it is read."""
    group, node = "", config
    while dataclasses.is_dataclass(node):
        for text, settings in getattr(node, "READ_WITH", {}).items():
            if not any(name == one or name.startswith(f"{one}.") for one in settings):
                continue
            switch = Switch.of(group, text)
            if not switch.holds(node) and f"{group}{switch.name}" not in set_elsewhere:
                return switch.phrase(node)
        head, _, name = name.partition(".")
        group, node = f"{group}{head}.", getattr(node, head, None)
    return ""


def _shown(value: Any) -> str:
    """As it is written in a setting."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _text(value: str) -> str:
    return value or '""'


def dotted_names(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The settings in nested values: `a.b` for `{"a": {"b": 1}}`."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from dotted_names(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"
