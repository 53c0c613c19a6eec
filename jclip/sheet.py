"""A contact sheet: photos with what was predicted for them, in one picture."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from jclip.data.loader import open_photo
from jclip.errors import ConfigError
from jclip.paths import replacing
from jclip.report import find_font
from jclip.results import Predictions

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
TILE, LINE, GAP = 128, 15, 8  # pixels
RIGHT, WRONG, UNKNOWN = (20, 110, 40), (180, 30, 30), (30, 30, 30)


def check_sheet(path: str | None) -> None:
    """Raises `ConfigError` for a picture whose ending names no format: to be asked before the work, not after."""
    if path is not None and Path(path).suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: a sheet is written as one of {', '.join(SUFFIXES)}")


def write_sheet(
    path: str | os.PathLike, predictions: Predictions, labels: Sequence[int] | None = None, count: int = 24
) -> None:
    """Writes `count` photos, evenly spaced, each above its best class and that one's probability.

    With `labels` (-1: not known) right classes are green and wrong ones red, the true one below. Raises `ConfigError`
    for another ending, `DataError` for a photo that has stopped to decode.
    """
    check_sheet(str(path))
    total = len(predictions.photos)
    rows = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))
    columns = min(8, len(rows))
    height = TILE + 2 * LINE + GAP
    sheet = Image.new("RGB", (columns * (TILE + GAP) + GAP, math.ceil(len(rows) / columns) * height + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), _font()
    best, probabilities = predictions.best[:, 0], predictions.probabilities
    for place, row in enumerate(rows):
        x, y = GAP + place % columns * (TILE + GAP), GAP + place // columns * height
        photo = ImageOps.exif_transpose(open_photo(predictions.photos[row])).convert("RGB")
        sheet.paste(ImageOps.pad(photo, (TILE, TILE), color="white"), (x, y))
        true = -1 if labels is None else int(labels[row])
        colour = UNKNOWN if true < 0 else RIGHT if true == best[row] else WRONG
        said = f"{_spoken(predictions, best[row])} {100 * probabilities[row, best[row]]:.0f} %"
        pen.text((x, y + TILE), said, fill=colour, font=font)
        if true not in (-1, best[row]):
            pen.text((x, y + TILE + LINE), f"is {_spoken(predictions, true)}", fill=UNKNOWN, font=font)
    with replacing(path) as temporary:
        sheet.save(
            temporary, format="JPEG" if Path(path).suffix.lower() in (".jpg", ".jpeg") else Path(path).suffix[1:]
        )


def _spoken(predictions: Predictions, label: int) -> str:
    return predictions.classnames[label].replace("_", " ")


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    found = find_font()
    return ImageFont.truetype(found, 11) if found else ImageFont.load_default()
