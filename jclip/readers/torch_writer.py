"""Write torch's zip checkpoints without torch: a pickle of names and references, and one stored entry per tensor."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

from jclip.readers.tensors import LazyTensor, encode

STORAGES = {
    "float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage",
    "int64": "LongStorage", "int32": "IntStorage",
}  # fmt: skip
_ROOT = "archive"
_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
_REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def write(path: str | os.PathLike, tensors: Mapping[str, LazyTensor], dtypes: Mapping[str, str]) -> None:
    """Write a state dict that `torch.load(path, weights_only=True)` reads; one tensor is in memory at a time."""
    with zipfile.ZipFile(Path(path), "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{_ROOT}/data.pkl", _pickled(tensors, dtypes))
        archive.writestr(f"{_ROOT}/byteorder", "little")
        for i, (name, tensor) in enumerate(tensors.items()):
            with archive.open(zipfile.ZipInfo(f"{_ROOT}/data/{i}"), "w", force_zip64=True) as entry:
                entry.write(memoryview(encode(tensor.read(), dtypes[name]).reshape(-1)).cast("B"))
        archive.writestr(f"{_ROOT}/version", "3\n")


def write_plain_values(path: str | os.PathLike, values: list) -> None:
    """Write lists, tuples, dicts, texts and numbers as `torch.save` does; equal values make equal files."""
    with zipfile.ZipFile(Path(path), "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("data.pkl", pickle.dumps(values, 2)), ("byteorder", b"little"), ("version", b"3\n")):
            with archive.open(zipfile.ZipInfo(f"{_ROOT}/{name}"), "w", force_zip64=True) as entry:
                entry.write(data)


def _pickled(tensors: Mapping[str, LazyTensor], dtypes: Mapping[str, str]) -> bytes:
    items = (_text(name) + _tensor(i, t.shape, dtypes[name]) for i, (name, t) in enumerate(tensors.items()))
    return b"\x80\x02}(" + b"".join(items) + b"u."


def _tensor(key: int, shape: tuple[int, ...], dtype: str) -> bytes:
    """Return `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)` in opcodes of protocol 2."""
    strides, count = [], 1
    for size in reversed(shape):
        strides.insert(0, count)
        count *= size
    kind = f"ctorch\n{STORAGES[dtype]}\n".encode()
    storage = _tuple(_text("storage"), kind, _text(str(key)), _text("cpu"), _integer(count)) + b"Q"
    shapes = (_tuple(*map(_integer, sizes)) for sizes in (shape, strides))
    return _REBUILD + _tuple(storage, _integer(0), *shapes, b"\x89", _ORDERED_DICT) + b"R"


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def _integer(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"
