"""WiSE-FT: the head's training against torch, the ends of α exact, and the recorded real features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune import wise_ft
from jclip.config import DataConfig, OptimConfig, build
from jclip.errors import ConfigError, DataError, MisfitError
from jclip.features.precomputed import FeatureSet, read_precomputed
from jclip.functional.metrics import top_k
from jclip.train.configs import read_config
from jclip.train.run import Run
from tests.recipes import toys

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "wise_ft"


def features(seed: int) -> FeatureSet:
    rng = np.random.default_rng(seed)

    def unit(x):
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    text = unit(rng.standard_normal((5, 7)))
    labels = [rng.permutation(np.repeat(np.arange(5), [4, 2, 3, 1, 3])), rng.integers(0, 5, 23), rng.integers(0, 5, 31)]
    parts = [unit(0.4 * text[y] + 0.4 * rng.standard_normal((len(y), 7))) for y in labels]
    return FeatureSet(tuple("abcde"), *(x for both in zip(parts, labels, strict=True) for x in both), text, 8.0)


def config(seed=1, smoothing=0.0, clip=0.02, search=False, steps=10, alpha=0.5, **optim) -> wise_ft.Config:
    settings = OptimConfig(**{"lr": 0.1, "weight_decay": 0.1, "epochs": 4, "batch": 5, "warmup": 3.0, **optim})
    own = {"smoothing": smoothing, "clip": clip, "search": search, "steps": steps, "alpha": alpha}
    return wise_ft.Config(data=DataConfig(features="x"), optim=settings, seed=seed, **own)


def trained(folder, data, cfg):
    with Run(folder, {"recipe": "wise_ft"}) as run:
        return wise_ft.train(cfg, run, data, wise_ft.start(data)).arrays


@pytest.mark.parametrize("seed", [0, 1])
def test_the_start_is_zero_shot_and_scores_equal_the_formula(seed, close, monkeypatch):
    import jclip.train.on_features

    monkeypatch.setattr(jclip.train.on_features, "ROWS_AT_ONCE", 10)  # in parts, the last one shorter
    data, rng = features(seed), np.random.default_rng(seed)
    f = data.test.astype(np.float64)
    ours = wise_ft.scorer(wise_ft.start(data), config())(data.test)
    close(ours, 8 * f @ data.text.astype(np.float64).T, "scores", "WiSE-FT: scores at the start")
    head = {"weight": rng.standard_normal((5, 7)).astype(np.float32), "bias": rng.standard_normal(5).astype(np.float32)}
    wanted = [[x @ head["weight"][k] + head["bias"][k] for k in range(5)] for x in f]
    close(wise_ft.scorer(head, config())(data.test), wanted, "scores", "WiSE-FT: scores")


def torch_training(data, cfg):
    """AdamW on a linear layer with the scale folded in: linear warm-up, half a cosine, clipped by norm, as the authors."""
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    f, y = torch.tensor(data.train).double(), torch.tensor(data.train_labels)
    layer = torch.nn.Linear(f.shape[1], len(data.text)).double()
    with torch.no_grad():
        layer.weight.copy_(data.scale * torch.tensor(data.text).double())
        layer.bias.zero_()
    o, number, norms = cfg.optim, 0, []
    size = min(o.batch, len(f))
    total = o.epochs * -(-len(f) // size)
    warm = o.warmup if o.warmup >= 1 else round(o.warmup * total)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=o.lr, weight_decay=o.weight_decay)
    for epoch in range(o.epochs):
        order = np.random.default_rng((cfg.seed, epoch)).permutation(len(f))
        for begin in range(0, len(f), size):
            late = 0.5 * (1 + np.cos(np.pi * (number - warm) / max(total - warm, 1)))
            optimiser.param_groups[0]["lr"] = o.lr * ((number + 1) / warm if number < warm else late)
            rows = order[begin : begin + size]
            scores = layer(f[rows])
            loss = torch.nn.functional.cross_entropy(scores, y[rows], label_smoothing=cfg.smoothing)
            optimiser.zero_grad()
            loss.backward()
            if cfg.clip:
                norms.append(float(torch.nn.utils.clip_grad_norm_(layer.parameters(), cfg.clip)))
            optimiser.step()
            number += 1
    return {"weight": layer.weight.detach().numpy(), "bias": layer.bias.detach().numpy()}, norms


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("settings", [{}, {"smoothing": 0.2}, {"clip": 0.0}, {"warmup": 0.5}])
def test_training_equals_torch(seed, settings, tmp_path, close):
    data, cfg = features(seed), config(seed=seed, **settings)
    ours, (theirs, norms) = trained(tmp_path, data, cfg), torch_training(data, cfg)
    for name in ("weight", "bias"):
        close(ours[name], theirs[name], "trajectory", f"WiSE-FT: {name} after 12 steps")
    assert not cfg.clip or max(norms) > cfg.clip  # it did clip
    plain = torch_training(data, config(seed=seed))[0]["weight"]
    if settings:
        with pytest.raises(AssertionError, match="differs by"):
            close(ours["weight"], plain, "trajectory")


# The way between two sets of weights


def states(seed: int, kind=np.float32) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    shapes = {"visual.conv1.weight": (3, 2, 5, 5), "visual.bn1.running_var": (3,), "logit_scale": (1,)}
    first, second = ({k: rng.standard_normal(s).astype(kind) for k, s in shapes.items()} for _ in range(2))
    count = {"visual.bn1.num_batches_tracked": np.array([7], np.int64)}
    return first | count, second | count


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64])
def test_the_ends_are_exact_and_between_them_lies_the_line(seed, kind, close):
    first, second = states(seed, kind)
    for alpha, end in ((0.0, first), (1.0, second)):
        mixed = wise_ft.interpolate(first, second, alpha)
        assert all(np.array_equal(mixed[k], end[k]) for k in end) and list(mixed) == list(first)
    for alpha in (0.1, 0.5, 0.7):
        mixed = wise_ft.interpolate(first, second, alpha)
        for k in ("visual.conv1.weight", "visual.bn1.running_var", "logit_scale"):
            assert mixed[k].dtype == (np.float64 if kind is np.float64 else np.float32)
            close(mixed[k], (1 - alpha) * first[k].astype(float) + alpha * second[k].astype(float), "optimiser")
        assert mixed["visual.bn1.num_batches_tracked"].dtype == np.int64
    same = wise_ft.interpolate(first, first, 0.3)
    close(same["visual.conv1.weight"], first["visual.conv1.weight"], "optimiser")


def test_the_ends_are_not_touched_and_not_shared():
    first, second = states(0)
    kept = {k: v.copy() for k, v in first.items()}
    for alpha in (0.0, 0.5, 1.0):
        for array in wise_ft.interpolate(first, second, alpha).values():
            array[...] = 99
    assert all(np.array_equal(first[k], kept[k]) for k in kept)


def test_weights_that_do_not_belong_together_are_refused():
    first, second = states(0)
    without = {k: v for k, v in second.items() if k != "logit_scale"}
    with pytest.raises(MisfitError, match="the other end of α does not fit the model: 1 missing \\(logit_scale\\)"):
        wise_ft.interpolate(first, without, 0.5)
    with pytest.raises(MisfitError, match="1 unexpected \\(logit_scale\\)"):
        wise_ft.interpolate(without, first, 0.0)
    with pytest.raises(MisfitError, match="logit_scale \\(2,\\) instead of \\(1,\\)"):
        wise_ft.interpolate(first, second | {"logit_scale": np.zeros(2, np.float32)}, 0.5)
    with pytest.raises(MisfitError, match="num_batches_tracked must be equal at both ends"):
        wise_ft.interpolate(first, second | {"visual.bn1.num_batches_tracked": np.array([8])}, 0.5)


# Whole runs


def train(name, folder, *overrides):
    return toys.train(CONFIGS / name, folder, *overrides)


def learned_of(folder):
    from jclip.readers import read_weights

    return {k: np.array(t.read()) for k, t in read_weights(folder / "learned.safetensors").items()}


def test_alpha_zero_is_zero_shot_and_one_the_tuned_head(tmp_path):
    before, _, after = (learned_of_run(tmp_path, alpha) for alpha in (0.0, 0.5, 1.0))
    data = read_precomputed(str(CONFIGS.parent.parent / "jclip" / "assets" / "smoke_features.npz"), 4)
    start = wise_ft.start(data)
    _, cfg, _ = read_config(str(CONFIGS / "smoke.yaml"))
    tuned = trained(tmp_path / "alone", data, cfg)
    for k in ("weight", "bias"):
        assert np.array_equal(before[k], start[k]) and np.array_equal(after[k], tuned[k])


def learned_of_run(folder, alpha):
    metrics = train("smoke.yaml", folder / str(alpha), f"alpha={alpha}", "search=false")
    assert metrics["alpha"] == alpha and metrics["test_top1"] == metrics[f"test_top1_at_{alpha:.2f}"]
    assert metrics["val_top1_at_0.00"] == metrics["zero_shot_val_top1"]
    return learned_of(folder / str(alpha))


def test_the_search_takes_the_smallest_of_the_best_on_validation(tmp_path):
    metrics = train("smoke.yaml", tmp_path, "steps=20")
    curve = [metrics[f"val_top1_at_{i / 20:.2f}"] for i in range(21)]
    assert metrics["alpha"] == curve.index(max(curve)) / 20 and metrics["val_top1"] == max(curve) > curve[0]
    data = read_precomputed(str(CONFIGS.parent.parent / "jclip" / "assets" / "smoke_features.npz"), 4)
    head = learned_of(tmp_path)
    assert round(top_k(data.test @ head["weight"].T + head["bias"], data.test_labels), 6) == metrics["test_top1"]


def test_real_features(shared, tmp_path):
    metrics = train("features_caltech_lvis.yaml", tmp_path)
    assert metrics["val_top1"] > metrics["zero_shot_val_top1"]
    data = read_precomputed(str(shared / "clip_vitb32_features" / "caltech_lvis.npz"), 16)
    _, cfg, _ = read_config(str(CONFIGS / "features_caltech_lvis.yaml"))
    after, _ = torch_training(data, cfg)
    weight = 0.5 * data.scale * data.text.astype(np.float64) + 0.5 * after["weight"]
    scores = data.test.astype(np.float64) @ weight.T + 0.5 * after["bias"]
    found = int((scores.argmax(axis=1) == data.test_labels).sum())
    assert (metrics["zero_shot_test_correct"], metrics["test_correct"], found) == (900, 910, 910)


# Whole towers


@pytest.fixture
def tuned(small_models, tmp_path) -> Path:
    """A file of the small ViT after something moved all its weights."""
    from jclip.weights.checkpoint import open_checkpoint, save_checkpoint

    checkpoint, rng = open_checkpoint(small_models["vit"]), np.random.default_rng(5)
    arrays = {k: v + np.float32(0.1) * rng.standard_normal(v.shape, np.float32) for k, v in checkpoint.arrays()}
    save_checkpoint(tmp_path / "tuned.safetensors", arrays, checkpoint.config, checkpoint.preprocess)
    return tmp_path / "tuned.safetensors"


def photos_of(small_models, photo_folder, *settings):
    own = ["data.features=", f"data.root={photo_folder}", "data.val_shots=2", "templates=openai7"]
    return [f"model={small_models['vit']}", *own, *settings]


def test_towers_are_mixed_between_exact_ends(small_models, photo_folder, tuned, tmp_path, capsys, close):
    from jclip.cli import main
    from jclip.weights.checkpoint import open_checkpoint

    settings = photos_of(small_models, photo_folder, f"tuned={tuned}")
    metrics = train("smoke.yaml", tmp_path / "half", *settings, "search=false", "alpha=0.5")
    ends = [dict(open_checkpoint(f).arrays()) for f in (small_models["vit"], tuned)]
    mixed = dict(open_checkpoint(tmp_path / "half" / "model.safetensors").arrays())
    for k, v in mixed.items():
        close(v, ends[0][k] / 2.0 + ends[1][k] / 2.0, "optimiser", "WiSE-FT: towers half way")
    for alpha, file in ((0, small_models["vit"]), (1, tuned)):
        found = train("smoke.yaml", tmp_path / str(alpha), *settings, "search=false", f"alpha={alpha}.0")
        own = [s for s in settings if not s.startswith(("tuned", "model"))]
        alone = train("../zero_shot/smoke.yaml", tmp_path / f"zero {alpha}", *own, f"model={file}")
        assert all(found[k] == alone[k] for k in ("val_correct", "test_correct"))
        close([found["test_nll"]], [alone["test_nll"]], "loss")
        assert metrics[f"test_top1_at_{alpha}.00"] == alone["test_top1"]
    assert main(["eval", str(tmp_path / "half")]) == 0  # with its own towers
    assert f"({metrics['test_correct']} of 18)" in capsys.readouterr().out


def test_the_search_along_towers(small_models, photo_folder, tuned, tmp_path):
    metrics = train("smoke.yaml", tmp_path / "run", *photos_of(small_models, photo_folder, f"tuned={tuned}", "steps=2"))
    curve = [metrics[f"val_top1_at_{a}"] for a in ("0.00", "0.50", "1.00")]
    assert metrics["alpha"] == curve.index(max(curve)) / 2 and metrics["val_top1"] == max(curve)
    assert metrics["zero_shot_val_top1"] == curve[0]


@pytest.mark.parametrize("recipe", ["full", "lora", "fd_align"])
def test_towers_of_a_run(recipe, small_models, photo_folder, tmp_path, close):
    """Half way between a model and what a run made of it, named by the run's folder."""
    from jclip.weights.checkpoint import open_checkpoint

    own = [
        f"model={small_models['vit']}",
        f"data.root={photo_folder}",
        "data.split_file=",
        "data.val_shots=2",
        "optim.lr=0.01",
        "optim.batch=3",
    ]
    own += {"lora": ["steps=2"]}.get(recipe, ["optim.epochs=1"])
    train(f"../{recipe}/smoke.yaml", tmp_path / "run", *own)
    settings = photos_of(small_models, photo_folder, f"tuned={tmp_path / 'run'}", "search=false", "alpha=0.25")
    metrics = train("smoke.yaml", tmp_path / "mixed", *settings)
    files = small_models["vit"], tmp_path / "run" / "model.safetensors", tmp_path / "mixed" / "model.safetensors"
    before, after, mixed = (dict(open_checkpoint(file).arrays()) for file in files)
    moved = [k for k in before if not np.array_equal(before[k], after[k])]
    assert moved and {"test_top1_at_0.00", "test_top1_at_0.25", "test_top1_at_1.00"} <= set(metrics)
    for k, v in mixed.items():
        close(v, 0.75 * before[k] + 0.25 * after[k], "optimiser", "WiSE-FT: part of the way to a run's towers")


