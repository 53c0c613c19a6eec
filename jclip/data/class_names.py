"""Names of classes, as users give them: a benchmark's set, a file, a list; and data whose classes get other names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jclip.class_sets import class_set, class_sets
from jclip.data.checks import preview
from jclip.data.splits import read_names
from jclip.errors import DataError, did_you_mean


@dataclass(frozen=True)
class ClassNames:
    """Class names in the order of their labels; others that a class goes by → its label."""

    names: tuple[str, ...]
    synonyms: Mapping[str, int] = field(default_factory=dict)

    def places(self, own: Sequence[str]) -> np.ndarray:
        """For the classes `own` of some data, their labels (C,) among these names.

        Told by name where every one is found, underscores as spaces and whatever the case; else, of equally many, one
        after the other, as ImageNet's folders n01440764, … are in the order of its names. Raises `DataError`.
        """
        found = {_spoken(name): label for name, label in reversed(self.synonyms.items())}
        found |= {_spoken(name): label for label, name in reversed([*enumerate(self.names)])}
        missing = [name for name in own if _spoken(name) not in found]
        if not missing:
            return np.array([found[_spoken(name)] for name in own])
        if len(own) == len(self.names):
            return np.arange(len(own))
        raise DataError(
            f"the data has {len(own)} classes, {len(missing)} of which are none of the {len(self.names)} that are named "
            f"(first: {missing[0]!r}{did_you_mean(missing[0], self.names)}): name these too, or {len(own)} in the data's order"
        )


def _spoken(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def read_class_names(named: str) -> ClassNames:
    """Class names from `a,b,c`, from a benchmark's set, or from a file: one per line, `name label` lines, a JSON list, or
    the categories of COCO and LVIS (a JSON list of objects with `name`, `id` and `synonyms`). Raises `DataError`."""
    path = Path(named)
    if os.path.isfile(path):  # noqa: PTH113 - unlike Path's, it answers for what is too long to be a file's name
        found = _json_names(path) if path.suffix == ".json" else ClassNames(tuple(read_names(path)))
    elif named in class_sets():
        return ClassNames(class_set(named))  # as published: imagenet1k has two names twice
    elif "," not in named and (path.suffix or "/" in named):
        raise DataError(f"no such file of class names: {path}")
    else:
        found = ClassNames(tuple(n.strip() for n in named.split(",") if n.strip()))
    if not found.names:
        raise DataError("no class names given")
    repeated = sorted({n for n in found.names if found.names.count(n) > 1})
    if repeated:
        raise DataError(f"class names stand more than once: {preview(repeated)}")
    return found


def _json_names(path: Path) -> ClassNames:
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as e:
        raise DataError(f"{path} is not valid JSON: {e}") from e
    if isinstance(entries, dict) and isinstance(entries.get("categories"), list):
        entries = entries["categories"]
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a JSON list of class names")
    if entries and all(isinstance(entry, dict) and "name" in entry for entry in entries):
        return _categories(sorted(entries, key=lambda entry: entry.get("id", 0)))
    return ClassNames(tuple(map(str, entries)))


def _categories(entries: list[dict[str, Any]]) -> ClassNames:
    synonyms = {str(s): label for label, entry in reversed([*enumerate(entries)]) for s in entry.get("synonyms", ())}
    return ClassNames(tuple(str(entry["name"]) for entry in entries), synonyms)
