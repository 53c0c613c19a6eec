"""A run as its folder shows it, finished or not: config, figures, what was logged, its classes and judged photos. No Jittor."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jclip.choices import SELECTED_ON_TEST
from jclip.errors import CheckpointError, ConfigError
from jclip.paths import open_regular
from jclip.report.finished_run import run_folder
from jclip.report.tasks import task_of_config
from jclip.train import curriculum_state, metric_lines
from jclip.train import run as runs
from jclip.train import run_folder as folders

MEASURED = "eval.json"
LARGEST_FIGURES = 1 << 24  # bytes of eval.json
DEEPEST = 20  # groups of settings inside of each other
LARGEST_NUMBER = 1e30


@dataclass(frozen=True)
class RunRecord:
    """A run as it stands on disk.

    lines: whole lines of metrics.jsonl, one per epoch; damaged: how many others there are. metrics, provenance: of
    result.json, empty while it is not finished. measured: what `jclip eval` or `train` wrote to eval.json. tables: the
    folder with its tables. Of a curriculum lines are those of the run on the chosen rows.
    """

    folder: Path
    task: str
    config: Mapping[str, Any]
    finished: bool = False
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[Mapping[str, Any]] = ()
    damaged: int = 0
    tables: Path = Path()
    judged_as: str = ""  # the task of what lies in `tables`
    answering_config: Mapping[str, Any] = field(default_factory=dict)  # of the run there

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def recipe(self) -> str:
        """The recipe's name as the config has it."""
        return str(self.config.get("recipe", ""))

    @property
    def figures(self) -> dict[str, Any]:
        """All figures by name: those of result.json, and of eval.json those of the test data that it lacks."""
        before = "" if self.task == "retrieve" else "test_"
        more = {f"{before}{name}": value for name, value in self.measured.items()}
        more.pop(f"{before}{SELECTED_ON_TEST}", None)
        return {**{k: v for k, v in more.items() if k not in self.metrics}, **self.metrics}

    @property
    def epochs_planned(self) -> int | None:
        """How many epochs the config asks for, where it says so."""
        planned = setting(self, "optim", "epochs")
        return planned if isinstance(planned, int) else None


def read_record(place: str | os.PathLike) -> RunRecord:
    """The run in folder `place`, or the one that training the config `place` makes.

    Raises `ConfigError` where there is none, and `CheckpointError` where its result is damaged.
    """
    folder = run_folder(place, ())[0]
    finished = (folder / folders.RESULT).is_file()
    config: Mapping[str, Any] | None
    metrics, provenance = {}, {}
    if finished:
        result = runs.read_result(folder)
        config, metrics, provenance = (result[kind] for kind in ("config", "metrics", "provenance"))
    else:
        config = folders.read_config_text(folder)
        if config is None:
            if folder.is_dir() and not folders.is_run(folder):
                raise ConfigError(
                    f"{folder} must be a run or a gallery, got another folder: `jclip train` makes runs, "
                    "`jclip embed` galleries"
                )
            runs.read_result(folder)  # which says what is missing
            raise ConfigError(f"{folder} holds no run")
    if _deeper(config, DEEPEST):
        raise CheckpointError(f"{folder} must have a config of at most {DEEPEST} levels, got more: it is damaged")
    task = task_of_config(config).name
    answers = curriculum_state.answering_folder(folder) if finished else folder
    answering = config if answers == folder else folders.read_config_text(answers) or {}
    lines, damaged = metric_lines.read_lines(answers / folders.METRICS)
    tables = folder if (folder / MEASURED).is_file() else answers  # `jclip eval` of a curriculum writes into its folder
    measured = _read_figures(tables / MEASURED)
    return RunRecord(
        folder,
        task,
        config,
        finished,
        metrics,
        provenance,
        measured,
        lines,
        damaged,
        tables,
        task_of_config(answering).name,
        answering,
    )


def _deeper(values: Any, levels: int) -> bool:
    """Whether groups stand inside of each other more than so many levels deep."""
    inner = values.values() if isinstance(values, Mapping) else values if isinstance(values, list) else ()
    return levels < 0 or any(_deeper(value, levels - 1) for value in inner)


def is_figure(value: Any) -> bool:
    """Whether a value of a file can be shown and drawn as a number."""
    return type(value) in (int, float) and -LARGEST_NUMBER < value < LARGEST_NUMBER


def setting(record: RunRecord, group: str, name: str) -> Any:
    """A setting of a group of the config; None where the run has none."""
    found = record.config.get(group)
    return found.get(name) if isinstance(found, Mapping) else None


def _read_figures(path: Path) -> dict[str, Any]:
    """Figures of an eval.json; none where there is no such file. Raises `CheckpointError` for a damaged one."""
    if not path.is_file():
        return {}
    try:
        with open_regular(path) as file:
            found = json.loads(file.read(LARGEST_FIGURES))
        if not isinstance(found, dict):
            raise ValueError("no figures by name")
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} is damaged ({e}): measure again with `jclip eval`") from e
    return {k: v for k, v in found.items() if isinstance(v, int | float | str)}


def flattened(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings by their dotted keys, in order."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{before}{key}"
        found |= flattened(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found


def sees_upright(record: RunRecord) -> bool:
    """Whether the run saw photos with their EXIF orientation applied."""
    return setting(record, "data", "upright") is not False
