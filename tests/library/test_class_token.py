"""Towers without gradients: the last block at the class token alone, and what norms and patches hand to bfloat16 products."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from jclip import kernels
from jclip.kernels import cpu, plain
from jclip.model import eva, layers
from jclip.model.clip import CLIP, build
from jclip.model.low_rank import Adapters
from jclip.model.parameter_groups import LowRank
from jclip.model.rotary import Rotation
from jclip.model.streaming import build_streamed
from jclip.runtime import jt
from jclip.weights.checkpoint import load_strict, open_checkpoint, random_arrays
from tests.library.test_kernels import IMPLEMENTATIONS, needs_onednn
from tests.library.test_kernels_products import needs_half, normal, rounded
from tests.toys import TOY_EVAS, TOY_LAYER_SCALE, TOY_VIT, TOY_VIT_GELU, shapes_of, toy_batch, toy_file

TOWERS = {"vit": TOY_VIT, "vit_gelu": TOY_VIT_GELU, "layer_scale": TOY_LAYER_SCALE, **TOY_EVAS}
HALF = pytest.param("bfloat16", marks=needs_half)


def model_of(config, seed=0):
    model = CLIP(config)
    load_strict(model, random_arrays(shapes_of(config), seed), "random")
    model.eval()
    return model


@pytest.fixture
def alone(monkeypatch):
    """What was computed at the first token alone, noted by the kind of block."""
    noted = []
    for kind in (layers.Block, eva.Block):

        def at_first(self, *given, own=kind.at_first):
            noted.append(type(self))
            return own(self, *given)

        monkeypatch.setattr(kind, "at_first", at_first)
    return noted


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float32", HALF])
@pytest.mark.parametrize("size", [(2, 7, 3, 4), (3, 1, 5, 2), (1, 65, 2, 16), (5, 33, 1, 9)])
def test_attention_of_the_first_token_is_the_first_of_all(implementation, dtype, size, close):
    B, N, H, d = size
    qkv = normal(np.random.default_rng(N), B, N, 3 * H * d) * 2
    qkv = rounded(qkv) if dtype == "bfloat16" else qkv
    wanted = plain.attention(jt.array(qkv), H)[:, 0]
    kv = jt.array(qkv[:, :, H * d :])
    with jt.no_grad():
        kv = cpu.to_half(kv) if dtype == "bfloat16" else kv
        got = implementation.class_attention(jt.array(qkv[:, 0, : H * d]), kv, H)
    close(
        got.float32().numpy(), wanted.numpy(), "half_relative" if got.dtype == "bfloat16" else "kernel", relative=True
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", TOWERS)
def test_the_last_block_at_the_class_token_is_that_of_all_tokens(name, seed, alone, close):
    model, (pixels, _) = model_of(TOWERS[name], seed), toy_batch(TOWERS[name], seed)
    with jt.no_grad():
        whole = model.encode_image(pixels, taps={})
        assert not alone
        close(model.encode_image(pixels).numpy(), whole.numpy(), "features")
    assert len(alone) == 1
    with_gradients = model.encode_image(pixels)
    dense = model.encode_image(pixels, dense="token")[0]
    assert len(alone) == 1
    close(with_gradients.numpy(), whole.numpy(), "features")
    close(dense.numpy(), whole.numpy(), "features")


@pytest.mark.parametrize("dtype", [pytest.param("bf16", marks=needs_half), pytest.param("int8", marks=needs_onednn)])
@pytest.mark.parametrize("name", ["vit", "layer_scale", "eva02", "enormous"])
def test_so_it_is_in_half_precision_and_of_8_bits(name, dtype, alone, close):
    model, (pixels, _) = model_of(TOWERS[name]), toy_batch(TOWERS[name])
    model.to(dtype)
    with jt.no_grad():
        whole, got = model.encode_image(pixels, taps={}).numpy(), model.encode_image(pixels).numpy()
    assert len(alone) == 1
    close(got, whole, "half_tower_relative", relative=True)


def test_so_it_is_with_updates_beside_its_weights_and_with_prompts_before_it(alone, close):
    model, (pixels, _) = model_of(TOY_VIT), toy_batch(TOY_VIT)
    without = model.encode_image(pixels).numpy()
    adapters, rng = Adapters(model, LowRank(towers="image"), 3), np.random.default_rng(4)
    for param in adapters.params.values():
        param.update(jt.array(normal(rng, *param.shape)))
    adapters.attach()
    prompts = {1: (2, jt.array(normal(rng, 3, TOY_VIT.vision.width)))}
    for options in ({}, {"insert": prompts}):
        with jt.no_grad():
            whole, got = (model.encode_image(pixels, **taps, **options).numpy() for taps in ({"taps": {}}, {}))
        close(got, whole, "features")
        assert np.abs(got - without).max() > 0.01
    assert len(alone) == 2


def test_so_it_is_where_queries_and_keys_are_turned(close):
    attention, x = layers.Attention(24, 3, 0.3, 0.3), jt.array(normal(np.random.default_rng(5), 2, 7, 24))
    still = attention.at_first(x).numpy()
    attention.turn_by(Rotation(normal(np.random.default_rng(6), 7, 8), first=0))
    for block in (contextlib.nullcontext, jt.no_grad):
        with block():
            whole, got = attention(x)[:, 0].numpy(), attention.at_first(x).numpy()
        close(got, whole, "tokens")
        assert np.abs(got - still).max() > 0.1


@pytest.mark.parametrize("name", ["vit", "eva02"])
def test_so_it_is_with_blocks_that_stay_on_disk(name, alone, close, tmp_path):
    checkpoint = open_checkpoint(toy_file(tmp_path, TOWERS[name]))
    pixels, _ = toy_batch(TOWERS[name])
    with jt.no_grad():
        whole, streamed = (make(checkpoint).encode_image(pixels).numpy() for make in (build, build_streamed))
    close(streamed, whole, "features")
    assert len(alone) == 2


# What the next product reads


@needs_half
@pytest.mark.parametrize("shape", [(3, 5, 24), (2, 7, 33), (1, 1, 3)])
def test_norms_hand_rounded_numbers_to_products_that_round_them(shape, close):
    rng = np.random.default_rng(shape[-1])
    x, weight, bias = (jt.array(normal(rng, *s)) for s in (shape, shape[-1:], shape[-1:]))
    reader = kernels.to_half(jt.array(normal(rng, 4, shape[-1])), pack=False)
    wide = kernels.layer_norm(x, weight, bias, 1e-5, reader)
    with jt.no_grad():
        half = kernels.layer_norm(x, weight, bias, 1e-5, reader)
        others = [kernels.layer_norm(x, weight, bias, 1e-5, other) for other in (None, weight)]
    assert half.dtype == "bfloat16" and all(v.dtype == "float32" for v in (wide, *others))
    close(half.float32().numpy() / wide.numpy(), np.ones(shape), "half_rounding")


@needs_onednn
@pytest.mark.parametrize("shape, patch", [((2, 3, 20, 15), 5), ((1, 3, 8, 24), 8), ((3, 3, 6, 6), 2)])
def test_cells_are_the_plain_ones(shape, patch):
    images = normal(np.random.default_rng(patch), *shape)
    wanted = plain.cells(jt.array(images), patch).numpy()
    assert np.array_equal(wanted[0, 1, : patch * patch].reshape(patch, patch), images[0, 0, :patch, patch : 2 * patch])
    for dtype, expected in (("float32", wanted), ("bfloat16", rounded(wanted))):
        got = cpu.cells(jt.array(images), patch, dtype)
        assert got.dtype == dtype and np.array_equal(got.float32().numpy(), expected)
