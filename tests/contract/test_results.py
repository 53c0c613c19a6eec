"""docs/results.md, in both languages, is what its command makes of docs/results.csv, and nothing in it is missing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("bench_results", ROOT / "bench" / "results.py")
results = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(results)


def test_the_pages_are_those_of_the_runs():
    pages = results.pages(ROOT / "docs", results.read(ROOT / "docs" / "results.csv"))
    assert {path.relative_to(ROOT).as_posix() for path in pages} == {"docs/results.md", "docs/zh/results.md"}
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path} is stale: python bench/results.py --table"


def test_the_command_finds_the_recipes_of_its_configs():
    planning = """
import runpy
bench = runpy.run_path("bench/results.py")
print(len(bench["planned"](["tip_adapter/smoke", "seed=1,2,3"], "runs")))
"""
    ended = subprocess.run([sys.executable, "-c", planning], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "3\n"), ended.stderr


def test_every_recipe_was_run_at_every_number_of_shots_and_seed():
    rows = results.read(ROOT / "docs" / "results.csv")
    wanted = [
        (name, recipe, shots, seed)
        for name, recipes in results.DATA_SETS.items()
        for recipe in recipes
        for shots in results.SHOTS
        for seed in results.SEEDS
    ]
    assert [(r["data"], r["recipe"], r["shots"], r["seed"]) for r in rows] == wanted


def test_a_cell_that_is_below_zero_shot_on_validation_says_so():
    base = dict.fromkeys(results.COLUMNS, "") | {
        "data": "caltech_lvis",
        "recipe": "x",
        "seconds": 1.0,
        "test_top1": 0.5,
    }
    rows = [{**base, "shots": k, "seed": 1, "val_top1": 0.5, "zero_shot_val_top1": z} for k, z in ((1, 0.6), (16, 0.5))]
    line = results.table("caltech_lvis", rows).splitlines()[2]
    assert line == f"| x | 50.00 ± 0.00 {results.BELOW} | 50.00 ± 0.00 | 1.0 |"
