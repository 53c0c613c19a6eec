"""Tip-Adapter against NumPy in float64, its training against torch, and the figures of the recorded real features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune import tip_adapter
from jclip.config import DataConfig, OptimConfig
from jclip.errors import ConfigError, DataError
from jclip.features.precomputed import FeatureSet, read_precomputed
from jclip.train import on_features as adapt
from jclip.train.run import Run
from tests.recipes import toys

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "tip_adapter"


def features(seed: int, classes: int = 5, width: int = 7, shots: int = 3) -> FeatureSet:
    rng = np.random.default_rng(seed)

    def unit(*shape):
        x = rng.standard_normal(shape)
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    labels = rng.permutation(np.repeat(np.arange(classes), shots))
    parts = [unit(n, width) for n in (len(labels), 23, 31)]
    names = tuple("abcde")
    val, test = rng.integers(0, classes, 23), rng.integers(0, classes, 31)
    return FeatureSet(names, parts[0], labels, parts[1], val, parts[2], test, unit(classes, width), 8.0)


def numpy_logits(f, data, alpha, beta, keys=None):
    """Eq. 6 in float64, row by row."""
    keys = (data.train if keys is None else keys).astype(np.float64)
    out = np.zeros((len(f), len(data.text)))
    for i, x in enumerate(f.astype(np.float64)):
        out[i] = data.scale * data.text.astype(np.float64) @ x
        for key, label in zip(keys, data.train_labels, strict=True):
            out[i, label] += alpha * np.exp(-beta * (1 - x @ key))
    return out


def learned(data, alpha, beta, keys=None):
    values = np.eye(len(data.text), dtype=np.float32)[data.train_labels]
    arrays = {"keys": data.train if keys is None else keys, "values": values, "text": data.text}
    return arrays | {k: np.array([v]) for k, v in (("scale", data.scale), ("alpha", alpha), ("beta", beta))}


def config(**settings) -> tip_adapter.Config:
    return tip_adapter.Config(data=DataConfig(features="x"), **settings)


def optim(**settings) -> OptimConfig:
    return OptimConfig(**{"lr": 1e-2, "eps": 1e-4, "epochs": 3, "batch": 6, **settings})


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("alpha, beta", [(1.17, 1.0), (3.0, 5.5), (0.5, 12.0)])
def test_logits_equal_the_formula(seed, alpha, beta, close, monkeypatch):
    monkeypatch.setattr(adapt, "ROWS_AT_ONCE", 10)  # in parts, the last one shorter
    data = features(seed)
    ours = tip_adapter.scorer(learned(data, alpha, beta), config())(data.test)
    close(ours, numpy_logits(data.test, data, alpha, beta), "scores", "Tip-Adapter: logits")


def test_alpha_zero_is_zero_shot_exactly_and_large_beta_the_nearest_key():
    from jclip.functional.similarity import zero_shot_scores
    from jclip.runtime import jt

    data = features(0)
    scores = tip_adapter.scorer(learned(data, 0.0, 5.5), config())(data.test)
    assert np.array_equal(scores, zero_shot_scores(jt.array(data.test), jt.array(data.text), data.scale).numpy())
    similarity = np.sort(data.test @ data.train.T, axis=1)
    clear = similarity[:, -1] - similarity[:, -2] > 0.05  # e^(100 * 0.05): the nearest key outvotes all others
    assert clear.sum() > 15
    nearest = data.train_labels[(data.test @ data.train.T).argmax(axis=1)]
    scores = tip_adapter.scorer(learned(replace(data, scale=0.0), 1e30, 100.0), config())(data.test)
    assert np.array_equal(scores.argmax(axis=1)[clear], nearest[clear])


def test_the_grid_is_the_authors(close):
    assert len(tip_adapter.grid(3, 20)) * len(tip_adapter.grid(7, 200)) == 4000
    close(tip_adapter.grid(7, 200)[[0, 1, 199]], [0.1, 0.1 + 6.9 / 200, 0.1 + 199 * 6.9 / 200], "closed_form")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_search_finds_the_first_of_the_best(seed, monkeypatch):
    data, cfg = features(seed), config(search=True, search_alpha=30.0, search_beta=12.0, search_steps=(7, 9))
    values = np.eye(5, dtype=np.float32)[data.train_labels]
    best, wanted = -1, None
    for beta in tip_adapter.grid(12.0, 9):
        for alpha in tip_adapter.grid(30.0, 7):
            right = int((numpy_logits(data.val, data, alpha, beta).argmax(axis=1) == data.val_labels).sum())
            if right > best:
                best, wanted = right, (alpha, beta)
    assert tip_adapter.search(cfg, data, data.train, values) == wanted
    monkeypatch.setattr(adapt, "SCORES_AT_ONCE", 7 * 5 * 4)  # validation in parts of four rows
    assert tip_adapter.search(cfg, data, data.train, values) == wanted


def torch_training(data, cfg):
    """-F written in torch from the paper: the same batches, AdamW, cosine per iteration."""
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    keys = torch.nn.Linear(data.train.shape[1], len(data.train), bias=False)
    keys.weight = torch.nn.Parameter(torch.tensor(data.train))
    values = torch.nn.functional.one_hot(torch.tensor(data.train_labels), 5).float()
    batches = -(-len(data.train) // cfg.optim.batch)
    optimiser = torch.optim.AdamW(keys.parameters(), lr=cfg.optim.lr, eps=cfg.optim.eps)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, cfg.optim.epochs * batches)
    for epoch in range(cfg.optim.epochs):
        order = np.random.default_rng((cfg.seed, epoch)).permutation(len(data.train))
        for start in range(0, len(order), cfg.optim.batch):
            rows = order[start : start + cfg.optim.batch]
            f = torch.tensor(data.train[rows])
            cache = ((-1) * (cfg.beta - cfg.beta * keys(f))).exp() @ values
            logits = data.scale * f @ torch.tensor(data.text).T + cfg.alpha * cache
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(data.train_labels[rows]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return keys.weight.detach().numpy()


@pytest.mark.parametrize("seed", [0, 1])
def test_training_equals_torch(seed, tmp_path, close):
    data, cfg = features(seed), config(train=True, alpha=2.0, beta=3.0, selection="last", seed=seed, optim=optim())
    values = np.eye(5, dtype=np.float32)[data.train_labels]
    with Run(tmp_path, {"recipe": "tip_adapter"}) as run:
        keys, metrics = tip_adapter.train_keys(cfg, run, data, values, source=None)
    close(keys, torch_training(data, cfg), "trajectory", "Tip-Adapter-F: keys after 9 steps")
    with pytest.raises(AssertionError, match="differs by"):
        close(data.train, torch_training(data, cfg), "trajectory")  # it moved
    assert set(metrics) == {"test_top1_last_epoch", "test_top1_best_epoch", "best_epoch"}


def test_learning_rate_zero_is_tip_adapter(tmp_path):
    data, cfg = features(0), config(train=True, optim=optim(lr=0.0))
    with Run(tmp_path, {"recipe": "tip_adapter"}) as run:
        keys, _ = tip_adapter.train_keys(cfg, run, data, np.eye(5, dtype=np.float32)[data.train_labels], None)
    assert np.array_equal(keys, data.train)


# The recorded real features


def independent(path, alpha, beta):
    """Zero-shot and Tip-Adapter in NumPy float64 from the file's own arrays."""
    d = np.load(path)
    f, text = d["test_features"].astype(np.float64), d["text_features"].astype(np.float64)
    keys, labels = d["train_features_16"].astype(np.float64), d["train_labels_16"]
    zero_shot = float(d["logit_scale"]) * f @ text.T
    cache = np.exp(-beta * (1 - f @ keys.T)) @ np.eye(len(text))[labels]
    return [int((s.argmax(1) == d["test_labels"]).sum()) for s in (zero_shot, zero_shot + alpha * cache)]


