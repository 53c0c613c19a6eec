"""Photos with boxes and their phrases drawn on them, and where a network looks; legible on any photo, in any script that
a font of this machine has."""

from __future__ import annotations

import functools
import io
import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from jclip.data.box_views import Placement
from jclip.errors import ConfigError, notice, printable
from jclip.paths import replacing
from jclip.report.plots import FONTS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
COLOURS = (  # far from each other and from most photos; after the last the first comes again
    (255, 210, 0), (0, 200, 255), (255, 80, 160), (90, 230, 90), (255, 130, 40), (170, 120, 255), (255, 255, 255),
    (0, 160, 120),
)  # fmt: skip
DARK, LIGHT = (20, 20, 20), (255, 255, 255)
SMALLEST = 480  # pixels of the drawing's long side: smaller photos are enlarged
HEAT = np.array((255, 70, 20), float)
MOST_LETTERS, MOST_LINES = 200, 3
Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class DrawnBox:
    """Corners in pixels of the photo with what is written at them. sure: else the line is dashed."""

    box: Sequence[float]
    label: str
    sure: bool = True


def check_drawing(path: str | None) -> None:
    """Raises `ConfigError` for a picture whose ending names no format: to be asked before the work, not after."""
    if path is not None and Path(path).suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{printable(path, 200)}: a drawing is written as one of {', '.join(SUFFIXES)}")


def save_drawing(path: str | os.PathLike, drawing: Image.Image) -> None:
    """Writes the picture whole, in the format of the ending. Raises `ConfigError` for another ending."""
    check_drawing(str(path))
    suffix, drawn = Path(path).suffix.lower(), io.BytesIO()
    drawing.save(drawn, format="JPEG" if suffix in (".jpg", ".jpeg") else suffix[1:], quality=90)
    with replacing(path) as temporary:
        temporary.write_bytes(drawn.getvalue())


def draw_boxes(photo: Image.Image, boxes: Sequence[DrawnBox]) -> Image.Image:
    """An RGB photo with boxes, each in a colour of its own with its label beside it."""
    ratio = max(1.0, SMALLEST / max(photo.size))
    drawing = enlarged(photo, ratio)
    pen, line = ImageDraw.Draw(drawing), max(3, round(max(drawing.size) / 240))
    for number, box in enumerate(boxes):
        corners = [v * ratio for v in box.box]
        _solid(pen, corners, DARK, line + 2)
        (_solid if box.sure else _dashed)(pen, corners, COLOURS[number % len(COLOURS)], line)
    taken: list[Rectangle] = []
    for number, box in enumerate(boxes):
        if box.label:
            corners = [v * ratio for v in box.box]
            taken.append(_draw_label(drawing, box.label, corners, COLOURS[number % len(COLOURS)], taken))
    return drawing


def enlarged(photo: Image.Image, ratio: float) -> Image.Image:
    """A copy in RGB, `ratio` times as large."""
    if ratio == 1:
        return photo.convert("RGB").copy()
    return photo.convert("RGB").resize([max(1, round(side * ratio)) for side in photo.size], Image.Resampling.BICUBIC)


def _solid(pen: ImageDraw.ImageDraw, box: Sequence[float], colour: Colour, width: int) -> None:
    left, top, right, bottom = box
    grown = width / 2
    pen.rectangle((left - grown, top - grown, max(right, left) + grown, max(bottom, top) + grown), None, colour, width)


def _dashed(pen: ImageDraw.ImageDraw, box: Sequence[float], colour: Colour, width: int) -> None:
    left, top, right, bottom = box
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    for (x1, y1), (x2, y2) in itertools.pairwise(corners):
        length = math.hypot(x2 - x1, y2 - y1)
        pieces = max(1, round(length / (8 * width))) * 2 + 1
        for piece in range(0, pieces, 2):
            a, b = piece / pieces, (piece + 1) / pieces
            ends = (x1 + a * (x2 - x1), y1 + a * (y2 - y1), x1 + b * (x2 - x1), y1 + b * (y2 - y1))
            pen.line(ends, fill=colour, width=width)


