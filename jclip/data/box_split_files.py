"""The split files of CLIP-VG, TransVG and Pseudo-Q: `<dataset>_<split>.pth`, a list of rows. Nothing in them is run.

A row is (image, mask, box, phrase, attributes), of Flickr30k Entities (image, box, phrase). Boxes of the COCO pictures are
xywh, of ReferIt and Flickr corners.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jclip.data.box_forms import FORMATS
from jclip.data.box_rows import BoxRow, FoundRow
from jclip.errors import DataError, UnknownName, quoted
from jclip.paths import replacing
from jclip.readers.plain_values import read_plain_values
from jclip.readers.torch_writer import write_plain_values

MOST_ROWS = 10_000_000
PLACEHOLDER = "useless placeholder"  # of fields that nothing reads
SHORT, LONG = 3, 5  # fields of a row
_NAME = re.compile(r"(?:\d+_)?(unc\+|unc|gref_umd|gref|referit|flickr)_(\w+)")


def read_split_file(
    path: str | os.PathLike, dataset: str = "", box_format: str = "", source: str = ""
) -> list[FoundRow]:
    """Return the rows of a `.pth` split file in either container of torch.

    dataset: one of `FORMATS`, by default what the file's name begins with. box_format: overrides that of the dataset.
    source: by default what the name says (template, relation, caption), else "other" for pseudo-labels, else "human".
    Raises `DataError` for a file that is damaged, would run code, or holds no list of rows; `UnknownName`.
    """
    named, split = name_parts(path)
    dataset = dataset or named
    if dataset and dataset not in FORMATS:
        raise UnknownName("dataset", dataset, FORMATS)
    box_format = box_format or FORMATS.get(dataset, "")
    if not box_format:
        raise DataError(
            f"{path}: the data set must be known, which says how boxes are written: give --dataset {'|'.join(FORMATS)}, or "
            "--box-format xywh|xyxy"
        )
    values = read_plain_values(path)
    if not isinstance(values, list) or not values:
        raise DataError(f"{path} must be a list of rows (image, mask, box, phrase, attributes), got {_kind(values)}")
    if len(values) > MOST_ROWS:
        raise DataError(f"{path} must have at most {MOST_ROWS:,} rows, got {len(values):,}")
    source = source or source_of(split)
    return [_row(path, n, row, box_format, source, dataset, split) for n, row in enumerate(values)]


def name_parts(path: str | os.PathLike) -> tuple[str, str]:
    """Return data set and split that a file's name gives, `1_unc_train_pseudo_template_0_5.pth`; "" where it has none."""
    found = _NAME.fullmatch(Path(path).stem)
    return (found[1], found[2]) if found else ("", "")


def source_of(name: str) -> str:
    """Return which source of labels a name speaks of."""
    words = re.split(r"[\W_]+", name.lower())
    named = next((source for source in ("template", "relation", "caption") if source in words), "")
    return named or ("other" if "pseudo" in words else "human")


def _row(path, number: int, row: Any, box_format: str, source: str, dataset: str, split: str) -> FoundRow:
    place = f"row {number}"
    if not isinstance(row, list) or len(row) not in (SHORT, LONG):
        got = f"{len(row)} fields" if isinstance(row, list) else quoted(row, 60)
        raise DataError(
            f"{path}, {place}: must have {LONG} fields (image, mask, box, phrase, attributes) or {SHORT} (image, box, "
            f"phrase), got {got}"
        )
    image, box, phrase = row if len(row) == SHORT else (row[0], row[2], row[3])
    extra = {} if len(row) == SHORT else {"mask": row[1], "attributes": row[4]}
    return FoundRow(
        place,
        number,
        image,
        box,
        phrase,
        box_format,
        source=source,
        dataset=dataset,
        split=split,
        extra={key: value for key, value in extra.items() if value != PLACEHOLDER},
    )


def write_split_file(path: str | os.PathLike, rows: Sequence[BoxRow], dataset: str = "") -> None:
    """Write rows as CLIP-VG's training reads them, in torch's zip container; boxes in the format of the data set.

    dataset: by default that of the rows, else what the file's name begins with. Raises `DataError` for rows without a box,
    which the layout can't express, and where the data set is not known.
    """
    of_rows = {row.dataset for row in rows} & {*FORMATS}
    dataset = dataset or (of_rows.pop() if len(of_rows) == 1 else name_parts(path)[0])
    if dataset not in FORMATS:
        got = f", got {quoted(dataset)}" if dataset else ""
        raise DataError(f"{path}: must be for one of the data sets {', '.join(FORMATS)}{got}: give --dataset")
    if absent := next((row for row in rows if row.box is None), None):
        raise DataError(
            f"{path} can't hold {absent.place or f'row {absent.id}'} ({quoted(absent.phrase, 60)}): split files have no rows "
            "whose thing is absent; write JSON lines, or keep only present things (--present)"
        )
    values = [_values(row, dataset) for row in rows]
    with replacing(path) as temporary:
        write_plain_values(temporary, values)


def _values(row: BoxRow, dataset: str) -> tuple:
    box = [*row.in_format(FORMATS[dataset])]
    if dataset == "flickr":
        return row.image, box, row.phrase
    mask, attributes = (row.extra.get(key, PLACEHOLDER) for key in ("mask", "attributes"))
    return row.image, mask, box, row.phrase, attributes


def _kind(values: Any) -> str:
    return "an empty list" if values == [] else quoted(values, 60)
