"""CoCoOp against the authors' way in torch: whole prompts of 77 tokens for every image, one image after another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from finetune import Classifier, cocoop
from jclip.config import DataConfig, OptimConfig
from jclip.errors import ConfigError
from jclip.model.learned_prompts import Frame, Layout, Prompts
from jclip.readers import read_weights
from jclip.runtime import jt
from jclip.train import prompt_training as context
from jclip.train.run import Run
from tests.recipes import toys

torch = pytest.importorskip("torch", reason=toys.NO_TORCH)

from tests.recipes.test_coop import NAMES, authors_text, data_of, reference, source  # noqa: E402, F401

CONFIG = Path(__file__).parents[2] / "configs" / "cocoop" / "smoke.yaml"
PARAMS = ("context", "W1", "b1", "W2", "b2")


@pytest.fixture(autouse=True)
def six_hidden_units(monkeypatch):
    """Of toy features of 24 numbers a sixteenth would be one."""
    monkeypatch.setattr(cocoop, "NARROWER", 4)


def config(**settings) -> cocoop.Config:
    return cocoop.Config(DataConfig(features="x"), model="x", **settings)


def random_params(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng((seed, 3))
    shapes = {"context": (3, 32), "W1": (6, 24), "b1": (6,), "W2": (32, 6), "b2": (32,)}
    return {name: (rng.standard_normal(shape) / 6).astype(np.float32) for name, shape in shapes.items()}


def authors_scores(reference, p, features, scale: float):  # noqa: F811
    """(B, C): each image's prompts from its own vectors."""
    rows = []
    for f in features:
        shift = p["W2"] @ torch.relu(p["W1"] @ f + p["b1"]) + p["b2"]
        rows.append(scale * authors_text(*reference, p["context"] + shift, "end") @ f)
    return torch.stack(rows)


def doubled(arrays) -> dict:
    return {k: torch.tensor(arrays[k].astype(np.float64), requires_grad=True) for k in PARAMS}


