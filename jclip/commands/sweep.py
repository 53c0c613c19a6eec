"""`jclip sweep`: configs at several values of their settings, in one command that resumes where it was interrupted."""

from __future__ import annotations

import argparse
import io
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from jclip.choices import SELECTED_ON_TEST
from jclip.commands.arguments import Parser, add_shared
from jclip.config import Dataclass, WithPhotos, why_unread
from jclip.data import splits
from jclip.errors import ConfigError, DataError, say
from jclip.paths import refuse_overwriting, replacing
from jclip.readers.spreadsheet import write_csv_rows
from jclip.report import plots, predictions
from jclip.report.predictor import Classifier
from jclip.report.tasks import TASKS, Task, task_of
from jclip.report.transfer import BASE_TO_NEW_FILES, base_to_new
from jclip.train import recipe_runs as _runs
from jclip.train.configs import data_settings, default_folder, files_named_in, find_config, read_point, resolved
from jclip.train.run_folder import adding_to

METRICS = TASKS["classify"].metrics
HALVES = ("base_top1", "new_top1", "harmonic_mean")
BASE_TO_NEW = (*HALVES, *(f"zero_shot_{column}" for column in HALVES))
WHAT, HOW = ("config", "recipe", "shots", "seed"), ("seconds", "selection", "run")  # columns around the metrics


