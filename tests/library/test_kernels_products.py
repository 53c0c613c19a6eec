"""Products, convolutions and their half precision, against torch and against the plain formula."""

from __future__ import annotations

import numpy as np
import pytest

from jclip import kernels
from jclip.errors import ConfigError
from jclip.kernels import cpu, maps, plain
from jclip.machine.gpu import Gpu
from jclip.model.clip import CLIP, inference, training_mode
from jclip.model.layers import BatchNorm
from jclip.model.resnet import conv
from jclip.model.trainable import trainable
from jclip.runtime import jt
from jclip.weights.checkpoint import load_strict, random_arrays
from tests.library.test_kernels import IMPLEMENTATIONS, needs_onednn, weigh, weigh_torch
from tests.toys import TOYS, shapes_of, toy_batch

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
needs_half = pytest.mark.skipif(bool(kernels.why_no_half("bf16")), reason="no half precision on this processor")
ACTIVATIONS = {
    None: lambda x: x,
    "quickgelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}


HALF_SIZES = [  # B, N, heads, d: few keys and many, whole and broken blocks of them, an odd width
    (2, 7, 3, 4), (3, 1, 5, 2), (1, 65, 2, 16), (9, 50, 2, 64), (1, 120, 2, 80), (2, 131, 2, 80), (2, 9, 3, 5), (1, 37, 2, 7),
]  # fmt: skip


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def rounded(array):
    """Through torch's bfloat16 and back."""
    return torch.tensor(array).bfloat16().float().numpy()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias, with_residual", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("shape, outputs", [((3, 5, 24), 10), ((7, 33), 65), ((1, 1, 3), 2)])
def test_linear_equals_torch(implementation, activation, with_bias, with_residual, shape, outputs, close):
    rng = np.random.default_rng(outputs)
    arrays = [normal(rng, *s) for s in (shape, (outputs, shape[-1]), (outputs,), (*shape[:-1], outputs))]
    kept = [True, True, with_bias, with_residual]
    ours = [jt.array(a) if k else None for a, k in zip(arrays, kept, strict=True)]
    theirs = [torch.tensor(a, requires_grad=True) if k else None for a, k in zip(arrays, kept, strict=True)]
    got = implementation.linear(*ours[:3], activation, ours[3])
    wanted = ACTIVATIONS[activation](torch.nn.functional.linear(*theirs[:3]))
    wanted = wanted + theirs[3] if with_residual else wanted
    close(got.numpy(), wanted.detach(), "kernel", "linear against torch, relative", relative=True)
    with jt.no_grad():  # one operator, where the other is two
        inferred = implementation.linear(*ours[:3], activation, ours[3]).numpy()
    close(inferred, wanted.detach(), "kernel", "linear against torch, relative", relative=True)
    gradients = jt.grad(weigh(got), [v for v in ours if v is not None])
    weigh_torch(wanted).backward()
    for mine, true in zip(gradients, [t for t in theirs if t is not None], strict=True):
        close(mine.numpy(), true.grad, "kernel", "linear against torch: gradients, relative", relative=True)


@needs_onednn
def test_more_sizes_than_are_kept_still_come_out_right(close):
    rng = np.random.default_rng(0)
    x, w = normal(rng, 1200, 5), normal(rng, 3, 5)
    weight = jt.array(w)
    with jt.no_grad():
        for rows in (1, *range(2, 1200, 2), 1):
            got = cpu.linear(jt.array(x[:rows]), weight).numpy()
    close(got, x[:1] @ w.T, "kernel", "linear, many sizes")


def norm_of(rng, channels):
    norm = BatchNorm(channels)
    norm.is_train = False
    for name in ("weight", "bias", "running_mean"):
        getattr(norm, name).update(jt.array(normal(rng, channels)))
    norm.running_var.update(jt.array(rng.uniform(0.5, 2, channels).astype(np.float32)))
    return norm


@needs_onednn
@pytest.mark.parametrize("size, stride", [(3, 1), (3, 2), (1, 1)])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
def test_convolutions_with_their_norm_equal_torch_and_the_plain_ones(size, stride, relu, with_residual, close):
    rng = np.random.default_rng(size)
    layer, norm = conv(5, 7, size, stride), norm_of(rng, 7)
    x = normal(rng, 2, 5, 9, 6)
    with torch.no_grad():
        weight = torch.tensor(layer.weight.numpy())
        statistics = [torch.tensor(getattr(norm, k).numpy()) for k in ("running_mean", "running_var", "weight", "bias")]
        wanted = torch.nn.functional.conv2d(torch.tensor(x), weight, stride=stride, padding=size // 2)
        wanted = torch.nn.functional.batch_norm(wanted, *statistics, eps=norm.eps)
        residual = normal(rng, *wanted.shape) if with_residual else None
        wanted = wanted + torch.tensor(residual) if with_residual else wanted
        wanted = torch.relu(wanted) if relu else wanted
    with jt.no_grad():
        for layout in (maps.Plain(), maps.ChannelsLast()):
            added = layout.enter(jt.array(residual)) if with_residual else None
            got = layout.leave(layout.convolve(layout.enter(jt.array(x)), layer, norm, relu, added))
            close(got.numpy(), wanted, "kernel", "convolution with norm against torch")


@needs_onednn
@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (1, 5, 7, 9)])
def test_pools_and_cells_equal_torch(shape, close):
    x = normal(np.random.default_rng(1), *shape)
    wanted = torch.nn.functional.avg_pool2d(torch.tensor(x), 2)
    for layout in (maps.Plain(), maps.ChannelsLast()):
        pooled = layout.pool(layout.enter(jt.array(x)), 2)
        close(layout.leave(pooled).numpy(), wanted, "kernel", "average pool against torch")
        close(layout.cells(pooled).numpy(), wanted.flatten(2).transpose(1, 2), "kernel", "average pool against torch")
        assert layout.pool(pooled, 1) is pooled


