"""`log: tensorboard`: the event file says what metrics.jsonl does, also of a run that was killed; read back by its package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jclip.cli import main
from jclip.errors import ConfigError
from jclip.train.configs import build_config, log_of
from jclip.train.run import Run
from jclip.train.tensorboard_scalars import FILE, Scalars

SMOKE = Path(__file__).parent.parent.parent / "configs" / "clip_adapter" / "smoke.yaml"


def need_package() -> None:
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed: pip install '.[tensorboard]'")


def scalars_of(folder: Path) -> list[tuple[int, str, float]]:
    """As the package itself reads its records, check sums included."""
    from tensorboardX.event_file_writer import EventFileWriter  # noqa: F401 - the whole package loads
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    data, found, at = (folder / FILE).read_bytes(), [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        body = data[at + 12 : at + 12 + size]
        assert int.from_bytes(data[at + 8 : at + 12], "little") == masked_crc32c(data[at : at + 8])
        assert int.from_bytes(data[at + 12 + size : at + 16 + size], "little") == masked_crc32c(body)
        event = Event.FromString(body)
        assert event.wall_time > 0 and (at or event.file_version == "brain.Event:2")
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        at += 16 + size
    return found


def test_a_run_that_goes_on_says_each_epoch_once(tmp_path):
    need_package()
    with Run(tmp_path / "r", {"seed": 1}, log="tensorboard") as run:
        run.drop_lines("train", 0)
        for epoch in range(3):
            run.log(slot="train", epoch=epoch, step=10 * epoch, loss=1.5 - epoch, note="x")
    with Run(tmp_path / "r", {"seed": 1}, log="tensorboard") as run:
        run.drop_lines("train", 1)
        run.log(slot="train", epoch=1, step=10, loss=0.25)
    assert scalars_of(tmp_path / "r") == [(0, "train/loss", 1.5), (10, "train/loss", 0.25)]
    with Run(tmp_path / "r", {"seed": 1}, fresh=True) as run:
        assert not (run.folder / FILE).is_file(), "a fresh run removes it"
        run.log(loss=1.0)
        assert not (run.folder / FILE).is_file()


def test_any_recipe_logs_so_and_is_the_same_run(tmp_path):
    need_package()
    assert main(["train", str(SMOKE), "log=tensorboard", "--run", str(tmp_path / "r")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    message = [(step, tag) for step, tag, _ in scalars_of(tmp_path / "r") if tag.endswith("/loss")]
    assert message == [(line["step"], f"{line['slot']}/loss") for line in lines] and len(message) == 6
    assert "log" not in (tmp_path / "r" / "config.yaml").read_text()
    assert main(["train", str(SMOKE), "--run", str(tmp_path / "r")]) == 0


def test_what_is_wrong_is_said_before_the_work(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="log must be tensorboard or empty, got 'wandb'"):
        build_config({"recipe": "linear_probe", "log": "wandb"}, "x.yaml")
    assert log_of(str(SMOKE)) == "" and log_of(str(SMOKE), ["log=tensorboard"]) == "tensorboard"

    def absent(name: str):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("jclip.train.tensorboard_scalars.importlib.import_module", absent)
    with pytest.raises(ConfigError, match=r"log=tensorboard needs tensorboardX .*: pip install 'jclip\[tensorboard\]'"):
        Scalars(tmp_path / FILE)
