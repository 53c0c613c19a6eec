"""CoOp against the authors' way in torch: whole prompts of 77 tokens, vectors put between them, SGD by epochs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import finetune
from finetune import coop
from jclip.config import DataConfig, OptimConfig
from jclip.errors import ConfigError, DataError
from jclip.features.precomputed import FeatureSet
from jclip.features.source import ModelSource
from jclip.functional.directions import unit
from jclip.model.learned_prompts import Layout, Prompts, first_vectors, nearest_words
from jclip.prompts.tokenizer import tokenizer
from jclip.runtime import jt
from jclip.train import prompt_training as context
from jclip.train.run import Run
from jclip.weights.checkpoint import open_checkpoint
from tests.recipes import toys

torch = pytest.importorskip("torch", reason=toys.NO_TORCH)

from tests.parity import torch_clip  # noqa: E402
from tests.parity.test_contrastive import doubled  # noqa: E402

NAMES = ("ant", "great_white_shark", "t-rex", "b c d e")
POSITIONS = ("end", "middle", "front")


@pytest.fixture
def source(small_models) -> ModelSource:
    return ModelSource(small_models["vit"])


@pytest.fixture
def reference(small_models):
    """The config and the weights in float64."""
    checkpoint = open_checkpoint(small_models["vit"])
    return checkpoint.config, doubled(torch_clip.parameters(dict(checkpoint.arrays())))


def data_of(seed: int, width: int = 24) -> FeatureSet:
    rng = np.random.default_rng(seed)

    def rows(n):
        return unit(rng.standard_normal((n, width))).astype(np.float32)

    labels = rng.permutation(np.repeat(np.arange(len(NAMES)), 3))
    parts = [rows(len(labels)), labels, rows(9), rng.integers(0, 4, 9), rows(11), rng.integers(0, 4, 11)]
    return FeatureSet(NAMES, *parts, rows(len(NAMES)), 8.0)


def authors_text(config, p, vectors, position: str):
    """(C, E): prompts of all 77 tokens, "X" in the place of each vector, cut apart and put together again."""
    words, count = tokenizer(), vectors.shape[-2]
    names = [name.replace("_", " ") for name in NAMES]
    tokens = torch.tensor(words([" ".join(["X"] * count) + f" {name}." for name in names]), dtype=torch.int64)
    embedded, made = p["token_embedding.weight"][tokens], []
    for k, name in enumerate(names):
        own = vectors if vectors.ndim == 2 else vectors[k]
        start, rest, n = embedded[k, :1], embedded[k, 1 + count :], len(words.encode(name))
        parts = {
            "end": [start, own, rest],
            "middle": [start, own[: count // 2], rest[:n], own[count // 2 :], rest[n:]],
            "front": [start, rest[:n], own, rest[n:]],
        }
        made.append(torch.cat(parts[position]))
    x = torch.stack(made) + p["positional_embedding"]
    t, eps = config.text, config.norm_eps
    mask = torch.full((77, 77), float("-inf"), dtype=x.dtype).triu(1)
    x = torch_clip.transformer(
        x, p, "", t.layers, t.heads, torch_clip.activation(config.activation), eps, mask, None, "text."
    )
    x = torch_clip.norm(x, p, "ln_final", eps)[torch.arange(len(x)), tokens.argmax(1)] @ p["text_projection"]
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_text_features_and_gradients_equal_the_authors(position, per_class, seed, source, reference, close):
    prompts = Prompts(source.model, NAMES, 5, "", position, per_class, seed)
    vectors = np.random.default_rng(seed).standard_normal(prompts.vectors.shape).astype(np.float32) / 9
    prompts.vectors.update(jt.array(vectors))
    prompts.vectors.start_grad()
    shape = (len(NAMES), 5, -1) if per_class else (5, -1)
    theirs = torch.tensor(vectors.astype(np.float64), requires_grad=True)
    wanted = authors_text(*reference, theirs.reshape(shape), position)
    got = prompts.features()
    close(got.numpy(), wanted.detach(), "features_normalised", "CoOp: text features")
    pull = np.random.default_rng((seed, 1)).standard_normal(wanted.shape).astype(np.float32)
    (wanted * torch.tensor(pull)).sum().backward()
    gradient = jt.grad((got * jt.array(pull)).sum(), prompts.vectors)
    close(gradient.numpy(), theirs.grad, "gradient_relative", "CoOp: gradients, relative", relative=True)


@pytest.mark.parametrize("at_once", [1, 3])
def test_many_classes_are_computed_in_parts(at_once, source, monkeypatch, close):
    prompts = Prompts(source.model, NAMES, 5, seed=2)
    pull = jt.array(np.random.default_rng(3).standard_normal((4, 24)).astype(np.float32))

    def both():
        text = prompts.features()
        return text.numpy(), jt.grad(jt.exp(text * pull).sum(), prompts.vectors).numpy()

    whole = both()
    monkeypatch.setattr("jclip.model.learned_prompts.AT_ONCE", at_once)
    for got, wanted in zip(both(), whole, strict=True):
        close(got, wanted, "gradient_relative", "CoOp: in parts, relative", relative=True)


def test_what_stands_behind_the_end_is_not_computed(source):
    layout = Layout.of(source, ["ant", "great white shark"], 5)
    assert layout.tokens.shape == (2, 1 + 5 + 3 + 2) and layout.ends.tolist() == [8, 10]
    assert layout.slots[0].tolist() == [0, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0]


def test_words_are_the_start(source, close):
    prompts = Prompts(source.model, NAMES, 16, words="a_photo of a")
    table = source.model.token_embedding.weight.numpy()
    assert np.array_equal(prompts.vectors.numpy(), table[tokenizer().encode("a photo of a")])
    text = prompts.features().numpy()
    tokens = source.model.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    close(text, unit(source.model.encode_text(tokens).numpy()), "features_normalised", "CoOp: words as vectors")
    got = nearest_words(source.model, prompts.vectors.numpy(), 2)
    assert [row[0][0] for row in got] == ["a", "photo", "of", "a"]
    assert all(row[0][1] < row[1][1] / 100 for row in got)  # the word itself, and the next one


@pytest.mark.parametrize("recipe, position", [("coop", "middle"), ("kgcoop", "end")])
def test_other_names_get_the_learned_vectors(recipe, position, source, close):
    module, others = finetune.load(recipe), ("zebra crossing", "ox", "a b c d e f g")
    cfg = module.Config(DataConfig(), model="x", **({"position": position} if recipe == "coop" else {}))
    vectors = np.random.default_rng(4).standard_normal((3, 32)).astype(np.float32) / 9
    learned = {"context": vectors, "text": np.full((4, 24), np.nan), "scale": np.array([8.0])}
    found = module.for_classes(learned, cfg, others, source)
    direct = Prompts(source.model, others, 3, "", position)
    direct.vectors.update(jt.array(vectors))
    assert np.array_equal(found["text"], direct.features().numpy()) and np.isnan(learned["text"]).all()
    features = data_of(0).test
    close(module.scorer(found, cfg)(features), 8 * features @ found["text"].T, "scores")


def test_vectors_of_each_class_fit_no_other_names(source):
    cfg = coop.Config(DataConfig(), model="x", per_class=True)
    with pytest.raises(ConfigError, match="per_class=true learned vectors for its own classes alone"):
        coop.for_classes({"context": np.zeros((12, 32))}, cfg, ("ox",), source)


@pytest.mark.parametrize("seed", [0, 1])
def test_training_equals_torchs(seed, source, reference, tmp_path, close):
    """Four epochs of three steps: the first at 1e-5, then the authors' cosine; momentum, decay on the vectors."""
    data = data_of(seed)
    optim = OptimConfig(name="sgd", lr=0.05, weight_decay=5e-4, epochs=4, batch=5)
    cfg = coop.Config(DataConfig(features="x"), model="x", context=3, optim=optim, seed=seed)
    prompts = context.prompts_for(source, data, 3, "", seed)
    theirs = torch.tensor(prompts.vectors.numpy().astype(np.float64), requires_grad=True)
    with Run(tmp_path, {"recipe": "coop"}) as run:
        trained = context.train(cfg, run, data, source, prompts)
    sgd = torch.optim.SGD([theirs], 1e-5, momentum=0.9, weight_decay=5e-4)
    x, y = torch.tensor(data.train.astype(np.float64)), torch.tensor(data.train_labels)
    losses = []
    for epoch in range(4):
        rate = 1e-5 if epoch == 0 else 0.05 * (1 + np.cos(np.pi * (epoch - 1) / 4)) / 2
        sgd.param_groups[0]["lr"] = rate
        for rows in torch.tensor(np.random.default_rng((seed, epoch)).permutation(len(x))).split(5):
            text = authors_text(*reference, theirs, "end")
            loss = torch.nn.functional.cross_entropy(data.scale * x[rows] @ text.T, y[rows])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            losses.append(loss.item())
    close(trained.arrays["context"], theirs.detach(), "trajectory", "CoOp: vectors after 12 steps")
    learned = context.text_of(prompts, trained.arrays["context"], data)
    wanted = authors_text(*reference, theirs, "end").detach()
    close(learned["text"], wanted, "trajectory", "CoOp: text features after 12 steps")


