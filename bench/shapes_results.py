"""Every recipe on drawing styles that the shipped models never saw: accuracy over shots, and from base to new classes.

    python bench/shapes_results.py [--models …] [--styles …] [--recipes …] [--threads N] [--choose | --table]

Rendered photos, so nothing but the checkout is needed: 100 classes, 1, 4 and 16 shots drawn by three seeds, 1,000 test
photos, min(shots, 4) validation photos per class. Each run is a line of docs/shapes_results.csv, written when it has
ended; what stands there with the same settings is not run again, and several processes may share the file. Afterwards
docs/shapes_results.md, the same page in Chinese in docs/zh, and .png are written from all of it. `--choose` runs each
recipe's grid on seed 1 at 16 shots, and keeps what is best on validation in bench/shapes_settings.json. Recipes are
found in finetune/: those that have no row in bench/shapes_rows.py run as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from shapes_page import draw, pages, read
from shapes_rows import MODELS, ROWS, SEEDS, SHOTS, STYLES, Row, found

import finetune
from jclip.commands.sweep import BASE_TO_NEW, METRICS, Point, finished, row_of, write_csv
from jclip.config import apply_overrides, load_values
from jclip.errors import JclipError
from jclip.train.configs import build_config, default_folder, find_config

CHOSEN = ROOT / "bench" / "shapes_settings.json"
KEYS = ("model", "style", "recipe", "subset", "shots", "seed")
COLUMNS = (*KEYS, *METRICS, *BASE_TO_NEW, "seconds", "settings")
MOST_SHOTS = max(SHOTS)


@dataclass(frozen=True)
class Job:
    """One run."""

    model: str
    style: str
    recipe: str
    subset: str
    shots: int
    seed: int
    settings: tuple[str, ...]

    @property
    def key(self) -> tuple:
        """What distinguishes runs in the CSV."""
        return tuple(getattr(self, name) for name in KEYS)

    @property
    def described(self) -> str:
        """Config and settings in one cell."""
        return "; ".join((rows()[self.recipe].config, *self.settings))

    def point(self, runs: str) -> Point:
        """The run's config and folder. Raises `JclipError` where the recipe is not there, or can't."""
        path = find_config(rows()[self.recipe].config)
        values = load_values(path)
        values["data"] = {"root": f"shapes:{self.style}"}
        module, _ = build_config({**values, "model": self.model}, self.recipe)
        known = {f.name for f in fields(module.Config)}
        given = [f"model={self.model}", f"data.shots={self.shots}", f"data.subset={self.subset}"]
        given += [f"data.seed={self.seed}", f"seed={self.seed}"]
        given += [s for s in ("templates=simple", "augment=none", "views=1") if s.partition("=")[0] in known]
        module, cfg = build_config(apply_overrides(values, [*given, *self.settings]), self.recipe)
        return Point(self.recipe, self.settings, module, cfg, default_folder(module, cfg, path, runs))


def main() -> int:
    """Runs what is not there yet, writes the page, or chooses the settings."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    p.add_argument("--styles", nargs="+", choices=STYLES, default=STYLES)
    p.add_argument("--recipes", nargs="+", metavar="ROW", help="rows of the table, such as LoRA (default: all)")
    p.add_argument("--shots", nargs="+", type=int, choices=SHOTS, default=SHOTS)
    p.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS)
    p.add_argument("--threads", type=int, help="of this process (default: all cores)")
    p.add_argument("--runs", default="runs/shapes", help="where a run's folder is while it lasts")
    p.add_argument("--out", type=Path, default=ROOT / "docs", help="for shapes_results.csv, .md and .png")
    p.add_argument("--choose", action="store_true", help="choose each row's settings on validation, seed 1, 16 shots")
    p.add_argument("--table", action="store_true", help="no runs: only the page and the plot, from the CSV")
    args = p.parse_args()
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # Jittor is not imported yet
    unknown = {*(args.recipes or ())} - {*rows()}
    if unknown:
        p.error(f"no such row: {', '.join(sorted(unknown))} (known: {', '.join(rows())})")
    if args.choose:
        choose(args)
        return 0
    done = measure(args) if not args.table else read(args.out / "shapes_results.csv")
    draw(args.out, done)
    for path, text in pages(args.out, done).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print(f"written: {args.out}/shapes_results.csv, .md, .png ({len(done)} runs)")
    return 0


def rows() -> dict[str, Row]:
    """The table's rows, in order: those of `ROWS` whose recipe is there, then recipes without a row."""
    known, recipes = {row.recipe for row in ROWS.values()}, found()
    there = {name: row for name, row in ROWS.items() if row.recipe in recipes}
    return there | {name: Row(f"{name}/smoke") for name in recipes if name not in known}


