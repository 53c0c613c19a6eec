"""Sound files of phrases with boxes to make mutants of: split files, lines, lists, tables, ODVG, MDETR, refs, predictions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.box_files import read_box_file
from jclip.data.box_rows import boxes_of
from jclip.data.predicted_boxes import corners_in, read_predicted_boxes
from tests.hostile.fuzz import Format
from tests.hostile.readers_formats import rezipped
from tests.library.test_box_files import FLICKR, UNC, legacy, zipped

ROW = {"image": "a b,c.jpg", "width": 60, "height": 50, "phrase": "the dog, é", "box": [1, 2.5, 30, 40]}
OURS = {
    **ROW, "id": 4, "dataset": "unc", "split": "val", "box_raw": [1, 2.5, 29, 37.5], "box_raw_format": "xywh",
    "source": "template", "reliability": {"template": 0.5}, "extra": {"caption": "c"},
}  # fmt: skip
IMAGE = {"id": 5, "file_name": "a.jpg", "height": 50, "width": 60, "caption": "a dog and a cat"}
NOTE = {"id": 1, "image_id": 5, "bbox": [1, 2, 3, 4], "tokens_positive": [[0, 5]], "category_id": 1}
REF = {"ref_id": 1, "ann_id": 1, "image_id": 5, "split": "val", "sentences": [{"sent": "it", "sent_id": 1}]}
REGIONS = [
    {"bbox": [1, 2, 30, 40], "phrase": "a dog"},
    {"bbox": [[1, 2, 3, 4], [2, 1, 9, 3]], "phrase": ["two", "men"]},
]
ODVG_LINE = {"filename": "a.jpg", "height": 50, "width": 60, "grounding": {"caption": "c", "regions": REGIONS}}
SOLVED = {"image": "a.jpg", "normal_caption": "x", "solution": [1, 2, 3, 4], "width": 60, "height": 50, "dataset": "d"}
DETECTED = {"sent": "it", "pred_boxes": [[0, 5, 8.5, 7]], "pred_boxes_img_id": ["a_0.jpg"], "gt_box": [1, 2, 3, 4]}
COCO = [{"row": 0, "image_id": 5, "phrase": "it", "bbox": [1, 2, 3, 4], "score": 0.5}]
FOUND = {"photo": "a.jpg", "found": [{"phrase": "it", "box": [1, 2, 3, 4], "present": 0.5, "support": None}]}


def rows(path: Path) -> Mapping[str, np.ndarray]:
    """What a file of phrases holds, as arrays."""
    found = read_box_file(path).rows
    texts = [
        np.array([getattr(row, name) for row in found]) for name in ("image", "phrase", "source", "dataset", "split")
    ]
    extra = np.array([json.dumps([row.extra, row.reliability, row.size, row.box_raw], default=str) for row in found])
    return {"boxes": boxes_of(found), "id": np.array([row.id for row in found], np.float64), "extra": extra,
            **dict(zip("ipsdt", texts, strict=True))}  # fmt: skip


def predictions(path: Path) -> Mapping[str, np.ndarray]:
    """What a file of predicted boxes holds, as arrays."""
    found = read_predicted_boxes(path)
    names = np.array([f"{p.image} {p.phrase} {p.row} {p.score} {p.present}" for p in found])
    boxes = corners_in(found)
    if not np.isfinite(boxes).all():
        raise AssertionError("a box that is no number came through")
    return {"boxes": boxes, "names": names}


def _json(*values: Any) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(value, ensure_ascii=False).encode() for value in values]


def _lines(*files: Sequence[Any]) -> Callable[[], list[bytes]]:
    return lambda: ["".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values).encode() for values in files]


def tables() -> list[bytes]:
    """A box in one column, and in four."""
    one = 'image,box,phrase,split\na.jpg,"1, 2,30,40.5",a dog,val\nb.jpg,,"nothing, here",val\n'
    four = 'phrase,image,x1,y1,x2,y2\na dog,a.jpg,1,2,30,40.5\n"nothing, here",b.jpg,,,,\n'
    return [one.encode(), four.encode()]


TOKENS = [b"NaN", b"1e999", b"-1", b"null", b"[]", b"{}", b'"', b",", b"\n", b"\xff", b"true", b"\\ud800", b"1e308",
          b'"box"', b'"bbox"', b'"phrase"', b'"image"', b"[1, 2, 3, 4]", b"[[1, 2, 3, 4]]", b"9" * 22]  # fmt: skip
PICKLED = [b"K\x01", b"G", b"]", b"(", b"t", b"e", b".", b"c", b"R", b"q", b"h", b"N", b"\x85", b"\x8a\x08", b"U\x01a"]
BOX_ZIP = Format("unc_val.pth", lambda: [zipped(UNC)], rows, PICKLED, rezipped)
BOX_STREAM = Format("unc_val.pth", lambda: [legacy(UNC), legacy(UNC[:1])], rows, PICKLED)
FLICKR_ZIP = Format("flickr_val.pth", lambda: [zipped(FLICKR)], rows, PICKLED, rezipped)
BOX_LINES = Format(
    "m.jsonl", _lines([OURS, ROW], [ODVG_LINE]), rows, [*TOKENS, b'"box_raw"', b'"regions"', b'"grounding"']
)
BOX_LIST = Format("m.json", _json([ROW, OURS], [SOLVED], [DETECTED]), rows, [*TOKENS, b'"solution"', b'"pred_boxes"'])
BOX_TABLE = Format("m.csv", tables, rows, [*TOKENS, b"x1", b"box", b"image", b";", b"1 2 3 4"])
BOX_COCO = Format(
    "m.json",
    _json({"images": [IMAGE], "annotations": [NOTE]}, {"refs": [REF], "images": [IMAGE], "annotations": [NOTE]}),
    rows, [*TOKENS, b'"id"', b'"tokens_positive"', b"[[0, 5]]", b'"sentences"', b'"ann_id"'],
)  # fmt: skip
PREDICTED = Format("m.json", _json(COCO, [FOUND], [{**ROW, "predicted": [1, 2, 3, 4], "id": 0}]), predictions,
                   [*TOKENS, b'"row"', b'"found"', b'"score"', b'"predicted"'])  # fmt: skip
PREDICTED_LINES = Format("m.jsonl", _lines([*COCO, FOUND]), predictions, [*TOKENS, b'"row"', b'"found"', b'"score"'])
