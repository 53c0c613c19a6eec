"""A finished run read from its folder: recipe, config, metrics; and what every task answers for its runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jclip.choices import SELECTED_ON_TEST
from jclip.config import apply_overrides, protocols, refuse_unread
from jclip.data import loader, splits
from jclip.errors import ConfigError
from jclip.train import run as runs
from jclip.train.configs import build_config, default_folder, read_config
from jclip.train.run_folder import existing_run

if TYPE_CHECKING:  # help answers before NumPy is imported
    import numpy as np

MODEL = "model.safetensors"  # of a run that trained the towers


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its recipe's module, its config, and what result.json has of it. Each task has a subclass.

    model: the weights that it looks at photos with.
    """

    task: ClassVar[str] = ""  # the name in `jclip.report.tasks.TASKS`

    folder: Path
    module: Any
    config: protocols.OfRun
    model: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)  # metrics and provenance

    @classmethod
    def load(cls, place: str | os.PathLike, overrides: Sequence[str] = (), model: str = "") -> FinishedRun:
        """The run in folder `place` with settings changed, or the one that training the config `place` with them made.

        model: the base weights, where the run was made from precomputed features or the file has moved. Raises
        `ConfigError` where there is no such run, or it is of another task, and `CheckpointError` where a file is damaged.
        """
        folder, overrides = run_folder(place, overrides)
        return cls.read(folder, read_finished(folder), overrides, model)

    @classmethod
    def read(cls, folder: Path, result: Mapping[str, Any], overrides: Sequence[str], model: str) -> FinishedRun:
        """The run as of `load`, its `result` already read."""
        module, config = cls.settings(folder, result["config"], overrides, model)
        own = folder / MODEL
        return cls(folder, module, config, str(own) if own.is_file() and not model else config.model, result)

    @classmethod
    def settings(cls, folder: Path, values: Mapping[str, Any], overrides: Sequence[str], model: str) -> tuple[Any, Any]:
        """The recipe's module and its config, of the settings `values` that a file of the run has. Raises `ConfigError`."""
        file = f"{folder}/config.yaml"
        module, config = build_config(apply_overrides(dict(values), overrides), file)
        cls.check_task(folder, module)
        refuse_unread(config, {}, overrides, file)
        return module, replace(config, model=model) if model else config

    @classmethod
    def check_task(cls, folder: Path, module: Any) -> None:
        """Raises `ConfigError` for a recipe's module of another task."""
        task = getattr(module, "TASK", "classify")
        if task != cls.task:
            recipe = module.__name__.rsplit(".", 1)[-1]
            raise ConfigError(f"{folder} must hold a run of the task {cls.task}, got {task} (recipe {recipe})")

    @property
    def metrics(self) -> dict[str, float]:
        """What the run measured."""
        return self.result["metrics"]

    @property
    def provenance(self) -> dict[str, Any]:
        """What the run was made of and with, and what its last start took: `seconds`, `cpu_seconds`, `peak_mib`."""
        return self.result["provenance"]

    @property
    def recipe(self) -> str:
        """The recipe's name."""
        return self.module.__name__.rsplit(".", 1)[-1]

    def marks(self) -> dict[str, float]:
        """What a reader of its figures must know: whether they were chosen on test."""
        return {k: v for k, v in self.metrics.items() if k == SELECTED_ON_TEST}

    def check_photos(self) -> None:
        """Raises `ConfigError` for a run that measures no photos with classes, such as one of image-caption pairs."""
        raise self.refusal("measured on photos with classes")

    def measure(self, out: Path) -> dict[str, float]:
        """`eval`: metrics of the run on the test data of its config; writes `files` into `out`."""
        raise self.refusal("measured")

    def label(self, split: splits.Split, on_error: loader.OnError = "stop", top: int = 5) -> tuple[Any, np.ndarray]:
        """`predict`: the task's predictions (N of them) for the photos of `split` that decode, and their rows (N,)."""
        raise self.refusal("used to label photos")

    def own_split(self) -> tuple[FinishedRun, splits.Split]:
        """The test photos of the run's own data, and the run as it labels these. Raises `ConfigError` without any."""
        raise self.refusal("used to label photos")

    def check_predict(self, sheet: bool, sort: bool) -> None:
        """Raises `ConfigError` where the run can't label photos, or can't write a sheet or sort into folders as asked."""
        raise self.refusal("used to label photos")

    def refusal(self, what: str) -> ConfigError:
        """That runs of this task can't be `what`."""
        return ConfigError(f"{self.folder} is of the recipe {self.recipe}, task {self.task}: it can't be {what}")

    @classmethod
    def _task_refusal(cls, what: str) -> ConfigError:
        return ConfigError(f"runs of the task {cls.task} can't be {what}")

    @classmethod
    def files(cls) -> tuple[str, ...]:
        """Names of what `measure` and `write_scored` write."""
        raise cls._task_refusal("measured")

    @classmethod
    def write_predictions(cls, predictions: Any, path: str) -> None:
        """`predict --out`: writes them in the format of the ending."""
        raise cls._task_refusal("used to label photos")

    @classmethod
    def show(cls, predictions: Any) -> str:
        """The predictions as `predict` prints them."""
        raise cls._task_refusal("used to label photos")

    @staticmethod
    def rightness(predictions: Any, split: splits.Split, rows: np.ndarray) -> str:
        """`predict` of the run's own photos: how many of these `rows` it labels rightly, in a line; empty if not known."""
        return ""

    @classmethod
    def write_scored(cls, folder: Path, scored: Any, marks: Mapping[str, float]) -> dict[str, float]:
        """`train`: writes `files` from the scores that a run kept, and returns the metrics."""
        raise cls._task_refusal("measured")

    @classmethod
    def run_table(cls, metrics: Mapping[str, float]) -> str:
        """What `train` prints of a result's metrics."""
        raise cls._task_refusal("shown in a table")

    @classmethod
    def eval_table(cls, metrics: Mapping[str, float]) -> str:
        """What `eval` prints of what `measure` returned."""
        raise cls._task_refusal("measured")

    @classmethod
    def comparison(cls, results: Mapping[str, Mapping[str, float]]) -> str:
        """`compare`: one table of several runs' metrics, by name. Raises `ConfigError` where they share no figure."""
        raise cls._task_refusal("compared")


def run_folder(place: str | os.PathLike, overrides: Sequence[str]) -> tuple[Path, Sequence[str]]:
    """The folder of a run, named or that of a config with `overrides`, and the overrides that are left."""
    folder = existing_run(place)
    if folder.is_file() or folder.suffix == ".yaml":
        return default_folder(*read_config(str(place), overrides)), ()
    return folder, overrides


def read_finished(folder: Path) -> dict[str, Any]:
    """The result of the run in `folder`. Raises `ConfigError` or `CheckpointError`."""
    return runs.read_result(folder)


def unlabelled(photos: Iterable[str]) -> splits.Split:
    """Photos of which nobody knows the class."""
    import numpy as np

    photos = tuple(photos)
    return splits.Split(photos, np.full(len(photos), -1, np.int32))