def test_a_mixture_is_written_tensor_by_tensor(small_models, tuned, tmp_path):
    """What two ends and their mixture take in memory is a few tensors, not three models."""
    from dataclasses import replace

    from jclip.weights.checkpoint import open_checkpoint

    alive, most = 0, [0]

    class Counted(np.ndarray):
        def __array_finalize__(self, _):
            nonlocal alive
            alive += 1
            most[0] = max(most[0], alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

    def counted(checkpoint):
        def read(tensor):
            return lambda: np.array(tensor.read()).view(Counted)

        return replace(checkpoint, tensors={k: replace(t, read=read(t)) for k, t in checkpoint.tensors.items()})

    ends = [counted(open_checkpoint(file)) for file in (small_models["vit"], tuned)]
    wise_ft.save_mixture(tmp_path / "m.safetensors", *ends, 0.5)
    assert 2 <= most[0] < 12 < len(ends[0].tensors)


def test_towers_that_can_not_be_mixed(small_models, photo_folder, tuned, tmp_path):
    settings = photos_of(small_models, photo_folder)
    with pytest.raises(MisfitError, match="must have the architecture of .* to be mixed with it"):
        train("smoke.yaml", tmp_path / "a", *settings, f"tuned={small_models['resnet']}")
    with pytest.raises(
        ConfigError, match="mixing towers needs photos and the weights before tuning: set data.root and model"
    ):
        train("smoke.yaml", tmp_path / "b", f"tuned={tuned}")


# What is refused


@pytest.mark.parametrize("settings, message", [
    ({"alpha": 1.5}, "alpha must be in .*, got 1.5"),
    ({"steps": 0}, r"steps in \[1, 100\], got .* and 0"),
    ({"smoothing": 1.0}, "smoothing must be in"),
    ({"clip": -1.0}, "clip at least 0"),
])  # fmt: skip
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(wise_ft.Config, {"data": {}, **settings}, "x.yaml")


def test_what_the_data_must_have(tmp_path):
    with np.load(CONFIGS.parent.parent / "jclip" / "assets" / "smoke_features.npz") as file:
        arrays = {k: file[k] for k in file.files}
    none, labels = np.zeros((0, 16)), np.zeros(0, int)
    np.savez(tmp_path / "text.npz", **{k: v for k, v in arrays.items() if k != "text_features"})
    np.savez(tmp_path / "train.npz", **arrays | {"train_features_4": none, "train_labels_4": labels})
    np.savez(tmp_path / "val.npz", **arrays | {"val_features": none, "val_labels": labels})
    with pytest.raises(DataError, match="come without text features: set model="):
        train("smoke.yaml", tmp_path / "a", f"data.features={tmp_path}/text.npz")
    with pytest.raises(DataError, match="the training split is empty"):
        train("smoke.yaml", tmp_path / "b", f"data.features={tmp_path}/train.npz")
    with pytest.raises(ConfigError, match="α is chosen on validation photos, and there are none"):
        train("smoke.yaml", tmp_path / "c", f"data.features={tmp_path}/val.npz")
    metrics = train("smoke.yaml", tmp_path / "d", f"data.features={tmp_path}/val.npz", "search=false")
    assert "val_top1_at_0.50" not in metrics and metrics["test_count"] == 63
