"""docs/shapes_results.md and .png, made of docs/shapes_results.csv."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shapes_rows import MODELS, SEEDS, SHOTS, STYLES

from jclip.commands.sweep import BASE_TO_NEW, HALVES, METRICS, below_zero_shot
from jclip.commands.sweep import statistics as over_seeds

BELOW = "↓"
Lines = Sequence[dict[str, Any]]


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of the CSV, numbers as numbers."""
    with open(path, encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    numbers = {"shots": int, "seed": int, "seconds": float, **dict.fromkeys((*METRICS, *BASE_TO_NEW), float)}
    return [{k: numbers.get(k, str)(v) if v else "" for k, v in row.items()} for row in rows]


def page(lines: Lines) -> str:
    """shapes_results.md."""
    parts = [HEAD]
    for model in MODELS:
        for style in STYLES:
            own = [line for line in lines if (line["model"], line["style"]) == (model, style)]
            parts += [f"## {model}, `shapes:{style}`", over_shots(own), from_base_to_new(own)] if own else []
    picture = "![accuracy over shots, shapes-tiny-vit on inverted](shapes_results.png)"
    return "\n\n".join(filter(None, [*parts, picture])) + "\n"


HEAD = f"""# Every recipe on styles that the models never saw

Written by `python bench/shapes_results.py`; every run is a line of `shapes_results.csv`. The two models that ship were
trained on four drawing styles of [the embedded world](training.md#the-world-of-shapes); here they meet those that they
did not, 100 classes, 1,000 test photos (the ResNet `inverted` alone: it classifies 98 % of `sketch` before it learns
anything). They are toys, and so are these figures: they show that each recipe works, not which of them is better.
Test top-1 in percent, mean ± population's standard deviation over {len(SEEDS)} seeds, each of which draws shots and starts.
Settings were chosen once for each model and style, on the validation photos of seed 1 at 16 shots
(`bench/shapes_rows.py`, `shapes_settings.json`), epochs on min(shots, 4) validation photos per class, never on test; photos
are seen plainly. {BELOW}: below zero-shot on validation at one seed or more. Seconds: the median of a 16-shot run."""


def over_shots(lines: Lines) -> str:
    """A row for each recipe, a column for each number of shots."""
    own = [{**line, "config": line["recipe"]} for line in lines if line["subset"] == "all"]
    shown = [["recipe", *(f"{k} shot{'s' * (k > 1)}" for k in SHOTS), "seconds"]]
    for recipe, points in over_seeds(own, "test_top1").items():
        mine = [line for line in own if line["recipe"] == recipe]
        below = {line["shots"] for line in mine if below_zero_shot(line)}
        cells = [f"{_percent(points[k])}{f' {BELOW}' * (k in below)}" if k in points else "" for k in SHOTS]
        seconds = [line["seconds"] for line in mine if line["shots"] == SHOTS[-1]]
        shown.append([recipe, *cells, f"{statistics.median(seconds):.1f}" if seconds else ""])
    return _table(shown) if len(shown) > 1 else ""


def from_base_to_new(lines: Lines) -> str:
    """Recipes that classify by text: 16 shots of the first 50 classes, measured on these and on the other 50."""
    own = [{**line, "config": line["recipe"]} for line in lines if line["subset"] == "base"]
    if not own:
        return ""
    before = [{**line, "config": "zero-shot"} for line in own]
    tables = [[over_seeds(before, f"zero_shot_{half}") for half in HALVES], [over_seeds(own, half) for half in HALVES]]
    shown = [["base to new, 16 shots", "base", "new", "H"]]
    for columns in tables:
        shown += [[name, *(_percent(of[name][SHOTS[-1]]) for of in columns)] for name in columns[0]]
    return _table(shown)


def _percent(point: tuple[float, float]) -> str:
    return f"{100 * point[0]:.2f} ± {100 * point[1]:.2f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, f"|{' --- |' * len(rows[0])}", *rest])


def draw(folder: Path, lines: Lines) -> None:
    """shapes_results.png: the ViT on the style that it was trained on least."""
    from jclip.report.plots import plot_shots

    shown = [
        {**line, "config": line["recipe"]}
        for line in lines
        if (line["model"], line["style"], line["subset"]) == (MODELS[0], STYLES[0], "all")
    ]
    if shown:
        title = f"{MODELS[0]}, shapes:{STYLES[0]}, mean of {len(SEEDS)} seeds"
        plot_shots(folder / "shapes_results.png", over_seeds(shown, "test_top1"), title, "test top-1, %")
