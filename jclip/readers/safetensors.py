"""Read and write safetensors: 8 bytes of header length, a JSON header, raw little-endian data."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jclip.errors import CheckpointError
from jclip.paths import replacing
from jclip.readers.held_file import CHUNK, HeldFile, Part, shown
from jclip.readers.tensors import LazyTensor, WeightFile, check_name, decode, encode, itemsize, sizes

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
_LARGEST_HEADER = 16 << 20  # bytes; a hundred thousand tensors take less
_MARKS, _MOST_MARKS = (b",", b"[", b"{"), 1 << 20  # each costs every parser memory, many times its byte
_SMALL_HEADER = 1 << 20  # up to this size Python's JSON parses what the library refused, for a better message
SEAL = "jclip_seal"  # metadata: SHA-256 of header and data, computed with `_UNSEALED` in its place
_UNSEALED = "0" * 64


class DamagedFile(CheckpointError):
    """A file written by jclip whose bytes have changed since."""


def read(file: HeldFile) -> WeightFile:
    """Return a file's tensors, read on demand; the header is checked in full. Raises `CheckpointError` for any
    contradiction."""
    path, size = file.path, file.size
    length = int.from_bytes(file.read(0, 8).tobytes(), "little") if size >= 8 else size
    if length > min(_LARGEST_HEADER, size - 8):
        raise CheckpointError(f"{path} is damaged: its header claims {length} bytes of a file of {size}")
    text = file.read(8, length).tobytes()
    if sum(map(text.count, _MARKS)) > _MOST_MARKS:
        raise CheckpointError(f"{path} is damaged: its header lists more than {_MOST_MARKS:,} things")
    complaint = _complaint_of_library(text, size)
    if complaint and length > _SMALL_HEADER:
        raise CheckpointError(f"{path} is damaged: {complaint}")
    header = _parse(text, path)  # our own message, where there is one, for what the library refuses
    metadata = _metadata(header.pop("__metadata__", None), path)
    start = 8 + length
    _check_layout(header, size - start, path)
    if complaint:
        raise CheckpointError(f"{path} is damaged: {complaint}")
    tensors = {name: _tensor(Part(file, start, size - start), entry) for name, entry in header.items()}
    return WeightFile(tensors, {k: v for k, v in metadata.items() if k != SEAL}, "safetensors")


def _complaint_of_library(text: bytes, size: int) -> str | None:
    """Return the error of the format's own library for a header, or None when it is valid.

    The library gets the bytes that we use, followed by as many zeros as there are data, sparse: under its name, the
    file might have changed. Skipped where the system allows no file of that size (`ulimit -f`), or not to map it
    (`ulimit -v`): our own check is complete.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with _sparse(len(text).to_bytes(8, "little") + text, size) as name, safe_open(name, "numpy"):
            pass
    except SafetensorError as e:
        return shown(e, 300)
    except (OSError, MemoryError):
        return None
    return None


@contextmanager
def _sparse(head: bytes, size: int) -> Iterator[str]:
    """Yield the name of a file of `size` bytes that begins with `head`: in memory where supported, else temporary."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("header", os.MFD_CLOEXEC)
        name = f"/proc/self/fd/{descriptor}"
    else:
        descriptor, name = tempfile.mkstemp(suffix=".safetensors")
    try:
        with open(descriptor, "wb") as file:
            file.write(head)
            file.truncate(size)
            file.flush()
            yield name
    finally:
        if not hasattr(os, "memfd_create"):
            os.unlink(name)  # noqa: PTH108


def _parse(text: bytes, path: Path) -> dict:
    """Return the header. Raises `CheckpointError` where it is not a table, or a name appears twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, count in Counter(k for k, _ in pairs).items() if count > 1)
            raise CheckpointError(f"{path} is damaged: its header says '{shown(twice)}' twice")
        return found

    try:
        header = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} is damaged: its header is not JSON ({shown(e)})") from e
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is damaged: its header is not a table of tensors")
    return header


def _metadata(found: Any, path: Path) -> dict[str, str]:
    if found is not None and not (isinstance(found, dict) and all(isinstance(v, str) for v in found.values())):
        raise CheckpointError(f"{path} is damaged: its metadata must be a table of texts")
    return found or {}


