"""The challenge from folders to the file that is handed in: killed or not, both boards, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

import finetune
from jclip.cli import main
from jclip.commands.challenge_steps import Config, Pipeline
from jclip.config import build, load_values
from jclip.data.checks import copied
from jclip.data.splits import natural_key, read_list
from jclip.errors import ConfigError
from jclip.functional import fusion as mixing
from jclip.functional.metrics import ranking
from jclip.report.fused_runs import Fused, fuse, gated, untaught
from jclip.report.predictor import Classifier, unlabelled
from jclip.train.configs import read_config
from jclip.weights.parameter_shapes import HEAD_WIDTHS
from jclip.weights.variants import CLIPConfig, TextConfig, ViTConfig
from tests.killed import killed_at
from tests.recipes.challenge_folder import write_folder
from tests.toys import SMALL_RESNET, SMALL_VIT, toy_file

ROOT = Path(__file__).parents[2]
QUICK = (
    "tune.optim={lr: 1e-3, epochs: 2, batch: 8}", "tune.every=1",
    "members.tip_adapter.search_steps=[5, 7]", "members.tip_adapter.optim={lr: 1e-2, epochs: 2, batch: 16}",
    "members.cross_modal={every: 2, augment: none, optim: {lr: 1e-3, epochs: 1, batch: 8}}", "fusion.step=0.1",
    "date='0820'",
)  # fmt: skip
DRAW = ("--count", "20", "--shots", "2")


@pytest.fixture
def folder(tmp_path) -> Path:
    """The challenge's folder with everything drawn."""
    root = write_folder(tmp_path / "challenge")
    assert main(["hold-out", str(root), *DRAW]) == 0
    return root


def rows_of(file: Path) -> dict[str, list[int]]:
    """Photo → its classes, of a file that is handed in."""
    lines = (line.rsplit(" ", 5) for line in file.read_text().splitlines())
    return {name: list(map(int, ids)) for name, *ids in lines}


def metrics_of(run: Path | str) -> dict[str, float]:
    return json.loads((Path(run) / "result.json").read_text())["metrics"]


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
        by_bytes = {Path(p).read_bytes(): k for p, k in zip(originals.paths, originals.labels, strict=True)}
        assert [by_bytes[Path(p).read_bytes()] for p in held.paths] == held.labels.tolist()
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
    for changed, message in (
        (["--seed", "11"], "must be of this draw, got another"),
        (
            ["--count", "9"],
            "--count must be at most 8, the photos of train.txt that are neither in train_4class.txt nor copies, got 9",
        ),
        (["--count", "0"], "argument --count: must be an integer in [1, "),
    ):
        assert main([*draw, *changed]) == 2
        assert message in capsys.readouterr().err
    (root / "TestSetZ-label.txt").unlink()
    assert main(draw) == 2 and "must stand beside TestSetZ-label.txt" in capsys.readouterr().err


# The whole


