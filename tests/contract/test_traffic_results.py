"""docs/traffic_results.md, in both languages, is what its command makes of its CSV; the command runs on a small world."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(ROOT / "bench"))
    yield importlib.import_module("traffic")
    sys.path.remove(str(ROOT / "bench"))


def test_the_pages_are_those_of_the_csv(bench):
    rows = bench.read(DOCS / "traffic_results.csv")
    assert {row["seed"] for row in rows} == {1, 2, 3}
    for path, text in bench.pages(rows, DOCS).items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: python bench/traffic.py --table"


def test_what_was_taken_was_best_on_validation_and_the_whole_gains_twenty_points(bench):
    rows = bench.read(DOCS / "traffic_results.csv")
    for seed in (1, 2, 3):
        for step in ("tuning", "queries", "re-ranking"):
            own = [row for row in rows if (row["seed"], row["step"]) == (seed, step)]
            assert [row["val_map@10"] for row in own if row["taken"]] == [max(row["val_map@10"] for row in own)]
        gains = {
            row["step"]: row["test_map@10"]
            for row in rows
            if row["seed"] == seed and row["step"] in ("zero-shot", "whole")
        }
        assert gains["whole"] - gains["zero-shot"] >= 0.2


def test_the_command_on_a_small_world(bench, monkeypatch, tmp_path):
    """Two tunings; where one fills with the other's weights, its key follows them."""
    monkeypatch.setattr(bench, "TUNED", {name: bench.TUNED[name] for name in ("captions as they are", bench.TWICE)})
    monkeypatch.setattr(bench, "RULES", ("none", "shapes-bare"))
    quick = {"mix": 1, "optim": {"epochs": 1, "batch": 16, "lr": 1e-4}}
    rows = list(bench.measured(1, tmp_path, "small-traffic", quick))
    assert [row["step"] for row in rows] == [
        "zero-shot",
        *["tuning"] * 2,
        *["queries"] * 2,
        *["re-ranking"] * 7,
        "whole",
    ]
    assert all(
        sum(row["taken"] for row in rows if row["step"] == step) == 1 for step in ("tuning", "queries", "re-ranking")
    )
    filled = [row["filled_right"] for row in rows if row["step"] == "tuning"]
    assert filled[0] == "" and 0.3 < filled[1] <= 1
    assert {row["name"]: row["uses_other_queries"] for row in rows}["expand k 3 spread all"]
    assert len([*tmp_path.glob("filled-*")]) == 2 == len([*tmp_path.glob("tuned-*")])