def _check_layout(header: dict, room: int, path: Path) -> None:
    """Check that each entry is well-formed and of the size of its shape, and that the entries fill the file without
    gaps."""
    spans = []
    for name, entry in header.items():
        check_name(name, str(path))
        try:
            dtype, shape, (begin, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as e:
            raise CheckpointError(f"{path}: the entry of {name} is not one that jclip reads: {entry!r:.120}") from e
        count = math.prod(sizes(shape, f"{path}, {name}"))
        whole = type(begin) is int and type(end) is int and 0 <= begin <= end <= room
        if not whole or end - begin != count * itemsize(dtype):
            raise CheckpointError(
                f"{path} is damaged: {name} {shape} {dtype} does not fit bytes {shown(begin)} to {shown(end)} of {room}"
            )
        spans.append((begin, end, name))
    at, before = 0, "the header"
    for begin, end, name in sorted(spans):
        if begin != at:
            raise CheckpointError(
                f"{path} is damaged: {before} and {name} {'overlap' if begin < at else 'leave a gap between them'}"
            )
        at, before = end, name
    if at != room:
        raise CheckpointError(f"{path} is damaged: {room - at} bytes after {before} belong to no tensor")


def _tensor(data: Part, entry: dict) -> LazyTensor:
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    return LazyTensor(shape, dtype, lambda: decode(data.read(begin, end - begin), dtype).reshape(shape))


def write_tensors(
    path: str | os.PathLike, tensors: Mapping[str, LazyTensor], dtypes: Mapping[str, str], metadata: Mapping[str, str]
) -> None:
    """Write `tensors` one by one, each as `dtypes` says (float32, float16, bfloat16), never all in memory."""
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


def write(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray | LazyTensor | tuple[np.ndarray, str]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `arrays` in their order, to a temporary name first, with a checksum that `read_sealed` verifies.

    A (uint16 array, "bfloat16") pair writes bfloat16 bits. What is a `LazyTensor` is read when its turn comes, once.
    """
    codes = {v: k for k, v in DTYPES.items()}
    said = {k: v for k, v in (metadata or {}).items() if k != SEAL}
    header: dict = {
        "__metadata__": {SEAL: _UNSEALED, **said}
    }  # the seal first, so that the first such digits are its own
    at, tensors = 0, [_lazy(value) for value in arrays.values()]
    for name, tensor in zip(arrays, tensors, strict=True):
        size = math.prod(tensor.shape) * itemsize(tensor.dtype)
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    seal = hashlib.sha256(text)
    with replacing(path) as temporary, open(temporary, "wb") as f:
        f.write(len(text).to_bytes(8, "little"))
        f.write(text)
        for tensor in tensors:
            array = tensor.read()
            if array.nbytes != math.prod(tensor.shape) * itemsize(tensor.dtype):
                raise ValueError(
                    f"an array of {tensor.dtype} and shape {tensor.shape} must have its bytes, got {array.nbytes}"
                )
            block = np.ascontiguousarray(array).data if array.ndim else array.tobytes()
            seal.update(block)
            f.write(block)
        f.seek(8 + text.index(_UNSEALED.encode()))
        f.write(seal.hexdigest().encode())


def _lazy(value: np.ndarray | LazyTensor | tuple[np.ndarray, str]) -> LazyTensor:
    """What `write` is given, as it writes it."""
    if isinstance(value, LazyTensor):
        return value
    array, dtype = value if isinstance(value, tuple) else (np.asarray(value), str(np.asarray(value).dtype))
    return LazyTensor(array.shape, dtype, lambda: array)


def read_sealed(path: Path) -> WeightFile:
    """Read a file written by `write` in full and verify its checksum.

    Raises `DamagedFile`, a `CheckpointError`, where any byte of header or data has changed, and `CheckpointError`
    where there is no such file.
    """
    file = HeldFile(path)
    if file.size < 8:
        raise DamagedFile(f"{path} is damaged: it has no seal")
    length = min(int.from_bytes(file.read(0, 8).tobytes(), "little"), _LARGEST_HEADER, file.size - 8)
    text = file.read(8, length).tobytes()
    found = re.search(rb'"' + SEAL.encode() + rb'":"([0-9a-f]{64})"', text)
    if found is None:
        raise DamagedFile(f"{path} is damaged: it has no seal")
    seal = hashlib.sha256(text[: found.start(1)] + _UNSEALED.encode() + text[found.end(1) :])
    for at in range(8 + length, file.size, CHUNK):
        seal.update(file.read(at, min(CHUNK, file.size - at)))
    if seal.hexdigest().encode() != found[1]:
        raise DamagedFile(f"{path} is damaged: its bytes are not those that were written")
    return read(file)
