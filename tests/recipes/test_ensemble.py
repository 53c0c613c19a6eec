"""Ensembles of real finished runs against NumPy, their weights against looking at all, and what is refused."""

from __future__ import annotations

import itertools
import json
import shutil
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune import ensemble
from jclip.config import build
from jclip.errors import ConfigError, UnknownName
from jclip.features.precomputed import read_precomputed
from jclip.functional import fusion as mixing
from jclip.report.predictor import Classifier
from tests.recipes import toys

CONFIGS = Path(__file__).parent.parent.parent / "configs"
SMOKE = CONFIGS.parent / "jclip" / "assets" / "smoke_features.npz"


def train(name, folder, *overrides):
    return toys.train(CONFIGS / name, folder, *overrides)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    names = ("zero_shot", "wise_ft", "lp_plus", "clap")
    for name in names:
        train(f"{name}/smoke.yaml", folder / name)
    return [folder / name for name in names]


def together(folder, runs, *overrides):
    return train("ensemble/smoke.yaml", folder, f"runs=[{', '.join(f'{str(r)!r}' for r in runs)}]", *overrides)


def numpy_log_softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.log(e / e.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("inputs", ["log_softmax", "softmax", "logits"])
def test_scores_equal_the_formula(inputs, runs, tmp_path, close):
    weights = [0.2, 0.3, 0.5]
    metrics = together(tmp_path, runs[:3], f"inputs={inputs}", f"weights={weights}")
    test = read_precomputed(str(SMOKE), 4).test
    total = 0
    for i, (run, w) in enumerate(zip(runs, weights, strict=False)):
        z = Classifier.load(run).scorer()(test).astype(np.float64) / metrics[f"temperature_{i}"]
        total = (
            total
            + w * {"logits": z, "softmax": np.exp(numpy_log_softmax(z)), "log_softmax": numpy_log_softmax(z)}[inputs]
        )
        assert (metrics[f"temperature_{i}"] == 1) == (inputs != "log_softmax")
    done = Classifier.load(tmp_path)
    wanted = np.log(total) if inputs == "softmax" else total
    close(done.scorer()(test), wanted, "scores", f"ensemble of {inputs}", relative=True)
    assert done.learned["weights"].shape == (3, 1)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("inputs", ["log_softmax", "softmax", "logits"])
def test_a_run_with_all_the_weight_is_handed_on_exactly(which, inputs, runs, tmp_path):
    test = read_precomputed(str(SMOKE), 4).test
    metrics = together(tmp_path, runs[1:3], f"inputs={inputs}", f"weights=[{1 - which}, {which}]")
    alone = Classifier.load(runs[1 + which])
    assert np.array_equal(Classifier.load(tmp_path).scorer()(test), alone.scorer()(test))
    own = json.loads((runs[1 + which] / "result.json").read_text(encoding="utf-8"))["metrics"]
    assert all(metrics[k] == own[k] for k in ("val_top1", "test_top1", "test_ece", "test_nll"))
    single = together(tmp_path / "single", [runs[1 + which]], f"inputs={inputs}")
    assert single["test_nll"] == own["test_nll"] and single["weight_0"] == 1


# Temperatures and weights


@pytest.mark.parametrize("seed", [0, 1])
def test_the_temperature_is_that_of_the_best_likelihood(seed, close):
    rng = np.random.default_rng(seed)
    z = 3 * rng.standard_normal((37, 5))
    labels = np.array([rng.choice(5, p=p) for p in np.exp(numpy_log_softmax(z / 2.5))])

    def loss(t):
        return -numpy_log_softmax(z / t)[np.arange(37), labels].mean()

    found = mixing.fitted_temperature(z.astype(np.float32), labels)
    assert loss(found) < min(loss(found * 1.001), loss(found / 1.001)) and 1 < found < 7
    assert loss(found) <= min(loss(t) for t in np.exp(np.linspace(-3, 3, 200)))
    scaled = mixing.fitted_temperature((10 * z).astype(np.float32), labels)
    close(scaled, 10 * found, "scores")
    low = mixing.fitted_temperature(10 * np.eye(4, dtype=np.float32), np.arange(4))  # nothing is wrong: it only grows
    close(low, 1e-3, "optimiser")


@pytest.mark.parametrize("count, steps, size", [(1, 4, 1), (2, 20, 21), (3, 20, 231), (3, 50, 1326)])
def test_the_simplex_is_walked_once(count, steps, size, close):
    found = np.array(list(mixing.simplex(count, steps)))
    assert len(found) == size == len({tuple(np.round(w * steps).astype(int)) for w in found})
    assert (found >= 0).all()
    close(found.sum(axis=1), np.ones(size), "closed_form")


def values(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 41)
    signal = np.linspace(0.1, 0.9, count)[:, None, None] * np.eye(5)[labels]
    return signal + rng.standard_normal((count, 41, 5)), labels


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("count", [2, 3])
def test_the_search_finds_the_best_and_of_those_the_nearest_to_the_mean(seed, count):
    parts, labels = values(seed, count)
    best, wanted, nearest = -1, None, 9.0
    for choice in itertools.product(range(11), repeat=count):
        if sum(choice) == 10:
            w = np.array(choice) / 10
            right = int((sum(x * p for x, p in zip(w, parts, strict=True)).argmax(axis=1) == labels).sum())
            away = round(float(((w - 1 / count) ** 2).sum()), 9)
            if right > best or (right == best and away < nearest):
                best, wanted, nearest = right, w, away
    found = mixing.best_weights(parts, labels, 0.1)
    assert int((np.tensordot(found, parts, axes=1).argmax(axis=1) == labels).sum()) == best
    assert round(float(((found - 1 / count) ** 2).sum()), 9) == round(float(((wanted - 1 / count) ** 2).sum()), 9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_of_many_runs_no_single_weight_could_be_better(seed, close):
    parts, labels = values(seed, 5)

    def right(w):
        return int((np.tensordot(w, parts, axes=1).argmax(axis=1) == labels).sum())

    found = mixing.best_weights(parts, labels, 0.05)
    assert right(found) > right(np.full(5, 0.2)) and (found >= 0).all()
    close(found.sum(), 1, "closed_form")
    for m in range(5):
        tried = list(mixing.moved(found, m, 20))
        assert len(tried) == 21 and max(map(right, tried)) <= right(found)
    assert np.array_equal(next(mixing.moved(np.eye(3)[1], 1, 2)), [0.5, 0, 0.5])  # the others had nothing


@pytest.mark.parametrize("seed", [0, 1])
def test_weights_by_class_follow_the_probability_of_the_own_class(seed, close):
    parts, labels = values(seed, 3)
    labels = np.where(labels == 4, 0, labels)  # nobody saw class 4
    raw, temperatures, weights = (
        [p.astype(np.float32) for p in parts],
        np.array([0.5, 1.0, 2.0]),
        np.array([0.2, 0.3, 0.5]),
    )
    table = ensemble.by_class(weights, raw, temperatures, labels)
    chance = [np.exp(numpy_log_softmax(z.astype(np.float64) / t)) for z, t in zip(raw, temperatures, strict=True)]
    for k in range(4):
        trust = np.array([np.mean([p[k] for p, y in zip(c, labels, strict=True) if y == k]) for c in chance])
        close(table[:, k], weights * trust / (weights * trust).sum(), "closed_form", "ensemble: weights by class")
    close(table[:, 4], weights, "closed_form")
    close(table.sum(axis=0), np.ones(5), "closed_form")


def test_shrinking_draws_to_the_mean_and_classes_can_have_their_own(runs, tmp_path, close):
    free = together(tmp_path / "a", runs[:2], "inputs=softmax")
    half = together(tmp_path / "b", runs[:2], "inputs=softmax", "shrink=0.5")
    whole = together(tmp_path / "c", runs[:2], "shrink=1.0")
    plain = together(tmp_path / "d", runs[:2], "search=false")
    close([half[f"weight_{i}"] for i in (0, 1)], [free[f"weight_{i}"] / 2 + 0.25 for i in (0, 1)], "optimiser")
    assert whole == plain and plain["weight_0"] == 0.5
    together(tmp_path / "e", runs[:3], "per_class=true", "search=false")
    table = Classifier.load(tmp_path / "e").learned["weights"]
    assert table.shape == (3, 7) and len(set(np.round(table[0], 6))) > 1
    close(table.sum(axis=0), np.ones(7), "closed_form")


def test_the_search_is_not_worse_on_validation_than_any_run(runs, tmp_path):
    for number, chosen in enumerate((runs[:2], runs[1:4], runs)):
        metrics = together(tmp_path / str(number), chosen)
        assert metrics["val_top1"] >= max(metrics[f"val_top1_of_{i}"] for i in range(len(chosen))) or len(chosen) > 3
        assert round(sum(metrics[f"weight_{i}"] for i in range(len(chosen))), 5) == 1
        for i, run in enumerate(chosen):
            own = json.loads((run / "result.json").read_text(encoding="utf-8"))["metrics"]
            assert metrics[f"test_top1_of_{i}"] == own["test_top1"]


# Folders, commands, real features


def test_configs_are_run_below_once_and_nothing_is_needed_after(tmp_path, monkeypatch, capsys):
    from jclip.cli import main

    monkeypatch.chdir(tmp_path)  # shipped configs are found by name from anywhere
    command = [
        "train",
        str(CONFIGS / "ensemble" / "smoke.yaml"),
        "runs=[zero_shot/smoke, wise_ft/smoke]",
        "--run",
        "run",
    ]
    assert main(command) == 0
    below = tmp_path / "run" / "1-wise_ft-smoke"
    first = (below / "result.json").read_bytes()
    (tmp_path / "run" / "result.json").unlink()  # as if killed at the end
    assert main(command) == 0 and (below / "result.json").read_bytes() == first
    written = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert written["provenance"]["members"] == ["run/0-zero_shot-smoke", "run/1-wise_ft-smoke"]
    shutil.rmtree(below)
    shutil.rmtree(tmp_path / "run" / "0-zero_shot-smoke")
    capsys.readouterr()
    assert main(["eval", "run"]) == 0
    assert f"({written['metrics']['test_correct']} of 63)" in capsys.readouterr().out


def test_real_features(shared, tmp_path):
    members = "runs=[tip_adapter/features_caltech_lvis, wise_ft/features_caltech_lvis]"
    metrics = train("ensemble/features_caltech_lvis.yaml", tmp_path, members, "shrink=0.0")
    assert (
        metrics["val_top1"] >= max(metrics["val_top1_of_0"], metrics["val_top1_of_1"]) > metrics["zero_shot_val_top1"]
    )
    assert (metrics["zero_shot_test_correct"], metrics["test_correct"]) == (900, 907)


# What is refused


@pytest.mark.parametrize("settings, message", [
    ({"runs": []}, "runs must name at least one folder of a finished run"),
    ({"runs": ["a"], "step": 0.0}, r"step must be in \[0.001, 1\] .*, got 0.0"),
    ({"runs": ["a"], "shrink": 2.0}, r"shrink in \[0, 1\], got .* and 2.0"),
    ({"runs": ["a", "b"], "weights": [1.0]}, "weights must be 2, one per run, at least 0"),
    ({"runs": ["a", "b"], "weights": [1.0, -1.0]}, "weights must be 2, one per run, at least 0"),
    ({"runs": ["a"], "inputs": "probabilities"}, "inputs must be one of .*, got 'probabilities'"),
])  # fmt: skip
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(ensemble.Config, {"data": {}, **settings}, "x.yaml")


def test_runs_that_do_not_belong_are_refused(runs, tmp_path):
    with np.load(SMOKE) as file:
        arrays = {k: file[k] for k in file.files}
    np.savez(tmp_path / "swapped.npz", **arrays | {"classnames": arrays["classnames"][::-1]})
    np.savez(tmp_path / "other.npz", **arrays | {"test_features": arrays["test_features"][::-1]})
    np.savez(tmp_path / "no_val.npz", **arrays | {"val_features": np.zeros((0, 16)), "val_labels": np.zeros(0, int)})
    with pytest.raises(ConfigError, match="zero_shot must have the data's classes in their order"):
        together(tmp_path / "a", runs[:2], f"data.features={tmp_path}/swapped.npz")
    with pytest.raises(ConfigError, match="zero_shot was made from other data: data differs"):
        together(tmp_path / "b", runs[:2], f"data.features={tmp_path}/other.npz")
    with pytest.raises(ConfigError, match="holds no finished run"):
        together(tmp_path / "c", [tmp_path])
    with pytest.raises(UnknownName, match="unknown config 'nowhere'"):
        together(tmp_path / "d", ["nowhere"])
    train("zero_shot/smoke.yaml", tmp_path / "own", f"data.features={tmp_path}/no_val.npz")
    one = (tmp_path / "e", [tmp_path / "own"], f"data.features={tmp_path}/no_val.npz")
    with pytest.raises(
        ConfigError, match="the weights and the temperature is chosen on validation photos, and there are"
    ):
        together(*one)
    metrics = together(tmp_path / "f", *one[1:], "search=false", "inputs=logits")
    assert "val_top1" not in metrics and metrics["test_count"] == 63
    shutil.copytree(runs[0], tmp_path / "towers")
    (tmp_path / "towers" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="towers trained the towers, so its features are not those of the other runs"):
        together(tmp_path / "g", [tmp_path / "towers"])


def test_a_run_on_longer_features_is_refused_beside_photos(runs):
    raw = replace(Classifier.load(runs[0]), module=types.SimpleNamespace(NORMALISED=False))
    data = read_precomputed(str(SMOKE), 4)
    data = replace(data, facts=json.loads((runs[0] / "result.json").read_text(encoding="utf-8"))["provenance"])
    ensemble.check(raw, data, recorded=True)
    with pytest.raises(ConfigError, match="takes unnormalised features, unlike the other runs"):
        ensemble.check(raw, data, recorded=False)
