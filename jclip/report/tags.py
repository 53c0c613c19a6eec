"""Tags: which of the names each photo has, several or none; as CSV, JSON, JSON lines, a list of labels, a table, folders."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jclip.errors import ConfigError, DataError
from jclip.functional.local_to_global import chosen, halfway
from jclip.paths import replacing
from jclip.readers.spreadsheet import write_csv_rows
from jclip.report.folder_names import NONE, class_folders, free_name
from jclip.report.predictions import percent, shorten, table
from jclip.report.score_files import Scores, write_scores
from jclip.report.sorted_folders import Placement, check_folder, check_places

FORMATS = (".csv", ".json", ".jsonl", ".txt", ".npz")
_SHOWN = 5  # tags of a photo in the table
Kind = Literal["score", "probability"]


@dataclass(frozen=True)
class Tags:
    """Scores (N, C) of photos for classes, and which of them make a tag.

    background: (N, G) scores of names that are no class. threshold: what a score must exceed; None: halfway between a
    photo's least and greatest. top: tags of a photo at most. none: a photo where nothing exceeds the threshold has no tag,
    and halfway is of all names, the background's too; else it has its best class. kind: what the numbers are;
    probabilities only where somebody has calibrated them, or the model was trained with the sigmoid loss. logits: scores are
    logarithms, whose exponentials are halved.
    passing: (N, C) bool, what exceeds thresholds that were fitted elsewhere, in place of `threshold`; limits: (C,) these
    thresholds, NaN where there is none, in the numbers that scores are.
    Raises `ConfigError` for one class that nothing is compared with.
    """

    photos: tuple[str, ...]
    classnames: tuple[str, ...]
    scores: np.ndarray
    background: np.ndarray | None = None
    threshold: float | None = None
    top: int | None = None
    none: bool = False
    kind: Kind = "score"
    logits: bool = False
    passing: np.ndarray | None = None
    written: np.ndarray | None = None  # (N, C) what a .npz gets in place of the scores, for calibration
    limits: np.ndarray | None = None

    def __post_init__(self) -> None:
        fitted = self.threshold is not None or self.passing is not None
        if self.none and not fitted and len(self.classnames) + self._beside < 2:
            raise ConfigError(
                "a photo without tags needs a threshold where there is one class and no background: set --threshold, or "
                "name a --background"
            )

    @property
    def _beside(self) -> int:
        return 0 if self.background is None else self.background.shape[1]

    @cached_property
    def thresholds(self) -> np.ndarray:
        """(N,) what a photo's scores must exceed."""
        if self.threshold is not None:
            return np.full(len(self.photos), self.threshold)
        beside = self.background if self.none and self._beside else self.scores[:, :0]
        return halfway(np.concatenate([self.scores, beside], axis=1), self.logits) if len(self.photos) else np.zeros(0)

    def limits_of(self, row: int) -> np.ndarray:
        """(C,) what a photo's score for each class is compared with; NaN where the class is never a tag."""
        if self.passing is not None and self.limits is not None:
            return self.limits
        return np.full(len(self.classnames), self.thresholds[row])

    @property
    def margins(self) -> np.ndarray:
        """(N,) how far the score nearest to its threshold is from it: small where a photo is unsure."""
        rows = [np.abs(self.scores[row] - self.limits_of(row)) for row in range(len(self.photos))]
        return np.array([np.nanmin(row) if np.isfinite(row).any() else np.inf for row in rows])

    @cached_property
    def has(self) -> np.ndarray:
        """(N, C) bool: which photo has which tag."""
        above = self.scores > self.thresholds[:, None] if self.passing is None else self.passing
        return chosen(self.scores, above, self.top, force=not self.none)

    def of(self, row: int) -> list[int]:
        """The tags of a photo, best first."""
        own = np.flatnonzero(self.has[row])
        return own[np.argsort(-self.scores[row, own], kind="stable")].tolist()


def check_tag_file(path: str | None, photos: Sequence[str] = ()) -> None:
    """Raises `ConfigError` for an ending that names no format, `DataError` for a list that a photo's name would break: to be
    asked before the work."""
    kind = None if path is None else Path(path).suffix.lower()
    if kind not in (None, *FORMATS):
        raise ConfigError(f"tags are written as one of {', '.join(FORMATS)}, got {path}")
    if kind == ".txt" and (broken := [photo for photo in photos if {*photo} & {"\n", "\r"}]):
        raise DataError(
            f"{path}, a list, has a photo on each line, got a line break in {broken[0]!r:.200}: rename it, or write .json"
        )


