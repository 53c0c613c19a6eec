"""TaskRes against NumPy in float64, its training against torch's Adam with coupled decay, and the real features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune import task_res
from jclip.config import DataConfig, OptimConfig
from jclip.errors import ConfigError, DataError
from jclip.features.heads import ZeroShotHead
from jclip.features.precomputed import FeatureSet
from jclip.functional.directions import unit
from jclip.train import on_features as adapt
from jclip.train.configs import read_config, resolved
from jclip.train.run import Run
from tests.recipes import toys

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "task_res"


def features(seed: int, **sizes: int) -> FeatureSet:
    return toys.random_features(seed, **{"width": 7, **sizes})


def raw_text(data: FeatureSet, seed: int) -> np.ndarray:
    """Text features several units long, each of another length."""
    lengths = np.random.default_rng((seed, 9)).uniform(3, 9, (len(data.text), 1))
    return (data.text * lengths).astype(np.float32)


def config(**settings) -> task_res.Config:
    return task_res.Config(data=DataConfig(features="x"), **settings)


def optim(**settings) -> OptimConfig:
    return OptimConfig(**{"lr": 2e-2, "weight_decay": 0.0, "epochs": 4, "batch": 6, **settings})


def numpy_logits(f, text, residual, scale, alpha):
    """Eq. 4-5 in float64, class by class."""
    out = np.zeros((len(f), len(text)))
    for k, (t, x) in enumerate(zip(text.astype(np.float64), residual.astype(np.float64), strict=True)):
        moved = t + alpha * x
        out[:, k] = scale * f.astype(np.float64) @ moved / np.sqrt((moved**2).sum())
    return out


def trained(cfg, data, text, folder) -> np.ndarray:
    with Run(folder, {"recipe": "task_res"}) as run:
        return task_res.train_residual(cfg, run, data, text).arrays["residual"]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_logits_equal_the_formula(seed, alpha, close):
    from jclip.runtime import jt

    data = features(seed)
    text, cfg = raw_text(data, seed), config(alpha=alpha)
    residual = np.random.default_rng((seed, 1)).standard_normal(text.shape).astype(np.float32)
    wanted = numpy_logits(data.test, text, residual, 8.0, alpha)
    close(
        task_res.scorer(task_res.arrays(cfg, text, 8.0, residual), cfg)(data.test), wanted, "scores", "TaskRes: logits"
    )
    trains = task_res.logits(jt.array(data.test), jt.array(text), jt.array(residual), 8.0, alpha)
    close(trains.numpy(), wanted, "scores", "TaskRes: logits in training")


@pytest.mark.parametrize("seed", [0, 1])
def test_no_residual_is_zero_shot_exactly(seed, close):
    data = features(seed)
    for text in (data.text, raw_text(data, seed)):
        cfg = config(alpha=0.7)
        scores = task_res.scorer(task_res.arrays(cfg, text, 8.0, np.zeros_like(text)), cfg)(data.test)
        assert np.array_equal(scores, ZeroShotHead(unit(text), 8.0)(data.test))
        close(scores, ZeroShotHead(data.text, 8.0)(data.test), "scores")


def test_longer_text_is_a_smaller_alpha(close, tmp_path):
    data = features(0)
    long, short = config(alpha=2.0, optim=optim()), config(alpha=2.0 / 8, optim=optim())
    moved = trained(long, data, 8 * data.text, tmp_path / "long")
    close(moved, trained(short, data, data.text, tmp_path / "short"), "trajectory", "TaskRes: α and the text's length")
    with pytest.raises(AssertionError, match="differs by"):
        close(moved, trained(replace(short, alpha=2.0), data, data.text, tmp_path / "other"), "trajectory")


def torch_training(data, text, cfg, decoupled=False):
    """Written in torch from the paper: Adam with coupled decay, an epoch at 1e-5, then a cosine stepped by epochs."""
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    x = torch.nn.Parameter(torch.zeros(text.shape))
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimiser = kind([x], lr=cfg.optim.lr, weight_decay=cfg.decay)
    schedule, rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, cfg.optim.epochs), []
    for epoch in range(cfg.optim.epochs):
        if cfg.schedule == "coop":
            optimiser.param_groups[0]["lr"] = 1e-5 if epoch == 0 else schedule.get_last_lr()[0]
        rates.append(optimiser.param_groups[0]["lr"])
        order = np.random.default_rng((cfg.seed, epoch)).permutation(len(data.train))
        for start in range(0, len(order), cfg.optim.batch):
            rows = order[start : start + cfg.optim.batch]
            t = torch.nn.functional.normalize(torch.tensor(text) + cfg.alpha * x, dim=1)
            scores = data.scale * torch.tensor(data.train[rows]) @ t.T
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(scores, torch.tensor(data.train_labels[rows])).backward()
            optimiser.step()
        if epoch:
            optimiser.param_groups[0]["lr"] = schedule.get_last_lr()[0]
            schedule.step()
    return x.detach().numpy(), rates


@pytest.mark.parametrize("seed", [0, 1])
def test_one_step_equals_torch(seed, tmp_path, close):
    data = features(seed)
    cfg = config(schedule="optim", seed=seed, optim=optim(epochs=1, batch=99, schedule="constant"))
    text = raw_text(data, seed)
    moved = trained(cfg, data, text, tmp_path)
    close(moved, torch_training(data, text, cfg)[0], "optimiser", "TaskRes: one step")
    assert np.abs(moved).max() > 0.01


@pytest.mark.parametrize("seed", [0, 1])
def test_training_equals_torch(seed, tmp_path, close):
    data, cfg = features(seed), config(alpha=1.5, decay=0.05, seed=seed, optim=optim())
    text = raw_text(data, seed)
    moved, (wanted, rates) = trained(cfg, data, text, tmp_path), torch_training(data, text, cfg)
    close(moved, wanted, "trajectory", "TaskRes: residual after 12 steps")
    for other in (torch_training(data, text, cfg, decoupled=True)[0], np.zeros_like(wanted)):
        with pytest.raises(AssertionError, match="differs by"):
            close(moved, other, "trajectory")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    close([line["lr"] for line in lines], rates, "schedule", "TaskRes: learning rates")
    assert rates[0] == 1e-5 and rates[1] == cfg.optim.lr and rates[-1] > 0


def test_a_run_that_is_all_warm_up_is_reported(capsys):
    assert adapt.coop_rate(OptimConfig(lr=0.1, epochs=2), 3)(3) == 0.1 and not capsys.readouterr().err
    assert adapt.coop_rate(OptimConfig(lr=0.1, epochs=1), 3)(2) == 1e-5
    assert "the only epoch is the warm-up, at 1e-05; lr begins with the second" in capsys.readouterr().err


def test_sgd_takes_its_own_decay(tmp_path, close):
    data = features(0)
    sgd = optim(name="sgd", lr=0.05, schedule="constant", epochs=2, batch=99)
    own = config(schedule="optim", decay=0.0, optim=replace(sgd, weight_decay=0.3))
    in_loss = config(schedule="optim", decay=0.3, optim=sgd)
    moved = [trained(cfg, data, data.text, tmp_path / str(i)) for i, cfg in enumerate((own, in_loss))]
    close(*moved, "trajectory", "TaskRes: decay in the loss is coupled decay")


def test_learning_rate_zero_stays_at_zero_shot(tmp_path):
    data = features(0)
    cfg = config(schedule="optim", optim=optim(lr=0.0))
    assert not trained(cfg, data, data.text, tmp_path).any()


def test_photos_take_raw_text_and_as_many_views_as_photos(small_models, photo_folder, tmp_path, close):
    source = f"model={small_models['vit']}"
    data = [f"data.root={photo_folder}", "data.features=", "data.val_shots=2", "data.shots=4"]
    settings = [source, *data, "views=3", "selection=last", "optim.batch=5", "optim.epochs=2"]
    module, cfg, _ = read_config(str(CONFIGS / "smoke.yaml"), settings)
    seen = {}
    with Run(tmp_path, resolved(module, cfg)) as run:
        run.save_learned = lambda arrays, **got: seen.update(arrays)
        metrics = module.run(cfg, run)
    assert metrics["test_count"] == 18
    lengths = np.linalg.norm(seen["text"], axis=1)
    assert np.abs(lengths - 1).min() > 0.01
    zero_shot = module.scorer({**seen, "residual": np.zeros_like(seen["text"])}, cfg)
    from jclip.features.extraction import few_shot_features
    from jclip.features.source import source_of

    plain = few_shot_features(cfg.data, source_of(cfg), cfg.templates, training=None)
    close(zero_shot(plain.test), ZeroShotHead(plain.text, plain.scale)(plain.test), "scores", "TaskRes: raw text")
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [3, 6]  # 12 photos in batches of 5, whatever the views


def test_several_templates_are_averaged_raw(small_models, close):
    from jclip.features.heads import encode_prompts
    from jclip.features.source import ModelSource

    source, data = ModelSource(small_models["vit"]), features(0, width=24)
    cfg = replace(config(), model="x", templates="openai7")
    got = task_res.base_text(cfg, data, source)
    from jclip.prompts.templates import fill, load_templates

    for k, name in enumerate(data.classnames):
        prompts = [fill(t, name) for t in load_templates("openai7")]
        alone = encode_prompts(source.model, source.model.tokenize(prompts))
        close(got[k], alone.astype(np.float64).mean(axis=0), "features", "TaskRes: raw template means")
    with pytest.raises(ConfigError, match="gives features of 24 dimensions and not 7: set model"):
        task_res.base_text(cfg, features(0), source)


def train(name, folder, *overrides):
    return toys.train(CONFIGS / name, folder, *overrides)


def test_the_real_features(shared, tmp_path):
    metrics = train("features_caltech_lvis.yaml", tmp_path)
    assert metrics["zero_shot_test_correct"] == 900 and metrics["test_count"] == 922
    assert metrics["val_top1"] > metrics["zero_shot_val_top1"]
    assert metrics["test_correct"] == 909


def test_bad_inputs_are_reported_in_one_line(tmp_path):
    no_text, no_val = (toys.smoke_without(part, tmp_path) for part in ("text", "val"))
    with pytest.raises(DataError, match="come without text features: set model="):
        train("smoke.yaml", tmp_path / "a", no_text)
    with pytest.raises(ConfigError, match="the epoch is chosen on validation photos, and there are none"):
        train("smoke.yaml", tmp_path / "b", no_val)
    metrics = train("smoke.yaml", tmp_path / "c", no_val, "selection=last")
    assert "val_top1" not in metrics and metrics["test_count"] == 63
    for wrong in ("views=0", "decay=-1.0"):
        with pytest.raises(ConfigError, match="views must be at least 1 and decay at least 0"):
            read_config(str(CONFIGS / "smoke.yaml"), [wrong])
