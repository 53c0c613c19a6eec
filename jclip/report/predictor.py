"""A finished run of any task, as what labels or retrieves: `Predictor.load(folder)`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jclip.choices import SELECTED_ON_TEST
from jclip.report.classifier import Classifier
from jclip.report.finished_run import FinishedRun, read_finished, run_folder, unlabelled
from jclip.report.tasks import task_of, task_of_config

__all__ = ["Classifier", "Predictor", "measure", "unlabelled", "write_handed_over"]


class Predictor:
    """A finished run as its task has it: a `Classifier` of the task `classify`, a `Retriever` of `retrieve`."""

    @staticmethod
    def load(place: str | os.PathLike, overrides: Sequence[str] = (), model: str = "") -> FinishedRun:
        """The run in folder `place` with settings changed, or the one that training the config `place` with them made.

        model: the base weights, where the run was made from precomputed features or the file has moved. Raises
        `ConfigError` where there is no such run, and `CheckpointError` where a file of it is damaged.
        """
        folder, overrides = run_folder(place, overrides)
        result = read_finished(folder)
        return task_of_config(result["config"]).load_predictor().read(folder, result, overrides, model)


def measure(done: FinishedRun, out: Path) -> dict[str, float]:
    """`done.measure(out)`: metrics on the test data of its config, and the files of its task in `out`."""
    return done.measure(out)


def write_handed_over(run: Any, module: ModuleType, result: dict[str, Any]) -> list[str]:
    """Writes the files of the recipe's task into the folder of a run that is about to finish with `result`, from the scores
    that it handed over: the names of those that are there. A run that handed over none is left to `eval`.

    run: a `jclip.train.run.Run`.
    """
    if run.handed_over is None:
        return []
    of_task = task_of(module).load_predictor()
    run.expect(of_task.files())
    marks = {k: v for k, v in result["metrics"].items() if k == SELECTED_ON_TEST}
    of_task.write_scored(run.folder, run.handed_over, marks)
    return [name for name in of_task.files() if (run.folder / name).is_file()]
