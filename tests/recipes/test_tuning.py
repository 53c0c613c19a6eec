"""Contrastive tuning end to end: what is trained, where it stops, what it ends with, several captions a photo."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jclip.cli import main
from jclip.readers import read_weights
from jclip.report.retriever import Retriever
from tests.killed import killed_at

ROOT = Path(__file__).parent.parent.parent
SMOKE = ROOT / "configs" / "contrastive" / "smoke.yaml"
QUICK = ["zero_shot=[]", "data.scenes=24", "data.val_scenes=6", "optim.batch=8", "optim.epochs=3"]


def train(folder: Path, *settings: str) -> int:
    return main(["train", str(SMOKE), "--run", str(folder), *settings])


def metrics_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "result.json").read_text())["metrics"]


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def model_of(file: Path) -> dict[str, np.ndarray]:
    return {k: np.array(t.read()) for k, t in read_weights(file).items()}


def moved(before: Path, after: Path) -> set[str]:
    old, new = model_of(before), model_of(after)
    return {k for k in old if not np.array_equal(old[k], new[k])}


@pytest.fixture
def captioned(photo_folder, tmp_path) -> Path:
    """A list of the toy photos with two captions each."""
    photos = sorted(photo_folder.glob("train/*/*.png"))
    listed = [
        {"image": str(p), "captions": [f"a {p.parent.name} photo", f"{p.parent.name}, number {i}"]}
        for i, p in enumerate(photos)
    ]
    file = tmp_path / "list.json"
    file.write_text(json.dumps(listed, ensure_ascii=False), encoding="utf-8")
    return file


@pytest.fixture
def tuned(small_models, captioned) -> list[str]:
    """Settings that tune the small ViT on the captioned photos."""
    settings = [f"model={small_models['vit']}", "scratch=false", f"data.train={captioned}", f"data.val={captioned}"]
    return [*settings, "zero_shot=[]", "optim.batch=10", "optim.epochs=2", "optim.lr=1e-3"]


def test_several_captions_a_photo_are_measured_by_groups(tuned, tmp_path, monkeypatch, capsys):
    """Each photo is decoded once, the counts are printed, and the pairs' figures are apart from the groups'."""
    from jclip.data import augment

    opened = []
    real = augment.open_photo
    monkeypatch.setattr(augment, "open_photo", lambda path, *draft: opened.append(path) or real(path, *draft))
    assert train(tmp_path / "r", *tuned, "positives=both", "every=2") == 0
    assert len(opened) == 2 * 60 + 30
    assert main(["eval", str(tmp_path / "r"), "--out", str(tmp_path / "out")]) == 0
    written = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert (written["images"], written["texts"], written["count"]) == (30, 60, 60)
    assert written["text_retrieval_recall@5"] > written["i2t_r5"] and "by groups" in capsys.readouterr().out
    rounded = {k: round(v, 6) for k, v in written.items() if k in metrics_of(tmp_path / "r")}
    assert rounded == {k: metrics_of(tmp_path / "r")[k] for k in rounded} and "image_retrieval_map" in rounded
    assert len((tmp_path / "out" / "ranks.csv").read_text(encoding="utf-8").splitlines()) == 61


def test_an_early_stop_takes_the_first_steps_of_the_whole_schedule(tmp_path):
    assert train(tmp_path / "whole", *QUICK) == 0
    assert train(tmp_path / "stopped", *QUICK, "optim.stop=2") == 0
    whole, stopped = lines_of(tmp_path / "whole"), lines_of(tmp_path / "stopped")
    assert len(stopped) == 2 and [line["lr"] for line in stopped] == [line["lr"] for line in whole[:2]]
    assert stopped[0] == whole[0] and stopped[1]["loss"] == whole[1]["loss"]


def test_the_top_alone_is_trained(small_models, tuned, tmp_path):
    assert train(tmp_path / "r", *tuned, "update=top", "top=2", "layer_decay=0.5") == 0
    tops = ("visual.proj", "visual.ln_post.", "visual.transformer.resblocks.1.", "text_projection", "ln_final.",
            "transformer.resblocks.1.", "logit_scale")  # fmt: skip
    found = moved(small_models["vit"], tmp_path / "r" / "model.safetensors")
    assert found and not [k for k in found if not k.startswith(tops)]
    assert {"visual.proj", "text_projection"} <= found


def test_low_rank_updates_are_merged(small_models, tuned, tmp_path):
    """And the merged file finds what the run measured with the updates beside the weights."""
    settings = ["update=lora", "lora.rank=3", "lora.dropout=0.2", "recompute=true", "selection=val", "checkpoints=1"]
    assert train(tmp_path / "r", *tuned, *settings) == 0
    found = moved(small_models["vit"], tmp_path / "r" / "model.safetensors")
    assert found and not [k for k in found if not k.endswith(("attn.in_proj_weight", "logit_scale"))]
    run = Retriever.load(tmp_path / "r")
    got, measured = run.metrics, run.measure(tmp_path / "out")
    assert round(measured["i2t_r1"], 6) == got["i2t_r1"] and round(measured["t2i_mean_rank"], 6) == got["t2i_mean_rank"]
    best = int(got["best_epoch"])
    same = model_of(tmp_path / "r" / f"epoch_{best:03d}.safetensors")
    for k, v in model_of(tmp_path / "r" / "model.safetensors").items():
        assert np.array_equal(v, same[k]), k


def test_the_end_between_both_weights_is_chosen_on_validation(small_models, tuned, tmp_path, close):
    assert train(tmp_path / "r", *tuned, "mix=4", "optim.lr=3e-3") == 0
    got = metrics_of(tmp_path / "r")
    curve = {a: got[f"i2t_r1_at_{a:.2f}"] for a in (0, 0.25, 0.5, 0.75, 1)}
    assert got["alpha"] == max(curve, key=curve.get) and got["i2t_r1"] == max(curve.values())
    assert train(tmp_path / "plain", *tuned, "optim.lr=3e-3") == 0
    before, after, mixed = (
        model_of(p) for p in (small_models["vit"], *(tmp_path / n / "model.safetensors" for n in ("plain", "r")))
    )
    for k, v in mixed.items():
        wanted = (1 - got["alpha"]) * before[k] + got["alpha"] * after[k]
        close(v, wanted, "rounding", k)
    assert curve[1] == metrics_of(tmp_path / "plain")["i2t_r1"]


def test_siglips_loss_learns_its_bias(tmp_path):
    settings = ["loss=sigmoid", "positives=caption", "bias=-6", "optim.lr=3e-3"]
    assert train(tmp_path / "r", *QUICK, *settings) == 0
    losses = [line["loss"] for line in lines_of(tmp_path / "r")]
    assert losses[-1] < losses[0] and metrics_of(tmp_path / "r")["logit_bias"] != -6
    first = model_of(tmp_path / "r" / "model.safetensors")["logit_scale"]
    assert 5 < np.exp(first) < 20, "it starts at 10"


def test_a_teacher_and_dropped_patches(small_models, tuned, tmp_path, capsys):
    settings = [f"teacher={small_models['vit']}", "distill=0.5", "patch_dropout=0.5", "augment=wise_ft"]
    assert train(tmp_path / "r", *tuned, *settings) == 0
    assert re.search(r"memory of a step: about \d+ MiB \(process 90, weights \d+, ", capsys.readouterr().err)
    assert train(tmp_path / "s", *tuned, f"teacher={small_models['resnet']}") == 2
    assert "must see photos as the model does: its size is" in capsys.readouterr().err


def test_checkpoints_every_other_epoch_and_the_last_ones_kept(tmp_path):
    """Killed and run again as well: the same files, byte for byte."""
    settings = [*QUICK, "optim.epochs=6", "data.scenes=40", "checkpoints=2", "keep=2"]
    command = [sys.executable, "-m", "finetune", "train", str(SMOKE), *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def finish(folder):
        place = ["--run", str(tmp_path / folder)]
        return subprocess.run([*command, *place], cwd=ROOT, env=environment, capture_output=True, text=True).stderr

    errors = finish("whole")
    assert (tmp_path / "whole" / "result.json").is_file(), errors
    names = sorted(p.name for p in (tmp_path / "whole").glob("epoch_*"))
    assert names == ["epoch_004.safetensors", "epoch_006.safetensors"]
    last = (tmp_path / "whole" / "epoch_006.safetensors").read_bytes()
    assert last == (tmp_path / "whole" / "model.safetensors").read_bytes()
    killed_at("*/train.safetensors", *command[3:], "--run", str(tmp_path / "broken"))
    assert not (tmp_path / "broken" / "result.json").is_file() and len(lines_of(tmp_path / "broken")) == 1
    errors = finish("broken")
    for name in [*names, "model.safetensors", "metrics.jsonl"]:
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (name, errors)
    assert sorted(p.name for p in (tmp_path / "broken").glob("epoch_*")) == names


def test_padded_squares_are_what_the_model_says_it_sees(tuned, tmp_path):
    from jclip.features.source import ModelSource

    assert train(tmp_path / "r", *tuned, "preprocess.resize=square-pad", "augment=wise_ft") == 0
    assert ModelSource(tmp_path / "r" / "model.safetensors").preprocess.resize == "square-pad"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["patch_dropout=1"], r"patch_dropout must be in \[0, 0.99\], got 1"),
        (["patch_dropout=0.5"], "patch_dropout must be 0 for an image tower other than a plain ViT"),
        (["layer_decay=0"], r"layer_decay must be in \[0.001, 1\], got 0"),
        (["update=top", "lock.image=true"], "lock must be left out with update=top"),
        (["update=top", "top=99"], "lock.image_groups must be at most"),
        (["update=lora"], "low-rank updates are of a ViT's attention: set lora.towers=text"),
        (["mix=4"], "mix and preprocess.size must be left out with scratch"),
        (["scale=101"], r"scale must be in \[0, 100\], got 101"),
        (["optim.stop=4"], r"optim.stop must be in \[0, 3\], optim.epochs, got 4"),
        (["teacher=nothing"], "nothing"),
        (["log=wandb"], "log must be tensorboard or empty, got 'wandb'"),
        (["data.val=", "mix=2", "scratch=false"], r"choosing α \(mix\) needs data.val or zero_shot"),
    ],
)
def test_what_can_not_work_is_reported_in_one_line(settings, message, tmp_path, capsys):
    assert train(tmp_path / "r", *QUICK, *settings) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and re.search(message, lines[0]), lines
