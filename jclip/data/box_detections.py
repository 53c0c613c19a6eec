"""Rows with a detector's boxes beside: what ReCLIP and its followers read; and such boxes as COCO's results. No Jittor."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Any

from jclip.data.box_predictions import image_id
from jclip.data.box_rows import BoxRow, FoundRow
from jclip.errors import DataError, quoted
from jclip.paths import replacing
from jclip.readers.text import read_json

PROPOSALS = "proposals"  # in a row's extra: boxes as corners
_KEYS = {"sent", "pred_boxes", "pred_boxes_img_id", "gt_box"}
_CROP = re.compile(r"(.+)_\d+(\.\w+)")


def has_detections(value: object) -> bool:
    """Return whether a value is an object of that form."""
    return isinstance(value, dict) and {*value} >= _KEYS


def read_detected(path: str | os.PathLike, box_format: str = "", source: str = "") -> list[FoundRow]:
    """Return the rows of a JSON list `{sent, gt_box, pred_boxes, pred_boxes_img_id}`, boxes as xywh.

    The detector's boxes become `extra.proposals`, corners. pred_boxes_img_id names their crops, `photo_0.jpg`, `photo_1.jpg`,
    which say what the photo is. Raises `DataError`.
    """
    values, box_format = read_json(path), box_format or "xywh"
    if not isinstance(values, list) or not values or not has_detections(values[0]):
        raise DataError(f"{path} must be a list of objects with {', '.join(sorted(_KEYS))}, got {quoted(values, 60)}")
    rows = []
    for number, value in enumerate(values):
        place = f"entry {number}"
        if not has_detections(value):
            raise DataError(f"{path}, {place}: must have {', '.join(sorted(_KEYS))}, got {quoted(value, 80)}")
        proposals = [_corners(path, place, box, box_format) for box in _list(path, place, value["pred_boxes"])]
        rows.append(
            FoundRow(
                place, number, _photo(path, place, value["pred_boxes_img_id"]), value["gt_box"], value["sent"], box_format,
                source=source or "human", extra={PROPOSALS: proposals},
            )
        )  # fmt: skip
    return rows


def _list(path, place: str, value: Any) -> list:
    if not isinstance(value, list):
        raise DataError(f"{path}, {place}: pred_boxes must be a list of boxes, got {quoted(value, 60)}")
    return value


def _corners(path, place: str, box: Any, box_format: str) -> list[float]:
    right = isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) and abs(v) < 1e12 for v in box)
    if not right:
        raise DataError(f"{path}, {place}: pred_boxes must be of four finite numbers, got {quoted(box, 80)}")
    a, b, c, d = box
    corners = [a, b, a + c, b + d] if box_format == "xywh" else [a, b, c, d]
    if not (corners[0] < corners[2] and corners[1] < corners[3]):
        raise DataError(f"{path}, {place}: pred_boxes must not be flipped or zero-sized, got {box} as {box_format}")
    return corners


def _photo(path, place: str, crops: Any) -> str:
    """The photo that crops are of."""
    found = (
        {m[1] + m[2] for c in crops if isinstance(c, str) and (m := _CROP.fullmatch(c))}
        if isinstance(crops, list)
        else {}
    )
    if len(found) != 1:
        raise DataError(
            f"{path}, {place}: pred_boxes_img_id must name crops of one photo, such as a_0.jpg, got {quoted(crops, 80)}"
        )
    return found.pop()


def write_proposals(path: str | os.PathLike, rows: Sequence[BoxRow]) -> int:
    """Write each photo's boxes of a detector as COCO's results, xywh, each once, and return their number.

    They are `extra.proposals` of the rows; `file_name` names the photo beside its `image_id`. Raises `DataError` where rows
    have none.
    """
    found: dict[str, tuple[int | str, dict[tuple, None]]] = {}
    for row in rows:
        _, boxes = found.setdefault(row.image, (image_id(row), {}))
        boxes.update(dict.fromkeys(tuple(box) for box in row.extra.get(PROPOSALS, ())))
    values = [
        {"image_id": number, "file_name": image, "category_id": 1, "bbox": [a, b, c - a, d - b], "score": 1.0}
        for image, (number, boxes) in found.items() for a, b, c, d in boxes
    ]  # fmt: skip
    if not values:
        raise DataError(f"{path} can't be written: no row has boxes of a detector (pred_boxes)")
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    return len(values)