@pytest.mark.parametrize("at_once", [256, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_and_gradients_equal_the_authors(at_once, seed, source, reference, monkeypatch, close):  # noqa: F811
    monkeypatch.setattr("jclip.model.learned_prompts.AT_ONCE", at_once)
    arrays, features = random_params(seed), data_of(seed).test[:3]
    ours, theirs = {k: jt.array(a) for k, a in arrays.items()}, doubled(arrays)
    frame = Frame(source.model, Layout.of(source, NAMES, 3))
    got = cocoop.image_scores(ours, frame, 8.0)(jt.array(features).stop_grad())
    wanted = authors_scores(reference, theirs, torch.tensor(features.astype(np.float64)), 8.0)
    close(got.numpy(), wanted.detach(), "scores", "CoCoOp: scores")
    pull = np.random.default_rng((seed, 1)).standard_normal(wanted.shape).astype(np.float32)
    (wanted * torch.tensor(pull)).sum().backward()
    for name, gradient in zip(PARAMS, jt.grad((got * jt.array(pull)).sum(), [ours[k] for k in PARAMS]), strict=True):
        label = "CoCoOp: gradients, relative"
        close(gradient.numpy(), theirs[name].grad, "gradient_relative", label, relative=True)


@pytest.mark.parametrize("seed, selection", [(0, "last"), (1, "val")])
def test_a_run_equals_torchs(seed, selection, source, reference, tmp_path, monkeypatch, close):  # noqa: F811
    """Four epochs of three steps; validation is measured only where it chooses."""
    data, frozen = data_of(seed), {k: v.numpy() for k, v in source.model.state_dict().items()}
    monkeypatch.setattr(context, "features_for", lambda cfg, run: (source, data))
    monkeypatch.setattr("jclip.features.source.source_of", lambda cfg: source)
    optim = OptimConfig(name="sgd", lr=0.05, weight_decay=5e-4, epochs=4, batch=5)
    cfg = config(words="", context=3, optim=optim, selection=selection, seed=seed)
    start = Prompts(source.model, NAMES, 3, seed=seed).vectors.numpy()
    theirs = doubled({"context": start, **{k: v.numpy() for k, v in cocoop.network(24, 32, seed).items()}})
    with Run(tmp_path, {"recipe": "cocoop"}) as run:
        metrics = cocoop.run(cfg, run)

    sgd = torch.optim.SGD(theirs.values(), 1e-5, momentum=0.9, weight_decay=5e-4)
    x, y = torch.tensor(data.train.astype(np.float64)), torch.tensor(data.train_labels)
    losses, after = [], []
    for epoch in range(4):
        sgd.param_groups[0]["lr"] = 1e-5 if epoch == 0 else 0.05 * (1 + np.cos(np.pi * (epoch - 1) / 4)) / 2
        of_epoch = []
        for rows in torch.tensor(np.random.default_rng((seed, epoch)).permutation(len(x))).split(5):
            scores = authors_scores(reference, theirs, x[rows], data.scale)
            loss = torch.nn.functional.cross_entropy(scores, y[rows])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            of_epoch.append(loss.item())
        losses.append(np.mean(of_epoch))
        after.append({k: v.detach().clone() for k, v in theirs.items()})
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    close([line["loss"] for line in written], losses, "trajectory_loss", "CoCoOp: losses of four epochs")
    assert all(("top1" in line) == (selection == "val") for line in written)
    learned = {k: np.array(t.read()) for k, t in read_weights(tmp_path / "learned.safetensors").items()}
    chosen = after[metrics["best_epoch"] - 1 if selection == "val" else 3]
    for name in PARAMS:
        close(learned[name], chosen[name], "trajectory", "CoCoOp: parameters of the chosen epoch")
    test = torch.tensor(data.test.astype(np.float64))
    wanted = authors_scores(reference, chosen, test, data.scale)
    close(cocoop.scorer(learned, cfg)(data.test), wanted, "trajectory", "CoCoOp: scores of the chosen epoch")
    assert metrics["test_correct"] == int((wanted.argmax(1).numpy() == data.test_labels).sum())
    assert metrics["test_top1"] == metrics[f"test_top1_{'last' if selection == 'last' else 'best'}_epoch"]
    assert all(np.array_equal(v.numpy(), frozen[k]) for k, v in source.model.state_dict().items())


def test_without_the_network_it_is_coop(source, close):  # noqa: F811
    arrays, features = random_params(2), data_of(2).test
    arrays |= {"W2": np.zeros((32, 6), np.float32), "b2": np.zeros(32, np.float32)}
    frame = Frame(source.model, Layout.of(source, NAMES, 3))
    ours = {k: jt.array(a) for k, a in arrays.items()}
    got = cocoop.image_scores(ours, frame, 8.0)(jt.array(features)).numpy()
    text = frame.features(ours["context"]).numpy()
    close(got, 8 * features @ text.T, "scores", "CoCoOp: without its network")


def test_other_names_get_the_learned_vectors(source, reference, close, monkeypatch):  # noqa: F811
    others, features = NAMES[:2][::-1], data_of(3).test[:2]
    arrays, layout = random_params(3), Layout.of(source, ("zebra crossing", "ox", "a b c d e f g"), 3)
    learned = {**arrays, **layout.arrays(), "scale": np.array([8.0])}
    monkeypatch.setattr("jclip.features.source.source_of", lambda cfg: source)
    found = cocoop.for_classes(learned, config(), others, source)
    wanted = authors_scores(reference, doubled(arrays), torch.tensor(features.astype(np.float64)), 8.0)
    got = cocoop.scorer(found, config())(features)
    close(got, wanted.detach()[:, [1, 0]], "scores", "CoCoOp: scores of other names")


def test_from_photos_to_classes(small_models, photo_folder, tmp_path):
    moved, settings = tmp_path / "moved.safetensors", [f"data.root={photo_folder}", "data.split_file="]
    shutil.copy(small_models["vit"], moved)
    metrics = toys.train(CONFIG, tmp_path / "run", f"model={moved}", *settings, "augment=coop", "optim.epochs=2")
    assert metrics["test_top1"] == metrics["test_top1_last_epoch"] and metrics["test_count"] == 18
    assert len((tmp_path / "run" / "words.csv").read_text().splitlines()) == 5
    moved.unlink()
    done = Classifier.load(tmp_path / "run", model=str(small_models["vit"]))
    predictions = done.predict([photo_folder / "test"])
    labels = [done.classnames.index(Path(photo).parent.name) for photo in predictions.photos]
    assert np.mean(predictions.scores.argmax(1) == labels) == pytest.approx(metrics["test_top1"], abs=1e-6)


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match="context must be at least 1 and views at least 0, got 0 and -1"):
        config(context=0, views=-1)
