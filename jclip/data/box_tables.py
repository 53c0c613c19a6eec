"""Rows of phrases and boxes in open formats: our JSON lines, a JSON list, tables of image, box, phrase. Imports no Jittor."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jclip.data.box_rows import BoxRow, FoundRow, corners_of
from jclip.errors import DataError, printable, quoted
from jclip.paths import replacing
from jclip.readers.text import parse_json, read_json, read_lines, read_table

_ROUNDED = 0.02  # pixels between a box and itself with two decimals
_KNOWN = (
    "id", "dataset", "split", "image", "width", "height", "box", "box_raw", "box_raw_format", "box_format", "phrase",
    "source", "reliability", "extra",
)  # fmt: skip
_BOXES = {"bbox": "", "bbox_xyxy": "xyxy", "bbox_xywh": "xywh"}  # other names of `box`, with the format that they state
_CORNERS = {("x1", "y1", "x2", "y2"): "xyxy", ("x", "y", "w", "h"): "xywh"}  # columns


def read_box_lines(path: str | os.PathLike, box_format: str = "", source: str = "") -> list[FoundRow]:
    """Return the rows of JSON lines, ours or others' with image, box and phrase. Raises `DataError` for a broken line.

    box_format: of `box` in rows that do not state it (default: xyxy).
    """
    return [
        found_row(path, f"line {line}", number, value, box_format, source)
        for number, (line, value) in enumerate(objects_by_line(path))
    ]


def read_box_list(path: str | os.PathLike, box_format: str = "", source: str = "") -> list[FoundRow]:
    """Return the rows of a JSON list of objects with image, box and phrase. Raises `DataError`."""
    values = read_json(path)
    if not isinstance(values, list) or not values:
        raise DataError(f"{path} must be a list of objects with image, box and phrase, got {quoted(values, 60)}")
    return [found_row(path, f"entry {n}", n, value, box_format, source) for n, value in enumerate(values)]


def read_box_table(path: str | os.PathLike, box_format: str = "", source: str = "") -> list[FoundRow]:
    """Return the rows of a CSV or TSV table of image, box, phrase, and what else a row of JSON lines may have.

    A box is four numbers in one field, or in the columns x1, y1, x2, y2 or x, y, w, h; an empty one means absent.
    """
    columns, records = read_table(path, "\t" if Path(path).suffix.lower() == ".tsv" else ",")
    apart = next((names for names in _CORNERS if {*names} <= {*columns}), ())
    boxed = {"box", *_BOXES} & {*columns} or apart
    if lacking := [name for name in ("image", "phrase") if name not in columns] + ([] if boxed else ["box"]):
        raise DataError(
            f"{path}, line 1: columns must be image, box, phrase, got {', '.join(columns)}: no {lacking[0]}"
        )
    rows = []
    for number, (line, record) in enumerate(records):
        value: dict[str, Any] = {key: text for key, text in record.items() if text != "" or key in boxed}
        if apart:
            value = {key: v for key, v in value.items() if key not in apart}
            value |= {"box": _four(" ".join(record[key] for key in apart)), "box_format": _CORNERS[apart]}
        value |= {key: _four(value[key]) for key in ("box", *_BOXES) if key in record and not apart}
        value |= {key: _number(value[key]) for key in ("width", "height", "id") if key in value}
        rows.append(found_row(path, f"line {line}", number, value, box_format, source))
    if not rows:
        raise DataError(f"{path} has no rows below its first line")
    return rows


def objects_by_line(path: str | os.PathLike) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of each line that is not blank. Raises `DataError` where a line is none."""
    for line, text in enumerate(read_lines(path), start=1):
        if text:
            value = parse_json(text, f"{path}, line {line}")
            if not isinstance(value, dict):
                raise DataError(f"{path}, line {line}: must be a JSON object, got {printable(text, 60)}")
            yield line, value


def found_row(path, place: str, number: int, value: Any, box_format: str, source: str) -> FoundRow:
    """Return the row that an object of JSON lines stands for, unchecked. Raises `DataError` where it contradicts itself."""
    if not isinstance(value, dict):
        raise DataError(f"{path}, {place}: must be an object with image, box and phrase, got {quoted(value, 60)}")
    key, stated = next(((k, f) for k, f in {"box": "", **_BOXES}.items() if k in value), (None, ""))
    if key is None and "box_raw" not in value:
        raise DataError(
            f"{path}, {place}: must have a box (null where the thing is absent), got {', '.join(value)[:100]}"
        )
    raw, given = value.get("box_raw"), value.get("box_raw_format") or value.get("box_format") or stated
    if raw is not None and value.get("box_raw_format") is None:
        raise DataError(f"{path}, {place}: box_raw must have its box_raw_format (xywh or xyxy)")
    if given and box_format and given != box_format:
        raise DataError(f"{path}, {place}: states the box format {printable(str(given), 20)}, {box_format} was given")
    if raw is not None and "box" in value:
        _check_equal(path, place, value["box"], raw, given)
    extra = {k: v for k, v in value.items() if k not in _KNOWN and k != key}
    own = value.get("extra")
    return FoundRow(
        place,
        number,
        value.get("image"),
        value.get(key) if raw is None else raw,
        value.get("phrase"),
        given or box_format or "xyxy",
        (value.get("width"), value.get("height")),
        value.get("source", source or "human"),
        value.get("reliability"),
        value.get("id"),
        value.get("dataset"),
        value.get("split"),
        {**(own or {}), **extra} if own is None or isinstance(own, dict) else own,
    )


def _check_equal(path, place: str, box: object, raw: object, box_format: object) -> None:
    """Raise `DataError` where a row has two different boxes."""
    four = [isinstance(b, list) and len(b) == 4 and all(type(v) in (int, float) for v in b) for b in (box, raw)]
    if not all(four):
        same = box is not None
    else:
        same = max(abs(a - b) for a, b in zip(box, corners_of(raw, box_format), strict=True)) < _ROUNDED
    if not same:
        raise DataError(f"{path}, {place}: box and box_raw must be the same box, got {box} and {raw} as {box_format}")


def _four(text: str) -> Any:
    """Return the numbers in a field, None for an empty one; other text as it is, which is refused with its row."""
    parts = [part for part in re.split(r"[\s,;]+", text.strip().strip("[]()")) if part]
    numbers = [_number(part) for part in parts]
    if text.strip().lower() in ("", "null", "none"):
        return None
    return numbers if all(type(n) in (int, float) for n in numbers) else text


def _number(text: str) -> Any:
    if re.fullmatch(r"[-+]?\d{1,15}", text.strip(), re.ASCII):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def write_box_lines(path: str | os.PathLike, rows: Sequence[BoxRow]) -> None:
    """Write rows as JSON lines, which lose nothing: `read_box_lines` returns equal ones."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row_values(row), ensure_ascii=False, allow_nan=False) + "\n")


def row_values(row: BoxRow) -> dict[str, Any]:
    """Return a row as the object that stands for it in JSON lines."""
    width, height = row.size or (None, None)
    return {
        "id": row.id,
        "dataset": row.dataset,
        "split": row.split,
        "image": row.image,
        "width": width,
        "height": height,
        "box": None if row.box is None else [*row.box],
        "box_raw": None if row.box_raw is None else [*row.box_raw],
        "box_raw_format": row.box_raw_format,
        "phrase": row.phrase,
        "source": row.source,
        "reliability": _or_none(row.reliability),
        "extra": _or_none(row.extra),
    }


def _or_none(values: Mapping[str, Any]) -> dict[str, Any] | None:
    return dict(values) or None
