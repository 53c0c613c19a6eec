"""Contrastive training end to end: from scenes and from photos, locked, resumed, and what stops it at once."""

from __future__ import annotations

import json
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jclip.cli import main
from jclip.readers import read_weights
from tests.tolerances import tolerance

ROOT = Path(__file__).parent.parent.parent
SMOKE = ROOT / "configs" / "contrastive" / "smoke.yaml"
QUICK = ["zero_shot=[]", "data.scenes=24", "data.val_scenes=6", "optim.batch=8", "optim.epochs=3"]


def train(folder: Path, *settings: str, config: Path = SMOKE) -> int:
    return main(["train", str(config), "--run", str(folder), *settings])


def model_of(folder: Path) -> dict[str, np.ndarray]:
    return {k: np.array(t.read()) for k, t in read_weights(folder / "model.safetensors").items()}


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def captioned(photo_folder, tmp_path) -> Path:
    """A table of the toy photos with captions that repeat."""
    photos = sorted(photo_folder.glob("train/*/*.png"))
    rows = [f"{p}\ta photo of a {p.parent.name.replace('_', ' ')}" for p in photos]
    table = tmp_path / "pairs.tsv"
    table.write_text("\n".join(["filepath\ttitle", *rows]) + "\n", encoding="utf-8")
    return table


@pytest.fixture
def from_weights(small_models, captioned) -> list[str]:
    """Settings that start from the small ResNet and learn from the captioned photos, nothing measured on the way."""
    model = f"model={small_models['resnet']}"
    return [model, "scratch=false", f"data.train={captioned}", "data.val=", "zero_shot=[]"]


def test_it_learns_and_writes_a_model_that_every_command_takes(tmp_path, capsys):
    """Three scenes of one colour apart are classified right after a few seconds."""
    assert (
        train(tmp_path / "r", *QUICK, "data.scenes=64", "data.easy_epochs=9", "optim.epochs=6", "positives=same") == 0
    )
    losses = [line["loss"] for line in lines_of(tmp_path / "r")]
    assert losses[-1] < losses[0] - 0.3
    arrays = model_of(tmp_path / "r")
    assert arrays["visual.conv1.weight"].dtype == np.float32 and arrays["token_embedding.weight"].shape == (2014, 96)
    Image.effect_noise((70, 64), 40).convert("RGB").save(tmp_path / "photo.png")
    command = ["zero-shot", str(tmp_path / "photo.png"), "--model", str(tmp_path / "r" / "model.safetensors")]
    assert main([*command, "--classes", "a red circle,a blue star", "--templates", "openai80"]) == 0
    assert "photo.png" in capsys.readouterr().out


def test_half_precision_weights_and_the_best_epoch(tmp_path):
    settings = [*QUICK, "half=true", "selection=val", "zero_shot=[shapes:unseen_pairs]", "select=unseen_pairs_top1"]
    assert train(tmp_path / "r", *settings) == 0
    assert {a.dtype for a in model_of(tmp_path / "r").values()} == {np.dtype(np.float16)}
    metrics = json.loads((tmp_path / "r" / "result.json").read_text())["metrics"]
    measured = [line["unseen_pairs_top1"] for line in lines_of(tmp_path / "r")]
    assert metrics["best_epoch_unseen_pairs_top1"] == round(max(measured), 6) == metrics["unseen_pairs_top1"]
    assert metrics["best_epoch"] == measured.index(max(measured)) + 1


def test_locked_towers_do_not_move_and_their_photos_are_read_once(small_models, from_weights, tmp_path, monkeypatch):
    from jclip.data import augment

    opened = []
    real = augment.open_photo
    monkeypatch.setattr(augment, "open_photo", lambda path, *draft: opened.append(path) or real(path, *draft))
    settings = [*from_weights, "lock.image=true", "optim.batch=10", "optim.epochs=3", "positives=same"]
    assert train(tmp_path / "r", *settings) == 0
    assert len(opened) == 30
    before = {k: np.array(t.read()) for k, t in read_weights(small_models["resnet"]).items()}
    after = model_of(tmp_path / "r")
    moved = {k for k in before if not np.array_equal(before[k], after[k])}
    assert moved and not [k for k in moved if k.startswith("visual.")] and "text_projection" in moved


