"""CLIP on Jittor. Names are resolved on first use, so that `import jclip` does not import Jittor."""

from __future__ import annotations

import importlib

from jclip.postponed import Handle

_HOMES = {
    "load": "features.loading",
    "available_models": "features.loading",
    "CLIP": "model.clip",
    "tokenize": "prompts.tokenizer",
    "Tokenizer": "prompts.tokenizer",
    "Preprocess": "data.preprocess",
    "ModelSource": "features.source",
    "Gallery": "features.gallery",
    "CLIPConfig": "weights.variants",
    "VARIANTS": "weights.variants",
    "JclipError": "errors",
}
_WITH_JITTOR = ("kernels", "runtime")  # importing these loads Jittor: `from jclip import kernels` does it at first use
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name in _WITH_JITTOR:
        return Handle(f"jclip.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'jclip' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jclip.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
