"""The recipes: one module each, whose name is the recipe's. Nothing is registered: a file that is there is a recipe."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from types import ModuleType

from jclip.errors import UnknownName
from jclip.train import recipe_finder


def names() -> list[str]:
    """Names of all recipes."""
    return list(_names())


@functools.cache  # a sweep asks thousands of times
def _names() -> tuple[str, ...]:
    found = (m.name for m in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if not name.startswith("_") and name != "configs"))


def __getattr__(name: str):
    if name in ("Classifier", "Predictor"):  # resolved on first use: finding recipes imports nothing
        from jclip.report import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module 'finetune' has no attribute {name!r}")


def load(name: str) -> ModuleType:
    """The recipe's module, with `Config` and `run`. Raises `UnknownName`."""
    if name not in names():
        raise UnknownName("recipe", name, names())
    return importlib.import_module(f"finetune.{name}")


recipe_finder.offer(sys.modules[__name__])
