"""The linear probe against its objective written out, torch's L-BFGS and AdamW, and the recorded real features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune import cross_modal, linear_probe
from jclip.config import DataConfig, OptimConfig
from jclip.errors import CheckpointError, ConfigError, DataError
from jclip.features.precomputed import FeatureSet
from jclip.features.source import ModelSource
from jclip.train.configs import read_config
from jclip.train.run import Run
from tests.recipes import toys

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "linear_probe"
COUNTS = (3, 6, 2, 9, 4)  # rows per class


def features(seed: int, width: int = 7, counts=COUNTS) -> FeatureSet:
    """Rows of lengths from 2 to 20, as towers make them."""
    rng = np.random.default_rng(seed)
    centres = 3 * rng.standard_normal((len(counts), width))

    def near(labels):
        return (centres[labels] + 3 * rng.standard_normal((len(labels), width))).astype(np.float32), labels

    train = near(rng.permutation(np.repeat(np.arange(len(counts)), counts)))
    val, test = (near(rng.integers(0, len(counts), n)) for n in (23, 31))
    return FeatureSet(tuple("abcdefghij"[: len(counts)]), *train, *val, *test, None, 8.0)


def config(**settings) -> linear_probe.Config:
    return linear_probe.Config(data=DataConfig(features="x"), **settings)


def written_out(x, rows, labels, classes, c):
    """The objective row by row; the gradient by central differences."""

    def value(x):
        weights, bias = x[: classes * rows.shape[1]].reshape(classes, -1), x[classes * rows.shape[1] :]
        total = (weights**2).sum() / 2
        for row, label in zip(rows, labels, strict=True):
            scores = weights @ row + bias
            total += c * (np.log(np.exp(scores).sum()) - scores[label])
        return total

    steps = 1e-5 * np.eye(len(x))
    return value(x), np.array([(value(x + s) - value(x - s)) / 2e-5 for s in steps])


def torch_fit(rows, labels, classes, c):
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    x, y = torch.tensor(rows.astype(np.float64)), torch.tensor(labels)
    head = torch.nn.Linear(rows.shape[1], classes).double()
    options = {"max_iter": 500, "tolerance_grad": 1e-8, "tolerance_change": 1e-13, "line_search_fn": "strong_wolfe"}
    optimiser = torch.optim.LBFGS(head.parameters(), **options)

    def loss():
        optimiser.zero_grad()
        cross_entropy = torch.nn.functional.cross_entropy(head(x), y, reduction="sum")
        value = head.weight.square().sum() / 2 + c * cross_entropy
        value.backward()
        return value

    optimiser.step(loss)
    bias = head.bias.detach().numpy()
    return loss().item(), head.weight.detach().numpy(), bias - bias.mean()


@pytest.mark.parametrize("seed, c", [(0, 0.3), (1, 2.0)])
def test_objective_and_gradient_are_those_written_out(seed, c, close):
    data, rng = features(seed), np.random.default_rng(seed)
    x, rows = 0.3 * rng.standard_normal(5 * 8), data.train.astype(np.float64)
    value, gradient = linear_probe.objective(x, rows, data.train_labels, 5, c)
    wanted = written_out(x, rows, data.train_labels, 5, c)
    close(value, wanted[0], "closed_form", "linear probe: objective")
    close(gradient, wanted[1], "gradient_relative", "linear probe: gradient", relative=True)
    shifted = np.concatenate([x[:35], x[35:] + 3])
    close(linear_probe.objective(shifted, rows, data.train_labels, 5, c)[0], value, "closed_form")  # no price on b


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("c", [1e-2, 5.0])
def test_the_fit_is_torchs(seed, c, close):
    data, cfg = features(seed), config(tolerance=1e-7)
    found = linear_probe.fit(cfg, data, c)
    weights, bias = linear_probe.parted(found.x, 5)
    value, wanted, wanted_bias = torch_fit(data.train, data.train_labels, 5, c)
    assert found.converged
    close(found.value, value, "loss", "linear probe: least objective")
    close(weights, wanted, "trajectory", "linear probe: weights")
    close(bias, wanted_bias, "trajectory", "linear probe: bias")
    scores = linear_probe.scorer({"weights": weights, "bias": bias}, cfg)(data.test)
    close(scores, data.test.astype(np.float64) @ weights.T + bias, "closed_form", "linear probe: logits")


def test_hardly_any_weight_on_the_data_leaves_the_shares_of_the_classes(close):
    data = features(0)
    weights, bias = linear_probe.parted(linear_probe.fit(config(tolerance=1e-9), data, 1e-9).x, 5)
    shares = np.exp(bias) / np.exp(bias).sum()
    close(shares, np.array(COUNTS) / sum(COUNTS), "loss", "linear probe: bias at C = 1e-9")
    close(weights, np.zeros((5, 7)), "loss")


def test_cross_entropies_near_zero_are_exact(close):
    rows, x = np.array([[40.0]]), np.array([1.0, 0.0, 0.0, 0.0])  # scores 40 and 0: CE is log(1 + e^-40)
    value, gradient = linear_probe.objective(x, rows, np.array([0]), 2, 1e17)
    wrong = 1e17 * np.exp(-40.0)
    close([value - 0.5, *gradient], [wrong, 1 - 40 * wrong, 40 * wrong, -wrong, wrong], "closed_form")


def test_normalize_makes_lengths_irrelevant(close):
    data = features(0)
    lengths = np.random.default_rng(1).uniform(0.5, 2, (len(data.train), 1)).astype(np.float32)
    stretched = replace(data, train=data.train * lengths, test=data.test * 3)
    for normalize, same in ((True, True), (False, False)):
        cfg = config(normalize=normalize)
        fits = [linear_probe.parted(linear_probe.fit(cfg, d, 10.0).x, 5) for d in (data, stretched)]
        scores = [
            linear_probe.scorer(dict(zip(("weights", "bias"), f, strict=True)), cfg)(d.test)
            for f, d in zip(fits, (data, stretched), strict=True)
        ]
        assert (np.abs(scores[0] - scores[1]).max() < 0.1) == same
        if same:
            close(scores[0], scores[1], "trajectory", "linear probe: stretched features")


def coops_search(data, cfg):
    """The binary search as CoOp runs it, every fit from scratch, but with ties to the smaller C from the start."""

    def accuracy(c):
        weights, bias = linear_probe.parted(linear_probe.fit(cfg, data, c).x, 5)
        return ((data.val.astype(np.float64) @ weights.T + bias).argmax(axis=1) == data.val_labels).mean()

    found = [accuracy(c) for c in sorted(cfg.search_C)]
    peak = sorted(cfg.search_C)[int(np.argmax(found))]
    left, right = np.log10(peak) - 1, np.log10(peak) + 1
    for _ in range(cfg.search_rounds):
        if accuracy(10**left) >= accuracy(10**right):
            right = (left + right) / 2
        else:
            left = (left + right) / 2
    return found, left if accuracy(10**left) >= accuracy(10**right) else right


@pytest.mark.parametrize("seed", [0, 3, 8])
def test_the_search_is_coops(seed, close):
    data, cfg = features(seed), config(search_C=(1.0, 1e-2, 1e-4, 1e2), search_rounds=4)
    c, fitted = linear_probe.search(cfg, data)
    found, wanted = coops_search(data, cfg)
    assert len(set(found)) > 1
    close(np.log10(c), wanted, "closed_form")
    close(fitted.x, linear_probe.fit(cfg, data, c).x, "closed_form")


def test_ties_go_to_the_smaller_c(close):
    data = features(0)
    tied = replace(data, val=data.train[:1] * 0, val_labels=np.array([4]))  # only the bias decides: never class 4
    cfg = config(search_C=(1e-3, 1e-6, 1e-5), search_rounds=3)
    c, _ = linear_probe.search(cfg, tied)
    close(c / 1e-7, 1.0, "closed_form")  # a tenth of the smallest
    c, _ = linear_probe.search(replace(cfg, search_rounds=0), tied)
    close(c / 1e-7, 1.0, "closed_form")


def test_each_c_is_looked_at_once(monkeypatch):
    data, seen = features(0), []
    look = linear_probe.look
    monkeypatch.setattr(linear_probe, "look", lambda cfg, data, c, known: seen.append(c) or look(cfg, data, c, known))
    linear_probe.search(config(search_C=(1e-2, 1.0), search_rounds=5), data)
    assert len(seen) == len(set(seen)) <= 2 + 2 + 5


def test_wrong_settings_and_data_are_refused():
    for settings, message in (
        ({"C": 0.0}, "C and search_C must be above 0"),
        ({"search_C": ()}, "search_C have at least one value"),
        ({"search_C": (1.0, -1.0)}, "C and search_C must be above 0"),
        ({"iterations": 0}, "iterations and every must be at least 1"),
        ({"search_rounds": -1}, "search_rounds at least 0"),
        ({"tolerance": 0.0}, "tolerance above 0"),
        ({"every": 0}, "every must be at least 1"),
        ({"features": "penultimate"}, "features=penultimate needs photos and a model"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(**settings)
    photos = {"data": DataConfig(root="x"), "model": "x", "features": "penultimate", "init": "zeroshot"}
    with pytest.raises(ConfigError, match="init=zeroshot needs features=projected"):
        linear_probe.Config(**photos, solver="sgd")
    assert linear_probe.Config(**photos).solver == "lbfgs"  # which has no start of that name
    data = features(0)
    with pytest.raises(DataError, match="2 of 7 classes have no training photos"):
        linear_probe.fit(config(), replace(data, classnames=tuple("abcdefg")), 1.0)


# In small steps


def in_steps(**settings) -> linear_probe.Config:
    """24 samples in batches of 7: passes of three steps that drop three samples, epochs of four steps."""
    return config(**{"solver": "sgd", "logit_scale": 2.0, "every": 4, "optim": optim(), **settings})


def optim(**settings) -> OptimConfig:
    return OptimConfig(**{"lr": 1e-2, "weight_decay": 0.1, "warmup": 3, "epochs": 3, "batch": 7, **settings})


def learned(cfg, data, folder, settings=None):
    """W that training ends with, from the config's start."""
    photos, start = (of_length_one(data.train), data.train_labels), linear_probe.initial(cfg, data)
    with Run(folder, {"recipe": "linear_probe"}) as run:
        trained = linear_probe.train_head(cfg, run, data, photos, start, settings or cfg.optim)
    return trained.arrays["weights"]


