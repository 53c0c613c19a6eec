"""Published sets of photos with several labels: PASCAL VOC, COCO, NUS-WIDE, and the one reader for these and all lists.

What each set leaves open (difficult objects, crowds, photos without objects) is a setting, and stands in `rules`. Imports
no Jittor.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jclip.config import DataConfig
from jclip.data.checks import preview
from jclip.data.label_files import (
    ClassFinder,
    Difficult,
    LabelValues,
    PhotoLabels,
    read_label_arrays,
    read_label_lines,
    read_label_list,
    read_label_table,
    refuse_twice,
    targets_of,
)
from jclip.data.multi_label import read_multi_label
from jclip.errors import ConfigError, DataError
from jclip.paths import exists
from jclip.prompts.class_sets import class_set
from jclip.readers.text import read_json, read_lines, read_text

Crowd = Literal["count", "skip"]
_LARGEST_XML = 1 << 22  # bytes
_NUS_LISTS = {"Train": "TrainImagelist.txt", "Test": "TestImagelist.txt", "All": "Imagelist.txt"}
_NUS_FOLDERS = (
    "", "ConceptsList", "ImageList", "Groundtruth/TrainTestLabels", "TrainTestLabels", "Groundtruth/AllLabels", "AllLabels",
)  # fmt: skip


@dataclass(frozen=True)
class LabelRules:
    """What sources leave open. difficult: VOC's difficult objects count as absent, or their class is unknown where the photo
    has no other of it. crowd: whether COCO's crowd boxes count as objects. values: see `read_label_arrays`."""

    difficult: Difficult = "as_negative"
    crowd: Crowd = "count"
    values: LabelValues = "jclip"


def read_labels(
    named: str, classnames: Sequence[str] | None = None, rules: LabelRules | None = None, root: str = ""
) -> PhotoLabels:
    """Labels of any source: `PATH` or `PATH:PART`, where PART is a set's part (test, val2014) or an .npz's array.

    A folder is VOC's (Annotations, ImageSets), NUS-WIDE's (lists and label files), or holds photos in a folder per class.
    A .json is COCO's instances, .jsonl and .csv or .tsv hold names, .npz an array, any other file TagCLIP's lines.
    classnames: all classes in order; a source with names of its own needs none. root: where photos lie, if not where the
    source has them. Raises `DataError`.
    """
    rules, (path, part) = rules or LabelRules(), _path_and_part(named)
    suffix = path.suffix.lower()
    if path.is_dir():
        return _of_folder(path, part, classnames, rules, root)
    if suffix == ".npz":
        return read_label_arrays(path, part or "targets", classnames, rules.values, rules.difficult)
    if part:
        raise DataError(f"{path} has no parts, got {part!r}: give the file alone")
    if suffix == ".json":
        return read_coco(path, classnames, rules.crowd, root)
    if suffix in (".jsonl", ".ndjson"):
        return read_label_lines(path, classnames, root)
    if suffix in (".csv", ".tsv"):
        return read_label_table(path, classnames, root)
    if not classnames:
        raise ConfigError(f"{path} has labels by number: name the classes with --classes")
    return read_label_list(path, classnames, root)


def _path_and_part(named: str) -> tuple[Path, str]:
    head, colon, part = named.rpartition(":")
    return (Path(head), part) if colon and not exists(named) else (Path(named), "")


def _of_folder(path: Path, part: str, classnames: Sequence[str] | None, rules: LabelRules, root: str) -> PhotoLabels:
    if (path / "Annotations").is_dir():
        return read_voc(path, part or "test", classnames, rules.difficult, root)
    if _nus_file(path, "Concepts81.txt", needed=False):
        return read_nus_wide(path, part or "Test", classnames, root)
    if part:
        raise DataError(f"{path} must hold Annotations and ImageSets (VOC) or Concepts81.txt (NUS-WIDE) to have parts")
    found = read_multi_label(DataConfig(root=str(path)))
    names, targets = found.classnames, found.targets.astype(np.int8)
    if classnames:
        finder, ordered = ClassFinder(classnames), np.zeros((len(targets), len(classnames)), np.int8)
        ordered[:, [finder.find(name, str(path)) for name in names]] = targets
        names, targets = finder.names, ordered
    return PhotoLabels(names, found.photos.paths, targets, "", str(path), {"format": "a folder per class"})