@needs_onednn
@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("seed", [0, 1])
def test_models_are_the_same_with_the_operators_on_and_off(name, seed, close, monkeypatch):
    config = TOYS[name]
    model = CLIP(config)
    load_strict(model, random_arrays(shapes_of(config), seed), "random")
    training_mode(model, ())
    params = trainable(model)
    pixels, tokens = toy_batch(config, seed)

    def computed():
        with inference(model):
            inferred = [model.encode_image(pixels).numpy(), model.encode_text(tokens).numpy()]
        loss = weigh(model.encode_image(pixels)) + weigh(model.encode_text(tokens))
        return inferred, [g.numpy() for g in jt.grad(loss, list(params.values()))]

    on = computed()
    monkeypatch.setattr(kernels, "chosen", lambda: "plain")
    off = computed()
    for a, b in zip(on[0], off[0], strict=True):
        close(a, b, "features", f"toy {name} with operators on and off")
    for key, a, b in zip(params, on[1], off[1], strict=True):
        if not key.endswith("in_proj_bias"):  # the key bias's gradient is zero by symmetry, and rounding noise
            close(
                a, b, "gradient_relative", f"toy {name} with operators on and off: gradients, relative", relative=True
            )


# Half precision on the CPU


@needs_half
def test_values_are_rounded_to_the_nearest_bfloat16_as_torch_does():
    values = np.concatenate([normal(np.random.default_rng(0), 4099) * 10.0**e for e in range(-38, 38, 4)])
    values = np.concatenate([values, [0.0, -0.0, 1.00390625, 1.01171875, np.inf, -np.inf, 3.4e38]]).astype(np.float32)
    assert np.array_equal(cpu.to_half(jt.array(values)).float32().numpy(), rounded(values))
    assert np.isnan(cpu.to_half(jt.array(np.array([np.nan], np.float32))).float32().numpy()).all()


