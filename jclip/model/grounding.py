"""The network that finds a phrase's box: tokens of photo and phrase and one learned [REG] token, mixed in a few layers.

CLIP-VG: Xiao et al., IEEE Transactions on Multimedia 2023, arXiv 2305.08685. Parameters have the names of its
checkpoints. B batch, L text tokens, N image tokens, D width.

A sequence is [REG], text, class token (of towers that have one), patches. What no read token depends on is not computed,
and the box is the same: text is cut at the batch's longest phrase while every token keeps its own position's row, and of
the last layer only [REG] is computed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from jclip import kernels
from jclip.errors import ConfigError
from jclip.functional.initial_values import linear_start
from jclip.kernels import plain
from jclip.model.layers import LayerNorm, Linear
from jclip.runtime import jt

nn = jt.nn


@dataclass(frozen=True)
class FusionShape:
    """Sizes of the network.

    image_width, text_width: of the towers' tokens as they come. image_tokens: N, the class token among them. max_text:
    positions of the text. last: whether image tokens are those of the tower's end, whose projection checkpoints name
    otherwise. project_norm: a LayerNorm after both projections, which small data needs. present: one more output, whether
    the thing is there at all.
    """

    image_width: int
    text_width: int
    image_tokens: int
    max_text: int = 77
    hidden: int = 512
    layers: int = 6
    heads: int = 8
    ffn: int = 2048
    dropout: float = 0.1
    last: bool = False
    project_norm: bool = False
    present: bool = False

    def __post_init__(self):
        if self.hidden % self.heads:
            raise ConfigError(f"heads must divide hidden={self.hidden}, got {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def length(self) -> int:
        """Tokens of the whole sequence."""
        return 1 + self.max_text + self.image_tokens

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


class Found(NamedTuple):
    """Boxes (B, 4), centres cx, cy, w, h in shares of the square, and (B,) logits that the thing is there, or None."""

    boxes: Any
    present: Any = None


class _Table(nn.Module):
    """(rows, D) learned vectors."""

    def __init__(self, rows: int, width: int):
        self.weight = jt.zeros((rows, width))


class _Attention(nn.Module):
    """Self-attention in which positions are added to queries and keys, never to values."""

    def __init__(self, width: int, heads: int):
        self.in_proj_weight = jt.zeros((3 * width, width))
        self.in_proj_bias = jt.zeros((3 * width,))
        self.out_proj = Linear(width, width, std=1.0)
        self.heads = heads

    def qkv(self, x, positions):
        """(B, N, D), (N, D) → (B, N, 3D): [W_q (x + p), W_k (x + p), W_v x]; the part of p is computed once for all rows."""
        D = x.shape[-1]
        moved = kernels.linear(positions, self.in_proj_weight[: 2 * D])
        moved = jt.concat([moved, jt.zeros((moved.shape[0], D))], dim=1)
        return kernels.linear(x, self.in_proj_weight, self.in_proj_bias) + moved.unsqueeze(0)

    def first(self, x, positions, keys, rate: float, seed: int):
        """(B, N, D) → (B, 1, D): what the first token takes. With dropout the same weights fall away as for all tokens."""
        qkv = self.qkv(x, positions)
        if rate:
            return kernels.masked_attention(qkv, keys, self.heads, rate, seed)[:, :1]
        return plain.attention_at_first(qkv, self.heads, keys)


class FusionLayer(nn.Module):
    """x ← LN(x + attention), then x ← LN(x + W2 ReLU(W1 x)): DETR's, with dropout at the same four places."""

    def __init__(self, shape: FusionShape):
        D = shape.hidden
        self.self_attn = _Attention(D, shape.heads)
        self.linear1, self.linear2 = Linear(D, shape.ffn, std=1.0), Linear(shape.ffn, D, std=1.0)
        self.norm1, self.norm2 = LayerNorm(D), LayerNorm(D)

    def execute(self, x, positions, keys, rate: float = 0.0, seed: int = 0, first: bool = False):
        """(B, N, D), positions (N, D), keys (B, N) 0/1 → (B, N, D), with `first` (B, 1, D) of the first token alone.

        rate, seed: of dropout.
        """
        attention = self.self_attn
        if first:
            mixed, x = attention.first(x, positions, keys, rate, seed), x[:, :1]
        else:
            mixed = kernels.masked_attention(attention.qkv(x, positions), keys, attention.heads, rate, seed)
        x = self.norm1(x + _dropped(attention.out_proj(mixed), rate, seed + 1))
        inner = _dropped(nn.relu(self.linear1(x)), rate, seed + 2)
        return self.norm2(x + _dropped(self.linear2(inner), rate, seed + 3))


