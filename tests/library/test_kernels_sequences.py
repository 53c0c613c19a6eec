"""Operators over sequences of unequal lengths, and those with ReLU, dropout and residual, against torch."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.kernels import Sequences, cpu_sequences, plain
from jclip.runtime import jt
from tests.library.test_kernels import needs_onednn, weigh, weigh_torch

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
IMPLEMENTATIONS = [
    pytest.param(plain, id="plain"),
    pytest.param(cpu_sequences, id="cpu", marks=needs_onednn),
]
ROWS, H, d = 9, 3, 4  # places of a whole sequence, heads, numbers of each
D = H * d
RATE, SEED = 0.3, 4
PLACES = (np.array([0, 1, 4, 8]), np.array([0]), np.array([0, 2, 3, 5, 6, 7]))
KEYS = (np.array([1, 0, 1, 1]), np.array([1]), np.array([1, 1, 0, 1, 1, 0]))
SEQUENCES = Sequences.of(PLACES, KEYS, ROWS)
T = len(SEQUENCES.places)


def drawn(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def gradients(found, inputs):
    return [g.numpy() for g in jt.grad(weigh(found), inputs)]


def torch_gradients(found, inputs):
    weigh_torch(found).backward()
    return [x.grad for x in inputs]


def both(arrays):
    return [jt.array(a) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]


def all_close(close, got, wanted, name):
    for g, w in zip(got, wanted, strict=True):
        close(g, w, "kernel", f"{name}: gradients, relative", relative=True)


def attention_of_torch(qkv, moved):
    """Sequence by sequence."""
    found = []
    for places, keys, first in zip(PLACES, KEYS, SEQUENCES.starts, strict=False):
        x = qkv[first : first + len(places)] + moved[places]
        q, k, v = x.reshape(len(places), 3, H, d).permute(1, 2, 0, 3)
        scores = (q @ k.transpose(1, 2) / d**0.5).masked_fill(torch.tensor(keys) == 0, -torch.inf)
        found.append((scores.softmax(-1) @ v).transpose(0, 1).reshape(-1, D))
    return torch.cat(found)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_attention_within_sequences_equals_torch(implementation, seed, close):
    ours, theirs = both(drawn((T, 3 * D), (ROWS, 3 * D), seed=seed))
    got, wanted = implementation.packed_attention(*ours, SEQUENCES, H), attention_of_torch(*theirs)
    close(got.numpy(), wanted.detach(), "kernel", "packed attention against torch")
    all_close(close, gradients(got, ours), torch_gradients(wanted, theirs), "packed attention")


def parts_of_layer(seed=0):
    """x, what places add, weight, bias."""
    x, table, weight, bias = drawn((T, D), (ROWS, D), (3 * D, D), (3 * D,), seed=seed)
    return x, table, weight / np.float32(D**0.5), bias


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_first_tokens_take_what_they_take_among_all(implementation, seed, close):
    ours, theirs = both(parts_of_layer(seed))
    got = implementation.first_attention(*ours, SEQUENCES, H)
    x, table, weight, bias = theirs
    moved = torch.cat([table @ weight[: 2 * D].T, torch.zeros(ROWS, D)], dim=1)
    wanted = attention_of_torch(x @ weight.T + bias, moved)[SEQUENCES.starts[:-1]]
    close(got.numpy(), wanted.detach(), "kernel", "attention of first tokens against torch")
    all_close(
        close, *without_key_bias(gradients(got, ours), torch_gradients(wanted, theirs)), "attention of first tokens"
    )


def without_key_bias(*gradients):
    """The softmax does not see the keys' bias."""
    return [[*g[:3], np.delete(np.asarray(g[3]), np.s_[D : 2 * D])] for g in gradients]


@needs_onednn
def test_first_tokens_lose_the_same_weights_as_among_all(close):
    (x, table, weight, bias), _ = both(parts_of_layer())
    got = cpu_sequences.first_attention(x, table, weight, bias, SEQUENCES, H, RATE, SEED)
    moved = jt.concat([plain.linear(table, weight[: 2 * D]), jt.zeros((ROWS, D))], dim=1)
    every = cpu_sequences.packed_attention(plain.linear(x, weight, bias), moved, SEQUENCES, H, RATE, SEED)
    wanted = every[SEQUENCES.firsts]
    close(got.numpy(), wanted.numpy(), "kernel", "attention of first tokens with dropout")
    pair = [gradients(found, [x, table, weight, bias]) for found in (got, wanted)]
    all_close(close, *without_key_bias(*pair), "attention of first tokens with dropout")
    without = cpu_sequences.first_attention(x, table, weight, bias, SEQUENCES, H).numpy()
    assert np.abs(got.numpy() - without).max() > 0.01


