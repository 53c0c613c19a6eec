"""Readers of files: arrays and text. Nothing in a file is executed, and no size or offset in it is used unchecked."""

from __future__ import annotations

from jclip.postponed import face

__getattr__, __dir__, __all__ = face(
    __name__, {"any_format": ("read_weights",), "tensors": ("LazyTensor", "WeightFile")}
)
