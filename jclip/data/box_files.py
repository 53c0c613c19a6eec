"""Files of phrases with boxes in any form, read and written; several become one. Imports no Jittor."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jclip.data.box_annotations import PICKLED, read_mdetr, read_odvg, read_refcocos, read_refs
from jclip.data.box_detections import has_detections, read_detected
from jclip.data.box_forms import BOX_FORMATS, ENDINGS, SOURCES, WRITTEN
from jclip.data.box_parquet import read_box_parquet, write_box_parquet
from jclip.data.box_rows import BoxRow, FoundRow, usable_rows
from jclip.data.box_split_files import read_split_file, write_split_file
from jclip.data.box_tables import objects_by_line, read_box_lines, read_box_list, read_box_table, write_box_lines
from jclip.data.box_writers import WRITERS
from jclip.errors import ConfigError, DataError, UnknownName, notice, printable, quoted
from jclip.paths import is_file
from jclip.readers.text import read_json

READERS: dict[str, Callable[..., list[FoundRow]]] = {
    "split": read_split_file,
    "lines": read_box_lines,
    "list": read_box_list,
    "table": read_box_table,
    "odvg": read_odvg,
    "mdetr": read_mdetr,
    "refs": read_refs,
    "refcocos": read_refcocos,
    "detected": read_detected,
    "parquet": read_box_parquet,
}
TORCH = (".pth", ".pt")
TABLES = (".csv", ".tsv")
LINES = (".jsonl", ".ndjson")
Dedup = Literal["none", "exact"]


@dataclass(frozen=True)
class BoxFile:
    """What a file holds: rows that can be used, in order; its form; why each other row can't."""

    path: str
    form: str
    rows: tuple[BoxRow, ...]
    refusals: tuple[str, ...] = ()


def read_box_file(
    path: str | os.PathLike,
    form: str = "",
    *,
    dataset: str = "",
    box_format: str = "",
    source: str = "",
    photos: str | os.PathLike | None = None,
    instances: str | os.PathLike = "",
    max_bad: float = 0.0,
) -> BoxFile:
    """Return the rows of a file of phrases with boxes.

    form: one of `READERS`, by default recognised by name and content. dataset: of split files (`FORMATS`). box_format: how
    boxes are written where the file does not say so. source: one of `SOURCES`, for rows that have none. photos: folder
    of the photos, which must then be there. instances: COCO's JSON for refs. max_bad: the share of rows that may be
    unusable; they are left out, and reported in one line on stderr.

    Raises `DataError` naming file and row, and as the reader of the form does; `UnknownName`.
    """
    form = form or form_of(path)
    for kind, name, known in (
        ("form", form, READERS),
        ("box format", box_format, BOX_FORMATS),
        ("source", source, SOURCES),
    ):
        if name and name not in known:
            raise UnknownName(kind, name, known)
    more: dict[str, Any] = {"dataset": dataset} if form == "split" else {}
    more |= {"instances": instances} if form == "refs" else {}
    with _without_collections():
        found = READERS[form](path, box_format=box_format, source=source, **more)
        rows, refusals = usable_rows(path, found, photos)
    if len(refusals) > max_bad * len(found):
        others = f" (and {len(refusals) - 1} more of {len(found)} rows can't be used)" if refusals[1:] else ""
        raise DataError(f"{refusals[0]}{others}")
    if refusals:
        notice(f"{path}: {len(refusals)} of {len(found)} rows left out (first: {refusals[0]})")
    if not rows:
        raise DataError(f"{path} has no row that can be used")
    if dataset and form != "split":
        rows = [replace(row, dataset=row.dataset or dataset) for row in rows]
    return BoxFile(str(path), form, tuple(rows), tuple(refusals))


@contextmanager
def _without_collections() -> Iterator[None]:
    """In the block Python looks for no cycles: among millions of new lists, none of which has one, it takes half the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def form_of(path: str | os.PathLike) -> str:
    """Return the form of a file by its ending, of JSON by its content. Raises `DataError` where it is none."""
    ending = Path(path).suffix.lower()
    if not is_file(path):
        raise DataError(f"there is no file {path}")
    if ending in TORCH:
        return "split"
    if ending in TABLES:
        return "table"
    if ending in PICKLED:
        return "refs"
    if ending == ".parquet":
        return "parquet"
    if ending in LINES:
        _, first = next(objects_by_line(path), (0, {}))
        return "odvg" if "grounding" in first else "lines"
    if ending == ".json":
        return _form_of_json(path, read_json(path))
    raise DataError(
        f"{path} must end in .pth, .jsonl, .json, .csv, .tsv, .parquet or .p, got {quoted(ending)}: give "
        f"--form ({', '.join(READERS)})"
    )


def _form_of_json(path: str | os.PathLike, values: Any) -> str:
    if isinstance(values, dict):
        if "refs" in values:
            return "refs"
        if "images" in values and "annotations" in values:
            return "mdetr"
    if isinstance(values, list) and values and isinstance(values[0], dict):
        keys = {*values[0]}
        if "sentences" in keys:
            return "refs"
        if has_detections(values[0]):
            return "detected"
        return "refcocos" if {"solution", "normal_caption"} <= keys else "list"
    got = f"an object with {printable(', '.join(values), 100)}" if isinstance(values, dict) else quoted(values, 60)
    raise DataError(
        f"{path} must be a list of objects with image, box and phrase, MDETR's JSON, refs, RefCOCOs' or rows with "
        f"pred_boxes; got {got}"
    )


def write_box_file(path: str | os.PathLike, rows: Sequence[BoxRow], dataset: str = "", form: str = "") -> None:
    """Write rows in `form`, one of `WRITTEN`, by default the usual one of the name's ending. dataset: of split files.

    Raises `DataError` for rows that the form can't hold, `UnknownName`, and `ConfigError` for another ending of the form.
    """
    form = written_form(path, form)
    if form == "split":
        write_split_file(path, rows, dataset)
    elif form == "lines":
        write_box_lines(path, rows)
    elif form == "parquet":
        write_box_parquet(path, rows)
    else:
        WRITERS[form](path, rows)


def written_form(path: str | os.PathLike, form: str = "") -> str:
    """Return the form that a file of that name is written in. Raises as `write_box_file` does."""
    ending = Path(path).suffix.lower()
    if form and form not in WRITTEN:
        raise UnknownName("form to write", form, WRITTEN)
    if ending not in (WRITTEN[form] if form else ENDINGS):
        raise ConfigError(
            f"{path} must end in {' or '.join(WRITTEN[form])} to be written as {form}, got {quoted(ending)}"
            if form
            else f"{path} must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} to be written, got {quoted(ending)}"
        )
    return form or next(name for name, endings in WRITTEN.items() if ending in endings)


def merged(parts: Iterable[Sequence[BoxRow]], dedup: Dedup = "none") -> tuple[list[BoxRow], int]:
    """Return the rows of all parts in order, numbered anew where there are several parts, and how many were dropped.

    dedup: "exact" drops a row whose image, box to a tenth of a pixel, and phrase in lower case were there before.
    """
    parts = [*parts]
    rows, seen, dropped = [], set(), 0
    for row in (row for part in parts for row in part):
        key = (row.image, row.box and tuple(round(v, 1) for v in row.box), row.phrase.lower())
        if dedup == "exact" and key in seen:
            dropped += 1
            continue
        seen.add(key)
        rows.append(replace(row, id=len(rows)) if len(parts) > 1 else row)
    return rows, dropped


def count_sources(rows: Sequence[BoxRow]) -> dict[str, int]:
    """Return the number of rows of each source that has some."""
    return dict(Counter(row.source for row in rows).most_common())
