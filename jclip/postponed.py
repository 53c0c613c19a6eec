"""A package that is imported by name now and run on first use, so that a wrong setting is told before it is loaded."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def postponed(name: str) -> Iterator[None]:
    """Within the block `import name` costs nothing until something is looked up in it; after it `name` is loaded.

    A block that raises leaves the package postponed: it still loads on first use. `importlib.util.LazyLoader` doesn't
    serve here: up to Python 3.11 a second `import` of a lazy module loads it.
    """
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None:  # loaded before, or missing: the import in the block tells
        yield
        return
    module = importlib.util.module_from_spec(spec)
    module.__dict__.pop("__path__", None)  # so that importing a submodule loads the package first
    module.__class__ = _Postponed
    sys.modules[name] = module
    yield
    module.__path__  # noqa: B018 - the look-up loads it


class _Postponed(ModuleType):
    def __getattr__(self, attribute: str) -> object:
        spec = self.__spec__
        self.__class__ = ModuleType
        self.__path__ = spec.submodule_search_locations
        try:
            spec.loader.exec_module(self)
        except BaseException:
            sys.modules.pop(spec.name, None)
            raise
        return getattr(self, attribute)


def face(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package whose public names are looked up on first use (PEP 562).

    homes: module of the package → the public names that it holds.
    """
    home = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{home[name]}"), name)

    return get, lambda: sorted(home), sorted(home)
