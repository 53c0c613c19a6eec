"""What a contact sheet shows: which photos, in which sections, and what it says of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

from jclip.data.photo_file import open_photo
from jclip.data.stored_photos import spoken_path
from jclip.errors import ConfigError, DataError, printable
from jclip.functional.metrics import ranking
from jclip.report.predictions import UNKNOWN, Predictions
from jclip.report.tags import Tags, number

Choice = Literal["spread", "certainty"]
Verdict = Literal["right", "wrong", "unknown", "open"]  # open: nobody knows the true class
ColouredBox = tuple[tuple[float, float, float, float], tuple[int, int, int]]  # corners, colour
CHOICES = get_args(Choice)
MOST_NAMED = 3  # classes of a photo
MOST_TAGS = 6  # of a photo
NO_TAG = "none"
EMPTY = "no photos"
DARK = (20, 20, 20)
ABSENT = (150, 152, 158)  # colour of a photo that is not there
LONGEST = 500  # letters of a name or prompt


@dataclass(frozen=True)
class Tile:
    """One photo and what was predicted for it."""

    photo: str
    best: tuple[tuple[str, float], ...]  # classes with their probabilities, or the lengths of their bars, best first
    verdict: Verdict
    true: str = ""  # the true class, where it is known and not what was predicted
    prompt: str = ""
    upright: bool = True  # as the model saw it
    numbers: tuple[str, ...] = ()  # what stands beside the bars in place of percents
    badge: str = UNKNOWN  # in the corner of a photo whose verdict is unknown
    may_be_absent: bool = False  # then a photo that does not decode is a grey square, and no error
    boxes: tuple[ColouredBox, ...] = ()  # in pixels of the photo

    def number(self, rank: int, digits: int = 1) -> str:
        """What stands beside the class of that rank."""
        return self.numbers[rank] if self.numbers else f"{100 * self.best[rank][1]:.{digits}f} %"

    @property
    def file(self) -> str:
        """The photo's name without its folder, on one line."""
        return _cleaned(Path(spoken_path(self.photo)).name)


@dataclass(frozen=True)
class Section:
    """Photos that belong together; the only section of a sheet has no title."""

    title: str
    tiles: tuple[Tile, ...]
    note: str = ""

    @property
    def span(self) -> str:
        """Its note, by default the lowest and the highest probability of a best class, or the one that all have."""
        if self.note:
            return self.note
        shares = sorted(tile.best[0][1] for tile in self.tiles)
        return " – ".join(dict.fromkeys(f"{100 * share:.1f}" for share in (shares[0], shares[-1]))) + " %"


def sections(
    predictions: Predictions,
    labels: Sequence[int] | None = None,
    count: int = 24,
    choice: Choice = "spread",
    upright: bool = True,
) -> list[Section]:
    """`count` photos, evenly spaced (`spread`), or the least and the most certain ones (`certainty`).

    upright: whether the model saw them so, with their EXIF orientation applied.
    labels: (N,) true classes, -1 where not known. No section is empty: of no photos there is none.
    """
    if choice not in CHOICES:
        raise ConfigError(f"unknown choice {choice!r} of photos (known: {', '.join(CHOICES)})")
    if count < 1:
        raise ConfigError(f"a sheet of {count} photos: it shows at least one")
    probabilities, known = predictions.probabilities, predictions.known
    best = ranking(predictions.scores, MOST_NAMED)
    chosen = _spread(len(best), count) if choice == "spread" else _by_certainty(probabilities.max(axis=1), count)

    def tile(row: int) -> Tile:
        true = -1 if labels is None else int(labels[row])
        return Tile(
            photo=predictions.photos[row],
            best=tuple((_spoken(predictions, i), float(probabilities[row, i])) for i in best[row]),
            verdict=_verdict(bool(known[row]), true, int(best[row, 0])),
            true=_spoken(predictions, true) if true >= 0 and not (known[row] and true == best[row, 0]) else "",
            prompt=_cleaned(predictions.prompts[row]) if predictions.prompts else "",
            upright=upright,
        )

    return [Section(title, tuple(map(tile, rows))) for title, rows in chosen.items() if len(rows)]


def tag_tiles(tags: Tags, count: int = 24, upright: bool = True) -> list[Section]:
    """`count` photos, evenly spaced, with their best tags. Bars are shares of 1, of scores beyond 0 to 1 of their range."""
    rows = _spread(len(tags.photos), count)[""] if tags.photos else ()
    low, high = (float(tags.scores.min()), float(tags.scores.max())) if tags.scores.size else (0.0, 1.0)
    if (low >= 0 and high <= 1) or low == high:
        low, high = 0.0, max(1.0, high)

    def tile(row: int) -> Tile:
        own = tags.of(row)[:MOST_TAGS]
        return Tile(
            photo=tags.photos[row],
            best=tuple((_name(tags.classnames[i]), (float(tags.scores[row, i]) - low) / (high - low)) for i in own),
            verdict="open" if own else "unknown",
            upright=upright,
            numbers=tuple(number(tags, row, i) for i in own),
            badge=NO_TAG,
        )

    return [Section("", tuple(map(tile, rows)))] if len(rows) else []


def _spread(total: int, count: int) -> dict[str, np.ndarray]:
    return {"": np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))}


def _by_certainty(certainty: np.ndarray, count: int) -> dict[str, list[int]]:
    """Half of the photos each, none in both; of equally certain ones the earlier come first."""
    count = min(count, len(certainty))
    least = np.argsort(certainty, kind="stable")[: (count + 1) // 2].tolist()
    most = np.argsort(-certainty, kind="stable").tolist()
    return {"least certain": least, "most certain": [row for row in most if row not in least][: count // 2]}


def _verdict(known: bool, true: int, best: int) -> Verdict:
    if not known:
        return "unknown"
    return "open" if true < 0 else "right" if true == best else "wrong"


def _spoken(predictions: Predictions, label: int) -> str:
    return _name(predictions.classnames[label])


def _name(classname: str) -> str:
    return _cleaned(classname.replace("_", " "))


def _cleaned(text: str) -> str:
    """On one line, without what a page or picture would obey, and not longer than anybody reads."""
    return printable(" ".join(text[:LONGEST].split()))


def small_photo(tile: Tile, side: int) -> Image.Image:
    """A tile's photo in colours as the model saw it, large enough for `side` pixels.

    Raises `DataError` when it no longer decodes, unless it may be absent.
    """
    try:
        if tile.boxes:
            return with_boxes(open_photo(tile.photo, upright=tile.upright).convert("RGB"), tile.boxes, 2 * side)
        return open_photo(tile.photo, (2 * side, 2 * side), tile.upright).convert("RGB")
    except DataError:
        if not tile.may_be_absent:
            raise
        return Image.new("RGB", (side, side), ABSENT)


def with_boxes(photo: Image.Image, boxes: Sequence[ColouredBox], side: int, width: int = 0) -> Image.Image:
    """The photo with its long side at `side` pixels and boxes drawn on it, in lines of `width` pixels, each within a dark
    one."""
    ratio = side / max(photo.size)
    drawing = photo.resize([max(round(n * ratio), 1) for n in photo.size], Image.Resampling.BICUBIC)
    pen, line = ImageDraw.Draw(drawing), width or max(2, side // 96)
    for wide, shade in ((line + 2, True), (line, False)):
        for box, colour in boxes:
            corners = [min(max(v * ratio, 0), limit - 1) for v, limit in zip(box, drawing.size * 2, strict=True)]
            pen.rectangle(corners, outline=DARK if shade else colour, width=wide)
    return drawing
