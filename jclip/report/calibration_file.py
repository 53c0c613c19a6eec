"""`calibration.json`: thresholds and sigmoids of each class with the list that they were fitted on, written and read back."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.checks import preview
from jclip.data.label_files import PhotoLabels
from jclip.errors import DataError
from jclip.functional.calibration import RULES, Calibration, Rule, fitted_sigmoids, fitted_thresholds
from jclip.paths import replacing
from jclip.readers.text import read_json

KIND, VERSION = "jclip calibration", 1
_KEYS = ("kind", "version", "classes", "rule", "thresholds", "a", "b", "without_probability", "list")
_MADE_OF = "made_of"  # the one key that a file may lack


def write_calibration(path: str | Path, calibration: Calibration) -> None:
    """Writes thresholds, a and b (null for a class without a sigmoid), class names, and name, hash and size of the list."""
    c = calibration
    values = {
        "kind": KIND,
        "version": VERSION,
        "classes": [*c.classnames],
        "rule": c.rule,
        "thresholds": c.thresholds.tolist(),
        "a": [None if math.isnan(x) else x for x in c.a.tolist()],
        "b": [None if math.isnan(x) else x for x in c.b.tolist()],
        "without_probability": [name for name, a in zip(c.classnames, c.a.tolist(), strict=True) if math.isnan(a)],
        "list": {"name": c.photos_of, "sha256": c.sha256, "photos": c.photos},
    }
    values |= {_MADE_OF: c.made_of} if c.made_of else {}
    text = json.dumps(values, ensure_ascii=False, indent=1, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_bytes(f"{text}\n".encode("utf-8", "backslashreplace"))


def read_calibration(path: str | Path) -> Calibration:
    """What `write_calibration` has written. Raises `DataError` for any other content: missing or unknown keys, numbers that
    are none, lists of another length than the classes'."""
    values = read_json(path)
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise DataError(f'{path}: must be a calibration file, an object with "kind": "{KIND}"')
    if missing := [key for key in _KEYS if key not in values]:
        raise DataError(f"{path}: must have {preview(_KEYS, 9)}, got none of {preview(missing)}")
    if strange := [key for key in values if key not in (*_KEYS, _MADE_OF)]:
        raise DataError(f"{path}: must have nothing but {preview(_KEYS, 9)}, got {strange[0]!r:.60}")
    if values["version"] != VERSION:
        raise DataError(f"{path}: version must be {VERSION}, got {values['version']!r:.20}")
    if not isinstance(values.get(_MADE_OF, ""), str):
        raise DataError(f"{path}: {_MADE_OF} must be text, got {values[_MADE_OF]!r:.40}")
    names, of = values["classes"], values["list"]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise DataError(f"{path}: classes must be a list of names")
    if values["rule"] not in RULES:
        raise DataError(f"{path}: rule must be one of {', '.join(RULES)}, got {values['rule']!r:.40}")
    kinds = {"name": str, "sha256": str, "photos": int}
    if not isinstance(of, dict) or {*of} != {*kinds} or any(type(of[key]) is not kind for key, kind in kinds.items()):
        raise DataError(f"{path}: list must have {', '.join(kinds)}, got {of!r:.80}")
    thresholds, a, b = (
        _numbers(values, key, len(names), key != "thresholds", path) for key in ("thresholds", "a", "b")
    )
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        raise DataError(f"{path}: a and b must be null for the same classes")
    listed = of["name"], of["sha256"], of["photos"]
    return Calibration(tuple(names), values["rule"], thresholds, a, b, *listed, values.get(_MADE_OF, ""))


def fitted(
    scores: np.ndarray, labels: PhotoLabels, rule: Rule = "global_f1", fixed: float = 0.5, quantiles: int | None = None,
    made_of: str = "",
) -> Calibration:  # fmt: skip
    """Thresholds by `rule` and sigmoids of scores (N, C) of the photos of `labels`; see `jclip.functional.calibration`."""
    thresholds = fitted_thresholds(scores, labels.targets, rule, fixed, quantiles)
    a, b = fitted_sigmoids(scores, labels.targets)
    of = labels.source, labels.sha256(), len(labels)
    return Calibration(labels.classnames, rule, thresholds, a, b, *of, made_of)


def _numbers(values: dict[str, Any], key: str, count: int, null: bool, path: str | Path) -> np.ndarray:
    found = values[key]
    if not isinstance(found, list) or len(found) != count:
        raise DataError(f"{path}: {key} must be a list of {count} numbers, one for each class")
    for value in found:
        if type(value) not in (int, float) and not (null and value is None):
            raise DataError(f"{path}: {key} must be numbers{' or null' if null else ''}, got {value!r:.40}")
    return np.array([math.nan if value is None else value for value in found], np.float64)


def calibration_for(path: str | Path, classnames: Sequence[str]) -> Calibration:
    """The calibration of a file. Raises `DataError` unless it has these classes in this order."""
    found = read_calibration(path)
    if found.classnames != tuple(classnames):
        at = next(
            (k for k, (a, b) in enumerate(zip(found.classnames, classnames, strict=False)) if a != b),
            min(len(found.classnames), len(classnames)),
        )
        ours, theirs = (names[at] if at < len(names) else "nothing" for names in (classnames, found.classnames))
        raise DataError(
            f"{path}: must be fitted for the same classes in the same order, got {theirs!r} where {ours!r} stands "
            f"(class {at} of {len(classnames)}): fit it again on these scores"
        )
    return found
