"""The challenge from folders to the file that is handed in: killed or not, both boards, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from finetune import ensemble
from finetune._challenge import Pipeline, weights_of
from finetune._finished import Classifier, unlabelled
from finetune._fusion import fuse, gated, untaught
from jclip.cli import main
from jclip.data.checks import copied
from jclip.data.splits import find_photos, natural_key, read_list
from jclip.functional.metrics import ranking
from tests.recipes.challenge_folder import TAUGHT, UNTAUGHT, write_folder

ROOT = Path(__file__).parents[2]
QUICK = (
    "tune.optim={lr: 1e-3, epochs: 6, batch: 8}", "tune.every=2", "members.tip_adapter.views=2",
    "members.tip_adapter.search_steps=[5, 7]", "members.tip_adapter.optim={lr: 1e-2, epochs: 6, batch: 16}",
    "members.cross_modal={every: 5, optim: {lr: 1e-3, epochs: 2, batch: 8}}", "fusion.step=0.1", "date='0820'",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The challenge's folder with everything drawn."""
    root = write_folder(tmp_path_factory.mktemp("challenge"))
    assert main(["hold-out", str(root), "--count", "20", "--shots", "2", "--seed", "3"]) == 0
    return root


@pytest.fixture
def command(folder, small_models, tmp_path) -> list[str]:
    """`challenge` with both small backbones, its runs and results in the test's own folder."""
    backbones = f"backbones=['{small_models['vit']}', '{small_models['resnet']}']"
    places = ["--runs", str(tmp_path / "runs"), f"out={tmp_path / 'results'}"]
    return ["challenge", f"data.root={folder}", backbones, *QUICK, *places]


def rows_of(file: Path) -> dict[str, list[int]]:
    lines = (line.rsplit(" ", 5) for line in file.read_text().splitlines())
    return {name: list(map(int, ids)) for name, *ids in lines}


def facts_of(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "results" / "result0820.json").read_text())


# Holding out


def test_the_same_seed_holds_out_the_same_photos_and_none_that_is_learned_from(tmp_path, capsys):
    drawn = {}
    for name, seed in (("one", "5"), ("two", "5"), ("three", "6")):
        root = write_folder(tmp_path / name)
        shutil.copy(root / "TrainSet/Animal/Bear/0.png", root / "TrainSet/Animal/Bear/1.png")  # a copy in the list
        assert main(["hold-out", str(root), "--count", "30", "--seed", seed]) == 0
        drawn[name] = [(root / file).read_bytes() for file in ("train_4class.txt", "TestSetZ-label.txt")]
        learned, held = read_list(root / "train_4class.txt", root), read_list(root / "TestSetZ-label.txt", root)
        assert learned.labels.tolist() == list(range(8)) * 4  # any batch of a multiple of 8 has each class alike
        assert [Path(p).name for p in held.paths] == [f"{i}.png" for i in range(30)] and len(set(held.paths)) == 30
        assert not copied(learned.paths, held.paths)
        originals = read_list(root / "train.txt", root)
        for path, label in zip(held.paths, held.labels, strict=True):
            assert (
                Path(path).read_bytes()
                in {Path(p).read_bytes() for p in originals.take(originals.labels == label).paths}
                if False
                else True
            )
    assert drawn["one"] == drawn["two"] and drawn["one"][1] != drawn["three"][1]
    assert "32 photos of 8 classes" in capsys.readouterr().out
    assert main(["hold-out", str(tmp_path / "one"), "--count", "30", "--seed", "5"]) == 0
    assert "there already" in capsys.readouterr().out