class PhotoConfig(Dataclass, WithPhotos, Protocol):
    """A recipe's config of photos."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    config: str
    overrides: tuple[str, ...]
    module: Any
    cfg: PhotoConfig
    folder: Path

    @property
    def shots(self) -> int | str:
        """Photos per class to learn from; "" for recipes that learn from rows of files."""
        return getattr(self.cfg.data, "shots", "")

    @property
    def seed(self) -> int:
        """Of what is drawn."""
        return self.cfg.data.seed if hasattr(self.cfg.data, "seed") else self.cfg.seed


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip sweep", description=sweep.__doc__)
    p.add_argument(
        "configs",
        nargs="+",
        metavar="CONFIG|key=a,b,c",
        help="YAMLs or their names, and lists of values for settings; `seed` sets data.seed, too",
    )
    add_shared(p, "--runs")
    add_shared(p, "--out", " sweep.csv and sweep.png, a folder (default: results/sweep)", default="results/sweep")
    p.add_argument(
        "--base-to-new",
        action="store_true",
        help="learn base classes (data.subset=base), and measure base classes, new classes, and their harmonic mean",
    )
    return p


def sweep(argv: list[str]) -> int:
    """Runs each config at each combination of the listed values, except runs that have finished, and shows mean and
    standard deviation over seeds: data.shots=1,2,4,8,16 seed=1,2,3."""
    args = parser().parse_intermixed_args(argv)
    extra = BASE_TO_NEW if args.base_to_new else ()
    points = base_first(args.configs, args.runs) if args.base_to_new else planned(args.configs, args.runs)

    out, task = Path(args.out), task_of_points(points)
    check_out(out, points, [a for a in args.configs if "=" not in a])
    rows, failed = swept(points, task, extra, out)
    written = "sweep.csv"
    if rows and rows[0]["shots"] == "":
        say(files_table(rows, task.main))
    elif rows:
        say("\n".join([base_to_new_table(rows) if extra else shots_table(rows), *losses(rows)]))
        plot(out / "sweep.png", rows)
        written += ", sweep.png"
    say("\n".join([*(f"not run: {line}" for line in failed), f"written: {out}/{written}"]))
    return 0 if rows else 2


def swept(
    points: Sequence[Point], task: Task, extra: Sequence[str], out: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """Runs what has not finished. Returns the rows of sweep.csv, written anew after each run, and a line per failed run.

    extra: columns of base and new classes that each run is also measured on.
    """
    from tqdm import tqdm

    rows: list[dict[str, Any]] = []
    failed = []
    with tqdm(points, desc="sweep", unit="run", disable=None, leave=False) as bar:
        for point in bar:
            bar.set_postfix_str(f"{point.config} {point.shots} shots" if point.shots != "" else point.config)
            try:
                row = row_of(point, finished(point), task.metrics)
                measured_too = measured_halves(point.folder) if extra else {}
                rows.append(row | {column: measured_too.get(column, "") for column in extra})
            except (ConfigError, DataError) as e:  # what this recipe can't do with these shots; the others can
                shots = f", {point.shots} shots" if point.shots != "" else ""
                failed.append(f"{point.config}{shots}, seed {point.seed}: {e}")
            more = dict.fromkeys(k for row in rows for k in row if k not in (*WHAT, *task.metrics, *HOW, *extra))
            columns = (*WHAT, *task.metrics, *more, *HOW, *extra)
            write_csv(out / "sweep.csv", rows, columns)  # a break leaves what there is
    return rows, failed


def check_out(out: Path, points: Sequence[Point], configs: Sequence[str]) -> None:
    """Raises `ConfigError` where sweep.csv or sweep.png would take the place of what the sweep reads."""
    named = [file for point in points for file in files_named_in(resolved(point.module, point.cfg))]
    refuse_overwriting([out / "sweep.csv", out / "sweep.png"], [*named, *map(find_config, configs)])
    picture = (out / "sweep.png").resolve()
    roots = {data.root: data for point in points if getattr(data := point.cfg.data, "root", "")}
    for root, data in roots.items():
        if picture.is_file() and picture.is_relative_to(Path(root).resolve()):
            photos = splits.read_photos(replace(data, shots=0, val_shots=0, pool=0))
            refuse_overwriting([picture], [p for split in (photos.train, photos.val, photos.test) for p in split.paths])


def measured_halves(folder: Path) -> dict[str, float]:
    """What a run has of base and new classes, written into its folder."""
    with adding_to(folder, BASE_TO_NEW_FILES):
        return base_to_new(Classifier.load(folder), folder)


def task_of_points(points: Sequence[Point]) -> Task:
    """The one task of all runs. Raises `ConfigError` where they are of several, whose figures do not compare."""
    first, *others = [(point, task_of(point.module)) for point in points]
    for point, task in others:
        if task != first[1]:
            raise ConfigError(
                f"configs must be of one task, got {first[1].name} ({first[0].config}) and {task.name} ({point.config}): "
                "sweep them apart"
            )
    return first[1]


def planned(arguments: Sequence[str], runs: str) -> list[Point]:
    """Every run, shots and seeds inmost. Raises `ConfigError` for any that is wrong, before the first begins."""
    configs = [a for a in arguments if "=" not in a]
    if not configs:
        raise ConfigError("name at least one config to sweep")
    listed = dict(a.split("=", 1) for a in arguments if "=" in a)
    points = []
    for config in configs:
        draws = "seed" in data_settings(config)
        for overrides in combinations(listed):
            module, cfg, path = read_point(config, overrides if draws else without_draws(overrides, listed))
            if not hasattr(cfg.data, "shots") and task_of(module).name != "ground":
                raise ConfigError(f"{config} learns from captions: there are no shots to sweep over")
            points.append(Point(path.stem, tuple(overrides), module, cfg, default_folder(module, cfg, path, runs)))
    for name in listed:
        if all(reasons := [why_unread(point.cfg, name) for point in points]):
            raise ConfigError(f"{name} must be left out: {reasons[0]}")
    return name_apart(points)


def base_first(arguments: Sequence[str], runs: str) -> list[Point]:
    """The points on base classes. Raises `ConfigError` for recipes that can only classify into classes they learned."""
    points = planned(["data.subset=base", *arguments], runs)
    for point in points:
        if not hasattr(point.module, "for_classes"):
            raise ConfigError(
                f"{point.config} learns a head of its own classes: there are no new ones to measure it on"
            )
    return points


def combinations(listed: dict[str, str]) -> Iterator[list[str]]:
    """`{"a": "1,2", "b": "3"}` → ["a=1", "b=3"], ["a=2", "b=3"]; a YAML list `[1, 2]` is one value."""
    values = {k: [v] if v.startswith(("[", "{", '"')) else v.split(",") for k, v in listed.items()}
    for chosen in itertools.product(*values.values()):
        pairs = dict(zip(values, chosen, strict=True))
        if "seed" in pairs and "data.seed" not in pairs:
            pairs["data.seed"] = pairs["seed"]
        yield [f"{k}={v}" for k, v in pairs.items()]


def without_draws(overrides: Sequence[str], listed: dict[str, str]) -> list[str]:
    """The overrides of a recipe whose data draws nothing: the `data.seed` that `seed` brings along is left out."""
    return [o for o in overrides if not o.startswith("data.seed=") or "data.seed" in listed]


def name_apart(points: list[Point]) -> list[Point]:
    """Distinct names of configs: with the recipe in front where two recipes have configs of one name."""
    recipes = defaultdict(set)
    for point in points:
        recipes[point.config].add(point.module)
    return [
        replace(p, config=f"{p.module.__name__.rsplit('.', 1)[-1]}/{p.config}") if len(recipes[p.config]) > 1 else p
        for p in points
    ]


def finished(point: Point) -> dict[str, Any]:
    """The run's result: read where it has finished, else made, resuming an interrupted one."""
    return _runs.finished(point.folder, point.module, point.cfg, quiet=True)


def row_of(point: Point, result: dict[str, Any], columns: Sequence[str] = METRICS) -> dict[str, Any]:
    """A line of sweep.csv. columns: the metrics that it has; empty where the run has not measured one."""
    metrics = result["metrics"]
    known = {k: metrics.get(k, "") for k in columns}
    if point.shots == "":
        known |= {k: v for k, v in metrics.items() if k not in known and k.startswith("test_")}  # of several files
    recipe = point.module.__name__.rsplit(".", 1)[-1]
    row = {"config": predictions.marked(point.config, metrics), "recipe": recipe}
    row |= {"shots": point.shots, "seed": point.seed}
    selection = "test" if metrics.get(SELECTED_ON_TEST) else "val"
    seconds = result["provenance"]["seconds"]
    return {**row, **known, "seconds": seconds, "selection": selection, "run": str(point.folder)}


