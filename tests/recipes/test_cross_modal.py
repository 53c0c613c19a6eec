"""Cross-modal adaptation against NumPy in float64, its training against torch, its streams, grid and WiSE figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune import cross_modal
from jclip.config import DataConfig, OptimConfig
from jclip.errors import ConfigError, DataError
from jclip.features.heads import ZeroShotHead
from jclip.features.precomputed import FeatureSet
from jclip.functional.directions import unit
from jclip.functional.metrics import top_k
from jclip.train import on_features as adapt
from jclip.train.configs import read_config
from jclip.train.run import Run
from tests.recipes import toys

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "cross_modal"


def features(seed: int, **sizes: int) -> FeatureSet:
    return toys.random_features(seed, **{"width": 13, **sizes})


def samples(data: FeatureSet, seed: int = 0):
    """Photos, and two texts of each class around its own."""
    labels = np.repeat(np.arange(data.classes), 2)
    noise = np.random.default_rng((seed, 5)).standard_normal((len(labels), data.text.shape[1])) / 10
    return (data.train, data.train_labels), (unit(data.text[labels] + noise).astype(np.float32), labels)


def config(**settings) -> cross_modal.Config:
    defaults = {"logit_scale": 2.0, "every": 4, "optim": optim()}
    return cross_modal.Config(data=DataConfig(features="x"), **{**defaults, **settings})


def optim(**settings) -> OptimConfig:
    return OptimConfig(**{"lr": 1e-2, "weight_decay": 0.1, "warmup": 3, "epochs": 3, "batch": 7, **settings})


def numpy_logits(f, params, scale, ratio):
    """In float64, row by row; neither the head's rows nor what the adapter makes are normalised."""
    p = {k: np.float64(a) for k, a in params.items()}
    out = np.zeros((len(f), len(p["head"])))
    for i, x in enumerate(np.float64(f)):
        if "down" in p:
            x = ratio * np.maximum(p["up"] @ np.maximum(p["down"] @ x, 0), 0) + (1 - ratio) * x
        out[i] = scale * p["head"] @ x
    return out


def trained(cfg, data, folder, seed=0):
    with Run(folder, {"recipe": "cross_modal"}) as run:
        return cross_modal.train_head(cfg, run, data, *samples(data, seed), cfg.optim).arrays


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("head", ["linear", "adapter"])
def test_logits_equal_the_formula(seed, head, close, monkeypatch):
    monkeypatch.setattr(adapt, "ROWS_AT_ONCE", 10)  # in parts, the last one shorter
    data, cfg = features(seed), config(head=head, init="random", ratio=0.6, seed=seed, logit_scale=3.0)
    params = {k: 3 * a for k, a in cross_modal.initial(cfg, data.text).items()}
    assert set(params) == {"head"} | ({"down", "up"} if head == "adapter" else set())
    ours = cross_modal.scorer(cross_modal.arrays(cfg, params), cfg)(data.test)
    close(ours, numpy_logits(data.test, params, np.exp(3.0), 0.6), "scores", f"cross-modal: logits, {head}")


@pytest.mark.parametrize("seed", [0, 1])
def test_the_start_is_zero_shot_times_the_constant(seed, close):
    data = features(seed)
    _, texts = samples(data, seed)
    cfg = cross_modal.Config(data=DataConfig(features="x"))
    one_each = (data.text, np.arange(data.classes))
    for given, wanted in ((one_each, data.text), (texts, unit(texts[0].reshape(5, 2, 13).mean(axis=1)))):
        start = cross_modal.initial(cfg, cross_modal.zero_shot_weights(given, 5))
        ours = cross_modal.scorer(cross_modal.arrays(cfg, start), cfg)(data.test)
        close(ours, ZeroShotHead(wanted, np.exp(4.60517))(data.test), "scores", "cross-modal: start")
    no_adapter = replace(cfg, head="adapter", ratio=0.0)
    params = cross_modal.arrays(no_adapter, cross_modal.initial(no_adapter, data.text))
    close(cross_modal.scorer(params, cfg)(data.test), ZeroShotHead(data.text, np.exp(4.60517))(data.test), "scores")