def of_length_one(rows):
    return (rows / np.sqrt((rows.astype(np.float64) ** 2).sum(axis=1, keepdims=True))).astype(np.float32)


def with_text(data: FeatureSet) -> FeatureSet:
    text = np.random.default_rng(7).standard_normal((data.classes, data.train.shape[1]))
    return replace(data, text=of_length_one(text))


def torch_steps(cfg, data):
    """Written in torch from the paper: an endless loader of photos, a head without bias, AdamW."""
    torch = pytest.importorskip("torch", reason=toys.NO_TORCH)
    head = torch.nn.Linear(data.train.shape[1], data.classes, bias=False)
    head.load_state_dict({"weight": torch.tensor(linear_probe.initial(cfg, data))})
    settings = cfg.optim
    loader = toys.torch_loader((cfg.seed, 0), data.train, data.train_labels, settings.batch)
    optimiser = torch.optim.AdamW(head.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    idle = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings.lr)
    for rate in toys.torch_rates(idle, settings, settings.epochs * cfg.every):
        optimiser.param_groups[0]["lr"] = rate
        photos, labels = next(loader)
        scores = head(torch.nn.functional.normalize(photos, dim=1)) * torch.tensor(cfg.logit_scale).exp()
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(scores, labels).backward()
        optimiser.step()
    return head.weight.detach().numpy()


