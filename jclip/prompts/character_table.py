"""SentencePiece's replacements of characters (its normalizer's compiled table), applied as SentencePiece applies them."""

from __future__ import annotations

import numpy as np

from jclip.errors import CheckpointError

_BLOCK = 256  # units of the double array that one node's children lie in
_LONGEST_KEY = 128  # bytes
_PRINTABLE = range(ord(" "), ord("~") + 1)


class CharacterTable:
    """Replacements, the longest one first at each place.

    Bytes 0 to 3 give the length of a double array (Darts): units of 32 bits that spell the keys, byte by byte. A unit
    that ends a key gives where its replacement begins in the texts behind the array; each text ends in a zero byte.
    Raises `CheckpointError` for a table that leads outside of itself.
    """

    def __init__(self, data: bytes, place: object):
        length = int.from_bytes(data[:4], "little")
        if length % (4 * _BLOCK) or not 0 < length <= len(data) - 4:
            raise CheckpointError(f"{place} is damaged: its table of characters must be whole, got {len(data):,} bytes")
        units = np.frombuffer(data, "<u4", length // 4, 4).astype(np.int64)
        self._texts = data[4 + length :]
        _check(units, self._texts, place)
        self._units: list[int] = units.tolist()
        self._keeps_ascii = not self._spells_ascii()

    def __call__(self, text: str) -> str:
        """The text with its replacements."""
        if self._keeps_ascii and text.isascii() and text.isprintable():
            return text
        data = text.encode()
        parts, at = [], 0
        while at < len(data):
            length, begin = self._longest(data, at)
            if length:
                parts.append(self._texts[begin : self._texts.index(0, begin)])
            else:
                length = _letter_bytes(data[at])
                parts.append(data[at : at + length])
            at += length
        return b"".join(parts).decode()

    def _longest(self, data: bytes, at: int) -> tuple[int, int]:
        """Bytes of the longest key that stands at a place, and where its replacement begins; 0 where there is none."""
        found, begin, node = 0, 0, _offset(self._units[0])
        for length, byte in enumerate(data[at : at + _LONGEST_KEY], start=1):
            if (inner := self._child(node, byte)) is None:
                break
            node, ends = inner
            if ends:
                found, begin = length, self._units[node] & 0x7FFFFFFF
        return found, begin

    def _child(self, node: int, byte: int) -> tuple[int, bool] | None:
        """The node that a byte leads to, and whether a key ends there."""
        unit = self._units[node ^ byte]
        if unit & 0x800000FF != byte:
            return None
        return node ^ byte ^ _offset(unit), bool(unit >> 8 & 1)

    def _spells_ascii(self) -> bool:
        """Whether a key is of printable ASCII alone: case folding has such."""
        waiting, seen = [_offset(self._units[0])], set()
        while waiting:
            node = waiting.pop()
            children = [child for byte in _PRINTABLE if (child := self._child(node, byte))]
            if any(ends for _, ends in children):
                return True
            waiting += [inner for inner, _ in children if inner not in seen]
            seen.update(inner for inner, _ in children)
        return False


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 1 << 9) >> 6)


def _letter_bytes(first: int) -> int:
    return 1 + (first >= 0xC0) + (first >= 0xE0) + (first >= 0xF0)


def _check(units: np.ndarray, texts: bytes, place: object) -> None:
    """Raise `CheckpointError` for a unit whose children or whose text lie outside of the table."""
    ends = units >> 31 == 1
    children = (np.arange(len(units)) ^ units >> 10 << ((units & 1 << 9) >> 6)) | (_BLOCK - 1)
    begins = units[ends] & 0x7FFFFFFF
    held = np.frombuffer(texts, np.uint8)
    inside = (children[~ends] < len(units)).all() and (begins < len(held)).all() and texts.endswith(b"\0")
    if not inside or (held[begins] & 0xC0 == 0x80).any():
        raise CheckpointError(f"{place} is damaged: its table of characters leads outside of itself")
    try:
        texts.decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{place} is damaged: its table of characters is not UTF-8") from None
