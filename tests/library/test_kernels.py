"""Fused operators against the plain formula in Jittor and against torch, forward and backward."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jclip import kernels
from jclip.kernels import cpu, plain
from jclip.runtime import jt

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
needs_onednn = pytest.mark.skipif(not cpu.available(), reason="Jittor was built without oneDNN")
IMPLEMENTATIONS = [pytest.param(plain, id="plain"), pytest.param(cpu, id="cpu", marks=needs_onednn)]
SIZES = [(2, 7, 3, 4), (3, 1, 5, 2), (1, 65, 2, 16), (5, 33, 1, 9)]  # B, N, heads, d


def weigh(var, seed=9):
    return (var * jt.array(np.random.default_rng(seed).standard_normal(var.shape).astype(np.float32))).sum()


def weigh_torch(tensor, seed=9):
    return (tensor * torch.tensor(np.random.default_rng(seed).standard_normal(tensor.shape).astype(np.float32))).sum()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [0, 1])
def test_attention_equals_torch(implementation, causal, size, seed, close):
    B, N, H, d = size
    x = (2 * np.random.default_rng(seed).standard_normal((B, N, 3 * H * d))).astype(np.float32)
    ours = jt.array(x)
    got = implementation.attention(ours, H, causal)
    theirs = torch.tensor(x, requires_grad=True)
    q, k, v = theirs.reshape(B, N, 3, H, d).permute(2, 0, 3, 1, 4)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    wanted = wanted.transpose(1, 2).reshape(B, N, H * d)
    close(got.numpy(), wanted.detach(), "kernel", "attention against torch")
    gradient = jt.grad(weigh(got), ours)
    weigh_torch(wanted).backward()
    close(gradient.numpy(), theirs.grad, "kernel", "attention against torch: gradient, relative", relative=True)


def kept_keys(B, N, seed=5):
    keys = (np.random.default_rng(seed).random((B, N)) < 0.6).astype(np.float32)
    keys[:, N // 2] = 1  # of each sample at least one
    return keys


def masked_attention_of_torch(x, keys, heads, factors=None):
    """`factors` (B, heads, N, N): what each weight is multiplied by."""
    B, N, width = x.shape
    q, k, v = x.reshape(B, N, 3, heads, -1).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(torch.tensor(keys)[:, None, None] == 0, -torch.inf).softmax(dim=-1)
    weights = weights if factors is None else weights * factors
    return (weights @ v).transpose(1, 2).reshape(B, N, width // 3)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [0, 1])
def test_attention_to_some_keys_equals_torch(implementation, size, seed, close):
    B, N, H, d = size
    x = (2 * np.random.default_rng(seed).standard_normal((B, N, 3 * H * d))).astype(np.float32)
    keys = kept_keys(B, N, seed)
    ours, theirs = jt.array(x), torch.tensor(x, requires_grad=True)
    got, wanted = implementation.masked_attention(ours, jt.array(keys), H), masked_attention_of_torch(theirs, keys, H)
    close(got.numpy(), wanted.detach(), "kernel", "masked attention against torch")
    gradient = jt.grad(weigh(got), ours)
    weigh_torch(wanted).backward()
    close(gradient.numpy(), theirs.grad, "kernel", "masked attention: gradient, relative", relative=True)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_attention_drops_weights_by_their_places(implementation, close):
    (B, N, H), rate = (3, 11, 2), 0.3
    keys, rng = kept_keys(B, N), np.random.default_rng(3)
    x = rng.standard_normal((B, N, 3, H, N)).astype(np.float32)

    def ours(values, seed=4):
        packed = x.copy()
        packed[:, :, 2] = values
        var = jt.array(packed.reshape(B, N, -1))
        return var, implementation.masked_attention(var, jt.array(keys), H, rate, seed)

    unit = np.broadcast_to(np.eye(N, dtype=np.float32)[None, :, None], (B, N, H, N))  # the output is then the weights
    dropped = ours(unit)[1].numpy().reshape(B, N, H, N).transpose(0, 2, 1, 3)
    factors = torch.tensor((dropped != 0) / np.float32(1 - rate))
    seen = np.broadcast_to(keys[:, None, None] != 0, dropped.shape)
    assert not dropped[~seen].any() and abs((dropped[seen] != 0).mean() - (1 - rate)) < 0.1
    assert not np.array_equal(ours(unit, seed=5)[1].numpy() != 0, ours(unit)[1].numpy() != 0)

    values = rng.standard_normal((B, N, H, N)).astype(np.float32)
    var, got = ours(values)
    theirs = torch.tensor(var.numpy(), requires_grad=True)
    wanted = masked_attention_of_torch(theirs, keys, H, factors)
    close(got.numpy(), wanted.detach(), "kernel", "masked attention with dropout against torch")
    gradient = jt.grad(weigh(got), var)
    weigh_torch(wanted).backward()
    close(gradient.numpy(), theirs.grad, "kernel", "masked attention with dropout: gradient, relative", relative=True)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(3, 5, 24), (7, 10), (1, 1, 3)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_layer_norm_equals_torch(implementation, shape, offset, close):
    rng = np.random.default_rng(len(shape))
    arrays = [rng.standard_normal(s).astype(np.float32) for s in (shape, shape[-1:], shape[-1:])]
    arrays[0] += np.float32(offset)
    ours, theirs = [jt.array(a) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    got = implementation.layer_norm(*ours, 1e-5)
    wanted = torch.nn.functional.layer_norm(theirs[0], shape[-1:], *theirs[1:], 1e-5)
    close(got.numpy(), wanted.detach(), "kernel_offset" if offset else "kernel", "layer norm against torch")
    gradients = jt.grad(weigh(got), ours)
    weigh_torch(wanted).backward()
    for g, t in zip(gradients, theirs, strict=True):
        close(g.numpy(), t.grad, "kernel_offset" if offset else "kernel", "layer norm against torch: gradients")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(7, 5), (33, 101), (1, 2)])
@pytest.mark.parametrize("spread", [3.0, 70.0])  # far beyond where exp underflows to zero
def test_cross_entropy_equals_torch(implementation, shape, spread, close):
    rng = np.random.default_rng(shape[0])
    scores = np.float32(spread) * rng.standard_normal(shape, dtype=np.float32)
    labels = rng.integers(0, shape[1], shape[0])
    ours, theirs = jt.array(scores), torch.tensor(scores, requires_grad=True)
    got = implementation.cross_entropy(ours, jt.array(labels.astype(np.int32)))
    wanted = torch.nn.functional.cross_entropy(theirs, torch.tensor(labels), reduction="none")
    close(got.numpy(), wanted.detach(), "kernel", "cross-entropy against torch, relative", relative=True)
    gradient = jt.grad(weigh(got), ours)
    weigh_torch(wanted).backward()
    close(gradient.numpy(), theirs.grad, "kernel", "cross-entropy against torch: gradient")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(3, 5, 4, 7), (2, 1, 1, 3), (6, 9, 2, 2)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_batch_norm_equals_torch(implementation, shape, offset, close):
    rng = np.random.default_rng(shape[1])
    arrays = [rng.standard_normal(s).astype(np.float32) for s in (shape, shape[1:2], shape[1:2])]
    arrays[0] += np.float32(offset)
    ours, theirs = [jt.array(a) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    got, mean, variance = implementation.batch_norm(*ours, 1e-5)
    wanted = torch.nn.functional.batch_norm(theirs[0], None, None, *theirs[1:], training=True, eps=1e-5)
    limit = "kernel_offset" if offset else "kernel"
    close(got.numpy(), wanted.detach(), limit, "batch norm against torch")
    close(mean.numpy(), theirs[0].detach().mean((0, 2, 3)), limit)
    close(variance.numpy(), theirs[0].detach().var((0, 2, 3), unbiased=False), limit)
    gradients = jt.grad(weigh(got), ours)
    weigh_torch(wanted).backward()
    for g, t in zip(gradients, theirs, strict=True):
        close(g.numpy(), t.grad, limit, "batch norm against torch: gradients")


@needs_onednn
def test_the_same_bits_each_time_and_frozen_weights_stay_out_of_it():
    rng = np.random.default_rng(0)
    x, w, b = (jt.array(rng.standard_normal(s).astype(np.float32)) for s in ((50, 9, 24), 24, 24))
    w.stop_grad()
    results = []
    for _ in range(3):
        y = cpu.layer_norm(x, w, b, 1e-5)
        results.append([v.numpy() for v in (y, *jt.grad(weigh(y), [x, b]))])
    assert all(np.array_equal(a, c) for other in results[1:] for a, c in zip(results[0], other, strict=True))


@needs_onednn
def test_a_second_backward_pass_is_reported():
    x = jt.array(np.ones((2, 3), np.float32))
    loss = cpu.linear(x, jt.array(np.ones((4, 3), np.float32))).sum()
    assert jt.grad(loss, x).numpy().tolist() == [[4.0] * 3] * 2
    with pytest.raises(RuntimeError, match="a second backward pass through one graph"):
        jt.grad(loss, x)


@needs_onednn
def test_the_implementation_is_chosen_by_device_dtype_and_wish():
    assert kernels.chosen() == "cpu" if not jt.flags.use_cuda else "plain"
    half = jt.ones((2, 3, 12)).bfloat16()
    assert not kernels._fused(half) and kernels._fused(jt.ones((2, 3)))
    code = "from jclip import kernels; print(kernels.chosen())"
    environment = {**__import__("os").environ, "JCLIP_KERNELS": "plain"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout == "plain\n", done.stderr


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dropout_keeps_its_share_and_draws_by_its_seed(implementation, close):
    x = jt.array(np.random.default_rng(0).uniform(1, 2, (50, 40, 30)).astype(np.float32))
    y = implementation.dropout(x, 0.25, 7)
    kept = y.numpy() != 0
    assert abs(kept.mean() - 0.75) < 0.01  # five deviations
    for axis in range(3):
        assert np.abs(kept.mean(axis=axis) - 0.75).max() < 0.35, "neighbours are drawn alike"
    close(y.numpy()[kept], x.numpy()[kept] / 0.75, "kernel", "dropout")
    close(jt.grad(weigh(y), x).numpy(), kept * weights_of(x.shape) / 0.75, "kernel", "dropout: gradient")
    again, other = (implementation.dropout(x, 0.25, seed).numpy() != 0 for seed in (7, 8))
    assert np.array_equal(again, kept) and abs((other & kept).mean() - 0.75**2) < 0.01


def weights_of(shape, seed=9):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
