"""Read zip archives; every entry is checked before use, and nothing unpacks to more than the directory declares.

Used instead of `zipfile`, because both headers of an entry, the ranges of all entries and the size of the directory
are checked before anything is allocated, and because it reads through the handle used for the file's other reads.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn

import numpy as np

from jclip.errors import CheckpointError
from jclip.readers.held_file import CHUNK, HeldFile, shown

MAGIC = b"PK\x03\x04"
_MOST_DIRECTORY = 8 << 20  # bytes; one entry takes about a hundred
_MOST_ENTRIES = 1 << 16
_UNPACKED_FREE = 64 << 20  # bytes that compressed entries may unpack to whatever the file's size ...
_UNPACKED_RATIO = 20  # ... and times the file's size beyond
_END = struct.Struct("<4s4H2IH")
_END64_PLACE = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _SIZES_BEHIND = 1, 8


@dataclass(frozen=True)
class Entry:
    """One file of an archive, as a source: its unpacked size, and its bytes."""

    archive: Archive
    name: str
    method: int
    crc: int
    packed: int
    size: int
    start: int  # of its local header
    offset: int  # of its first byte, after that

    def read(self, offset: int = 0, size: int | None = None) -> np.ndarray:
        """Return `size` bytes, or all that follow, from `offset` as uint8; of a compressed entry from `unpacked`."""
        size = self.size - offset if size is None else size
        if offset < 0 or size < 0 or offset + size > self.size:
            self.archive.refuse(f"{offset + size} bytes of {shown(self.name)} are needed, it has {self.size}")
        if self.method == _STORED:
            return self.archive.file.read(self.offset + offset, size)
        return self.archive.unpacked(self)[offset : offset + size]

    def check(self) -> None:
        """Read all bytes. Raises `CheckpointError` where their checksum differs from the directory's."""
        crc = 0
        for at in range(0, self.size, CHUNK):
            crc = zlib.crc32(self.read(at, min(CHUNK, self.size - at)), crc)
        self.compare(crc)

    def compare(self, crc: int) -> None:
        """Raise `CheckpointError` where the directory's checksum differs from `crc`, that of the bytes.

        Zero in the directory means that none was computed: torch writes it with `set_crc32_options(False)`, and for
        storages that are filled afterwards (`skip_data`, GPUDirect) while other entries have one.
        """
        if self.crc not in (0, crc):
            self.archive.refuse(f"the checksum of {shown(self.name)} does not match")


@dataclass(frozen=True)
class Checked:
    """An entry as a source whose checksum is verified before its first bytes are returned, once per open archive."""

    entry: Entry

    @property
    def size(self) -> int:
        return self.entry.size

    def read(self, offset: int, size: int) -> np.ndarray:
        """Return `size` bytes from `offset` as uint8. Raises `CheckpointError` where the entry is damaged anywhere."""
        entry, checked = self.entry, self.entry.archive.checked
        if entry.method != _STORED or entry.name in checked:  # unpacking verifies each time
            return entry.read(offset, size)
        if offset < 0 or 2 * size < entry.size or offset + size > entry.size:
            entry.check()
            found = entry.read(offset, size)
        else:  # most of it is needed: read the bytes once
            whole = entry.read()
            entry.compare(zlib.crc32(whole))
            found = whole[offset : offset + size]
        checked.add(entry.name)
        return found


