"""A contact sheet of what a search found: a section per query, with its photos in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from jclip.errors import counted, printable
from jclip.report import contact_sheet
from jclip.report.search_results import OTHERS, Answer, How, Photo
from jclip.report.tiles import LONGEST, Section, Tile

BELOW = "background"  # in the corner of a photo that does not stand out


def write_search_sheet(
    path: str | os.PathLike,
    answers: Sequence[Answer],
    photo_at: Callable[[int], str],
    how: How,
    upright: bool = True,
) -> None:
    """Writes the photos of all queries, with cosines and captions; to .html as one page of its own.

    photo_at: row → what opens its photo. upright: whether the model saw photos so. A photo that is not there any more has a
    grey tile. Raises `ConfigError` for another ending.
    """
    parts = [_section(answer, photo_at, upright) for answer in answers if answer.hits]
    total = sum(len(part.tiles) for part in parts)
    contact_sheet.write_sections(path, parts, title=f"{counted(total, 'photo')} found", said=_said(answers, how))


def _said(answers: Sequence[Answer], how: How) -> str:
    said = ["numbers: cosines; bars: how far a photo stands out from the background of its query"]
    if empty := sum(not answer.hits for answer in answers):
        said.append(f"{empty} of {len(answers)} queries found nothing")
    if how.rerank != "none" or how.flips != "none":
        said.append(f"re-ranked: {how.rerank}" + (f", mirrored photos: {how.flips}" if how.flips != "none" else ""))
    if any(answer.uses_other_queries for answer in answers):
        said.append(OTHERS)
    return " · ".join(said)


def _section(answer: Answer, photo_at: Callable[[int], str], upright: bool) -> Section:
    compared = answer.background.deviation > 0
    largest = max(answer.background.line, *(hit.z for hit in answer.hits)) if compared else 1.0

    def tile(hit: Photo) -> Tile:
        share = (hit.z if compared else hit.score) / largest
        name = _cleaned(hit.caption or "") or ("stands out" if compared and hit.above else "cosine")
        return Tile(
            photo=photo_at(hit.row),
            best=((name, min(1.0, max(0.0, share))),),
            verdict="open" if hit.above else "unknown",
            upright=upright,
            numbers=(f"{hit.score:.3f}",),
            badge=BELOW,
            may_be_absent=True,
        )

    above = sum(hit.above for hit in answer.hits)
    note = f"{above} of {len(answer.hits)} stand out" if compared else counted(len(answer.hits), "photo")
    note += " · depends on the other queries" if answer.uses_other_queries else ""
    return Section(_cleaned(answer.query), tuple(map(tile, answer.hits)), note)


def _cleaned(text: str) -> str:
    return printable(" ".join(text[:LONGEST].split()))
