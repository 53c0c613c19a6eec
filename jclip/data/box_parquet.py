"""Phrases with boxes as Parquet, one row each, with the fields of JSON lines. Needs pyarrow. Imports no Jittor."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from jclip.data.box_rows import BoxRow, FoundRow
from jclip.data.box_tables import found_row, row_values
from jclip.errors import DataError, printable
from jclip.paths import is_file, replacing
from jclip.readers import parquet
from jclip.readers.text import parse_json

NEEDS = "phrases with boxes in .parquet are Parquet files"
SCHEMA = "boxes 1"
ROWS_AT_ONCE = 8192


def read_box_parquet(path: str | os.PathLike, box_format: str = "", source: str = "") -> list[FoundRow]:
    """Return the rows of a Parquet file, ours or others' with columns image, box (a list of four), phrase.

    Raises `DataError` for a file that is none, lacks a column or is damaged, `SetupError` where pyarrow is not installed.
    """
    if not is_file(path):
        raise DataError(f"there is no file {path}")
    table, rows = parquet.open_table(path, NEEDS), []
    columns = table.schema_arrow.names
    if lacking := [name for name in ("image", "phrase") if name not in columns]:
        raise DataError(
            f"{path}: columns must be image, box, phrase, got {printable(', '.join(columns), 100)}: no {lacking[0]}"
        )
    try:
        for batch in table.iter_batches(ROWS_AT_ONCE):
            for record in batch.to_pylist():
                place = f"row {len(rows)}"
                rows.append(found_row(path, place, len(rows), _values(path, place, record), box_format, source))
    except (OSError, ValueError, OverflowError) as e:
        raise DataError(f"{path} is damaged: {printable(str(e).splitlines()[0], 200)}") from e
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows


def _values(path: str | os.PathLike, place: str, record: dict[str, Any]) -> dict[str, Any]:
    """A record as an object of JSON lines: what is null is left out but for the box."""
    value = {k: v for k, v in record.items() if v is not None or k == "box"}
    if isinstance(value.get("reliability"), list):  # a map
        value["reliability"] = dict(value["reliability"])
    if isinstance(value.get("extra"), str):
        value["extra"] = parse_json(value["extra"], f"{path}, {place}, extra")
    return value


def write_box_parquet(path: str | os.PathLike, rows: Sequence[BoxRow]) -> None:
    """Write rows so that `read_box_parquet` returns equal ones. Raises `SetupError` where pyarrow is not installed."""
    arrow, tables = parquet.arrow(NEEDS)
    text, four = arrow.string(), arrow.list_(arrow.float64())  # of a fixed length pyarrow can't read nulls back
    kinds = {
        "id": arrow.int64(), "dataset": text, "split": text, "image": text, "width": arrow.int64(), "height": arrow.int64(),
        "box": four, "box_raw": four, "box_raw_format": text, "phrase": text, "source": text,
        "reliability": arrow.map_(text, arrow.float64()), "extra": text,
    }  # fmt: skip
    values = [row_values(row) for row in rows]
    for value in values:
        value["reliability"] = value["reliability"] and [*value["reliability"].items()]
        value["extra"] = value["extra"] and json.dumps(value["extra"], ensure_ascii=False, allow_nan=False)
    schema = arrow.schema([*kinds.items()], metadata={"jclip": SCHEMA})
    columns = [arrow.array([value[name] for value in values], kind) for name, kind in kinds.items()]
    with replacing(path) as temporary:
        tables.write_table(arrow.table(columns, schema=schema), temporary)
