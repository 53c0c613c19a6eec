"""Phrases with their boxes in pictures: one type of row for every file format, and what is refused. Imports no Jittor."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.box_forms import BOX_FORMATS, SOURCES, BoxFormat
from jclip.data.photo_file import header
from jclip.errors import DataError, printable, quoted
from jclip.paths import is_file

SLACK = 1.0  # pixels by which a box may leave its picture: published boxes are rounded
MOST_MISFITS = 0.01
Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class BoxRow:
    """One phrase with its box in one picture.

    image: path relative to the folder of photos. box: corners x1, y1, x2, y2 in pixels, None where the thing is absent.
    size: width and height of the picture, None where unknown. reliability: IoU that each measurer reached, by its name.
    box_raw, box_raw_format: the box as the file has it. extra: what else the file has. place: where in the file the row
    stands, such as "row 3", which does not count when rows are compared.
    """

    image: str
    box: Corners | None
    phrase: str
    size: tuple[int, int] | None = None
    source: str = "human"
    reliability: Mapping[str, float] = field(default_factory=dict)
    id: int = 0
    dataset: str = ""
    split: str = ""
    box_raw: tuple[float, ...] | None = None
    box_raw_format: BoxFormat = "xyxy"
    extra: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)

    def in_format(self, wanted: BoxFormat) -> tuple[float, ...] | None:
        """Return the box in that format; as the file has it where that is its own."""
        if self.box is None or (self.box_raw is not None and self.box_raw_format == wanted):
            return self.box_raw
        x1, y1, x2, y2 = self.box
        return self.box if wanted == "xyxy" else (x1, y1, x2 - x1, y2 - y1)

    def truncated(self) -> Corners | None:
        """Return the corners that CLIP-VG trains with: each number of the file cut to an integer, then x + w, y + h."""
        raw = self.box if self.box_raw is None else self.box_raw
        given = "xyxy" if self.box_raw is None else self.box_raw_format
        return None if raw is None else corners_of([int(value) for value in raw], given)


@dataclass(frozen=True)
class FoundRow:
    """A row as a reader found it: any value may stand in any field. number: from 0 in the file, the row's id without one."""

    place: str
    number: int
    image: object
    box: object
    phrase: object
    box_format: object = "xyxy"
    size: object = None
    source: object = "human"
    reliability: object = None
    id: object = None
    dataset: object = ""
    split: object = ""
    extra: object = None

    @cached_property
    def numbers(self) -> tuple[float, ...] | None:
        """The box's four finite numbers, None where it has none."""
        values = self.box if isinstance(self.box, list | tuple) else ()
        right = len(values) == 4 and all(type(v) in (int, float) and abs(v) < 1e12 for v in values)
        return tuple(values) if right else None  # abs(NaN) < 1e12 is false


def corners_of(box: Sequence[float], box_format: str) -> Corners:
    """Return corners x1, y1, x2, y2 of four numbers in that format."""
    a, b, c, d = map(float, box)
    return (a, b, a + c, b + d) if box_format == "xywh" else (a, b, c, d)


def usable_rows(
    path: str | os.PathLike, found: Sequence[FoundRow], photos: str | os.PathLike | None = None
) -> tuple[list[BoxRow], list[str]]:
    """Return rows that can be used, in order, and for each other row why not, naming file and row.

    photos: the folder of the photos; then each row's photo must be there, and its size is that of the file on disk.
    Raises `DataError` where more than 1 % of the boxes do not fit into their pictures as declared, but would in the other
    format.
    """
    sizes = _sizes_on_disk(found, Path(photos)) if photos is not None else {}
    _check_format(path, found, sizes)
    rows, refusals = [], []
    for row in found:
        try:
            rows.append(_usable(row, sizes, photos))
        except _Unusable as e:
            refusals.append(f"{path}, {row.place}: {e}")
    return rows, refusals


class _Unusable(Exception):
    """Why a row can't be used."""


def _usable(row: FoundRow, sizes: Mapping[str, _Photo], photos: str | os.PathLike | None) -> BoxRow:
    for what, text in (("an image", row.image), ("a phrase", row.phrase)):
        if not _is_text(text):
            raise _Unusable(f"must have {what} as text, got {quoted(text, 60)}")
    image, size = row.image, _declared_size(row)
    if photos is not None:
        photo = sizes[row.image]
        if photo.fault:
            raise _Unusable(f"{photo.fault}: {printable(row.image, 200)} below {photos}")
        if size not in (None, photo.size):
            raise _Unusable(f"is declared {size[0]} x {size[1]} pixels, the photo is {_times(photo.size)}")
        image, size = photo.name, photo.size
    return BoxRow(
        image=image,
        box=_checked_box(row, size),
        phrase=row.phrase,
        size=size,
        source=_one_of(row.source, SOURCES, "source"),
        reliability=_reliability(row.reliability),
        id=_id(row),
        dataset=_label(row.dataset, "dataset"),
        split=_label(row.split, "split"),
        box_raw=row.numbers,
        box_raw_format=row.box_format,
        extra=_extra(row.extra),
        place=row.place,
    )


def _checked_box(row: FoundRow, size: tuple[int, int] | None) -> Corners | None:
    _one_of(row.box_format, BOX_FORMATS, "box format")
    if row.box is None:
        return None
    if row.numbers is None:
        raise _Unusable(f"box must be four finite numbers, got {quoted(row.box, 80)}")
    box, shown = corners_of(row.numbers, row.box_format), f"got {[*row.numbers]} as {row.box_format}"
    if box[2] < box[0] or box[3] < box[1]:
        raise _Unusable(f"box must not be flipped (x1 < x2, y1 < y2), {shown}")
    if box[2] == box[0] or box[3] == box[1]:
        raise _Unusable(f"box must not be zero-sized, {shown}")
    if not _within(box, size):
        where = f"of {_times(size)} pixels" if size else "(coordinates of at least 0)"
        raise _Unusable(f"box must lie within the picture {where}, {shown}")
    return box