@pytest.mark.parametrize("seed", [0, 1])
def test_scores_in_steps_equal_the_formula(seed, close):
    data, cfg = features(seed), in_steps(logit_scale=4.60517)
    weights = np.random.default_rng(seed).standard_normal((5, 7)).astype(np.float32)
    ours = linear_probe.scorer({"weights": weights}, cfg)(data.test)
    wanted = [[np.exp(4.60517) * (w @ x) / np.sqrt(x @ x) for w in np.float64(weights)] for x in np.float64(data.test)]
    close(ours, wanted, "scores", "linear probe: logits in steps")
    close(linear_probe.scorer({"weights": weights}, cfg)(3 * data.test), ours, "scores")  # lengths are irrelevant


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("init", ["random", "zeroshot"])
def test_training_in_steps_equals_torch(seed, init, tmp_path, close):
    data, cfg = with_text(features(seed)), in_steps(init=init, seed=seed, selection="last")
    ours, wanted = learned(cfg, data, tmp_path), torch_steps(cfg, data)
    close(ours, wanted, "trajectory", "linear probe: W after 12 steps")
    with pytest.raises(AssertionError, match="differs by"):
        close(linear_probe.initial(cfg, data), wanted, "trajectory")  # it moved
    once = replace(cfg, every=1, optim=optim(warmup=0.0, epochs=1))
    close(learned(once, data, tmp_path / "once"), torch_steps(once, data), "optimiser", "linear probe: W after a step")