def test_random_starts_are_those_of_torchs_linear():
    cfg = config(init="random", head="adapter")
    start = cross_modal.initial(cfg, np.zeros((35, 260), np.float32))
    for name, (shape, inputs) in {"head": ((35, 260), 260), "down": ((65, 260), 260), "up": ((260, 65), 65)}.items():
        bound = 1 / np.sqrt(inputs)
        fifths = np.histogram(start[name], bins=5, range=(-bound, bound))[0]
        assert start[name].shape == shape and start[name].dtype == np.float32 and fifths.sum() == start[name].size
        assert 0.18 < fifths.min() / fifths.sum() <= fifths.max() / fifths.sum() < 0.22
    again, other = (cross_modal.initial(replace(cfg, seed=s), np.zeros((35, 260))) for s in (1, 2))
    assert all(np.array_equal(start[k], again[k]) and not np.array_equal(start[k], other[k]) for k in start)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("batch, of_photos, of_texts", [(7, 4, 3), (8, 4, 4), (2, 1, 1)])
def test_half_of_a_batch_is_text_and_passes_drop_what_is_left(seed, batch, of_photos, of_texts):
    halves = cross_modal.halves(config(), batch)
    rows = np.stack(list(adapt.streamed_rows((15, 10), halves, seed, range(30))))
    assert halves == (of_photos, of_texts) and rows.shape == (30, batch) and rows.dtype == np.int32
    photos, texts = rows[:, :of_photos], rows[:, of_photos:] - 15
    for part, count, size in ((photos, 15, of_photos), (texts, 10, of_texts)):
        assert part.min() >= 0 and part.max() < count
        in_pass = count // size
        passes = [part[i : i + in_pass].ravel() for i in range(0, len(part) - in_pass + 1, in_pass)]
        assert all(len(set(p)) == in_pass * size for p in passes)
        assert len(passes) < 2 or not np.array_equal(passes[0], passes[1])
        assert len(set(part.ravel())) == count  # what one pass dropped, another brings
    again = np.stack(list(adapt.streamed_rows((15, 10), halves, seed, range(20, 30))))
    assert np.array_equal(rows[20:], again)  # the stream does not restart with an epoch
    other = np.stack(list(adapt.streamed_rows((15, 10), halves, 9, range(6))))
    assert not np.array_equal(rows[:6], other)


@pytest.mark.parametrize("seed", [0, 1])
def test_batches_bring_the_rows_of_the_streams(seed):
    data = features(seed)
    kinds = samples(data, seed)
    batches = adapt.Streams(kinds, (4, 3), seed, steps=5)
    found = [tuple(v.numpy() for v in batch) for epoch in range(2) for batch in batches(epoch)]
    rows = list(adapt.streamed_rows((15, 10), (4, 3), seed, range(10)))
    assert len(found) == len(rows) == 10 == 2 * batches.steps
    joined = [np.concatenate(column) for column in zip(*kinds, strict=True)]
    for batch, at in zip(found, rows, strict=True):
        assert all(np.array_equal(got, wanted[at]) for got, wanted in zip(batch, joined, strict=True))


def test_uni_modal_batches_are_all_photos():
    halves = cross_modal.halves(config(texts=False), 7)
    rows = np.stack(list(adapt.streamed_rows((15, 10), halves, 1, range(4))))
    assert halves == (7, 0) and rows.shape == (4, 7) and rows.max() < 15


