"""Full fine-tuning: its losses against torch, what moves and what doesn't, and the model that comes out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from jclip.cli import main
from jclip.readers import read_weights

ROOT = Path(__file__).parent.parent.parent
SETTINGS = ["data.shots=6", "data.val_shots=3", "optim.batch=6", "optim.epochs=3", "optim.lr=1e-4"]


@pytest.fixture
def config(photo_folder, small_models, tmp_path) -> Path:
    """The recipe on the toy photos with a random ResNet."""
    file = tmp_path / "full.yaml"
    file.write_text(f"recipe: full\nmodel: {small_models['resnet']}\ndata:\n  root: {photo_folder}\n", encoding="utf-8")
    return file


def train(config: Path, folder: Path, *settings: str) -> int:
    return main(["train", str(config), "--run", str(folder), *SETTINGS, *settings])


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    return {k: np.array(t.read()) for k, t in read_weights(path).items()}


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())["metrics"]


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("loss", ["contrastive", "cross_entropy"])
def test_from_photos_to_predictions(loss, config, tmp_path, photo_folder, capsys, small_models):
    alike = ["positives=same"] if loss != "cross_entropy" else []  # which has no positives
    settings = [f"loss={loss}", *alike, "optim.epochs=6", "optim.lr=1e-3"]
    assert train(config, tmp_path / "r", *settings) == 0
    metrics = metrics_of(tmp_path / "r")
    losses = [line["loss"] for line in lines_of(tmp_path / "r")]
    assert losses[-1] < losses[0] and metrics["test_count"] == 18 and metrics["val_count"] == 9
    assert {"zero_shot_test_top1", "test_top1", "test_top1_last_epoch", "best_epoch"} <= set(metrics)
    assert main(["predict", str(tmp_path / "r"), str(photo_folder / "test"), "--out", str(tmp_path / "o.csv")]) == 0
    assert main(["predict", str(tmp_path / "r"), "--out", str(tmp_path / "o.txt")]) == 0
    assert f"top-1 {metrics['test_top1']:.4f} of these photos" in capsys.readouterr().out
    assert main(["eval", str(tmp_path / "r")]) == 0
    assert f"{metrics['test_top1']:.4f}" in capsys.readouterr().out
    moved = {k for k, v in arrays_of(tmp_path / "r" / "model.safetensors").items()
             if not np.array_equal(v, arrays_of(small_models["resnet"])[k])}  # fmt: skip
    assert "visual.conv1.weight" in moved and "text_projection" in moved
    assert not [k for k in moved if "running_" in k], "statistics stay unless asked for"


def test_statistics_move_when_asked_for_and_locked_towers_stay(config, tmp_path, small_models):
    settings = ["statistics=true", "lock.text=true", "loss=cross_entropy", "augment=none", "templates=openai7"]
    assert train(config, tmp_path / "r", *settings) == 0
    before = arrays_of(small_models["resnet"])
    moved = {k for k, v in arrays_of(tmp_path / "r" / "model.safetensors").items() if not np.array_equal(v, before[k])}
    assert "visual.bn1.running_mean" in moved
    assert not [k for k in moved if not k.startswith("visual.") and k != "logit_scale"]


def test_the_epoch_is_chosen_on_validation_and_both_are_reported(config, tmp_path):
    assert train(config, tmp_path / "r", "optim.lr=3e-3", "optim.epochs=5") == 0
    metrics, lines = metrics_of(tmp_path / "r"), lines_of(tmp_path / "r")
    best = max(range(5), key=lambda i: (lines[i]["top1"], -i))
    assert metrics["best_epoch"] == best + 1 and metrics["val_top1"] == round(lines[best]["top1"], 6)
    assert train(config, tmp_path / "last", "optim.lr=3e-3", "optim.epochs=5", "selection=last") == 0
    last = metrics_of(tmp_path / "last")
    assert last["val_top1"] == round(lines[4]["top1"], 6) and last["test_top1"] == last["test_top1_last_epoch"]
    assert metrics["test_top1_last_epoch"] == last["test_top1"]


@pytest.mark.parametrize("loss", ["contrastive", "cross_entropy"])
@pytest.mark.parametrize(("kind", "accumulate"), [("vit", 1), ("resnet", 1), ("vit", 4)])
def test_steps_equal_torch(kind, accumulate, loss, small_models, close, monkeypatch):
    """Five steps of the recipe's own step on given pixels, whole or in parts: losses and the weights they lead to."""
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    from finetune.full import Config, training_step
    from jclip.config import DataConfig, OptimConfig
    from jclip.functional.losses import positive_targets
    from jclip.model.clip import build
    from jclip.model.trainable import no_weight_decay, trainable
    from jclip.train.optim import optimiser
    from jclip.weights.checkpoint import open_checkpoint
    from tests.parity import torch_clip
    from tests.trajectories import in_both_precisions, without_key_bias

    F = torch.nn.functional
    rng = np.random.default_rng(3)
    checkpoint = open_checkpoint(small_models[kind])
    model = build(checkpoint)
    prompts = [["a cat.", "one large cat."], ["a dog.", "some dog."], ["a diagram of a thing.", "x"], ["y", "z"]]
    settings = OptimConfig(lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=1e-3, schedule="constant")
    parts = {"loss": loss, "positives": "same", "accumulate": accumulate}
    cfg = Config(DataConfig(), str(small_models[kind]), optim=settings, **parts)
    monkeypatch.setattr("jclip.train.on_photos.TEXTS_AT_ONCE", 3 if accumulate > 1 else 256)
    optim = optimiser(settings, trainable(model), no_weight_decay)
    step = training_step(cfg, model, optim, prompts, 5)
    given = [
        (rng.standard_normal((6, 3, *model.config.vision.image_size), dtype=np.float32), rng.integers(0, 4, 6))
        for _ in range(5)
    ]
    decays = {k: 0.0 if no_weight_decay(k, v) else 1e-3 for k, v in optim.params.items()}

    def in_torch():
        p = torch_clip.parameters({k: v.astype(np.float64) for k, v in checkpoint.arrays()}, requires_grad=True)
        groups, losses = [{"params": [p[k]], "weight_decay": decay} for k, decay in decays.items()], []
        reference = torch.optim.AdamW(groups, 1e-4, (0.9, 0.98), 1e-6)
        for number, (pixels, labels) in enumerate(given):
            template = int(np.random.default_rng((cfg.seed, number)).integers(2**31)) % 2
            classes = labels if loss == "contrastive" else range(4)
            tokens = torch.tensor(model.tokenize([prompts[c][template] for c in classes])).long()
            images = F.normalize(torch_clip.encode_image(p, model.config, torch.tensor(pixels).double()), dim=-1)
            texts = F.normalize(torch_clip.encode_text(p, model.config, tokens), dim=-1)
            scores = p["logit_scale"].exp() * images @ texts.T
            if loss == "contrastive":
                same = torch.tensor(positive_targets(labels)).to(scores.dtype)
                wanted = (F.cross_entropy(scores, same) + F.cross_entropy(scores.T, same)) / 2
            else:
                wanted = F.cross_entropy(scores, torch.tensor(labels))
            reference.zero_grad()
            wanted.backward()
            reference.step()
            with torch.no_grad():
                p["logit_scale"].clamp_(0, np.log(100.0))
            losses.append(wanted.item())
        return {k: without_key_bias(k, p[k].detach().numpy()) for k in decays} | {"losses": np.array(losses)}

    losses = [step(batch, number).item() for number, batch in enumerate(given)]
    wanted, drift = in_both_precisions(in_torch)
    label = f"full, {loss}: {{}} 5 steps"
    close(losses, wanted["losses"], "trajectory_loss", label.format("losses of"), drift=drift["losses"])
    for k, v in optim.params.items():
        got = without_key_bias(k, v.numpy()).reshape(wanted[k].shape)
        close(got, wanted[k], "trajectory", label.format("weights after"), drift=drift[k])
    model.logit_scale.assign(np.full(model.logit_scale.shape, 5, np.float32))
    step(given[0], 4)
    close(model.logit_scale.item(), np.log(100), "rounding")


