"""Which recipes there are. The library knows none: the package of recipes offers itself when it is imported."""

from __future__ import annotations

from types import ModuleType
from typing import Protocol

from jclip.errors import ConfigError


class Recipes(Protocol):
    """A package of recipes, such as `finetune`."""

    def names(self) -> list[str]:
        """Names of all recipes, sorted."""

    def load(self, name: str) -> ModuleType:
        """The recipe's module, with `Config` and `run`. Raises `UnknownName`."""


_offered: list[Recipes] = []


def offer(recipes: Recipes) -> None:
    """From now on `names` and `load` are those of `recipes`."""
    _offered[:] = [recipes]


def names() -> list[str]:
    """Names of all recipes, sorted."""
    return _recipes().names()


def load(name: str) -> ModuleType:
    """The recipe's module, with `Config` and `run`. Raises `UnknownName`."""
    return _recipes().load(name)


def _recipes() -> Recipes:
    if not _offered:
        raise ConfigError("no recipes are known: import finetune first")
    return _offered[0]
