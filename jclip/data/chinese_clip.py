"""Chinese-CLIP's files: `<part>_texts.jsonl` beside `<part>_imgs.tsv` with photos as base64, and its predictions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jclip.data.caption_rows import Broken, Row
from jclip.data.stored_photos import StoredPhoto
from jclip.errors import DataError, printable
from jclip.paths import open_regular
from jclip.readers.text import parse_json, read_lines

TEXTS, IMAGES = "_texts.jsonl", "_imgs.tsv"
MOST_OF_ID = 200  # bytes


def is_text(line: str) -> bool:
    """Whether a line of a .jsonl is one of Chinese-CLIP's texts."""
    try:
        row = parse_json(line, "it")
    except DataError:
        return False
    return isinstance(row, dict) and row.keys() >= {"text_id", "text", "image_ids"}


def read_chinese_clip(path: Path, lines: Sequence[tuple[int, str]], broken: Broken) -> list[Row]:
    """A row per text and image of `lines`; the images stand in the table beside. Raises `DataError`."""
    if not path.name.endswith(TEXTS):
        raise DataError(f"{path} must be called <part>{TEXTS}, beside <part>{IMAGES}, got {path.name}")
    table = path.with_name(path.name.removesuffix(TEXTS) + IMAGES)
    photos, rows = read_image_table(table, broken), []
    for number, line in lines:
        place = f"line {number}"
        try:
            text = parse_json(line, f"{path}, {place}")
        except DataError as e:
            broken(e)
            continue
        ids = text.get("image_ids") if isinstance(text, dict) and {"text_id", "text"} <= text.keys() else None
        if not isinstance(ids, list) or not ids:
            broken(DataError(f"{path}, {place}: must have text_id, text and image_ids, got {printable(line, 60)}"))
            continue
        for name in map(str, ids):
            if name in photos:
                rows.append(Row(place, photos[name], text["text"], text=str(text["text_id"])))
            else:
                broken(DataError(f"{path}, {place}: {table.name} has no image {printable(name, 40)}"))
    return rows


def read_image_table(path: Path, broken: Broken) -> dict[str, StoredPhoto]:
    """Photos by id, of lines `id<tab>base64`; only ids and places are kept. Raises `DataError`."""
    found: dict[str, StoredPhoto] = {}
    try:
        with open_regular(path) as file:
            for number, line in enumerate(file, start=1):
                start = file.tell() - len(line)
                name, tab, data = line.partition(b"\t")
                if not line.strip():
                    continue
                if not tab or not 0 < len(name) <= MOST_OF_ID or not data.strip():
                    broken(DataError(f"{path}, line {number}: must be `id<tab>base64`, got {len(line):,} other bytes"))
                    continue
                key = name.decode("utf-8", "replace").strip()
                if key in found:
                    broken(DataError(f"{path}, line {number}: the id {printable(key, 40)} must be unique"))
                    continue
                found[key] = StoredPhoto(str(path), start + len(name) + 1, len(data.rstrip()), key, "base64")
    except OSError as e:
        raise DataError(f"can't read {path}: {e.strerror}") from None
    return found


def read_predictions(path: str | os.PathLike) -> dict[str, list[str]]:
    """Image ids, best first, by text id, of lines `{"text_id": …, "image_ids": […]}`. Raises `DataError`."""
    found: dict[str, list[str]] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line:
            continue
        place = f"{path}, line {number}"
        row = parse_json(line, place)
        if not isinstance(row, dict) or not isinstance(row.get("image_ids"), list) or "text_id" not in row:
            raise DataError(f"{place}: must have text_id and image_ids, got {printable(line, 60)}")
        name, images = str(row["text_id"]), [str(image) for image in row["image_ids"]]
        if name in found:
            raise DataError(f"{place}: the text {printable(name, 40)} must be unique")
        if len(set(images)) < len(images):
            raise DataError(f"{place}: an image must be listed once per text")
        found[name] = images
    return found


def prediction_bytes(predictions: Mapping[str, Sequence[str]]) -> bytes:
    """A file of image ids, best first, by text id, as Chinese-CLIP's scorer reads it: `{"text_id": …, "image_ids": […]}` a
    line; ids of digits alone are written as integers."""
    rows = (
        {"text_id": _as_number(text), "image_ids": [_as_number(image) for image in images]}
        for text, images in predictions.items()
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "backslashreplace")


def prediction_recalls(predictions: Mapping[str, Sequence[str]], truth: Mapping[str, set[str]]) -> dict[str, float]:
    """Chinese-CLIP's scores: `recall@1`, `@5`, `@10` of the texts with a right image among the first k, and their mean.

    Raises `DataError` where the texts are not those of the truth.
    """
    if not truth or predictions.keys() != truth.keys():
        lacking = [*(truth.keys() - predictions.keys())]
        raise DataError(
            f"predictions must be of the {len(truth)} texts of the truth, got {len(predictions)}"
            + (f" without {printable(lacking[0], 40)}" if lacking else "")
        )
    found = {
        f"recall@{k}": sum(any(image in truth[text] for image in images[:k]) for text, images in predictions.items())
        / len(truth)
        for k in (1, 5, 10)
    }
    return {**found, "mean_recall": sum(found.values()) / len(found)}


def _as_number(name: str) -> int | str:
    return int(name) if name.isdecimal() and name.isascii() and str(int(name)) == name else name