def commands() -> list[str]:
    """The commands of docs/challenge.md that a newcomer types, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "challenge.md").read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def seeds_weights(folder: Path) -> None:
    """Jittor's .pkl where the seed has them: tiny models, with heads as wide as real ones, under the large ones' names."""
    text = TextConfig(width=64, heads=1, layers=1, mlp_width=256)
    vision = {"ViT-B-32": ViTConfig((32, 32), patch_size=8, width=64, layers=1, heads=1, mlp_width=256),
              "RN101": SMALL_RESNET.vision}  # fmt: skip
    for name, tower in vision.items():
        made = toy_file(folder, CLIPConfig(24, tower, text))
        assert main(["convert", str(made), str(folder / "Weights" / "initial_weight" / f"{name}.pkl")]) == 0


def test_the_walk_of_the_docs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(HEAD_WIDTHS, 64, 64)  # a .pkl says no more than shapes; of a width that exists they are enough
    folder = write_folder(tmp_path / "challenge")
    seeds_weights(folder)
    ran, printed = [], []
    for line in commands():
        words = shlex.split(line.removeprefix("jclip ").removeprefix("python -m finetune "))
        if words[0] in ("hold-out", "challenge"):
            capsys.readouterr()
            assert main([*words, *(DRAW if words[0] == "hold-out" else (*QUICK, "family=openai"))]) == 0, line
            ran.append(line)
            printed.append(capsys.readouterr().out)
            if len(ran) == 2:
                whole(tmp_path, printed[-1])
            if "board=B" in line:
                board_b(tmp_path, printed[-1])
    assert len(ran) == 5 and "cross_modal" in printed[3] and printed[2] != printed[4]
    tuned = list((tmp_path / "runs" / "challenge").glob("tuned-*"))
    assert len(tuned) == 6, "two backbones with three kinds of prompts or classes, and none of them twice"

    labels = "".join(f"TestSetA/{i}.png {i % 8}\n" for i in range(16))
    (folder / "labels.txt").write_text(labels)  # of photos whose classes are known, the accuracy is printed
    assert main(["challenge", "data.root=challenge", *QUICK, "family=openai", "photos=labels.txt"]) == 0
    facts = json.loads((tmp_path / "results" / "result0820.json").read_text())
    rows = rows_of(tmp_path / "results" / "result0820.txt")
    right = [rows[f"{i}.png"].index(i % 8) if i % 8 in rows[f"{i}.png"] else 9 for i in range(16)]
    assert facts["figures"]["test_top1"] == right.count(0) / 16
    assert facts["figures"]["test_top5"] == sum(r < 5 for r in right) / 16


def whole(tmp_path: Path, printed: str) -> None:
    """What the one command leaves, made again by hand from the runs' own scores."""
    assert printed.count("kept") == 1 and "parameters, millions" in printed
    assert printed.count("seconds  peak MiB") == 2, "of each backbone, and of each member"
    rows = rows_of(tmp_path / "results" / "result0820.txt")
    facts = json.loads((tmp_path / "results" / "result0820.json").read_text())
    photos = [
        str(p) for p in sorted((tmp_path / "challenge" / "TestSetA").iterdir(), key=lambda p: natural_key(p.name))
    ]
    assert list(rows) == [Path(p).name for p in photos] and len(rows) == 16
    with zipfile.ZipFile(tmp_path / "results" / "result0820.zip") as archive:
        assert archive.namelist() == ["result.txt"]
        assert archive.read("result.txt") == (tmp_path / "results" / "result0820.txt").read_bytes()
    tuned = {p: metrics_of(p) for p in (tmp_path / "runs" / "challenge").glob("tuned-*")}
    assert len(tuned) == 2
    assert tuned[Path(facts["runs"]["tuned"])]["val_top1"] == max(m["val_top1"] for m in tuned.values())
    assert not [k for m in tuned.values() for k in m if "test" in k], "no step but the last sees test photos"
    members = {name: Classifier.load(run) for name, run in facts["runs"].items()}
    total = sum(
        facts["fused"]["weights"][m]
        * mixing.transformed(one.label(unlabelled(photos))[0].scores, "log_softmax", facts["fused"]["temperatures"][m])
        for m, one in members.items()
    )
    assert ranking(total, 5).tolist() == list(rows.values())
    assert facts["figures"]["val_top1"] >= max(metrics_of(run)["val_top1"] for run in facts["runs"].values())
    assert facts["figures"]["val_top1"] == metrics_of(facts["runs"]["tip_adapter"])["val_top1"] or len(members) == 2
    for name, one in members.items():
        assert facts["parameters"][f"learned by {name}"] == sum(a.size for a in one.learned.values())


def board_b(tmp_path: Path, printed: str) -> None:
    """Ten classes, of which two have no photos: the gate's rows are the tuned model's own, all others the fused ones."""
    rows = rows_of(tmp_path / "results" / "result0820.txt")
    assert len(rows) == 20 and all(len(set(ids)) == 5 and max(ids) < 10 for ids in rows.values())
    assert "2 classes without training photos: tuned takes" in printed and "with the gate" in printed
    facts = json.loads((tmp_path / "results" / "result0820.json").read_text())
    photos = [str(tmp_path / "challenge" / "TestSetB" / name) for name in rows]
    scores = {name: Classifier.load(run).label(unlabelled(photos))[0].scores for name, run in facts["runs"].items()}
    own, sent = ranking(scores["tuned"], 5), ranking(scores["tuned"], 1)[:, 0] >= 8
    assert facts["gate"]["test"] == sent.sum()
    assert [ids for ids, is_sent in zip(rows.values(), sent, strict=True) if is_sent] == own[sent].tolist()


