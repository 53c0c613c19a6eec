"""Files → arrays and text. Nothing that a file holds is executed, and nothing it says steers what memory is read."""

from __future__ import annotations

from jclip.postponed import face

__getattr__, __dir__, __all__ = face(
    __name__, {"any_format": ("read_weights",), "tensors": ("LazyTensor", "WeightFile")}
)
