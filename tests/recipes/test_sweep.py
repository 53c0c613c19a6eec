"""Sweeps: every combination once, nothing twice, on after a kill, the table and the plot."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from jclip.cli import main
from jclip.commands.sweep import combinations, planned, shots_table, statistics, sweep
from jclip.errors import ConfigError
from tests.killed import killed_at

ROOT = Path(__file__).parents[2]
CONFIGS = ("zero_shot/smoke", "tip_adapter/smoke")


def rows_of(path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def test_combinations_list_values_and_seeds_draw():
    assert list(combinations({"a": "1,2", "b": "[3, 4]"})) == [["a=1", "b=[3, 4]"], ["a=2", "b=[3, 4]"]]
    assert list(combinations({"seed": "1,2"})) == [["seed=1", "data.seed=1"], ["seed=2", "data.seed=2"]]
    assert list(combinations({"seed": "1", "data.seed": "5"})) == [["seed=1", "data.seed=5"]]


def test_a_sweep_runs_what_is_not_there_yet(tmp_path, capsys):
    command = ["sweep", *CONFIGS, "data.shots=2,4", "seed=1,2", "data.pool=4"]
    command += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "test top-1, %, 2 seeds" in printed and "2 shots" in printed and " ± " in printed
    rows = rows_of(tmp_path / "out" / "sweep.csv")
    assert [(r["config"], r["shots"], r["seed"]) for r in rows] == [
        (f"{recipe}/smoke", k, s) for recipe in ("zero_shot", "tip_adapter") for k in "24" for s in "12"
    ]
    assert len({r["run"] for r in rows}) == len(rows) and (tmp_path / "out" / "sweep.png").stat().st_size > 5000
    stamps = {r["run"]: (Path(r["run"]) / "result.json").stat().st_mtime_ns for r in rows}
    assert main([*command[:3], "data.shots=2,4", "seed=1,2,3", *command[5:]]) == 0
    again = rows_of(tmp_path / "out" / "sweep.csv")
    assert len(again) == 12
    assert all((Path(run) / "result.json").stat().st_mtime_ns == stamp for run, stamp in stamps.items())


def test_statistics_are_mean_and_population_deviation():
    rows = [
        {"config": "a", "shots": 1, "seed": s, "test_top1": v, "val_top1": "", "zero_shot_test_top1": ""}
        for s, v in ((1, 0.5), (2, 0.7), (3, 0.9))
    ]
    mean, deviation = statistics(rows, "test_top1")["a"][1]
    assert np.isclose(mean, 0.7) and np.isclose(deviation, np.sqrt(0.08 / 3))
    assert "70.00 ± 16.33" in shots_table(rows)


def test_what_is_wrong_is_reported_before_the_first_run(tmp_path):
    with pytest.raises(ConfigError, match="name at least one config"):
        planned(["data.shots=1,2"], str(tmp_path))
    with pytest.raises(ConfigError, match="data.shots"):
        planned(["tip_adapter/smoke", "data.shots=1,two"], str(tmp_path))
    with pytest.raises(ConfigError, match="no shots to sweep over"):
        planned(["contrastive/smoke"], str(tmp_path))
    assert not any(tmp_path.iterdir())


def test_killed_with_9_and_finished_by_the_same_command(tmp_path):
    settings = ["data.shots=1,2,4", "seed=1,2", "data.pool=4", "optim.epochs=4"]

    def command(name: str) -> list[str]:
        places = ["--runs", str(tmp_path / name / "runs"), "--out", str(tmp_path / name / "out")]
        return ["sweep", "tip_adapter/smoke", *settings, *places]

    killed_at("*/result.json", *command("killed"), times=2)
    assert len(list((tmp_path / "killed" / "runs").rglob("result.json"))) == 2
    tables = []
    for name in ("killed", "whole"):
        assert main(command(name)) == 0
        rows = rows_of(tmp_path / name / "out" / "sweep.csv")
        tables.append([[r[c] for c in ("config", "shots", "seed", "val_top1", "test_top1")] for r in rows])
    assert tables[0] == tables[1] and len(tables[0]) == 6


def test_what_can_not_run_is_reported_and_the_rest_runs(tmp_path, capsys):
    """Of the embedded features, two and four shots were recorded."""
    folders = ["--runs", str(tmp_path / "r"), "--out", str(tmp_path / "o")]
    assert main(["sweep", "gda/smoke", "data.shots=3,4", *folders]) == 0
    assert "not run: smoke, 3 shots, seed 1: " in (printed := capsys.readouterr().out) and "no features of 3" in printed
    assert [row["shots"] for row in rows_of(tmp_path / "o" / "sweep.csv")] == ["4"]


def test_what_was_selected_on_test_says_so_everywhere(tmp_path, capsys):
    folders = ["--runs", str(tmp_path / "r"), "--out", str(tmp_path / "o")]
    assert main(["sweep", "tip_adapter/smoke", "train=true", "selection=val,test", *folders]) == 0
    assert "smoke (selected on test)" in capsys.readouterr().out
    rows = rows_of(tmp_path / "o" / "sweep.csv")
    assert [(r["config"], r["selection"]) for r in rows] == [("smoke", "val"), ("smoke (selected on test)", "test")]
    honest, other = (r["run"] for r in rows)
    for command in (["eval", other], ["compare", honest, other]):
        assert main(command) == 0
        assert "selected on test" in capsys.readouterr().out
    assert json.loads((Path(other) / "eval.json").read_text())["selected_on_test"] == 1
    assert main(["eval", honest]) == 0
    assert "selected on test" not in capsys.readouterr().out


def test_help_stands_in_the_table_of_commands(capsys):
    with pytest.raises(SystemExit):
        sweep(["--help"])
    assert "data.shots=1,2,4,8,16 seed=1,2,3" in " ".join(capsys.readouterr().out.split())