@pytest.mark.parametrize("warmup, total", [(50, 12_800), (3, 12), (0, 7)])
def test_the_schedule_is_the_authors(warmup, total, close):
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    settings = optim(lr=1e-3, warmup=float(warmup))
    idle = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = list(toys.torch_rates(idle, settings, total))
    rate = adapt.warmed_rate(settings, total)
    ours = [rate(n) for n in range(total)]
    close(ours, theirs, "schedule", "cross-modal: learning rates")
    assert ours[0] == (1e-5 if warmup else 1e-3) and ours[warmup] == 1e-3 and ours[-1] > 0


def torch_training(data, cfg, seed):
    """Written in torch from the paper: two endless shuffled loaders, one batch of both, AdamW."""
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    nn, (photos, texts), settings = torch.nn, samples(data, seed), cfg.optim
    start = cross_modal.initial(cfg, cross_modal.zero_shot_weights(texts, data.classes))
    params = {k: nn.Parameter(torch.tensor(a)) for k, a in start.items()}

    half = settings.batch // 2
    sizes = zip((photos, texts), (settings.batch - half, half), strict=True)
    loaders = [toys.torch_loader((cfg.seed, kind), *of_kind, size) for kind, (of_kind, size) in enumerate(sizes)]
    optimiser = torch.optim.AdamW(params.values(), lr=settings.lr, weight_decay=settings.weight_decay)
    total = settings.epochs * cfg.every
    idle = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.lr)
    for rate in toys.torch_rates(idle, settings, total):
        optimiser.param_groups[0]["lr"] = rate
        x, y = (torch.cat(pair) for pair in zip(*(next(loader) for loader in loaders), strict=True))
        x = nn.functional.normalize(x, dim=1)
        if "down" in params:
            inner = nn.functional.relu(nn.functional.linear(x, params["down"]))
            x = cfg.ratio * nn.functional.relu(nn.functional.linear(inner, params["up"])) + (1 - cfg.ratio) * x
        scores = nn.functional.linear(x, params["head"]) * torch.tensor(cfg.logit_scale).exp()
        optimiser.zero_grad()
        nn.functional.cross_entropy(scores, y).backward()
        optimiser.step()
    return start, {k: p.detach().numpy() for k, p in params.items()}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("head", ["linear", "adapter"])
def test_one_step_equals_torch(seed, head, tmp_path, close):
    data, cfg = features(seed), config(head=head, seed=seed, every=1, optim=optim(warmup=0.0, epochs=1))
    ours = trained(cfg, data, tmp_path, seed)
    start, wanted = torch_training(data, cfg, seed)
    for name, array in wanted.items():
        close(ours[name], array, "optimiser", f"cross-modal: one step of {name}")
        assert np.abs(array - start[name]).max() > 0.005


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("head, init", [("linear", "zeroshot"), ("linear", "random"), ("adapter", "zeroshot")])
def test_training_equals_torch(seed, head, init, tmp_path, close):
    data, cfg = features(seed), config(head=head, init=init, ratio=0.6, seed=seed, selection="last")
    ours = trained(cfg, data, tmp_path, seed)
    start, wanted = torch_training(data, cfg, seed)
    for name, array in wanted.items():
        close(ours[name], array, "trajectory", f"cross-modal: {name} after 12 steps")
        with pytest.raises(AssertionError, match="differs by"):
            close(start[name], array, "trajectory")  # it moved


def test_learning_rate_zero_keeps_the_start(tmp_path):
    data = features(0)
    cfg = config(optim=optim(lr=0.0, warmup=0.0))
    assert np.array_equal(trained(cfg, data, tmp_path)["head"], cross_modal.zero_shot_weights(samples(data)[1], 5))


