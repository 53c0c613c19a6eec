"""Weights of 8 bits: sums that are exact whatever computes them, towers near float32's, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from jclip import kernels
from jclip.cli import main
from jclip.config import DataConfig
from jclip.data.splits import read_photos
from jclip.errors import ConfigError
from jclip.features.extraction import extract
from jclip.features.source import ModelSource
from jclip.kernels import cpu, int8
from jclip.model.clip import CLIP
from jclip.runtime import jt
from jclip.weights.checkpoint import load_strict, random_arrays
from jclip.weights.variants import VARIANTS, CLIPConfig, ViTConfig
from tests.conftest import ROOT
from tests.library.test_kernels import needs_onednn, weigh
from tests.tolerances import TOLERANCES
from tests.toys import TOY_BERT, TOY_EVAS, TOY_LAYER_SCALE, TOY_SIGLIP, TOYS, shapes_of, toy_batch

pytestmark = pytest.mark.skipif(bool(jt.flags.use_cuda), reason="int8 is for CPUs")
BLOCKS = CLIPConfig(  # widths that oneDNN multiplies in blocks of 256, 128 and 64 rows
    14,
    ViTConfig((20, 20), patch_size=5, width=128, layers=2, heads=2, mlp_width=256),
    replace(TOYS["vit"].text, width=64, mlp_width=192),
)
MODELS = {
    **TOYS, "layer_scale": TOY_LAYER_SCALE, "blocks": BLOCKS, "bert": TOY_BERT, **TOY_EVAS, "siglip": TOY_SIGLIP,
}  # fmt: skip
SHAPES = [((3, 7, 64), 64), ((2, 150, 128), 384), ((300, 192), 512), ((5, 33), 65), ((1, 3), 2), ((2, 8256), 3)]
ACTIVATIONS = {None: lambda x: x, "quickgelu": lambda x: x / (1 + np.exp(-1.702 * x))}


@pytest.fixture(params=["plain", pytest.param("loops", marks=needs_onednn), pytest.param("onednn", marks=needs_onednn)])
def way(request, monkeypatch):
    """How the products are made: Jittor's float32, loops without special instructions, oneDNN where it has them."""
    if request.param == "loops":
        monkeypatch.setattr(cpu, "INT8_BLOCKS", ())
    if request.param == "plain":
        monkeypatch.setattr(kernels, "chosen", lambda: "plain")
    return request.param


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def rounded_rows(x):
    """(M, K) → integers 0 to 255, scales (M, 1), zeros (M, 1)."""
    least, most = np.minimum(x.min(axis=1, keepdims=True), 0), np.maximum(x.max(axis=1, keepdims=True), 0)
    scale = (most - least) / np.float32(255)
    zero = np.floor(np.float32(0.5) - least / scale)
    return np.clip(np.floor(x / scale + zero + np.float32(0.5)), 0, 255).astype(np.int64), scale, zero.astype(np.int64)


def rounded_weight(w):
    """(N, K) → integers, scales (N,)."""
    scale = np.abs(w).max(axis=1) / np.float32(127)
    return np.floor(w / scale[:, None] + np.float32(0.5)).astype(np.int64), scale


@pytest.mark.parametrize("shape, outputs", SHAPES)
def test_sums_of_integers_are_exact(way, shape, outputs):
    """Rows from -a to 255 - a and weights up to 127 have scales of exactly one."""
    rng = np.random.default_rng(outputs)
    x = rng.integers(-90, 166, shape)
    x[..., 0], x[..., 1] = -90, 165
    w = rng.integers(-127, 128, (outputs, shape[-1]))
    w[:, 2] = 127
    made = kernels.to_int8(jt.array(w.astype(np.float32)))
    if way == "onednn" and cpu._multiplies_int8() and shape[-1] % 64 == 0:
        assert made.shape[1] == next((R for R in (256, 128, 64) if outputs % R == 0), 1)
    with jt.no_grad():
        got = kernels.linear(jt.array(x.astype(np.float32)), made).numpy()
    assert np.array_equal(got, (x @ w.T).astype(np.float32))