def jobs(args: argparse.Namespace) -> Iterator[Job]:
    """All runs that were asked for: shots and seeds on all classes, then 16 shots of the base classes."""
    best, known = chosen(), rows()
    wanted = [name for name in known if name in (args.recipes or known)]
    for model, style, name in itertools.product(args.models, args.styles, wanted):
        row = known[name]
        settings = best.get(name, {}).get(f"{model} {style}", row.candidates[0])
        for shots, seed in itertools.product(args.shots, args.seeds):
            yield Job(model, style, name, "all", shots, seed, row.at(shots, settings, model))
        new = row.new and hasattr(finetune.load(row.recipe), "for_classes")
        for seed in args.seeds if new and MOST_SHOTS in args.shots else ():
            yield Job(model, style, name, "base", MOST_SHOTS, seed, row.at(MOST_SHOTS, settings, model))


def chosen() -> dict[str, dict[str, list[str]]]:
    """row → model and style → settings."""
    return json.loads(CHOSEN.read_text(encoding="utf-8")) if CHOSEN.is_file() else {}


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every line of the CSV, those before and those of now; a break leaves what was measured."""
    from tqdm import tqdm

    path = args.out / "shapes_results.csv"
    lines = by_key(path)
    wanted = [job for job in jobs(args) if lines.get(job.key, {}).get("settings") != job.described]
    reported: set[str] = set()
    with tqdm(wanted, unit="run", disable=None) as bar:
        for job in bar:
            bar.set_postfix_str(" ".join(map(str, job.key)))
            line = attempted(job, args.runs, reported)
            if line:
                add(path, job.key, line)
    return in_order(by_key(path).values())


def by_key(path: Path) -> dict[tuple, dict[str, Any]]:
    """The CSV's lines by what distinguishes runs; none where it is not there yet."""
    return {tuple(row[k] for k in KEYS): row for row in (read(path) if path.is_file() else [])}


def add(path: Path, key: tuple, line: dict[str, Any]) -> None:
    """Puts a line into the CSV, which other processes may write to as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        write_csv(path, in_order({**by_key(path), key: line}.values()), COLUMNS)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time."""
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def in_order(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By model, style, row, subset, shots and seed, as they stand in the tables."""
    places = [list(MODELS), list(STYLES), list(rows()), ["all", "base"], list(SHOTS), list(SEEDS)]
    kept = [line for line in lines if line["recipe"] in rows()]
    return sorted(kept, key=lambda line: [of.index(line[k]) for of, k in zip(places, KEYS, strict=True)])


def attempted(job: Job, runs: str, reported: set[str]) -> dict[str, Any] | None:
    """The line of a run; None where the recipe can't, which is reported once for each reason."""
    try:
        return line_of(job, runs)
    except JclipError as e:
        message = f"{job.recipe} on {job.model}: {e}"
        if message not in reported:
            reported.add(message)
            sys.stderr.write(f"not run: {message}\n")
        return None


def line_of(job: Job, runs: str) -> dict[str, Any]:
    """Runs, measures on new classes where base classes were learned, and removes the run's folder."""
    from jclip.report.predictor import Classifier
    from jclip.report.transfer import base_to_new

    point = job.point(runs)
    row = row_of(point, finished(point))
    line = {k: row[k] for k in (*METRICS, "seconds")}
    if job.subset == "base":
        transfer = base_to_new(Classifier.load(point.folder), point.folder)
        line |= {k: transfer.get(k, "") for k in BASE_TO_NEW}
    shutil.rmtree(point.folder)  # a tuned model is 30 MB, and the line is all that is kept of it
    return {**dict(zip(KEYS, job.key, strict=True)), **line, "settings": job.described}


def choose(args: argparse.Namespace) -> None:
    """The best settings of each grid on the validation photos of seed 1, the first among equals."""
    reported: set[str] = set()
    for model, style, name in itertools.product(args.models, args.styles, args.recipes or rows()):
        best = {}
        for settings in rows()[name].candidates if name in rows() else ():
            given = rows()[name].at(MOST_SHOTS, settings, model)
            line = attempted(Job(model, style, name, "all", MOST_SHOTS, SEEDS[0], given), args.runs, reported)
            if line:
                chosen = "; ".join(settings)
                print(f"{model} {style} {name} {chosen}: {line['val_top1']}, {line['seconds']} s", flush=True)
                best[settings] = line["val_top1"]
        if best:
            with locked(CHOSEN):
                kept = {**chosen().get(name, {}), f"{model} {style}": max(best, key=best.get)}
                text = json.dumps({**chosen(), name: kept}, indent=1, ensure_ascii=False)
                CHOSEN.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
