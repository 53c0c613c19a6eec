"""Sound score files and label sources to make mutants of: JSON, .npz, JSON lines, tables, COCO's instances, lists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from jclip.data.multi_label_sets import read_labels
from jclip.readers.npz import npz_bytes
from jclip.report.score_files import read_scores
from tests.hostile.fuzz import Format

NAMES, PHOTOS = ["dog", "dining table", "café"], ["a.jpg", "b c.jpg", "照片.png", "d.jpg"]
SCORES = np.arange(12, dtype=np.float64).reshape(4, 3) / 7 - 0.5
LABELS = [["dog"], ["dog", "café"], [], ["dining table"]]


def scores(path: Path) -> dict[str, np.ndarray]:
    """What a score file holds, as arrays."""
    found = read_scores(str(path), NAMES)
    flags = np.array([found.uses_label_statistics, found.comparable])
    return {**found.parts, "classes": np.array(found.classnames), "photos": np.array(found.photos), "flags": flags}


def labels(path: Path) -> dict[str, np.ndarray]:
    """What a source of labels holds, as arrays."""
    found = read_labels(str(path), NAMES)
    return {"targets": found.targets, "classes": np.array(found.classnames), "photos": np.array(found.photos)}


def score_json() -> list[bytes]:
    """With names, with what it says of itself, and the bare list."""
    named = {"classes": NAMES, "images": PHOTOS, "scores": SCORES.tolist()}
    values = [named, {**named, "uses_label_statistics": True, "comparable": False}, SCORES.tolist()]
    return [json.dumps(value, ensure_ascii=False).encode() for value in values]


def score_npz() -> list[bytes]:
    """One matrix, and both branches with a flag."""
    names = {"classes": np.array(NAMES), "images": np.array(PHOTOS)}
    both = {"global": SCORES, "local": -SCORES, "uses_label_statistics": np.array([1], np.int8), **names}
    return [npz_bytes({"scores": SCORES.astype(np.float32), **names}), npz_bytes(both)]


def label_lines() -> list[bytes]:
    """Names as JSON lines, with unknown ones."""
    rows = [{"image": p, "labels": own, "unknown": []} for p, own in zip(PHOTOS, LABELS, strict=True)]
    rows[3]["unknown"] = ["café"]
    return ["".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()]


def label_table() -> list[bytes]:
    """Names in a column, and a column for each class."""
    named = "photo,labels\n" + "".join(f"{p},{';'.join(own)}\n" for p, own in zip(PHOTOS, LABELS, strict=True))
    wide = "photo,dog,dining table,café\n" + "".join(
        f"{p},{','.join(str(int(n in own)) for n in NAMES)}\n" for p, own in zip(PHOTOS, LABELS, strict=True)
    )
    return [named.encode(), wide.encode()]


def coco() -> list[bytes]:
    """Instances with a crowd and an image without objects."""
    values = {
        "images": [{"id": n, "file_name": p} for n, p in enumerate(PHOTOS)],
        "categories": [{"id": 7 * n + 1, "name": name} for n, name in enumerate(NAMES)],
        "annotations": [
            {"image_id": n, "category_id": 7 * NAMES.index(name) + 1, "iscrowd": n % 2}
            for n, own in enumerate(LABELS) for name in own
        ],
    }  # fmt: skip
    return [json.dumps(values, ensure_ascii=False).encode()]


def label_list() -> list[bytes]:
    """Numbers of classes behind each photo, as TagCLIP has them."""
    lines = [" ".join([p, *(str(NAMES.index(n)) for n in own)]) for p, own in zip(PHOTOS, LABELS, strict=True)]
    return ["\n".join(lines).encode()]


TOKENS = [b"NaN", b"1e999", b"-1", b"null", b"[]", b"{}", b'"', b",", b"\n", b";", b"\xff", b'"scores"', b'"images"', b"dog",
          b"true", b"\\ud800"]  # fmt: skip
SCORE_JSON = Format("m.json", score_json, scores, TOKENS)
SCORE_NPZ = Format("m.npz", score_npz, scores, [b"scores", b"<f8", b"<f4", b"(4, 3)", b"|O", b"classes.npy"])
LABEL_LINES = Format("m.jsonl", label_lines, labels, [*TOKENS, b'"labels"', b'"unknown"'])
LABEL_TABLE = Format("m.csv", label_table, labels, [*TOKENS, b"photo", b"labels", b"1", b"0"])
COCO = Format("m.json", coco, labels, [*TOKENS, b'"annotations"', b'"id"', b'"category_id"'])
LABEL_LIST = Format("m.txt", label_list, labels, [*TOKENS, b" 1", b" 99", b" "])
