"""A measured run on disk: metrics as JSON, classes, confusion and predictions as CSV, the challenge's file. No Jittor."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jclip.functional.metrics import classification_report, confusion_matrix, ranking
from jclip.paths import exists, replacing, write_together
from jclip.readers.spreadsheet import write_csv_rows
from jclip.report.class_pictures import LARGEST_MATRIX, plot_classes, plot_confusion
from jclip.report.predictions import Predictions, predictions_bytes

FILES = (
    "eval.json", "per_class.csv", "per_class.png", "confusion.csv", "confusion.png", "predictions.csv", "result.txt"
)  # fmt: skip


def write_evaluation(
    folder: Path, scores: np.ndarray, labels: np.ndarray, classnames: Sequence[str],
    photos: Sequence[str] = (), marks: Mapping[str, float] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Writes what FILES names, together, and returns the metrics; eval.json comes last and marks that all are there.

    per_class.csv: n, correct, top-1. confusion.csv: a row per true class. Pictures of both of up to a hundred classes.
    predictions.csv: each photo's class, best class and its probability. result.txt: the challenge's lines, but where two
    photos have one name without their folders. Rows are numbered where their `photos` are not known. marks: what a reader
    of the metrics must know, such as `selected_on_test`; they are among them.
    """
    metrics = {**classification_report(scores, labels), **(marks or {})}
    predictions = Predictions(tuple(photos) or tuple(map(str, range(len(labels)))), tuple(classnames), scores)
    best = ranking(scores, 1)[:, 0]
    files = {"eval.json": json_text(metrics).encode()}
    files |= _of_classes(confusion_matrix(best, labels, len(classnames)), classnames)
    rows = [
        [photo, classnames[true], classnames[k], f"{p[k]:.6f}"]
        for photo, true, k, p in zip(predictions.photos, labels, best, predictions.probabilities, strict=True)
    ]
    files["predictions.csv"] = csv_bytes(["photo", "class", "predicted", "probability"], rows)
    if len({Path(photo).name for photo in predictions.photos}) == len(labels):
        files["result.txt"] = predictions_bytes(predictions, ".txt")
    write_together(folder, files, stale=[name for name in FILES if name not in files])
    return metrics


def _of_classes(confusion: np.ndarray, classnames: Sequence[str]) -> dict[str, bytes]:
    """per_class and confusion as files."""
    counts, right = confusion.sum(axis=1), confusion.diagonal()
    per_class = [
        [name, n, k, f"{k / n:.4f}" if n else ""] for name, n, k in zip(classnames, counts, right, strict=True)
    ]
    files = {"per_class.csv": csv_bytes(["class", "n", "correct", "top1"], per_class)}
    named = ([name, *row] for name, row in zip(classnames, confusion, strict=True))
    files["confusion.csv"] = csv_bytes(["true / predicted", *classnames], named)
    if len(classnames) <= LARGEST_MATRIX:
        with np.errstate(invalid="ignore"):
            plot_classes(shares := io.BytesIO(), right / counts, classnames)
        plot_confusion(matrix := io.BytesIO(), confusion, classnames)
        files |= {"per_class.png": shares.getvalue(), "confusion.png": matrix.getvalue()}
    return files


def benchmark_of(metrics: Mapping[str, float], classes: int, dataset: str, models: Sequence[str]) -> dict[str, Any]:
    """Test figures, or where there are none validation's, in the fields that CLIP_benchmark writes. `acc5` is None of
    fewer than five classes. models: `architecture/tag`, or files."""
    part = "test" if "test_top1" in metrics or "test_map" in metrics else "val"
    if f"{part}_map" in metrics:
        fields = {"mean_average_precision": metrics[f"{part}_map"]}
    else:
        fields = {
            "acc1": metrics[f"{part}_top1"],
            "acc5": None if classes < 5 else metrics[f"{part}_top5"],
            "mean_per_class_recall": metrics[f"{part}_mean_per_class"],
        }
    halves = [model.partition("/") if not exists(model) else (model, "", "") for model in models]
    return {
        "dataset": Path(dataset).stem or dataset,
        "model": " + ".join(half[0] for half in halves),
        "pretrained": " + ".join(half[2] for half in halves),
        "task": "zeroshot_classification",
        "metrics": fields,
        "language": "en",
    }


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Values as JSON, in place of what was there."""
    with replacing(path) as temporary:
        temporary.write_text(json_text(values), "utf-8", "backslashreplace")


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence]) -> None:
    """A table, in place of what was there."""
    with replacing(path) as temporary:
        temporary.write_bytes(csv_bytes(head, rows))


def json_text(values: Mapping[str, Any]) -> str:
    """The values as a file holds them."""
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def csv_bytes(head: Sequence[str], rows: Iterable[Sequence]) -> bytes:
    """A table as a file holds it."""
    text = io.StringIO(newline="")
    write_csv_rows(text, head, rows)
    return text.getvalue().encode("utf-8", "surrogateescape")