class _Encoder(nn.Module):
    def __init__(self, shape: FusionShape):
        self.layers = nn.Sequential(*(FusionLayer(shape) for _ in range(shape.layers)))


class _Fusion(nn.Module):
    def __init__(self, shape: FusionShape):
        self.encoder = _Encoder(shape)


class _BoxHead(nn.Module):
    """Three linear maps with ReLU between them."""

    def __init__(self, width: int):
        self.layers = nn.Sequential(*(Linear(width, outputs, std=1.0) for outputs in (width, width, 4)))

    def inner(self, x):
        """(B, D) → (B, D), before the last map."""
        return nn.relu(self.layers[1](nn.relu(self.layers[0](x))))


class GroundingNetwork(nn.Module):
    """Tokens of the towers to one box for each phrase. Freshly made it starts as the reference does, drawn by `seed`.

    positions: how those of image tokens start, which are learned: "random", as the reference, or `sine_positions`, for which
    tokens must be of a square.
    """

    def __init__(self, shape: FusionShape, seed: int = 0, positions: Literal["random", "sine"] = "random"):
        D = shape.hidden
        self.shape = shape
        self.reg_token, self.vl_pos_embed = _Table(1, D), _Table(shape.length, D)
        setattr(self, shape_projection(shape), Linear(shape.image_width, D, std=1.0))
        self.text_proj = Linear(shape.text_width, D, std=1.0)
        if shape.project_norm:
            self.visu_norm, self.text_norm = LayerNorm(D), LayerNorm(D)
        self.vl_transformer = _Fusion(shape)
        self.bbox_embed = _BoxHead(D)
        if shape.present:
            self.present_embed = Linear(D, 1, std=1.0)
        start = initial_arrays({k: tuple(v.shape) for k, v in self.state_dict().items()}, seed)
        if positions == "sine":
            cells = sine_positions(math.isqrt(shape.image_tokens), D)
            start["vl_pos_embed.weight"][-len(cells) :] = cells  # behind the class token of towers that have one
        self.put(start)

    def put(self, arrays: dict[str, np.ndarray]) -> None:
        """Replaces parameters, by name."""
        params = self.state_dict()
        for name, array in arrays.items():
            params[name].update(jt.array(np.ascontiguousarray(array, np.float32)))
            params[name].start_grad()

    def projected_images(self, tokens):
        """(B, N, W) of the tower → (B, N, D): once for each photo, however many phrases there are for it."""
        x = getattr(self, shape_projection(self.shape))(_var(tokens))
        return self.visu_norm(x) if self.shape.project_norm else x

    def projected_texts(self, tokens):
        """(B, L, E) of the tower → (B, L, D)."""
        x = self.text_proj(_var(tokens))
        return self.text_norm(x) if self.shape.project_norm else x

    def execute(self, images, texts, said, seen=None, of=None, seed: int | None = None, whole: bool = False) -> Found:
        """Image tokens (I, N, W) and text tokens (B, L, E), L up to `max_text`, → boxes of B phrases.

        said: (B, L) 1 where a phrase has a token. seen: (I, N) 0 at patches of padding; all are seen by default.
        of: (B,) which photo a phrase is of; by default the b-th of the b-th. seed: training, dropout drawn by it; None: no
        dropout. whole: nothing is cut or left out, for comparison: the result is the same.
        """
        images, texts = self.projected_images(images), self.projected_texts(texts)
        said = np.asarray(said, np.float32)
        seen = np.ones(images.shape[:2], np.float32) if seen is None else np.asarray(seen, np.float32)
        if of is not None:
            images, seen = images[jt.array(np.asarray(of, np.int32))], seen[of]
        if not whole:
            longest = int(np.flatnonzero(said.any(axis=0)).max(initial=0)) + 1
            texts, said = texts[:, :longest], said[:, :longest]
        keys = jt.array(np.concatenate([np.ones((len(said), 1), np.float32), said, seen], axis=1))
        return self.fused(images, texts, keys, seed, whole)

    def fused(self, images, texts, keys, seed: int | None = None, whole: bool = False) -> Found:
        """Projected tokens (B, N, D), (B, L, D) and keys (B, 1 + L + N) → boxes; `seed`, `whole` as of a call."""
        B, L, D = texts.shape
        if self.shape.max_text < L or images.shape[1] != self.shape.image_tokens:
            wanted = f"{self.shape.image_tokens} image and at most {self.shape.max_text} text tokens"
            raise ValueError(f"tokens must be {wanted}, got {images.shape[1]} and {L}")
        start = self.reg_token.weight.reshape((1, 1, D)).expand((B, 1, D))
        x, positions = jt.concat([start, texts, images], dim=1), self.positions(L)
        layers, rate = self.vl_transformer.encoder.layers, 0.0 if seed is None else self.shape.dropout
        draws = (
            np.random.default_rng(seed or 0).integers(2**30, size=len(layers)).tolist() if rate else [0] * len(layers)
        )
        for number, draw in enumerate(draws):
            x = layers[number](x, positions, keys, rate, draw, first=number + 1 == len(layers) and not whole)
        inner = self.bbox_embed.inner(x[:, 0])
        boxes = jt.sigmoid(self.bbox_embed.layers[2](inner))
        return Found(boxes, self.present_embed(inner)[:, 0] if self.shape.present else None)

    def positions(self, text_length: int):
        """(1 + L + N, D): rows of [REG], of the first L text tokens, and of all image tokens, which are never renumbered."""
        table = self.vl_pos_embed.weight
        if text_length == self.shape.max_text:
            return table
        return jt.concat([table[: 1 + text_length], table[1 + self.shape.max_text :]], dim=0)


