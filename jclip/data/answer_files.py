"""Answers about a gallery's photos, one a line of JSON, so that `jclip teach` goes on where it was and scripts can answer.

    {"format": "jclip-answers", "version": 1, "query": "a forklift without a roof", "made_by": "…"}
    {"photo": "halls/7.jpg", "answer": "yes", "row": 6, "sha256": "…"}
    {"photo": "halls/9.jpg", "answer": "no", "row": 8, "sha256": "…", "audit": true}

Only `photo` and `answer` are needed of a line, and the first line may be left out. The file is written whole after each
answer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jclip.data.gallery_inputs import shown_path
from jclip.errors import ConfigError, DataError, quoted
from jclip.paths import replacing
from jclip.readers.text import read_lines

FORMAT, VERSION = "jclip-answers", 1
SPOKEN = {"yes": "yes", "y": "yes", "no": "no", "n": "no", "unsure": "unsure", "?": "unsure"}


@dataclass(frozen=True)
class PhotoAnswer:
    """One answer. photo: its path as the gallery has it; row, sha256: where the photo was and what it was, if known."""

    photo: str
    answer: str
    audit: bool = False
    row: int = -1
    sha256: str = ""


@dataclass(frozen=True)
class AnswerFile:
    """The answers in order, the query that they are about and the features' `made_by`, where the file says them."""

    answers: tuple[PhotoAnswer, ...] = ()
    query: str = ""
    made_by: str = ""

    def check(self, path: Path, query: str, made_by: str) -> None:
        """Raises `ConfigError` where the answers are about another query or features."""
        if self.query and self.query != query:
            raise ConfigError(
                f"{path} holds answers about {quoted(self.query, 80)}, got the query {quoted(query, 80)}: name another file by "
                "--answers"
            )
        if self.made_by and self.made_by != made_by:
            raise ConfigError(
                f"{path} holds answers about a gallery of another model or preprocessing: name another file"
            )


def read_answers(path: Path) -> AnswerFile:
    """What a file says. Raises `DataError` with the line that is wrong."""
    query, made_by, found = "", "", []
    for number, line in enumerate(read_lines(path), start=1):
        if not line:
            continue
        place = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict):
            raise DataError(f'{place}: must be like {{"photo": "a.jpg", "answer": "yes"}}, got {quoted(line, 60)}')
        if "format" in entry:
            query, made_by = _head(entry, place)
        else:
            found.append(_answer(entry, place))
    return AnswerFile(tuple(found), query, made_by)


def _head(entry: Mapping[str, Any], place: str) -> tuple[str, str]:
    if entry["format"] != FORMAT or entry.get("version") != VERSION:
        raise DataError(f"{place}: must be of the format {FORMAT}, version {VERSION}, got another")
    query, made_by = entry.get("query", ""), entry.get("made_by", "")
    if not isinstance(query, str) or not isinstance(made_by, str):
        raise DataError(f"{place}: query and made_by must be texts")
    return query, made_by


def _answer(entry: Mapping[str, Any], place: str) -> PhotoAnswer:
    photo, answer = entry.get("photo"), entry.get("answer")
    if not isinstance(photo, str) or not photo:
        raise DataError(f"{place}: must name a photo, got {str(photo)!r:.60}")
    if not isinstance(answer, str) or answer not in SPOKEN:
        raise DataError(f"{place}: answer must be yes, no or unsure, got {answer!r:.60}")
    row, sha256, audit = entry.get("row", -1), entry.get("sha256", ""), entry.get("audit", False)
    if type(row) is not int or not isinstance(sha256, str) or not isinstance(audit, bool):
        raise DataError(f"{place}: row must be an integer, sha256 a text and audit true or false")
    return PhotoAnswer(photo, SPOKEN[answer], audit, row, sha256)


def write_answers(path: str | os.PathLike, file: AnswerFile) -> None:
    """Writes it whole, to a temporary name first."""
    lines = [{"format": FORMAT, "version": VERSION, "query": file.query, "made_by": file.made_by}]
    for one in file.answers:
        entry: dict[str, Any] = {"photo": one.photo, "answer": one.answer, "row": one.row, "sha256": one.sha256}
        lines.append({k: v for k, v in entry.items() if v not in ("", -1)} | ({"audit": True} if one.audit else {}))
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="ascii")


def rows_of(answers: Sequence[PhotoAnswer], rows: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """The row of each answer's photo in a gallery; None where the photo is gone, or is another one by now.

    rows: as `Store.rows`. The table is read through only where a photo is not in the row that the answer names.
    """
    places = [one.row if _is_row(one, rows) else None for one in answers]
    if lost := {one.photo for one, place in zip(answers, places, strict=True) if place is None}:
        named = {shown: number for number, row in enumerate(rows) if (shown := shown_path(row)) in lost}
        for at, one in enumerate(answers):
            row = named.get(one.photo)
            if places[at] is None and row is not None and _is_same(one, rows[row]):
                places[at] = row
    return places


def _is_row(one: PhotoAnswer, rows: Sequence[Mapping[str, Any]]) -> bool:
    return 0 <= one.row < len(rows) and shown_path(rows[one.row]) == one.photo and _is_same(one, rows[one.row])


def _is_same(one: PhotoAnswer, row: Mapping[str, Any]) -> bool:
    return not one.sha256 or not row["sha256"] or one.sha256 == row["sha256"]
