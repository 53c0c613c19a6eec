"""What stands around the recipes: links to runs, runs in one table, the entrants' scripts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from finetune.__main__ import main as finetune_main
from jclip.cli import main

ROOT = Path(__file__).parent.parent.parent
SMOKE = str(ROOT / "configs" / "tip_adapter" / "smoke.yaml")


def test_a_link_moves_to_the_run_that_finished_last(tmp_path, capsys):
    command = ["train", SMOKE, "--runs", str(tmp_path / "runs"), "--link", str(tmp_path / "latest")]
    assert main(command) == 0
    first = (tmp_path / "latest").resolve()
    assert main([*command, "alpha=2"]) == 0
    second = (tmp_path / "latest").resolve()
    assert first != second and (second / "result.json").is_file() and not list(tmp_path.glob(".latest*"))
    assert main(["compare", str(first), str(tmp_path / "latest")]) == 0
    rows = capsys.readouterr().out.splitlines()[-4:]
    assert [row.split()[0] for row in rows[1:]] == ["zero-shot", first.name, "latest"]
    assert main([*command[:-1], str(tmp_path)]) == 2
    assert (
        f"{tmp_path} must be a link or absent, got a file or folder: choose another name with --link"
        in capsys.readouterr().err
    )


def test_a_table_needs_finished_runs_that_share_something(tmp_path, capsys):
    assert main(["compare", str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err
    (tmp_path / "result.json").write_text('{"metrics": {"loss": 1.0}}')
    assert main(["compare", str(tmp_path)]) == 2
    assert "got none in common" in capsys.readouterr().err


def test_predicting_without_photos_needs_a_run_that_has_some(tmp_path, capsys, small_models):
    assert main(["train", SMOKE, "--run", str(tmp_path)]) == 0
    assert main(["predict", str(tmp_path), "--model", str(small_models["vit"])]) == 2
    assert "name the photos to label: this run has none of its own" in capsys.readouterr().err
    assert main(["predict", str(tmp_path), "--sheet", "x.gif"]) == 2
    assert "x.gif: a sheet is written as one of .png" in capsys.readouterr().err
    assert finetune_main([]) == 2


def test_captioned_runs_are_not_measured_as_classifiers(tmp_path, capsys):
    smoke = str(ROOT / "configs" / "contrastive" / "smoke.yaml")
    assert main(["train", smoke, "--run", str(tmp_path), "data.scenes=16", "optim.epochs=1"]) == 0
    assert main(["eval", str(tmp_path)]) == 2
    assert "learned from captions: measure its model.safetensors with the recipe zero_shot" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["train1.sh", "train2.sh", "test.sh", "check.sh"])
def test_scripts_are_plain_shell(script):
    subprocess.run(["sh", "-n", ROOT / script], check=True)
    text = (ROOT / script).read_text()
    assert text.startswith("#!/bin/sh\n") and "set -eu" in text and os.access(ROOT / script, os.X_OK)


@pytest.mark.skipif(not (ROOT / ".venv").is_dir(), reason="the scripts would make an environment first")
def test_a_scripts_settings_reach_the_recipe_from_any_folder(tmp_path):
    done = subprocess.run(["sh", ROOT / "train1.sh", "optim.bach=3"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "unknown key optim.bach, did you mean 'batch'" in done.stderr
    done = subprocess.run(
        ["sh", ROOT / "train1.sh", "data.root=photos", "--run", tmp_path / "r"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and f"data.root is no folder: {tmp_path}/photos" in done.stderr