def test_an_unlocked_top_moves_with_its_statistics_and_nothing_below(small_models, from_weights, tmp_path):
    settings = [
        *from_weights,
        "lock.image=true",
        "lock.image_groups=2",
        "lock.text=true",
        "optim.batch=10",
        "optim.epochs=1",
    ]
    assert train(tmp_path / "r", *settings, "augment=wise_ft", "clip=1.0", "accumulate=3") == 0
    before = {k: np.array(t.read()) for k, t in read_weights(small_models["resnet"]).items()}
    moved = {k for k, v in model_of(tmp_path / "r").items() if not np.array_equal(before[k], v)}
    assert {
        "visual.layer4.0.bn1.running_mean",
        "visual.layer4.0.conv1.weight",
        "visual.attnpool.q_proj.weight",
    } <= moved
    assert not [k for k in moved if not k.startswith(("visual.layer4.", "visual.attnpool.", "logit_scale"))]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optim.batch=25"], "a step of 25 pairs .* is larger than the data set of 24"),
        (["accumulate=4"], "a step of 32 pairs .* is larger than the data set of 24"),
        (["data.train="], "no training pairs named: set data.train"),
        (["data.val=", "selection=val"], "choosing the best epoch needs data.val or zero_shot"),
        (["accumulate=0"], "accumulate and every must be at least 1"),
        (["model=shapes-tiny-xx"], "model 'shapes-tiny-xx', did you mean 'shapes-tiny-"),
        (["lock.image_groups=2"], "need a locked tower"),
        (["data.train=no.csv"], r"can't read .*no.csv: No such file"),
        (["zero_shot=[shapes:nowhere]"], "set of rendered photos 'nowhere'"),
    ],
)
def test_what_can_not_work_is_reported_in_one_line(settings, message, tmp_path, capsys):
    import re

    quick = [one for one in QUICK if "=no.csv" not in str(settings) or "data.scenes" not in one]  # which a file has not
    assert train(tmp_path / "r", *quick, *settings) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and re.search(message, lines[0]), lines


def test_a_loss_that_is_no_number_is_reported_and_the_state_is_kept(tmp_path, capsys, monkeypatch):
    from jclip.train import on_captions

    real = on_captions.caption_gradients

    def broken(*step):
        loss, gradients = real(*step)
        return (loss * float("nan") if (tmp_path / "r" / "train.safetensors").is_file() else loss), gradients

    monkeypatch.setattr("jclip.train.on_captions.caption_gradients", broken)
    monkeypatch.setattr("jclip.train.loop.SAVE_SECONDS", 0.0)
    assert train(tmp_path / "r", *QUICK) != 0
    assert "the loss became NaN or infinite between steps 3 and 5 of epoch 1" in capsys.readouterr().err
    monkeypatch.undo()
    assert train(tmp_path / "r", *QUICK) == 0 and [line["epoch"] for line in lines_of(tmp_path / "r")] == [0, 1, 2]


def test_a_long_warm_up_is_warned_of(tmp_path, capsys):
    assert train(tmp_path / "r", *QUICK, "optim.epochs=1", "optim.warmup=2") == 0
    assert "the warm-up takes 2 of 3 steps, more than a fifth: lower optim.warmup?" in capsys.readouterr().err


@contextmanager
def files_up_to(size: int):
    """Files of this process may not grow beyond it, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_scale_that_training_starts_from():
    """The setting's; SigLIP's for its loss; else the network's."""
    from finetune.contrastive import start_model
    from jclip.train.configs import read_config

    for settings, wanted in (
        (["scale=30"], 30),
        (["loss=sigmoid"], 10),
        (["loss=sigmoid", "scale=7"], 7),
        ([], 1 / 0.07),
    ):
        model, _ = start_model(read_config(str(SMOKE), settings)[1], None)
        assert np.exp(model.logit_scale.item()) == pytest.approx(wanted, rel=tolerance("rounding"))


def test_a_full_disk_is_reported_and_nothing_is_lost(tmp_path, capsys):
    """The first checkpoint does not fit into 8 MB; with room it goes on."""
    with files_up_to(8_000_000):
        assert train(tmp_path / "r", *QUICK) == 2
    said = capsys.readouterr().err
    got = [line for line in said.splitlines() if "train.next.safetensors" in line]
    assert len(got) == 1 and "File too large" in got[0] and "Traceback" not in said, said
    assert not list((tmp_path / "r").glob("*.safetensors")) and not list((tmp_path / "r").glob(".*.part"))
    assert train(tmp_path / "r", *QUICK) == 0
    assert [line["epoch"] for line in lines_of(tmp_path / "r")] == [0, 1, 2]
