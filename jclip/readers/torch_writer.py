"""Write torch's zip checkpoints without torch: a pickle of names and references, and one stored entry per tensor."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jclip.readers.tensors import LazyTensor, encode

STORAGES = {
    "float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage",
    "int64": "LongStorage", "int32": "IntStorage", "int16": "ShortStorage", "int8": "CharStorage", "uint8": "ByteStorage",
    "bool": "BoolStorage",
}  # fmt: skip
_ROOT = "archive"
_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
_REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def write(
    path: str | os.PathLike,
    tensors: Mapping[str, LazyTensor],
    dtypes: Mapping[str, str],
    same: Mapping[str, str] | None = None,
    beside: Mapping[str, Any] | None = None,
    under: str = "model",
) -> None:
    """Write a state dict that `torch.load(path, weights_only=True)` reads; one tensor is in memory at a time.

    same: names that share the numbers of another name. beside: where it is given the file is {`under`: the state dict,
    **beside}, of texts, numbers, lists and dicts.
    """
    own = [name for name in tensors if name not in (same or {})]
    keys = {name: key for key, name in enumerate(own)}
    keys |= {name: keys[other] for name, other in (same or {}).items()}
    items = b"".join(_text(name) + _tensor(keys[name], t.shape, dtypes[name]) for name, t in tensors.items())
    table = b"}(" + items + b"u"
    if beside is not None:
        others = b"".join(_text(name) + pickle.dumps(value, 2)[2:-1] for name, value in beside.items())
        table = b"}(" + _text(under) + table + others + b"u"
    with zipfile.ZipFile(Path(path), "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{_ROOT}/data.pkl", b"\x80\x02" + table + b".")
        archive.writestr(f"{_ROOT}/byteorder", "little")
        for name in own:
            with archive.open(zipfile.ZipInfo(f"{_ROOT}/data/{keys[name]}"), "w", force_zip64=True) as entry:
                entry.write(memoryview(encode(tensors[name].read(), dtypes[name]).reshape(-1)).cast("B"))
        archive.writestr(f"{_ROOT}/version", "3\n")


def write_plain_values(path: str | os.PathLike, values: list) -> None:
    """Write lists, tuples, dicts, texts and numbers as `torch.save` does; equal values make equal files."""
    with zipfile.ZipFile(Path(path), "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("data.pkl", pickle.dumps(values, 2)), ("byteorder", b"little"), ("version", b"3\n")):
            with archive.open(zipfile.ZipInfo(f"{_ROOT}/{name}"), "w", force_zip64=True) as entry:
                entry.write(data)


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