def _draw_label(
    drawing: Image.Image, label: str, box: Sequence[float], colour: Colour, taken: Sequence[Rectangle]
) -> Rectangle:
    """Writes on a plate of the box's colour, above the box or where there is room. Returns the plate."""
    pen, size = ImageDraw.Draw(drawing), max(14, round(max(drawing.size) / 34))
    font = font_for(label, size)
    pad = max(3, size // 4)
    lines = wrapped(printable(label, MOST_LETTERS), font, drawing.width - 2 * pad)
    width = math.ceil(max(font.getlength(line) for line in lines)) + 2 * pad
    height = len(lines) * round(1.3 * size) + pad
    left, top = _free_place(box, (width, height), drawing.size, taken)
    plate = (left, top, left + width, top + height)
    pen.rounded_rectangle(plate, radius=pad, fill=colour, outline=DARK)
    ink = DARK if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 110 else LIGHT
    for number, line in enumerate(lines):
        y = top + pad / 2 + (number + 0.5) * 1.3 * size
        pen.text((left + pad, y), line, fill=ink, font=font, anchor="lm")
    return plate


def _free_place(
    box: Sequence[float], plate: tuple[int, int], size: tuple[int, int], taken: Sequence[Rectangle]
) -> tuple[float, float]:
    """The corner of a plate near a box, within the drawing and, where possible, on no other plate."""
    (width, height), (left, top, right, bottom) = plate, box
    rows = [top - height - 2, bottom + 2, top + 2, bottom - height - 2]
    rows += [top + 2 + step * (height + 2) for step in range(1, 12)]
    places = [(x, y) for y in rows for x in (left, right - width)]
    kept = [(_within(x, size[0] - width), _within(y, size[1] - height)) for x, y in places]
    for (x, y), (wished_x, wished_y) in zip(kept, places, strict=True):
        if abs(y - wished_y) < 1 and abs(x - wished_x) <= width and not _meets((x, y, x + width, y + height), taken):
            return x, y
    return next((p for p in kept if not _meets((*p, p[0] + width, p[1] + height), taken)), kept[0])


def _within(value: float, most: float) -> float:
    return min(max(value, 0), max(most, 0))


def _meets(plate: Rectangle, taken: Sequence[Rectangle]) -> bool:
    return any(plate[0] < t[2] and t[0] < plate[2] and plate[1] < t[3] and t[1] < plate[3] for t in taken)


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """The text on up to three lines of `width` pixels, broken at blanks, or within a word that is longer; cut with …"""
    lines, rest = [], text.strip() or " "
    while rest and len(lines) < MOST_LINES:
        count = len(rest)
        while count > 1 and font.getlength(rest[:count]) > width:
            count -= 1
        blank = rest.rfind(" ", 0, count + 1)
        if count < len(rest) and blank > 0:
            count = blank
        lines.append(rest[:count].strip())
        rest = rest[count:].strip()
    if rest:
        last = lines[-1]
        while last and font.getlength(f"{last}…") > width:
            last = last[:-1]
        lines[-1] = f"{last.rstrip()}…"
    return lines


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """A font that has the text's letters, if this machine has one; else it is noted once what is lacking."""
    letters = frozenset(c for c in text if c.isprintable() and not c.isspace())
    return _font(_font_file(letters), size)


@functools.cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@functools.cache
def _font_file(letters: frozenset[str]) -> str:
    import matplotlib

    own = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    usual = [path for path in (*FONTS, own) if Path(path).is_file()]
    for path in usual:
        if letters <= _letters_of(path):
            return path
    from matplotlib import font_manager

    for path in sorted(font_manager.findSystemFonts()):
        if letters <= _letters_of(path):
            return path
    lacking = "".join(sorted(letters - _letters_of(usual[0])))
    _say_lacking(lacking)
    return usual[0]


@functools.cache
def _say_lacking(letters: str) -> None:
    """Once, however many labels have them."""
    notice(
        f"no font here has the letters {letters[:20]}: boxes are drawn, labels not whole (install fonts-noto-cjk, or Noto)"
    )


@functools.cache
def _letters_of(path: str) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError, ValueError):  # a file that is no font, or of a kind that FreeType does not read
        return frozenset()


def draw_attention(photo: Image.Image, looked: Sequence[tuple[str, np.ndarray, Placement]]) -> Image.Image:
    """An RGB photo once for each phrase, greyed, with where [REG] looks in red; weights (rows, columns) of the square."""
    panels = [_panel(photo, *one) for one in looked]
    columns = min(4, len(panels))
    width, height = panels[0].size
    sheet = Image.new("RGB", (columns * width, math.ceil(len(panels) / columns) * height), LIGHT)
    for number, panel in enumerate(panels):
        sheet.paste(panel, (number % columns * width, number // columns * height))
    return sheet


def _panel(photo: Image.Image, phrase: str, weights: np.ndarray, place: Placement) -> Image.Image:
    ratio = SMALLEST / max(photo.size)
    base = ImageOps.grayscale(enlarged(photo, ratio))
    heat = Image.fromarray((weights / max(weights.max(), 1e-12)).astype(np.float32)).resize(
        (place.side, place.side), Image.Resampling.BILINEAR
    )
    cut = heat.crop((place.left, place.top, place.left + place.width, place.top + place.height))
    shares = np.asarray(cut.resize(base.size, Image.Resampling.BILINEAR), float)[..., None] * 0.8
    mixed = np.asarray(base, float)[..., None] * 0.7 * (1 - shares) + HEAT * shares
    panel = Image.fromarray(mixed.clip(0, 255).astype(np.uint8))
    _draw_label(panel, phrase, (4, 4, panel.width, 4), LIGHT, ())
    return panel
