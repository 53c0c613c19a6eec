"""Predictions as people hand them in or read on: CSV, JSON, the Jittor challenge's lines, a table on screen."""

from __future__ import annotations

import io
import json
import math
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jclip.choices import SELECTED_ON_TEST
from jclip.data.splits import natural_key
from jclip.errors import ConfigError, DataError, printable
from jclip.functional.calibration import sigmoid
from jclip.functional.metrics import ranking, softmax
from jclip.paths import replacing
from jclip.readers.spreadsheet import write_csv_rows

FORMATS = (".csv", ".json", ".txt")
WIDEST = 200  # letters of a cell on screen
FORMS = ("", "id_idx")  # by the ending, or a .csv that numbers its photos instead of naming them
UNKNOWN = "unknown"  # said where a photo belongs to none of the classes


@dataclass(frozen=True)
class Predictions:
    """Scores (N, C) of photos for classes; `top` of them are written.

    unknown: a photo whose best probability is below it belongs to none of the classes. prompts: of each photo the prompt
    that decided, cosines: how near it was; empty where nobody asked. sigmoid: scores are logits of each class by itself,
    else shares' logarithms.
    """

    photos: tuple[str, ...]
    classnames: tuple[str, ...]
    scores: np.ndarray
    top: int = 5
    unknown: float = 0.0
    prompts: tuple[str, ...] = ()
    sigmoid: bool = False
    cosines: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.scores) != len(self.photos) or (self.prompts and len(self.prompts) != len(self.photos)):
            raise ValueError(
                f"{len(self.photos)} photos, but {len(self.scores)} rows of scores and {len(self.prompts)} prompts"
            )

    @property
    def best(self) -> np.ndarray:
        """(N, top) class ids, best first."""
        return ranking(self.scores, self.top)

    @property
    def probabilities(self) -> np.ndarray:
        """(N, C) softmax of the scores, or their sigmoid."""
        return sigmoid(self.scores) if self.sigmoid else softmax(self.scores)

    @property
    def known(self) -> np.ndarray:
        """(N,) whether a photo's best probability reaches `unknown`."""
        if self.unknown <= 0:
            return np.ones(len(self.photos), bool)
        return self.probabilities.max(axis=1) >= self.unknown

    def at(self, row: int) -> Predictions:
        """Of one photo alone."""
        one = slice(row, row + 1)
        own = {name: getattr(self, name)[one] for name in ("photos", "scores", "prompts", "cosines")}
        return replace(self, **own)

    @property
    def margins(self) -> np.ndarray:
        """(N,) by how much the best probability exceeds the second, or with one class 0: small where a photo is unsure."""
        two = -np.partition(-self.probabilities, 1, axis=1)[:, :2] if len(self.classnames) > 1 else self.probabilities
        return two[:, 0] - two[:, -1]


def check_format(path: str | None, form: str = "", photos: Sequence[str] = ()) -> None:
    """Raises `ConfigError` for an ending that names no format, or not that of `form`, and `DataError` where the challenge's
    file can't name these photos: to be asked before the work."""
    if form not in FORMS:
        raise ConfigError(f"unknown form {form!r} (known: {', '.join(FORMS[1:])})")
    if path is None:
        if form:
            raise ConfigError(f"the form {form} was asked for, but no file to write it to")
        return
    suffix = Path(path).suffix.lower()
    if form and suffix != ".csv":
        raise ConfigError(f"{path}: the form {form} is a .csv file")
    if suffix not in FORMATS:
        raise ConfigError(f"{path}: the ending must be one of {', '.join(FORMATS)}")
    if suffix == ".txt":
        _challenge_names(photos)


def write_predictions(predictions: Predictions, path: str, form: str = "") -> None:
    """Writes `path` in the format of its ending or in `form`, to a temporary name first."""
    check_format(path, form)
    data = predictions_bytes(predictions, form or Path(path).suffix.lower())
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def predictions_bytes(predictions: Predictions, kind: str) -> bytes:
    """What `write_predictions` writes; kind: an ending of FORMATS, or one of FORMS."""
    writers = {".csv": _write_csv, ".json": _write_json, ".txt": _write_challenge, "id_idx": _write_numbered}
    text = io.StringIO(newline="")
    writers[kind](predictions, text)
    errors = "backslashreplace" if kind == ".json" else "surrogateescape"  # names of files that are no UTF-8
    return text.getvalue().encode("utf-8", errors)


def _write_csv(p: Predictions, f) -> None:
    """photo, class and probability of each of the best, and the prompt where it was asked for.

    The first class of an unknown photo is `unknown`, beside the probability that did not suffice; what it would have been
    stands in the JSON file.
    """
    best, probabilities, known = p.best, p.probabilities, p.known
    head = ["photo", *(f"{what}_{i + 1}" for i in range(best.shape[1]) for what in ("class", "probability"))]
    rows = []
    for row, photo in enumerate(p.photos):
        digits = ".6g" if p.sigmoid else ".6f"  # shares below a millionth say nothing
        cells = [x for i in best[row] for x in (p.classnames[i], f"{probabilities[row, i]:{digits}}")]
        if not known[row]:
            cells[0] = UNKNOWN
        rows.append([photo, *cells, *p.prompts[row : row + 1]])
    write_csv_rows(f, [*head, *(["prompt"] if p.prompts else [])], rows)


