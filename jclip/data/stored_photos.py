"""Photos inside of larger files: members of .tar archives, and base64 in tables, by addresses that stand for paths.

An address is text with NUL bytes, which no path has: the file, where the photo lies in it, and the name that people see.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from dataclasses import dataclass
from typing import BinaryIO, Literal

from jclip.errors import DataError
from jclip.paths import open_regular

MOST_BYTES = 2**27  # of one photo
_ADDRESS = re.compile("[^\0]+\0[0-9]+:[0-9]+:(raw|base64)\0")


@dataclass(frozen=True)
class StoredPhoto:
    """`size` bytes of `file` from `offset` on, as they are or as base64. name: what messages and tables call it."""

    file: str
    offset: int
    size: int
    name: str
    kind: Literal["raw", "base64"] = "raw"

    @property
    def address(self) -> str:
        """What stands for it where a path is expected."""
        return f"{self.file}\0{self.offset}:{self.size}:{self.kind}\0{self.name}"

    @staticmethod
    def at(address: str) -> StoredPhoto:
        """The inverse of `address`."""
        file, place, name = address.split("\0", 2)
        offset, size, kind = place.split(":")
        return StoredPhoto(file, int(offset), int(size), name, "base64" if kind == "base64" else "raw")

    def open(self) -> BinaryIO:
        """Its bytes as a file in memory. Raises `DataError` for what is too large, cut off, or no base64."""
        most = MOST_BYTES * (2 if self.kind == "base64" else 1)
        if not (self.offset >= 0 and 0 <= self.size <= most):
            raise DataError(
                f"a stored photo must have at most {most:,} bytes, got {self.size:,} from {self.offset:,} on"
            )
        with open_regular(self.file) as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise DataError(f"{self.file} ends in the middle of the photo")
        return io.BytesIO(data if self.kind == "raw" else decode_base64(data))


def decode_base64(data: bytes) -> bytes:
    """The bytes, of the plain or the URL's alphabet. Raises `DataError` for what is no base64."""
    try:
        return base64.b64decode(data.translate(bytes.maketrans(b"-_", b"+/")) + b"=" * (-len(data) % 4), validate=True)
    except binascii.Error as e:
        raise DataError(f"the photo must be base64: {e}") from None


def is_stored(path: str | os.PathLike) -> bool:
    """Whether that is the address of a photo inside of a file."""
    return isinstance(path, str) and bool(_ADDRESS.match(path))


def open_any_photo(path: str | os.PathLike) -> BinaryIO:
    """A photo's bytes, of a file or of an address. Raises `OSError` as `open_regular` does, and `DataError`."""
    return StoredPhoto.at(path).open() if is_stored(path) else open_regular(path)


def spoken_path(path: str | os.PathLike) -> str:
    """The path, or of an address the file and the name in it, for people."""
    if not is_stored(path):
        return os.fspath(path)
    stored = StoredPhoto.at(path)
    return f"{stored.file}::{stored.name}"


def file_of(path: str | os.PathLike) -> str | os.PathLike:
    """The file in which a photo is: the path itself, or that of an address."""
    return StoredPhoto.at(path).file if is_stored(path) else path
