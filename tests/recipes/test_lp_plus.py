"""LP++ against its formulas in NumPy float64, the authors' loop written in torch, and the recorded real features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune import lp_plus
from jclip.config import DataConfig, build
from jclip.errors import ConfigError, DataError
from jclip.features.precomputed import FeatureSet, read_precomputed
from jclip.train import on_features as adapt
from jclip.train.run import Run
from tests.recipes import toys

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "lp_plus"
SHOTS = (4, 2, 3, 1, 3)  # unequal: nothing may count on N / shots being the number of classes


def features(seed: int, width: int = 7) -> FeatureSet:
    rng = np.random.default_rng(seed)

    def unit(*shape):
        x = rng.standard_normal(shape)
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    labels, text = rng.permutation(np.repeat(np.arange(5), SHOTS)), unit(5, width)
    val, test = rng.integers(0, 5, 23), rng.integers(0, 5, 31)
    near = [0.6 * text[y] + 0.8 * unit(len(y), width) for y in (labels, val, test)]
    parts = [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in near]
    return FeatureSet(tuple("abcde"), parts[0], labels, parts[1], val, parts[2], test, text, 8.0)


def config(**settings) -> lp_plus.Config:
    return lp_plus.Config(data=DataConfig(features="x"), **settings)


def trained(folder, data, begin=None, **settings):
    cfg = config(**settings)
    with Run(folder, {"recipe": "lp_plus"}) as run:
        return lp_plus.train(cfg, run, data, begin or lp_plus.start(cfg, data), lp_plus.step_sizes(data))


def doubles(data):
    return data.train.astype(np.float64), data.text.astype(np.float64)


@pytest.mark.parametrize("seed", [0, 1])
def test_logits_equal_the_formula(seed, close, monkeypatch):
    import jclip.train.on_features

    monkeypatch.setattr(jclip.train.on_features, "ROWS_AT_ONCE", 10)  # in parts, the last one shorter
    rng, data = np.random.default_rng(seed), features(seed)
    w, b, a = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 7), (5,), (5,)))
    learned = {"weight": w, "bias": b, "alpha": a, "text": data.text}
    wanted = np.zeros((31, 5))
    for i, f in enumerate(data.test.astype(np.float64)):
        for k in range(5):
            wanted[i, k] = f @ w[k].astype(np.float64) + b[k] + a[k] * (f @ data.text[k].astype(np.float64))
    close(lp_plus.scorer(learned, config())(data.test), wanted, "scores", "LP++: logits")


def test_without_weights_the_scores_are_alpha_times_the_similarity(close):
    data = features(0)
    alpha = np.arange(1, 6, dtype=np.float32)
    empty = {"weight": np.zeros((5, 7), np.float32), "bias": np.zeros(5, np.float32), "alpha": alpha, "text": data.text}
    scores = lp_plus.scorer(empty, config())(data.test)
    close(scores, alpha * (data.test.astype(np.float64) @ data.text.T), "scores")  # no factor 100


@pytest.mark.parametrize("seed", [0, 1])
def test_the_start_and_the_step_sizes_equal_the_formulas(seed, close):
    data = features(seed)
    f, t = doubles(data)
    begin = lp_plus.start(config(init_alpha=100.0), data)
    close(begin["weight"], [f[data.train_labels == k].sum(axis=0) for k in range(5)], "features_normalised")
    assert not begin["bias"].any()
    nearness = np.mean([np.mean([x @ t[k] for x in f[data.train_labels == k]]) for k in range(5)])
    close(begin["alpha"], [100 * nearness] * 5, "scores")
    lr_w, lr_alpha = lp_plus.step_sizes(data)
    close(lr_w, 4 * 13 / np.linalg.eigvals(f.T @ f).real.max(), "closed_form", "LP++: step size of w")
    close(lr_alpha, 13 / (4 * max(sum((x @ t[k]) ** 2 for x in f) for k in range(5))), "closed_form")
    wide = features(seed, width=17)  # more numbers than photos: the smaller Gram matrix has the same largest value
    close(lp_plus.step_sizes(wide)[0], 4 * 13 / np.linalg.norm(doubles(wide)[0], 2) ** 2, "closed_form")


def test_a_class_without_photos_starts_at_its_text_alone():
    data = features(0)
    rows = data.train_labels != 2
    begin = lp_plus.start(config(), replace(data, train=data.train[rows], train_labels=data.train_labels[rows]))
    assert not begin["weight"][2].any() and np.isfinite(begin["alpha"]).all() and begin["alpha"][2] > 0


@pytest.mark.parametrize("seed", [0, 1])
def test_the_first_step_goes_down_the_gradient(seed, tmp_path, close):
    data, cfg = features(seed), config(epochs=1, alpha_every=1, init_alpha=5.0, selection="last")
    f, t = doubles(data)
    begin = lp_plus.start(cfg, data)
    w, a, y = begin["weight"].astype(np.float64), begin["alpha"].astype(np.float64), np.eye(5)[data.train_labels]
    rates = lp_plus.step_sizes(data)

    def loss(w, b, a):
        z = f @ w.T + b + a * (f @ t.T)
        return -np.mean((z - np.log(np.exp(z).sum(axis=1, keepdims=True)))[y > 0])

    def slope(move):  # by central differences
        return np.array([(loss(*move(k, 1e-6)) - loss(*move(k, -1e-6))) / 2e-6 for k in range(5)])

    arrays, _ = trained(tmp_path, data, epochs=1, alpha_every=1, init_alpha=5.0, selection="last")
    b = np.zeros(5)
    to_alpha = slope(lambda k, e: (w, b, a + e * np.eye(5)[k]))
    to_first = slope(lambda k, e: (w + e * np.outer(np.eye(5)[k], np.eye(7)[0]), b, a))
    to_bias = slope(lambda k, e: (w, b + e * np.eye(5)[k], a))
    close(arrays["alpha"], a - rates[1] * to_alpha, "trajectory", "LP++: α after a step")
    close(arrays["weight"][:, 0], w[:, 0] - rates[0] * to_first, "trajectory", "LP++: w after a step")
    close(arrays["bias"], -rates[0] * to_bias, "trajectory")
    assert np.abs(rates[1] * to_alpha).max() > 1e-2 and np.abs(rates[0] * to_first).max() > 1e-2


def torch_training(data, epochs, accumulate):
    """The authors' loop: one optimiser for w and b; α by hand at every 10th epoch, from a gradient that torch adds up."""
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    f, t, y = torch.tensor(data.train).double(), torch.tensor(data.text).double(), torch.tensor(data.train_labels)
    layer = torch.nn.Linear(f.shape[1], len(t)).double()
    with torch.no_grad():
        layer.weight.copy_(torch.stack([f[y == k].sum(dim=0) for k in range(len(t))]))
        layer.bias.zero_()
    nearness = torch.stack([(f[y == k] @ t[k]).mean() for k in range(len(t))]).mean()
    alpha = (250 * nearness * torch.ones(len(t)).double()).requires_grad_()
    lr_w = float(4 * len(f) / torch.linalg.eigvalsh(f.T @ f).max())
    lr_alpha = float(len(f) / (4 * ((f @ t.T) ** 2).sum(dim=0).max()))
    optimiser = torch.optim.SGD(layer.parameters(), lr=lr_w, momentum=0.9)
    for epoch in range(epochs):
        loss = torch.nn.functional.cross_entropy(layer(f) + alpha * (f @ t.T), y)
        optimiser.zero_grad()
        if not accumulate:
            alpha.grad = None
        loss.backward()
        optimiser.step()
        if (epoch + 1) % 10 == 0:
            alpha.data -= lr_alpha * alpha.grad.data
    return {k: v.detach().numpy() for k, v in (("weight", layer.weight), ("bias", layer.bias), ("alpha", alpha))}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("mode", ["accumulate", "fresh"])
