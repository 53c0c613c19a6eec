"""What a curriculum has trained and scored so far: a file that each result is added to, so that none is made twice."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from jclip.errors import ConfigError, DataError, quoted
from jclip.paths import is_file, replacing
from jclip.readers.text import read_json

STATE = "curriculum.json"
SCORES = "scores-{}.npy"  # reliabilities beside it
VERSION = 1


class BudgetSpent(Exception):
    """Another training would exceed the budget."""


@dataclass(frozen=True)
class TrainedRun:
    """A training's accuracy on the validation part, and whatever leads to its model: a run's folder."""

    accuracy: float
    run: str = ""


class CurriculumState:
    """Trainings and reliabilities by the hash of what they are made of, in `folder`/curriculum.json.

    made_of: hash of the data and of the settings of a training. A state of something else is refused. most: trainings
    that the file may hold. Without a folder nothing is written. announce: gets the names of files before they are.
    """

    def __init__(
        self,
        folder: str | os.PathLike | None,
        made_of: str,
        most: int | None = None,
        announce: Callable[[Iterable[str]], object] = lambda names: None,
    ):
        self.folder, self._announce = None if folder is None else Path(folder), announce
        self.made_of, self.most = made_of, most
        self.trainings: dict[str, TrainedRun] = {}
        self.scores: dict[str, np.ndarray] = {}
        self.done: dict[str, Any] = {}
        if self.folder is not None and is_file(self.folder / STATE):
            self._read(self.folder / STATE)

    def trained(self, key: str, train: Callable[[], TrainedRun]) -> TrainedRun:
        """Return the result of that training, which runs unless it has. Raises `BudgetSpent`, `DataError`."""
        if key not in self.trainings:
            if self.most is not None and len(self.trainings) >= self.most:
                raise BudgetSpent
            result = train()
            if not math.isfinite(result.accuracy):
                raise DataError(
                    f"a training of the curriculum must end with an accuracy, got {result.accuracy}: {result.run}"
                )
            self.trainings[key] = TrainedRun(float(result.accuracy), str(result.run))
            self.write()
        return self.trainings[key]

    def scored(self, key: str, count: int, score: Callable[[], Sequence[float]]) -> np.ndarray:
        """Return (count,) reliabilities in [0, 1], computed unless they are there. Raises `DataError`."""
        if key not in self.scores and (there := self._stored(key, count)) is not None:
            self.scores[key] = there
        if key not in self.scores:
            values = np.asarray(score(), np.float64)
            if values.shape != (count,) or not ((values >= 0) & (values <= 1 + 1e-9)).all():
                raise DataError(
                    f"reliabilities must be a number in [0, 1] for each of {count} rows, got {quoted(values, 80)}"
                )
            self.scores[key] = np.minimum(values, 1.0)
            self._store(key)
        return self.scores[key]

    def write(self) -> None:
        """Write the state, whole or not at all."""
        if self.folder is None:
            return
        trainings = {key: {"accuracy": t.accuracy, "run": t.run} for key, t in self.trainings.items()}
        values = {"version": VERSION, "made_of": self.made_of, "trainings": trainings, "result": self.done}
        self._announce([STATE])
        with replacing(self.folder / STATE) as temporary:
            temporary.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def _read(self, path: Path) -> None:
        values = read_json(path)
        trainings = values.get("trainings") if isinstance(values, dict) else None
        right = isinstance(trainings, dict) and all(map(_is_training, trainings.values()))
        if not right or values.get("version") != VERSION or not isinstance(values.get("result", {}), dict):
            raise DataError(f"{path} is no state of a curriculum: remove it to begin anew")
        if values.get("made_of") != self.made_of:
            raise ConfigError(
                f"{path} is the state of a curriculum over other data or other settings of its trainings: "
                "choose another folder, or remove it to begin anew"
            )
        self.trainings = {key: TrainedRun(float(t["accuracy"]), t["run"]) for key, t in trainings.items()}
        self.done = values.get("result", {})

    def _place(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / SCORES.format(key)

    def _stored(self, key: str, count: int) -> np.ndarray | None:
        """None where there are none, or a damaged file: they are computed again."""
        place = self._place(key)
        return None if place is None else stored_scores(place, (count,))

    def _store(self, key: str) -> None:
        if (place := self._place(key)) is not None:
            self._announce([place.name])
            with replacing(place) as temporary, open(temporary, "wb") as file:
                np.save(file, self.scores[key], allow_pickle=False)


def winning_run(folder: Path) -> str:
    """The name of the run on the chosen rows in a curriculum's folder. Raises `ConfigError` where it has not finished."""
    values = read_json(folder / STATE) if is_file(folder / STATE) else {}
    result = values.get("result") if isinstance(values, dict) else None
    if not isinstance(result, dict) or not isinstance(result.get("run"), str) or not result["run"]:
        raise ConfigError(f"{folder} must hold a finished curriculum, {STATE} has none: run `train` to its end first")
    return result["run"]


def answering_folder(folder: Path) -> Path:
    """The run's folder itself, or of a curriculum that of its run on the chosen rows. Raises `ConfigError`."""
    return folder / winning_run(folder) if is_file(folder / STATE) else folder


def _is_training(value: Any) -> bool:
    accuracy = value.get("accuracy") if isinstance(value, dict) else None
    return type(accuracy) in (int, float) and math.isfinite(accuracy) and isinstance(value.get("run"), str)


def hash_of(parts: Mapping[str, Any] | Sequence[Any]) -> str:
    """Return sixteen hex digits of plain values."""
    return sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]


def stored_scores(place: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The float64 array of that shape in an .npy; None where there is none, or a damaged file."""
    if not is_file(place):
        return None
    try:
        values = np.load(place, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return values if values.shape == shape and values.dtype == np.float64 else None