def test_killed_twice_and_equal_to_the_run_that_was_not(small_models, tmp_path):
    for name in ("killed", "whole"):
        write_folder(tmp_path / name / "challenge")
        assert main(["hold-out", str(tmp_path / name / "challenge"), *DRAW]) == 0

    def arguments(name: str) -> list[str]:
        places = ["--runs", str(tmp_path / name / "runs"), f"out={tmp_path / name / 'results'}"]
        longer = ["tune.optim={lr: 1e-3, epochs: 8, batch: 8}", "members.tip_adapter.optim.epochs=8"]
        data = [f"data.root={tmp_path / name / 'challenge'}", f"backbones={small_models['vit']}"]
        return ["challenge", *data, *QUICK, *longer, *places]

    killed_at("*/tuned-*/train.safetensors", *arguments("killed"))  # its first epoch has ended
    assert not list((tmp_path / "killed").rglob("result.json"))
    killed_at("*/tip_adapter-*/config.yaml", *arguments("killed"))
    assert len(list((tmp_path / "killed").rglob("result.json"))) == 1 and not (tmp_path / "killed" / "results").exists()
    assert main(arguments("killed")) == 0 and main(arguments("whole")) == 0
    for file in ("result0820.txt", "result0820.zip"):
        assert (tmp_path / "killed/results" / file).read_bytes() == (tmp_path / "whole/results" / file).read_bytes()


