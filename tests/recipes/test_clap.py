"""CLAP and ZS-LP against their formulas in NumPy float64, a loop written in torch, and the recorded real features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune import clap
from jclip.config import DataConfig, OptimConfig, build
from jclip.errors import ConfigError, DataError
from jclip.features.precomputed import FeatureSet, read_precomputed
from jclip.train.configs import read_config
from jclip.train.run import Run
from tests.recipes import toys

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "clap"
VIEWS, BATCH = 2, 5  # 26 rows; an epoch is two batches of 5


def features(seed: int) -> FeatureSet:
    """Two views of each of 13 photos, with 1 to 4 photos to a class, and texts they are near to."""
    rng = np.random.default_rng(seed)

    def unit(x):
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    photos, text = rng.permutation(np.repeat(np.arange(5), [4, 2, 3, 1, 3])), unit(rng.standard_normal((5, 7)))
    labels = [np.tile(photos, VIEWS), rng.integers(0, 5, 23), rng.integers(0, 5, 31)]
    parts = [unit(0.5 * text[y] + 0.4 * rng.standard_normal((len(y), 7))) for y in labels]
    pairs = (x for both in zip(parts, labels, strict=True) for x in both)
    return FeatureSet(tuple("abcde"), *pairs, text, 8.0)


def config(features="", epochs=4, lr=0.1, batch=BATCH, **settings) -> clap.Config:
    """Of photos, seen in two views, unless `features` are named."""
    optim = OptimConfig(name="sgd", lr=lr, weight_decay=0.0, epochs=epochs, batch=batch)
    return clap.Config(data=DataConfig(features=features), views=VIEWS, optim=optim, **{"text_length": 3.0, **settings})


def trained(folder, data, cfg):
    with Run(folder, {"recipe": "clap"}) as run:
        arrays = clap.train(cfg, run, data).arrays
        return arrays["prototypes"], arrays["multipliers"]


def numpy_logits(f, prototypes, scale):
    out = np.zeros((len(f), len(prototypes)))
    for i, x in enumerate(f.astype(np.float64)):
        for k, c in enumerate(prototypes.astype(np.float64)):
            out[i, k] = scale * (x @ c) / np.sqrt((c * c).sum())
    return out


def numpy_multipliers(data):
    scores = np.exp(data.scale * data.train.astype(np.float64) @ data.text.astype(np.float64).T)
    own = (scores / scores.sum(axis=1, keepdims=True))[np.arange(len(scores)), data.train_labels]
    return np.array([own[data.train_labels == k].mean() for k in range(len(data.text))])


@pytest.mark.parametrize("seed", [0, 1])
def test_logits_and_multipliers_equal_the_formulas(seed, close, monkeypatch):
    import jclip.train.on_features

    monkeypatch.setattr(jclip.train.on_features, "ROWS_AT_ONCE", 10)  # in parts, the last one shorter
    data = features(seed)
    prototypes = (4 * np.random.default_rng(seed).standard_normal((5, 7))).astype(np.float32)
    ours = clap.scorer({"prototypes": prototypes, "scale": np.array([9.0])}, config())(data.test)
    close(ours, numpy_logits(data.test, prototypes, 9.0), "scores", "CLAP: logits")
    close(clap.multipliers(data), numpy_multipliers(data), "loss", "CLAP: multipliers")
    assert 0 < clap.multipliers(data).min() < 0.9 * clap.multipliers(data).max() < 0.9


def test_a_class_without_photos_is_held_most():
    data = features(0)
    rows = data.train_labels != 2
    found = clap.multipliers(replace(data, train=data.train[rows], train_labels=data.train_labels[rows]))
    assert found[2] == 1 and (found[[0, 1, 3, 4]] < 1).all()


def test_before_a_step_it_is_zero_shot_and_nothing_pulls(tmp_path, close):
    data = features(0)
    ours, _ = trained(tmp_path / "a", data, config(lr=0.0, warmup_lr=0.0))
    close(ours, 3 * data.text, "features_normalised")
    scores = clap.scorer({"prototypes": ours, "scale": np.array([8.0])}, config())(data.test)
    close(scores, 8 * data.test.astype(np.float64) @ data.text.T, "scores")
    losses = [
        json.loads(x)["loss"] for x in (tmp_path / "a" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    free, _ = trained(tmp_path / "b", data, config(lr=0.0, warmup_lr=0.0, constraint="none"))
    written = [
        json.loads(x)["loss"] for x in (tmp_path / "b" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert losses == written and np.array_equal(ours, free)  # the penalty is 0 at the start


def test_the_learning_rate_is_the_authors(close):
    cfg = config(epochs=300)
    halves = [0.05 * (1 + np.cos(np.pi * j / 300)) for j in (0, 1, 150, 298)]
    close([clap.rate(cfg, e) for e in (0, 1, 2, 151, 299)], [1e-5, *halves], "schedule")
    assert clap.rate(cfg, 299) > 0 and clap.rate(cfg, 1) == 0.1
    flat = replace(cfg, optim=replace(cfg.optim, schedule="constant"), warmup_epochs=0)
    assert clap.rate(flat, 0) == clap.rate(flat, 299) == 0.1


@pytest.mark.parametrize(
    "batch, views, steps, size", [(5, 2, 2, 5), (13, 2, 1, 13), (20, 2, 1, 20), (256, 2, 1, 26), (5, 1, 5, 5)]
)
def test_an_epoch_is_as_many_rows_as_photos_in_whole_batches(batch, views, steps, size):
    cfg = replace(config(batch=batch), views=views)
    batches = clap.epochs(cfg, features(0))
    assert batches.steps == steps and [f.shape[0] for f, _ in batches(3)] == [size] * steps
    recorded = clap.epochs(config(batch=5, features="x"), features(0))  # one row is one photo there
    assert recorded.steps == 5


def torch_training(data, cfg):
    """Written from the paper and its augmented Lagrangian: prototypes, SGD, the authors' schedule and batches."""
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    f, y = torch.tensor(data.train).double(), torch.tensor(data.train_labels)
    photos, size = len(f) // (1 if cfg.data.features else VIEWS), cfg.optim.batch
    text = cfg.text_length * torch.tensor(data.text).double()
    c = text.clone().requires_grad_()
    held, rho = torch.tensor(numpy_multipliers(data)), torch.zeros(len(text)).double()
    optimiser = torch.optim.SGD([c], lr=cfg.optim.lr, momentum=0.9)
    for epoch in range(cfg.optim.epochs):
        j = epoch - 1
        lr = cfg.optim.lr * (1 + np.cos(np.pi * j / cfg.optim.epochs)) / 2 if epoch else cfg.warmup_lr
        optimiser.param_groups[0]["lr"] = lr
        order = np.random.default_rng((cfg.seed, epoch)).permutation(len(f))[: photos // size * size]
        for rows in order.reshape(-1, size):
            scores = data.scale * f[rows] @ torch.nn.functional.normalize(c, dim=1).T
            loss = torch.nn.functional.cross_entropy(scores, y[rows])
            if cfg.constraint != "none":
                loss = loss + (held * ((c - text) ** 2).sum(dim=1)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if cfg.constraint == "adaptive":
            away = ((c - text) ** 2).sum(dim=1).detach()
            held, rho = torch.clamp(held + rho * away, min=0), away
    return c.detach().numpy(), held.numpy()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("constraint", ["none", "l2", "adaptive"])
def test_training_equals_torch(seed, constraint, tmp_path, close):
    data, cfg = features(seed), config(constraint=constraint, epochs=8, lr=0.3, warmup_lr=1e-2, seed=seed)
    ours, held = trained(tmp_path, data, cfg)
    theirs, theirs_held = torch_training(data, cfg)
    close(ours, theirs, "trajectory", f"CLAP {constraint}: prototypes after 16 steps")
    close(held, theirs_held, "trajectory", f"CLAP {constraint}: multipliers after 16 steps")
    for other in {"none", "l2", "adaptive"} - {constraint}:
        with pytest.raises(AssertionError, match="differs by"):
            close(ours, torch_training(data, replace(cfg, constraint=other))[0], "trajectory")
    assert (held > numpy_multipliers(data)).all() == (constraint == "adaptive")


def test_length_step_and_penalty_go_together(tmp_path, close):
    """Twice as long, four times the step, a quarter of the penalty: the same directions; so the length must be known."""
    data = features(0)
    short, _ = trained(tmp_path / "a", data, config(constraint="none"))
    long, _ = trained(tmp_path / "b", data, config(constraint="none", text_length=6.0, lr=0.4, warmup_lr=4e-5))
    close(long, 2 * short, "trajectory")


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    data, cfg = features(0), config(constraint="adaptive", epochs=7)
    whole = trained(tmp_path / "whole", data, cfg)
    real, calls = clap.rate, []

    def killed(*arguments):
        calls.append(0)
        if len(calls) == 10:  # in the fifth epoch
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(clap, "rate", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "killed", data, cfg)
    resumed = trained(tmp_path / "killed", data, cfg)
    assert all(np.array_equal(a, b) for a, b in zip(whole, resumed, strict=True))


# The recorded real features, and photos


def train(name, folder, *overrides):
    return toys.train(CONFIGS / name, folder, *overrides)


@pytest.mark.parametrize("constraint, right", [("l2", 910), ("none", 908)])
def test_real_features(constraint, right, shared, tmp_path):
    name = "features_caltech_lvis.yaml" if constraint == "l2" else "features_caltech_lvis_zs_lp.yaml"
    metrics = train(name, tmp_path, "optim.epochs=40")
    assert metrics["val_top1"] > metrics["zero_shot_val_top1"]
    data = read_precomputed(str(shared / "clip_vitb32_features" / "caltech_lvis.npz"), 16)
    _, cfg, _ = read_config(str(CONFIGS / name), ["optim.epochs=40"])
    assert cfg.constraint == constraint
    theirs, _ = torch_training(data, cfg)
    scores = data.test @ (theirs / np.linalg.norm(theirs, axis=1, keepdims=True)).T
    found = int((scores.argmax(axis=1) == data.test_labels).sum())
    assert (metrics["zero_shot_test_correct"], metrics["test_correct"], found) == (900, right, right)


def test_photos_are_learned_from_in_all_views(small_models, photo_folder, tmp_path, monkeypatch, capsys):
    from jclip.cli import main

    monkeypatch.chdir(tmp_path)
    settings = [
        f"model={small_models['vit']}",
        f"data.root={photo_folder}",
        "data.features=",
        "views=3",
        "templates=simple",
    ]
    assert main(["train", str(CONFIGS / "smoke.yaml"), *settings, "data.val_shots=2", "--run", "run"]) == 0
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert metrics["test_count"] == 18 and main(["eval", "run"]) == 0
    assert f"({metrics['test_correct']} of 18)" in capsys.readouterr().out


# What is refused


@pytest.mark.parametrize("settings, message", [
    ({"views": 0}, "views must be at least 1 and text_length above 0, got 0 and 10.0"),
    ({"text_length": 0.0}, "text_length above 0, got .* and 0.0"),
    ({"warmup_epochs": -1}, "warmup_epochs and warmup_lr must be at least 0, got -1 and 1e-05"),
    ({"optim": {"warmup": 5.0}}, "optim.warmup counts steps; here whole epochs warm up: set warmup_epochs"),
    ({"constraint": "l1"}, "constraint must be one of none, l2, adaptive, got 'l1'"),
])  # fmt: skip
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(clap.Config, {"data": {}, **settings}, "x.yaml")


def test_what_the_data_must_have(tmp_path):
    data = np.load(CONFIGS.parent.parent / "jclip" / "assets" / "smoke_features.npz")
    arrays = {k: data[k] for k in data.files}
    nothing = {
        f"{part}_{k}": v
        for part in ("val",)
        for k, v in (("features", np.zeros((0, 16))), ("labels", np.zeros(0, int)))
    }
    np.savez(tmp_path / "text.npz", **{k: v for k, v in arrays.items() if k != "text_features"})
    np.savez(
        tmp_path / "train.npz", **arrays | {"train_features_4": np.zeros((0, 16)), "train_labels_4": np.zeros(0, int)}
    )
    np.savez(tmp_path / "val.npz", **arrays | nothing)
    with pytest.raises(DataError, match="come without text features: set model="):
        train("smoke.yaml", tmp_path / "a", f"data.features={tmp_path}/text.npz")
    with pytest.raises(DataError, match="the training split is empty"):
        train("smoke.yaml", tmp_path / "b", f"data.features={tmp_path}/train.npz")
    metrics = train("smoke.yaml", tmp_path / "c", f"data.features={tmp_path}/val.npz")  # it needs none
    assert "val_top1" not in metrics and metrics == {
        k: v for k, v in train("smoke.yaml", tmp_path / "d").items() if "val_" not in k and "best" not in k
    }
