"""Runs of seeded random scores, written as `jclip train` writes them, for tests that need no training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jclip.functional.metrics import classification_report
from jclip.report import evaluation
from jclip.train.run import Run

CLASSES = 101  # more than are drawn by matplotlib, which takes a second


def made_run(
    folder: Path,
    scores: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    names: Sequence[str] = (),
    photos: Sequence[str] = (),
    epochs: int = 6,
    finish: bool = True,
    config: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    **facts: str,
) -> Path:
    """A run of `coop`, or of the recipe that `config` names, that logged `epochs`; with scores (N, C), also its tables."""
    values = {
        "recipe": "coop",
        "model": "none",
        "data": {"upright": True},
        "optim": {"epochs": 6, "lr": 0.5},
        "seed": 3,
    }
    with Run(folder, {**values, **(config or {})}, quiet=True) as run:
        for epoch in range(epochs):
            run.log(
                slot="train",
                epoch=epoch,
                step=epoch,
                lr=0.5 / (epoch + 1),
                loss=2.0 / (epoch + 1),
                top1=0.5 + epoch / 20,
            )
        if not finish:
            return folder
        found = dict(metrics or {"best_epoch": 5})
        if scores is not None:
            run.expect(evaluation.FILES)
            evaluation.write_evaluation(folder, scores, labels, names, photos)
            found |= {f"test_{k}": v for k, v in classification_report(scores, labels).items()}
        run.note(**facts)
        run.finish(found)
    return folder


def scored(seed: int, each: int = 2, classes: int = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, C), most of them right, and labels (N,) of `each` photos a class."""
    rng, labels = np.random.default_rng(seed), np.repeat(np.arange(classes), each)
    scores = rng.normal(size=(len(labels), classes)).astype(np.float32)
    scores[np.arange(len(labels)), labels] += 3.2
    return scores, labels


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A .jsonl of the rows."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
