"""Prompts that begin alike: what they share is computed once, with the numbers of prompts that are computed whole."""

from __future__ import annotations

import numpy as np
import pytest

from jclip import kernels
from jclip.features.source import ModelSource
from jclip.model import learned_prompts
from jclip.model.layers import SharedStart, Transformer, put_tokens
from jclip.model.learned_prompts import Frame, Layout, Prompts
from jclip.runtime import jt

NAMES = ("ant", "great_white_shark", "t-rex", "b c d e")


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def alike(seed: int, rows: int, length: int, tokens: int, runs: int) -> np.ndarray:
    """(rows, length, 6) whose first tokens are equal within each run."""
    x = normal(seed, rows, length, 6).reshape(runs, rows // runs, length, 6)
    x[:, :, :tokens] = x[:, :1, :tokens]
    return x.reshape(rows, length, 6)


@pytest.fixture
def seen(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of what goes into text transformers."""
    shapes, execute = [], Transformer.execute

    def spy(self, x, **options):
        shapes.append(tuple(x.shape))
        return execute(self, x, **options)

    monkeypatch.setattr(Transformer, "execute", spy)
    return shapes


@pytest.mark.parametrize("rows, length, tokens, runs", [(4, 7, 3, 1), (6, 5, 4, 3), (6, 9, 1, 2)])
def test_sequences_are_held_once_and_spread_again(rows, length, tokens, runs):
    x, shared = alike(rows, rows, length, tokens, runs), SharedStart(rows, length, tokens, runs)
    held = shared.once(jt.array(x))
    assert held.shape == (runs * tokens + rows * (length - tokens), 6)
    assert np.array_equal(shared.spread(held).numpy(), x)
    ends = np.random.default_rng(tokens).integers(tokens, length, rows)
    assert np.array_equal(held.numpy()[shared.at(ends)], x[np.arange(rows), ends])
    vectors = jt.array(normal(9, tokens, 6))
    put = shared.spread(shared.put(held, 0, vectors)).numpy()
    assert np.array_equal(put, put_tokens(jt.array(x), 0, vectors).numpy())
    with pytest.raises(ValueError, match="do not fit"):
        shared.put(held, 1, vectors)


def both_ways(monkeypatch, compute) -> list[list[np.ndarray]]:
    """What `compute` returns with the start shared, and with each prompt computed whole."""
    found = []
    for share in (0.2, 2.0):
        monkeypatch.setattr(learned_prompts, "WORTHWHILE", share)
        found.append([array.numpy() for array in compute()])
    return found


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("deep", [1, 2])
def test_features_and_gradients_are_those_of_whole_prompts(deep, seed, small_models, seen, monkeypatch, close):
    """deep: how many blocks get vectors of their own."""
    model = ModelSource(small_models["vit"]).model
    layout = Layout.of(model, NAMES, 5)
    vectors, pull = jt.array(normal(seed, deep, 5, 32) / 9), jt.array(normal(seed + 2, 4, 24))

    def compute():
        text = Frame(model, layout).encode(vectors if deep > 1 else vectors[0])
        return text, jt.grad((text * pull).sum(), vectors)

    shared, whole = both_ways(monkeypatch, compute)
    length = layout.tokens.shape[1]
    assert layout.alike == 6 and seen == [(6 + 4 * (length - 6), 32), (4, length, 32)]
    close(shared[0], whole[0], "features_normalised", "shared start: features")
    close(shared[1], whole[1], "gradient_relative", "shared start: gradients, relative", relative=True)


@pytest.mark.parametrize("seed", [0, 1])
def test_each_run_has_a_start_of_its_own(seed, small_models, seen, monkeypatch, close):
    model = ModelSource(small_models["vit"]).model
    frame, classes = Frame(model, Layout.of(model, NAMES, 3)), np.tile(np.arange(4), 2)
    vectors, shifts = jt.array(normal(seed, 3, 32) / 9), jt.array(normal(seed + 2, 2, 32) / 9)
    pull = jt.array(normal(seed + 4, 8, 24))

    def compute():
        text = frame.encode(vectors, classes, shifts[jt.array(np.repeat([0, 1], 4).astype(np.int32))], runs=2)
        return text, *jt.grad((text * pull).sum(), [vectors, shifts])

    shared, whole = both_ways(monkeypatch, compute)
    length = seen[1][1]
    assert seen == [(2 * 4 + 8 * (length - 4), 32), (8, length, 32)]
    close(shared[0], whole[0], "features_normalised", "shared start of each photo: features")
    for mine, true in zip(shared[1:], whole[1:], strict=True):
        close(mine, true, "gradient_relative", "shared start of each photo: gradients, relative", relative=True)


@pytest.mark.parametrize(
    "options", [{"position": "front"}, {"per_class": True}, {"length": 2, "classnames": ("ant",)}], ids=str
)
def test_prompts_with_little_in_common_are_computed_whole(options, small_models, seen):
    model = ModelSource(small_models["vit"]).model
    Prompts(model, **{"classnames": NAMES, "length": 5, **options}).features().sync()
    assert [len(shape) for shape in seen] == [3]


def test_equal_names_share_all_but_their_end(small_models, seen):
    model = ModelSource(small_models["vit"]).model
    text = Prompts(model, ("ant", "ant"), 3).features().numpy()
    assert np.array_equal(text[0], text[1]) and seen == [(1 + 3 + 2 + 2, 32)]


@pytest.mark.skipif(bool(kernels.why_no_half("bf16")), reason="no half precision on this processor")
def test_in_half_precision_as_well(small_models, monkeypatch, close):
    model = ModelSource(small_models["vit"]).model.to("bf16")
    frame, vectors = Frame(model, Layout.of(model, NAMES, 5)), jt.array(normal(3, 5, 32) / 9)
    with jt.no_grad():
        shared, whole = both_ways(monkeypatch, lambda: [frame.encode(vectors)])
    close(shared[0], whole[0], "features_normalised", "shared start, bf16: features")
