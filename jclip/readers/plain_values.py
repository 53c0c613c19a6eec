"""Lists, texts and numbers in files that `torch.save` or `pickle.dump` wrote, read without running anything.

For data, not weights: both containers of torch are read, its zip and the stream of torch before 1.6.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from jclip.errors import CheckpointError, DataError
from jclip.readers import torch_zip, zip_archive
from jclip.readers.held_file import HeldFile, Source
from jclip.readers.pickle_machine import Budget, Inert, Name, Table, run_pickle
from jclip.readers.pickle_stream import Stream
from jclip.readers.recorders import Array, ArrayDType, Storage, TorchTensor, Weights
from jclip.readers.tensors import decode, itemsize
from jclip.readers.zip_archive import Archive

MOST_BYTES = 2 << 30
MOST_DEPTH = 20
MOST_INTEGER = 1 << 63
MOST_INSTRUCTIONS = 200_000_000  # ten million rows take as many
_SMALL = 4096
_KIND = "file of plain values"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_ALLOWED = {
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch", "Size"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
}
_SCALAR = ("numpy.core.multiarray", "scalar")


def read_plain_values(path: str | os.PathLike, bare: bool = False) -> Any:
    """Return the lists, dicts with text as keys, texts and numbers in a file; arrays and tensors become lists.

    bare: a pickle without a container is read, too. Tuples become lists. Raises `DataError` for a file that is absent,
    damaged, over 2 GiB, nested more than 20 deep, or that holds anything else: nothing in it is run or imported.
    """
    try:
        file = HeldFile(path)
        if file.size > MOST_BYTES:
            raise DataError(f"{path} must have at most {MOST_BYTES:,} bytes, got {file.size:,}")
        tree, size = _tree_of(file, bare)
        return _Plain(str(path), size).value(tree)
    except CheckpointError as e:
        raise DataError(str(e)) from e


def _tree_of(file: HeldFile, bare: bool) -> tuple[Any, int]:
    """Return the value and the number of bytes that it was made of."""
    head, place = file.read(0, min(4, file.size)).tobytes(), str(file.path)
    if head == zip_archive.MAGIC:
        archive = Archive(file)
        entry = torch_zip.pickled(archive)
        meaning = PlainValues(place, torch_zip.storages(archive))
        return run_pickle(Stream(entry), place, meaning, _budget(entry.size), _KIND), file.size + entry.size
    if not head:
        raise DataError(f"{place} is empty: fetch or copy it again")
    stream, budget = Stream(file), _budget(file.size)
    first = run_pickle(stream, place, PlainValues(place), budget, _KIND)
    if type(first) is int and first == _LEGACY_MAGIC:
        return _legacy(stream, place, budget), file.size
    if not bare:
        raise DataError(
            f"{place} must be a file of torch.save (a zip, or the stream of torch before 1.6), got a pickle"
        )
    return first, file.size


def _budget(size: int) -> Budget:
    """Two bytes an instruction, where rows of data take four: lists of one byte each would swell 60-fold in memory."""
    return Budget(min(size // 2 + _SMALL, MOST_INSTRUCTIONS))


def _legacy(stream: Stream, place: str, budget: Budget) -> Any:
    """Return the value after the magic number: protocol, system, the value, keys of storages, the storages."""
    inside = PlainValues(place)
    protocol, system = (run_pickle(stream, place, inside, budget, _KIND) for _ in range(2))
    if protocol != _LEGACY_PROTOCOL or not isinstance(system, Table) or system.get("little_endian") is not True:
        raise CheckpointError(f"{place} must be of torch's protocol {_LEGACY_PROTOCOL} with little-endian data")
    later: dict[str, _Later] = {}

    def storage(claim: tuple[str, str, int]) -> Storage:
        key, dtype, count = claim
        source = later.setdefault(key, _Later(place, count * itemsize(dtype)))
        if source.size != count * itemsize(dtype):
            raise CheckpointError(f"{place} is damaged: it gives a storage two sizes")
        return Storage(source, dtype, count)

    tree = run_pickle(stream, place, PlainValues(place, storage), budget, _KIND)
    keys = run_pickle(stream, place, inside, budget, _KIND)
    if type(keys) is not list or any(type(k) is not str for k in keys) or sorted(keys) != sorted(later):
        raise CheckpointError(f"{place} is damaged: its list of storages is not that of its tensors")
    for key in keys:
        source = later[key]
        if stream.left < 8 + source.size:
            raise CheckpointError(f"{place} is truncated inside a storage of {source.size} bytes")
        stream.take(8)  # the number of values, which the tensor has named
        source.data = stream.part(source.size)
    return tree


@dataclass
class _Later:
    """A source of bytes that is known once the pickle before it was read."""

    place: str
    size: int
    data: Source | None = None

    def read(self, offset: int, size: int) -> np.ndarray:
        if self.data is None:
            raise CheckpointError(f"{self.place} is damaged: a storage is missing")
        return self.data.read(offset, size)


class PlainValues(Weights):
    """The `Meaning` of names in a pickle of data: arrays, tensors and numbers of NumPy. All else is refused."""

    def call(self, name: Name, arguments: tuple) -> Any:
        """Return a number, or the placeholder of an array or tensor. Raises `CheckpointError` for other names."""
        module = name.module.replace("numpy._core", "numpy.core", 1)
        if (module, name.name) == _SCALAR and len(arguments) == 2:
            return self._scalar(*arguments)
        if (module, name.name) in _ALLOWED:
            return super().call(name, arguments)
        raise CheckpointError(
            f"{self._place} names {name}, which loading it would run or import: refused, nothing was run "
            "(it must hold lists, texts and numbers only)"
        )

    def lay_out(self, name: Name, arguments: tuple) -> Any:
        """Raise `CheckpointError`: plain values have no objects."""
        return self.call(name, arguments)

    def _scalar(self, dtype: Any, data: Any) -> int | float | bool:
        code = dtype.values.code if type(dtype) is ArrayDType else None
        if code is None or code.startswith("complex") or getattr(data, "size", None) != itemsize(code):
            self._refuse("holds a NumPy value that is no number")
        (value,) = decode(data.read(0, data.size), code)
        return (value.byteswap() if dtype.values.swapped else value).item()

    def _refuse(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self._place} {what}: damaged, or not a {_KIND}")


class _Plain:
    """Values of a file as Python's own. Shared ones count each time: they would swell what is read."""

    def __init__(self, place: str, size: int):
        self.place, self.left = place, (1 << 20) + 16 * size

    def value(self, found: Any, depth: int = 0) -> Any:
        self.left -= 1
        kind = type(found)
        if kind is str or kind is float or kind is bool or found is None:
            return found
        if kind is int:
            if not -MOST_INTEGER <= found < MOST_INTEGER:
                self.refuse("an integer of more than 64 bits")
            return found
        if depth >= MOST_DEPTH or self.left < 0:
            self.refuse("lists that nest or repeat without end")
        if kind is list or kind is tuple:
            return [self.value(item, depth + 1) for item in found]
        if kind is Table:
            return {key: self.value(item, depth + 1) for key, item in found.items()}
        return self.numbers(found)

    def numbers(self, found: Any) -> Any:
        """Return an array or tensor as a number or nested lists."""
        if not isinstance(found, Array | TorchTensor):
            what = "a set or an object" if isinstance(found, Inert) else "bytes or a name"
            self.refuse(f"{what} in place of lists, texts and numbers")
        tensor = found.lazy("an array")
        if tensor is None or tensor.dtype.startswith("complex"):
            self.refuse("an array of texts, times or complex numbers")
        self.left -= math.prod(tensor.shape) + len(tensor.shape)
        if self.left < 0 or len(tensor.shape) > MOST_DEPTH:
            self.refuse("arrays that repeat without end")
        return tensor.read().tolist()

    def refuse(self, what: str) -> NoReturn:
        raise DataError(f"{self.place} holds {what}: damaged, or not a {_KIND}")