def train(name, folder, *overrides):
    return toys.train(CONFIGS / name, folder, *overrides)


def test_the_published_figures_of_the_training_free_config(shared, tmp_path):
    metrics = train("features_caltech_lvis.yaml", tmp_path)
    path = shared / "clip_vitb32_features" / "caltech_lvis.npz"
    assert [metrics["zero_shot_test_correct"], metrics["test_correct"]] == [900, 904] == independent(path, 1.0, 5.5)
    assert metrics["test_count"] == 922
    assert (round(metrics["zero_shot_test_top1"], 4), round(metrics["test_top1"], 4)) == (0.9761, 0.9805)


def test_the_search_and_the_training_configs_beat_zero_shot_on_validation(shared, tmp_path):
    for name in ("features_caltech_lvis_search.yaml", "features_caltech_lvis_F.yaml"):
        metrics = train(name, tmp_path / name)
        assert metrics["val_top1"] > metrics["zero_shot_val_top1"]
        assert metrics["test_top1"] >= metrics["zero_shot_test_top1"]
    assert 1 <= metrics["best_epoch"] <= 20 and 0.9 < metrics["test_top1_last_epoch"] <= 1


def test_one_thread_gives_the_same_bits_twice(shared, tmp_path):
    import os
    import subprocess
    import sys

    for name in ("a", "b"):
        command = [
            sys.executable,
            "-m",
            "finetune",
            "train",
            str(CONFIGS / "features_caltech_lvis_F.yaml"),
            "optim.epochs=3",
        ]
        done = subprocess.run(
            [*command, "--run", str(tmp_path / name)],
            cwd=CONFIGS.parent.parent, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a" / "learned.safetensors").read_bytes() == (
        tmp_path / "b" / "learned.safetensors"
    ).read_bytes()


