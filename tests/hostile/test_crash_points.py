"""Killed, or out of disk, at every operation of the layer of files and at some of real commands: bench/crash_points.py.

Challenges and curricula are killed by the tests of their recipes, at the places that matter, with the same comparison.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tried(*arguments: str) -> list[list[str]]:
    """The table's rows, once every point is right."""
    environment = {k: v for k, v in os.environ.items() if k not in ("CRASH_PLACE", "LD_PRELOAD")}
    command = [sys.executable, str(ROOT / "bench" / "crash_points.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in done.stdout.splitlines() if row.startswith("| ")
    ][1:]


pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which(os.environ.get("CC", "cc")),
    reason="operations are counted by a library in front of Linux's, which a compiler makes",
)


def test_every_operation_of_the_layer_of_files():
    rows = tried("folder", "sort", "link", "unsort", "--with", "kill", "enospc")
    assert len(rows) == 8 and all(operations == points == right for _, _, operations, points, right, _ in rows)
    assert min(int(row[2]) for row in rows if row[0] == "folder") >= 60


def test_six_points_of_a_real_run():
    (row,) = tried("train", "--points", "6")
    assert row[:2] == ["train", "kill"] and row[3:5] == ["6", "6"]


def test_every_third_kill_of_embed():  # each one: python bench/crash_points.py embed, docs/crash_points.md
    (row,) = tried("embed", "--points", "44")
    assert row[:2] == ["embed", "kill"] and row[3:5] == ["44", "44"] and 100 < int(row[2]) < 3 * 44 + 20
