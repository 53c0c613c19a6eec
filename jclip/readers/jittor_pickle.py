"""Jittor's `.pkl`: a pickle of arrays with a checksum behind it. In and out, without Jittor.

Files made from torch tensors (the challenge's `ViT-B-32.pkl` is made so: `jt.save(torch_state_dict, path)`) hold each
storage as bytes in torch's old format inside the pickle; those are read too.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jclip.errors import CheckpointError
from jclip.paths import replacing
from jclip.readers.restricted import RestrictedUnpickler, load_pickle, named_leaves
from jclip.readers.tensors import LazyTensor, WeightFile, decode, itemsize, strided

_TRAILER = b"HCAJSLHD"


def read(path: Path) -> WeightFile:
    """Every array of the pickled tree under its dotted name. Raises `CheckpointError` when the checksum is wrong."""
    data = path.read_bytes()
    if data.endswith(_TRAILER):
        body, checksum = data[:-28], data[-28:-8]
        if hashlib.sha1(body).digest() != checksum:
            raise CheckpointError(f"{path} is damaged: its checksum does not match, fetch or copy it again")
    else:
        body = data
    place = str(path)
    unpickler = RestrictedUnpickler(io.BytesIO(body), place, _tensor, nested=lambda b: _old_torch_storage(b, place))
    arrays = named_leaves(load_pickle(unpickler, place), lambda node: isinstance(node, np.ndarray))
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise CheckpointError(f"{path}: {name} is an array of objects, not of numbers")
    return WeightFile({k: _in_memory(v) for k, v in arrays.items()}, kind="jittor")


def _in_memory(array: np.ndarray) -> LazyTensor:
    return LazyTensor(array.shape, str(array.dtype), lambda: array)


def _tensor(storage: np.ndarray, offset: int, shape: Any, strides: Any, *_: Any) -> np.ndarray:
    return np.array(strided(storage, offset, tuple(shape), tuple(strides), "of a storage"), order="C")


def _old_torch_storage(data: bytes, place: str) -> np.ndarray:
    """The single storage of `torch.save(storage, _use_new_zipfile_serialization=False)`: four pickles, keys, raw values."""
    stream = io.BytesIO(data)
    claims: list[tuple] = []

    def storage(pid: tuple) -> str:
        claims.append(pid)
        return str(pid[2])

    def next_pickle() -> Any:
        return load_pickle(RestrictedUnpickler(stream, place, _tensor, storage), place)

    for _ in range(4):  # magic number, protocol, system, the storage itself
        next_pickle()
    next_pickle()  # keys
    if len(claims) != 1 or not isinstance(claims[0][1], str):
        raise CheckpointError(f"{place} holds a nested file that is not one storage")
    dtype, count = claims[0][1], int.from_bytes(stream.read(8), "little")
    raw = stream.read(count * itemsize(dtype))
    if len(raw) != count * itemsize(dtype):
        raise CheckpointError(f"{place} is truncated inside a storage of {count} {dtype}")
    return decode(np.frombuffer(raw, np.uint8), dtype)


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes what `jt.load` of any Jittor reads: a dict of NumPy arrays, protocol 4, SHA-1, trailer."""
    body = pickle.dumps({k: np.array(v, order="C") for k, v in arrays.items()}, 4)
    with replacing(path) as temporary, open(temporary, "wb") as f:
        f.write(body)
        f.write(hashlib.sha1(body).digest())
        f.write(_TRAILER)
