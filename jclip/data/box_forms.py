"""The names that files of phrases with boxes go by: forms, data sets, sources. For --help: imports nothing of weight."""

from __future__ import annotations

from typing import Literal, get_args

BoxFormat = Literal["xywh", "xyxy"]
BOX_FORMATS: tuple[str, ...] = get_args(BoxFormat)
SOURCES = ("human", "template", "relation", "caption", "other")
FORMS = ("split", "lines", "list", "table", "odvg", "mdetr", "refs", "refcocos", "detected", "parquet")
WRITTEN: dict[str, tuple[str, ...]] = {  # forms that can be written, with their endings; the first of an ending is usual
    "lines": (".jsonl",), "split": (".pth",), "table": (".csv", ".tsv"), "list": (".json",), "parquet": (".parquet",),
    "odvg": (".jsonl",), "mdetr": (".json",), "refs": (".json",),
}  # fmt: skip
ENDINGS = tuple(dict.fromkeys(ending for endings in WRITTEN.values() for ending in endings))
FORMATS: dict[str, BoxFormat] = {  # of boxes in the split files of each data set
    "unc": "xywh", "unc+": "xywh", "gref": "xywh", "gref_umd": "xywh", "referit": "xyxy", "flickr": "xyxy",
}  # fmt: skip
