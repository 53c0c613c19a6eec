"""A measured run on disk: metrics as JSON, each class and the confusion matrix as CSV. No Jittor."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jclip.functional.metrics import classification_report, confusion_matrix, ranking
from jclip.paths import replacing


def write_evaluation(
    folder: Path, scores: np.ndarray, labels: np.ndarray, classnames: Sequence[str]
) -> dict[str, float]:
    """Writes eval.json, per_class.csv (n, correct, top-1) and confusion.csv (row: true class). Returns the metrics."""
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
    with replacing(folder / "eval.json") as path:
        path.write_text(json.dumps(metrics, indent=1) + "\n")
    return metrics


def _write_csv(path: Path, head: Sequence[str], rows) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        table = csv.writer(f)
        table.writerow(head)
        table.writerows(rows)
