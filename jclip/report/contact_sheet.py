"""A contact sheet: photos with what was predicted for them, in one picture or one page."""

from __future__ import annotations

import functools
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from jclip.errors import ConfigError
from jclip.paths import replacing
from jclip.report.contact_page import legend, page
from jclip.report.plots import find_font
from jclip.report.predictions import Predictions, shorten
from jclip.report.tags import Tags
from jclip.report.tiles import EMPTY, MOST_NAMED, Choice, Section, Tile, sections, small_photo, tag_tiles

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".html")
Colour = tuple[int, int, int]
TILE, LINE, GAP = 128, 15, 8  # pixels
CARD, ROW, BAR, TITLE = 192, 27, 5, 44
MORE_LINES = 2  # of a phrase, below its first
RIGHT, WRONG, INK = (20, 110, 40), (180, 30, 30), (30, 30, 30)
COLOURS = {"right": RIGHT, "wrong": WRONG, "unknown": (110, 110, 120), "open": INK}
BARS = {**COLOURS, "open": (60, 105, 175)}
PALE, PAPER = (108, 113, 124), (255, 255, 255)
TRACK, OTHERS, BACK = (232, 234, 238), (165, 172, 184), (244, 245, 247)  # of bars, and behind photos


def check_sheet(path: str | None) -> None:
    """Raises `ConfigError` for a sheet whose ending names no format: to be asked before the work, not after."""
    if path is not None and Path(path).suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: a sheet is written as one of {', '.join(SUFFIXES)}")


def write_sheet(
    path: str | os.PathLike,
    predictions: Predictions,
    labels: Sequence[int] | None = None,
    count: int = 24,
    choice: Choice = "spread",
    upright: bool = True,
) -> None:
    """Writes `count` photos with their best classes and probabilities, as a picture or, to .html, as a page of its own.

    spread: evenly spaced photos, in a picture with one class each. certainty: half of them the least certain, half the
    most certain ones, with three classes each. With `labels` (-1: not known) right classes are green and wrong ones red,
    the true one below. upright: whether the model saw the photos so. Raises `ConfigError` for another ending, choice, or
    a count below one, `DataError` for a photo that has stopped to decode.
    """
    check_sheet(str(path))
    parts = sections(predictions, labels, count, choice, upright)
    _write(path, parts, PLAIN if choice == "spread" else CARDS, len(predictions.photos), legend(parts, predictions))


def write_tag_sheet(path: str | os.PathLike, tags: Tags, count: int = 24, upright: bool = True) -> None:
    """Writes `count` photos, evenly spaced, with their tags and scores. Raises as `write_sheet` does."""
    check_sheet(str(path))
    parts = tag_tiles(tags, count, upright)
    most = max((len(tile.best) for part in parts for tile in part.tiles), default=0)
    look = replace(CARDS, height=CARDS.height + max(0, most - MOST_NAMED) * ROW)
    _write(path, parts, look, len(tags.photos), f"{len(tags.classnames)} classes · numbers: {tags.kind}")


def write_sections(path: str | os.PathLike, parts: Sequence[Section], title: str, said: str) -> None:
    """Writes sections that were made elsewhere, below a title and a line. Raises as `write_sheet` does."""
    check_sheet(str(path))
    drawn = any(tile.boxes for part in parts for tile in part.tiles)  # with phrases that need more than a line
    look = replace(CARDS, height=CARDS.height - (MOST_NAMED - 1) * ROW + drawn * MORE_LINES * LINE)
    _write(path, parts, look, sum(len(part.tiles) for part in parts), said, title)


def _write(
    path: str | os.PathLike, parts: Sequence[Section], look: _Look, photos: int, said: str, title: str = ""
) -> None:
    """The sections as a page or a picture; photos: how many there are in all; said: below the page's title."""
    suffix = Path(path).suffix.lower()
    if suffix == ".html":
        text = page(parts, photos, said, title)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return
    sheet = _picture(parts, look)
    drawn = io.BytesIO()  # a full disk would end in an error of the encoder's own
    sheet.save(drawn, format="JPEG" if suffix in (".jpg", ".jpeg") else suffix[1:], quality=90)
    with replacing(path) as temporary:
        temporary.write_bytes(drawn.getvalue())


@dataclass(frozen=True)
class _Look:
    """The size of a tile in pixels, how many stand beside each other, and who draws one at (x, y)."""

    columns: int
    width: int
    height: int
    gap: int
    draw: Callable[[Image.Image, Tile, int, int], None]


