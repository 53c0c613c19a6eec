"""The table of phrases' boxes: its command on a few scenes, its page by hand, and the committed page from its CSV."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSV = ROOT / "docs" / "grounding_results.csv"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(ROOT / "bench"))
    yield importlib.import_module("grounding_table")
    sys.path.remove(str(ROOT / "bench"))


def test_the_command_makes_rows_and_nothing_twice(bench, tmp_path, monkeypatch, capfd):
    asked = ["--rows", "untrained", "shapes", "--seeds", "2", "--quick"]
    monkeypatch.setattr(sys, "argv", ["x", *asked, "--runs", str(tmp_path / "a b,c"), "--out", str(tmp_path)])
    assert bench.main() == 0
    text, page = ((tmp_path / f"grounding_results.{e}").read_text(encoding="utf-8") for e in ("csv", "md"))
    assert capfd.readouterr().err.count("shapes, seed 2:") == 1
    assert bench.main() == 0 and "seed 2" not in capfd.readouterr().err
    assert (tmp_path / "grounding_results.csv").read_text(encoding="utf-8") == text
    lines = bench.read(tmp_path / "grounding_results.csv")
    assert [(x["row"], x["part"]) for x in lines] == [
        *((name, part) for name in bench.UNTRAINED for part in ("test", "unseen")),
        *(("shapes", part) for part in ("features", "test", "unseen", "val")),
    ]
    assert all(0 <= float(x["acc"]) <= 1 for x in lines if x["acc"]) and "| shapes | 1 | " in page
    (run,) = (tmp_path / "a b,c").glob("shapes-2-*")
    (run / "result.json").unlink()  # as of a run that was killed at its end
    assert bench.main() == 0
    spent = [x["cpu_seconds"] for x in bench.read(tmp_path / "grounding_results.csv") if x["part"] == "test"]
    assert spent[-1] == ""  # of a resumed run the seconds are not known


def test_lines_replace_their_own_and_no_others(bench):
    old = [bench.line("shapes", 1, "test", 9, {"acc": 0.5}), bench.line("shapes", 2, "test", 9, {"acc": 0.6})]
    new = [bench.line("shapes", 2, "test", 9, {"acc": 0.7}), bench.line("rough box", "", "test", 9, {"acc": 0.4})]
    assert [(x["row"], x["seed"], x["acc"]) for x in bench.merged(old, new)] == [
        ("rough box", "", "0.4000"), ("shapes", "1", "0.5000"), ("shapes", "2", "0.7000"),
    ]  # fmt: skip


def test_a_page_has_means_of_seeds_and_tells_each_aim(bench):
    found = {"acc": 0.96, "sides": 0.8, "no_sides": 0.98, "mean_iou": 0.75, "present_auroc": 0.9, "present_acc": 0.85}
    lines = [
        bench.line("shapes", "", "features", 40, {}, 30.0),
        bench.line("shapes", 1, "test", 100, found, 690.0),
        bench.line("shapes", 2, "test", 100, {**found, "acc": 0.94, "sides": 0.84}, 810.0),
        bench.line("shapes", 1, "unseen", 50, {"acc": 0.861}),
    ]
    text = bench.written("before\n", lines)
    assert "| shapes | 2 | 95.0 | 1.0 | 98.0 | 82.0 | 75.0 | 86.1 | 13.0 |" in text
    assert "| shapes | 90.0 | 85.0 |  |  |" in text
    assert "- shapes, test scenes, Acc@0.5: aim 95, reached: 95.0 (96.0, 94.0)" in text
    assert "names a" not in text and "name a side: aim 85, missed: 82.0 (80.0, 84.0)" in text
    assert "- shapes: aim 12 core-minutes with features, missed: 13.0 (12.0, 14.0)" in text
    assert bench.written(text + "after", lines) == text + "after" and text.startswith("before\n<!--")


@pytest.mark.skipif(not CSV.is_file(), reason="bench/grounding_table.py has not been run")
def test_the_page_is_that_of_the_csv(bench):
    lines = bench.read(CSV)
    for language, folder in (("en", ROOT / "docs"), ("zh", ROOT / "docs" / "zh")):
        page = (folder / "grounding_results.md").read_text(encoding="utf-8")
        assert bench.written(page, lines, language) == page
    assert {x["row"] for x in lines} >= {*bench.UNTRAINED, "shapes"}