@pytest.mark.parametrize("seed", [1, 2])
def test_starts_in_steps(seed):
    data = with_text(features(seed))
    start = linear_probe.initial(in_steps(seed=seed), data)
    assert start.shape == (5, 7) and start.dtype == np.float32 and np.abs(start).max() <= 1 / np.sqrt(7)
    assert np.abs(start).max() > 0.8 / np.sqrt(7) and abs(start.mean()) < 0.1
    assert not np.array_equal(start, linear_probe.initial(in_steps(seed=9), data))
    assert np.array_equal(linear_probe.initial(in_steps(init="zeroshot"), data), data.text)
    with pytest.raises(DataError, match="come without text features"):
        linear_probe.initial(in_steps(init="zeroshot"), replace(data, text=None))


@pytest.mark.parametrize("seed", [1, 2])
def test_it_is_cross_modal_adaptation_without_texts(seed, tmp_path):
    data = with_text(replace(features(seed), train=of_length_one(features(seed).train)))
    same = {"init": "random", "logit_scale": 2.0, "every": 4, "optim": optim(), "seed": seed, "selection": "last"}
    alone = cross_modal.Config(data=DataConfig(features="x"), texts=False, **same)
    with Run(tmp_path / "cross", {"recipe": "cross_modal"}) as run:
        texts = data.text, np.arange(5)
        theirs = cross_modal.train_head(alone, run, data, (data.train, data.train_labels), texts, alone.optim)
    assert np.array_equal(learned(in_steps(**same), data, tmp_path / "probe"), theirs.arrays["head"])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_grid_keeps_the_best_on_validation(seed, tmp_path):
    data = features(seed)
    cfg = in_steps(grid_lr=(1e-6, 0.3), grid_weight_decay=(0.0, 0.5), grid_batch=(6, 25, 24), optim=optim(epochs=2))
    grid = [(lr, wd, batch) for lr in (1e-6, 0.3) for wd in (0.0, 0.5) for batch in (6, 24)]  # 25 are too many
    heads, right = [], []
    for number, (lr, decay, batch) in enumerate(grid):
        settings = replace(cfg.optim, lr=lr, weight_decay=decay, batch=batch)
        heads.append(learned(cfg, data, tmp_path / str(number), settings))
        right.append(int(((data.val @ heads[-1].T).argmax(axis=1) == data.val_labels).sum()))
    assert len(set(right)) > 1 and np.argmax(right) > 0  # there is something to choose
    of_ones = replace(data, train=of_length_one(data.train))
    with Run(tmp_path / "all", {"recipe": "linear_probe"}) as run:
        kept, metrics = linear_probe.trained(cfg, run, of_ones, None)
    assert (metrics["lr"], metrics["weight_decay"], metrics["batch"]) == grid[int(np.argmax(right))]
    assert np.array_equal(kept["weights"], heads[int(np.argmax(right))])
    with Run(tmp_path / "none", {"recipe": "linear_probe"}) as run:
        with pytest.raises(ConfigError, match="no batch of that size can be filled from 24 photos: set optim.batch"):
            linear_probe.trained(in_steps(optim=optim(batch=25)), run, of_ones, None)


