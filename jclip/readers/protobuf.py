"""Protocol buffers' wire format: a message's fields by number, without its description. Nothing in it is executed."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from jclip.errors import CheckpointError

MOST_FIELDS = 1 << 23  # of one message
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_SHIFT = 63  # of a varint's last group of seven bits


def fields(data: memoryview, place: object) -> Iterator[tuple[int, int | float | memoryview]]:
    """Yield number and value of each field: an integer, a float of 32 or 64 bits, or bytes, which may be a message.

    Raises `CheckpointError` for bytes that no field begins with, or that end within one.
    """
    at, count = 0, 0
    while at < len(data):
        count += 1
        key, at = _varint(data, at, place)
        number, kind = key >> 3, key & 7
        if not number or count > MOST_FIELDS:
            raise _broken(place, at)
        if kind == _VARINT:
            value, at = _varint(data, at, place)
        elif kind == _BYTES:
            length, at = _varint(data, at, place)
            value, at = _part(data, at, length, place), at + length
        elif kind in (_FIXED32, _FIXED64):
            length, form = (4, "<f") if kind == _FIXED32 else (8, "<d")
            (value,), at = struct.unpack(form, _part(data, at, length, place)), at + length
        else:
            raise _broken(place, at)
        yield number, value


def _varint(data: memoryview, at: int, place: object) -> tuple[int, int]:
    """An integer of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while at < len(data) and shift <= _MOST_SHIFT:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise _broken(place, at)


def _part(data: memoryview, at: int, length: int, place: object) -> memoryview:
    if length > len(data) - at:
        raise _broken(place, at)
    return data[at : at + length]


def _broken(place: object, at: int) -> CheckpointError:
    return CheckpointError(f"{place} is damaged: it is no protocol buffer message from byte {at:,} on")
