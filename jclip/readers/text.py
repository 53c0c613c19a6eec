"""Strict readers of users' text files: lists, tables and JSON. Nothing in a file is executed."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any, BinaryIO

from jclip.errors import DataError, JclipError, notice, printable, quoted
from jclip.paths import open_regular

MOST_BYTES = 1 << 31  # of lists of photos, captions, COCO's annotations
MOST_OF_NAMES = 1 << 26  # of class names and templates
_HEAD = 1 << 16
_PIECE = 1 << 24  # bytes
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_DIGITS = 19  # more than any 64-bit integer has
_UNUSUAL_NUMBER = re.compile(r"[0-9]{20}|[0-9.][eE]\+?[0-9]{3}")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

Error = type[JclipError]


def read_text(path: str | os.PathLike, error: Error = DataError, most: int = MOST_BYTES) -> str:
    """Returns a text file's contents, line ends as `\\n`, without a byte order mark.

    UTF-8; UTF-16 with a byte order mark; else GB18030 where the bytes are plausible as that, which is reported in one line
    on stderr. Raises `error` for a file that is absent, no regular file, empty, over `most` bytes, or binary.
    """
    data = _bytes_of(path, error, most)
    text = _decoded(data, path, error).lstrip("\ufeff")
    if "\0" in text:
        raise error(f"{path}, line {_line(text, text.index(chr(0)))}: must be text, got a NUL byte: save it as UTF-8")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise error(f"{path} is empty")
    return text


def read_lines(path: str | os.PathLike, error: Error = DataError, most: int = MOST_BYTES) -> list[str]:
    """Returns the lines of a text file, blank ones too, stripped: line k of the file stands at k - 1.

    Only LF, CRLF and CR end a line: U+2028 or U+0085 within a name do not. Raises as `read_text` does.
    """
    lines = [line.strip() for line in read_text(path, error, most).split("\n")]
    return lines if lines[-1] else lines[:-1]


def read_json(path: str | os.PathLike, error: Error = DataError) -> Any:
    """Returns what a JSON file holds. Raises `error` as `read_text` does, and as `parse_json`."""
    return parse_json(read_text(path, error), path, error)


def parse_json(text: str, place: str | os.PathLike, error: Error = DataError) -> Any:
    """Returns the value of a JSON text that stands at `place`.

    Raises `error` for what is no JSON, and for what Python's reader would let through: a key given twice, NaN and
    infinities, numbers beyond 64 bits, nesting without end, halves of surrogate pairs.
    """
    hooks = {"parse_int": _whole, "parse_float": _real} if _UNUSUAL_NUMBER.search(text) else {}
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant, **hooks)
        if _ESCAPED_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as e:
        raise error(f"{place} is not valid JSON, line {e.lineno}: {e.msg}") from None
    except RecursionError:
        raise error(f"{place} is not valid JSON: it is nested too deeply") from None
    except UnicodeEncodeError:
        raise error(f"{place} is not valid JSON: it holds half of a surrogate pair") from None
    except ValueError as e:
        raise error(f"{place} is not valid JSON: {printable(str(e), 200)}") from None
    return value


def described(value: Any) -> str:
    """Return what stands in the place of an object, for a message: its keys, or the value itself, shortly."""
    if isinstance(value, dict):
        return f"an object with {printable(', '.join(map(str, value)) or 'nothing', 100)}"
    return quoted(value, 60)


def read_records(
    path: str | os.PathLike, delimiter: str = ",", on_broken: Callable[[DataError], None] | None = None
) -> list[tuple[int, list[str]]]:
    """Returns the records of a CSV or TSV file that are not blank, each with the number of its first line.

    A record with a quotation mark that nothing closes, or a field of over 131,072 characters, raises `DataError`; with
    `on_broken` it is handed to that instead and left out.
    """
    table = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    records: list[tuple[int, list[str]]] = []
    while True:
        line = table.line_num + 1
        try:
            fields = next(table)
        except StopIteration:
            return records
        except csv.Error as e:
            refusal = DataError(
                f"{path}, line {line}: is not valid CSV ({e}): quote fields whole, and inner marks twice"
            )
            if on_broken is None:
                raise refusal from None
            on_broken(refusal)
            continue
        if any(field.strip() for field in fields):
            records.append((line, fields))


def read_table(
    path: str | os.PathLike, delimiter: str = ",", on_broken: Callable[[DataError], None] | None = None
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Returns the columns that a CSV or TSV file's first line names, and its rows, each with the number of its first line.

    Raises `DataError` as `read_records` does, for a column that is named twice, and for a row with fewer or more fields
    than there are columns; with `on_broken` such a row is handed to that instead and left out.
    """
    (_, head), *records = read_records(path, delimiter, on_broken) or [(1, [])]
    columns = [name.strip() for name in head]
    if twice := [name for name, count in Counter(columns).items() if name and count > 1]:
        raise DataError(f"{path}, line 1: column {twice[0]!r} must be unique, got it {columns.count(twice[0])} times")
    rows = []
    for line, fields in records:
        while len(fields) > len(columns) and not fields[-1].strip():  # a table program's padding
            fields.pop()
        if len(fields) == len(columns):
            rows.append((line, dict(zip(columns, fields, strict=True))))
            continue
        separated = f" (separated by {'commas' if delimiter == ',' else 'tabs'})" if len(columns) == 1 else ""
        refusal = DataError(
            f"{path}, line {line}: must have {len(columns)} fields ({', '.join(columns)}), got {len(fields)}{separated}"
        )
        if on_broken is None:
            raise refusal
        on_broken(refusal)
    return columns, rows


