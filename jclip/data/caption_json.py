"""Captions in JSON: COCO's annotations, Karpathy's splits, lists of images with their captions, and JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from jclip.config import CaptionConfig
from jclip.data.caption_rows import Broken, Row
from jclip.data.chinese_clip import is_text, read_chinese_clip
from jclip.errors import DataError, printable
from jclip.readers.text import described, parse_json, read_json, read_lines

Part = Literal["train", "val"]


def read_caption_json(path: Path, config: CaptionConfig, broken: Broken, part: Part) -> list[Row]:
    """Rows of COCO's `captions_*.json`, Karpathy's `dataset_*.json`, or a list of `{image, captions}`. Raises `DataError`."""
    values = read_json(path)
    if isinstance(values, list):
        return _read_list(path, values, config, broken)
    if isinstance(values, dict) and isinstance(images := values.get("images"), list):
        if isinstance(annotations := values.get("annotations"), list):
            return _read_coco(path, images, annotations, broken)
        if any(isinstance(image, dict) and "sentences" in image for image in images[:1]):
            return _read_karpathy(path, images, config, broken, part)
    raise DataError(
        f"{path} must be COCO's captions (images, annotations), Karpathy's (images with sentences), or a list of objects "
        f"with an image and its captions, got {described(values)}"
    )


def _read_list(path: Path, entries: list, config: CaptionConfig, broken: Broken) -> list[Row]:
    rows = []
    for number, entry in enumerate(entries, start=1):
        place = f"entry {number}"
        image = entry.get(config.image_key, entry.get("image")) if isinstance(entry, dict) else None
        said = entry.get("captions", entry.get(config.caption_key, entry.get("caption"))) if image is not None else None
        said = [said] if isinstance(said, str) else said
        if not isinstance(said, list) or not said:
            broken(DataError(f"{path}, {place}: must have an image and its captions, got {described(entry)}"))
            continue
        rows += [Row(place, image, caption) for caption in said]
    return rows


def _read_coco(path: Path, images: list, annotations: list, broken: Broken) -> list[Row]:
    names: dict[Any, Any] = {}
    for number, image in enumerate(images, start=1):
        if isinstance(image, dict) and isinstance(image.get("id"), int | str) and "file_name" in image:
            if image["id"] in names:
                broken(DataError(f"{path}, image {number}: its id {printable(str(image['id']), 40)} must be unique"))
            names.setdefault(image["id"], image["file_name"])
        else:
            broken(DataError(f"{path}, image {number}: must have id and file_name, got {described(image)}"))
    rows = []
    for number, note in enumerate(annotations, start=1):
        place = f"annotation {number}"
        if not isinstance(note, dict) or not {"image_id", "caption"} <= note.keys():
            broken(DataError(f"{path}, {place}: must have image_id and caption, got {described(note)}"))
        elif not isinstance(note["image_id"], int | str) or note["image_id"] not in names:
            broken(DataError(f"{path}, {place}: there is no image of the id {printable(str(note['image_id']), 40)}"))
        else:
            rows.append(Row(place, names[note["image_id"]], note["caption"]))
    return rows


def _read_karpathy(path: Path, images: list, config: CaptionConfig, broken: Broken, part: Part) -> list[Row]:
    wanted, rows, seen = ("train", "restval") if part == "train" else (config.val_split,), [], set()
    for number, image in enumerate(images, start=1):
        place = f"image {number}"
        if not isinstance(image, dict) or not isinstance(image.get("sentences"), list) or "filename" not in image:
            broken(DataError(f"{path}, {place}: must have filename and sentences, got {described(image)}"))
            continue
        seen.add(str(image.get("split")))
        if image.get("split") not in wanted:
            continue
        folder, name = image.get("filepath") or "", image["filename"]
        name = f"{folder}/{name}" if isinstance(folder, str) and folder and isinstance(name, str) else name
        for sentence in image["sentences"]:
            rows.append(Row(place, name, sentence.get("raw") if isinstance(sentence, dict) else None))
    if not rows and seen:
        raise DataError(
            f"{path} must have images of the split {' or '.join(wanted)}, got {', '.join(sorted(seen)):.100}"
        )
    return rows


def read_caption_json_lines(path: Path, config: CaptionConfig, broken: Broken) -> list[Row]:
    """Rows of JSON lines with an image and a caption each, or Chinese-CLIP's `*_texts.jsonl`."""
    rows, must = [], f"must be a JSON object with {config.image_key} and {config.caption_key}"
    lines = [(number, line) for number, line in enumerate(read_lines(path), start=1) if line]
    if is_text(lines[0][1]):
        return read_chinese_clip(path, lines, broken)
    for number, line in lines:
        place = f"line {number}"
        try:
            row = parse_json(line, "it")
        except DataError as e:
            broken(DataError(f"{path}, {place}: {must}: {e}"))
            continue
        if isinstance(row, dict) and row.keys() >= {config.image_key, config.caption_key}:
            rows.append(Row(place, row[config.image_key], row[config.caption_key]))
        else:
            broken(DataError(f"{path}, {place}: {must}, got {described(row)}"))
    return rows
