"""Several processes of one run: one writes its folder, the others read it and leave no trace. Without Jittor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jclip.errors import CheckpointError, ConfigError
from jclip.train.run import Run, RunBusy

VALUES = {"recipe": "toy", "seed": 3, "optim": {"lr": 0.1}}
POSITION = {"epoch": 2, "step": 14, "last": {"loss": 0.5}, "best": {}, "best_epoch": -1}


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """What a folder holds: of each file its bytes and when it was written."""
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.iterdir())}


def write_everything(run: Run) -> dict:
    """All that a recipe does with its run."""
    run.note(weights_sha256="abc")
    run.drop_lines("train", 0)
    run.log(slot="train", epoch=0, loss=1.5)
    run.expect(["eval.json"])
    run.file("model.safetensors").write_bytes(b"weights")
    run.slot().save({"w": np.ones(5, np.float32)}, POSITION)
    run.save_learned({"w": np.ones(5, np.float32)}, classnames=["a", "b"], width=5)
    run.hand_over("scores")
    run.slot("head").clear()
    return run.finish({"top1": 0.25}, lambda result: (run.folder / "eval.json").write_text("{}"))


def test_a_reader_of_an_absent_folder_makes_none(tmp_path):
    with Run(tmp_path / "run", VALUES, writer=False) as run:
        assert run.result is None and run.seed == 3 and run.slot().load() is None
        assert write_everything(run)["metrics"] == {"top1": 0.25} and run.handed_over == "scores"
        own = run.file("model.safetensors")
        assert own.read_bytes() == b"weights" and tmp_path not in own.parents
    assert not any(tmp_path.iterdir()) and not own.parent.exists()


def test_readers_work_beside_the_writer_and_leave_no_trace(tmp_path, capsys):
    with Run(tmp_path, VALUES) as writer:
        writer.log(slot="train", epoch=0, loss=2.0)
        writer.slot().save({"w": np.arange(7, dtype=np.float32)}, POSITION)
        before = contents(tmp_path)
        with pytest.raises(RunBusy):
            Run(tmp_path, VALUES)
        with Run(tmp_path, VALUES, writer=False) as one, Run(tmp_path, VALUES, writer=False, fresh=True) as other:
            for run in (one, other):
                assert run.quiet and not run.writer
                arrays, position = run.slot().load()
                assert position == POSITION and np.array_equal(arrays["w"].read(), np.arange(7))
                write_everything(run)
            assert one.file("model.safetensors") != other.file("model.safetensors")
            assert one.inner("0-member") == tmp_path / "0-member"
        assert contents(tmp_path) == before
        whole = writer.finish({"top1": 0.25})
    with Run(tmp_path, VALUES, writer=False) as run:
        assert run.result["metrics"] == whole["metrics"] and json.loads((tmp_path / "result.json").read_text())
    assert capsys.readouterr().err == ""


def test_a_reader_refuses_what_the_writer_would(tmp_path):
    with Run(tmp_path / "run", VALUES):
        pass
    with pytest.raises(ConfigError, match="holds a run of another config \\(differs in optim.lr\\)"):
        Run(tmp_path / "run", {**VALUES, "optim": {"lr": 0.2}}, writer=False)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match="must be empty or hold a run"):
        Run(tmp_path / "foreign", VALUES, writer=False)
    (tmp_path / "run" / "train.safetensors").write_bytes(b"damaged")
    with Run(tmp_path / "run", VALUES, writer=False) as run, pytest.raises(CheckpointError):
        run.slot().load()


def test_a_writer_writes_all_of_it(tmp_path):
    with Run(tmp_path, VALUES) as run:
        write_everything(run)
    there = {p.name for p in tmp_path.glob("[!.]*")}
    assert there == {
        "config.yaml",
        "eval.json",
        "learned.safetensors",
        "metrics.jsonl",
        "model.safetensors",
        "result.json",
    }
