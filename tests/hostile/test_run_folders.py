"""A run's folder: nothing of the user's is removed or overwritten, one process writes, damage is noticed. No Jittor."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from jclip.cli import main
from jclip.errors import CheckpointError, ConfigError
from jclip.paths import refuse_overwriting, replacing
from jclip.report import predictor as _finished
from jclip.train.run import Run, RunBusy, read_result
from jclip.train.run_folder import INDEX, adding_to, is_run

VALUES = {"recipe": "gda", "seed": 1}


def position(epoch: int) -> dict:
    return {"epoch": epoch, "step": 4 * epoch, "last": {"loss": 0.5}, "best": {}, "best_epoch": -1}


def trained(folder: Path, epochs: int = 3) -> Path:
    """A run that was broken off after so many epochs."""
    with Run(folder, VALUES) as run:
        slot = run.slot()
        for epoch in range(epochs):
            run.log(slot="train", epoch=epoch, loss=0.5)
            slot.save({"w": np.full(100, epoch + 1, np.float32)}, position(epoch + 1))
    return folder


def finished(folder: Path) -> Path:
    with Run(trained(folder), VALUES) as run:
        run.save_learned({"w": np.ones(3, np.float32)}, classnames=["a", "b"], width=3)
        run.finish({"test_top1": 0.5})
    return folder


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if not p.name.startswith(".")}


# What is the user's


MINE = ("learned.safetensors", "config.yaml", "result.json", "weights.safetensors", "train.safetensors")


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", MINE)
def test_a_folder_of_the_users_is_refused_untouched(name, fresh, tmp_path):
    (tmp_path / name).write_text("recipe: coop\n")
    with pytest.raises(ConfigError, match=rf"must be empty or hold a run, got {re.escape(name)}"):
        Run(tmp_path, VALUES, fresh=fresh)
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "recipe: coop\n"


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_the_command_refuses_it_in_one_line(fresh, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["train", "zero_shot/smoke", "--run", str(tmp_path), *fresh]) == 2
    assert "got thesis.txt and no run: choose another folder" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.txt"]  # noqa: PTH208


def test_fresh_removes_what_the_run_wrote_and_nothing_else(tmp_path):
    finished(tmp_path)
    mine = {"my.safetensors", "head.safetensors", "notes.txt"}
    for name in mine:
        (tmp_path / name).write_text("mine")
    with Run(tmp_path, {"recipe": "other"}, fresh=True) as run:
        assert run.result is None
    assert names(tmp_path) == {"config.yaml", *mine}


def test_fresh_of_a_run_without_an_index_removes_the_known_names(tmp_path):
    """Runs had none before."""
    finished(tmp_path)
    (tmp_path / INDEX).unlink()
    for name in ("eval.json", "model.safetensors", "ratio-0.2.safetensors", "mine.safetensors"):
        (tmp_path / name).write_text("x")
    with Run(tmp_path, VALUES, fresh=True):
        assert names(tmp_path) == {"config.yaml", "mine.safetensors"}


def test_fresh_asks_for_the_lock_first(tmp_path):
    with Run(trained(tmp_path), VALUES):
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        with pytest.raises(RunBusy, match="in use by another process"):
            Run(tmp_path, VALUES, fresh=True)
        with pytest.raises(RunBusy, match="in use by another process"), adding_to(tmp_path, ["eval.json"]):
            pass
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["../mine", "/etc/passwd", "..", "", "a/b", "x\0", 7, None])
def test_an_index_names_nothing_outside(name, tmp_path):
    from jclip.train.run_folder import Index, _index_text, read_index

    (tmp_path / "run").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run" / INDEX).write_text(_index_text(Index(files=("config.yaml", name))))
    assert read_index(tmp_path / "run") is None
    (tmp_path / "run" / "x").write_text("x")
    with pytest.raises(ConfigError, match="must be empty or hold a run"):
        Run(tmp_path / "run", VALUES, fresh=True)
    assert (tmp_path / "mine").is_file()


def test_a_lock_of_somebody_elses_is_not_emptied(tmp_path):
    (tmp_path / ".lock").write_text("42")
    with Run(tmp_path, VALUES):
        assert (tmp_path / ".lock").read_text() == "42"
    (tmp_path / "r").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "r" / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic link"):
        Run(tmp_path / "r", VALUES)


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path):
    trained(tmp_path)
    mine = ".download.part", ".notes.txt.part"
    left = ".config.yaml.part", ".train.next.safetensors.part", ".result.json.ab12cd_e.part", ".metrics.jsonl.2.part"
    for name in (*mine, *left):
        (tmp_path / name).write_text("x")
    with replacing(tmp_path / "learned.safetensors") as writing, Run(tmp_path, VALUES):
        assert writing.is_file()  # of a process that lives
        writing.write_text("x")
    parts = {p.name for p in tmp_path.glob(".*.part")}
    assert parts == {*mine}


# Damage


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path: Path, at: int) -> None:
    path.write_bytes(path.read_bytes()[:at])


def zero(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + 64] = bytes(len(data[at : at + 64]))
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [flip, cut, zero])
@pytest.mark.parametrize("where", [0.0, 0.1, 0.3, 0.6, 0.99])
def test_a_damaged_state_gives_way_to_the_one_before_it(damage, where, tmp_path, capfd):
    trained(tmp_path)
    path = tmp_path / "train.safetensors"
    damage(path, int(where * path.stat().st_size))
    with Run(tmp_path, VALUES) as run:
        arrays, place = run.slot().load()
        assert place == position(2) and (arrays["w"].read() == 2).all()
        (line,) = capfd.readouterr().err.splitlines()
        assert "train.safetensors is damaged" in line and "going on from the state before it" in line
        damage(tmp_path / "train.previous.safetensors", int(where * path.stat().st_size))
        with pytest.raises(CheckpointError, match="no earlier state is left: start over with --fresh"):
            run.slot().load()


POSITIONS = ["{", "7", "null", "{}", '{"epoch": "3"}', '{"epoch": -1, "step": 0, "last": {}, "best": {}, "best_epoch": 0}',
             '{"epoch": 1, "step": true, "last": {}, "best": {}, "best_epoch": 0}', "[" * 50_000,
             '{"epoch": 1, "step": 1, "last": {"a": "b"}, "best": {}, "best_epoch": 0}',
             '{"epoch": 1, "step": 1, "last": {"a": NaN}, "best": {}, "best_epoch": 0}',
             '{"epoch": 1, "step": 1, "last": {}, "best": [], "best_epoch": 0}', None]  # fmt: skip


@pytest.mark.parametrize("text", POSITIONS, ids=range(len(POSITIONS)))
def test_a_position_that_is_none_is_refused(text, tmp_path):
    from jclip.readers import safetensors

    metadata = {} if text is None else {"position": text}
    with Run(tmp_path, VALUES) as run:
        slot = run.slot()
        safetensors.write(tmp_path / "train.safetensors", {"w": np.ones(3, np.float32)}, metadata)
        with pytest.raises(CheckpointError, match="is damaged: it"):
            slot.load()


def test_two_states_stand_on_the_disk_and_none_in_the_end(tmp_path):
    trained(tmp_path)
    assert {p.name for p in tmp_path.glob("*.safetensors")} == {"train.safetensors", "train.previous.safetensors"}
    finished(tmp_path)
    assert {p.name for p in tmp_path.glob("*.safetensors")} == {"learned.safetensors"}
    (tmp_path / "train.safetensors").write_text("left by a kill behind result.json")
    with Run(tmp_path, VALUES) as run:
        assert run.result["metrics"] == {"test_top1": 0.5} and not (tmp_path / "train.safetensors").exists()


def test_damaged_lines_are_left_out_and_reported(tmp_path, capfd):
    trained(tmp_path)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1].replace("0.5", "0.6") + lines[2] + '{"slot": "tra')
    with Run(tmp_path, VALUES) as run:
        run.drop_lines("train", 3)
    assert path.read_text() == lines[0] + lines[2]
    assert capfd.readouterr().err == f"{path}: 1 of 4 lines were damaged, and are left out\n"


@pytest.mark.parametrize(
    "change", [lambda t: t.replace("0.5", "0.6"), lambda t: t[:40], lambda t: "[]", lambda t: "[" * 10**5]
)
def test_a_damaged_result_is_refused(change, tmp_path):
    path = finished(tmp_path) / "result.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(CheckpointError, match=r"result.json is damaged.*: train again with --fresh"):
        read_result(tmp_path)
    with pytest.raises(CheckpointError, match=r"result.json is damaged"):
        Run(tmp_path, VALUES)


def test_a_result_without_its_arrays_is_refused(tmp_path):
    finished(tmp_path)
    (tmp_path / "learned.safetensors").unlink()
    with pytest.raises(CheckpointError, match="must hold learned.safetensors, which its run wrote"):
        read_result(tmp_path)


@pytest.mark.parametrize("text", ["recipe: [", "recipe: toy\nseed: 1 # mine\n", "\0\1", "- 1\n"])
def test_a_damaged_config_is_refused(text, tmp_path):
    trained(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config.yaml is damaged.*: start over with --fresh"):
        Run(tmp_path, VALUES)
    assert is_run(tmp_path)


@pytest.mark.parametrize("where", [0.05, 0.5, 0.97])
def test_damaged_arrays_are_not_classified_with(where, tmp_path):
    path = finished(tmp_path) / "learned.safetensors"
    flip(path, int(where * path.stat().st_size))
    with pytest.raises(CheckpointError, match="learned.safetensors is damaged"):
        _finished.Classifier.load(tmp_path)


@pytest.mark.parametrize("key, value", [("config", "[]"), ("classnames", "7"), ("classnames", "[7]"), ("width", '"3"'),
                                        ("width", "0"), ("width", "{"), ("config", None)])  # fmt: skip
def test_what_arrays_say_of_themselves_is_checked(key, value, tmp_path):
    from jclip.readers import safetensors

    finished(tmp_path)
    said = {"config": '{"recipe": "zero_shot"}', "classnames": '["a", "b"]', "width": "3", key: value}
    metadata = {k: v for k, v in said.items() if v is not None}
    safetensors.write(tmp_path / "learned.safetensors", {"w": np.ones(3, np.float32)}, metadata)
    with pytest.raises(CheckpointError, match="must say config, class names and width"):
        _finished.Classifier.load(tmp_path)


# Outputs that are inputs


def test_an_output_that_is_read_is_refused(tmp_path):
    photo, link, hard = tmp_path / "a.jpg", tmp_path / "link.jpg", tmp_path / "hard.jpg"
    photo.write_bytes(b"x")
    link.symlink_to(photo)
    hard.hardlink_to(photo)
    for output in (photo, link, hard, tmp_path / "." / "a.jpg"):
        with pytest.raises(ConfigError, match="would be overwritten"):
            refuse_overwriting([None, output], [tmp_path / "absent.jpg", photo])
    with pytest.raises(ConfigError, match="got a folder"):
        refuse_overwriting([tmp_path], [])
    refuse_overwriting([tmp_path / "new.jpg", None], [photo])


@pytest.mark.parametrize("command", ["zero-shot", "predict"])
def test_a_sheet_over_a_photo_is_refused_before_the_work(command, photo_folder, small_models, tmp_path, capsys):
    photo = tmp_path / "a.png"
    photo.write_bytes(next((photo_folder / "test" / "red_thing").iterdir()).read_bytes())
    before = photo.read_bytes()
    if command == "predict":
        run = tmp_path / "run"
        with Run(run, {"recipe": "zero_shot"}) as opened:
            settings = {"recipe": "zero_shot", "model": str(small_models["vit"]), "classes": "a,b"}
            opened.values = settings
            opened.save_learned({"text": np.ones((2, 3), np.float32)}, classnames=["a", "b"], width=3)
            opened.finish({})
        first = ["predict", str(run), str(photo), "--out", str(tmp_path / "r.csv")]
        assert main(["predict", str(run), str(photo), "--out", str(run / "result.json")]) == 2
        assert "would be overwritten" in capsys.readouterr().err
    else:
        first = ["zero-shot", str(photo), "--model", str(small_models["vit"]), "--classes", "a,b"]
    assert main([*first, "--sheet", str(photo)]) == 2
    assert "a.png is read, and would be overwritten" in capsys.readouterr().err and photo.read_bytes() == before


def test_a_sweep_over_its_own_list_is_refused(tmp_path, capsys):
    features = tmp_path / "sweep.csv"
    features.write_bytes(b"x")
    command = ["sweep", "tip_adapter/smoke", f"data.features={features}", "--out", str(tmp_path)]
    assert main(command) == 2
    assert "sweep.csv is read, and would be overwritten" in capsys.readouterr().err and features.read_bytes() == b"x"


def test_eval_writes_into_no_other_run(tmp_path, capsys, monkeypatch):
    from jclip.commands import eval as commands

    finished(tmp_path / "a")
    finished(tmp_path / "b")
    from types import SimpleNamespace

    done = SimpleNamespace(folder=tmp_path / "a", module=None, config=None)
    monkeypatch.setattr(commands, "resolved", lambda *_: {"data": {"test": str(tmp_path / "eval.json")}})
    with pytest.raises(ConfigError, match="must not be the folder of another run"):
        commands.check_out(done, tmp_path / "b", ["eval.json"])
    commands.check_out(done, tmp_path / "a", ["eval.json"])
    (tmp_path / "eval.json").write_text("a list\n")
    with pytest.raises(ConfigError, match="eval.json is read"):
        commands.check_out(done, tmp_path, ["eval.json"])


def test_results_are_all_there_or_those_of_before(tmp_path, monkeypatch):
    """A full disk in the middle of an evaluation leaves the one before."""
    from jclip.report.evaluation import write_evaluation

    scores, labels, classes = np.eye(2, dtype=np.float32)[[0, 1]], np.array([0, 1]), [f"c{i}" for i in range(101)]
    write_evaluation(tmp_path, scores, labels, classes, ["a.jpg", "b.jpg"])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    inner = Path.write_bytes

    def full(path, data):
        if "predictions.csv" in path.name:
            raise OSError(28, "No space left on device")
        return inner(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as e:
        write_evaluation(tmp_path, scores, np.array([1, 1]), classes, ["a.jpg", "b.jpg"])
    assert e.value.filename == str(tmp_path / "predictions.csv")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    monkeypatch.undo()
    write_evaluation(tmp_path, scores, labels, classes, ["a/x.jpg", "b/x.jpg"])  # of which no result.txt can be made
    assert not (tmp_path / "result.txt").exists() and json.loads((tmp_path / "eval.json").read_text())["top1"] == 1.0


def test_a_full_disk_names_the_link_that_could_not_be_made(tmp_path, monkeypatch):
    from jclip.commands.train import point

    def full(self, target):
        raise OSError(28, "No space left on device", target)

    monkeypatch.setattr(Path, "symlink_to", full)
    with pytest.raises(OSError, match="No space left") as e:
        point(tmp_path / "latest", tmp_path / "run")
    assert e.value.filename == str(tmp_path / "latest")