# Whole runs


def train(name, folder, *overrides):
    return toys.train(CONFIGS / name, folder, *overrides)


def test_convergence_is_reported(tmp_path, capsys):
    metrics = train("smoke.yaml", tmp_path / "a", "search=false", "C=100.0", "iterations=3")
    assert (metrics["converged"], metrics["iterations"]) == (0, 3)
    assert "L-BFGS had not converged after 3 iterations: raise iterations" in capsys.readouterr().err
    metrics = train("smoke.yaml", tmp_path / "b", "search=false", "C=100.0")
    assert metrics["converged"] == 1 and 3 < metrics["iterations"] < 1000
    assert capsys.readouterr().err == ""


def test_the_figures_of_the_recorded_features(shared, tmp_path, close):
    from jclip.readers import read_weights

    d = np.load(shared / "clip_vitb32_features" / "caltech_lvis.npz")
    # the whole search fits seventeen times, for seconds; it ends at C = 1000 as well
    metrics = train("features_caltech_lvis.yaml", tmp_path, "search_C=[1e4]", "search_rounds=0")
    assert [metrics["val_correct"], metrics["test_correct"]] == [606, 904] and metrics["converged"] == 1
    assert round(metrics["C"]) == 1000
    assert metrics["val_top1"] > metrics["zero_shot_val_top1"]
    saved = read_weights(tmp_path / "learned.safetensors")
    weights, bias = (np.array(saved[k].read()) for k in ("weights", "bias"))
    x = d["train_features_16"].astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    odds = np.exp(x @ weights.T + bias)
    wrong = odds / odds.sum(axis=1, keepdims=True) - np.eye(35)[d["train_labels_16"]]
    # a convex objective is least where its gradient is zero: W = C Σ (y - p) x, Σ (y - p) = 0
    close(weights, -metrics["C"] * wrong.T @ x, "trajectory", "linear probe: weights of zero gradient")
    close(metrics["C"] * wrong.sum(axis=0), np.zeros(35), "trajectory", "linear probe: bias of zero gradient")
    f = d["test_features"].astype(np.float64)
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    assert int(((f @ weights.T + bias).argmax(axis=1) == d["test_labels"]).sum()) == 904


def test_the_figures_in_steps_of_the_recorded_features(shared, tmp_path):
    from jclip.readers import read_weights

    metrics = train("features_caltech_lvis_sgd.yaml", tmp_path, "optim.epochs=6")
    assert metrics["zero_shot_test_correct"] == 900 and metrics["test_count"] == 922
    assert metrics["test_correct"] == 881
    assert (metrics["lr"], metrics["weight_decay"], metrics["batch"]) == (1e-3, 1e-2, 8)
    d = np.load(shared / "clip_vitb32_features" / "caltech_lvis.npz")
    weights = np.array(read_weights(tmp_path / "learned.safetensors")["weights"].read())
    scores = d["test_features"].astype(np.float64) @ weights.T
    assert int((scores.argmax(axis=1) == d["test_labels"]).sum()) == metrics["test_correct"]


def test_text_is_not_needed(shared, tmp_path):
    pets = shared / "clip_vitb32_features" / "oxford_pets.npz"
    for settings, correct in (
        (["search=false", "C=100.0"], 2470),
        (["solver=sgd", "every=20", "optim.epochs=10", "optim.batch=32"], 2285),
    ):
        metrics = train(
            "features_caltech_lvis.yaml", tmp_path / settings[0], f"data.features={pets}", "data.shots=4", *settings
        )
        assert metrics["test_correct"] == correct and not any(k.startswith("zero_shot") for k in metrics)