def _up_to(f: BinaryIO, most: int) -> bytes:
    """At most so many bytes, piece by piece: one `read` would claim memory for all of them."""
    pieces = []
    while most > 0 and (piece := f.read(min(most, _PIECE))):
        pieces.append(piece)
        most -= len(piece)
    return b"".join(pieces)


def _bytes_of(path: str | os.PathLike, error: Error, most: int) -> bytes:
    try:
        with open_regular(path) as f:
            head = f.read(_HEAD)
            if not head:
                raise error(f"{path} is empty")
            if b"\0" in head and not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise error(f"{path} must be a text file, got NUL bytes: save it as UTF-8")
            size = os.fstat(f.fileno()).st_size
            data = head + _up_to(f, most + 1 - len(head)) if size <= most else b""
    except OSError as e:
        raise error(f"can't read {path}: {e.strerror}") from None
    except ValueError as e:  # a NUL or half a surrogate pair in the name
        raise error(f"can't read {path}: {e}") from None
    if not 0 < len(data) <= most:
        raise error(f"{path} must be a text file of at most {most:,} bytes, got {max(size, len(data)):,}")
    return data


def _decoded(data: bytes, path: str | os.PathLike, error: Error) -> str:
    mark, encoding = next(((m, e) for m, e in _MARKS if data.startswith(m)), (b"", "utf-8"))
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as e:
        text = "" if mark else _as_gb18030(data)
        if not text:
            line = data[len(mark) :][: e.start].decode(encoding, "ignore").count("\n") + 1
            raise error(f"{path}, line {line}: must be UTF-8 text, got other bytes: save it as UTF-8") from None
    first = next(number for number, line in enumerate(text.split("\n"), start=1) if not line.isascii())
    _report_encoding(os.fspath(path), first, text.split("\n")[first - 1].strip())
    return text


def _as_gb18030(data: bytes) -> str:
    """The text, or nothing where the bytes are rather UTF-8 with some damage, another encoding, or binary."""
    loose = data.decode("utf-8", "replace")
    lost = loose.count("\ufffd")
    long = sum(c >= "\u0800" for c in loose) - lost  # of three or four bytes, which GB18030 seldom happens to form
    short = sum("\x80" <= c < "\u0800" for c in loose)
    if long >= lost or short >= 4 * lost:
        return ""
    try:
        text = data.decode("gb18030")
    except UnicodeDecodeError:
        return ""
    counts = Counter(text)
    if not all(c.isprintable() or c.isspace() for c in counts):
        return ""
    foreign = sum(count for c, count in counts.items() if not c.isascii())
    common = sum(count for c, count in counts.items() if not c.isascii() and _in_gb2312(c))
    return text if 2 * common >= foreign else ""  # of Latin-1, Big5 or Shift-JIS few are


def _in_gb2312(character: str) -> bool:
    try:
        return bool(character.encode("gb2312"))
    except UnicodeEncodeError:
        return False


@cache
def _report_encoding(path: str, line: int, text: str) -> None:
    notice(f"{path} is not UTF-8, read as GB18030 (line {line}: {text[:60]}): save it as UTF-8 if that is wrong")


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"key {twice!r} appears more than once in one object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > _DIGITS:
        raise ValueError(f"{digits[:20]}… is beyond 64 bits")
    return int(digits)


def _real(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"{digits[:20]} exceeds the range of numbers")
    return value
