"""Predictions as people hand them in or read on: CSV, JSON, the Jittor challenge's lines, a table on screen."""

from __future__ import annotations

import csv
import json
import unicodedata
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.splits import natural_key
from jclip.errors import ConfigError, DataError
from jclip.functional.metrics import ranking, softmax
from jclip.paths import replacing

FORMATS = (".csv", ".json", ".txt")
SELECTED_ON_TEST = "selected_on_test"  # a metric that marks figures of settings chosen on test data


@dataclass(frozen=True)
class Predictions:
    """Scores (N, C) of photos for classes; `top` of them are told."""

    photos: tuple[str, ...]
    classnames: tuple[str, ...]
    scores: np.ndarray
    top: int = 5

    @property
    def best(self) -> np.ndarray:
        """(N, top) class ids, best first."""
        return ranking(self.scores, self.top)

    @property
    def probabilities(self) -> np.ndarray:
        """(N, C) softmax of the scores."""
        return softmax(self.scores)


def check_format(path: str | None) -> None:
    """Raises `ConfigError` for a results file whose ending names no format: to be asked before the work, not after."""
    if path is not None and Path(path).suffix.lower() not in FORMATS:
        raise ConfigError(f"{path}: the ending tells the format, and it is none of {', '.join(FORMATS)}")


def write_predictions(predictions: Predictions, path: str) -> None:
    """Writes `path` in the format of its ending, to a temporary name first."""
    check_format(path)
    writer = {".csv": _write_csv, ".json": _write_json, ".txt": _write_challenge}[Path(path).suffix.lower()]
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        writer(predictions, f)


def _write_csv(p: Predictions, f) -> None:
    """photo, then class and probability of each of the best."""
    best, probabilities = p.best, p.probabilities
    table = csv.writer(f)
    table.writerow(["photo", *(f"{what}_{i + 1}" for i in range(best.shape[1]) for what in ("class", "probability"))])
    for photo, ids, row in zip(p.photos, best, probabilities, strict=True):
        table.writerow([photo, *(x for i in ids for x in (p.classnames[i], f"{row[i]:.6f}"))])


def _write_json(p: Predictions, f) -> None:
    """A list of photos, each with its best classes: name, label, probability."""
    entries = [
        {
            "photo": photo,
            "predictions": [
                {"class": p.classnames[i], "label": int(i), "probability": round(float(row[i]), 6)} for i in ids
            ],
        }
        for photo, ids, row in zip(p.photos, p.best, p.probabilities, strict=True)
    ]
    json.dump(entries, f, ensure_ascii=False, indent=1)
    f.write("\n")


def _write_challenge(p: Predictions, f) -> None:
    """`name top1 … top5` per photo: base names in natural order, class ids, no header."""
    names = [Path(photo).name for photo in p.photos]
    repeated = sorted({n for n in names if names.count(n) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise DataError(
            f"the challenge's file names photos without their folder, and {repeated[0]!r} stands there twice"
        )
    for name, ids in sorted(zip(names, p.best.tolist(), strict=True), key=lambda row: natural_key(row[0])):
        f.write(" ".join([name, *map(str, ids)]) + "\n")


def check_challenge(path: str | Path, photos: Sequence[str]) -> None:
    """Raises `DataError` unless the file has one line for each of `photos`, in natural order, with five different ids."""
    rows = [line.rsplit(" ", 5) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    wanted = sorted((Path(photo).name for photo in photos), key=natural_key)
    if [row[0] for row in rows] != wanted:
        raise DataError(
            f"{path} has {len(rows)} lines that are not those of the {len(wanted)} photos, each once, in order"
        )
    for name, *ids in rows:
        if len(set(ids)) != 5 or not all(i.isdecimal() for i in ids):
            raise DataError(f"{path}: {name} has {' '.join(ids)}, expected five different classes")


def zip_challenge(path: Path) -> Path:
    """Writes what is handed in, a .zip beside `path` that holds it as result.txt; equal contents give equal bytes."""
    entry = zipfile.ZipInfo("result.txt")
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    with replacing(path.with_suffix(".zip")) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(entry, path.read_bytes())
    return path.with_suffix(".zip")


def show(p: Predictions, limit: int = 20, columns: int = 3) -> str:
    """A table of the first `limit` photos and their best classes with probabilities."""
    best, probabilities = p.best[:, :columns], p.probabilities
    rows = [
        [_shorten(photo, 40), *(f"{_shorten(p.classnames[i], 24)} {100 * row[i]:.1f} %" for i in ids)]
        for photo, ids, row in zip(p.photos[:limit], best[:limit], probabilities[:limit], strict=True)
    ]
    text = table(["photo", *(f"top {i + 1}" for i in range(best.shape[1]))], rows)
    more = len(p.photos) - limit
    return text + (f"\n… and {more} more (--out FILE has them all)" if more > 0 else "")


def marked(name: str, metrics: Mapping[str, Any]) -> str:
    """The name of a run in a table or picture, saying so where its settings were chosen on test data."""
    return f"{name} (selected on test)" if metrics.get(SELECTED_ON_TEST) else name


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned to the left, wide characters counted as two."""
    widths = [max(_width(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    lines = [[*head], ["-" * w for w in widths], *rows]
    return "\n".join(
        "  ".join(f"{cell}{' ' * (w - _width(str(cell)))}" for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _shorten(text: str, length: int) -> str:
    """The end of a long text: of a path it says more than the beginning."""
    return text if len(text) <= length else "…" + text[-(length - 1) :]
