"""Tensors of a file that has been opened but not read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from jclip.errors import CheckpointError

ITEMSIZE = {"bfloat16": 2}


@dataclass(frozen=True)
class LazyTensor:
    """Shape and dtype known, values read by `read()`. bfloat16, which NumPy lacks, is read as float32."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    @property
    def is_float(self) -> bool:
        return self.dtype in ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class WeightFile(Mapping):
    """Tensors by name, in the file's order, and the strings that came with them. `kind` names the format."""

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
    """Bytes of one value."""
    return ITEMSIZE.get(dtype) or np.dtype(dtype).itemsize


def decode(raw: np.ndarray, dtype: str) -> np.ndarray:
    """A uint8 vector as values of `dtype`; bfloat16 is widened to float32, exactly."""
    if dtype != "bfloat16":
        return raw.view(dtype)
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values as `dtype`; to bfloat16, whose bits come back as uint16, rounded to the nearest, ties to even."""
    if dtype != "bfloat16":
        return np.asarray(values, dtype)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def strided(flat: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], name: str) -> np.ndarray:
    """The view of a storage that a torch tensor is. Raises `CheckpointError` when it reaches outside the storage."""
    if any(n < 0 for n in (offset, *shape, *strides)) or len(shape) != len(strides):
        raise CheckpointError(f"tensor {name} has a negative size or stride")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if 0 not in shape and last >= flat.size:
        raise CheckpointError(f"tensor {name} reaches to element {last} of a storage of {flat.size}")
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, [s * flat.itemsize for s in strides], writeable=False)
