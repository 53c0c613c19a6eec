"""GDA against the formula in NumPy float64, plain LDA by its densities, and the figures of the recorded real features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune import gda
from jclip.config import DataConfig
from jclip.errors import ConfigError, DataError
from jclip.features.precomputed import FeatureSet
from jclip.train.configs import read_config
from tests.recipes import toys

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "gda"
COUNTS = (3, 6, 2, 9, 4)  # rows per class


def features(seed: int, width: int = 7, counts=COUNTS) -> FeatureSet:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((len(counts), width))

    def near(labels):
        x = centres[labels] + rng.standard_normal((len(labels), width))
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32), labels

    train = near(rng.permutation(np.repeat(np.arange(len(counts)), counts)))
    val, test = (near(rng.integers(0, len(counts), n)) for n in (23, 31))
    text = near(np.arange(len(counts)))[0]
    return FeatureSet(tuple("abcdefghij"[: len(counts)]), *train, *val, *test, text, 8.0)


def config(**settings) -> gda.Config:
    return gda.Config(data=DataConfig(features="x"), **settings)


def numpy_gda(x, labels, prior):
    """W (E, C) and b as the paper writes them: class by class, the pseudo-inverse of the shrunk covariance."""
    x, classes = x.astype(np.float64), len(prior)
    means = [x[labels == k].mean(axis=0) for k in range(classes)]
    centred = np.concatenate([x[labels == k] - means[k] for k in range(classes)])
    n, width = centred.shape
    covariance = np.cov(centred.T)
    precision = width * np.linalg.pinv((n - 1) * covariance + np.trace(covariance) * np.eye(width))
    bias = [np.log(prior[k]) - means[k] @ precision @ means[k] / 2 for k in range(classes)]
    return precision @ np.stack(means, axis=1), np.array(bias)


def densities(f, x, labels, prior, divisor):
    """log π_k + log N(f; μ_k, Σ) without its constant, Σ the pooled covariance: LDA by definition."""
    x, f, classes = x.astype(np.float64), f.astype(np.float64), len(prior)
    means = [x[labels == k].mean(axis=0) for k in range(classes)]
    pooled = sum(np.outer(row - means[k], row - means[k]) for row, k in zip(x, labels, strict=True)) / divisor
    out = np.zeros((len(f), classes))
    for i, row in enumerate(f):
        for k in range(classes):
            out[i, k] = np.log(prior[k]) - (row - means[k]) @ np.linalg.inv(pooled) @ (row - means[k]) / 2
    return out


def shares(data, prior):
    counts = np.bincount(data.train_labels)
    return counts / counts.sum() if prior == "train" else np.full(len(counts), 1 / len(counts))


def centred(scores):
    return scores - scores.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("prior", ["uniform", "train"])
def test_weights_bias_and_logits_equal_the_formula(seed, prior, close):
    data, cfg = features(seed), config(prior=prior)
    weights, bias = gda.discriminant(cfg, data.train, data.train_labels, 5)
    wanted = numpy_gda(data.train, data.train_labels, shares(data, prior))
    close(weights, wanted[0].T, "closed_form", "GDA: weights")
    close(bias, wanted[1], "closed_form", "GDA: bias")
    learned = {"weights": weights, "bias": bias, "text": data.text, "scale": np.array([8.0]), "alpha": np.array([0.3])}
    f = data.test.astype(np.float64)
    scores = 8 * f @ data.text.T + 0.3 * (f @ wanted[0] + wanted[1])
    close(gda.scorer(learned, cfg)(data.test), scores, "scores", "GDA: logits")
    without = {k: learned[k] for k in ("weights", "bias")}
    close(gda.scorer(without, cfg)(data.test), f @ wanted[0] + wanted[1], "closed_form", "GDA: logits without text")


def test_alpha_zero_is_zero_shot_exactly():
    from jclip.features.heads import ZeroShotHead

    data = features(0)
    weights, bias = gda.discriminant(config(), data.train, data.train_labels, 5)
    learned = {"weights": weights, "bias": bias, "text": data.text, "scale": np.array([8.0]), "alpha": np.array([0.0])}
    assert np.array_equal(gda.scorer(learned, config())(data.test), ZeroShotHead(data.text, 8.0)(data.test))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("prior", ["uniform", "train"])
def test_without_shrinkage_it_is_linear_discriminant_analysis(seed, prior, close):
    data = features(seed, counts=(8, 12, 5, 17, 9))
    weights, bias = gda.discriminant(config(shrinkage="none", prior=prior), data.train, data.train_labels, 5)
    ours = gda.gaussian_scores(data.test, weights, bias)
    wanted = densities(data.test, data.train, data.train_labels, shares(data, prior), divisor=51 - 5)
    close(centred(ours), centred(wanted), "closed_form", "GDA: plain LDA")
    assert np.array_equal(ours.argmax(axis=1), wanted.argmax(axis=1))
    shrunk = gda.discriminant(config(prior=prior), data.train, data.train_labels, 5)
    assert np.abs(centred(gda.gaussian_scores(data.test, *shrunk)) - centred(wanted)).max() > 0.1  # shrinkage matters


@pytest.mark.parametrize("solver", ["svd", "lsqr"])
def test_without_shrinkage_it_decides_as_scikit_learn(solver, close):
    sklearn = pytest.importorskip(
        "sklearn.discriminant_analysis", reason="the reference is not installed: pip install '.[parity]'"
    )
    data = features(2, counts=(8,) * 5)  # equal counts: lsqr divides by another number of rows
    weights, bias = gda.discriminant(config(shrinkage="none"), data.train, data.train_labels, 5)
    lda = sklearn.LinearDiscriminantAnalysis(solver=solver).fit(data.train.astype(np.float64), data.train_labels)
    ours = gda.gaussian_scores(data.test, weights, bias)
    assert np.array_equal(ours.argmax(axis=1), lda.predict(data.test.astype(np.float64)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_search_takes_the_first_of_the_best(seed):
    data, cfg = features(seed), config(search_alpha=(1e-3, 0.03, 0.2, 0.3, 5.0, 5.001))
    weights, bias = gda.discriminant(cfg, data.train, data.train_labels, 5)
    f = data.val.astype(np.float64)
    right = [
        int(((8 * f @ data.text.T + a * (f @ weights.T + bias)).argmax(axis=1) == data.val_labels).sum())
        for a in cfg.search_alpha
    ]
    assert len(set(right)) > 1
    assert gda.choose_alpha(cfg, data, weights, bias) == cfg.search_alpha[right.index(max(right))]


def test_rows_that_fix_no_covariance_are_refused():
    data = features(0)

    def solve(data, classes=5, **settings):
        gda.discriminant(config(**settings), data.train, data.train_labels, classes)

    with pytest.raises(DataError, match="2 of 7 classes have no training photos"):
        solve(data, classes=7)
    with pytest.raises(ConfigError, match="shrinkage=none needs at least 35 training rows, got 24"):
        solve(features(0, width=30), shrinkage="none")
    with pytest.raises(DataError, match="covariance is singular: set shrinkage=ridge"):
        dead = data.train.copy()
        dead[:, 3] = dead[:, 2]
        solve(replace(data, train=dead), shrinkage="none")


def test_one_row_per_class_is_its_nearest_mean(capsys):
    """‖f - μ‖² is 2 - 2 f μ of rows of length one: the bias is the same for all classes."""
    data = features(0, counts=(1,) * 5)
    weights, bias = gda.discriminant(config(), data.train, data.train_labels, 5)
    assert "one row per class has no covariance: nearest class means" in capsys.readouterr().err
    near = ((data.test[:, None] - data.train[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert np.array_equal(gda.gaussian_scores(data.test, weights, bias).argmax(axis=1), data.train_labels[near])


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match="views must be at least 1, got 0"):
        config(views=0)
    with pytest.raises(ConfigError, match="search_alpha must have at least one value"):
        config(search_alpha=())


# Whole runs


def train(name, folder, *overrides):
    return toys.train(CONFIGS / name, folder, *overrides)


def test_the_figures_of_the_recorded_features(shared, tmp_path):
    d = np.load(shared / "clip_vitb32_features" / "caltech_lvis.npz")
    metrics = train("features_caltech_lvis.yaml", tmp_path)
    weights, bias = numpy_gda(d["train_features_16"], d["train_labels_16"], np.full(35, 1 / 35))

    def right(part, alpha):
        f = d[f"{part}_features"].astype(np.float64)
        f /= np.linalg.norm(f, axis=1, keepdims=True)
        scores = float(d["logit_scale"]) * f @ d["text_features"].T + alpha * (f @ weights + bias)
        return int((scores.argmax(axis=1) == d[f"{part}_labels"]).sum())

    on_val = [right("val", 10.0**i) for i in range(-4, 3)]
    assert metrics["alpha"] == 10.0 ** (on_val.index(max(on_val)) - 4) == 0.1
    assert [metrics["val_correct"], metrics["test_correct"]] == [max(on_val), right("test", 0.1)] == [608, 904]
    assert metrics["val_top1"] > metrics["zero_shot_val_top1"]


def test_without_text_it_classifies_alone(shared, tmp_path):
    pets = shared / "clip_vitb32_features" / "oxford_pets.npz"
    metrics = train("features_caltech_lvis.yaml", tmp_path, f"data.features={pets}")
    d = np.load(pets)
    weights, bias = numpy_gda(d["keys_16"], d["keys_16_l"], np.full(37, 1 / 37))
    right = ((d["test_f"].astype(np.float64) @ weights + bias).argmax(axis=1) == d["test_l"]).sum()
    assert metrics["test_correct"] == right == 3177
    assert "alpha" not in metrics and not any(k.startswith("zero_shot") for k in metrics)


def test_searching_needs_validation_photos(tmp_path):
    override = toys.smoke_without("val", tmp_path)
    with pytest.raises(ConfigError, match="alpha is chosen on validation photos, and there are none"):
        train("smoke.yaml", tmp_path / "run", override)
    metrics = train("smoke.yaml", tmp_path / "ok", override, "search=false", "alpha=0.5")
    assert "val_top1" not in metrics and metrics["alpha"] == 0.5 and metrics["test_count"] == 63


def test_every_view_of_a_photo_is_a_row(small_models, photo_folder, tmp_path, monkeypatch, capsys, close):
    from jclip.cli import main
    from jclip.features.extraction import TrainingRows, few_shot_features
    from jclip.features.source import source_of
    from jclip.readers import read_weights

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        f"recipe: gda\nmodel: '{small_models['vit']}'\ntemplates: simple\nviews: 3\n"
        f"data: {{root: '{photo_folder}', shots: 2, val_shots: 2}}\n",
        encoding="utf-8",
    )
    assert main(["train", "mine.yaml", "--run", "run"]) == 0
    cfg = read_config("mine.yaml")[1]
    training = TrainingRows(views=3, augment="tip_adapter", seed=1, each_view=True)
    rows = few_shot_features(cfg.data, source_of(cfg), "simple", training)
    assert len(rows.train) == 2 * 3 * 3  # shots x classes x views
    wanted = numpy_gda(rows.train, rows.train_labels, np.full(3, 1 / 3))
    close(np.array(read_weights(Path("run/learned.safetensors"))["bias"].read()), wanted[1], "closed_form", "", True)
    metrics = json.loads(Path("run/result.json").read_text())["metrics"]
    assert metrics["test_count"] == 18 and metrics["val_top1"] >= metrics["zero_shot_val_top1"]
    assert main(["eval", "run"]) == 0
    assert f"{metrics['test_top1']:.4f} ({metrics['test_correct']} of 18)" in capsys.readouterr().out