def test_a_locked_text_tower_is_run_once(small_models, monkeypatch, close):
    from finetune.full import Config, prompt_encoder
    from jclip.config import DataConfig
    from jclip.features.source import ModelSource
    from jclip.model.parameter_groups import Lock

    model = ModelSource(small_models["vit"]).model
    prompts = [["a cat", "two cats", "three"], ["a dog"]]
    plain = prompt_encoder(Config(DataConfig(), "x"), model, prompts, model.state_dict())
    locked = prompt_encoder(Config(DataConfig(), "x", lock=Lock(text=True)), model, prompts, {})
    wanted = {n: plain(np.array([1, 0, 0]), n).numpy() for n in (0, 1, 5)}
    monkeypatch.setattr(type(model), "encode_text", lambda *_: pytest.fail("the text tower ran again"))
    for number, features in wanted.items():
        close(locked(np.array([1, 0, 0]), number).numpy(), features, "features_normalised")
    close(wanted[0][0], wanted[1][0], "features_normalised")  # the dog has but one prompt
    with pytest.raises(AssertionError, match="differs by"):
        close(wanted[0][1], wanted[1][1], "features_normalised")  # the cat's two are two


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optim.batch=19"], "at most 18, the training photos, got 19: set optim.batch=18"),
        (["data.seed=-1"], "data.seed must be at least 0, got -1"),
        (["data.val_shots=0"], "choosing the epoch needs validation photos, and there are none"),
        (["data.root=nowhere"], "data.root must be a folder"),
        (["data.features=x.npz"], "tunes towers on photos, not on precomputed features"),
        (["optim.lr=1e30", "accumulate=2"], "the loss became NaN or infinite between steps"),
        (["accumulate=7"], r"accumulate must be in \[1, optim.batch\] and clip at least 0, got 7 and 0.0"),
        (["lock.image_groups=1"], "need a locked tower"),
    ],
)
def test_what_can_not_work_is_reported_in_one_line(settings, message, config, tmp_path, capsys):
    assert train(config, tmp_path / "r", *settings) in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("jclip")]
    assert len(lines) == 1 and re.search(message, lines[0]), lines


