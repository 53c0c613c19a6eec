"""The table of several labels: its command on a few photos, its page by hand, and the committed page from its CSV."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSV = ROOT / "docs" / "multi_label_results.csv"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(ROOT / "bench"))
    yield importlib.import_module("multi_label_table")
    sys.path.remove(str(ROOT / "bench"))


def test_the_command_makes_every_kind_of_row_and_nothing_twice(bench, tmp_path, monkeypatch, capfd):
    rows, runs = bench.rows, importlib.import_module("multi_label_runs")
    for name, few in {
        "RUNS": ("plain", "winner"),
        "PHOTOS_KNOWN": ("DualCoOp, ranking loss",),
        "WITHOUT_TRAINING": ("whole photo",),
    }.items():
        kept = {n: getattr(rows, name)[n] for n in few}
        monkeypatch.setattr(rows, name, kept)
        monkeypatch.setattr(runs, name, kept, raising=False)
        for recipe, which in (("text_as_image", "RUNS"), ("dual_prompt", "PHOTOS_KNOWN")):
            if which == name:
                monkeypatch.setitem(runs.RECIPES, recipe, kept)
    monkeypatch.setattr(rows, "IN_WINDOWS", ("winner",))
    monkeypatch.setattr(rows, "TOGETHER", ("plain", "winner"))
    monkeypatch.setattr(
        sys, "argv", ["x", "--runs", str(tmp_path / "a b,c"), "--out", str(tmp_path), "--seeds", "2", "--quick"]
    )
    assert bench.main() == 0
    text, page = ((tmp_path / f"multi_label_results.{e}").read_text(encoding="utf-8") for e in ("csv", "md"))
    first = capfd.readouterr().err
    assert first.count("seed 2:") == 3 and first.count("scores: ") > 20
    assert bench.main() == 0 and "scores: " not in capfd.readouterr().err
    assert (tmp_path / "multi_label_results.csv").read_text(encoding="utf-8") == text
    lines = bench.read(tmp_path / "multi_label_results.csv")
    kinds = {line["row"] for line in lines if line["photos"] == "free_scenes"}
    assert kinds >= {
        "whole photo", "whole photo, normalised", "plain, global", "plain", "winner+bank", "plain+modulation",
        "winner + windows as published", "winner + windows", "ensemble", "windows and ensemble", "DualCoOp, ranking loss",
    }  # fmt: skip
    assert all(0 <= float(line["test_map"]) <= 1 for line in lines) and all(f"| {kind} |" in page for kind in kinds)


def test_gains_are_differences_of_means_and_aims_are_told(bench):
    import multi_label_page as pages

    def line(row, seed, test):
        return {"row": row, "seed": seed, "photos": "scenes", "test_map": test, "val_map": "", "chosen": ""}

    lines = [line("winner", "1", "0.9"), line("winner", "2", "0.94"), line("winner+evidence", "1", "0.95")]
    text = pages.written("before\n", lines)
    assert "| winner | 92.0 | 2.0 |  |" in text and "| winner+evidence | 95.0 |  | +3.0 |" in text
    assert "- winner, `scenes`: aim 92, reached: 92.0 (90.0, 94.0)" in text
    assert "aim 92, missed: 91.0 (91.0)" in pages.written("", [line("winner", "1", "0.91")])
    assert pages.written(text + "after", lines) == text + "after" and text.startswith("before\n<!--")


@pytest.mark.skipif(not CSV.is_file(), reason="bench/multi_label_table.py has not been run")
def test_the_page_is_that_of_the_csv_and_nothing_is_missing(bench):
    lines = bench.read(CSV)
    for language, folder in (("en", ROOT / "docs"), ("zh", ROOT / "docs" / "zh")):
        page = (folder / "multi_label_results.md").read_text(encoding="utf-8")
        assert bench.written(page, lines, language) == page
    for name in (*bench.rows.RUNS, *bench.rows.PHOTOS_KNOWN, "ensemble", "windows and ensemble"):
        own = {(x["seed"], x["photos"]) for x in lines if x["row"] == name}
        assert len(own) == len(bench.rows.SEEDS) * len(bench.rows.SETS), name
