"""NumPy's `.npy` and `.npz`, read without NumPy's reader: no pickle, bounded headers, exact sizes; `.npz` written."""

from __future__ import annotations

import io
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import IO, NoReturn

import numpy as np

from jclip.errors import CheckpointError
from jclip.readers.held_file import HeldFile, Source, shown
from jclip.readers.tensors import LazyTensor, decode, sizes
from jclip.readers.zip_archive import MAGIC, Archive, Checked, Entry

_NPY = b"\x93NUMPY"
_LONGEST_HEADER = 10_000  # bytes, NumPy's own limit
_BYTES_AT_ONCE = 1 << 24
_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
_TEXT = re.compile(r"[US][1-9]\d{0,5}")
_LAST_CHARACTER = 0x10FFFF


def read_npz(path: str | os.PathLike) -> dict[str, LazyTensor]:
    """Return arrays by name, read on demand. Raises `CheckpointError` for anything but an `.npz` of numbers and text."""
    file = HeldFile(path)
    if file.read(0, min(4, file.size)).tobytes() != MAGIC:
        raise CheckpointError(f"{path} is not an .npz archive")
    entries = Archive(file).entries
    return {name.removesuffix(".npy"): _array(entry, f"{path}, {shown(name)}") for name, entry in entries.items()}


@dataclass(frozen=True)
class RowsInParts:
    """An array that is written part after part, so that it is never whole in memory.

    parts: gives arrays (n, …) whose rows together are `shape[0]`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Callable[[], Iterable[np.ndarray]]


def npz_bytes(arrays: Mapping[str, np.ndarray | RowsInParts]) -> bytes:
    """Return the arrays as an `.npz`, compressed. Equal arrays give equal bytes: no times are in it."""
    packed = io.BytesIO()
    write_npz(packed, arrays)
    return packed.getvalue()


def write_npz(file: str | os.PathLike | io.BytesIO, arrays: Mapping[str, np.ndarray | RowsInParts]) -> None:
    """Write the arrays as `npz_bytes` gives them. Raises `ValueError` for parts whose rows are not as many as said."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            if not isinstance(array, RowsInParts):
                whole = np.ascontiguousarray(array)
                array = RowsInParts(whole.shape, whole.dtype, lambda whole=whole: [whole])
            entry.file_size = math.prod(array.shape) * array.dtype.itemsize + _LONGEST_HEADER
            with archive.open(entry, "w") as stream:
                _write_rows(stream, name, array)


def _write_rows(stream: IO[bytes], name: str, array: RowsInParts) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": array.shape,
    }
    np.lib.format.write_array_header_1_0(stream, header)
    rows = 0
    for part in array.parts():
        if part.shape[1:] != array.shape[1:] or part.dtype != array.dtype:
            raise ValueError(
                f"{name}: parts must be {array.dtype} (n, {array.shape[1:]}), got {part.dtype} {part.shape}"
            )
        data, rows = np.ascontiguousarray(part).tobytes(), rows + len(part)
        for start in range(0, len(data), _BYTES_AT_ONCE):
            stream.write(data[start : start + _BYTES_AT_ONCE])
    if rows != array.shape[0]:
        raise ValueError(f"{name}: parts must have {array.shape[0]} rows together, got {rows}")


def read_npy(path: str | os.PathLike) -> LazyTensor:
    """Return one array, read on demand. Raises `CheckpointError` for anything but an `.npy` of numbers or text."""
    file = HeldFile(path)
    if file.read(0, min(4, file.size)).tobytes() == MAGIC:
        raise CheckpointError(f"{path} must be an .npy with one array, got several")
    return _array(file, str(path))


def _array(data: Source, place: str) -> LazyTensor:
    header, start = _header(data, place)
    code, fortran, shape = _fields(header, place)
    dtype = np.dtype(code)
    wanted = math.prod(shape) * dtype.itemsize
    if data.size - start != wanted:
        _refuse(place, f"an array {shape} of {dtype} takes {wanted} bytes, {data.size - start} follow its header")

    def values() -> np.ndarray:
        whole = Checked(data) if isinstance(data, Entry) else data
        array = decode(whole.read(start, wanted), str(dtype)) if wanted else np.zeros(0, dtype)
        if dtype.kind == "U" and wanted and array.view(f"{dtype.byteorder}u4").max() > _LAST_CHARACTER:
            _refuse(place, "its text is not valid Unicode")
        return array.reshape(shape, order="F" if fortran else "C")

    return LazyTensor(shape, str(dtype), values)


def _header(data: Source, place: str) -> tuple[str, int]:
    """Return the header's text and the offset of the values."""
    head = data.read(0, min(12, data.size)).tobytes()
    if head[:6] != _NPY or len(head) < 12 or head[6] not in (1, 2, 3):
        _refuse(place, "it is not an .npy")
    width = 2 if head[6] == 1 else 4
    length, start = int.from_bytes(head[8 : 8 + width], "little"), 8 + width
    if length > min(_LONGEST_HEADER, data.size - start):
        _refuse(place, f"its header claims {length} bytes")
    return data.read(start, length).tobytes().decode("latin-1"), start + length


def _fields(header: str, place: str) -> tuple[str, bool, tuple[int, ...]]:
    """Return dtype code, Fortran order and shape from a header in the form that NumPy writes."""
    descr = re.findall(r"'descr'\s*:\s*'([<>|=]?)(\w{1,8})'\s*[,}]", header)
    order = re.findall(r"'fortran_order'\s*:\s*(True|False)\s*[,}]", header)
    shape = re.findall(r"'shape'\s*:\s*\(([\d\s,L]{0,700})\)\s*[,}]", header)
    if "'O'" in header or "|O" in header:
        _refuse(place, "its values are Python objects, which are not read (they would be a pickle)")
    if not len(descr) == len(order) == len(shape) == 1:
        _refuse(place, "its header does not describe a plain array")
    byteorder, code = descr[0]
    if code not in _NUMBERS and not _TEXT.fullmatch(code):
        _refuse(place, f"values of kind {code} are not read")
    numbers = [n.strip().removesuffix("L") for n in shape[0].split(",") if n.strip()]
    if not all(n.isdigit() and len(n) < 20 for n in numbers):
        _refuse(place, "its shape is invalid")
    return byteorder + code, order[0] == "True", sizes([int(n) for n in numbers], place)


def _refuse(place: str, what: str) -> NoReturn:
    raise CheckpointError(f"{place} is damaged or not an array ({what})")
