"""Boxes that a detector found in photos, whatever it takes them for: COCO's results, read and checked. Imports no Jittor."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.box_rows import SLACK
from jclip.errors import DataError, counted, notice, printable, quoted
from jclip.functional import boxes as box_forms
from jclip.readers.text import read_json

Key = int | str
NAMES = ("file_name", "image", "photo")  # fields that name the photo itself


@dataclass(frozen=True)
class DetectorBoxes:
    """Boxes of several photos. of: by number or name of a photo each box as (x, y, width, height), its score, and where it
    stands in the file."""

    path: str
    of: Mapping[Key, Sequence[tuple[tuple[float, ...], float, str]]]

    def boxes(self, photo: str, size: tuple[int, int], least: float | None = None) -> np.ndarray:
        """Corners (N, 4) float64 in a photo of (W, H) pixels, cut at its edges, in the file's order.

        least: boxes with a lower score are left out. Raises `DataError` where the photo has none, or one is outside.
        """
        found = [box for box in self._found(photo) if least is None or box[1] >= least]
        if not found:
            raise DataError(
                f"{self.path} must have boxes of {printable(photo, 200)}, got none with a score of {least:g}"
            )
        corners = box_forms.xywh_to_corners(np.array([box for box, _, _ in found], float))
        low, high = corners[:, :2].min(axis=1), (corners[:, 2:] - size).max(axis=1)
        whole = (low >= -SLACK) & (high <= SLACK) & (box_forms.areas(box_forms.clipped(corners, *size)) > 0)
        if not whole.all():
            at = int(np.argmin(whole))
            box, _, place = found[at]
            other = _reading_as_corners(box, size)
            raise DataError(
                f"{self.path}, {place}: a box must lie within the photo of {size[0]} x {size[1]} pixels, got {[*box]} as x, "
                f"y, width, height{other}"
            )
        return box_forms.clipped(corners, *size)

    def _found(self, photo: str) -> Sequence[tuple[tuple[float, ...], float, str]]:
        for key in _keys(photo):
            if key in self.of:
                return self.of[key]
        if len(self.of) == 1:
            notice(
                f"{self.path}: all boxes are of {quoted(next(iter(self.of)), 80)}, taken for {printable(photo, 200)}"
            )
            return next(iter(self.of.values()))
        known = ", ".join(str(key) for key in [*self.of][:3])
        raise DataError(
            f"{self.path} must have boxes of {printable(photo, 200)}, got {counted(len(self.of), 'other photo')} "
            f"({printable(known, 100)}{', …' if len(self.of) > 3 else ''}): image_id is the number at the end of the file's "
            "name, or the name"
        )


def _keys(photo: str) -> list[Key]:
    """What a file of boxes may call a photo: its path, name, name without ending, and the number at the end of it."""
    path = Path(photo)
    digits = re.search(r"\d+$", path.stem, re.ASCII)
    number = [int(digits[0])] if digits and len(digits[0]) < 19 else []
    return [photo, path.name, path.stem, *number]


def _reading_as_corners(box: Sequence[float], size: tuple[int, int]) -> str:
    x1, y1, x2, y2 = box
    fits = x1 < x2 <= size[0] + SLACK and y1 < y2 <= size[1] + SLACK
    return " (it would fit as x1, y1, x2, y2: convert it)" if fits else ""


def read_detector_boxes(path: str | os.PathLike) -> DetectorBoxes:
    """The boxes of a detector's file: COCO's results `[{"image_id", "bbox": [x, y, width, height], "score"}, …]`, or an
    object with `annotations` and `images`, of which `file_name` names the photos.

    Raises `DataError` for another file, or a box that is not four finite numbers with a width and height above 0.
    """
    given, names = read_json(path), {}
    value = given.get("annotations") if isinstance(given, dict) else given
    if not isinstance(value, list) or not value:
        raise DataError(
            f'{path} must be COCO\'s results, a list of {{"image_id", "bbox": [x, y, width, height], "score"}}, got '
            f"{quoted(given, 60)}"
        )
    if isinstance(given, dict):
        names = _names_of_images(path, given.get("images"))
    of: dict[Key, list[tuple[tuple[float, ...], float, str]]] = {}
    for number, entry in enumerate(value):
        key, box, score = _entry(path, number, entry)
        of.setdefault(names.get(key, key), []).append((box, score, f"entry {number}"))
    return DetectorBoxes(str(path), of)


def _entry(path: str | os.PathLike, number: int, entry: Any) -> tuple[Key, tuple[float, ...], float]:
    place = f"{path}, entry {number}"
    if not isinstance(entry, dict):
        raise DataError(f"{place}: must be an object with image_id and bbox, got {quoted(entry, 60)}")
    box, score = entry.get("bbox", entry.get("box")), entry.get("score", 1.0)
    finite = isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) and abs(v) < 1e9 for v in box)
    if not finite or box[2] <= 0 or box[3] <= 0:
        raise DataError(f"{place}: bbox must be x, y, width, height, the last two above 0, got {quoted(box, 80)}")
    if type(score) not in (int, float):
        raise DataError(f"{place}: score must be a number, got {quoted(score, 60)}")
    key = next((entry[name] for name in (*NAMES, "image_id") if type(entry.get(name)) in (int, str)), None)
    if key is None:
        raise DataError(
            f"{place}: must have image_id, a number or the photo's name, got {quoted(entry.get('image_id'), 60)}"
        )
    return key, tuple(map(float, box)), float(score)


def _names_of_images(path: str | os.PathLike, images: Any) -> dict[Key, str]:
    if images is None:
        return {}
    named = isinstance(images, list) and all(
        isinstance(image, dict) and type(image.get("id")) in (int, str) and type(image.get("file_name")) is str
        for image in images
    )
    if not named:
        raise DataError(f"{path}: images must be objects with id and file_name, got {quoted(images, 60)}")
    return {image["id"]: Path(image["file_name"]).name for image in images}
