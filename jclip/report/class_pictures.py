"""Pictures of what became of each class, drawn by Pillow: matplotlib takes seconds over the labels of a hundred classes."""

from __future__ import annotations

import functools
import importlib.util
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jclip.errors import printable
from jclip.paths import replacing
from jclip.report.plots import FONTS, find_font

LARGEST_MATRIX = 100  # classes: more are illegible in a picture
DOTS = 120  # per inch
LONGEST = 24  # letters of a name
SMALL, LARGE = 10, 16  # letters' size: of a class's name, of an axis
GAP, MARK, EDGE = 4, 4, 14  # between a mark and its label; a mark's length; between labels and the picture's edge
INK, GREY, BAR = (20, 20, 20), (128, 128, 128), (31, 119, 180)
BLUES = np.array([  # ColorBrewer's sequence, from 0 to 1 in equal steps
    (247, 251, 255), (222, 235, 247), (198, 219, 239), (158, 202, 225), (107, 174, 214), (66, 146, 198), (33, 113, 181),
    (8, 81, 156), (8, 48, 107),
])  # fmt: skip

Target = str | os.PathLike | io.BytesIO


def plot_classes(path: Target, shares: np.ndarray, classnames: Sequence[str]) -> None:
    """Top-1 (C,) of each class as a bar, the worst class first; NaN for a class without photos."""
    order = np.argsort(np.nan_to_num(shares, nan=2.0), kind="stable")
    names = [_label(classnames[i]) for i in order]
    picture = _picture(6.4, max(2.5, 0.2 * len(names) + 1.0))
    draw = ImageDraw.Draw(picture)
    left, right = _widest(names) + GAP + MARK + EDGE, picture.width - 2 * EDGE
    top, bottom = EDGE, picture.height - 2 * LARGE - MARK - GAP - 3 * EDGE // 2
    row, wide = (bottom - top) / max(len(names), 1), right - left
    for place, (name, share) in enumerate(zip(names, np.nan_to_num(shares[order]), strict=True)):
        middle = top + (place + 0.5) * row
        draw.rectangle((left, middle - 0.4 * row, left + wide * float(share), middle + 0.4 * row), fill=BAR)
        _name_row(draw, name, left, middle)
    known = shares[np.isfinite(shares)]
    if len(known):
        at = left + wide * float(known.mean())
        for y in range(top, bottom, 8):
            draw.line((at, y, at, min(y + 5, bottom)), fill=GREY)
    for percent in range(0, 101, 20):
        at = left + wide * percent / 100
        draw.line((at, bottom, at, bottom + MARK), fill=INK)
        draw.text((at, bottom + MARK + GAP), str(percent), INK, _font(LARGE), anchor="ma")
    draw.rectangle((left, top, right, bottom), outline=INK)
    middle, below = (left + right) / 2, picture.height - EDGE / 2
    draw.text((middle, below), "top-1, %; dashed: mean over the classes", INK, _font(LARGE), anchor="mb")
    _save(picture, path)


