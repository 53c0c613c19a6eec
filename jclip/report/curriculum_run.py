"""A finished curriculum: the run on the chosen rows answers for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jclip.errors import ConfigError
from jclip.report import classifier, evaluation, grounder, predictions
from jclip.report.finished_run import FinishedRun
from jclip.report.run_table import shortly

if TYPE_CHECKING:  # help answers before NumPy is imported
    import numpy as np

FIGURES = {"val_accuracy": "val", "test_accuracy": "test", "rows": "rows", "trainings": "trainings"}


@dataclass(frozen=True)
class CurriculumRun(FinishedRun):
    """A finished run of the task `curriculum`: what it is asked for, its run on the chosen rows does."""

    task: ClassVar[str] = "curriculum"

    overrides: tuple[str, ...] = ()  # of the run on the chosen rows

    @classmethod
    def read(cls, folder: Path, result: Mapping[str, Any], overrides: Sequence[str], model: str) -> CurriculumRun:
        """The run as of `load`; settings `learn.…` are those of the run on the chosen rows."""
        module, config = cls.settings(folder, result["config"], overrides, "")
        own = tuple(one.removeprefix("learn.") for one in overrides if one.startswith("learn."))
        return cls(folder, module, config, model, result, own)

    @cached_property
    def winner(self) -> FinishedRun:
        """The run on the chosen rows, as its own task has it. Raises `ConfigError` where it is absent."""
        return self.module.winner(self.folder, self.overrides, self.model)

    def measure(self, out: Path) -> dict[str, float]:
        """As the run on the chosen rows."""
        return self.winner.measure(out)

    def label(self, split: Any, on_error: Any = "stop", top: int = 5) -> tuple[Any, np.ndarray]:
        """As the run on the chosen rows."""
        return self.winner.label(split, on_error, top)

    def predict(self, *arguments: Any, **options: Any) -> Any:
        """As the run on the chosen rows: boxes of phrases in a photo, or classes of photos."""
        return self.winner.predict(*arguments, **options)

    def check_photos(self) -> None:
        """As the run on the chosen rows."""
        self.winner.check_photos()

    def check_predict(self, sheet: bool, sort: bool) -> None:
        """As the run on the chosen rows."""
        self.winner.check_predict(sheet, sort)

    def own_split(self) -> tuple[FinishedRun, Any]:
        """As the run on the chosen rows."""
        return self.winner.own_split()

    @staticmethod
    def write_predictions(predictions: Any, path: str) -> None:
        """As runs that classify."""
        classifier.Classifier.write_predictions(predictions, path)

    @staticmethod
    def show(predictions: Any) -> str:
        """As runs that classify."""
        return classifier.Classifier.show(predictions)

    @staticmethod
    def rightness(predictions: Any, split: Any, rows: np.ndarray) -> str:
        """As runs that classify."""
        return classifier.Classifier.rightness(predictions, split, rows)

    @classmethod
    def files(cls) -> tuple[str, ...]:
        """What the run on the chosen rows writes, whatever its task."""
        return tuple(dict.fromkeys([*evaluation.FILES, *grounder.FILES]))

    @staticmethod
    def run_table(metrics: Mapping[str, Any]) -> str:
        """Accuracies, then rows and trainings."""
        if not metrics:
            return ""
        named = [
            f"{name} accuracy {metrics[k]:.4f}"
            for k, name in FIGURES.items()
            if k.endswith("accuracy") and k in metrics
        ]
        rest = [f"{k} {shortly(v)}" for k, v in metrics.items() if not k.endswith("_accuracy")]
        return "\n".join(filter(None, [", ".join(named), ", ".join(rest)]))

    @staticmethod
    def eval_table(metrics: Mapping[str, Any]) -> str:
        """All figures in a line."""
        return ", ".join(f"{k} {shortly(v)}" for k, v in metrics.items())

    @staticmethod
    def comparison(results: Mapping[str, Mapping[str, float]]) -> str:
        """A line per run. Raises `ConfigError` where they measured nothing in common."""
        columns = [k for k in FIGURES if all(k in m for m in results.values())]
        if not columns:
            raise ConfigError(f"runs must share a figure, got none in common: {', '.join(results)}")
        rows: Sequence[Any] = [[Path(name).name, *(shortly(m[k]) for k in columns)] for name, m in results.items()]
        return predictions.table(["", *(FIGURES[k] for k in columns)], rows)