def write_tags(tags: Tags, path: str) -> None:
    """Writes `path` in the format of its ending, to a temporary name first; .npz: all scores, for `jclip measure`.

    Raises `DataError` for a list that a photo's name would break.
    """
    check_tag_file(path, tags.photos)
    if Path(path).suffix.lower() == ".npz":
        scores = tags.scores if tags.written is None else tags.written
        write_scores(path, Scores(path, {"scores": scores}, tags.classnames, tags.photos))
        return
    data = tag_bytes(tags, Path(path).suffix.lower())
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def tag_bytes(tags: Tags, kind: str) -> bytes:
    """What `write_tags` writes; kind: one of FORMATS but .npz.

    .csv: photo, and name and score of each tag. .json and .jsonl: a photo with its tags, in a list or a line each. .txt:
    the photo and the numbers of its tags, as `data.test` reads them.
    """
    writers = {".csv": _write_csv, ".json": _write_json, ".jsonl": _write_lines, ".txt": _write_labels}
    text = io.StringIO(newline="")
    writers[kind](tags, text)
    errors = "backslashreplace" if kind.startswith(".json") else "surrogateescape"  # names of files that are no UTF-8
    return text.getvalue().encode("utf-8", errors)


def _write_csv(tags: Tags, f) -> None:
    rows = [tags.of(row) for row in range(len(tags.photos))]
    most = max(map(len, rows), default=0)
    head = ["photo", *(f"{what}_{i + 1}" for i in range(most) for what in ("tag", tags.kind))]
    cells = []
    for row, own in enumerate(rows):
        said = [x for i in own for x in (tags.classnames[i], f"{tags.scores[row, i]:.6g}")]
        cells.append([tags.photos[row], *said, *[""] * (2 * (most - len(own)))])
    write_csv_rows(f, head, cells)


def entries(tags: Tags) -> Iterator[dict[str, Any]]:
    """Each photo with its tags, name, number and score, best first; what the JSON files hold."""
    for row, photo in enumerate(tags.photos):
        own = [
            {"class": tags.classnames[i], "label": i, tags.kind: _rounded(float(tags.scores[row, i]))}
            for i in tags.of(row)
        ]
        yield {"photo": photo, "tags": own}


def _rounded(score: float) -> float:
    return float(f"{score:.6g}")


def _write_json(tags: Tags, f) -> None:
    json.dump([*entries(tags)], f, ensure_ascii=False, indent=1, allow_nan=False)
    f.write("\n")


def _write_lines(tags: Tags, f) -> None:
    for entry in entries(tags):
        f.write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")


def _write_labels(tags: Tags, f) -> None:
    f.writelines(" ".join([photo, *map(str, sorted(tags.of(row)))]) + "\n" for row, photo in enumerate(tags.photos))


def show_tags(tags: Tags, limit: int = 20) -> str:
    """A table of the first `limit` photos with their tags, and how many photos have each."""
    rows = []
    for row, photo in enumerate(tags.photos[:limit]):
        own = tags.of(row)
        said = [f"{shorten(tags.classnames[i], 24)} {number(tags, row, i)}" for i in own[:_SHOWN]]
        more = [f"and {len(own) - _SHOWN} more"] if len(own) > _SHOWN else []
        rows.append([shorten(photo, 40), ", ".join([*said, *more]) or "none"])
    text = table(["photo", f"tags with their {tags.kind}"], rows)
    more = len(tags.photos) - limit
    text += f"\n… and {more} more (--out FILE has them all)" if more > 0 else ""
    return f"{text}\n{_summary(tags)}"


def number(tags: Tags, row: int, label: int) -> str:
    """A photo's score for a class as people read it, a probability in percent."""
    return as_read(tags, float(tags.scores[row, label]))


def as_read(tags: Tags, value: float) -> str:
    """A number like these scores as people read it, a probability in percent."""
    if tags.kind == "probability":
        return percent(value, tags.written is not None)
    return f"{value:.{3 if abs(value) < 10 else 1}f}"


def _summary(tags: Tags, most: int = 10) -> str:
    counts = tags.has.sum(axis=0)
    order = np.argsort(-counts, kind="stable")
    named = [f"{shorten(tags.classnames[i], 24)} {counts[i]}" for i in order[:most] if counts[i]]
    rest = int((counts > 0).sum()) - len(named)
    without = int((~tags.has.any(axis=1)).sum())
    said = [*named, *([f"{rest} more classes"] if rest else []), *([f"none {without}"] if without else [])]
    return f"photos with a tag: {', '.join(said) or 'no photos'}"


def plan_tags(tags: Tags, folder: Path) -> list[Placement]:
    """Where each photo goes: into the folder of each of its tags, without any into `_none`.

    Names are numbered, and what stands there refused, as in `jclip.report.sorted_folders.plan`.
    """
    check_folder(folder)
    folders, taken, placed = class_folders(tags.classnames), set(), []
    for row, photo in enumerate(tags.photos):
        own = tags.of(row)
        places = [(folders[i], tags.classnames[i], i) for i in own] or [(NONE, "", int(tags.scores[row].argmax()))]
        for below, label, i in places:
            name = free_name(Path(photo).name, taken, f"{below}/")
            value = round(float(tags.scores[row, i]), 6)
            placed.append(Placement(str(Path(photo).absolute()), f"{below}/{name}", label, **{tags.kind: value}))
    check_places(placed, folder)
    return placed
