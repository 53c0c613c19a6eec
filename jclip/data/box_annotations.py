"""Phrases and boxes as other projects keep them: ODVG, MDETR, the refs of RefCOCO, RefCOCOs. Imports no Jittor.

Several boxes of one phrase become their hull, as in CLIP-VG's files of Flickr30k Entities; `extra.boxes` keeps them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jclip.data.box_rows import FoundRow, corners_of
from jclip.data.box_tables import objects_by_line
from jclip.errors import DataError, quoted
from jclip.paths import is_file
from jclip.readers.plain_values import read_plain_values
from jclip.readers.text import described, read_json

PICKLED = (".p", ".pkl", ".pickle")
BESIDE = "instances.json"


def read_odvg(path: str | os.PathLike, box_format: str = "", source: str = "") -> list[FoundRow]:
    """Return the rows of ODVG lines, `{filename, height, width, grounding: {caption, regions: [{bbox, phrase}]}}`.

    Boxes are corners. Raises `DataError` for a line of another form.
    """
    rows: list[FoundRow] = []
    for line, value in objects_by_line(path):
        grounding = value.get("grounding")
        regions = grounding.get("regions") if isinstance(grounding, dict) else None
        if not isinstance(regions, list) or not all(
            isinstance(r, dict) and {"bbox", "phrase"} <= {*r} for r in regions
        ):
            raise DataError(
                f"{path}, line {line}: must have grounding with regions of bbox and phrase, got {described(value)}"
            )
        for region in regions:
            phrase = region["phrase"]
            phrase = " ".join(phrase) if _is_texts(phrase) else phrase
            box, several = hull_of(region["bbox"], box_format or "xyxy")
            rows.append(
                FoundRow(
                    f"line {line}",
                    len(rows),
                    value.get("filename"),
                    box,
                    phrase,
                    box_format or "xyxy",
                    (value.get("width"), value.get("height")),
                    source or "human",
                    extra={**_some(caption=grounding.get("caption")), **several},
                )
            )
    return rows


def read_mdetr(path: str | os.PathLike, box_format: str = "", source: str = "") -> list[FoundRow]:
    """Return the rows of MDETR's JSON: COCO's, where an image has a caption and an annotation its `tokens_positive`.

    A phrase is the caption's parts [start, end) that an annotation names, joined by blanks. Annotations of one caption
    with the same parts are boxes of one phrase.
    """
    values = read_json(path)
    images = _images(path, values)
    together: dict[tuple, list[tuple[int, dict[str, Any]]]] = {}
    for number, note in enumerate(_list(path, values, "annotations")):
        if not isinstance(note, dict) or not _is_key(note.get("image_id")) or note["image_id"] not in images:
            raise DataError(f"{path}, annotation {number}: must have the image_id of an image, got {quoted(note, 80)}")
        spans = _spans(path, number, note, images[note["image_id"]].get("caption"))
        together.setdefault((note["image_id"], spans), []).append((number, note))
    rows: list[FoundRow] = []
    for (image_id, spans), notes in together.items():
        image, (number, note) = images[image_id], notes[0]
        given = [note.get("bbox") for _, note in notes]
        box, several = hull_of(given[0] if len(given) == 1 else given, box_format or "xywh")
        known = {key: image.get(key) for key in ("original_id", "dataset_name")}
        extra = _some(caption=image["caption"], image_id=image_id, category_id=note.get("category_id"), **known)
        phrase = " ".join(image["caption"][start:end] for start, end in spans)
        size = (image.get("width"), image.get("height"))
        place = f"annotation {number}"
        form = box_format or "xywh"
        rows.append(
            FoundRow(
                place,
                len(rows),
                image.get("file_name"),
                box,
                phrase,
                form,
                size,
                source or "human",
                extra=extra | several,
            )
        )
    return rows


def _spans(path, number: int, note: dict[str, Any], caption: object) -> tuple[tuple[int, int], ...]:
    spans = note.get("tokens_positive")
    if not isinstance(caption, str) or not isinstance(spans, list) or not spans or not all(map(_is_span, spans)):
        raise DataError(
            f"{path}, annotation {number}: must have tokens_positive ([[start, end], …]) in its image's caption, "
            f"got {quoted(spans, 60)}"
        )
    if any(not 0 <= start < end <= len(caption) for start, end in spans):
        raise DataError(
            f"{path}, annotation {number}: tokens_positive must lie within the {len(caption)} letters of the caption, "
            f"got {quoted(spans, 60)}"
        )
    return tuple((start, end) for start, end in spans)


def read_refs(
    path: str | os.PathLike, box_format: str = "", source: str = "", instances: str | os.PathLike = ""
) -> list[FoundRow]:
    """Return a row for each sentence of RefCOCO's refs, JSON or the toolkit's pickle (`refs(unc).p`, not run).

    instances: COCO's JSON with images and annotations, by default those in the same JSON, else `instances.json` beside it.
    """
    values = read_plain_values(path, bare=True) if Path(path).suffix in PICKLED else read_json(path)
    refs = values.get("refs") if isinstance(values, dict) else values
    if not isinstance(refs, list) or not refs:
        raise DataError(f"{path} must be a list of refs with sentences, got {described(values)}")
    place = instances or (path if isinstance(values, dict) and "annotations" in values else Path(path).parent / BESIDE)
    if not is_file(place):
        raise DataError(
            f"{path} needs COCO's images and annotations: there is no {place}; put instances.json there, or name the file"
        )
    coco = values if place == path else read_json(place)
    images, notes = _images(place, coco), _by_id(place, coco, "annotations")
    rows: list[FoundRow] = []
    for number, ref in enumerate(refs):
        note, image, sentences = _looked_up(f"{path}, ref {number}", ref, images, notes, place)
        for sentence in sentences:
            rows.append(
                FoundRow(
                    f"ref {number}",
                    len(rows),
                    image.get("file_name"),
                    note.get("bbox"),
                    sentence.get("sent", sentence.get("raw")),
                    box_format or "xywh",
                    (image.get("width"), image.get("height")),
                    source or "human",
                    split=ref.get("split"),
                    extra=_some(
                        image_id=ref["image_id"],
                        ann_id=ref["ann_id"],
                        ref_id=ref.get("ref_id"),
                        sent_id=sentence.get("sent_id"),
                        category_id=note.get("category_id"),
                    ),
                )
            )
    return rows


def _looked_up(where: str, ref: Any, images: dict, notes: dict, place) -> tuple[dict, dict, list[dict]]:
    """Return a ref's annotation, image and sentences."""
    if not isinstance(ref, dict) or not {"ann_id", "image_id", "sentences"} <= {*ref}:
        raise DataError(f"{where}: must have ann_id, image_id and sentences, got {described(ref)}")
    found = []
    for key, known in (("ann_id", notes), ("image_id", images)):
        if not _is_key(ref[key]) or ref[key] not in known:
            raise DataError(f"{where}: there is no {key} {quoted(ref[key], 40)} in {place}")
        found.append(known[ref[key]])
    sentences = ref["sentences"]
    if not isinstance(sentences, list) or not all(isinstance(s, dict) and {"sent", "raw"} & {*s} for s in sentences):
        raise DataError(f"{where}: sentences must be objects with sent, got {quoted(sentences, 60)}")
    return found[0], found[1], sentences