# Photos, from folders to a results file


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_photos_with_trained_keys_from_folders_to_results(
    kind, small_models, photo_folder, tmp_path, monkeypatch, capsys
):
    from jclip.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        f"recipe: tip_adapter\nmodel: '{small_models[kind]}'\ntemplates: simple\nviews: 2\ntrain: true\nsearch: true\n"
        f"search_steps: [4, 5]\nsearch_alpha: 200.0\ndata: {{root: '{photo_folder}', shots: 4, val_shots: 2}}\n"
        "optim: {epochs: 2, batch: 5}\n",
        encoding="utf-8",
    )
    assert main(["train", "mine.yaml", "--run", "run"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    got = {k for k in result["provenance"] if k.endswith("_sha256")}
    assert got == {"train_sha256", "val_sha256", "test_sha256", "weights_sha256"}
    metrics = result["metrics"]
    assert metrics["test_count"] == 18 and metrics["val_top1"] >= metrics["zero_shot_val_top1"]
    assert main(["eval", "run"]) == 0
    assert f"{metrics['test_top1']:.4f} ({metrics['test_correct']} of 18)" in capsys.readouterr().out
    assert main(["predict", "run", str(photo_folder / "test")]) == 0
    lines = (tmp_path / "results" / "result.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 18 and all(sorted(line.rsplit(" ", 3)[1:]) == ["0", "1", "2"] for line in lines)
    order = sorted(p.name for p in (photo_folder / "train").iterdir())
    label = {str(i): str(order.index(n)) for i, n in enumerate(("red_thing", "绿 thing", "blue thing"))}
    truth = sum(line.rsplit(" ", 3)[1] == label[line.split()[1][0]] for line in lines)
    assert truth == metrics["test_correct"]
    per_class = (tmp_path / "run" / "per_class.csv").read_text(encoding="utf-8").splitlines()
    assert len(per_class) == 4 and sum(int(row.split(",")[1]) for row in per_class[1:]) == 18


def test_eval_and_predict_take_the_config_that_was_trained(small_models, photo_folder, tmp_path, monkeypatch, capsys):
    from jclip.cli import main

    monkeypatch.chdir(tmp_path)
    settings = [
        f"model={small_models['vit']}",
        f"data.root={photo_folder}",
        "data.features=",
        "data.val_shots=2",
        "views=1",
    ]
    config = [str(CONFIGS / "smoke.yaml"), *settings]
    assert main(["eval", *config]) == 2
    assert "holds no finished run (no result.json): run `train` to its end first" in capsys.readouterr().err
    assert main(["train", *config]) == 0
    assert main(["eval", *config]) == 0
    assert main(["predict", *config, str(photo_folder / "test"), "--out", "r.csv"]) == 0
    assert len((tmp_path / "r.csv").read_text(encoding="utf-8").splitlines()) == 19
    run = next((tmp_path / "runs" / "tip_adapter").iterdir())
    assert main(["eval", str(run), f"data.root={photo_folder}", "--out", "elsewhere"]) == 0
    assert json.loads((tmp_path / "elsewhere" / "eval.json").read_text())["count"] == 18


def test_prediction_needs_the_model_of_the_features(small_models, photo_folder, tmp_path, monkeypatch, capsys):
    from jclip.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["train", str(CONFIGS / "smoke.yaml"), "--run", "run"]) == 0
    assert main(["predict", "run", str(photo_folder / "test")]) == 2
    assert "learned from precomputed features: name the model that made them with --model" in capsys.readouterr().err
    assert main(["predict", "run", str(photo_folder / "test"), "--model", str(small_models["vit"])]) == 2
    assert "gives 24-dimensional features, the run learned on 16" in capsys.readouterr().err
    assert main(["predict", "nowhere", str(photo_folder)]) == 2
    assert "holds no finished run" in capsys.readouterr().err


def test_features_without_text_ask_for_a_model(shared, tmp_path):
    pets = shared / "clip_vitb32_features" / "oxford_pets.npz"
    with pytest.raises(DataError, match="come without text features: set model="):
        train("features_caltech_lvis.yaml", tmp_path, f"data.features={pets}")


def test_searching_needs_validation_photos(tmp_path):
    data = np.load(CONFIGS.parent.parent / "jclip" / "assets" / "smoke_features.npz")
    arrays = {k: data[k] for k in data.files} | {"val_features": np.zeros((0, 16)), "val_labels": np.zeros(0, int)}
    np.savez(tmp_path / "no_val.npz", **arrays)
    assert len(read_precomputed(str(tmp_path / "no_val.npz"), 4).val) == 0
    with pytest.raises(ConfigError, match="chosen on validation photos, and there are none"):
        train("smoke.yaml", tmp_path / "run", f"data.features={tmp_path / 'no_val.npz'}")
    metrics = train(
        "smoke.yaml", tmp_path / "ok", f"data.features={tmp_path / 'no_val.npz'}", "search=false", "selection=last"
    )
    assert "val_top1" not in metrics and metrics["test_count"] == 63