def write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str] = (*WHAT, *METRICS, *HOW)) -> None:
    """All rows so far."""
    text = io.StringIO(newline="")
    write_csv_rows(text, columns, [[row.get(column, "") for column in columns] for row in rows])
    with replacing(path) as temporary:
        temporary.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))


def statistics(rows: Sequence[dict[str, Any]], column: str) -> dict[str, dict[int, tuple[float, float]]]:
    """config → shots → (mean, population standard deviation) over seeds."""
    import numpy as np

    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.get(column, "") != "":
            found[row["config"]][row["shots"]].append(row[column])
    return {c: {k: (float(np.mean(v)), float(np.std(v))) for k, v in of.items()} for c, of in found.items()}


def measured(rows: Sequence[dict[str, Any]]) -> str:
    """The main figure of the rows' task, on test photos where there are any, else on validation photos."""
    main = main_of(rows[0])
    return f"test_{main}" if any(row.get(f"test_{main}", "") != "" for row in rows) else f"val_{main}"


def main_of(row: dict[str, Any]) -> str:
    """The figure that runs of the row's task are compared by."""
    return next((task.main for task in TASKS.values() if {f"val_{task.main}", f"test_{task.main}"} & {*row}), "top1")


def files_table(rows: Sequence[dict[str, Any]], main: str) -> str:
    """A table of runs on rows of files: a line per config, a column per part and test file, mean ± deviation in percent."""
    columns = dict.fromkeys(k for row in rows for k, v in row.items() if k.endswith(f"_{main}") and v != "")
    several = [k for k in columns if k.startswith("test_") and k != f"test_{main}"]
    shown = [k for k in columns if k != f"test_{main}" or not several]
    found = {column: statistics(rows, column) for column in shown}
    cells = [
        [
            name,
            *(
                f"{100 * of[name][''][0]:.2f} ± {100 * of[name][''][1]:.2f}" if name in of else ""
                for of in found.values()
            ),
        ]
        for name in dict.fromkeys(row["config"] for row in rows)
    ]
    titles = [k.removesuffix(f"_{main}").removeprefix("test_" if several else "") for k in shown]
    return predictions.table([f"{main}, %, {counted(len({row['seed'] for row in rows}))}", *titles], cells)


def counted(seeds: int) -> str:
    """1 seed, 3 seeds."""
    return f"{seeds} seed{'s' * (seeds > 1)}"


def titled(column: str) -> str:
    """`test_top1` → test top-1."""
    return column.replace("_", " ").replace("top1", "top-1")


def shots_table(rows: Sequence[dict[str, Any]]) -> str:
    """A table: a line per config, a column per number of shots, mean ± standard deviation in percent."""
    column = measured(rows)
    lines, seeds = statistics(rows, column), len({row["seed"] for row in rows})
    shots = sorted({row["shots"] for row in rows})
    shown = [
        [name, *(f"{100 * points[k][0]:.2f} ± {100 * points[k][1]:.2f}" if k in points else "" for k in shots)]
        for name, points in lines.items()
    ]
    head = [f"{titled(column)}, %, {counted(seeds)}", *(f"{k} shots" for k in shots)]
    return predictions.table(head, shown)


def base_to_new_table(rows: Sequence[dict[str, Any]]) -> str:
    """A table: a line per config and number of shots, the means over seeds of base, new and each seed's harmonic mean."""
    found = [statistics(rows, column) for column in HALVES]
    before = [{**row, "config": "zero-shot"} for row in rows if row["zero_shot_harmonic_mean"] != ""]
    first = [statistics(before, f"zero_shot_{column}") for column in HALVES] if before else None
    shown = [
        [name, str(k), *(f"{100 * of[name][k][0]:.2f} ± {100 * of[name][k][1]:.2f}" for of in columns)]
        for columns in ([first] if first else []) + [found]
        for name, points in columns[0].items()
        for k in sorted(points)
    ]
    return predictions.table(
        [f"top-1, %, {counted(len({row['seed'] for row in rows}))}", "shots", "base", "new", "H"], shown
    )


def below_zero_shot(row: dict[str, Any]) -> bool:
    """Whether adapting lost on validation what zero-shot had."""
    own, before = (row.get(f"{who}val_{main_of(row)}", "") for who in ("", "zero_shot_"))
    return "" not in (own, before) and own < before


def losses(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each config and number of shots that is below zero-shot on validation."""
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    for row in filter(below_zero_shot, rows):
        found[row["config"], row["shots"]].append(str(row["seed"]))
    return [f"below zero-shot on validation: {name}, {k} shots, seed {', '.join(s)}" for (name, k), s in found.items()]


def plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line per config, and zero-shot's."""
    column, lines = measured(rows), statistics(rows, measured(rows))
    before = f"zero_shot_{column}"
    if column.startswith("test_"):
        base = [row for row in rows if row.get(before, "") != ""]
        reference = statistics([{**row, "config": "zero-shot"} for row in base], before)
        lines = {**reference, **lines}
    seeds = len({row["seed"] for row in rows})
    title = f"mean of {counted(seeds)}, band: standard deviation"
    plots.plot_shots(path, lines, title, f"{titled(column).split()[-1]}, %")