def read_voc(
    root: Path, part: str = "test", classnames: Sequence[str] | None = None, difficult: Difficult = "as_negative",
    photos: str = "",
) -> PhotoLabels:  # fmt: skip
    """PASCAL VOC: the photos of ImageSets/Main/<part>.txt in order, objects of Annotations/<id>.xml.

    A class is present where an object that is not difficult has it. One with difficult objects alone is absent
    (`as_negative`) or unknown (`ignore`). Raises `DataError`.
    """
    finder = ClassFinder(classnames or class_set("voc2007"))
    ids = [line.split()[0] for line in read_lines(root / "ImageSets" / "Main" / f"{part}.txt") if line]
    refuse_twice(ids, f"{root}, {part}")
    rows = [_voc_objects(root / "Annotations" / f"{name}.xml", finder) for name in ids]
    kept = [(sure, hard if difficult == "ignore" else ()) for sure, hard in rows]
    rules = {"format": "VOC", "part": part, "difficult": difficult, "only_difficult": sum(len(h - s) for s, h in rows)}
    return PhotoLabels(
        finder.names, tuple(f"{name}.jpg" for name in ids), targets_of(kept, len(ids), len(finder.names)),
        photos or str(root / "JPEGImages"), f"{root}:{part}", rules,
    )  # fmt: skip


def _voc_objects(path: Path, finder: ClassFinder) -> tuple[set[int], set[int]]:
    """Classes of the objects that are not difficult, and of those that are."""
    text = read_text(path, most=_LARGEST_XML)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{path}: must be a plain annotation, got a document type or entities: remove them")
    try:
        document = ElementTree.fromstring(text)
    except ElementTree.ParseError as e:
        raise DataError(f"{path} is not valid XML ({e})") from None
    if document.tag != "annotation":
        raise DataError(f"{path}: must be an <annotation>, got <{document.tag:.40}>")
    found: tuple[set[int], set[int]] = (set(), set())
    for thing in document.findall("object"):
        flag = (thing.findtext("difficult") or "0").strip()
        if flag not in ("0", "1"):
            raise DataError(f"{path}: difficult must be 0 or 1, got {flag!r:.40}")
        found[flag == "1"].add(finder.find((thing.findtext("name") or "").strip(), str(path)))
    return found


def read_coco(
    path: Path, classnames: Sequence[str] | None = None, crowd: Crowd = "count", photos: str = ""
) -> PhotoLabels:
    """COCO's instances: the images in the file's order, also those without objects; classes by category id.

    crowd: `count` takes a crowd's box for an object, as TaI-DPT does, `skip` leaves it out. Raises `DataError`.
    """
    values = read_json(path)
    images, categories, boxes = (_records(values, key, needed, path) for key, needed in (
        ("images", {"id": int, "file_name": str}), ("categories", {"id": int, "name": str}),
        ("annotations", {"image_id": int, "category_id": int}),
    ))  # fmt: skip
    categories = sorted(categories, key=lambda c: c["id"])
    finder = ClassFinder(classnames or [c["name"] for c in categories])
    place = _unique(
        {c["id"]: finder.find(c["name"], f"{path}, categories") for c in categories}, categories, "category", path
    )
    row = _unique({image["id"]: n for n, image in enumerate(images)}, images, "image", path)
    present: dict[int, set[int]] = defaultdict(set)
    crowds = 0
    for number, box in enumerate(boxes):
        if box["image_id"] not in row or box["category_id"] not in place:
            raise DataError(
                f"{path}, annotations, entry {number}: must be of a listed image and category, "
                f"got image {box['image_id']}, category {box['category_id']}"
            )
        is_crowd = box.get("iscrowd") == 1
        crowds += is_crowd
        if crowd == "count" or not is_crowd:
            present[row[box["image_id"]]].add(place[box["category_id"]])
    names = tuple(image["file_name"] for image in images)
    refuse_twice(names, str(path))
    targets = targets_of(((present.get(n, ()), ()) for n in range(len(names))), len(names), len(finder.names))
    empty = int((~(targets == 1).any(axis=1)).sum())
    rules = {"format": "COCO instances", "crowd": crowd, "crowd_boxes": crowds, "without_objects": empty}
    return PhotoLabels(finder.names, names, targets, photos, str(path), rules)