def _within(box: Sequence[float], size: tuple[int, int] | None) -> bool:
    width, height = size or (math.inf, math.inf)
    inside = box[0] >= -SLACK and box[1] >= -SLACK and box[2] <= width + SLACK and box[3] <= height + SLACK
    return inside and box[0] < width and box[1] < height and box[2] > 0 and box[3] > 0


def _fits(box: Sequence[float], size: tuple[int, int] | None) -> bool:
    return box[0] < box[2] and box[1] < box[3] and _within(box, size)


def _check_format(path: str | os.PathLike, found: Sequence[FoundRow], sizes: Mapping[str, _Photo]) -> None:
    """Raise `DataError` where the declared format looks wrong for more than 1 % of the boxes."""
    boxes, misfits = 0, []
    for row in found:
        if row.numbers is None or row.box_format not in BOX_FORMATS:
            continue
        boxes += 1
        photo = sizes.get(row.image) if isinstance(row.image, str) else None
        try:
            size = photo.size if photo and photo.size else _declared_size(row)
        except _Unusable:
            size = None
        other = _other(row.box_format)
        if not _fits(corners_of(row.numbers, row.box_format), size) and _fits(corners_of(row.numbers, other), size):
            misfits.append(row)
    if len(misfits) > MOST_MISFITS * boxes:
        first = misfits[0]
        raise DataError(
            f"{path}: {len(misfits)} of {boxes} boxes are flipped or leave the picture as {first.box_format}, but fit as "
            f"{_other(first.box_format)} (first in {first.place}: {[*first.numbers]}): "
            f"declare it (--box-format {_other(first.box_format)}), or correct these rows"
        )


def _other(box_format: object) -> BoxFormat:
    return "xyxy" if box_format == "xywh" else "xywh"


@dataclass(frozen=True)
class _Photo:
    """A photo on disk: the path below the folder under which it is there, its size, or what is wrong."""

    name: str
    size: tuple[int, int] | None = None
    fault: str = ""


def _sizes_on_disk(found: Sequence[FoundRow], photos: Path) -> dict[str, _Photo]:
    if not photos.is_dir():
        raise DataError(f"the folder of photos must be there, got {photos}")
    names = dict.fromkeys(row.image for row in found if _is_text(row.image))
    return {name: _photo(photos, name) for name in names}


def _photo(photos: Path, name: str) -> _Photo:
    """Look for the name, then for its last part: lists name folders that not everyone has."""
    known = (name, name.replace("\\", "/"), name.replace("\\", "/").rpartition("/")[2])
    there = next((spelt for spelt in known if spelt and is_file(photos / spelt)), None)
    if there is None:
        return _Photo(name, fault="there is no photo")
    try:
        _, _, width, height, _ = header(photos / there)  # boxes are of the pixels as stored, before EXIF turns them
    except DataError:
        return _Photo(there, fault="there is a photo that does not open")
    return _Photo(there, (width, height))


def _is_text(value: object) -> bool:
    """Whether a field holds text that can be stored and be a name."""
    return type(value) is str and value.strip() != "" and "\0" not in value and _encodes(value)


def _encodes(text: str) -> bool:
    try:
        return bool(text.encode()) or not text
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _declared_size(row: FoundRow) -> tuple[int, int] | None:
    if row.size is None or row.size == (None, None):
        return None
    right = isinstance(row.size, list | tuple) and len(row.size) == 2
    if not right or any(type(n) not in (int, float) or not 1 <= n < 1e9 or n != int(n) for n in row.size):
        raise _Unusable(f"width and height must be whole numbers of pixels, got {quoted(row.size, 60)}")
    return int(row.size[0]), int(row.size[1])


def _one_of(value: object, known: Sequence[str], what: str) -> Any:
    if type(value) is not str or value not in known:
        raise _Unusable(f"{what} must be {', '.join(known[:-1])} or {known[-1]}, got {quoted(value, 60)}")
    return value


def _reliability(given: object) -> dict[str, float]:
    given = {} if given is None else given
    right = isinstance(given, dict) and all(type(v) in (int, float) and 0 <= v <= 1 for v in given.values())
    if not right:
        raise _Unusable(f"reliability must be numbers in [0, 1] by measurer, got {quoted(given, 80)}")
    return dict(given)


def _id(row: FoundRow) -> int:
    given = row.number if row.id is None else row.id
    if type(given) is not int or given < 0:
        raise _Unusable(f"id must be a whole number, got {quoted(given, 60)}")
    return given


def _label(given: object, what: str) -> str:
    given = "" if given is None else given
    if type(given) is not str or not _encodes(given):
        raise _Unusable(f"{what} must be text, got {quoted(given, 60)}")
    return given


def _extra(given: object) -> dict[str, Any]:
    if given is not None and not isinstance(given, dict):
        raise _Unusable(f"extra must be an object, got {quoted(given, 60)}")
    return dict(given or {})


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def boxes_of(rows: Sequence[BoxRow]) -> np.ndarray:
    """Return corners (N, 4) float64 of rows; NaN where the thing is absent."""
    return np.array([row.box or (math.nan,) * 4 for row in rows], float).reshape(-1, 4)
