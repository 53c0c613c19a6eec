"""Confusion as a heat map inside of a page: with names for few classes, in pixels for many, and the strongest listed."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from jclip.report.page_words import Words
from jclip.report.predictions import shorten
from jclip.report.web_page import Cell, clean, table

NAMED = 40  # classes: of more the map has no names
LARGEST = 2000  # classes: of more there is no map
MOST_MARKED, MOST_LISTED = 300, 40  # confusions with a title on the map; in the list
CELL, LABEL, LETTERS = 20, 130, 20
RIGHT, WRONG = (46, 150, 80), (214, 88, 28)  # of a map in pixels, legible on light and on dark


def confusions(answers: Mapping[tuple[int, int], int], most: int) -> list[tuple[int, int, int]]:
    """(true, answer, count) of the most frequent wrong answers; of equally frequent ones the lower class first."""
    wrong = [(-count, true, said) for (true, said), count in answers.items() if true != said]
    return [(true, said, -count) for count, true, said in sorted(wrong)[:most]]


def confusion_map(words: Words, answers: Mapping[tuple[int, int], int], names: Sequence[str]) -> str:
    """The map beside the list of the strongest confusions. answers: (true class, answer) → count."""
    listed, totals = confusions(answers, MOST_LISTED), Counter()
    for (true, _), count in answers.items():
        totals[true] += count
    rows = [
        [
            names[true],
            names[said],
            Cell(f"{count:,}", count),
            Cell(f"{100 * count / totals[true]:.0f} %", count / totals[true]),
        ]
        for true, said, count in listed
    ]
    head = [words(f"confusion.{k}") for k in ("true", "said", "times", "share")]
    beside = table(words, head, rows) if rows else f"<p>{clean(words('confusion.none'))}</p>"
    if (more := sum(true != said for true, said in answers) - len(listed)) > 0:
        beside += f'<p class="note">{clean(words("confusion.more", count=more))}</p>'
    if len(names) <= LARGEST:
        drawn = _drawn(words, answers, names)
    else:
        drawn = f"<p>{clean(words('confusion.too_many', count=len(names)))}</p>"
    return f'<div class="pair"><div class="map">{drawn}</div><div>{beside}</div></div>'


def _drawn(words: Words, answers: Mapping[tuple[int, int], int], names: Sequence[str]) -> str:
    counts = np.zeros((len(names), len(names)), int)
    for pair, count in answers.items():
        counts[pair] = count
    return _with_names(words, counts, names) if len(names) <= NAMED else _in_pixels(words, counts, answers, names)


def _shares(counts: np.ndarray) -> np.ndarray:
    """(C, C) of each true class the share of its answers; 0 in a row without any."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _with_names(words: Words, counts: np.ndarray, names: Sequence[str]) -> str:
    C, shares, cells = len(names), _shares(counts), []
    side, labels = LABEL + CELL * C, []
    for true in range(C):
        y = LABEL + CELL * true
        name = clean(_cut(names[true]))
        labels.append(f'<text x="{LABEL - 6}" y="{y + 14}" text-anchor="end">{name}</text>')
        at = LABEL + CELL * true + 14
        labels.append(f'<text x="{at}" y="{LABEL - 6}" transform="rotate(-90 {at} {LABEL - 6})">{name}</text>')
        for said in np.flatnonzero(counts[true]).tolist():
            x, share = LABEL + CELL * said, shares[true, said]
            kind = "right" if true == said else "wrong"
            said_so = clean(words("confusion.cell", true=names[true], said=names[said], count=int(counts[true, said])))
            cells.append(
                f'<rect class="{kind}" x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" rx="2" '
                f'fill-opacity="{0.12 + 0.88 * share**0.5:.3f}"><title>{said_so}</title></rect>'
            )
    frame = f'<rect x="{LABEL}" y="{LABEL}" width="{CELL * C}" height="{CELL * C}" fill="none" class="grid"/>'
    label = clean(words("confusion.label", count=C))
    return (
        f'<svg viewBox="0 0 {side} {side}" style="max-width:{side}px" role="img" aria-label="{label}">'
        f"{frame}{''.join(labels)}{''.join(cells)}</svg>"
    )


def _in_pixels(words: Words, counts: np.ndarray, answers: Mapping[tuple[int, int], int], names: Sequence[str]) -> str:
    C, shares = len(names), _shares(counts)
    pixels = np.zeros((C, C, 4), np.uint8)
    pixels[..., :3] = WRONG
    pixels[np.arange(C), np.arange(C), :3] = RIGHT
    pixels[..., 3] = np.where(counts > 0, 60 + 195 * np.sqrt(shares), 0).round()
    scale = max(1, round(400 / C))  # where the page is printed, pixels would blur
    picture = Image.fromarray(pixels.repeat(scale, 0).repeat(scale, 1), "RGBA")
    picture.quantize(64, Image.Quantize.FASTOCTREE).save(written := io.BytesIO(), "PNG", optimize=True)
    data = base64.b64encode(written.getvalue()).decode("ascii")
    marks = "".join(
        f'<rect x="{said}" y="{true}" width="1" height="1" fill="transparent"><title>'
        f"{clean(words('confusion.cell', true=names[true], said=names[said], count=count))}</title></rect>"
        for true, said, count in confusions(answers, MOST_MARKED)
    )
    edge = f'<rect width="{C}" height="{C}" fill="none" class="grid" vector-effect="non-scaling-stroke"/>'
    label = clean(words("confusion.label", count=C))
    return (
        f'<svg viewBox="0 0 {C} {C}" role="img" aria-label="{label}"><image width="{C}" height="{C}" '
        f'href="data:image/png;base64,{data}"/>{edge}{marks}</svg><p class="note">{clean(words("confusion.pixels"))}</p>'
    )


def _cut(name: str) -> str:
    """A name as long as its place on the map."""
    return name if len(name) <= LETTERS else shorten(name, LETTERS)