def test_the_grid_keeps_the_first_of_the_best_and_leaves_out_large_batches(tmp_path):
    data = features(1)
    cfg = config(grid_lr=(1e-6, 0.3, 0.03), grid_weight_decay=(0.0, 0.5), grid_batch=(6, 64), optim=optim(epochs=4))
    photos, texts = samples(data)
    grid = cross_modal.settings(cfg, 15, 10)
    wanted = [(lr, wd, 6) for lr in cfg.grid_lr for wd in cfg.grid_weight_decay]
    assert [(o.lr, o.weight_decay, o.batch) for o in grid] == wanted
    found = []
    for i, settings in enumerate(grid):
        params = trained(replace(cfg, optim=settings), data, tmp_path / str(i))
        found.append(top_k(numpy_logits(data.val, params, np.exp(2.0), 0.2), data.val_labels))
    assert len(set(found)) > 1 and np.argmax(found) > 0  # there is something to choose
    with Run(tmp_path / "all", {"recipe": "cross_modal"}) as run:
        kept, chosen = cross_modal.choose(cfg, run, data, photos, texts)
    best = grid[int(np.argmax(found))]
    assert chosen == {"lr": best.lr, "weight_decay": best.weight_decay, "batch": best.batch}
    again = trained(replace(cfg, optim=best), data, tmp_path / "again")
    assert np.array_equal(kept.arrays["head"], again["head"])


def test_batches_that_no_pass_can_fill_are_reported():
    for batch in (1, 22, 32):
        with pytest.raises(
            ConfigError, match="can be filled from 15 photos and 10 texts, half of it each: set optim.batch"
        ):
            cross_modal.settings(config(optim=optim(batch=batch)), 15, 10)
    assert [o.batch for o in cross_modal.settings(config(optim=optim(batch=20)), 15, 10)] == [20]
    alone = config(texts=False, optim=optim(batch=15))
    assert [o.batch for o in cross_modal.settings(alone, 15, 10)] == [15]
    with pytest.raises(ConfigError, match="can be filled from 15 photos: set optim.batch"):
        cross_modal.settings(replace(alone, optim=optim(batch=16)), 15, 10)


def test_photos_and_prompts_are_samples_each(small_models, photo_folder, close):
    from jclip.data.splits import read_photos
    from jclip.features.extraction import few_shot_features
    from jclip.features.heads import encode_prompts
    from jclip.features.source import source_of
    from jclip.prompts.templates import fill, load_templates

    place = [f"model={small_models['vit']}", f"data.root={photo_folder}", "data.features=", "data.val_shots=2"]
    settings = ["templates=openai7", "views=2", "augment=tip_adapter", "data.shots=4"]
    _, cfg, _ = read_config(str(CONFIGS / "smoke.yaml"), [*place, *settings])
    source = source_of(cfg)
    data = few_shot_features(cfg.data, source, cfg.templates)
    photos, labels = adapt.photo_samples(cfg, data, source)
    assert photos.shape == (36, 24) and np.array_equal(labels, np.tile(data.train_labels, 3))
    assert np.array_equal(photos[:12], data.train) and not np.array_equal(photos[12:24], photos[24:])
    close(np.linalg.norm(photos, axis=1), np.ones(36), "features_normalised")
    mirrored, _ = adapt.photo_samples(replace(cfg, views=1, augment="mirror"), data, source)
    seen = [source.preprocess(Image.open(p))[:, :, ::-1] for p in read_photos(cfg.data).train.paths]
    wanted = source.model.encode_image(np.stack(seen)).numpy()
    close(mirrored, np.concatenate([data.train, unit(wanted)]), "features_normalised", "cross-modal: mirrored photos")
    assert cross_modal.Config(data=cfg.data).augment == "mirror" and cross_modal.Config(data=cfg.data).views == 1
    texts, of_class = cross_modal.text_samples(cfg, data, source)
    assert np.array_equal(of_class, np.repeat([0, 1, 2], 7))
    for k, name in enumerate(data.classnames):
        prompts = [fill(t, name.replace("_", " ")) for t in load_templates("openai7")]
        alone = encode_prompts(source.model, source.model.tokenize(prompts))
        close(texts[of_class == k], unit(alone), "features_normalised", "cross-modal: texts")
    weights = cross_modal.zero_shot_weights((texts, of_class), 3)
    close(weights, data.text, "features_normalised", "cross-modal: zero-shot head of the texts")
    with pytest.raises(ConfigError, match="gives features of 24 dimensions and not 13: set model"):
        cross_modal.text_samples(cfg, features(0), source)