def test_training_equals_torch(seed, mode, tmp_path, close):
    data = features(seed)
    ours, got = trained(tmp_path, data, epochs=22, alpha_grad=mode, selection="last")
    pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    from tests.trajectories import in_both_precisions

    theirs, drift = in_both_precisions(lambda: torch_training(data, 22, mode == "accumulate"))
    for name, array in theirs.items():
        close(ours[name], array, "trajectory", f"LP++: {name} after 22 steps", drift=drift[name])
    other = torch_training(data, 22, mode != "accumulate")["alpha"]
    with pytest.raises(AssertionError, match="differs by"):
        close(ours["alpha"], other, "trajectory", drift=drift["alpha"])  # the two modes differ by more
    assert set(got) == {"test_top1_last_epoch", "test_top1_best_epoch", "best_epoch"}


def test_alpha_moves_at_the_tenth_epoch_only(tmp_path):
    data = features(0)
    alphas = {n: trained(tmp_path / str(n), data, epochs=n, selection="last")[0]["alpha"] for n in (9, 10, 19, 20)}
    assert np.array_equal(alphas[9], lp_plus.start(config(), data)["alpha"])
    assert np.array_equal(alphas[10], alphas[19])
    assert (alphas[9] != alphas[10]).any() and (alphas[19] != alphas[20]).any()


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("seed", [0, 2])
def test_the_last_of_the_best_epochs_is_kept_and_the_loss_goes_down(seed, tmp_path):
    data = features(seed)
    arrays, got = trained(tmp_path, data, epochs=60, init_alpha=4.0)
    found = [line["top1"] for line in lines(tmp_path)]
    best = [n for n, top1 in enumerate(found, 1) if top1 == max(found)]
    assert len(best) > 1 and got["best_epoch"] == best[-1]
    learned = {**arrays, "text": data.text}
    assert data.top1("val", lp_plus.scorer(learned, config())) == max(found)
    assert lines(tmp_path)[-1]["loss"] < 0.5 * lines(tmp_path)[0]["loss"]