def plot_confusion(path: Target, confusion: np.ndarray, classnames: Sequence[str]) -> None:
    """(C, C) counts as shares of each true class's row."""
    size = max(4.0, 0.22 * len(classnames) + 1.5)
    picture, names = _picture(size, size), [_label(name) for name in classnames]
    draw = ImageDraw.Draw(picture)
    beside = _widest(names) + GAP + MARK + LARGE + 2 * EDGE  # names, and what the axis is
    side = min(picture.width - beside - 5 * SMALL - 2 * EDGE, picture.height - beside - EDGE)
    left, top = beside, (picture.height - beside - side) // 2
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    picture.paste(Image.fromarray(_blue(shares)).resize((side, side), Image.Resampling.NEAREST), (left, top))
    draw.rectangle((left, top, left + side, top + side), outline=INK)
    for place, name in enumerate(names):
        middle = (place + 0.5) * side / len(names)
        _name_row(draw, name, left, top + middle)
        _name_column(picture, name, left + middle, top + side)
    draw.text((left + side / 2, top + side + beside - EDGE), "predicted", INK, _font(LARGE), anchor="mb")
    _paste_turned(picture, "true", LARGE, (EDGE // 2, top + side // 2), centred=True)
    _scale(picture, left + side + EDGE, top + side * 0.2, side * 0.6)
    _save(picture, path)


def _scale(picture: Image.Image, left: float, top: float, high: float) -> None:
    """The colours from 1 down to 0, with their numbers."""
    draw, tall = ImageDraw.Draw(picture), max(round(high), 2)
    colours = _blue(np.repeat(np.linspace(1, 0, tall)[:, None], SMALL, axis=1))
    picture.paste(Image.fromarray(colours), (round(left), round(top)))
    draw.rectangle((round(left), round(top), round(left) + SMALL, round(top) + tall), outline=INK)
    for fifth in range(6):
        y = top + high * (1 - fifth / 5)
        draw.line((left + SMALL, y, left + SMALL + MARK, y), fill=INK)
        draw.text((left + SMALL + MARK + GAP, y), f"{fifth / 5:.1f}", INK, _font(SMALL + 2), anchor="lm")


def _name_row(draw: ImageDraw.ImageDraw, name: str, right: float, y: float) -> None:
    draw.line((right - MARK, y, right, y), fill=INK)
    draw.text((right - MARK - GAP, y), name, INK, _font(SMALL, name), anchor="rm")


def _name_column(picture: Image.Image, name: str, x: float, top: float) -> None:
    ImageDraw.Draw(picture).line((x, top, x, top + MARK), fill=INK)
    _paste_turned(picture, name, SMALL, (round(x - SMALL / 2 - 1), round(top + MARK + GAP)))


def _paste_turned(picture: Image.Image, text: str, size: int, at: tuple[int, int], centred: bool = False) -> None:
    """Text that is read from below: its end, or with `centred` its middle, stands at `at`."""
    font = _font(size, text)
    wide, high = max(1, round(font.getlength(text))), size + 3
    line = Image.new("RGB", (wide, high), "white")
    ImageDraw.Draw(line).text((0, high / 2), text, INK, font, anchor="lm")
    x, y = at
    picture.paste(line.rotate(90, expand=True), (x, y - wide // 2 if centred else y))


def _blue(shares: np.ndarray) -> np.ndarray:
    """Shares of any shape → colours (..., 3) uint8."""
    steps = np.linspace(0, 1, len(BLUES))
    return np.stack([np.interp(shares, steps, own) for own in BLUES.T], axis=-1).round().astype(np.uint8)


def _label(name: str) -> str:
    return printable(name[:LONGEST].replace("_", " "))


def _widest(names: Sequence[str]) -> int:
    return max((round(_font(SMALL, name).getlength(name)) for name in names), default=0)


def _picture(wide: float, high: float) -> Image.Image:
    """A white one; inches."""
    return Image.new("RGB", (round(wide * DOTS), round(high * DOTS)), "white")


def _font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """The first of the usual fonts; for other letters than ASCII's the first that draws them all."""
    fonts = [_loaded(path, size) for path in (_usual() if not text.isascii() else _usual()[:1])]
    return next((font for font in fonts if text.isascii() or _draws(font, text)), fonts[0])


@functools.cache
def _usual() -> list[str]:
    found = find_font()
    return [*([found] if found else []), *(path for path in (*FONTS, _own_font()) if Path(path).is_file())]


def _draws(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Whether no letter looks as one that no font has."""
    unknown = bytes(font.getmask("\U0010fffe"))
    return all(letter.isspace() or bytes(font.getmask(letter)) != unknown for letter in text)


@functools.cache
def _loaded(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def _own_font() -> str:
    """The font that comes with matplotlib, found without importing it."""
    spec = importlib.util.find_spec("matplotlib")
    return f"{Path(spec.origin).parent}/mpl-data/fonts/ttf/DejaVuSans.ttf" if spec and spec.origin else ""


def _save(picture: Image.Image, path: Target) -> None:
    """Drawn in memory, where no full disk ends in an error of the encoder's own, and written whole."""
    drawn = path if isinstance(path, io.BytesIO) else io.BytesIO()
    picture.save(drawn, "PNG", dpi=(DOTS, DOTS))
    if not isinstance(path, io.BytesIO):
        with replacing(path) as temporary:
            temporary.write_bytes(drawn.getvalue())
