"""The building blocks of both towers, with OpenAI's parameter names. B batch, N tokens, D width, H heads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jclip import kernels
from jclip.kernels import collectives
from jclip.machine import ranks
from jclip.model.rotary import Rotation
from jclip.runtime import jt
from jclip.weights.variants import TextConfig, ViTConfig

nn = jt.nn


class LayerNorm(nn.Module):
    """Over the last axis, in float32."""

    def __init__(self, width: int, eps: float = 1e-5):
        self.weight = jt.ones((width,))
        self.bias = jt.zeros((width,))
        self.eps = eps

    def execute(self, x, reader=None):
        """reader: the one weight that multiplies what comes out, see `kernels.layer_norm`."""
        return kernels.layer_norm(x, self.weight, self.bias, self.eps, reader)


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps) over the last axis, in float32."""

    def __init__(self, width: int, eps: float = 1e-6):
        self.weight = jt.ones((width,))
        self.eps = eps

    def execute(self, x):
        y = x.float32()
        return (y / jt.sqrt((y * y).mean(dim=-1, keepdims=True) + self.eps) * self.weight).cast(x.dtype)


class LayerScale(nn.Module):
    """gamma * x: a branch of a block, scaled by a learned vector."""

    def __init__(self, width: int):
        self.gamma = jt.full((width,), 1e-4)

    def execute(self, x):
        return x * self.gamma


class Linear(nn.Module):
    """x W^T + b over the last axis; weight (out, in)."""

    def __init__(self, inputs: int, outputs: int, std: float, bias: bool = True):
        self.weight = jt.init.gauss((outputs, inputs), "float32", std=std)
        self.bias = jt.zeros((outputs,)) if bias else None

    def execute(self, x, activation: str | None = None, residual=None, half: bool = False):
        return kernels.linear(x, self.weight, self.bias, activation, residual, half)


class TokenEmbedding(nn.Module):
    """(B, L) ids → (B, L, D)."""

    def __init__(self, vocab_size: int, width: int):
        self.weight = jt.init.gauss((vocab_size, width), "float32", std=0.02)

    def execute(self, tokens):
        return self.weight[tokens]