@needs_onednn
def test_leaving_out_what_nothing_looks_at_changes_no_draw(close):
    kept = SEQUENCES.keys > 0
    fewer = Sequences.of(
        *([own[keys > 0] for own, keys in zip(part, KEYS, strict=True)] for part in (PLACES, KEYS)), ROWS
    )
    (qkv, moved), _ = both(drawn((T, 3 * D), (ROWS, 3 * D)))
    few = jt.array(qkv.numpy()[kept])
    whole = cpu_sequences.packed_attention(qkv, moved, SEQUENCES, H, RATE, SEED).numpy()[kept]
    close(
        cpu_sequences.packed_attention(few, moved, fewer, H, RATE, SEED).numpy(),
        whole,
        "kernel",
        "attention, fewer tokens",
    )
    other = cpu_sequences.packed_attention(few, moved, fewer, H, RATE, SEED + 1).numpy()
    assert np.abs(other - whole).max() > 0.01
    assert np.array_equal(fewer.tokens.numpy(), SEQUENCES.tokens.numpy()[kept])


def norm_of_torch(x, y, bias, weight, shift, factors=1.0):
    return torch.nn.functional.layer_norm(x + (y + bias) * factors, (D,), weight, shift, 1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_residual_and_norm_equal_torch(implementation, seed, close):
    ours, theirs = both(drawn((T, D), (T, D), (D,), (D,), (D,), seed=seed))
    got, wanted = implementation.residual_norm(*ours, SEQUENCES.tokens, 1e-5), norm_of_torch(*theirs)
    close(got.numpy(), wanted.detach(), "kernel", "residual and norm against torch")
    all_close(close, gradients(got, ours), torch_gradients(wanted, theirs), "residual and norm")


@needs_onednn
def test_residual_and_norm_drop_by_the_tokens_numbers(close):
    ours, theirs = both(drawn((T, D), (T, D), (D,), (D,), (D,)))
    got = cpu_sequences.residual_norm(*ours, SEQUENCES.tokens, 1e-5, RATE, SEED)
    found = gradients(got, ours)
    factors = np.rint(found[1] / found[0] * (1 - RATE)).astype(np.float32) / np.float32(1 - RATE)
    assert set(np.unique(factors)) == {np.float32(0), np.float32(1 / (1 - RATE))}
    assert abs((factors == 0).mean() - RATE) < 0.15
    wanted = norm_of_torch(*theirs, torch.tensor(factors))
    close(got.numpy(), wanted.detach(), "kernel", "residual and norm with dropout against torch")
    all_close(close, found, torch_gradients(wanted, theirs), "residual and norm with dropout")
    some = np.array([7, 2, 5])
    alone = [jt.array(v.numpy()[some]) for v in (*ours[:2], SEQUENCES.tokens)]
    part = cpu_sequences.residual_norm(*alone[:2], *ours[2:], alone[2], 1e-5, RATE, SEED)
    close(part.numpy(), got.numpy()[some], "kernel", "residual and norm, some tokens")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("rate", [0.0, RATE])
def test_relu_of_a_linear_map_equals_torch(implementation, rate, close):
    ours, theirs = both(drawn((T, D), (7, D), (7,)))
    got = implementation.relu_linear(*ours, SEQUENCES.tokens, rate, SEED)
    x, weight, bias = theirs
    wanted = torch.relu(x @ weight.T + bias)
    if rate:
        positive = wanted.detach().numpy() > 0
        assert set(np.unique(got.numpy()[positive] != 0)) == {False, True}
        wanted = wanted * torch.tensor((got.numpy() != 0) / np.float32(1 - rate))
    close(got.numpy(), wanted.detach(), "kernel", "ReLU of a linear map against torch")
    all_close(close, gradients(got, ours), torch_gradients(wanted, theirs), "ReLU of a linear map")


@needs_onednn
def test_relu_of_a_linear_map_drops_by_the_tokens_numbers(close):
    (x, weight, bias), _ = both(drawn((T, D), (7, D), (7,)))
    some = np.array([7, 2, 5])
    got = cpu_sequences.relu_linear(x, weight, bias, SEQUENCES.tokens, RATE, SEED).numpy()
    few, tokens = (jt.array(v.numpy()[some]) for v in (x, SEQUENCES.tokens))
    part = cpu_sequences.relu_linear(few, weight, bias, tokens, RATE, SEED)
    close(part.numpy(), got[some], "kernel", "ReLU of a linear map, some tokens")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_of_a_table_equal_torchs(implementation, close):
    (table,), (theirs,) = both(drawn((6, 5)))
    index = np.array([4, 0, 4, 1, 5, 4, 1], np.int32)
    got, wanted = implementation.rows_of(table, jt.array(index)), theirs[index]
    assert np.array_equal(got.numpy(), wanted.detach().numpy())
    all_close(close, gradients(got, [table]), torch_gradients(wanted, [theirs]), "rows of a table")
