"""The photos of several classes each that a config names: a list, a folder per class, a published set, the embedded world.

Imports no Jittor.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jclip.config import DataConfig
from jclip.data.checks import preview
from jclip.data.class_names import read_names
from jclip.data.label_files import PhotoLabels
from jclip.data.multi_label import Part, read_multi_label
from jclip.data.multi_label_sets import read_labels
from jclip.errors import DataError
from jclip.paths import exists, is_file

TABLES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".npz")  # which name their photos and classes themselves


def read_labelled_photos(config: DataConfig, part: Part = "test") -> PhotoLabels:
    """The photos of that part, and labels (N, C) int8: 1 present, 0 absent, -1 unknown.

    `data.test` (`data.val`, `data.train`) is a list, `path label label` a line, beside `data.classes`; or what
    `jclip.data.multi_label_sets.read_labels` reads: a folder of VOC or NUS-WIDE with a part after a colon
    (`VOC2007:test`), COCO's instances as .json, names as .jsonl or .csv. Without it, see
    `jclip.data.multi_label.read_multi_label`. Photos of a table without data.root may lie beside it.
    Raises `DataError` for what is missing or contradictory.
    """
    named = getattr(config, part)
    if not named or not _is_set(named):
        found = read_multi_label(config, part)
        return PhotoLabels(
            found.classnames, found.photos.paths, found.targets.astype(np.int8), "", named or config.root
        )
    names = read_names(Path(config.classes)) if config.classes else None
    labels = read_labels(named, names, root=config.root)
    if labels.missing and not config.root and Path(named).suffix.lower() in TABLES[1:5]:  # as those of plain lists are
        beside = read_labels(named, names, root=str(Path(named).parent))
        labels = labels if beside.missing else beside
    if labels.missing:
        raise DataError(
            f"{named}: {len(labels.missing)} of {len(labels)} photos are missing: {preview(labels.missing)}"
        )
    return labels


def _is_set(named: str) -> bool:
    """Whether it is no plain list of photos."""
    folder = Path(named if exists(named) else named.rpartition(":")[0] or named)
    return folder.is_dir() or (is_file(folder) and folder.suffix.lower() in TABLES)