def test_choosing_on_test_is_reported(tmp_path):
    data = features(0)
    _, got = trained(tmp_path, data, epochs=12, selection="test")
    assert got["selected_on_test"] == 1
    found = [line["top1"] for line in lines(tmp_path)]
    assert got["test_top1_best_epoch"] == max(found) and got["test_top1_last_epoch"] == found[-1]


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    data, calls = features(0), []
    whole, _ = trained(tmp_path / "whole", data, epochs=14)
    real = adapt.Watched.top1

    def killed(self, *arguments):
        calls.append(0)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(adapt.Watched, "top1", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "killed", data, epochs=14)
    resumed, _ = trained(tmp_path / "killed", data, epochs=14)
    assert len(lines(tmp_path / "killed")) == 14
    assert all(np.array_equal(whole[k], resumed[k]) for k in whole)


# The recorded real features


def train(name, folder, *overrides):
    return toys.train(CONFIGS / name, folder, *overrides)


def test_real_features(shared, tmp_path):
    metrics = train("features_caltech_lvis.yaml", tmp_path, "epochs=50")
    assert metrics["val_top1"] > metrics["zero_shot_val_top1"]
    data = read_precomputed(str(shared / "clip_vitb32_features" / "caltech_lvis.npz"), 16)
    theirs = torch_training(data, 50, accumulate=True)
    f, t = data.test.astype(np.float64), data.text.astype(np.float64)
    scores = f @ theirs["weight"].T + theirs["bias"] + theirs["alpha"] * (f @ t.T)
    assert metrics["test_top1_last_epoch"] == round(float((scores.argmax(axis=1) == data.test_labels).mean()), 6)
    assert (metrics["zero_shot_test_correct"], metrics["test_correct"], metrics["test_count"]) == (900, 906, 922)
    assert 40 < metrics["mean_alpha"] < 80  # as the authors' logs show


# What is refused


@pytest.mark.parametrize("settings, message", [
    ({"epochs": 0}, "epochs and alpha_every must be at least 1, got 0 and 10"),
    ({"alpha_every": 0}, "epochs and alpha_every must be at least 1, got 300 and 0"),
    ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
    ({"alpha_grad": "sum"}, "alpha_grad must be one of accumulate, fresh, got 'sum'"),
])  # fmt: skip
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(lp_plus.Config, {"data": {}, **settings}, "x.yaml")


def file_with(path: Path, **arrays) -> str:
    """The embedded features with some arrays replaced, or left out where None; as a setting."""
    data = np.load(CONFIGS.parent.parent / "jclip" / "assets" / "smoke_features.npz")
    np.savez(path, **{k: v for k, v in ({k: data[k] for k in data.files} | arrays).items() if v is not None})
    return f"data.features={path}"


def test_what_the_data_must_have(tmp_path):
    none = {"features": np.zeros((0, 16)), "labels": np.zeros(0, int)}
    empty = {part: {f"{part}_{k}": v for k, v in none.items()} for part in ("val", "test")}
    no_text = file_with(tmp_path / "text.npz", text_features=None)
    no_val, no_test = (file_with(tmp_path / f"{part}.npz", **arrays) for part, arrays in empty.items())
    no_train = file_with(tmp_path / "train.npz", train_features_4=none["features"], train_labels_4=none["labels"])
    with pytest.raises(DataError, match="come without text features: set model="):
        train("smoke.yaml", tmp_path / "a", no_text)
    with pytest.raises(ConfigError, match="the epoch is chosen on validation photos, and there are none"):
        train("smoke.yaml", tmp_path / "b", no_val)
    metrics = train("smoke.yaml", tmp_path / "c", no_val, "selection=last", "epochs=2")
    assert "val_top1" not in metrics and metrics["test_count"] == 63
    with pytest.raises(ConfigError, match="chooses the epoch on test photos, and there are none"):
        train("smoke.yaml", tmp_path / "d", no_test, "selection=test")
    with pytest.raises(DataError, match="the training split is empty"):
        train("smoke.yaml", tmp_path / "e", no_train)
