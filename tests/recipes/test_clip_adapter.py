"""CLIP-Adapter against NumPy in float64, its training against torch, the choice of the ratio, and the real features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune import clip_adapter
from jclip.config import DataConfig, OptimConfig
from jclip.errors import ConfigError, DataError
from jclip.features.heads import ZeroShotHead
from jclip.features.precomputed import FeatureSet
from jclip.functional.directions import unit
from jclip.functional.metrics import top_k
from jclip.train.configs import read_config
from jclip.train.run import Run
from tests.recipes import toys

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "clip_adapter"


def features(seed: int, classes: int = 5, width: int = 13, shots: int = 3) -> FeatureSet:
    """Features several units long, each of another length, as the tower makes them."""
    rng = np.random.default_rng(seed)

    def rows(n):
        return (unit(rng.standard_normal((n, width))) * rng.uniform(3, 9, (n, 1))).astype(np.float32)

    labels = rng.permutation(np.repeat(np.arange(classes), shots))
    val, test = rng.integers(0, classes, 23), rng.integers(0, classes, 31)
    text = unit(rng.standard_normal((classes, width))).astype(np.float32)
    return FeatureSet(tuple("abcde"), rows(len(labels)), labels, rows(23), val, rows(31), test, text, 8.0)


def config(**settings) -> clip_adapter.Config:
    return clip_adapter.Config(data=DataConfig(features="x"), **settings)


def optim(**settings) -> OptimConfig:
    return OptimConfig(**{"lr": 1e-2, "epochs": 4, "batch": 6, **settings})


def numpy_logits(f, adapter, data, ratio):
    """Eq. 3-6 in float64, row by row."""
    down, up, text = (np.float64(a) for a in (adapter["down"], adapter["up"], data.text))
    out = np.zeros((len(f), len(text)))
    for i, g in enumerate(np.float64(f)):
        mixed = ratio * np.maximum(up @ np.maximum(down @ g, 0), 0) + (1 - ratio) * g
        out[i] = data.scale * text @ (mixed / np.linalg.norm(mixed))
    return out


def adapter_of(seed: int, width: int = 13) -> dict[str, np.ndarray]:
    rng = np.random.default_rng((seed, 1))
    return {k: rng.standard_normal(s).astype(np.float32) for k, s in (("down", (3, width)), ("up", (width, 3)))}


def scores(data, adapter, ratio, f):
    return clip_adapter.scorer(clip_adapter.arrays(data, adapter, ratio), config())(f)


def trained(cfg, data, folder, ratio=0.2):
    with Run(folder, {"recipe": "clip_adapter"}) as run:
        return clip_adapter.train_adapter(cfg, run, data, ratio).arrays


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("ratio", [0.2, 0.6, 0.9])
def test_logits_equal_the_formula(seed, ratio, close, monkeypatch):
    from jclip.train import on_features as adapt

    monkeypatch.setattr(adapt, "ROWS_AT_ONCE", 10)  # in parts, the last one shorter
    data, adapter = features(seed), adapter_of(seed)
    ours = scores(data, adapter, ratio, data.test)
    close(ours, numpy_logits(data.test, adapter, data, ratio), "scores", "CLIP-Adapter: logits")
    without_relu = adapter["up"] @ (adapter["down"] @ data.test.T)
    assert (without_relu < 0).any() and (adapter["down"] @ data.test.T < 0).any()  # both ReLUs had something to cut


@pytest.mark.parametrize("seed", [0, 1])
def test_ratio_zero_is_zero_shot(seed, close):
    data = features(seed)
    ours, zero_shot = (
        scores(data, adapter_of(seed), 0.0, data.test),
        ZeroShotHead(data.text, data.scale)(unit(data.test)),
    )
    close(ours, zero_shot, "scores", "CLIP-Adapter: r = 0")
    assert np.array_equal(ours.argmax(axis=1), zero_shot.argmax(axis=1))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_length_of_features_does_not_matter(seed, close):
    data, adapter = features(seed), adapter_of(seed)
    ours = scores(data, adapter, 0.6, data.test)
    close(ours, scores(data, adapter, 0.6, unit(data.test)), "scores", "CLIP-Adapter: length of features")


def test_the_start_is_that_of_torchs_linear():
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    start = clip_adapter.initial(config(), 260)
    for name, (inputs, outputs) in {"down": (260, 65), "up": (65, 260)}.items():
        torch.manual_seed(0)
        theirs = torch.nn.Linear(inputs, outputs, bias=False).weight.detach().numpy()
        assert start[name].shape == theirs.shape and start[name].dtype == np.float32
        bound = 1 / np.sqrt(inputs)
        for array in (start[name], theirs):
            fifths = np.histogram(array, bins=5, range=(-bound, bound))[0]
            assert 0.19 < fifths.min() / array.size <= fifths.max() / array.size < 0.21 and fifths.sum() == array.size
    other = clip_adapter.initial(config(seed=2), 260)
    assert not np.array_equal(start["down"], other["down"])
    assert np.array_equal(start["down"], clip_adapter.initial(config(), 260)["down"])


def torch_training(data, cfg, ratio):
    """Written in torch from the paper, the same start and batches; an epoch at 1e-5, then a cosine stepped by epochs."""
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    nn = torch.nn
    start = clip_adapter.initial(cfg, data.train.shape[1])
    net = nn.Sequential(*(m for k in start for m in (nn.Linear(*start[k].shape[::-1], bias=False), nn.ReLU())))
    for layer, array in zip(net[::2], start.values(), strict=True):
        layer.weight = nn.Parameter(torch.tensor(array))
    settings = {"lr": cfg.optim.lr, "weight_decay": cfg.optim.weight_decay}
    if cfg.optim.name == "sgd":
        optimiser = torch.optim.SGD(net.parameters(), momentum=0.9, **settings)
    else:
        optimiser = torch.optim.AdamW(net.parameters(), **settings)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, cfg.optim.epochs)
    for epoch in range(cfg.optim.epochs):
        if cfg.schedule == "coop":
            optimiser.param_groups[0]["lr"] = 1e-5 if epoch == 0 else schedule.get_last_lr()[0]
        order = np.random.default_rng((cfg.seed, epoch)).permutation(len(data.train))
        for begin in range(0, len(order), cfg.optim.batch):
            rows = order[begin : begin + cfg.optim.batch]
            g = torch.tensor(data.train[rows])
            v = ratio * net(g) + (1 - ratio) * g
            out = data.scale * (v / v.norm(dim=-1, keepdim=True)) @ torch.tensor(data.text).T
            optimiser.zero_grad()
            nn.functional.cross_entropy(out, torch.tensor(data.train_labels[rows])).backward()
            optimiser.step()
        if epoch:
            optimiser.param_groups[0]["lr"] = schedule.get_last_lr()[0]
            schedule.step()
    return {k: layer.weight.detach().numpy() for k, layer in zip(start, net[::2], strict=True)}


@pytest.mark.parametrize("seed", [0, 1])
def test_one_step_equals_torch(seed, tmp_path, close):
    data = features(seed)
    cfg = config(schedule="optim", seed=seed, optim=optim(epochs=1, batch=99, schedule="constant", weight_decay=0.3))
    ours, start = trained(cfg, data, tmp_path), clip_adapter.initial(cfg, 13)
    for name, wanted in torch_training(data, cfg, 0.2).items():
        close(ours[name], wanted, "optimiser", f"CLIP-Adapter: one step of {name}")
        assert np.abs(ours[name] - start[name]).max() > 0.005


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("settings", [{}, {"name": "sgd", "lr": 0.02, "weight_decay": 5e-4}])
def test_training_equals_torch(seed, settings, tmp_path, close):
    data, cfg = features(seed), config(seed=seed, optim=optim(**settings))
    ours, wanted = trained(cfg, data, tmp_path, ratio=0.6), torch_training(data, cfg, 0.6)
    for name, start in clip_adapter.initial(cfg, 13).items():
        close(ours[name], wanted[name], "trajectory", f"CLIP-Adapter: {name} after 12 steps")
        with pytest.raises(AssertionError, match="differs by"):
            close(start, wanted[name], "trajectory")  # it moved


def test_the_search_keeps_the_first_of_the_best_trainings(tmp_path):
    data = replace(features(1), scale=40.0)  # three of the four are equally good
    cfg = config(search=True, search_ratio=(0.1, 0.9, 0.5, 0.7), optim=optim(epochs=6, lr=0.05))
    alone = {r: trained(cfg, data, tmp_path / str(r), r) for r in cfg.search_ratio}
    found = [top_k(numpy_logits(data.val, alone[r], data, r), data.val_labels) for r in cfg.search_ratio]
    assert len(set(found)) > 1 and np.argmax(found) > 0  # there is something to choose
    with Run(tmp_path / "all", {"recipe": "clip_adapter"}) as run:
        ratio, kept = clip_adapter.choose(cfg, run, data)
    assert ratio == cfg.search_ratio[int(np.argmax(found))]
    assert np.array_equal(kept.arrays["up"], alone[ratio]["up"])


def test_photos_are_taken_as_long_as_the_tower_makes_them(
    small_models, photo_folder, tmp_path, monkeypatch, capsys, close
):
    from jclip.cli import main

    lengths, train_adapter = [], clip_adapter.train_adapter

    def spied(cfg, run, data, ratio):
        lengths.append(np.linalg.norm(data.train, axis=1))
        return train_adapter(cfg, run, data, ratio)

    monkeypatch.setattr(clip_adapter, "train_adapter", spied)
    monkeypatch.chdir(tmp_path)
    settings = [f"model={small_models['vit']}", f"data.root={photo_folder}", "data.features=", "data.val_shots=2"]
    more = ["views=3", "search=false", "selection=last", "optim.batch=5", "optim.epochs=2"]
    assert main(["train", str(CONFIGS / "smoke.yaml"), *settings, *more, "--run", "run"]) == 0
    assert len(lengths[0]) == 3 * 12 and np.ptp(lengths[0]) > 0.01  # twelve photos, three views each
    steps = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert steps == [3, 6]  # twelve of these rows an epoch, in batches of five
    metrics = json.loads(Path("run/result.json").read_text())["metrics"]
    assert main(["eval", "run"]) == 0
    assert f"{metrics['test_top1']:.4f} ({metrics['test_correct']} of 18)" in capsys.readouterr().out
    written = json.loads(Path("run/eval.json").read_text())
    close([written[k] for k in ("nll", "ece")], [metrics[f"test_{k}"] for k in ("nll", "ece")], "loss")
    assert main(["train", "zero_shot/smoke", *settings, "templates=simple", "--run", "zero"]) == 0
    zero_shot = json.loads(Path("zero/result.json").read_text())["metrics"]
    close(
        [metrics[f"zero_shot_{k}"] for k in zero_shot],
        list(zero_shot.values()),
        "loss",
        "CLIP-Adapter: zero-shot beside",
    )


def train(name, folder, *overrides):
    return toys.train(CONFIGS / name, folder, *overrides)


def test_the_real_features(shared, tmp_path):
    metrics = train("features_caltech_lvis.yaml", tmp_path, "optim.epochs=3")
    assert metrics["zero_shot_test_correct"] == 900 and metrics["test_count"] == 922
    assert metrics["val_top1"] > metrics["zero_shot_val_top1"]
    assert metrics["test_correct"] == 909


def test_bad_inputs_are_reported_in_one_line(tmp_path):
    no_text, no_val = (toys.smoke_without(part, tmp_path) for part in ("text", "val"))
    with pytest.raises(DataError, match="come without text features: set model="):
        train("smoke.yaml", tmp_path / "a", no_text)
    without = [no_val, "selection=last"]
    with pytest.raises(ConfigError, match="the ratio is chosen on validation photos, and there are none"):
        train("smoke.yaml", tmp_path / "b", *without)
    metrics = train("smoke.yaml", tmp_path / "c", *without, "search=false")
    assert "val_top1" not in metrics and metrics["test_count"] == 63 and metrics["ratio"] == 0.2
    with pytest.raises(ConfigError, match="reduction must be at most 16, the width of the features, got 17"):
        train("smoke.yaml", tmp_path / "d", "reduction=17")
    for wrong, message in {
        "ratio=1.0": r"ratio and search_ratio must be in \[0, 1\)",
        "search_ratio=[-0.1]": r"ratio and search_ratio must be in \[0, 1\)",
        "search_ratio=[]": "search_ratio must have at least one value",
        "reduction=0": "views and reduction must be at least 1",
    }.items():
        with pytest.raises(ConfigError, match=message):
            read_config(str(CONFIGS / "smoke.yaml"), [wrong])
