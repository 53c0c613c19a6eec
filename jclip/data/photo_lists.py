"""Lists of photos with labels, line by line: what stands on a line, and which file of the disk it names. No Jittor."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jclip.data.photo_file import PHOTO_ENDINGS
from jclip.errors import DataError, notice
from jclip.paths import is_file
from jclip.readers.text import read_lines

MOST_LABEL = 2**31 - 1
_IN_FRONT = re.compile(r"([0-9]+)[ ,;]+(\S.*)")


def list_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a list that hold something, with their numbers: backslashes as slashes, tabs as blanks.

    There are no comments: `#1.jpg` is a photo. Raises `DataError`.
    """
    lines = (
        (number, line.replace("\t", " ").replace("\\", "/")) for number, line in enumerate(read_lines(path), start=1)
    )
    return [(number, line) for number, line in lines if line]


def photos_with_label(path: Path, folders: Sequence[Path], classes: int = 0) -> list[tuple[int, str, int | None]]:
    """Number of line, photo and label of each line; None where it has no label.

    `photo label`, `photo,label`, or `label photo` where every line is so and the first photo is found in `folders` only
    without the label. Raises `DataError` with the line for a label that is no integer from 0, beyond the `classes`, or
    beyond 32 bits.
    """
    lines = list_lines(path)
    rows = [(number, *_photo_and_label(line, f"{path}, line {number}", classes)) for number, line in lines]
    if lines and all(label is None for *_, label in rows):
        in_front = [_IN_FRONT.fullmatch(line) for _, line in lines]
        if all(m and is_photo(m[2]) for m in in_front) and _only(in_front[0][2], rows[0][1], folders):
            numbered = zip(lines, in_front, strict=True)
            return [(number, m[2], label_of(m[1], f"{path}, line {number}", classes)) for (number, _), m in numbered]
    return rows


def _photo_and_label(line: str, place: str, classes: int) -> tuple[str, int | None]:
    photo, _, last = line.rpartition(" ")
    photo = photo.strip().rstrip(",;").rstrip()
    if photo and _is_label(last):
        return photo, label_of(last, place, classes)
    if is_photo(photo) and not is_photo(last):
        raise DataError(f"{place}: labels must be integers from 0, got {last!r:.60}")
    head, comma, last = _at_comma(line)
    if comma and is_photo(head) and not is_photo(last):
        return head, label_of(last, place, classes)
    return line, None


def _at_comma(line: str) -> tuple[str, str, str]:
    mark = max(",;", key=line.rfind)
    photo, comma, last = line.rpartition(mark)
    return photo.strip(), comma, last.strip()


def _is_label(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def is_photo(name: str) -> bool:
    """Whether a name ends as names of photos do."""
    return os.path.splitext(name.rstrip().lower())[1] in PHOTO_ENDINGS  # noqa: PTH122 - a name of any length


def _only(photo: str, whole: str, folders: Sequence[Path]) -> bool:
    return any(is_file(f / photo) for f in folders) and not any(is_file(f / whole) for f in folders)


def label_of(text: str, place: str, classes: int = 0) -> int:
    """A label as a number. Raises `DataError` for what is none, beyond 32 bits, or beyond the `classes` there are."""
    if not _is_label(text):
        raise DataError(f"{place}: labels must be integers from 0, got {text!r:.60}")
    label = int(text) if len(text) <= 18 else MOST_LABEL + 1
    if classes and label >= classes:
        raise DataError(f"{place}: label {text[:40]} is beyond the {classes} classes")
    if label > MOST_LABEL:
        raise DataError(f"{place}: labels must be at most {MOST_LABEL}, got {text[:40]}")
    return label


def on_disk(paths: Iterable[str]) -> list[str]:
    """The paths, those without a file in the spelling that has one: another Unicode form of the name, or its
    GB18030 bytes, as a .zip of Windows leaves them on Linux. What was found so is reported in one line on stderr."""
    found, other = [], []
    for path in paths:
        real = path if path.isascii() or is_file(path) else next(filter(is_file, _spellings(path)), path)
        found.append(real)
        if real != path:
            other.append(path)
    if other:
        notice(f"{len(other)} photos are found under another spelling of their names (first: {other[0]})")
    return found


def _spellings(path: str) -> Iterator[str]:
    yield from (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
    parts = Path(path).parts
    for place in range(len(parts) - 1, max(0, len(parts) - 4), -1):  # the name, then its folders too
        try:
            yield str(Path(*parts[:place], *(os.fsdecode(part.encode("gb18030")) for part in parts[place:])))
        except UnicodeEncodeError:
            return