def shape_projection(shape: FusionShape) -> str:
    """The name of the projection of image tokens."""
    return "visu_proj" if shape.last else "ml_visu_proj"


def sine_positions(side: int, width: int) -> np.ndarray:
    """(side², width) float32 of a square's cells, row by row: √2 [sin πky, cos πky, sin πkx, cos πkx], k = 1 … width / 4, where
    y, x in (0, 1) are a cell's centre; the mean square of a row is 1. What `width` has beyond a multiple of four is 0.

    Cells near each other are alike, and a linear map tells left from right: with drawn positions a network learns both from
    the data, cell by cell.
    """
    at, k = (np.arange(side) + 0.5) / side, np.arange(1, width // 4 + 1)
    waves = np.pi * at[:, None] * k
    axis = math.sqrt(2) * np.concatenate([np.sin(waves), np.cos(waves)], axis=1)
    y, x = np.divmod(np.arange(side * side), side)
    return np.pad(np.concatenate([axis[y], axis[x]], axis=1), ((0, 0), (0, width % 4))).astype(np.float32)


def _var(x):
    return x if isinstance(x, jt.Var) else jt.array(x)


def _dropped(x, rate: float, seed: int):
    return kernels.dropout(x, rate, seed) if rate else x


def initial_arrays(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Where training starts, by name.

    Matrices of the layers are Xavier-uniform, within sqrt(6 / (inputs + outputs)), q, k and v being one matrix; biases of
    attention 0; [REG] and positions standard normal; all else as torch's Linear, within 1 / sqrt(inputs).
    """
    rng, found = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        if "norm" in name:
            value = np.full(shape, float(name.endswith("weight")))
        elif name in ("reg_token.weight", "vl_pos_embed.weight"):
            value = rng.standard_normal(shape)
        elif name.endswith(("in_proj_bias", "out_proj.bias")):
            value = np.zeros(shape)
        elif name.startswith("vl_transformer") and len(shape) == 2:
            value = rng.uniform(-1, 1, shape) * math.sqrt(6 / sum(shape))
        elif len(shape) == 2:
            value = linear_start(rng, *shape)
        else:
            inputs = shapes[name.removesuffix("bias") + "weight"][1]
            value = rng.uniform(-1, 1, shape) / math.sqrt(inputs)
        found[name] = value.astype(np.float32)
    return found
