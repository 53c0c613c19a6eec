"""Phrases with boxes in the forms that other projects read: ODVG, MDETR, refs, a list, a table. Imports no Jittor.

`read_box_file` reads each of them back: photo, box, phrase and size are equal, and what else the form has room for.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from jclip.data.box_forms import BoxFormat
from jclip.data.box_rows import BoxRow, corners_of
from jclip.data.box_tables import row_values
from jclip.errors import DataError, notice, quoted
from jclip.paths import replacing

COLUMNS = ("id", "dataset", "split", "image", "width", "height", "box", "box_format", "phrase", "source")


def write_box_list(path: str | os.PathLike, rows: Sequence[BoxRow]) -> None:
    """Write a JSON list of the objects that JSON lines have, which loses nothing."""
    _write(path, [row_values(row) for row in rows])


def write_box_table(path: str | os.PathLike, rows: Sequence[BoxRow]) -> None:
    """Write a table, `.tsv` with tabs, else with commas. Reliabilities and `extra` have no column: a notice says so."""
    _report_lost(path, rows, "a table has no column for")
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t" if str(path).lower().endswith(".tsv") else ",", lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        value = {**row_values(row), "box_format": row.box_raw_format}
        raw = row.box_raw if row.box_raw is not None else row.in_format(row.box_raw_format)
        value["box"] = None if row.box is None else " ".join(map(repr, raw))
        writer.writerow(["" if value[name] is None else value[name] for name in COLUMNS])
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")


def write_odvg(path: str | os.PathLike, rows: Sequence[BoxRow]) -> None:
    """Write ODVG lines: a photo with the rows that follow each other and have one caption (`extra.caption`, else the phrase).

    Raises `DataError` for rows without a box, or whose photo's size is unknown.
    """
    _check_form(path, rows, "ODVG")
    _report_lost(path, rows, "ODVG has no place for", {"caption", "boxes"})
    lines = []
    for (image, size, caption), group in groupby(rows, key=lambda row: (row.image, row.size, _caption(row))):
        regions = [{"bbox": _boxes(row, "xyxy"), "phrase": row.phrase} for row in group]
        grounding = {"caption": caption, "regions": regions}
        lines.append({"filename": image, "height": size[1], "width": size[0], "grounding": grounding})
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)


def write_mdetr(path: str | os.PathLike, rows: Sequence[BoxRow]) -> None:
    """Write MDETR's JSON: an image for each caption, an annotation for each box, `tokens_positive` its phrase's letters.

    A row whose phrase is no part of its caption (`extra.caption`) has the phrase as caption. Raises as `write_odvg` does.
    """
    _check_form(path, rows, "MDETR's JSON")
    known = {"caption", "boxes", "image_id", "category_id", "original_id", "dataset_name"}
    _report_lost(path, rows, "MDETR's JSON has no place for", known)
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    spans: set[tuple[int, int]] = set()
    last = None
    for row in rows:
        caption = _caption(row)
        start = caption.find(row.phrase)
        caption, start = (caption, start) if start >= 0 else (row.phrase, 0)
        span = (start, start + len(row.phrase))
        if last != (row.image, row.size, caption) or span in spans:
            last, spans = (row.image, row.size, caption), set()
            own = {k: row.extra[k] for k in ("original_id", "dataset_name") if k in row.extra}
            images.append({"id": len(images) + 1, "file_name": row.image, "width": row.size[0], "height": row.size[1],
                           "caption": caption, **own})  # fmt: skip
        spans.add(span)
        several = _boxes(row, "xywh")
        for box in several if isinstance(several[0], list) else [several]:
            notes.append(_note(len(notes) + 1, len(images), box, row) | {"tokens_positive": [[*span]]})
    _write(path, {"images": images, "annotations": notes, "categories": _categories(rows)})


def write_refs(path: str | os.PathLike, rows: Sequence[BoxRow]) -> None:
    """Write refs as RefCOCO's toolkit has them, with their images and annotations in one JSON: rows of one photo and one box
    that follow each other are sentences of one ref. Numbers of `extra` are kept where all rows have them.

    Raises as `write_odvg` does.
    """
    _check_form(path, rows, "refs")
    keys = ("image_id", "ann_id", "ref_id", "sent_id")
    _report_lost(path, rows, "refs have no place for", {*keys, "category_id"})
    kept = all(type(row.extra.get(key)) is int for row in rows for key in keys)
    refs: list[dict[str, Any]] = []
    images: dict[Any, dict[str, Any]] = {}
    notes: dict[Any, dict[str, Any]] = {}
    numbers: dict[str, int] = {}

    def place(row: BoxRow) -> tuple:
        return row.image, row.box, row.split, *((row.extra[key] for key in keys[:3]) if kept else ())

    said = 0
    for _, group in groupby(rows, key=place):
        own = [*group]
        first = own[0]
        image = first.extra["image_id"] if kept else numbers.setdefault(first.image, len(numbers) + 1)
        ann, ref = (first.extra[key] if kept else len(refs) + 1 for key in keys[1:3])
        images.setdefault(image, _image(image, first))
        notes.setdefault(ann, _note(ann, image, [*first.in_format("xywh")], first))
        sentences = [
            {"tokens": row.phrase.split(), "raw": row.phrase, "sent": row.phrase,
             "sent_id": row.extra["sent_id"] if kept else said + n}
            for n, row in enumerate(own, start=1)
        ]  # fmt: skip
        said += len(own)
        refs.append({"ref_id": ref, "ann_id": ann, "image_id": image, "category_id": notes[ann]["category_id"],
                     "split": first.split, "file_name": first.image, "sentences": sentences,
                     "sent_ids": [sentence["sent_id"] for sentence in sentences]})  # fmt: skip
    _write(path, {"refs": refs, "images": [*images.values()], "annotations": [*notes.values()],
                  "categories": _categories(rows)})  # fmt: skip


WRITERS: dict[str, Callable[[str | os.PathLike, Sequence[BoxRow]], None]] = {
    "list": write_box_list,
    "table": write_box_table,
    "odvg": write_odvg,
    "mdetr": write_mdetr,
    "refs": write_refs,
}


def _caption(row: BoxRow) -> str:
    given = row.extra.get("caption")
    return given if type(given) is str and given else row.phrase


def _boxes(row: BoxRow, wanted: BoxFormat) -> list:
    """The row's box in that format, or of several boxes (`extra.boxes`, in the file's own format) the list of them."""
    several = row.extra.get("boxes")
    if not isinstance(several, list) or len(several) < 2:
        return [*row.in_format(wanted)]
    if row.box_raw_format == wanted:
        return several
    corners = [corners_of(box, row.box_raw_format) for box in several]
    return [[*c] if wanted == "xyxy" else [c[0], c[1], c[2] - c[0], c[3] - c[1]] for c in corners]


def _image(number: int, row: BoxRow) -> dict[str, Any]:
    return {"id": number, "file_name": row.image, "width": row.size[0], "height": row.size[1]}


def _note(number: int, image: int, box: list, row: BoxRow) -> dict[str, Any]:
    area = box[2] * box[3]
    return {"id": number, "image_id": image, "bbox": box, "area": area, "iscrowd": 0, "category_id": _category(row)}


def _category(row: BoxRow) -> int:
    given = row.extra.get("category_id")
    return given if type(given) is int else 1


def _categories(rows: Iterable[BoxRow]) -> list[dict[str, Any]]:
    return [{"id": number, "name": str(number)} for number in sorted({_category(row) for row in rows})]


def _check_form(path: str | os.PathLike, rows: Sequence[BoxRow], form: str) -> None:
    """Raises `DataError` for what those forms can't say."""
    for row in rows:
        named = f"{path} can't hold {row.place or f'row {row.id}'} ({quoted(row.phrase, 60)})"
        if row.box is None:
            raise DataError(
                f"{named}: {form} has no rows whose thing is absent; write JSON lines, or keep only present things (--present)"
            )
        if row.size is None:
            raise DataError(
                f"{named}: {form} needs the photo's width and height, which are unknown: give --root FOLDER"
            )


def _report_lost(path: str | os.PathLike, rows: Sequence[BoxRow], form: str, known: Iterable[str] = ()) -> None:
    """Says in a line what the form leaves out."""
    lost = sorted({key for row in rows for key in row.extra} - {*known})
    lost = [f"extra.{key}" for key in lost] + (["reliability"] if any(r.reliability for r in rows) else [])
    if lost:
        notice(f"{path}: {form} {', '.join(lost[:6])}{' …' if lost[6:] else ''}: left out (JSON lines keep all)")


def _write(path: str | os.PathLike, values: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, ensure_ascii=False, allow_nan=False), encoding="utf-8")
