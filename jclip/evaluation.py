"""A measured run on disk: metrics as JSON, each class and the confusion matrix as CSV. No Jittor."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jclip.functional.metrics import classification_report, confusion_matrix, ranking, softmax
from jclip.paths import replacing
from jclip.report import LARGEST_MATRIX, plot_confusion

FILES = ("eval.json", "per_class.csv", "confusion.csv", "confusion.png", "scores.csv")


def write_evaluation(
    folder: Path, scores: np.ndarray, labels: np.ndarray, classnames: Sequence[str]
) -> dict[str, float]:
    """Writes eval.json, per_class.csv (n, correct, top-1), confusion.csv (row: true class), scores.csv (each row's label,
    best class and its probability) and, of up to a hundred classes, confusion.png. Returns the metrics."""
    metrics = classification_report(scores, labels)
    confusion = confusion_matrix(ranking(scores, 1)[:, 0], labels, len(classnames))
    counts, right = confusion.sum(axis=1), confusion.diagonal()
    per_class = [
        [name, n, k, f"{k / n:.4f}" if n else ""] for name, n, k in zip(classnames, counts, right, strict=True)
    ]
    _write_csv(folder / "per_class.csv", ["class", "n", "correct", "top1"], per_class)
    _write_csv(
        folder / "confusion.csv",
        ["true / predicted", *classnames],
        ([n, *row] for n, row in zip(classnames, confusion, strict=True)),
    )
    best, probabilities = ranking(scores, 1)[:, 0], softmax(scores)
    told = [
        [row, classnames[true], classnames[k], f"{probabilities[row, k]:.6f}"]
        for row, (true, k) in enumerate(zip(labels, best, strict=True))
    ]
    _write_csv(folder / "scores.csv", ["row", "class", "predicted", "probability"], told)
    if len(classnames) <= LARGEST_MATRIX:
        plot_confusion(folder / "confusion.png", confusion, classnames)
    with replacing(folder / "eval.json") as path:
        path.write_text(json.dumps(metrics, indent=1) + "\n")
    return metrics


def _write_csv(path: Path, head: Sequence[str], rows) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        table = csv.writer(f)
        table.writerow(head)
        table.writerows(rows)