def train(name, folder, *overrides):
    return toys.train(CONFIGS / name, folder, *overrides)


@pytest.mark.parametrize("head", ["linear", "adapter"])
def test_wise_figures_are_of_the_mean_head(head, tmp_path):
    from jclip.readers import read_weights

    settings = ["grid_lr=[]", f"head={head}", "ratio=0.6"]
    got = {w: train("smoke.yaml", tmp_path / str(w), f"wise={w}", *settings) for w in (0.0, 0.3, 1.0)}
    assert all(got[0.0][f"wise_{k}"] == got[0.0][k] for k in ("test_nll", "test_top1", "val_correct"))
    saved = {k: np.array(t.read()) for k, t in read_weights(tmp_path / "0.3" / "learned.safetensors").items()}
    recorded = np.load(CONFIGS.parent.parent / "jclip" / "assets" / "smoke_features.npz")
    test = unit(recorded["test_features"].astype(np.float32))
    mean = saved | {"head": 0.7 * saved["head"] + 0.3 * unit(recorded["text_features"].astype(np.float64))}
    adapter_or_not = {k: mean[k] for k in ("head", "down", "up") if k in mean}
    scores = numpy_logits(test, adapter_or_not, np.exp(3.0), 0.6)
    assert got[0.3]["wise_test_correct"] == int((scores.argmax(axis=1) == recorded["test_labels"]).sum())
    if head == "linear":
        assert got[1.0]["wise_test_correct"] == got[1.0]["zero_shot_test_correct"] != got[1.0]["test_correct"]


def test_the_real_features(shared, tmp_path):
    metrics = train("features_caltech_lvis.yaml", tmp_path / "linear", "optim.epochs=2")
    assert metrics["zero_shot_test_correct"] == 900 and metrics["test_count"] == 922
    assert metrics["val_top1"] > metrics["zero_shot_val_top1"]
    assert (metrics["test_correct"], metrics["wise_test_correct"]) == (910, 911)
    metrics = train("features_caltech_lvis_adapter.yaml", tmp_path / "adapter", "optim.epochs=2")
    assert metrics["val_top1"] > metrics["zero_shot_val_top1"]
    assert metrics["test_correct"] == 906


def test_bad_inputs_are_reported_in_one_line(tmp_path):
    no_text, no_val = (toys.smoke_without(part, tmp_path) for part in ("text", "val"))
    with pytest.raises(DataError, match="come without text features: set model="):
        train("smoke.yaml", tmp_path / "a", no_text)
    without = no_val
    with pytest.raises(ConfigError, match="the grid's setting is chosen on validation photos, and there are none"):
        train("smoke.yaml", tmp_path / "b", without, "selection=last")
    with pytest.raises(ConfigError, match="the epoch is chosen on validation photos, and there are none"):
        train("smoke.yaml", tmp_path / "c", without, "grid_lr=[]")
    metrics = train("smoke.yaml", tmp_path / "d", without, "grid_lr=[]", "selection=last")
    assert "val_top1" not in metrics and metrics["test_count"] == metrics["wise_test_count"] == 63
    with pytest.raises(ConfigError, match="reduction must be at most 16, the width of the features, got 17"):
        train("smoke.yaml", tmp_path / "e", "reduction=17")
    for wrong, message in {
        "views=-1": "views must be at least 0, every and reduction at least 1",
        "every=0": "views must be at least 0, every and reduction at least 1",
        "ratio=1.1": r"ratio and wise must be in \[0, 1\]",
        "wise=-0.1": r"ratio and wise must be in \[0, 1\]",
    }.items():
        with pytest.raises(ConfigError, match=message):
            read_config(str(CONFIGS / "smoke.yaml"), [wrong])