@pytest.mark.skipif(not (ROOT / ".venv").is_dir(), reason="the scripts would make an environment first")
@pytest.mark.parametrize("script, step", [("train1.sh", "tune"), ("train2.sh", "members"), ("test.sh", "results")])
def test_the_scripts_are_its_steps(script, step, tmp_path):
    assert f"ROOT_PATH=challenge sh {script}" in commands()
    assert (f"--until {step}" in (ROOT / script).read_text()) == (step != "results")
    environment = {**os.environ, "ROOT_PATH": "photos", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", ROOT / script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and f"data.root must be a folder, got {tmp_path}/photos" in done.stderr


# The gate and the fusion


def test_the_gate_takes_whole_rows():
    gate = np.array([[0.1, 0.2, 0.9, 0.3], [0.5, 0.2, 0.4, 0.1], [0.5, 0.6, 0.7, 0.0], [0.5, 0.1, 0.5, 0.0]])
    fused = np.array([[0.9, 0.2, 0.1, 0.3], [0.1, 0.2, 0.3, 0.9], [0.9, 0.0, 0.1, 0.2], [0.3, 0.1, 0.2, 0.9]])
    taught = np.array([True, True, False, True])
    assert untaught(gate, taught).tolist() == [True, False, True, False]  # of equal ones the taught class stays
    assert untaught(gate, taught, 0.2).tolist() == [True, False, False, False]
    assert np.array_equal(gated(fused, gate, taught), np.stack([gate[0], fused[1], gate[2], fused[3]]))
    assert np.array_equal(gated(fused, gate, np.ones(4, bool)), fused)
    rng = np.random.default_rng(0)
    rows = ranking(gated(*rng.standard_normal((2, 200, 9)), rng.random(9) < 0.6), 5)
    assert all(len(set(row)) == 5 for row in rows.tolist())


@pytest.mark.parametrize("inputs", ["log_softmax", "softmax", "logits"])
def test_fusion_is_the_ensembles(inputs):
    rng = np.random.default_rng(3)
    scores = {name: 4 * rng.standard_normal((60, 5)) for name in ("a", "b")}
    labels = (scores["a"] + scores["b"]).argmax(1)  # who has both is right more often than who has one
    found = fuse(scores, labels, ["b", "a"], inputs, step=0.1)
    assert list(found.weights) == ["b", "a"] and sum(found.weights.values()) == pytest.approx(1)
    right = [
        (Fused(inputs, {"b": w, "a": 1 - w}, found.temperatures)(scores).argmax(1) == labels).sum()
        for w in np.linspace(0, 1, 11)
    ]
    assert (found(scores).argmax(1) == labels).sum() == max(right) > (scores["a"].argmax(1) == labels).sum()
    shrunk = fuse(scores, labels, ["b", "a"], inputs, step=0.1, shrink=0.5).weights
    assert shrunk["b"] == pytest.approx(found.weights["b"] / 2 + 0.25)
    assert fuse(scores, labels, ["b", "a"], inputs, weights=(3, 1)).weights == {"b": 0.75, "a": 0.25}


def test_every_member_that_ships_builds():
    path = ROOT / "configs" / "challenge.yaml"
    work = Pipeline(build(Config, load_values(path), "challenge.yaml"), Path("runs"), "challenge.yaml")
    known = [name for name in work.cfg.members if name in finetune.names()]
    assert {"tip_adapter", "cross_modal", "zero_shot"} <= set(known)
    for member in ("tuned", *known):
        module, cfg = work.settings(member, "weights.safetensors")
        assert cfg.model == "weights.safetensors" and cfg.data.root.endswith("challenge") and cfg.data.strip_prefix
        assert cfg.templates == ("openai80" if member == "fd_align" else "jittor_challenge[4]"), module.__name__


def test_settings_of_members_that_nothing_would_read():
    """As of `train`: typed, or in the file unless what they are read with was typed."""
    path = ROOT / "configs" / "challenge.yaml"

    def member(name: str, *typed: str, known: bool = True):
        cfg = build(Config, load_values(path, typed), "challenge.yaml")
        return Pipeline(cfg, Path("runs"), "challenge.yaml", typed if known else ()).settings(name, "w.safetensors")[1]

    assert not member("tip_adapter", "members.tip_adapter.train=false").train
    with pytest.raises(
        ConfigError, match="^challenge.yaml: members.tip_adapter: optim.lr must be left out: it is read"
    ):
        member("tip_adapter", "members.tip_adapter.train=false", known=False)
    with pytest.raises(
        ConfigError, match="^tune.optim.momentum must be left out: it is read with optim.name=sgd alone"
    ):
        member("tuned", "tune.optim.momentum=0.3")


def test_it_is_no_recipes_config():
    with pytest.raises(ConfigError, match="challenge.yaml is of several recipes: run it with `jclip challenge`"):
        read_config("challenge")


# What is refused, before anything is trained


def refused(folder: Path, small_models, capsys, *settings: str) -> str:
    """The line that the command ends with."""
    capsys.readouterr()
    backbone = f"backbones={small_models['vit']}"
    runs = folder.parent / "refused"
    assert main(["challenge", f"data.root={folder}", backbone, *settings, "--runs", str(runs)]) == 2
    assert not list(runs.rglob("metrics.jsonl"))
    return capsys.readouterr().err.splitlines()[-1]


SETTINGS = {
    "fuse=[tuned, tip_adaptor]": "unknown member 'tip_adaptor', did you mean 'tip_adapter'",
    "gate=nobody": "unknown member 'nobody'",
    "backbones=[]": "backbones must hold at least one name, got []",
    "members.tip_adapter.on=given_": "members.tip_adapter must be a group of settings with `on` one of tuned, given, got {",
    "members.tip_adapter.alhpa=2": "members.tip_adapter: unknown key alhpa, did you mean 'alpha'",
    "tune.optim.epochs=0": "tune: optim.epochs must be at least 1, got 0",
    "tune.recipe=ful": "unknown recipe 'ful', did you mean 'full'",
    "fusion.step=0": "fusion.step must be in [0.001, 1]",
    "fusion.weights=[1]": "fusion.weights must hold one number per member of fuse (2), got 1",
    "date=820": "date must be text, got 820",
    "date='8-20'": "date must be MMDD, such as '0820', got '8-20'",
    "board=C": "board must be one of A, B, got 'C'",
    "parameters=1": "at most 1 million parameters, got 1.64 (",
    "photos=TestSetC": "no such photo or folder: TestSetC",
    f"templates=a {{}}, {'and so on ' * 40}": "text of 125 tokens is too long for context length 77",
    "data.root=nowhere": "data.root must be a folder",
}


@pytest.mark.parametrize("setting, message", SETTINGS.items(), ids=[s[:30] for s in SETTINGS])
def test_wrong_settings(setting, message, folder, small_models, capsys):
    assert message in refused(folder, small_models, capsys, setting)


def test_too_many_parameters_for_a_model_and_its_tuned_copy(folder, small_models, capsys):
    got = refused(folder, small_models, capsys, "parameters=2", "fuse=[tuned, zero_shot]")
    assert "at most 2 million parameters, got 3.28 (" in got and "and its tuned copy" in got


def test_validation_photos_that_are_learned_from(folder, small_models, capsys):
    first = (folder / "train_4class.txt").read_text().split()[0]
    name = (folder / "TestSetZ-label.txt").read_text().split("\t")[0]
    kept = (folder / "TestSetZ" / name).read_bytes()
    shutil.copy(folder / first, folder / "TestSetZ" / name)
    assert f"1 of 20 validation photos are copies of training photos ({folder}/TestSetZ/{name})" in refused(
        folder, small_models, capsys
    )
    (folder / "TestSetZ" / name).unlink()
    (folder / "TestSetZ" / name).symlink_to(folder / first)
    assert f"1 of 20 validation photos are training photos too ({folder}/TestSetZ/{name})" in refused(
        folder, small_models, capsys
    )
    (folder / "TestSetZ" / name).unlink()
    (folder / "TestSetZ" / name).write_bytes(kept)
    (folder / "TestSetZ-label.txt").unlink()
    got = refused(folder, small_models, capsys)
    assert (
        "there must be training and validation photos, got 16 and 0" in got
        and "`jclip hold-out FOLDER` draws them" in got
    )


def test_lists_that_do_not_fit_the_classes(folder, small_models, capsys):
    text = (folder / "train_4class.txt").read_text()
    (folder / "train_4class.txt").write_text(text.replace("Animal/Bear", "Animal/Beer").replace(" 0\n", "\n"))
    assert "whose folder is not a class, did you mean 'Bear'" in refused(folder, small_models, capsys)
    (folder / "train_4class.txt").write_text(text.replace(" 7\n", " 8\n"))
    assert "label 8 is beyond the 8 classes" in refused(folder, small_models, capsys)


def test_a_tuning_that_leaves_no_model_is_reported(folder, small_models, capsys, tmp_path):
    backbone, runs = f"backbones={small_models['vit']}", ["--runs", str(tmp_path / "r")]
    assert main(["challenge", f"data.root={folder}", backbone, "tune={recipe: zero_shot}", *runs]) == 2
    assert "tune.recipe must train a tower, got zero_shot" in capsys.readouterr().err


@pytest.mark.parametrize("other", ["resnet", "vit of another seed"])
def test_other_weights_on_resume_are_refused(other, folder, small_models, tmp_path, capsys, monkeypatch):
    """The file was exchanged between a kill and the next start. The pipeline would give it a folder of its own."""
    weights = tmp_path / "weights.safetensors"
    shutil.copy(small_models["vit"], weights)
    command = ["train", str(ROOT / "configs" / "no_finetune.yaml"), f"model={weights}", f"data.root={folder}",
               "data.val_shots=0", "optim.batch=8", "optim.epochs=1", "--run", str(tmp_path / "run")]  # fmt: skip
    with monkeypatch.context() as stopped:
        stopped.setattr("jclip.train.on_photos.save_model", interrupt)
        assert main(command) == 130
    assert (tmp_path / "run" / "train.safetensors").is_file()
    shutil.copy(small_models["resnet"] if other == "resnet" else toy_file(tmp_path, SMALL_VIT, seed=1), weights)
    assert main(command) == 2
    assert re.search(
        r"train.safetensors goes on from weights of SHA-256 \w{12}…, and .* --fresh$", capsys.readouterr().err
    )
    shutil.copy(small_models["vit"], weights)
    assert main(command) == 0


def interrupt(*_, **__) -> None:
    raise KeyboardInterrupt