def _records(values: Any, key: str, needed: dict[str, type], path: Path) -> list[dict[str, Any]]:
    """The objects below a key, each with the keys and types that are needed."""
    records = values.get(key) if isinstance(values, dict) else None
    if not isinstance(records, list):
        raise DataError(
            f'{path}: must be an object with lists "images", "annotations" and "categories", got no "{key}"'
        )
    for number, record in enumerate(records):
        if not isinstance(record, dict) or any(type(record.get(k)) is not kind for k, kind in needed.items()):
            raise DataError(f"{path}, {key}, entry {number}: must have {', '.join(needed)}, got {record!r:.80}")
    return records


def _unique(places: dict[int, int], records: Sequence[Any], kind: str, path: Path) -> dict[int, int]:
    if len(places) < len(records):
        raise DataError(f"{path}: each {kind} must have an id of its own, got {len(places)} ids of {len(records)}")
    return places


def read_nus_wide(
    root: Path, part: str = "Test", classnames: Sequence[str] | None = None, photos: str = ""
) -> PhotoLabels:
    """NUS-WIDE: Concepts81.txt, <part>Imagelist.txt (Train, Test, or All), Labels_<concept>_<part>.txt of 0 and 1 a line.

    The files lie in `root` or in the folders that the set comes in. Raises `DataError` for lists of other lengths.
    """
    part = part[:1].upper() + part[1:]
    if part not in _NUS_LISTS:
        raise DataError(f"{root}: the part must be one of {', '.join(_NUS_LISTS)}, got {part!r}")
    concepts = [line for line in read_lines(_nus_file(root, "Concepts81.txt")) if line]
    finder = ClassFinder(classnames or concepts)
    listed = _nus_file(root, _NUS_LISTS[part])
    names = tuple(line.replace("\\", "/") for line in read_lines(listed) if line)
    refuse_twice(names, str(listed))
    targets = np.zeros((len(names), len(finder.names)), np.int8)
    for concept in concepts:
        column = finder.find(concept, f"{root}, Concepts81.txt")
        file = _nus_file(root, f"Labels_{concept}.txt" if part == "All" else f"Labels_{concept}_{part}.txt")
        targets[:, column] = _zeros_and_ones(file, len(names), listed)
    return PhotoLabels(
        finder.names, names, targets, photos or str(root), f"{root}:{part}", {"format": "NUS-WIDE", "part": part}
    )


def _zeros_and_ones(file: Path, count: int, listed: Path) -> list[int]:
    lines = [line for line in read_lines(file) if line]
    if odd := [line for line in lines if line not in ("0", "1")]:
        raise DataError(f"{file}: must have 0 or 1 a line, got {odd[0]!r:.40}")
    if len(lines) != count:
        raise DataError(f"{file}: must have a line for each of the {count} photos of {listed.name}, got {len(lines)}")
    return [int(line) for line in lines]


def _nus_file(root: Path, name: str, needed: bool = True) -> Path | None:
    found = next((root / folder / name for folder in _NUS_FOLDERS if (root / folder / name).is_file()), None)
    if found is None and needed:
        raise DataError(f"{root}: must have the file {name}, in it or in {preview(_NUS_FOLDERS[1:], 9)}")
    return found
