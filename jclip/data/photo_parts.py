"""Whether a photo's file is made of so many parts that a decoder would take minutes before it refuses it.

Pillow walks segments, chunks and blocks one by one, and joins some of them each time again; libjpeg passes over the whole
photo once per scan. The limits are far above what cameras and programs write.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from jclip.errors import DataError

MOST_SEGMENTS = 512  # of a JPEG before its pixels: profiles have up to 255
MOST_HEADER = 2**24  # bytes of a JPEG before its pixels
MOST_SCANS = 100  # of a progressive JPEG: programs write about 10
MOST_CHUNKS = 2**16  # of a PNG
MOST_BLOCKS = 2**12  # of a GIF before its first frame, of 255 bytes
MOST_MARKERS = 2**10  # of a JPEG 2000 codestream's header, and boxes around it
MOST_TAGS = 2**27  # bytes of a TIFF beside its pixels

_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd9-\xfe]")  # neither an escaped FF, nor a restart, nor padding
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_FRAMES = (0xC0, 0xC1, 0xC3, 0xC5, 0xC7, 0xC9, 0xCB, 0xCD, 0xCF, *_PROGRESSIVE)


def check_parts(read: Callable[[], bytes], start: bytes) -> None:
    """Raises `DataError` for the file that begins with `start` and is all of `read()` where it has too many parts."""
    for marks, check in _CHECKS.items():
        if start.startswith(marks):
            check(read())


def _limit(count: int, most: int, what: str) -> None:
    if count > most:
        raise DataError(f"a photo's file must have at most {most:,} {what}")


def _jpeg(data: bytes) -> None:
    segments, scans, at, components = 0, 0, 2, 0
    while (found := _JPEG_MARKER.search(data, at)) and (marker := data[found.start() + 1]) != 0xD9:
        place = found.start()
        if marker in _FRAMES:
            components = 255 if marker in _PROGRESSIVE else int.from_bytes(data[place + 9 : place + 10], "big")
        if marker == 0xDA:
            scans += 1
            _limit(scans, MOST_SCANS, "scans")
            if scans == 1 and data[place + 4 : place + 5] >= bytes([components]):
                return  # all components at once: libjpeg makes one pass
        elif not scans:
            segments += 1
            _limit(segments, MOST_SEGMENTS, "segments before its pixels")
        at = place + 2 + max(2, int.from_bytes(data[place + 2 : place + 4], "big"))
        if not scans:
            _limit(min(at, len(data)), MOST_HEADER, "bytes before its pixels")
    if not scans:
        _limit(len(data), MOST_HEADER, "bytes before its pixels")


def _png(data: bytes) -> None:
    chunks, at = 0, 8
    while at < len(data):
        chunks += 1
        _limit(chunks, MOST_CHUNKS, "chunks")
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def _gif(data: bytes) -> None:
    blocks = 0
    at = 13 + (3 * 2 ** ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 128 else 0)
    while at < len(data) and data[at] not in (0x2C, 0x3B):  # the first frame, or the end
        blocks += 1
        _limit(blocks, MOST_BLOCKS, "blocks before its first frame")
        if data[at] != 0x21:
            at += 1
            continue
        at += 2  # an extension of blocks, of which an empty one is the last
        while at < len(data) and (length := data[at]):
            blocks += 1
            _limit(blocks, MOST_BLOCKS, "blocks before its first frame")
            at += 1 + length
        at += 1


def _jpeg_2000(data: bytes) -> None:
    boxes, at = 0, 0
    while data[:4] != b"\xff\x4f\xff\x51" and at < len(data):
        boxes += 1
        _limit(boxes, MOST_MARKERS, "boxes")
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"jp2h":
            _limit(length, 16 * MOST_MARKERS, "bytes of a header")
        if kind == b"jp2c":
            break
        at += max(8, length)
    markers, at = 0, max(0, data.find(b"\xff\x4f\xff\x51")) + 2
    while at < len(data) and data[at + 1 : at + 2] not in (b"\x90", b"\xd9"):
        markers += 1
        _limit(markers, MOST_MARKERS, "markers before its pixels")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # bytes of TIFF's types


def check_tags(read_at: Callable[[int, int], bytes], start: bytes) -> None:
    """Raises `DataError` for a TIFF whose first directory names more than `MOST_TAGS` bytes beside the pixels.

    read_at: (offset, length) → bytes.
    """
    order = "<" if start[:2] == b"II" else ">"
    place = struct.unpack(f"{order}I", start[4:8])[0]
    count = int.from_bytes(read_at(place, 2), "little" if order == "<" else "big")
    table = read_at(place + 2, 12 * count)
    entries = struct.iter_unpack(f"{order}HHII", table[: len(table) // 12 * 12])
    _limit(sum(_SIZES.get(kind, 0) * n for _, kind, n, _ in entries), MOST_TAGS, "bytes beside its pixels")


_CHECKS = {
    (b"\xff\xd8",): _jpeg,
    (b"\x89PNG",): _png,
    (b"GIF8",): _gif,
    (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP"): _jpeg_2000,
}
