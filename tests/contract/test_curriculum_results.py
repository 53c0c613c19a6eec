"""The tables of docs/curriculum_results.md: made of hand-written lines, and the committed pages of their CSV."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSV = ROOT / "docs" / "curriculum_results.csv"


@pytest.fixture(scope="module")
def pages():
    sys.path.insert(0, str(ROOT / "bench"))
    yield importlib.import_module("curriculum_page")
    sys.path.remove(str(ROOT / "bench"))


def line(mode, seed, source, measurer="", threshold="", rows=100, clean=1.0, corrupted=1.0, test=0.5, chosen=""):
    shares = {"clean": str(clean), "corrupted": str(corrupted), "val": "0.4", "test": str(test), "chosen": chosen}
    named = {"mode": mode, "seed": str(seed), "source": source, "measurer": measurer, "threshold": threshold}
    return {**named, "rows": str(rows), **shares}


def test_gains_shares_and_aims(pages):
    lines = [
        line("ssa", 1, "template", test=0.30),
        line("ssa", 1, "template", "template", "0.2", 70, 0.95, 0.2, 0.40, "1"),
        line("ssa", 2, "template", test=0.50),
        line("ssa", 2, "template", "template", "0.3", 60, 0.85, 0.1, 0.52, "1"),
        line("msa", 1, "template", test=0.3),
        line("msa", 1, "relation", test=0.35),
        line("msa", 1, "template", "relation", "0.2", 70, 0.9, 0.2, 0.33, "1"),
        line("msa", 1, "relation", "relation", "0.3", 150, 0.9, 0.2, 0.45, "1"),
    ]
    text = pages.tables(lines)
    assert "| 1 | 100 | 70 | 0.2 | 95.0 % | 20.0 % | 30.0 | 40.0 | +10.0 |" in text
    assert "| mean |  |  |  |  |  | 40.0 | 46.0 | +6.0 |" in text
    assert "corrupted rows: missed (1 of 2)" in text and "each seed, on test: reached (2 of 2)" in text
    assert "| MSA: template > 0.2 (relation), relation > 0.3 (relation) | 150 | 40.0 | 45.0 |" in text
    assert "best single source, on test: reached (1 of 1)" in text
    assert pages.written("# T\n\nwords\n", lines).startswith("# T\n\nwords\n")
    again = pages.written(pages.written("", lines), lines[:2])
    assert again.count(pages.BEGIN) == 1 and "Three sources" not in again


def test_what_chose_all_rows_gains_nothing(pages):
    lines = [
        line("ssa", 1, "template", test=0.3),
        line("ssa", 1, "template", "template", "0.2", 70, 0.9, 0.2, 0.4, "0"),
    ]
    assert "| 1 | 100 | 100 | – | 100.0 % | 100.0 % | 30.0 | 30.0 | +0.0 |" in pages.tables(lines)
    assert "each seed, on test: missed (0 of 1)" in pages.tables(lines)


@pytest.mark.skipif(not CSV.is_file(), reason="bench/curriculum_table.py has not been run")
def test_the_pages_are_those_of_the_csv(pages):
    for language, place in (("en", "docs"), ("zh", "docs/zh")):
        path = ROOT / place / "curriculum_results.md"
        text = path.read_text(encoding="utf-8")
        lines = importlib.import_module("csv_page").read(CSV)
        assert pages.written(text, lines, language) == text, f"{path} is stale: curriculum_table.py --table"
