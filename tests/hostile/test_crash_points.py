"""Killed, or out of disk, at every operation of the layer of files and at six of a real run: bench/crash_points.py."""

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


def test_three_points_of_a_retrieval_challenge():
    (row,) = tried("retrieval", "--points", "3")
    assert row[:2] == ["retrieval", "kill"] and row[3:5] == ["3", "3"]


@pytest.mark.slow  # half a minute: each point starts Jittor's operators anew
def test_three_points_of_a_challenge_of_several_labels():
    (row,) = tried("multi_label", "--points", "3", "--from", "150")
    assert row[:2] == ["multi_label", "kill"] and row[3:5] == ["3", "3"] and int(row[2]) >= 400


@pytest.mark.slow  # each point trains twice
def test_three_points_of_a_curriculum():
    (row,) = tried("curriculum", "--points", "3", "--from", "40")
    assert row[:2] == ["curriculum", "kill"] and row[3:5] == ["3", "3"] and int(row[2]) >= 120
