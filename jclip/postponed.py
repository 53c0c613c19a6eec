"""Imports that stand at the top of a file and cost nothing there: what they name is loaded at its first use.

Rooms offer their modules so, `from jclip.train import on_features`, and `jt` and `gr` here are Jittor and Gradio so: help
and wrong settings are answered before NumPy or Jittor is loaded. `postponed` does the same for a package of others in a block.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from jclip.errors import SetupError


@contextmanager
def postponed(name: str) -> Iterator[None]:
    """Within the block `import name` costs nothing until something is looked up in it; after it `name` is loaded.

    A block that raises leaves the package postponed: it still loads on first use. `importlib.util.LazyLoader` doesn't
    serve here: up to Python 3.11 a second `import` of a lazy module loads it.
    """
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None:  # loaded before, or missing: the import in the block reports it
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


class Handle(ModuleType):
    """Stands for a module, or for what a module holds under a name: imported when an attribute is looked up or set.

    Nothing is copied: each look-up goes to what is there now, so that it may be replaced there.
    """

    def __init__(self, module: str, name: str = ""):
        super().__init__(module)
        super().__setattr__("_name", name)

    @property
    def __dict__(self) -> dict[str, Any]:
        return self._found().__dict__

    def _found(self) -> Any:
        module = importlib.import_module(self.__name__)
        return getattr(module, self._name) if self._name else module

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._found(), attribute)

    def __setattr__(self, attribute: str, value: Any) -> None:
        setattr(self._found(), attribute, value)

    def __delattr__(self, attribute: str) -> None:
        delattr(self._found(), attribute)

    def __dir__(self) -> list[str]:
        return dir(self._found())


class _Extra(Handle):
    """As `Handle`, of a package that an extra installs. environ: set before it is imported."""

    def __init__(self, module: str, extra: str, environ: Mapping[str, str]):
        super().__init__(module)
        object.__setattr__(self, "_extra", extra)
        object.__setattr__(self, "_environ", environ)

    def _found(self) -> Any:
        if self.__name__ not in sys.modules:
            os.environ.update(self._environ)
        try:
            return super()._found()
        except ModuleNotFoundError as e:
            if e.name != self.__name__:
                raise
            raise SetupError(f"{self.__name__} must be installed: pip install 'jclip[{self._extra}]'") from None


jt = Handle("jclip.runtime", "jt")
gr = _Extra(
    "gradio",
    "app",
    {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "FASTAPI_OTEL_AUTO_CONFIGURE": "false"},
)


def face(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package whose public names are looked up on first use (PEP 562).

    homes: module of the package → the public names that it holds. `from package import module` gives a `Handle` of any
    module that isn't loaded yet.
    """
    home = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name in home:
            return getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
            return Handle(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted(home), sorted(home)
