"""Sources of bytes: one open handle per file, and parts of it that are read on demand."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from jclip.errors import CheckpointError, printable
from jclip.paths import open_regular

CHUNK = 1 << 20  # bytes read at a time where values are not kept


class Source(Protocol):
    """Bytes with random access. `size` is their number."""

    size: int

    def read(self, offset: int, size: int) -> np.ndarray:
        """Return `size` bytes from `offset` as uint8. Raises `CheckpointError` where there are fewer."""
        ...


class HeldFile:
    """A regular file, opened once. Reads return what was there at opening, or raise.

    Bytes are copied, not mapped: truncating a mapped file would kill the process.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._name = self.path.absolute()
        try:
            with open_regular(path) as file:
                self._descriptor = os.dup(file.fileno())
        except (OSError, ValueError) as e:
            reason = e.strerror if isinstance(e, OSError) else e
            raise CheckpointError(f"can't read {shown(path)}: {reason}") from e
        weakref.finalize(self, os.close, self._descriptor)
        found = os.fstat(self._descriptor)
        self.size, self._facts, self._place = found.st_size, _facts(found), (found.st_dev, found.st_ino)

    def read(self, offset: int, size: int) -> np.ndarray:
        """Return `size` bytes from `offset` as a new uint8 array.

        Raises `CheckpointError` where the file is shorter, or has changed since it was opened.
        """
        if offset < 0 or size < 0 or offset + size > self.size:
            raise CheckpointError(f"{self.path} is truncated: it has {self.size} bytes, {offset + size} are needed")
        try:
            buffer = np.empty(size, np.uint8)
            self._fill(memoryview(buffer), offset)
        except MemoryError as e:
            raise CheckpointError(f"{self.path}: a tensor of {size} bytes does not fit into the memory") from e
        except OSError as e:
            raise CheckpointError(f"can't read {self.path}: {e.strerror}") from e
        self.check_unchanged()
        return buffer

    def _fill(self, view: memoryview, offset: int) -> None:
        done = 0
        while done < len(view) and (count := os.preadv(self._descriptor, [view[done:]], offset + done)):
            done += count

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` where the file was written to, truncated, removed or replaced since it was opened."""
        try:
            there = self._name.stat()
        except OSError:
            there = None
        replaced = there is None or (there.st_dev, there.st_ino) != self._place
        if replaced or _facts(os.fstat(self._descriptor)) != self._facts:
            raise CheckpointError(f"{self.path} was changed while it was read: read it again once it is complete")


def _facts(found: os.stat_result) -> tuple[int, ...]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


class InMemory:
    """Bytes that are in memory."""

    def __init__(self, data: bytes):
        self.size, self._values = len(data), np.frombuffer(data, np.uint8)

    def read(self, offset: int, size: int) -> np.ndarray:
        """Return a view of `size` bytes from `offset`."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise CheckpointError(f"{offset + size} bytes are needed where there are {self.size}")
        return self._values[offset : offset + size]


@dataclass(frozen=True)
class Part:
    """`size` bytes of a source from `offset` on, as a source."""

    source: Source
    offset: int
    size: int

    def read(self, offset: int = 0, size: int | None = None) -> np.ndarray:
        """Return `size` bytes, or all that follow, from `offset` within the part."""
        size = self.size - offset if size is None else size
        if offset < 0 or size < 0 or offset + size > self.size:
            raise CheckpointError(f"{offset + size} bytes are needed where there are {self.size}")
        return self.source.read(self.offset + offset, size)


def shown(value: object, most: int = 120) -> str:
    """Return a name from a file for a message: one line, printable, cut to `most` characters."""
    return printable(str(value), most)
