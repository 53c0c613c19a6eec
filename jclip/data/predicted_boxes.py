"""Predicted boxes as files have them, and which row of a file of true boxes each is for. Imports no Jittor.

JSON lines of `jclip predict`, of a run's boxes.jsonl and of `jclip ground --json`; COCO's results with `row` or `phrase`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.box_files import LINES
from jclip.data.box_predictions import image_id
from jclip.data.box_rows import BoxRow, Corners, corners_of
from jclip.data.box_tables import objects_by_line
from jclip.errors import DataError, quoted
from jclip.paths import is_file
from jclip.readers.text import read_json

NAMES = ("image", "photo", "file_name")
BOXES = ("predicted", "bbox", "box")  # the first of them that an object has is the predicted one
TRUE = "true"  # of a run's boxes.jsonl
_LARGEST = 1e12


@dataclass(frozen=True)
class PredictedBox:
    """A box for a phrase in a photo. place: where in the file. image: the photo's name, or COCO's number of it. row: the
    number of the row that it is for, where the file says so. true: the row's own box, where the file has it. size: width and
    height of the photo, where the file has them."""

    place: str
    image: str | int | None
    phrase: str | None
    row: int | None
    box: Corners
    score: float | None = None
    present: float | None = None
    true: BoxRow | None = None
    size: tuple[int, int] | None = None


def read_predicted_boxes(path: str | os.PathLike, box_format: str = "") -> list[PredictedBox]:
    """Return the predictions of a file, JSON lines or a JSON list. Raises `DataError` naming file and place.

    box_format: of boxes; by default xywh of `bbox`, as COCO has it, else corners.
    """
    if not is_file(path):
        raise DataError(f"there is no file {path}")
    found = [
        _predicted(f"{path}, {place}", value, box_format) for place, whole in _objects(path) for value in _parts(whole)
    ]
    if not found:
        raise DataError(f"{path} has no predictions")
    return found


def _objects(path: str | os.PathLike) -> Iterator[tuple[str, Any]]:
    if Path(path).suffix.lower() in LINES:
        yield from ((f"line {line}", value) for line, value in objects_by_line(path))
        return
    values = read_json(path)
    if not isinstance(values, list):
        raise DataError(f"{path} must be JSON lines, or a list of predictions, got {quoted(values, 60)}")
    yield from ((f"entry {number}", value) for number, value in enumerate(values))


def _parts(value: Any) -> list[Any]:
    """An object as it is; of what several phrases have found in one photo one object each."""
    found = value.get("found") if isinstance(value, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        return [value]
    whole = {k: v for k, v in value.items() if k != "found"}
    return [{**whole, **{k: v for k, v in one.items() if k != "xywh"}} for one in found]


def _predicted(place: str, value: Any, box_format: str) -> PredictedBox:
    if not isinstance(value, dict):
        raise DataError(f"{place}: must be an object with a phrase and a predicted box, got {quoted(value, 60)}")
    key = next((name for name in BOXES if name in value), None)
    if key is None:
        raise DataError(f"{place}: must have a box, {' or '.join(BOXES)}, got {', '.join(map(str, value))[:100]}")
    image = next((value[name] for name in (*NAMES, "image_id") if value.get(name) is not None), None)
    row = value.get("row", value.get("id") if key == "predicted" else None)
    phrase = value.get("phrase")
    for what, given, kinds in (("image", image, (str, int)), ("phrase", phrase, (str,)), ("row", row, (int,))):
        if given is not None and type(given) not in kinds:
            raise DataError(
                f"{place}: {what} must be {'text' if str in kinds else 'a whole number'}, got {quoted(given, 60)}"
            )
    if row is None and (image is None or phrase is None):
        raise DataError(f"{place}: must name its row, or image and phrase, got {', '.join(map(str, value))[:100]}")
    scores = [_number(place, name, value.get(name)) for name in ("score", "present")]
    box = _box(place, key, value[key], box_format or ("xywh" if key == "bbox" else "xyxy"))
    true = _true(place, key, value, image, phrase, row)
    return PredictedBox(place, image, phrase, row, box, *scores, true, _size(value))


def _size(value: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = value.get("width"), value.get("height")
    return (width, height) if all(type(n) is int and n > 0 for n in (width, height)) else None


def _number(place: str, name: str, given: Any) -> float | None:
    if given is not None and not (type(given) in (int, float) and abs(given) < _LARGEST):
        raise DataError(f"{place}: {name} must be a number, got {quoted(given, 60)}")
    return None if given is None else float(given)


def _box(place: str, key: str, given: Any, box_format: str) -> Corners:
    if not (
        isinstance(given, list)
        and len(given) == 4
        and all(type(v) in (int, float) and abs(v) < _LARGEST for v in given)
    ):
        raise DataError(f"{place}: {key} must be four finite numbers, got {quoted(given, 80)}")
    box = corners_of(given, box_format)
    if box[2] < box[0] or box[3] < box[1]:
        other = "xywh" if box_format == "xyxy" else "xyxy"
        raise DataError(
            f"{place}: {key} must not be flipped (x1 <= x2, y1 <= y2), got {given} as {box_format}: --box-format {other} if "
            "it is that"
        )
    return box


def _true(place: str, key: str, value: Mapping[str, Any], image: Any, phrase: Any, row: Any) -> BoxRow | None:
    """The row that the prediction is for, as the file itself has it."""
    given = value.get(TRUE, value.get("box") if key == "predicted" else None)
    known = TRUE in value or (key == "predicted" and "box" in value)
    if not known or type(image) is not str or phrase is None:
        return None
    box = None if given is None else _box(place, TRUE if TRUE in value else "box", given, "xyxy")
    return BoxRow(image, box, phrase, _size(value), id=-1 if row is None else row, place=place)


def rows_within(path: str | os.PathLike, predictions: Sequence[PredictedBox]) -> list[BoxRow]:
    """Return the true rows that the predictions bring along. Raises `DataError` where one has none."""
    if lacking := next((p for p in predictions if p.true is None), None):
        raise DataError(f"{lacking.place}: has no true box: name the file of true boxes after {path}")
    return [p.true for p in predictions]


def matched(
    predictions: Sequence[PredictedBox], rows: Sequence[BoxRow], place: str | os.PathLike, common: bool = False
) -> tuple[list[int], list[list[PredictedBox]]]:
    """Return which rows have predictions, and those of each, best score first (of equal ones in the file's order).

    A prediction is for the row that it names, whose photo and phrase must then be its own, else for the rows of its photo
    and phrase. place: the file of `rows`, for messages. common: rows without predictions, and predictions without rows, are
    left out; else they are a `DataError`.
    """
    by_number = {row.id: number for number, row in enumerate(rows)}
    numbered = all(p.row is not None for p in predictions) and len(by_number) == len(rows)
    by_name: dict[tuple, list[int]] = {}
    for number, row in enumerate(rows):
        for image in _names_of(row):
            by_name.setdefault((image, row.phrase.lower()), []).append(number)
    found: dict[int, list[PredictedBox]] = {}
    strangers = []
    for p in predictions:
        own = (
            _numbered(p, by_number, rows, place)
            if numbered
            else by_name.get((_name(p.image), (p.phrase or "").lower()), [])
        )
        for number in own:
            _check_size(p, rows[number], place)
            found.setdefault(number, []).append(p)
        if not own:
            strangers.append(p)
    lacking = [number for number in range(len(rows)) if number not in found]
    if (strangers or lacking) and (not common or not found):
        if strangers:
            first = strangers[0]
            got = (
                f"row {first.row} of {len(rows)}"
                if numbered
                else f"{quoted(first.phrase, 60)} of {quoted(first.image, 80)}"
            )
            raise DataError(f"{first.place}: must be for a row of {place}, got {got} ({len(strangers)} such)"
                            + ("" if not found else ": --common leaves them out"))  # fmt: skip
        first = rows[lacking[0]]
        raise DataError(
            f"{place}, {first.place or f'row {first.id}'}: has no prediction ({quoted(first.phrase, 60)}; {len(lacking)} such"
            "): --common leaves them out"
        )
    kept = sorted(found)
    return kept, [sorted(found[n], key=lambda p: -(p.score or 0.0)) for n in kept]


def _check_size(p: PredictedBox, row: BoxRow, place: str | os.PathLike) -> None:
    """Raise `DataError` where a prediction is of the photo turned or resized: its box means other pixels."""
    if None in (p.size, row.size) or p.size == row.size:
        return
    turned = ", turned by EXIF? `jclip predict` has boxes as the photo is stored" if p.size == row.size[::-1] else ""
    raise DataError(
        f"{p.place}: must be for a photo of {row.size[0]} x {row.size[1]} pixels, as {place} has {quoted(row.image, 80)}, got "
        f"{p.size[0]} x {p.size[1]}{turned}"
    )


def _numbered(
    p: PredictedBox, by_number: Mapping[int, int], rows: Sequence[BoxRow], place: str | os.PathLike
) -> list[int]:
    if p.row not in by_number:
        return []
    row = rows[by_number[p.row]]
    if (p.phrase is not None and p.phrase.lower() != row.phrase.lower()) or (
        p.image is not None and _name(p.image) not in _names_of(row)
    ):
        raise DataError(
            f"{p.place}: must be for row {p.row} of {place}, {quoted(row.phrase, 60)} of {quoted(row.image, 80)}, got "
            f"{quoted(p.phrase, 60)} of {quoted(p.image, 80)}: the files are of other data"
        )
    return [by_number[p.row]]


def _name(image: str | int | None) -> str | int | None:
    return Path(image).name if isinstance(image, str) else image


def _names_of(row: BoxRow) -> set[str | int]:
    """What predictions may call the row's photo."""
    number = image_id(row)
    return {Path(row.image).name, _name(number)}


def corners_in(predictions: Sequence[PredictedBox]) -> np.ndarray:
    """Return corners (N, 4) float64."""
    return np.array([p.box for p in predictions], float).reshape(-1, 4)