def test_searching_needs_validation_photos(tmp_path):
    override = toys.smoke_without("val", tmp_path)
    with pytest.raises(ConfigError, match="C is chosen on validation photos, and there are none"):
        train("smoke.yaml", tmp_path / "run", override)
    with pytest.raises(ConfigError, match="the epoch is chosen on validation photos, and there are none"):
        train("smoke.yaml", tmp_path / "steps", override, "solver=sgd")
    metrics = train("smoke.yaml", tmp_path / "ok", override, "search=false")
    assert "val_top1" not in metrics and metrics["C"] == 0.316 and metrics["test_count"] == 63


def photos_yaml(small_models, photo_folder, *settings: str, model: str = "vit") -> None:
    """Writes mine.yaml: a probe on the seeded photos."""
    lines = [
        "recipe: linear_probe", f"model: '{small_models[model]}'", "templates: simple",
        f"data: {{root: '{photo_folder}', shots: 4, val_shots: 2}}", *settings,
    ]  # fmt: skip
    Path("mine.yaml").write_text("\n".join(lines), encoding="utf-8")


def loss_of(scores, labels):
    """Mean cross-entropy."""
    logs = scores - np.logaddexp.reduce(scores.astype(np.float64), axis=1, keepdims=True)
    return -logs[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("normalize", ["false", "true"])
def test_photos_are_measured_as_they_were_learned(
    normalize, small_models, photo_folder, tmp_path, monkeypatch, capsys, close
):
    from jclip.cli import main
    from jclip.features.extraction import few_shot_features
    from jclip.features.source import source_of
    from jclip.readers import read_weights

    monkeypatch.chdir(tmp_path)
    photos_yaml(small_models, photo_folder, "search: false", "C: 10.0", f"normalize: {normalize}")
    assert main(["train", "mine.yaml", "--run", "run"]) == 0
    metrics = json.loads(Path("run/result.json").read_text())["metrics"]
    cfg = read_config("mine.yaml")[1]
    options = {"templates": "simple", "training": None}
    unit, raw = (few_shot_features(cfg.data, source_of(cfg), normalise=n, **options) for n in (True, False))
    saved = read_weights(Path("run/learned.safetensors"))
    weights, bias = (np.array(saved[k].read()) for k in ("weights", "bias"))
    seen = unit if normalize == "true" else raw
    assert metrics["test_count"] == 18
    close(metrics["test_nll"], loss_of(seen.test @ weights.T + bias, seen.test_labels), "loss")
    lengths = np.linalg.norm(raw.test, axis=1)
    assert lengths.max() - lengths.min() > 0.1 and abs(lengths.mean() - 1) > 0.1  # which of the two matters
    close(metrics["zero_shot_test_nll"], loss_of(raw.scale * unit.test @ raw.text.T, raw.test_labels), "loss")
    assert main(["eval", "run"]) == 0
    assert f"{metrics['test_top1']:.4f} ({metrics['test_correct']} of 18)" in capsys.readouterr().out
    close(json.loads(Path("run/eval.json").read_text())["nll"], metrics["test_nll"], "loss")


@pytest.mark.parametrize("seed", [0, 1])
def test_photos_and_their_mirror_images_are_learned_in_steps(
    seed, small_models, photo_folder, tmp_path, monkeypatch, close
):
    from jclip.cli import main
    from jclip.data.splits import read_photos
    from jclip.readers import read_weights

    monkeypatch.chdir(tmp_path)
    own = ["solver: sgd", "augment: mirror", f"seed: {seed}", "logit_scale: 2.0", "every: 4", "selection: last"]
    photos_yaml(
        small_models, photo_folder, *own, "optim: {lr: 1e-2, weight_decay: 0.1, warmup: 3, epochs: 3, batch: 7}"
    )
    assert main(["train", "mine.yaml", "--run", "run"]) == 0
    cfg, source = read_config("mine.yaml")[1], ModelSource(small_models["vit"])
    split = read_photos(cfg.data)
    plain, test = (np.stack([source.preprocess(Image.open(p)) for p in s.paths]) for s in (split.train, split.test))
    rows = source.model.encode_image(np.concatenate([plain, plain[:, :, :, ::-1]])).numpy()
    data = replace(features(0, 24, (4, 4, 4)), train=rows, train_labels=np.tile(split.train.labels, 2).astype(np.int64))
    wanted = torch_steps(cfg, data)
    ours = np.array(read_weights(Path("run/learned.safetensors"))["weights"].read())
    close(ours, wanted, "trajectory", "linear probe: W of photos and mirror images")
    metrics = json.loads(Path("run/result.json").read_text())["metrics"]
    scores = np.exp(2.0) * of_length_one(source.model.encode_image(test).numpy()) @ wanted.T
    close(metrics["test_nll"], loss_of(scores, split.test.labels), "loss", "linear probe: loss of photos in steps")
    assert metrics["zero_shot_test_count"] == 18 and main(["eval", "run"]) == 0
    close(json.loads(Path("run/eval.json").read_text())["nll"], metrics["test_nll"], "loss")


def torch_penultimate(path, pixels):
    """Class tokens before the projection, in torch."""
    torch = pytest.importorskip("torch", reason=toys.NO_TORCH)
    from jclip.weights.checkpoint import open_checkpoint
    from tests.parity import torch_clip

    checkpoint = open_checkpoint(path)
    p = torch_clip.parameters(dict(checkpoint.arrays()))
    p["visual.proj"] = torch.eye(checkpoint.config.vision.width)
    with torch.no_grad():
        return torch_clip.encode_vit(p, checkpoint.config, torch.tensor(pixels)).numpy()


@pytest.mark.parametrize(
    "settings", [("search: false", "C: 10.0"), ("solver: sgd", "every: 5", "optim: {epochs: 2, batch: 6}")]
)
def test_penultimate_features_are_learned_measured_and_predicted(
    settings, small_models, photo_folder, tmp_path, monkeypatch, close
):
    from finetune import Classifier
    from jclip.cli import main
    from jclip.data.splits import read_photos
    from jclip.readers import read_weights

    monkeypatch.chdir(tmp_path)
    photos_yaml(small_models, photo_folder, "features: penultimate", *settings)
    assert main(["train", "mine.yaml", "--run", "run"]) == 0
    saved, done = read_weights(Path("run/learned.safetensors")), Classifier.load("run")
    learned = {k: np.array(t.read()).astype(np.float64) for k, t in saved.items()}
    assert learned["weights"].shape == (3, 48) and done.width == 48
    split, source = read_photos(done.config.data).test, ModelSource(small_models["vit"])
    seen = torch_penultimate(small_models["vit"], np.stack([source.preprocess(Image.open(p)) for p in split.paths]))
    scale = np.exp(4.60517) / np.linalg.norm(seen, axis=1, keepdims=True) if "solver: sgd" in settings else 1.0
    scores = scale * seen @ learned["weights"].T + learned.get("bias", 0.0)
    metrics = json.loads(Path("run/result.json").read_text())["metrics"]
    close(metrics["test_nll"], loss_of(scores, split.labels), "loss", "linear probe: loss on penultimate features")
    assert not any(k.startswith("zero_shot") for k in metrics)
    assert main(["eval", "run"]) == 0
    close(json.loads(Path("run/eval.json").read_text())["nll"], metrics["test_nll"], "loss")
    close(done.label(split)[0].scores, scores, "scores", "linear probe: penultimate scores")
    with pytest.raises(CheckpointError, match="gives 24-dimensional features, the run learned on 48"):
        Classifier.load("run", ["features=projected"]).label(split)


def test_penultimate_features_need_a_vision_transformer(small_models, photo_folder, tmp_path, monkeypatch, capsys):
    from jclip.cli import main

    monkeypatch.chdir(tmp_path)
    photos_yaml(small_models, photo_folder, "features: penultimate", model="resnet")
    assert main(["train", "mine.yaml", "--run", "run"]) != 0
    assert "only vision transformers have features before their projection" in capsys.readouterr().err
