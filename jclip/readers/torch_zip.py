"""Zip checkpoints of torch >= 1.6 and TorchScript archives, tensors memory-mapped."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jclip.errors import CheckpointError
from jclip.readers.restricted import RestrictedUnpickler, load_pickle, named_leaves
from jclip.readers.tensors import LazyTensor, WeightFile, decode, itemsize, strided


def read(path: Path) -> WeightFile:
    """Every tensor of the pickled tree under its dotted name. `kind` is "torchscript" or "torch"."""
    with _told_as_damage(path), zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        root = _root(names, path)
        stored = {name: _Entry(path, archive.getinfo(name)) for name in names if name.startswith(f"{root}data/")}
        data = archive.read(f"{root}data.pkl")
        script = f"{root}constants.pkl" in names or any(n.startswith(f"{root}code/") for n in names)
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise CheckpointError(f"{path} holds big-endian data, which is not read here")

    def storage(pid: tuple) -> tuple[_Entry, str, int]:
        _, dtype, key, _, count = pid[:5]
        entry = stored.get(f"{root}data/{key}")
        if entry is None or not isinstance(dtype, str):
            raise CheckpointError(f"{path} lacks the storage {key!r}")
        if count * itemsize(dtype) > entry.size:
            raise CheckpointError(
                f"{path} is damaged: storage {key} holds {entry.size} bytes, {count} {dtype} are claimed"
            )
        return entry, dtype, count

    unpickler = RestrictedUnpickler(io.BytesIO(data), str(path), _lazy_tensor, storage)
    tree = load_pickle(unpickler, str(path))
    return WeightFile(named_leaves(tree, _is_tensor), kind="torchscript" if script else "torch")


@contextmanager
def _told_as_damage(path: Path) -> Iterator[None]:
    """Whatever a broken archive makes `zipfile` raise, as a `CheckpointError`."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as e:
        raise CheckpointError(f"{path} is a damaged archive ({e}): fetch or copy it again") from e


def _root(names: set[str], path: Path) -> str:
    roots = [n[: -len("data.pkl")] for n in names if n == "data.pkl" or n.endswith("/data.pkl")]
    if len(roots) != 1:
        raise CheckpointError(f"{path} is a zip, but not one that torch wrote (no data.pkl inside)")
    return roots[0]


class _Entry:
    """One file of the archive: where its bytes lie, mapped when they are stored plainly, as torch does."""

    def __init__(self, path: Path, info: zipfile.ZipInfo):
        self.path, self.info, self.size = path, info, info.file_size

    def bytes(self) -> np.ndarray:
        if self.info.compress_type != zipfile.ZIP_STORED:
            with _told_as_damage(self.path), zipfile.ZipFile(self.path) as archive:
                return np.frombuffer(archive.read(self.info), np.uint8)
        if self.size == 0:
            return np.zeros(0, np.uint8)
        return np.memmap(self.path, np.uint8, "r", self._data_offset(), self.size)

    def _data_offset(self) -> int:
        """Behind the local header, whose name and extra field may be longer than the directory says."""
        with open(self.path, "rb") as f:
            f.seek(self.info.header_offset)
            local = f.read(30)
        if local[:4] != b"PK\x03\x04":
            raise CheckpointError(f"{self.path} is a damaged archive: no entry at byte {self.info.header_offset}")
        offset = (
            self.info.header_offset
            + 30
            + int.from_bytes(local[26:28], "little")
            + int.from_bytes(local[28:30], "little")
        )
        if offset + self.size > self.path.stat().st_size:
            raise CheckpointError(f"{self.path} is truncated: {self.info.filename} reaches behind its end")
        return offset


def _lazy_tensor(storage: tuple[_Entry, str, int], offset: int, shape: Any, strides: Any, *_: Any) -> LazyTensor:
    entry, dtype, count = storage
    shape, strides = tuple(shape), tuple(strides)
    strided(
        np.broadcast_to(np.zeros(1, np.uint8), count), offset, shape, strides, "of a storage"
    )  # bounds, without data

    def values() -> np.ndarray:
        flat = _values_of(entry, dtype, count)
        return strided(flat, offset, shape, strides, "of a storage")

    return LazyTensor(shape, dtype, values)


@lru_cache(maxsize=1)
def _values_of(entry: _Entry, dtype: str, count: int) -> np.ndarray:
    """The last storage stays open: the tensors that share one follow each other."""
    return decode(entry.bytes()[: count * itemsize(dtype)], dtype)


def _is_tensor(node: Any) -> bool:
    return isinstance(node, LazyTensor)
