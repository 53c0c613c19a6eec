"""APE against NumPy in float64 written from the paper, -T against torch, and the figures of the recorded real features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune import ape
from jclip.config import DataConfig, OptimConfig
from jclip.errors import ConfigError, DataError
from jclip.features.precomputed import FeatureSet
from jclip.train import on_features as adapt
from jclip.train.run import Run
from tests.recipes import toys

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "ape"
COUNTS = (3, 4, 2, 5)  # support photos per class


def features(seed: int, width: int = 11, counts=COUNTS) -> FeatureSet:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((len(counts), width))

    def near(labels):
        x = centres[labels] + 1.5 * rng.standard_normal((len(labels), width))
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32), labels

    train = near(rng.permutation(np.repeat(np.arange(len(counts)), counts)))
    val, test = (near(rng.integers(0, len(counts), n)) for n in (23, 31))
    return FeatureSet(tuple("abcdefg"[: len(counts)]), *train, *val, *test, near(np.arange(len(counts)))[0], 8.0)


def config(**settings) -> ape.Config:
    return ape.Config(data=DataConfig(features="x"), **settings)


def four_loops(text, keys, labels, weights):
    """The criterion as the authors write it: over classes, classes, members, members."""
    members = [[text[k], *keys[labels == k]] for k in range(len(text))]
    total, count = np.zeros(text.shape[1]), 0
    for i, of_one in enumerate(members):
        for j, of_other in enumerate(members):
            for x in of_one:
                for z in of_other:
                    if i != j:
                        total += np.float64(x) * np.float64(z)
                        count += 1
    variance = ((np.float64(text) - np.float64(text).mean(axis=0)) ** 2).sum(axis=0) / (len(text) - 1)
    return -weights[0] * total / count + weights[1] * variance


def numpy_logits(f, data, channels, alpha, beta, gamma):
    """APE in float64, photo by photo and key by key."""

    def refined(x):
        x = np.float64(x)[channels]
        return x / np.linalg.norm(x)

    out = np.zeros((len(f), len(data.text)))
    u = []
    for key, label in zip(data.train, data.train_labels, strict=True):
        e = np.exp([refined(key) @ refined(t) for t in data.text])
        target = np.eye(len(data.text))[label]
        u.append((target * np.log2((target + 1e-6) / (e / e.sum() + 1e-6))).sum())
    for i, x in enumerate(f):
        out[i] = data.scale * data.text.astype(np.float64) @ x
        for key, label, weight in zip(data.train, data.train_labels, u, strict=True):
            out[i, label] += alpha * np.exp(-beta * (1 - refined(x) @ refined(key))) * np.exp(gamma * weight)
    return out


def learned(data, channels, **settings):
    cfg = config(**settings)
    keys, values = ape.chosen(data.train, channels), np.eye(len(data.text), dtype=np.float32)[data.train_labels]
    u = ape.divergence(keys, ape.chosen(data.text, channels), values)
    cache = {"keys": keys, "values": values, "divergence": u, "text": data.text, "channels": channels}
    return ape.fold(cache | ape.scalars(scale=data.scale, alpha=cfg.alpha, beta=cfg.beta, gamma=cfg.gamma))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("weights", [(0.7, 0.3), (0.2, 0.8), (1.0, 0.0)])
@pytest.mark.parametrize("with_keys", [True, False])
def test_the_channels_are_those_of_the_four_loops(seed, weights, with_keys):
    data = features(seed)
    keys, labels = (data.train, data.train_labels) if with_keys else (data.train[:0], data.train_labels[:0])
    wanted = np.argsort(-four_loops(data.text, keys, labels, weights))
    for count in range(1, 12):
        got = ape.choose_channels(data.text, keys, labels, weights, count if count > 1 else 0.1)
        assert np.array_equal(got, np.sort(wanted[:count]))


def test_keys_and_both_weights_have_a_say():
    data, none = features(0), (np.zeros((0, 11), np.float32), np.zeros(0, np.int64))
    chosen = [
        tuple(ape.choose_channels(data.text, *rows, w, 5))
        for rows in ((data.train, data.train_labels), none)
        for w in ((1.0, 0.0), (0.0, 1.0))
    ]
    assert chosen[0] != chosen[1] and chosen[0] != chosen[2] and chosen[1] == chosen[3]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("alpha, beta, gamma", [(1.0, 1.0, 0.1), (3.0, 5.5, 0.0), (0.5, 12.0, 0.8)])
def test_logits_equal_the_formula(seed, alpha, beta, gamma, close):
    data = features(seed)
    cfg = config(alpha=alpha, beta=beta, gamma=gamma, channels=6.0)
    cache = ape.training_free(cfg, data)
    wanted = np.argsort(-four_loops(data.text, data.train, data.train_labels, (0.7, 0.3)))[:6]
    ours = ape.scorer(ape.fold(cache), cfg)(data.test)
    close(ours, numpy_logits(data.test, data, np.sort(wanted), alpha, beta, gamma), "scores", "APE: logits")


def test_alpha_zero_is_zero_shot_exactly():
    from jclip.functional.similarity import zero_shot_scores
    from jclip.runtime import jt

    data = features(0)
    scores = ape.scorer(learned(data, np.arange(5), alpha=0.0), config())(data.test)
    assert np.array_equal(scores, zero_shot_scores(jt.array(data.test), jt.array(data.text), 8.0).numpy())


def test_all_channels_and_gamma_zero_are_tip_adapter_exactly():
    from jclip.functional.similarity import cache_scores, zero_shot_scores
    from jclip.runtime import jt

    data, cfg = features(0), config(channels=1.0, alpha=2.0, beta=5.5, gamma=0.0)
    cache = ape.fold(ape.training_free(cfg, data))
    assert np.array_equal(cache["channels"], np.arange(11)) and np.array_equal(cache["keys"], data.train)
    f, text, keys = (jt.array(x) for x in (data.test, data.text, data.train))
    tip = 2.0 * cache_scores(f, keys, jt.array(np.eye(4, dtype=np.float32)[data.train_labels]), 5.5)
    wanted = zero_shot_scores(f, text, 8.0).numpy() + tip.numpy()
    assert np.array_equal(ape.scorer(cache, cfg)(data.test), wanted)


def test_the_grids_are_the_authors(close):
    cfg = config()
    assert np.prod(cfg.search_steps) == 200 * 20 * 5
    close(ape.grid(0.1, 7, 200)[[0, 1, 199]], [0.1, 0.1 + 6.9 / 200, 0.1 + 199 * 6.9 / 200], "closed_form")
    close(ape.grid(0.0, 1, 5), [0, 0.2, 0.4, 0.6, 0.8], "closed_form")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_search_finds_the_first_of_the_best(seed, monkeypatch):
    settings = {"search_alpha": 30.0, "search_beta": 12.0, "search_gamma": 2.0, "search_steps": (4, 5, 3)}
    data, cfg = features(seed), config(channels=6.0, **settings)
    cache = ape.training_free(cfg, data)
    best, wanted = -1, None
    for beta in ape.grid(0.1, 12.0, 5):
        for alpha in ape.grid(0.1, 30.0, 4):
            for gamma in ape.grid(0.0, 2.0, 3):
                scores = numpy_logits(data.val, data, cache["channels"], alpha, beta, gamma)
                right = int((scores.argmax(axis=1) == data.val_labels).sum())
                if right > best:
                    best, wanted = right, {"beta": beta, "alpha": alpha, "gamma": gamma}
    assert {k: v[0] for k, v in ape.search(cfg, data, cache).items()} == wanted
    monkeypatch.setattr(
        adapt, "SCORES_AT_ONCE", 4 * 3 * 4 * 5
    )  # validation in parts of five rows, the last one shorter
    assert {k: v[0] for k, v in ape.search(cfg, data, cache).items()} == wanted


# -T


def optim(**settings) -> OptimConfig:
    return OptimConfig(**{"lr": 1e-2, "eps": 1e-3, "weight_decay": 0.1, "epochs": 3, "batch": 6, **settings})


def torch_training(data, cfg):
    """-T in torch from the paper: keys, text and values moved in full, the same batches, AdamW, cosine per iteration."""
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    nothing = data.train[:0], data.train_labels[:0]
    scores = four_loops(data.text, *nothing, cfg.train_criterion)
    channels = torch.tensor(np.sort(np.argsort(-scores)[: int(cfg.train_channels)]).copy())
    labels = torch.tensor(data.train_labels)
    residual = torch.nn.Parameter(torch.zeros(len(data.text), len(channels)))
    weights = torch.nn.Parameter(torch.ones(len(labels), 1))
    values = torch.nn.functional.one_hot(labels).float()
    batches = -(-len(labels) // cfg.optim.batch)
    optimiser = torch.optim.AdamW([residual, weights], lr=cfg.optim.lr, eps=cfg.optim.eps, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, cfg.optim.epochs * batches)
    for epoch in range(cfg.optim.epochs):
        order = np.random.default_rng((cfg.seed, epoch)).permutation(len(labels))
        for start in range(0, len(order), cfg.optim.batch):
            rows = order[start : start + cfg.optim.batch]
            keys, text = torch.tensor(data.train).clone(), torch.tensor(data.text).clone()
            keys[:, channels] = keys[:, channels] + residual[labels]
            text[:, channels] = text[:, channels] + residual
            f = torch.tensor(data.train[rows])
            cache = ((-1) * (cfg.beta - cfg.beta * f @ keys.T)).exp() @ (values * weights)
            loss = torch.nn.functional.cross_entropy(data.scale * f @ text.T + cfg.alpha * cache, labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return residual.detach().numpy(), weights.detach().numpy(), channels.numpy()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("epochs, batch, name", [(1, 99, "optimiser"), (3, 6, "trajectory")])
def test_training_equals_torch(seed, epochs, batch, name, tmp_path, close):
    data = features(seed)
    settings = {"train": True, "alpha": 2.0, "beta": 3.0, "train_channels": 6.0, "selection": "last", "seed": seed}
    cfg = config(**settings, train_criterion=(0.8, 0.2), optim=optim(epochs=epochs, batch=batch))
    with Run(tmp_path, {"recipe": "ape"}) as run:
        cache, metrics = ape.train(cfg, run, data, source=None)
    residual, weights, channels = torch_training(data, cfg)
    step = np.zeros((4, 11))
    step[:, channels] = residual
    label = f"APE-T: after {'one step' if epochs == 1 else '9 steps'}"
    close(cache["text"], data.text + step, name, f"{label}, text")
    close(cache["keys"], data.train + step[data.train_labels], name, f"{label}, keys")
    close(cache["values"], np.eye(4)[data.train_labels] * weights, name, f"{label}, values")
    for got, start in ((cache["text"], data.text), (cache["values"].sum(axis=1), np.ones(14))):
        with pytest.raises(AssertionError, match="differs by"):
            close(got, start, "trajectory")  # it moved
    with_keys = four_loops(data.text, data.train, data.train_labels, cfg.train_criterion)
    assert set(np.argsort(-with_keys)[:6]) != set(channels)  # -T looks at the text alone
    still = np.setdiff1d(np.arange(11), channels)
    assert len(still) == 5 and np.array_equal(cache["keys"][:, still], data.train[:, still])
    assert set(metrics) == {"test_top1_last_epoch", "test_top1_best_epoch", "best_epoch"}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_logits_that_train_are_those_of_the_moved_cache(seed, close):
    from jclip.runtime import jt

    data, rng, cfg = features(seed), np.random.default_rng(seed), config(train=True, alpha=2.0, beta=3.0)
    channels = np.array([1, 4, 5, 8])
    arrays = {"residual": rng.standard_normal((4, 4)) * 0.3, "weights": rng.random((1, 14)) + 0.5}
    arrays = {k: a.astype(np.float32) for k, a in arrays.items()}
    hot = np.eye(4, dtype=np.float32)[data.train_labels]
    constants = {"text": data.text, "keys": data.train, "values": hot, "owners": np.ascontiguousarray(hot.T)}
    params, constants = ({k: jt.array(v) for k, v in group.items()} for group in (arrays, constants))
    ours = ape.trained_logits(jt.array(data.test), jt.array(channels), params, constants, 8.0, 2.0, 3.0).numpy()
    f, step = data.test.astype(np.float64), np.zeros((4, 11))
    step[:, channels] = arrays["residual"]
    affinity = f @ (data.train + step[data.train_labels]).T
    wanted = 8 * f @ (data.text + step).T + 2 * np.exp(3 * affinity - 3) @ (hot * arrays["weights"].T)
    close(ours, wanted, "scores", "APE-T: logits that train")
    scorer = ape.scorer(ape.fold(ape.moved(cfg, data, channels, arrays)), cfg)
    close(scorer(data.test), wanted, "scores", "APE-T: logits of a finished run")


def test_learning_rate_zero_is_tip_adapter(tmp_path, close):
    data, cfg = features(0), config(train=True, alpha=2.0, beta=5.5, selection="last", optim=optim(lr=0.0))
    with Run(tmp_path, {"recipe": "ape"}) as run:
        cache, _ = ape.train(cfg, run, data, None)
    tip = ape.fold(ape.training_free(replace(cfg, channels=1.0, gamma=0.0), data))
    ours = ape.fold(cache)
    assert ours.keys() == tip.keys() and all(np.array_equal(ours[k], tip[k]) for k in tip)


# Wrong settings and data


def test_wrong_settings_are_refused(tmp_path):
    data = features(0)
    for settings, message in (
        ({"channels": 0.0}, "above 0"),
        ({"train_channels": -2.0}, "above 0"),
        ({"search_steps": (20, 0, 5)}, "at least 1"),
        ({"views": 0}, "at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(**settings)
    with pytest.raises(ConfigError, match="channels and train_channels must keep 1 to 11 of the features, got 12"):
        ape.training_free(config(channels=12.0), data)
    with pytest.raises(ConfigError, match="channels and train_channels must keep 1 to 11 of the features, got 0"):
        ape.training_free(config(channels=0.01), data)
    with pytest.raises(DataError, match="there must be at least two classes, got one"):
        ape.choose_channels(data.text[:1], data.train[:0], data.train_labels[:0], (0.5, 0.5), 3)


def test_what_the_data_must_have(shared, tmp_path):
    pets = shared / "clip_vitb32_features" / "oxford_pets.npz"
    with pytest.raises(DataError, match="come without text features: set model="):
        train("features_caltech_lvis.yaml", tmp_path / "a", f"data.features={pets}")
    override = toys.smoke_without("val", tmp_path)
    with pytest.raises(ConfigError, match="chosen on validation photos, and there are none"):
        train("smoke.yaml", tmp_path / "b", override)
    with pytest.raises(ConfigError, match="selection=val chooses the epoch on val photos, and there are none"):
        train("smoke.yaml", tmp_path / "c", override, "search=false")
    metrics = train("smoke.yaml", tmp_path / "d", override, "search=false", "selection=last")
    assert "val_top1" not in metrics and metrics["test_count"] == 63


# Whole runs


def train(name, folder, *overrides):
    return toys.train(CONFIGS / name, folder, *overrides)


def test_the_figures_of_the_recorded_features(shared, tmp_path):
    d = np.load(shared / "clip_vitb32_features" / "caltech_lvis.npz")
    metrics = train("features_caltech_lvis.yaml", tmp_path)
    f, keys, text = (d[k].astype(np.float64) for k in ("test_features", "train_features_16", "text_features"))
    f, keys, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (f, keys, text))
    grouped = np.concatenate(
        [text[:, None], keys[np.argsort(d["train_labels_16"], kind="stable")].reshape(35, 16, -1)], 1
    )
    of_class = grouped.sum(axis=1)
    different = sum(of_class[i] * (of_class.sum(axis=0) - of_class[i]) for i in range(35)) / (35 * 34 * 17**2)
    channels = np.argsort(-(text.var(axis=0, ddof=1) - different) / 2)[: round(0.78 * 512)]
    f2, keys2, text2 = (x[:, channels] / np.linalg.norm(x[:, channels], axis=1, keepdims=True) for x in (f, keys, text))
    seen = np.exp(keys2 @ text2.T)
    own = (seen / seen.sum(axis=1, keepdims=True))[np.arange(560), d["train_labels_16"]]
    weights = ((1 + 1e-6) / (own + 1e-6)) ** (metrics["gamma"] / np.log(2))  # exp(γ log2(...))
    cache = np.exp(metrics["beta"] * (f2 @ keys2.T - 1)) @ (np.eye(35)[d["train_labels_16"]] * weights[:, None])
    right = int(((100 * f @ text.T + metrics["alpha"] * cache).argmax(axis=1) == d["test_labels"]).sum())
    assert [metrics["val_correct"], metrics["test_correct"]] == [610, 905] and right == 905
    assert metrics["val_top1"] > metrics["zero_shot_val_top1"]


def test_the_trained_config_beats_zero_shot(shared, tmp_path):
    metrics = train("features_caltech_lvis_T.yaml", tmp_path)
    assert [metrics["val_correct"], metrics["test_correct"]] == [612, 908]
    assert metrics["val_top1"] > metrics["zero_shot_val_top1"] and metrics["gamma"] == 0
    assert metrics["test_top1"] >= metrics["zero_shot_test_top1"]


def test_selection_on_test_is_reported(tmp_path):
    metrics = train("smoke.yaml", tmp_path / "a", "selection=test")
    assert metrics["selected_on_test"] == 1
    assert "selected_on_test" not in train("smoke.yaml", tmp_path / "b")


def test_photos_from_folders_to_predictions(small_models, photo_folder, tmp_path, monkeypatch, capsys):
    from jclip.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        f"recipe: ape\nmodel: '{small_models['vit']}'\ntemplates: simple\nviews: 2\ntrain: true\n"
        f"search_steps: [4, 5, 2]\nsearch_alpha: 200.0\ndata: {{root: '{photo_folder}', shots: 4, val_shots: 2}}\n"
        "optim: {epochs: 2, batch: 5}\n",
        encoding="utf-8",
    )
    for train_it in ("true", "false"):
        assert main(["train", "mine.yaml", "--run", train_it, f"train={train_it}"]) == 0
        metrics = json.loads((tmp_path / train_it / "result.json").read_text())["metrics"]
        assert metrics["test_count"] == 18 and metrics["val_top1"] >= metrics["zero_shot_val_top1"]
        assert main(["eval", train_it]) == 0
        assert f"{metrics['test_top1']:.4f} ({metrics['test_correct']} of 18)" in capsys.readouterr().out