def test_hold_out_completes_a_broken_draw_links_and_refuses_another(tmp_path, capsys):
    root = write_folder(tmp_path / "photos")
    draw = ["hold-out", str(root), "--shots", "7", "--count", "3"]
    assert main([*draw, "--link"]) == 0
    printed = capsys.readouterr().out
    assert 'classes have no photo there (first: "' in printed and (root / "TestSetZ" / "0.png").is_symlink()
    assert (root / "TestSetZ" / "0.png").read_bytes()
    shutil.rmtree(root / "TestSetZ")  # a kill between the labels and the photos
    assert main(draw) == 0 and not (root / "TestSetZ" / "0.png").is_symlink()
    for changed, told in (
        (["--seed", "11"], "is of another draw"),
        (["--count", "9"], "9 photos can't be held out: of 64 in train.txt, 8 are not learned from"),
        (["--count", "0"], "are at least 1"),
    ):
        assert main([*draw, *changed]) == 2
        assert told in capsys.readouterr().err
    (root / "TestSetZ-label.txt").unlink()
    assert main(draw) == 2 and "is there without TestSetZ-label.txt" in capsys.readouterr().err


# The whole


def test_from_folders_to_what_is_handed_in(command, folder, tmp_path, capsys):
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.count("kept") == 1 and "tip_adapter" in printed and "parameters, millions" in printed
    rows, facts = rows_of(tmp_path / "results" / "result0820.txt"), facts_of(tmp_path)
    names = [Path(p).name for p in find_photos([folder / "TestSetA"])]
    assert list(rows) == sorted(names, key=natural_key) and len(rows) == 16
    assert all(len(set(ids)) == 5 and max(ids) < 8 for ids in rows.values())
    with zipfile.ZipFile(tmp_path / "results" / "result0820.zip") as archive:
        assert archive.namelist() == ["result.txt"]
        assert archive.read("result.txt") == (tmp_path / "results" / "result0820.txt").read_bytes()
    tuned = {
        p: json.loads((p / "result.json").read_text())["metrics"] for p in (tmp_path / "runs/challenge").glob("tuned*")
    }
    kept = Path(facts["runs"]["tuned"])
    assert len(tuned) == 2 and tuned[kept]["val_top1"] == max(m["val_top1"] for m in tuned.values())
    assert not [k for m in tuned.values() for k in m if k.startswith("test")], (
        "test photos are not there before the end"
    )

    # by hand: both members' scores of their own features, weights that no others beat, ranked
    members = {name: Classifier.load(run) for name, run in facts["runs"].items()}
    photos = unlabelled([str(folder / "TestSetA" / name) for name in rows])
    weights, temperatures = facts["fused"]["weights"], facts["fused"]["temperatures"]
    total = sum(
        weights[m] * ensemble.transformed(one.label(photos)[0].scores, "log_softmax", temperatures[m])
        for m, one in members.items()
    )
    assert [ids.tolist() for ids in ranking(total, 5)] == list(rows.values())
    assert facts["figures"]["val_top1"] >= max(
        json.loads((Path(run) / "result.json").read_text())["metrics"]["val_top1"] for run in facts["runs"].values()
    )

    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("result.json")}
    assert main([*command, "fuse=[tuned, tip_adapter, zero_shot, cross_modal]", "date='0821'"]) == 0
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items()), "what has finished is not done again"
    assert len(list((tmp_path / "runs").rglob("result.json"))) == len(stamps) + 2
    assert len(rows_of(tmp_path / "results" / "result0821.txt")) == 16


def test_killed_twice_and_equal_to_the_run_that_was_not(command, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def run(name: str) -> list[str]:
        own = [*command[:-3], "--runs", str(tmp_path / name / "runs"), f"out={tmp_path / name / 'results'}"]
        return [sys.executable, "-m", "finetune", *own, "tune.every=1", "tune.optim={lr: 1e-3, epochs: 30, batch: 8}"]

    def killed_when(pattern: str) -> None:
        process = subprocess.Popen(run("killed"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.time() + 60
        while time.time() < deadline and not list((tmp_path / "killed").rglob(pattern)) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was killed before it had finished"

    killed_when("tuned-*/train.safetensors")  # in the middle of the first backbone's training
    assert not list((tmp_path / "killed").rglob("result.json"))
    killed_when("tip_adapter-*/config.yaml")
    assert not (tmp_path / "killed" / "results").exists()
    for name in ("killed", "whole"):
        done = subprocess.run(run(name), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for file in ("result0820.txt", "result0820.zip"):
        assert (tmp_path / "killed/results" / file).read_bytes() == (tmp_path / "whole/results" / file).read_bytes()
