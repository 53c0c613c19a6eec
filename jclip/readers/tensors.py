"""Tensors of a file that is open but not yet read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jclip.errors import CheckpointError, printable

ITEMSIZE = {"bfloat16": 2}
MOST_NAME = 1000  # characters
_MOST_AXES = 32  # as many as NumPy has
_TOO_LARGE = 1 << 48


@dataclass(frozen=True)
class LazyTensor:
    """A tensor of known shape and dtype, read by `read()`. bfloat16, which NumPy lacks, is read as float32."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    @property
    def is_float(self) -> bool:
        return self.dtype in ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class WeightFile(Mapping):
    """Tensors by name in the file's order, and its string metadata. `kind` names the format."""

    tensors: dict[str, LazyTensor]
    metadata: dict[str, str] = field(default_factory=dict)
    kind: str = ""

    def __getitem__(self, name: str) -> LazyTensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def itemsize(dtype: str) -> int:
    """Return the bytes of one value."""
    return ITEMSIZE.get(dtype) or np.dtype(dtype).itemsize


def decode(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Return a uint8 vector as values of `dtype`; bfloat16 is widened to float32, exactly."""
    if dtype == "bool":
        return raw != 0  # NumPy counts on 0 and 1, a file may hold other bytes
    if dtype != "bfloat16":
        return raw.view(dtype)
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return values as `dtype`. bfloat16 bits are returned as uint16, rounded to nearest, ties to even."""
    if dtype != "bfloat16":
        return np.asarray(values, dtype)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def sizes(values: Any, place: str, together: bool = True) -> tuple[int, ...]:
    """Return a shape, offset or strides from a file as a tuple. together: their product is bounded, too.

    Raises `CheckpointError` unless all are integers in [0, 2^48), as is the product of the non-zero ones.
    """
    if type(values) not in (tuple, list) or len(values) > _MOST_AXES:
        raise CheckpointError(
            f"{place} is damaged: a shape must be a list of at most {_MOST_AXES} sizes, got {_shown(values)}"
        )
    if any(type(n) is not int or not 0 <= n < _TOO_LARGE for n in values):
        raise CheckpointError(f"{place} is damaged: sizes must be integers in [0, 2^48), got {_shown(values)}")
    if together and math.prod(n for n in values if n) >= _TOO_LARGE:
        raise CheckpointError(f"{place} is damaged: a tensor must have fewer than 2^48 values")
    return tuple(values)


def _shown(values: Any) -> str:
    """Return sizes for a message; anything but numbers and text is shown by its type, since it may nest endlessly."""
    if type(values) not in (tuple, list):
        return printable(values, 60) if type(values) is str else type(values).__name__
    shown = (printable(str(v), 24) if type(v) in (int, float, str) else type(v).__name__ for v in values[:_MOST_AXES])
    return f"[{', '.join(shown)}]"


def check_name(name: str, place: str) -> str:
    """Return the name. Raises `CheckpointError` unless it is printable and of at most `MOST_NAME` characters."""
    if len(name) > MOST_NAME or not name.isprintable():
        raise CheckpointError(
            f'{place} names a tensor "{printable(name, 120)}": names must be printable, of at most {MOST_NAME} characters'
        )
    return name


def strided(flat: np.ndarray, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """Return the view of a flat array that a torch tensor is. Raises `CheckpointError` when it exceeds the array."""
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if any(n < 0 for n in (*shape, *strides)) or (0 not in shape and last >= flat.size):
        raise CheckpointError(f"a tensor reaches to element {last} of {flat.size}")
    return np.lib.stride_tricks.as_strided(flat, shape, [s * flat.itemsize for s in strides], writeable=False)