def entries(p: Predictions) -> list[dict[str, Any]]:
    """A list of photos, each with its best classes: name, label, probability, score; what the JSON file holds.

    With `unknown`, and `prompt` and its `cosine`, where they were asked for; the classes of an unknown photo are written
    all the same.
    """
    best, probabilities, known = p.best.tolist(), p.probabilities, p.known.tolist()
    found = []
    for row, photo in enumerate(p.photos):
        asked: dict[str, Any] = {"unknown": not known[row]} if p.unknown > 0 else {}
        asked |= {"prompt": p.prompts[row]} if p.prompts else {}
        asked |= {"cosine": round(p.cosines[row], 6)} if p.cosines else {}
        classes = [
            {
                "class": p.classnames[i],
                "label": i,
                "probability": float(f"{probabilities[row, i]:.6g}")
                if p.sigmoid
                else round(float(probabilities[row, i]), 6),
                "score": _rounded(p.scores[row, i]),
            }
            for i in best[row]
        ]
        found.append({"photo": photo, **asked, "predictions": classes})
    return found


def _write_json(p: Predictions, f) -> None:
    json.dump(entries(p), f, ensure_ascii=False, indent=1, allow_nan=False)
    f.write("\n")


def _rounded(score: float) -> float | None:
    """JSON has no number for the logarithm of 0."""
    return round(float(score), 6) if math.isfinite(score) else None


def _write_numbered(p: Predictions, f) -> None:
    """`id_idx,label` of photos in natural order of their paths: numbers from 0, class ids, -1 for an unknown photo."""
    labels = np.where(p.known, p.best[:, 0], -1).tolist()
    ordered = sorted(zip(p.photos, labels, strict=True), key=lambda row: natural_key(row[0]))
    f.write("id_idx,label\n")
    f.writelines(f"{number},{label}\n" for number, (_, label) in enumerate(ordered))


def _write_challenge(p: Predictions, f) -> None:
    """`name top1 … top5` per photo: base names in natural order, class ids, no header."""
    for name, ids in sorted(
        zip(_challenge_names(p.photos), p.best.tolist(), strict=True), key=lambda row: natural_key(row[0])
    ):
        f.write(" ".join([name, *map(str, ids)]) + "\n")


def _challenge_names(photos: Sequence[str]) -> list[str]:
    """Base names of photos. Raises `DataError` for what the challenge's file can't hold."""
    names = [Path(photo).name for photo in photos]
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise DataError(
            f"the challenge's file names photos without their folder, and {repeated[0]!r} stands there twice"
        )
    if broken := [name for name in names if {*name} & {"\n", "\r"}]:
        raise DataError(f"the challenge's file has a photo on each line, and {broken[0]!r} has a line break: rename it")
    return names


def check_challenge(path: str | Path, photos: Sequence[str]) -> None:
    """Raises `DataError` unless the file has one line for each of `photos`, in natural order, with five different ids."""
    lines = Path(path).read_bytes().decode("utf-8", "surrogateescape").split("\n")[:-1]
    rows = [line.rsplit(" ", 5) for line in lines]
    wanted = sorted((Path(photo).name for photo in photos), key=natural_key)
    if [row[0] for row in rows] != wanted:
        raise DataError(
            f"{path} has {len(rows)} lines that are not those of the {len(wanted)} photos, each once, in order"
        )
    for name, *ids in rows:
        if len(set(ids)) != 5 or not all(i.isdecimal() for i in ids):
            raise DataError(f"{path}: {name} must have five different classes, got {' '.join(ids)}")


def zip_challenge(path: Path) -> Path:
    """Writes what is handed in, a .zip beside `path` that holds it as result.txt; equal contents give equal bytes."""
    entry = zipfile.ZipInfo("result.txt")
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(entry, path.read_bytes())
    with replacing(path.with_suffix(".zip")) as temporary:
        temporary.write_bytes(packed.getvalue())
    return path.with_suffix(".zip")


def show(p: Predictions, limit: int = 20, columns: int = 3) -> str:
    """A table of the first `limit` photos and their best classes with probabilities."""
    best, probabilities, known = p.best[:limit, :columns], p.probabilities, p.known
    rows = []
    for row, (photo, ids) in enumerate(zip(p.photos, best, strict=False)):
        cells = [f"{shorten(p.classnames[i], 24)} {percent(probabilities[row, i], p.sigmoid)}" for i in ids]
        if not known[row]:
            cells[0] = f"{UNKNOWN} ({cells[0]})"
        rows.append([shorten(photo, 40), *cells])
    text = table(["photo", *(f"top {i + 1}" for i in range(best.shape[1]))], rows)
    more = len(p.photos) - limit
    return text + (f"\n… and {more} more (--out FILE has them all)" if more > 0 else "")


def percent(probability: float, small: bool = False) -> str:
    """As people read it. small: what rounds to nothing, as SigLIP's probabilities often do, has two digits."""
    value = 100 * float(probability)
    return f"{value:.2g} %" if small and 1e-6 <= value < 0.05 else f"{value:.1f} %"


def marked(name: str, metrics: Mapping[str, Any]) -> str:
    """The name of a run in a table or picture, saying so where its settings were chosen on test data."""
    return f"{name} (selected on test)" if metrics.get(SELECTED_ON_TEST) else name


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned to the left, wide characters counted as two. Cells are cleaned of what a terminal would obey."""
    head, rows = [printable(name, WIDEST) for name in head], [[printable(str(c), WIDEST) for c in row] for row in rows]
    widths = [max(_width(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [[*head], ["-" * w for w in widths], *rows]
    return "\n".join(
        "  ".join(f"{cell}{' ' * (w - _width(cell))}" for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def shorten(text: str, length: int) -> str:
    """The end of a long text: of a path it says more than the beginning."""
    return text if len(text) <= length else "…" + text[-(length - 1) :]
