"""What a run was right and wrong about, photo by photo: of any task, from the files in its folder. No Jittor."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jclip.data import box_samples, captions, labelled_photos
from jclip.errors import DataError, JclipError, quoted
from jclip.functional import multi_label_metrics
from jclip.paths import open_regular
from jclip.readers import spreadsheet
from jclip.report import score_files
from jclip.report.run_record import RunRecord, setting
from jclip.train.configs import build_config
from jclip.weights import variants

Corners = tuple[float, float, float, float]
MOST_NAMED = 4  # classes of a photo
IOU = 0.5


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """One photo, phrase or caption with what was answered.

    key: equal in two runs for the same question. badness: in [0, inf), what is worst has the largest. said: the answer;
    number: how certain or how far off; true: the right answer, where it is another. note: what else there is to say. draw:
    the picture, where it is no file. boxes: the true box and the one that was found, in pixels of the photo.
    """

    key: str
    photo: str
    right: bool
    badness: float
    said: str
    number: str = ""
    true: str = ""
    note: str = ""
    draw: Callable[[], Image.Image] | None = None
    boxes: tuple[Corners, Corners] | None = None


@dataclass(frozen=True)
class Judged:
    """All rows of a run, in the order of its file. file: what they were read from, or what is missing; why_not: the word of
    the reason for no rows, reason: more of it; measure: the word of what `right` means."""

    measure: str
    rows: Sequence[JudgedRow] = ()
    file: str = ""
    why_not: str = ""
    reason: str = ""

    def worst(self, most: int) -> list[JudgedRow]:
        """Wrong rows, the most wrong first."""
        return sorted((row for row in self.rows if not row.right), key=lambda row: -row.badness)[:most]

    @property
    def wrong(self) -> int:
        """How many rows are wrong."""
        return sum(not row.right for row in self.rows)


@dataclass(frozen=True)
class ClassTable:
    """Figures by class, or of grounding by group of phrases: names, counts, and figures in [0, 1] or NaN. measure: the word
    of the figure; right: how many were right, where that is counted."""

    measure: str
    names: tuple[str, ...] = ()
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    figures: np.ndarray = field(default_factory=lambda: np.zeros(0))
    right: np.ndarray | None = None


class _LabelsGone(JclipError):
    """The labels that a run was measured by are not there."""


def judged_rows(record: RunRecord) -> Judged:
    """What the run was right about. Raises `CheckpointError` or `DataError` for a damaged file."""
    measure, file, read = READERS.get(record.judged_as, READERS["classify"])
    if not (record.tables / file).is_file():
        return Judged(measure, file=file, why_not="none_measured")
    try:
        rows = read(record, record.tables / file)
    except _LabelsGone as e:
        return Judged(measure, file=file, why_not="labels_gone", reason=str(e))
    return Judged(measure, rows, file, "" if rows else "none_measured")


def class_table(record: RunRecord) -> ClassTable | None:
    """Figures by class; None where the run's folder has none. Raises `DataError` for a damaged file."""
    if record.judged_as == "ground":
        return _table_of(record.tables / "groups.csv", "acc", "phrases", "count", "acc@0.5")
    if record.judged_as == "multi_label":
        return _table_of(record.tables / "per_class.csv", "ap", "class", "n", "ap_merged")
    if record.judged_as == "retrieve":
        return None
    return _table_of(record.tables / "per_class.csv", "top1", "class", "n", "top1")


def _table_of(path: Path, measure: str, name: str, count: str, figure: str) -> ClassTable | None:
    if not path.is_file():
        return None
    rows = _rows(path)
    if rows and figure not in rows[0]:
        figure = next((column for column in rows[0] if column.startswith(("ap_", "ap"))), figure)
    try:
        figures = [float(row[figure]) if row[figure] else np.nan for row in rows]
        counts = [int(row[count]) for row in rows]
        right = np.array([int(row["correct"]) for row in rows]) if rows and "correct" in rows[0] else None
        return ClassTable(measure, tuple(row[name] for row in rows), np.array(counts, int), np.array(figures), right)
    except (KeyError, ValueError) as e:
        raise DataError(f"{path} is damaged ({quoted(str(e), 60)}): measure again with `jclip eval`") from None


def answers_of(judged: Judged, names: Sequence[str]) -> Counter[tuple[int, int]]:
    """How often each class was answered for each: (true class, answer) → count, of the classes `names`."""
    place = {name: number for number, name in enumerate(names)}
    pairs = ((place.get(row.true or row.said), place.get(row.said)) for row in judged.rows)
    return Counter((true, said) for true, said in pairs if true is not None and said is not None)


def _rows(path: Path) -> list[dict[str, str]]:
    """A table that jclip wrote. Raises `DataError`."""
    try:
        return spreadsheet.read_csv(path)
    except (ValueError, csv.Error) as e:
        raise DataError(f"{path} is damaged ({quoted(str(e), 60)}): measure again with `jclip eval`") from None


def _of_classes(record: RunRecord, path: Path) -> list[JudgedRow]:
    """predictions.csv: the class with its probability."""
    found, numbered = [], bool(setting(record, "data", "features"))
    for row in _rows(path):
        try:
            photo, true, said, probability = (row[k] for k in ("photo", "class", "predicted", "probability"))
            sure = float(probability)
        except (KeyError, ValueError) as e:
            raise DataError(f"{path} is damaged ({quoted(str(e), 60)}): measure again with `jclip eval`") from None
        right = true == said
        draw_none = numbered and photo.isdecimal()
        found.append(
            JudgedRow(
                photo, "" if draw_none else photo, right, sure, said, f"{100 * sure:.1f} %", "" if right else true
            )
        )
    return found