def test_what_does_not_fit_is_reported(source):
    with pytest.raises(DataError, match="75 context vectors and the name 'b c d e' make 82 tokens, the tower takes 77"):
        Prompts(source.model, NAMES, 75)
    with pytest.raises(DataError, match="holds no words"):
        first_vectors(source.model, 4, " ", 0)
    with pytest.raises(ConfigError, match="context must be at least 1 and views at least 0, got 0"):
        coop.Config(DataConfig(), model="x", context=0)
    with pytest.raises(ConfigError, match="the model gives features of 24 dimensions and not 16"):
        context.prompts_for(source, data_of(0, width=16), 3, "", 0)


def test_from_photos_to_words(small_models, photo_folder, tmp_path):
    config = Path(__file__).parents[2] / "configs" / "coop" / "smoke.yaml"
    settings = [f"model={small_models['vit']}", f"data.root={photo_folder}", "data.shots=2", "views=2", "augment=coop"]
    metrics = toys.train(config, tmp_path, *settings)
    assert {"zero_shot_test_top1", "test_top1", "test_top1_last_epoch", "test_top1_best_epoch"} <= set(metrics)
    with open(tmp_path / "words.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [row["vector"] for row in rows] == ["1", "2", "3", "4"]
    assert all(float(row["distance_1"]) <= float(row["distance_5"]) for row in rows)
