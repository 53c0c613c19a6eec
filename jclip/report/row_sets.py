"""Rows that recipes learn from, one by one: what a curriculum chooses among, and what reliability is measured on.

A row is a phrase with its box (task `ground`) or a photo with its class (task `classify`); a set has the rows of one or
several sources, numbered together. What is asked of a set stands in `RowSet`: a recipe of another task offers
`row_set(sources, cfg)`, a function of its module that returns such a set, and can be searched as well.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from jclip.config import protocols
from jclip.data import box_parts
from jclip.errors import ConfigError
from jclip.paths import is_file
from jclip.report import box_row_set, label_row_set
from jclip.report.finished_run import FinishedRun
from jclip.report.tasks import task_of

if TYPE_CHECKING:  # help answers before NumPy is imported
    import numpy as np

KINDS = {"ground": lambda: box_row_set.BoxRowSet, "classify": lambda: label_row_set.LabelRowSet}


class RowSet(Protocol):
    """Rows of sources, numbered from 0 over all of them.

    sources: name → the numbers of its rows. ending: of the file that a recipe learns from. faults: numbers of rows that are
    known to be wrong, of the embedded world alone.
    """

    sources: Mapping[str, range]
    ending: str
    faults: frozenset[int]

    def __len__(self) -> int:
        """How many rows there are."""

    def identity(self, number: int) -> Any:
        """What that row is, as plain values."""

    def group(self, number: int) -> str:
        """What rows have in common that must not be learned from and measured on at once: the photo."""

    def photos(self) -> Sequence[str]:
        """Paths of all rows' photos, none twice; none where rows are features."""

    def complexity(self, source: str) -> float:
        """How complex a source's labels are: `order: auto` takes simple ones first."""

    def learning(self, cfg: Any, train: str, held: str) -> Any:
        """The recipe's config that learns from the file `train` and, where `held` is named, is chosen by that."""

    def write(
        self, path: str | os.PathLike, numbers: Sequence[int], scores: Mapping[str, Mapping[int, float]] | None = None
    ) -> None:
        """Writes rows into a file; scores: measurer → number → reliability, where the form can hold it."""

    def learn(self, module: Any, cfg: Any, run: Any, numbers: Sequence[int], held: Sequence[int]) -> dict[str, float]:
        """The recipe's metrics, of a training on these rows. What needs to be computed once for all of them is."""

    def reliability(self, done: FinishedRun, numbers: Sequence[int]) -> np.ndarray:
        """(n,) in [0, 1]: how well a finished run reproduces each of these rows."""

    def only(self, numbers: Sequence[int]) -> RowSet:
        """A set of these rows alone, numbered anew."""


def row_set(module: Any, sources: Mapping[str, str], cfg: protocols.Dataclass | None, photos: str = "") -> RowSet:
    """The rows of those files for recipes like `module`. Raises `ConfigError` where its task has none."""
    if hasattr(module, "row_set"):
        return module.row_set(sources, cfg)
    return kind_of(module).of_files(sources, cfg, photos)


def kind_of(module: Any) -> Any:
    """The class of the sets of rows that recipes like `module` learn from. Raises `ConfigError`."""
    task = task_of(module).name
    if task not in KINDS:
        recipe = module.__name__.rsplit(".", 1)[-1]
        raise ConfigError(
            f"rows must be phrases with boxes or photos with classes: the recipe {recipe} is of the task {task}, "
            f"{' and '.join(KINDS)} can be searched"
        )
    return KINDS[task]()


def check(module: Any) -> None:
    """Raises `ConfigError` for a recipe whose rows can't be chosen among."""
    if not hasattr(module, "row_set"):
        kind_of(module)


def check_kind(file: str, done: FinishedRun) -> None:
    """Raises `ConfigError` for a file that by its ending is of another kind than what the run learned from."""
    task, ending = task_of(done.module).name, Path(file).suffix.lower()
    labels = ending in (".npz", ".txt")
    if (task == "ground" and labels) or (task == "classify" and not labels):
        wanted = {"ground": "phrases with boxes (.jsonl, .pth, …)", "classify": "photos with classes (.txt, .npz)"}[
            task
        ]
        raise ConfigError(f"FILE must hold {wanted} for {done.folder}, a run of the task {task}, got {file}")


def has_accuracy(module: Any, metrics: Mapping[str, float], part: str) -> bool:
    """Whether a run measured the main figure of its task on that part."""
    return f"{part}_{task_of(module).main}" in metrics


def accuracy_of(module: Any, metrics: Mapping[str, float], part: str = "val") -> float:
    """The main figure of a recipe's task on that part. Raises `ConfigError` where the run measured none."""
    name = f"{part}_{task_of(module).main}"
    if name not in metrics:
        raise ConfigError(
            f"each training must measure {name}, got {', '.join(metrics) or 'nothing'}: set learn.data.{part}"
        )
    return float(metrics[name])


def files_learned_from(done: FinishedRun) -> list[Path]:
    """The files that a run's config names as what it learned from, those that are there."""
    named = getattr(done.config.data, "train", "")
    names = [*([named] if isinstance(named, str) else named), getattr(done.config.data, "features", "")]
    files = (Path(box_parts.file_and_split(name)[0]) for name in names if name)
    return [file for file in files if is_file(file)]