def _picture(parts: Sequence[Section], look: _Look) -> Image.Image:
    """The sections below each other, each a grid of tiles."""
    if not parts:
        return _empty()
    columns = min(look.columns, max(len(part.tiles) for part in parts))
    across, down = look.width + look.gap, look.height + look.gap
    heights = [(TITLE if part.title else 0) + math.ceil(len(part.tiles) / columns) * down for part in parts]
    sheet = Image.new("RGB", (columns * across + look.gap, sum(heights) + look.gap), PAPER)
    top = look.gap
    for part, height in zip(parts, heights, strict=True):
        if part.title:
            _draw_title(sheet, part, look.gap, top)
        start = top + (TITLE if part.title else 0)
        for place, tile in enumerate(part.tiles):
            look.draw(sheet, tile, look.gap + place % columns * across, start + place // columns * down)
        top += height
    return sheet


def _empty() -> Image.Image:
    sheet = Image.new("RGB", (TILE + 2 * GAP, 3 * LINE), PAPER)
    ImageDraw.Draw(sheet).text((GAP, LINE), EMPTY, fill=PALE, font=_font(11))
    return sheet


def _draw_title(sheet: Image.Image, part: Section, x: int, y: int) -> None:
    pen = ImageDraw.Draw(sheet)
    room = sheet.width - 3 * x - _font(13).getlength(part.span)
    pen.text((x, y + 24), _fit(part.title, _font(20), room), fill=INK, font=_font(20), anchor="ls")
    pen.text((sheet.width - x, y + 24), part.span, fill=PALE, font=_font(13), anchor="rs")
    pen.line((x, y + 33, sheet.width - x, y + 33), fill=TRACK)


def _draw_plain(sheet: Image.Image, tile: Tile, x: int, y: int) -> None:
    """The photo above its best class."""
    pen, font = ImageDraw.Draw(sheet), _font(11)
    _draw_photo(sheet, tile, x, y, TILE, PAPER)
    name, share = tile.best[0][0], f" {tile.number(0, digits=0)}"
    said = _fit(name, font, TILE - font.getlength(share)) + share
    pen.text((x, y + TILE), said, fill=COLOURS[tile.verdict], font=font)
    if tile.true:
        pen.text((x, y + TILE + LINE), _fit(f"is {tile.true}", font, TILE), fill=INK, font=font)


def _draw_card(sheet: Image.Image, tile: Tile, x: int, y: int) -> None:
    """The photo above its best classes with bars, the true class where it is another, and the file's name."""
    pen, small = ImageDraw.Draw(sheet), _font(11)
    _draw_photo(sheet, tile, x, y, CARD, BACK)
    below = y + CARD + 7
    more = _words_left(tile) if tile.boxes else []
    for rank, (name, probability) in enumerate(tile.best):
        name = name if not more else name[: len(name) - len(" ".join(more))].rstrip()
        ink, bar = (PALE, OTHERS) if rank else (COLOURS[tile.verdict], BARS[tile.verdict])
        _draw_share(pen, name, tile.number(rank), ink, x, below + rank * ROW)
        _draw_bar(pen, probability, bar, x, below + rank * ROW + 18)
    below += len(tile.best) * ROW
    for line in _lines_of(more, _font(13), CARD)[:MORE_LINES]:
        pen.text((x, below), line, fill=COLOURS[tile.verdict], font=_font(13))
        below += LINE
    if tile.true:
        pen.text((x, below), _fit(f"is {tile.true}", _font(13), CARD), fill=INK, font=_font(13))
        below += LINE + 3
    pen.text((x, below), _fit_end(tile.file, small, CARD), fill=PALE, font=small)


def _words_left(tile: Tile) -> list[str]:
    """The words of a tile's phrase that do not fit beside its number."""
    words, font = tile.best[0][0].split(), _font(13)
    room, kept = CARD - font.getlength(tile.number(0)) - 8, 0
    while kept < len(words) and font.getlength(" ".join(words[: kept + 1])) <= room:
        kept += 1
    return words[max(kept, 1) :]


def _lines_of(words: list[str], font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Words in lines of that width; the last that are shown ends in … where more follow."""
    lines: list[str] = []
    for at, word in enumerate(words):
        if len(lines) == MORE_LINES and font.getlength(f"{lines[-1]} {word}") > width:
            return [*lines[:-1], _fit(" ".join([lines[-1], *words[at:]]), font, width)]
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(_fit(word, font, width))
    return lines


def _draw_share(pen: ImageDraw.ImageDraw, name: str, share: str, ink: Colour, x: int, y: int) -> None:
    """A class at the left, its probability or score at the right."""
    font = _font(13)
    pen.text((x, y + 13), _fit(name, font, CARD - font.getlength(share) - 8), fill=ink, font=font, anchor="ls")
    pen.text((x + CARD, y + 13), share, fill=ink, font=font, anchor="rs")


def _draw_bar(pen: ImageDraw.ImageDraw, probability: float, colour: Colour, x: int, y: int) -> None:
    """A bar as long as that share of the card."""
    pen.rectangle((x, y, x + CARD - 1, y + BAR - 1), fill=TRACK)
    if length := round(probability * CARD):
        pen.rectangle((x, y, x + length - 1, y + BAR - 1), fill=colour)


def _draw_photo(sheet: Image.Image, tile: Tile, x: int, y: int, side: int, back: Colour) -> None:
    """The whole photo in a square; a badge in its corner says that it belongs to no class."""
    sheet.paste(ImageOps.pad(small_photo(tile, side), (side, side), color=back), (x, y))
    if tile.verdict == "unknown":
        pen, font = ImageDraw.Draw(sheet), _font(11)
        pen.rounded_rectangle((x + 4, y + 4, x + 16 + font.getlength(tile.badge), y + 21), 4, fill=COLOURS["unknown"])
        pen.text((x + 10, y + 16), tile.badge, fill=PAPER, font=font, anchor="ls")


PLAIN = _Look(8, TILE, TILE + 2 * LINE, GAP, _draw_plain)
CARDS = _Look(6, CARD, CARD + 7 + 3 * ROW + 2 * LINE + 3, 20, _draw_card)


def _fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, or as much of its beginning as `width` pixels hold."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _fit_end(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, or as much of its end as `width` pixels hold: of a file's name it says more."""
    length = len(text)
    while length > 2 and font.getlength(shorten(text, length)) > width:
        length -= 1
    return shorten(text, length)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    found = find_font()
    if not found:
        import matplotlib

        found = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(found, size)