def read_refcocos(path: str | os.PathLike, box_format: str = "", source: str = "") -> list[FoundRow]:
    """Return the rows of RefCOCOs' JSON: `normal_caption`, and `solution` as corners, null where no such thing is there."""
    values = read_json(path)
    if not isinstance(values, list) or not values:
        raise DataError(
            f"{path} must be a list of objects with image, normal_caption and solution, got {described(values)}"
        )
    rows = []
    for number, value in enumerate(values):
        if not isinstance(value, dict) or not {"image", "normal_caption", "solution"} <= {*value}:
            raise DataError(
                f"{path}, entry {number}: must have image, normal_caption and solution, got {described(value)}"
            )
        known = {key: value.get(key) for key in ("categories", "annotation_id", "image_index")}
        rows.append(
            FoundRow(
                f"entry {number}",
                number,
                value["image"],
                value["solution"],
                value["normal_caption"],
                box_format or "xyxy",
                (value.get("width"), value.get("height")),
                source or "human",
                dataset=value.get("dataset"),
                extra=_some(**known),
            )
        )
    return rows


def hull_of(box: Any, box_format: str) -> tuple[Any, dict[str, Any]]:
    """Return one box and {}, or of a list of boxes their hull in that format and {"boxes": the list}."""
    if not isinstance(box, list) or not box or not all(isinstance(b, list) for b in box):
        return box, {}
    if len(box) == 1:
        return box[0], {}
    if not all(len(b) == 4 and all(type(v) in (int, float) for v in b) for b in box):
        return box, {}  # refused later, as it stands
    corners = [corners_of(b, box_format) for b in box]
    if broken := [b for b, (x1, y1, x2, y2) in zip(box, corners, strict=True) if not (x1 < x2 and y1 < y2)]:
        return broken[0], {"boxes": box}
    x1, y1 = min(c[0] for c in corners), min(c[1] for c in corners)
    x2, y2 = max(c[2] for c in corners), max(c[3] for c in corners)
    return ([x1, y1, x2 - x1, y2 - y1] if box_format == "xywh" else [x1, y1, x2, y2]), {"boxes": box}


def _images(path, values: Any) -> dict[Any, dict[str, Any]]:
    return _by_id(path, values, "images")


def _by_id(path, values: Any, key: str) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    for number, value in enumerate(_list(path, values, key)):
        if not isinstance(value, dict) or not _is_key(value.get("id")) or value["id"] in found:
            raise DataError(f"{path}, {key} {number}: must be objects with an id of their own, got {quoted(value, 80)}")
        found[value["id"]] = value
    return found


def _list(path, values: Any, key: str) -> list:
    found = values.get(key) if isinstance(values, dict) else None
    if not isinstance(found, list) or not found:
        raise DataError(f"{path} must have a list of {key}, got {described(values)}")
    return found


def _is_key(value: object) -> bool:
    return type(value) in (int, str)


def _is_span(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def _some(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