def test_an_empty_and_a_one_class_folder_are_reported(config, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "one" / "train" / "cat").mkdir(parents=True)
    assert train(config, tmp_path / "r", f"data.root={tmp_path / 'empty'}") == 2
    assert "no class folders below" in capsys.readouterr().err
    assert train(config, tmp_path / "r", f"data.root={tmp_path / 'one'}", "--fresh") == 2
    assert "only one class (cat): at least two are needed" in capsys.readouterr().err


def test_broken_photos_are_skipped_everywhere_and_reported_once(config, photo_folder, tmp_path, capsys):
    import shutil

    root = tmp_path / "photos"
    shutil.copytree(photo_folder, root)
    for part in ("train", "test"):
        next(iter(sorted((root / part / "red_thing").iterdir()))).write_bytes(b"nonsense")
    settings = [f"data.root={root}", "data.shots=0", "data.on_error=skip", "selection=last"]
    assert train(config, tmp_path / "r", *settings) == 0
    stderr = capsys.readouterr().err
    assert metrics_of(tmp_path / "r")["test_count"] == 17 and "best_epoch" not in metrics_of(tmp_path / "r")
    assert stderr.count("train 0-0.png does not decode") == 1
    assert train(config, tmp_path / "s", *settings, "data.on_error=stop") == 2
    assert "does not decode" in capsys.readouterr().err
