"""Tokens of photos in one growing file of the cache, each computed once by whoever needs it first. No Jittor.

Beside the numbers stands an index: of each record its key and a check sum. A record counts when its line of the index is
whole, so that what a killed process left half-written is written again; processes that write take turns.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from jclip.errors import notice
from jclip.paths import naming

KEY = 32  # bytes
_LINE = KEY + 4  # the key, and the CRC-32 of the numbers


class TokenStore:
    """Records of `length` numbers each, by keys of 32 bytes. path: of the numbers; the index has `.index` behind."""

    def __init__(self, path: Path, length: int, dtype: str):
        self._path, self._index = path, path.with_name(f"{path.name}.index")
        self._dtype, self._bytes = np.dtype(dtype), length * np.dtype(dtype).itemsize
        self._places: dict[bytes, tuple[int, int]] = {}  # by key: the record's number, its check sum
        self._read, self._good, self._damaged = 0, set[int](), False
        self._look()

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Places in `keys` of those that no record has yet."""
        self._look()
        return [place for place, key in enumerate(keys) if key not in self._places]

    def add(self, keys: Sequence[bytes], records: np.ndarray) -> None:
        """Appends a row of `records` (n, length) for each key; one that has a record gets another, which counts."""
        with self._writing() as (numbers, index):
            start = self._read
            data = np.ascontiguousarray(records, self._dtype)
            os.ftruncate(index, start * _LINE)  # a line that was cut off
            _write(numbers, data.tobytes(), start * self._bytes)
            lines = b"".join(
                key + zlib.crc32(row.tobytes()).to_bytes(4, "little") for key, row in zip(keys, data, strict=True)
            )
            _write(index, lines, start * _LINE)
        self._look()

    def read(self, keys: Sequence[bytes]) -> list[np.ndarray | None]:
        """The record (length,) of each key; None where there is none, or it is damaged, which is reported."""
        if not self._path.is_file():
            return [None] * len(keys)
        with open(self._path, "rb") as file:
            return [self._record(file.fileno(), key) for key in keys]

    def room(self, count: int) -> bool:
        """Whether so many further records fit on the disk, and a twentieth more."""
        return shutil.disk_usage(self._path.parent).free > 1.05 * count * self._bytes

    def _record(self, file: int, key: bytes) -> np.ndarray | None:
        if key not in self._places:
            return None
        number, wanted = self._places[key]
        data = os.pread(file, self._bytes, number * self._bytes)
        if number not in self._good:
            if len(data) < self._bytes or zlib.crc32(data) != wanted:
                del self._places[key]
                if not self._damaged:
                    notice(f"{self._path} is damaged in record {number}: such records are computed again")
                self._damaged = True
                return None
            self._good.add(number)
        return np.frombuffer(data, self._dtype)

    def _look(self) -> None:
        """Takes up the lines of the index that are new."""
        if not self._index.is_file():
            return
        with open(self._index, "rb") as file:
            file.seek(self._read * _LINE)
            lines = file.read()
        for at in range(0, len(lines) - _LINE + 1, _LINE):
            key, check = lines[at : at + KEY], lines[at + KEY : at + _LINE]
            self._places[key] = self._read, int.from_bytes(check, "little")
            self._read += 1

    @contextmanager
    def _writing(self) -> Iterator[tuple[int, int]]:
        """Both files, while no other process writes; the index as it is then."""
        with naming(self._path), open(self._path, "ab"), open(self._index, "ab"):
            pass  # they are there
        with naming(self._path), open(self._path, "r+b") as numbers, open(self._index, "r+b") as index:
            fcntl.flock(index, fcntl.LOCK_EX)
            self._look()
            yield numbers.fileno(), index.fileno()


def _write(file: int, data: bytes, at: int) -> None:
    while data:
        done = os.pwrite(file, data, at)
        data, at = data[done:], at + done
