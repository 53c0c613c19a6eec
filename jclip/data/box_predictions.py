"""Predicted boxes as files: COCO's results, and JSON lines that say how right each is. Imports no Jittor."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jclip.data.box_rows import BoxRow
from jclip.errors import DataError
from jclip.functional import boxes
from jclip.paths import replacing


def write_coco_results(
    path: str | os.PathLike, rows: Sequence[BoxRow], predicted: np.ndarray, scores: np.ndarray | None = None
) -> None:
    """Write `[{image_id, category_id, bbox, score, row, phrase}]`, bbox as xywh in the picture's pixels.

    predicted: corners (N, 4); scores: (N,), by default 1. image_id: the row's `extra.image_id`, else the digits at the end
    of the file's name as COCO numbers its pictures, else the name. category_id: `extra.category_id`, else 1.
    """
    predicted, scores = _checked(rows, predicted, scores)
    values = [
        {
            "image_id": image_id(row),
            "category_id": row.extra.get("category_id", 1),
            "bbox": boxes.corners_to_xywh(box).tolist(),
            "score": float(score),
            "row": row.id,
            "phrase": row.phrase,
        }
        for row, box, score in zip(rows, predicted, scores, strict=True)
    ]
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def write_prediction_lines(
    path: str | os.PathLike,
    rows: Sequence[BoxRow],
    predicted: np.ndarray,
    scores: np.ndarray | None = None,
    present: np.ndarray | None = None,
) -> None:
    """Write a JSON line for each row: id, image, width, height, phrase, box (null where absent), predicted, iou (null there),
    score, present.

    predicted: corners (N, 4) in the picture's pixels; scores, present: (N,), null where None.
    """
    given = scores is not None
    chances = [None] * len(rows) if present is None else np.asarray(present, float).tolist()
    predicted, scores = _checked(rows, predicted, scores)
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for row, box, score, chance in zip(rows, predicted, scores, chances, strict=True):
            width, height = row.size or (None, None)
            value = {
                "id": row.id,
                "image": row.image,
                "width": width,
                "height": height,
                "phrase": row.phrase,
                "box": row.box and [*row.box],
                "predicted": box.tolist(),
                "iou": row.box and float(boxes.iou(box, np.array(row.box))),
                "score": float(score) if given else None,
                "present": chance,
            }
            file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def image_id(row: BoxRow) -> int | str:
    """Return COCO's number of the row's picture, or the file's name where it has none."""
    given = row.extra.get("image_id")
    if type(given) in (int, str):
        return given
    digits = re.search(r"\d+$", Path(row.image).stem, re.ASCII)
    return int(digits[0]) if digits and len(digits[0]) < 19 else row.image


def _checked(rows: Sequence[BoxRow], predicted: np.ndarray, scores: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    predicted = np.asarray(predicted, float)
    scores = np.ones(len(rows)) if scores is None else np.asarray(scores, float)
    if predicted.shape != (len(rows), 4) or scores.shape != (len(rows),):
        raise DataError(
            f"predictions must be boxes ({len(rows)}, 4) and scores ({len(rows)},), got {predicted.shape} and {scores.shape}"
        )
    whole = np.isfinite(predicted).all(axis=1) & np.isfinite(scores)
    if not whole.all():
        at = int(np.argmin(whole))
        raise DataError(f"predictions must be finite numbers, got {predicted[at].tolist()} for row {rows[at].id}")
    return predicted, scores