class Archive:
    """Entries by name. Raises `CheckpointError` for an archive that contradicts itself or would unpack to too much."""

    def __init__(self, file: HeldFile):
        self.file = file
        self.checked: set[str] = set()  # entries whose checksum was verified
        self._last: tuple[str, np.ndarray] | None = None  # unpacked; views of one storage follow each other
        entries = list(self._directory())
        self.entries = {e.name: e for e in entries}
        if len(self.entries) < len(entries):
            self.refuse("two of its entries have the same name")
        spans = sorted((e.start, e.offset + e.packed, e.name) for e in entries)
        for (_, end, first), (begin, _, second) in pairwise(spans):
            if begin < end:
                self.refuse(f"{shown(first)} and {shown(second)} overlap")
        unpacked = sum(e.size for e in entries if e.method != _STORED)
        if unpacked > _UNPACKED_FREE + _UNPACKED_RATIO * file.size:
            self.refuse(f"{file.size} bytes would unpack to {unpacked}")

    def refuse(self, what: str) -> NoReturn:
        """Raise `CheckpointError` naming the file."""
        raise CheckpointError(f"{self.file.path} is a damaged archive ({what}): fetch or copy it again")

    def unpacked(self, entry: Entry) -> np.ndarray:
        """Return a compressed entry's bytes, exactly as many as declared, with the checksum verified."""
        if self._last and self._last[0] == entry.name:
            return self._last[1]
        self._last = None
        made, done, engine = np.empty(entry.size, np.uint8), 0, zlib.decompressobj(-15)
        try:
            for at in range(0, entry.packed, CHUNK):
                rest = self.file.read(entry.offset + at, min(CHUNK, entry.packed - at)).tobytes()
                while rest:
                    block = engine.decompress(rest, min(CHUNK, entry.size - done + 1))
                    if done + len(block) > entry.size:
                        self.refuse(f"{shown(entry.name)} unpacks to more than the {entry.size} bytes it declares")
                    made[done : done + len(block)] = np.frombuffer(block, np.uint8)
                    done, rest = done + len(block), engine.unconsumed_tail
                    if engine.eof:
                        break
        except zlib.error as e:
            self.refuse(f"{shown(entry.name)}: {e}")
        if done != entry.size or not engine.eof:
            self.refuse(f"{shown(entry.name)} unpacks to {done} bytes of the {entry.size} it declares")
        entry.compare(zlib.crc32(made))
        self._last = (entry.name, made)
        return made

    def _directory(self) -> Iterator[Entry]:
        count, size, offset = self._end()
        if count > _MOST_ENTRIES or size > _MOST_DIRECTORY:
            self.refuse(f"its directory has {count} entries in {size} bytes, at most {_MOST_ENTRIES} are read")
        data, at = self._bytes(offset, size), 0
        for _ in range(count):
            if at + _CENTRAL.size > size:
                self.refuse("its directory ends too early")
            magic, _, _, flags, method, _, _, crc, packed, full, name, extra, comment, *_, local = _CENTRAL.unpack_from(
                data, at
            )
            if magic != b"PK\x01\x02" or at + _CENTRAL.size + name + extra + comment > size:
                self.refuse("its directory is broken")
            at += _CENTRAL.size
            raw, more = data[at : at + name], data[at + name : at + name + extra]
            full, packed, local = self._wide(more, full, packed, local)
            at += name + extra + comment
            yield self._entry(raw, flags, method, crc, packed, full, local)

    def _end(self) -> tuple[int, int, int]:
        """Return number of entries, size and offset of the directory, from the record at the file's end."""
        start = max(0, self.file.size - _END.size - 0xFFFF)
        tail = self._bytes(start, self.file.size - start)
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or at + _END.size > len(tail):
            self.refuse("it has no directory at its end")
        _, _, _, _, count, size, offset, comment = _END.unpack_from(tail, at)
        if at + _END.size + comment != len(tail):
            self.refuse("its end record does not match the file's size")
        if count != 0xFFFF and 0xFFFFFFFF not in (size, offset):
            return count, size, offset
        place = start + at - _END64_PLACE.size
        magic, _, wide, _ = _END64_PLACE.unpack(self._bytes(place, _END64_PLACE.size))
        if magic != b"PK\x06\x07":
            return count, size, offset
        magic, *_, count, size, offset = _END64.unpack(self._bytes(wide, _END64.size))
        if magic != b"PK\x06\x06":
            self.refuse("the record of its directory is broken")
        return count, size, offset

    def _wide(self, extra: bytes, *values: int) -> tuple[int, ...]:
        """Return sizes and offset; those that 32 bits can't hold come from the entry's 64-bit record."""
        wanted = [i for i, v in enumerate(values) if v == 0xFFFFFFFF]
        found, at = list(values), 0
        while wanted and at + 4 <= len(extra):
            kind, length = struct.unpack_from("<HH", extra, at)
            if kind == 1 and length >= 8 * len(wanted) and at + 4 + length <= len(extra):
                for k, i in enumerate(wanted):
                    (found[i],) = struct.unpack_from("<Q", extra, at + 4 + 8 * k)
                break
            at += 4 + length
        return tuple(found)

    def _entry(self, raw: bytes, flags: int, method: int, crc: int, packed: int, full: int, local: int) -> Entry:
        name = raw.decode("utf-8", "replace")
        if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
            self.refuse(
                f"{shown(name)} is encrypted, or compressed by method {method}: only stored and deflated are read"
            )
        magic, _, own_flags, own_method, _, _, own_crc, own_packed, own_full, length, extra = _LOCAL.unpack(
            self._bytes(local, _LOCAL.size)
        )
        if magic != MAGIC or self._bytes(local + _LOCAL.size, length) != raw or own_method != method:
            self.refuse(f"the header of {shown(name)} is not the one that its directory names")
        known = {(packed, full, crc), (0xFFFFFFFF, 0xFFFFFFFF, crc)}
        if not own_flags & _SIZES_BEHIND and (own_packed, own_full, own_crc) not in known:
            self.refuse(f"the header of {shown(name)} contradicts the directory")
        offset = local + _LOCAL.size + length + extra
        if offset + packed > self.file.size or (method == _STORED and packed != full):
            self.refuse(f"{shown(name)} exceeds the file, or has two sizes")
        return Entry(self, name, method, crc, packed, full, local, offset)

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset < 0 or offset + size > self.file.size:
            self.refuse("it is truncated, or its directory points outside")
        return self.file.read(offset, size).tobytes()