@needs_half
@pytest.mark.parametrize("shape", [(128, 96), (64, 32), (66, 96), (128, 40)])
def test_packed_weights_hold_the_same_numbers(shape):
    weight = normal(np.random.default_rng(0), *shape)
    made = kernels.to_half(jt.array(weight), pack=True)
    assert (made.ndim == 5) == (shape[0] % 64 == 0 and shape[1] % 32 == 0 and cpu._packs())
    assert np.array_equal(kernels.unpacked(made.float32()).numpy(), rounded(weight))
    kept = kernels.unpacked(kernels.rows(made, 64 if shape[0] == 128 else 0).float32()).numpy()
    assert np.array_equal(kept, rounded(weight)[64 if shape[0] == 128 else 0 :])


@needs_half
@pytest.mark.parametrize("shape, outputs", [((3, 5, 96), 128), ((7, 33), 65)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_half_products_are_those_of_rounded_operands(shape, outputs, activation, close):
    rng = np.random.default_rng(outputs)
    x, w, b, r = (normal(rng, *s) for s in (shape, (outputs, shape[-1]), (outputs,), (*shape[:-1], outputs)))
    ours = [jt.array(x), kernels.to_half(jt.array(w), pack=True), jt.array(b), jt.array(r)]
    wanted = ACTIVATIONS[activation](
        torch.tensor(rounded(x)) @ torch.tensor(rounded(w)).T + torch.tensor(b)
    ) + torch.tensor(r)
    with jt.no_grad():
        got = cpu.linear(*ours[:3], activation, ours[3])
        kept = cpu.linear(*ours[:3], activation, half=True)
    close(got.numpy(), wanted, "kernel", "half linear against rounded torch, relative", relative=True)
    assert kept.dtype == "bfloat16"
    close(kept.float32().numpy(), wanted - torch.tensor(r), "half_relative", relative=True)
    gradient = jt.grad(weigh(cpu.linear(*ours[:3], None)), ours[0])
    factors = np.random.default_rng(9).standard_normal((*shape[:-1], outputs)).astype(np.float32)
    close(gradient.numpy(), rounded(factors) @ rounded(w), "kernel", "half linear: gradient, relative", relative=True)


@needs_half
@pytest.mark.parametrize("shape, outputs", [((3, 5, 96), 128), ((7, 33), 65)])
def test_training_in_half_multiplies_rounded_operands_both_ways(shape, outputs, close):
    rng = np.random.default_rng(outputs)
    x, w, b = (normal(rng, *s) for s in (shape, (outputs, shape[-1]), (outputs,)))
    ours = [jt.array(a) for a in (x, w, b)]
    with kernels.products_in("bf16"):
        y = kernels.linear(*ours)
        gradients = [g.numpy() for g in jt.grad(weigh(y), ours)]
    factors = np.random.default_rng(9).standard_normal((*shape[:-1], outputs)).astype(np.float32)
    g, flat = rounded(factors).reshape(-1, outputs), rounded(x).reshape(-1, shape[-1])
    wanted = [(g @ rounded(w)).reshape(shape), g.T @ flat, factors.reshape(-1, outputs).sum(0)]
    close(y.numpy(), rounded(x) @ rounded(w).T + b, "kernel", "half training: products, relative", relative=True)
    for mine, true in zip(gradients, wanted, strict=True):
        close(mine, true, "kernel", "half training: gradients, relative", relative=True)
    assert np.array_equal(kernels.linear(*ours).numpy(), cpu.linear(*ours).numpy())
    assert not np.array_equal(kernels.linear(*ours).numpy(), y.numpy())
    with pytest.raises(ConfigError, match="training with dtype fp16: no operator here computes it"):
        kernels.products_in("fp16")


@pytest.mark.parametrize("shape, outputs", [((3, 5, 96), 128), ((7, 33), 65)])
def test_plain_products_in_half_cast_operands_both_ways(shape, outputs, close):
    """As on a GPU, in float16: small integers, whose sums it holds, and a little that it doesn't, which is gone."""
    rng = np.random.default_rng(outputs)
    x, w, g = (rng.integers(-4, 5, s).astype(np.float32) for s in (shape, (outputs, shape[-1]), (*shape[:-1], outputs)))
    b, little = normal(rng, outputs), np.float32(2**-14)
    x[x == 0], w[w == 0], g[g == 0] = 1, 1, 1  # beside 0 float16 would hold the little, too
    ours = [jt.array(a) for a in (x + little, w - little, b)]
    with plain.products_in("float16"):
        y = plain.linear(*ours)
        gradients = [d.numpy() for d in jt.grad((y * jt.array(g + little)).sum(), ours)]
    rows = g.reshape(-1, outputs)
    assert y.dtype == "float32" and np.array_equal(y.numpy(), x @ w.T + b)
    assert np.array_equal(gradients[0], g @ w) and np.array_equal(gradients[1], rows.T @ x.reshape(-1, shape[-1]))
    close(gradients[2], (rows + little).sum(0), "kernel", "plain half: gradient of the bias, relative", relative=True)
    assert not np.array_equal(plain.linear(*ours).numpy(), y.numpy())


def test_gpus_train_in_bf16_where_they_have_it(monkeypatch):
    class OnGpu:
        use_cuda = 1

    monkeypatch.setattr(kernels.jt, "flags", OnGpu())
    monkeypatch.setattr(kernels, "find_gpus", lambda: ((Gpu("A100", "8.0", 1), Gpu("H100", "9.0", 1)), ""))
    assert plain._Products.dtype == "float32"
    with kernels.products_in("bf16"):
        assert plain._Products.dtype == "bfloat16"
    with kernels.products_in("fp32"):
        assert plain._Products.dtype == "float32"
    with pytest.raises(ConfigError, match="training with dtype fp16: gradients underflow in it; bf16"):
        kernels.products_in("fp16")
    monkeypatch.setattr(kernels, "find_gpus", lambda: ((Gpu("Tesla V100", "7.0", 1),), ""))
    with pytest.raises(ConfigError, match=r"Tesla V100 \(7.0\) has no bf16, which begins with 8.0; use dtype=fp32"):
        kernels.products_in("bf16")


@needs_half
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", HALF_SIZES)
def test_half_attention_equals_the_plain_one_of_rounded_inputs(size, causal, close):
    B, N, H, d = size
    half = cpu.to_half(jt.array(normal(np.random.default_rng(N), B, N, 3 * H * d)))
    with jt.no_grad():
        got, wanted = cpu.attention(half, H, causal), plain.attention(half.float32(), H, causal)
    assert got.dtype == "bfloat16"
    close(got.float32().numpy(), wanted.numpy(), "half_relative", "half attention, relative", relative=True)


@needs_half
@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("seed", [0, 1])
def test_half_towers_stay_near_and_give_their_weights_back(name, seed, close):
    config = TOYS[name]
    arrays = random_arrays(shapes_of(config), seed)
    wide, half = CLIP(config), CLIP(config)
    for model in (wide, half):
        load_strict(model, arrays, "random")
        model.eval()
    half.to("bf16")
    rng = np.random.default_rng(seed)
    images = normal(rng, 3, 3, *config.vision.image_size)
    tokens = np.zeros((2, config.text.context_length), np.int32)
    tokens[:, 3] = config.text.vocab_size - 1
    with jt.no_grad():
        for encode, given in (("encode_image", images), ("encode_text", tokens)):
            a, b = (getattr(model, encode)(given).numpy() for model in (wide, half))
            assert not np.array_equal(a, b)
            close(b, a, "half_tower_relative", f"toy {name} in bf16, relative", relative=True)
        dense = half.encode_image(images, dense="value")[1].numpy()
        close(dense, wide.encode_image(images, dense="value")[1].numpy(), "half_tower_relative", relative=True)
    back = half.to("fp32").state_dict()
    for key, array in arrays.items():
        assert np.array_equal(back[key].numpy(), array) or np.array_equal(back[key].numpy(), rounded(array)), key


def test_half_precision_that_no_cpu_computes_is_refused():
    if jt.flags.use_cuda:
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="dtype fp16 on the CPU: no operator here computes it"):
        CLIP(TOYS["vit"]).to("fp16")
