"""CLIP on Jittor. Names are resolved on first use, so that `import jclip` does not import Jittor."""

from __future__ import annotations

import importlib

_HOMES = {
    "load": "clip",
    "available_models": "clip",
    "CLIP": "clip",
    "tokenize": "tokenizer",
    "Tokenizer": "tokenizer",
    "Preprocess": "preprocess",
    "ModelSource": "source",
    "CLIPConfig": "variants",
    "VARIANTS": "variants",
    "JclipError": "errors",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'jclip' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jclip.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
