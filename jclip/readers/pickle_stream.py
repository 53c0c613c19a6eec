"""The bytes of a pickle one after the other, never more of them than the file has."""

from __future__ import annotations

from jclip.readers.held_file import Part, Source

_WINDOW = 1 << 16


class Malformed(ValueError):
    """The stream is not a pickle, or does what weights never need."""


class Stream:
    """Sequential bytes of a source. `part(n)` takes n bytes without reading them."""

    def __init__(self, source: Source):
        self._source, self.at = source, 0
        self._window, self._start = b"", 0

    @property
    def left(self) -> int:
        """Number of bytes left."""
        return self._source.size - self.at

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes. Raises `Malformed` where there are fewer."""
        if not 0 <= count <= self.left:
            raise Malformed(f"{count} bytes are needed, {self.left} are left")
        begin = self.at - self._start
        if not (begin >= 0 and begin + count <= len(self._window)):
            if count > _WINDOW:
                self.at += count
                return self._source.read(self.at - count, count).tobytes()
            self._window = self._source.read(self.at, min(_WINDOW, self.left)).tobytes()
            self._start = self.at
            begin = 0
        self.at += count
        return self._window[begin : begin + count]

    def byte(self) -> int:
        """Return the next byte."""
        place = self.at - self._start
        if 0 <= place < len(self._window):
            self.at += 1
            return self._window[place]
        return self.take(1)[0]

    def part(self, count: int) -> Part:
        """Return the next `count` bytes as a source, to be read later."""
        if not 0 <= count <= self.left:
            raise Malformed(f"{count} bytes are needed, {self.left} are left")
        self.at += count
        return Part(self._source, self.at - count, count)

    def line(self, most: int) -> bytes:
        """Return the bytes up to the next line break, without it."""
        start, size, longest = self.at, 80, min(most + 1, self.left)
        while True:
            self.at = start
            found, *more = self.take(min(size, longest)).split(b"\n", 1)
            if more:
                self.at = start + len(found) + 1
                return found
            if size >= longest:
                raise Malformed(f"an unterminated line, or one of more than {most} bytes")
            size *= 8
