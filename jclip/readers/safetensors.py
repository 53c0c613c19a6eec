"""safetensors in and out: 8 bytes of header length, a JSON header, raw little-endian data."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from jclip.errors import CheckpointError
from jclip.paths import open_regular, replacing
from jclip.readers.tensors import LazyTensor, WeightFile, decode, encode, itemsize

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_LARGEST_HEADER = 100 * 2**20
SEAL = "jclip_seal"  # metadata: SHA-256 of header and data, computed with `_UNSEALED` in its place
_UNSEALED = "0" * 64


class DamagedFile(CheckpointError):
    """A file of our own whose bytes changed after they were written."""


def read(path: Path) -> WeightFile:
    """Header checked in full, data memory-mapped. Raises `CheckpointError` for any contradiction."""
    size = path.stat().st_size
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if length > min(_LARGEST_HEADER, size - 8):
            raise CheckpointError(f"{path} is damaged: its header claims {length} bytes of a file of {size}")
        header = _parse(f.read(length), path)
    metadata = {k: v for k, v in (header.pop("__metadata__", {}) or {}).items() if k != SEAL}
    start = 8 + length
    _check_layout(header, size - start, path)
    tensors = {name: _tensor(path, start, entry) for name, entry in header.items()}
    return WeightFile(tensors, {str(k): str(v) for k, v in metadata.items()}, "safetensors")


def _parse(text: bytes, path: Path) -> dict:
    try:
        header = json.loads(text)
    except ValueError as e:
        raise CheckpointError(f"{path} is damaged: its header is not JSON ({e})") from e
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is damaged: its header is not a table of tensors")
    return header


def _check_layout(header: dict, room: int, path: Path) -> None:
    """Each entry well-formed, inside the file, as large as its shape says, and none overlapping another."""
    spans = []
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            sizes = [begin, end, *shape]
            whole = all(type(n) is int and n >= 0 for n in sizes)
        except (KeyError, TypeError, ValueError) as e:
            raise CheckpointError(f"{path}: the entry of {name} is not one that jclip reads: {entry!r:.120}") from e
        count = 1
        for n in shape:
            count *= n
        if not whole or end > room or end - begin != count * itemsize(dtype):
            raise CheckpointError(
                f"{path} is damaged: {name} {shape} {dtype} does not fit bytes {begin} to {end} of {room}"
            )
        spans.append((begin, end, name))
    spans.sort()
    for (_, end, first), (begin, _, second) in pairwise(spans):
        if begin < end:
            raise CheckpointError(f"{path} is damaged: {first} and {second} overlap")


def _tensor(path: Path, start: int, entry: dict) -> LazyTensor:
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]

    def values() -> np.ndarray:
        if begin == end:
            return np.zeros(shape, "float32" if dtype == "bfloat16" else dtype)
        raw = np.memmap(path, np.uint8, "r", start + begin, end - begin)
        return decode(raw, dtype).reshape(shape)

    return LazyTensor(shape, dtype, values)


def write_tensors(
    path: str | os.PathLike, tensors: Mapping[str, LazyTensor], dtypes: Mapping[str, str], metadata: Mapping[str, str]
) -> None:
    """Writes `tensors` one after the other, each as `dtypes` says (float32, float16, bfloat16), never all in memory."""
    codes = {v: k for k, v in DTYPES.items()}
    header: dict = {"__metadata__": dict(metadata)}
    at = 0
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape) * itemsize(dtypes[name])
        header[name] = {"dtype": codes[dtypes[name]], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, open(temporary, "wb") as f:
        f.write(len(text).to_bytes(8, "little"))
        f.write(text)
        for name, tensor in tensors.items():
            f.write(encode(tensor.read(), dtypes[name]).tobytes())


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes `arrays` in their order, to a temporary name first, sealed: `read_sealed` notices any byte that changes later.

    A (uint16 array, "bfloat16") pair writes bfloat16 bits.
    """
    codes = {v: k for k, v in DTYPES.items()}
    said = {k: v for k, v in (metadata or {}).items() if k != SEAL}
    header: dict = {
        "__metadata__": {SEAL: _UNSEALED, **said}
    }  # the seal first, so that the first such digits are its own
    at, blocks = 0, []
    for name, value in arrays.items():
        array, dtype = value if isinstance(value, tuple) else (np.asarray(value), str(np.asarray(value).dtype))
        header[name] = {"dtype": codes[dtype], "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
        blocks.append(array)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = [np.ascontiguousarray(array).data if array.ndim else array.tobytes() for array in blocks]
    seal = hashlib.sha256(text)
    for block in data:
        seal.update(block)
    text = text.replace(_UNSEALED.encode(), seal.hexdigest().encode(), 1)
    with replacing(path) as temporary, open(temporary, "wb") as f:
        f.write(len(text).to_bytes(8, "little"))
        f.write(text)
        f.writelines(data)


def read_sealed(path: Path) -> WeightFile:
    """A file that `write` wrote, read whole and compared with its seal.

    Raises `DamagedFile`, a `CheckpointError`, where a byte of header or data is another than was written.
    """
    with open_regular(path) as f:
        length = int.from_bytes(f.read(8), "little")
        text = f.read(min(length, _LARGEST_HEADER))
        found = re.search(rb'"' + SEAL.encode() + rb'":"([0-9a-f]{64})"', text)
        if found is None:
            raise DamagedFile(f"{path} is damaged: it has no seal")
        seal = hashlib.sha256(text[: found.start(1)] + _UNSEALED.encode() + text[found.end(1) :])
        while block := f.read(1 << 20):
            seal.update(block)
    if seal.hexdigest().encode() != found[1]:
        raise DamagedFile(f"{path} is damaged: its bytes are not those that were written")
    return read(path)