@pytest.mark.parametrize("shape, outputs", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("whole", [True, False])
def test_linear_equals_the_formula(way, shape, outputs, activation, whole, close):
    rng = np.random.default_rng(shape[-1])
    x, w, b, r = (normal(rng, *s) for s in (shape, (outputs, shape[-1]), (outputs,), (*shape[:-1], outputs)))
    q, scale, zero = rounded_rows(x.reshape(-1, shape[-1]))
    qw, of_weight = rounded_weight(w)
    wanted = ((q - zero) @ qw.T) * (scale * of_weight).astype(np.float64)
    wanted = ACTIVATIONS[activation]((wanted + b if whole else wanted).reshape(r.shape))
    more = (jt.array(b), activation, jt.array(r)) if whole else (None, activation)
    with jt.no_grad():
        got = kernels.linear(jt.array(x), kernels.to_int8(jt.array(w)), *more).numpy()
    off = np.abs(got - (wanted + r if whole else wanted))
    # a value halfway between two integers may fall to either side: rare, and worth one step times a weight
    step = np.abs(w).max() * scale.max() * 1.01
    assert off.max() <= step
    assert np.mean(off > TOLERANCES["kernel"] * max(1, np.abs(wanted).max())) < TOLERANCES["int8_halfway"]


@needs_onednn
@pytest.mark.parametrize("activation", [None, "quickgelu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("half", [False, True])
def test_onednn_and_the_loops_give_the_same_bits(activation, half, monkeypatch):
    rng = np.random.default_rng(1)
    x, w, b = (jt.array(normal(rng, *s)) for s in ((2, 301, 128), (192, 128), (192,)))
    made, results = [], []
    with jt.no_grad():
        for blocks in (cpu.INT8_BLOCKS, ()):
            monkeypatch.setattr(cpu, "INT8_BLOCKS", blocks)
            made.append(kernels.to_int8(w))
            results.append(kernels.linear(x, made[-1], b, activation, half=half).float32().numpy())
    assert made[1].shape[1] == 1 and (made[0].shape[1] == 64) == cpu._multiplies_int8()
    assert np.array_equal(*results)
    for a, c in zip(int8.parts(made[0].numpy()), int8.parts(made[1].numpy()), strict=True):
        assert np.array_equal(a, c)


GELUS = {
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
}


@pytest.mark.parametrize("name", GELUS)
def test_gelu_is_the_exact_one_and_its_tanh_form_another(way, name, close):
    x = np.zeros((81, 64), np.float32)
    x[:, 0], x[:, 1], x[:, 2] = np.linspace(-6, 6, 81), 10, -10  # 256 steps of 10 / 127.5
    identity = np.eye(64, dtype=np.float32)
    made = kernels.to_int8(jt.array(identity))
    with jt.no_grad():
        plain, got = (kernels.linear(jt.array(x), made, None, act).numpy() for act in (None, name))
    wanted = GELUS[name](plain.astype(np.float64))
    close(got, wanted, "kernel", "gelu after an int8 product")


@pytest.mark.parametrize("shape", [(64, 128), (65, 33)])
def test_weights_come_back_within_half_a_step(way, shape):
    w = normal(np.random.default_rng(0), *shape) * np.float32(10) ** np.arange(-8, 8, 16 / shape[0])[:, None].astype(
        np.float32
    )
    w[3] = 0
    back = kernels.unpacked(kernels.to_int8(jt.array(w))).numpy()
    assert np.all(np.abs(back - w) <= np.abs(w).max(axis=1, keepdims=True) / 127 * TOLERANCES["half_a_step"])
    assert not back[3].any()
    first = 64 if shape[0] == 128 else shape[0] - 1 if shape[0] % 64 else 0
    rest = kernels.unpacked(kernels.rows(kernels.to_int8(jt.array(w)), first)).numpy()
    assert np.array_equal(rest, back[first:])


def test_the_last_third_of_a_projection(way):
    w = normal(np.random.default_rng(0), 3 * 64, 64)
    made = kernels.to_int8(jt.array(w))
    assert np.array_equal(kernels.unpacked(kernels.rows(made, 128)).numpy(), kernels.unpacked(made).numpy()[128:])


@pytest.mark.parametrize("activation", [None, "quickgelu", "gelu", "gelu_tanh"])
def test_no_number_stays_none_and_zeros_stay_zeros(way, activation):
    rng = np.random.default_rng(0)
    x, w = normal(rng, 6, 64), normal(rng, 64, 64)
    x[1, 5], x[2, 7], x[3, 9], x[4], w[10, 3] = np.nan, np.inf, -np.inf, 0, np.nan
    with jt.no_grad():
        got = kernels.linear(jt.array(x), kernels.to_int8(jt.array(w)), None, activation).numpy()
    assert np.isnan(got[1:4]).all() and np.isnan(got[:, 10]).all()
    rest = np.delete(got[[0, 4, 5]], 10, axis=1)
    assert np.isfinite(rest).all() and not rest[1].any() and rest[0].any()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", [0, 1])
def test_towers_stay_near_and_give_their_weights_back(way, name, seed):
    config = MODELS[name]
    arrays = random_arrays(shapes_of(config), seed)
    wide, narrow = CLIP(config), CLIP(config)
    for model in (wide, narrow):
        load_strict(model, arrays, "random")
        model.eval()
    narrow.to("int8")
    pixels, tokens = toy_batch(config, seed)
    with jt.no_grad():
        for encode, given in (("encode_image", pixels), ("encode_text", tokens)):
            a, b = (getattr(model, encode)(given).numpy() for model in (wide, narrow))
            assert not np.array_equal(a, b)
            assert cosines(a, b).min() >= 1 - TOLERANCES["int8_toy_cosine"], (encode, cosines(a, b))
        a, b = (model.encode_image(pixels, dense="value")[1].numpy() for model in (wide, narrow))
        assert cosines(a, b).min() >= 1 - TOLERANCES["int8_toy_cosine"], cosines(a, b)
    back = narrow.to("fp32").state_dict()
    for key, array in arrays.items():
        assert back[key].dtype == "float32" and tuple(back[key].shape) == array.shape, key
        flat = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
        step = np.abs(flat).max(axis=1, keepdims=True) / 127
        assert np.all(np.abs(back[key].numpy().reshape(flat.shape) - flat) <= step * TOLERANCES["half_a_step"]), key


def cosines(a, b):
    a, b = (v.reshape(-1, v.shape[-1]).astype(np.float64) for v in (a, b))
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@needs_onednn
def test_a_tower_of_real_size_stays_near():
    config = replace(VARIANTS["ViT-B/32"], text=None)
    model = CLIP(config)
    model.eval()
    jt.sync_all()
    pixels = normal(np.random.default_rng(0), 2, 3, *config.vision.image_size)
    with jt.no_grad():
        wide = model.encode_image(pixels).numpy()
        narrow = model.to("int8").encode_image(pixels).numpy()
    assert cosines(wide, narrow).min() >= 1 - TOLERANCES["int8_cosine"], cosines(wide, narrow)


@needs_onednn
@pytest.mark.parametrize("name", ["vit", "vit_gelu", "resnet", "blocks", "bert"])
def test_towers_are_near_with_the_operators_on_and_off(name, monkeypatch):
    config, computed = MODELS[name], []
    pixels, tokens = toy_batch(config, 0)
    for way in ("cpu", "plain"):
        monkeypatch.setattr(kernels, "chosen", lambda way=way: way)
        model = CLIP(config)
        load_strict(model, random_arrays(shapes_of(config), 0), "random")
        model.eval()
        model.to("int8")
        with jt.no_grad():
            computed.append([model.encode_image(pixels).numpy(), model.encode_text(tokens).numpy()])
    for on, off in zip(*computed, strict=True):
        assert cosines(on, off).min() >= 1 - TOLERANCES["int8_on_off_cosine"], cosines(on, off)


# What is refused


def test_no_gradient_passes():
    model = CLIP(TOYS["vit"]).to("int8")
    pixels, _ = toy_batch(TOYS["vit"])
    with pytest.raises(ConfigError, match="training with dtype int8: no gradient passes weights that are rounded"):
        images = jt.array(pixels)
        jt.grad(weigh(model.encode_image(images)), images)
    with pytest.raises(ConfigError, match="training with dtype int8"):
        kernels.products_in("int8")


def test_a_gpu_refuses_it(monkeypatch):
    class OnGpu:
        use_cuda = 1

    model = CLIP(TOYS["vit"])
    monkeypatch.setattr("jclip.model.clip.jt.flags", OnGpu())
    with pytest.raises(ConfigError, match="dtype int8 on a GPU: its products are made for CPUs; use bf16 or fp16"):
        model.to("int8")


@pytest.mark.parametrize(
    "config", ["full/smoke.yaml", "contrastive/smoke.yaml", "coop/smoke.yaml", "text_as_image/smoke.yaml"]
)
def test_training_in_it_is_refused_in_one_line(config, tmp_path, capsys):
    assert main(["train", str(ROOT / "configs" / config), "dtype=int8", "--run", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "training with dtype int8: no gradient passes" in err, err


# Where a frozen model has a dtype


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_features_are_their_own_and_near(kind, small_models, photo_folder):
    photos = read_photos(DataConfig(root=str(photo_folder), shots=0)).test
    wide, narrow = (extract(ModelSource(small_models[kind], dtype=dtype), photos)[1] for dtype in ("fp32", "int8"))
    assert not np.array_equal(wide, narrow)
    assert cosines(wide, narrow).min() >= 1 - TOLERANCES["int8_toy_cosine"]


def test_recipes_and_commands_take_it(small_models, photo_folder, tmp_path, capsys):
    config = tmp_path / "int8.yaml"
    config.write_text(
        f"recipe: zero_shot\nmodel: {small_models['vit']}\ndtype: int8\ndata: {{root: {photo_folder}, shots: 0}}\n"
    )
    assert main(["train", str(config), "--run", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["config"]["dtype"] == "int8"
    gallery, model = tmp_path / "gallery", ["--model", str(small_models["vit"])]
    assert main(["embed", str(photo_folder), "--out", str(gallery), *model, "--dtype", "int8"]) == 0
    capsys.readouterr()
    assert main(["search", str(gallery), "a red thing"]) == 0
    assert main(["zero-shot", str(photo_folder), "--classes", "red,blue", *model, "--dtype", "int8"]) == 0
    capsys.readouterr()
    assert main(["train", str(config), "--run", str(tmp_path / "other"), "dtype=int4"]) == 2
    assert "int8" in capsys.readouterr().err
