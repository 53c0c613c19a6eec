"""A measured run on disk: metrics as JSON, classes, confusion and predictions as CSV, the challenge's file. No Jittor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jclip.functional.metrics import classification_report, confusion_matrix, ranking
from jclip.paths import exists, replacing
from jclip.report import LARGEST_MATRIX, plot_classes, plot_confusion
from jclip.results import Predictions, write_predictions
from jclip.spreadsheet import write_csv_rows

FILES = (
    "eval.json", "per_class.csv", "per_class.png", "confusion.csv", "confusion.png", "predictions.csv", "result.txt"
)  # fmt: skip


def write_evaluation(
    folder: Path, scores: np.ndarray, labels: np.ndarray, classnames: Sequence[str],
    photos: Sequence[str] = (), marks: Mapping[str, float] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Writes what FILES names and returns the metrics.

    per_class.csv: n, correct, top-1. confusion.csv: a row per true class. Pictures of both of up to a hundred classes.
    predictions.csv: each photo's class, best class and its probability. result.txt: the challenge's lines, but where two
    photos have one name without their folders. Rows are numbered where their `photos` are not known. marks: what a reader
    of the metrics must know, such as `selected_on_test`; they are among them.
    """
    metrics = {**classification_report(scores, labels), **(marks or {})}
    predictions = Predictions(tuple(photos) or tuple(map(str, range(len(labels)))), tuple(classnames), scores)
    best = ranking(scores, 1)[:, 0]
    _write_classes(folder, confusion_matrix(best, labels, len(classnames)), classnames)
    told = [
        [photo, classnames[true], classnames[k], f"{p[k]:.6f}"]
        for photo, true, k, p in zip(predictions.photos, labels, best, predictions.probabilities, strict=True)
    ]
    write_csv(folder / "predictions.csv", ["photo", "class", "predicted", "probability"], told)
    if len({Path(photo).name for photo in predictions.photos}) == len(labels):
        write_predictions(predictions, str(folder / "result.txt"))
    write_json(folder / "eval.json", metrics)
    return metrics


def _write_classes(folder: Path, confusion: np.ndarray, classnames: Sequence[str]) -> None:
    counts, right = confusion.sum(axis=1), confusion.diagonal()
    per_class = [
        [name, n, k, f"{k / n:.4f}" if n else ""] for name, n, k in zip(classnames, counts, right, strict=True)
    ]
    write_csv(folder / "per_class.csv", ["class", "n", "correct", "top1"], per_class)
    named = ([name, *row] for name, row in zip(classnames, confusion, strict=True))
    write_csv(folder / "confusion.csv", ["true / predicted", *classnames], named)
    if len(classnames) <= LARGEST_MATRIX:
        with np.errstate(invalid="ignore"):
            plot_classes(folder / "per_class.png", right / counts, classnames)
        plot_confusion(folder / "confusion.png", confusion, classnames)


def benchmark_of(metrics: Mapping[str, float], classes: int, dataset: str, models: Sequence[str]) -> dict[str, Any]:
    """Test figures, or where there are none validation's, in the fields that CLIP_benchmark writes. `acc5` is None of
    fewer than five classes. models: `architecture/tag`, or files."""
    part = "test" if "test_top1" in metrics or "test_map" in metrics else "val"
    if f"{part}_map" in metrics:
        told = {"mean_average_precision": metrics[f"{part}_map"]}
    else:
        told = {
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
        "metrics": told,
        "language": "en",
    }


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Values as JSON, in place of what was there."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", "utf-8", "backslashreplace")


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence]) -> None:
    """A table, in place of what was there."""
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as f,
    ):
        write_csv_rows(f, head, rows)
