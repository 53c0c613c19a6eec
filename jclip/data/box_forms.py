"""The names that files of phrases with boxes go by: forms, data sets, sources. For --help: imports nothing of weight."""

from __future__ import annotations

from typing import Literal, get_args

BoxFormat = Literal["xywh", "xyxy"]
BOX_FORMATS: tuple[str, ...] = get_args(BoxFormat)
SOURCES = ("human", "template", "relation", "caption", "other")
FORMS = ("split", "lines", "list", "table", "odvg", "mdetr", "refs", "refcocos")
ENDINGS = (".jsonl", ".pth")  # of files that can be written
FORMATS: dict[str, BoxFormat] = {  # of boxes in the split files of each data set
    "unc": "xywh", "unc+": "xywh", "gref": "xywh", "gref_umd": "xywh", "referit": "xyxy", "flickr": "xyxy",
}  # fmt: skip