def _of_labels(record: RunRecord, path: Path) -> list[JudgedRow]:
    """scores.npz beside the labels that the config names: right where the best class is one of a photo's labels."""
    scores = score_files.read_scores(str(path))
    try:
        _, config = build_config(dict(record.config), str(record.folder))
        labels = labelled_photos.read_labelled_photos(config.data)
    except (JclipError, OSError) as e:
        raise _LabelsGone(str(e)) from None
    columns = {name: column for column, name in enumerate(labels.classnames)}
    if unknown := [name for name in scores.classnames if name not in columns]:
        raise _LabelsGone(f"no label is called {quoted(unknown[0], 60)}")
    targets = labels.targets[:, [columns[name] for name in scores.classnames]]
    rows = {str(photo): number for number, photo in enumerate(labels.paths)}
    found = []
    for photo, own in zip(scores.photos, scores.main, strict=True):
        number = rows.get(photo)
        if number is None:
            raise _LabelsGone(f"{quoted(photo, 200)} has no labels")
        found += _labelled(photo, own, targets[number], scores.classnames)
    return found


def _labelled(photo: str, scores: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> list[JudgedRow]:
    """The row of a photo; nothing of one without any label."""
    known = np.flatnonzero(targets >= 0)
    if not (targets == 1).any() or not len(known):
        return []
    precision = multi_label_metrics.average_precision(scores[known], targets[known] == 1)
    best = int(known[scores[known].argmax()])
    true = [names[i] for i in np.flatnonzero(targets == 1)]
    said = ", ".join(true[:MOST_NAMED]) + (f" +{len(true) - MOST_NAMED}" if len(true) > MOST_NAMED else "")
    right = bool(targets[best] == 1)
    return [JudgedRow(photo, photo, right, 1 - precision, names[best], f"AP {precision:.3f}", said)]


def _of_boxes(record: RunRecord, path: Path) -> list[JudgedRow]:
    """boxes.jsonl: right from an IoU of 0.5 on."""
    scenes, found = _scenes(record), []
    with open_regular(path) as file:
        lines = file.read().decode("utf-8", "replace").splitlines()
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
            photo, phrase, overlap = str(row["photo"]), str(row["phrase"]), float(row["iou"])
            true, box = (tuple(float(x) for x in row[kind]) for kind in ("true", "box"))
            if len(true) != 4 or len(box) != 4:
                raise ValueError("four corners")
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise DataError(f"{path} is damaged ({quoted(str(e), 60)}): measure again with `jclip eval`") from None
        key, draw = f"{photo}\0{phrase}\0{true}", scenes.get(photo)
        number = f"IoU {overlap:.2f}"
        found.append(JudgedRow(key, photo, overlap >= IOU, 1 - overlap, phrase, number, draw=draw, boxes=(true, box)))
    return found


def _scenes(record: RunRecord) -> dict[str, Callable[[], Image.Image]]:
    """How scenes of the embedded world are drawn, by their names; nothing for other data."""
    config = _config_of(record)
    side = _side(config)
    try:
        samples = box_samples.world_samples(config.data, "test", side) if side else None
    except (JclipError, AttributeError):
        return {}
    if samples is None:
        return {}
    return {samples.name(n): (lambda n=n: samples.photo(n)) for n in range(len(samples.photos))}


def _of_ranks(record: RunRecord, path: Path) -> list[JudgedRow]:
    """ranks.csv: right where a caption finds its own image first."""
    config, found, pairs = _config_of(record), [], None
    side = _side(config)
    if side and getattr(config.data, "val", "") == "shapes":
        pairs = captions.read_pairs(config.data, "val", (side, side), config.seed)
    for row in _rows(path):
        try:
            photo, caption, rank = row["photo"], row["caption"], int(row["rank_of_image"])
        except (KeyError, ValueError) as e:
            raise DataError(f"{path} is damaged ({quoted(str(e), 60)}): measure again with `jclip eval`") from None
        draw = None
        if pairs is not None and pairs.render and photo.isdecimal() and int(photo) < len(pairs):
            draw = lambda n=int(photo), drawn=pairs.render: drawn(n, 0)  # noqa: E731
        shown = "" if photo.isdecimal() and draw is None else photo
        found.append(JudgedRow(f"{photo}\0{caption}", shown, rank == 1, rank, caption, f"#{rank}", draw=draw))
    return found


def _config_of(record: RunRecord) -> Any:
    """The built config of the run that answers. None where its recipe or settings are not known."""
    try:
        return build_config(dict(record.answering_config), str(record.folder))[1]
    except JclipError:
        return None


def _side(config: Any) -> int:
    """Pixels of the square that the config's model sees; 0 where its name is not known."""
    try:
        return int(variants.config_of(config.model).vision.image_size[0])
    except (JclipError, AttributeError, TypeError):
        return 0


READERS: dict[str, tuple[str, str, Callable[[RunRecord, Path], list[JudgedRow]]]] = {
    "classify": ("top1", "predictions.csv", _of_classes),
    "multi_label": ("best_class", "scores.npz", _of_labels),
    "ground": ("iou", "boxes.jsonl", _of_boxes),
    "retrieve": ("rank", "ranks.csv", _of_ranks),
}
