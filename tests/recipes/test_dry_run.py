"""`train --dry-run`: any recipe says what its training takes, and nothing is left of it."""

from __future__ import annotations

import dataclasses
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

from jclip.cli import main
from jclip.data.splits import read_photos
from jclip.machine import available, process_times, work_meter
from jclip.train import cost_estimate
from jclip.train.configs import read_config
from tests.conftest import use_cache

RECIPES = ["full", "contrastive", "coop", "linear_probe", "tip_adapter", "text_as_image", "curriculum", "zero_shot"]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(cost_estimate, "SECONDS", 0.1)
    monkeypatch.setattr(cost_estimate, "MOST", 3600)  # however busy this machine is


@pytest.mark.parametrize("recipe", RECIPES)
def test_any_recipe_says_what_it_takes_and_leaves_nothing(recipe, tmp_path, capsys, monkeypatch):
    use_cache(tmp_path / "cache", monkeypatch.setattr)
    run = tmp_path / "run"
    assert main(["train", f"{recipe}/smoke", "--run", str(run), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert not run.exists() and work_meter.running() is None
    assert "measured here for" in said and "by one process" in said and "memory: " in said and "bottleneck: " in said
    assert "in the run's folder" in said and said.endswith("repeat without --dry-run to do it\n")
    assert ("learns in one" in said) == (recipe in ("linear_probe", "tip_adapter", "zero_shot"))
    assert not process_times.size_of([tmp_path / "cache" / name for name in ("features", "classifiers", "galleries")])


def test_all_of_the_work_is_counted(photo_folder, small_models):
    """Of a training of 400 epochs a few steps are done: each step, and each photo that would be measured, counts."""
    given = [f"data.root={photo_folder}", f"model={small_models['resnet']}", "data.shots=6", "data.val_shots=3"]
    module, cfg, _ = read_config("full/smoke", [*given, "optim.batch=6", "optim.epochs=400", "every=4"])
    photos = read_photos(cfg.data)
    found = cost_estimate.estimated(module, cfg, 1.0)
    accounts = {one.name: one for one in found.accounts}
    training = accounts["training"]
    assert training.total == 400 * -(-len(photos.train) // 6) and training.measured < training.total
    assert training.skipped[0] > training.done[0] and found.extrapolated and not found.left_out
    assert accounts[work_meter.MEASURING].skipped[0] > 0 and found.exchange > 0 and found.repeated[0] > 0
    assert found.run_bytes > Path(small_models["resnet"]).stat().st_size and found.state_bytes > 2 * found.run_bytes
    quiet = dataclasses.replace(found, exchange=0.0, repeated=(0.0, 0.0), cores=4)  # whatever disturbed those
    assert quiet.by_ranks(2) < quiet.seconds and quiet.by_ranks(4, machines=True) < quiet.by_ranks(2, machines=True)


def test_processes_and_what_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(available, "memory", lambda: 6e7)
    assert main(["train", "coop/smoke", "--dry-run", "--ranks", "3"]) == 0
    said = capsys.readouterr().out.splitlines()
    start = next(place for place, line in enumerate(said) if line.startswith("processes"))
    assert [line.split()[0] for line in said[start + 1 : start + 4]] == ["1", "2", "3"]
    assert said[-2].startswith("won't fit: ") and "of memory" in said[-2]
    assert main(["train", "coop/smoke", "--ranks", "3"]) == 2
    assert "--ranks is of --dry-run" in capsys.readouterr().err
    assert main(["train", "full/smoke", "data.root=/nowhere", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "/nowhere" in error and error.count("\n") == 1


def test_what_takes_too_long_is_given_up(monkeypatch):
    """A step that does not end is stopped; all that was measured is a lower bound."""
    module, cfg, _ = read_config("linear_probe/smoke")
    monkeypatch.setattr(cost_estimate, "MOST", 0.2)
    monkeypatch.setattr(module, "regressed", lambda *_: time.sleep(30))
    found = cost_estimate.estimated(module, cfg, 0.01)
    assert found.left_out and "all takes at least this" in "\n".join(found.lines())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_it_leaves_nothing(number, tmp_path, monkeypatch):
    module, cfg, _ = read_config("linear_probe/smoke")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "run", lambda *_: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        cost_estimate.estimated(module, cfg, 0.01)
    assert ended.value.code == 128 + number and not [*tmp_path.iterdir()] and signal.getsignal(number) == before