@dataclass(frozen=True)
class SharedStart:
    """Sequences (B, N, D) that begin alike: `tokens` first ones are equal within each of `runs` runs of equally many rows.

    Where attention is causal these are equal in every layer. So a tower may hold them once a run, (T, D) in all: first
    the starts, run by run, then what follows, row by row.
    """

    rows: int
    length: int
    tokens: int
    runs: int = 1

    def once(self, x):
        """(B, N, D) → (T, D)."""
        in_runs = x.reshape((self.runs, self.rows // self.runs, self.length, x.shape[-1]))
        starts = in_runs[:, 0, : self.tokens].reshape((-1, x.shape[-1]))
        return jt.concat([starts, x[:, self.tokens :].reshape((-1, x.shape[-1]))], dim=0)

    def spread(self, x):
        """(T, D) → (B, N, D), the inverse of `once`."""
        first, width, in_run = self.runs * self.tokens, x.shape[-1], self.rows // self.runs
        starts = x[:first].reshape((self.runs, 1, self.tokens, width)).expand((self.runs, in_run, self.tokens, width))
        rest = x[first:].reshape((self.rows, self.length - self.tokens, width))
        return jt.concat([starts.reshape((self.rows, self.tokens, width)), rest], dim=1)

    def put(self, x, position: int, tokens):
        """(T, D) → (T, D): as `put_tokens` of every row, tokens (n, D). Raises `ValueError` for what leaves the start."""
        first = self.runs * self.tokens
        starts = put_tokens(x[:first].reshape((self.runs, self.tokens, -1)), position, tokens)
        return jt.concat([starts.reshape((first, -1)), x[first:]], dim=0)

    def at(self, positions: np.ndarray) -> np.ndarray:
        """(B,) positions after the start → where these tokens are among the T."""
        rest = self.length - self.tokens
        return self.runs * self.tokens + np.arange(self.rows) * rest + np.asarray(positions) - self.tokens


class Attention(nn.Module):
    """Multi-head self-attention with q, k and v packed into one projection, as OpenAI's files have them."""

    def __init__(self, width: int, heads: int, std: float, out_std: float):
        self.in_proj_weight = jt.init.gauss((3 * width, width), "float32", std=std)
        self.in_proj_bias = jt.zeros((3 * width,))
        self.out_proj = Linear(width, width, std=out_std)
        self.heads = heads
        self._rotation = None

    def turn_by(self, rotation: Rotation) -> None:
        """From now on q and k are turned by `rotation` before they meet."""
        self._rotation = rotation

    def turned(self, qkv):
        """(B, N, 3D) with rotary positions, where the tower has them."""
        return qkv if self._rotation is None else self._rotation(qkv)

    def in_proj(self, x):
        """(B, N, D) → (B, N, 3D): q, k, v side by side. A recipe may put a module of its own in this place."""
        return kernels.linear(x, self.in_proj_weight, self.in_proj_bias, half=True)

    def execute(self, x, causal: bool = False, residual=None, shared: SharedStart | None = None):
        qkv = self.in_proj(x)
        if shared:
            mixed = shared.once(kernels.attention(shared.spread(qkv), self.heads, causal))
        else:
            angles = None if self._rotation is None else self._rotation.angles
            mixed = kernels.attention(qkv, self.heads, causal, angles)
        return self.out_proj(mixed, residual=residual)

    def at_first(self, x, residual=None):
        """(B, N, D) → (B, D): what `execute` returns for the first token, for which the others need but k and v."""
        width, weight, bias = x.shape[-1], self.in_proj_weight, self.in_proj_bias
        if self.reader is None or self._rotation is not None:
            qkv = self.turned(self.in_proj(x))
            q, kv = qkv[:, 0, :width].float32(), qkv[:, :, width:]
        else:
            q = kernels.linear(x[:, 0], kernels.rows(weight, 0, width), bias[:width])
            kv = kernels.linear(x, kernels.rows(weight, width), bias[width:], half=True)
        return self.out_proj(kernels.class_attention(q, kv, self.heads), residual=residual)

    @property
    def reader(self):
        """The weight that alone multiplies what attention is given; None where a recipe's own `in_proj` does."""
        return None if "in_proj" in vars(self) else self.in_proj_weight

    def values(self, x):
        """(B, N, D) → (B, N, D): what each token would hand out if it attended to itself alone."""
        width = x.shape[-1]
        v = kernels.linear(x, kernels.rows(self.in_proj_weight, 2 * width), self.in_proj_bias[2 * width :])
        return self.out_proj(v)


class MLP(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, width: int, hidden: int, activation: str, std: float, out_std: float):
        self.c_fc = Linear(width, hidden, std=std)
        self.c_proj = Linear(hidden, width, std=out_std)
        self.activation = activation

    def execute(self, x, residual=None):
        return self.c_proj(self.c_fc(x, self.activation, half=True), residual=residual)


class Block(nn.Module):
    """x + Attn(LN x), then x + MLP(LN x); with layer scale each branch times its gamma."""

    def __init__(self, config: ViTConfig | TextConfig, activation: str, eps: float):
        width, narrow = config.width, config.width**-0.5
        deep = narrow * (2 * config.layers) ** -0.5
        self.attn = Attention(width, config.heads, std=narrow, out_std=deep)
        self.ln_1 = LayerNorm(width, eps)
        self.mlp = MLP(width, config.mlp_width, activation, std=(2 * width) ** -0.5, out_std=deep)
        self.ln_2 = LayerNorm(width, eps)
        self.layer_scale = config.layer_scale
        if config.layer_scale:
            self.ls_1, self.ls_2 = LayerScale(width), LayerScale(width)

    def execute(self, x, causal: bool = False, shared: SharedStart | None = None):
        if self.layer_scale:
            x = x + self.ls_1(self.attn(self.ln_1(x), causal, shared=shared))
            return x + self.ls_2(self.mlp(self.ln_2(x)))
        x = self.attn(self.ln_1(x, self.attn.reader), causal, residual=x, shared=shared)
        return self.mlp(self.ln_2(x, self.mlp.c_fc.weight), residual=x)

    def at_first(self, x):
        """(B, N, D) → (B, D): what `execute` returns for the first token, the others seen by it."""
        first = x[:, 0]
        if self.layer_scale:
            first = first + self.ls_1(self.attn.at_first(self.ln_1(x)))
            return first + self.ls_2(self.mlp(self.ln_2(first)))
        first = self.attn.at_first(self.ln_1(x, self.attn.reader), residual=first)
        return self.mlp(self.ln_2(first, self.mlp.c_fc.weight), residual=first)


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, config: ViTConfig | TextConfig, activation: str, eps: float):
        self.resblocks = nn.Sequential(*(Block(config, activation, eps) for _ in range(config.layers)))

    def execute(
        self,
        x,
        causal: bool = False,
        *,
        layers=None,
        insert: dict | None = None,
        taps: dict | None = None,
        name: str = "",
        shared: SharedStart | None = None,
    ):
        """(B, N, D) → (B, N, D); `causal`: a token sees those before it and itself. With `shared` (T, D) → (T, D).

        layers: which blocks to run, all by default. insert: layer → (position, tokens (n, D) or (B, n, D)); before that
        layer the tokens from `position` on are replaced by these (deep prompts). taps: receives each block's output as
        `<name>block<i>`.
        """
        for i in range(len(self.resblocks)) if layers is None else layers:
            if insert and i in insert:
                x = (shared.put if shared else put_tokens)(x, *insert[i])
            x = self.resblocks[i](x, causal, shared) if shared else self.resblocks[i](x, causal)
            if taps is not None:
                taps[f"{name}block{i}"] = x
        return x


def put_tokens(x, position: int, tokens):
    """(B, N, D) with the tokens from `position` on replaced by `tokens` (n, D) or (B, n, D). Raises `ValueError` beyond N."""
    if tokens.ndim == 2:
        tokens = tokens.unsqueeze(0).expand((x.shape[0], *tokens.shape))
    end = position + tokens.shape[1]
    if not 0 <= position < end <= x.shape[1]:
        raise ValueError(f"tokens for positions {position} to {end - 1} do not fit a sequence of {x.shape[1]}")
    parts = [x[:, :position], tokens, x[:, end:]]
    return jt.concat([p for p in parts if p.shape[1]], dim=1)


class BatchNorm(nn.Module):
    """Per channel of (B, C, H, W), as torch: running variance unbiased, momentum 0.1. Jittor's own keeps the biased one."""

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1, weight: float = 1.0):
        self.weight = jt.full((channels,), weight)
        self.bias = jt.zeros((channels,))
        self.running_mean = jt.zeros((channels,)).stop_grad()
        self.running_var = jt.ones((channels,)).stop_grad()
        self.eps, self.momentum = eps, momentum

    def execute(self, x):
        if self.is_training():
            if ranks.here().several:
                y, mean, variance, samples = collectives.batch_norm(x, self.weight, self.bias, self.eps)
            else:
                y, mean, variance = kernels.batch_norm(x, self.weight, self.bias, self.eps)
                samples = x.shape[0] * x.shape[2] * x.shape[3]
            self.update_statistics(mean, variance, samples)
            return y
        scale = self.weight.float32() / jt.sqrt(self.running_var + self.eps)
        shift = self.bias.float32() - self.running_mean * scale
        return (x.float32() * _per_channel(scale) + _per_channel(shift)).cast(x.dtype)

    def update_statistics(self, mean, variance, samples: int) -> None:
        """Moves the running statistics (C,) towards a batch's mean and biased variance (C,) of `samples` values per channel.

        Raises `ValueError` for a single value.
        """
        if samples < 2:
            raise ValueError("batch norm in training needs more than one value per channel")
        unbiased = variance * (samples / (samples - 1))
        keep = 1.0 - self.momentum
        self.running_mean.update(keep * self.running_mean + self.momentum * mean.detach())
        self.running_var.update(keep * self.running_var + self.momentum * unbiased.detach())


def _per_channel(v):
    return v.reshape((1, -1, 1, 1))
