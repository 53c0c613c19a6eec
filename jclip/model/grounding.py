"""The network that finds a phrase's box: tokens of photo and phrase and one learned [REG] token, mixed in a few layers.

CLIP-VG: Xiao et al., IEEE Transactions on Multimedia 2023, arXiv 2305.08685. Parameters have the names of its
checkpoints. B batch, L text tokens, N image tokens, D width.

A sequence is [REG], text, class token (of towers that have one), patches. What no read token depends on is not computed,
and the box is the same: tokens of shorter phrases' ends and patches of padding, at which nothing looks, are left out while
every other token keeps its own position's row; of the last layer only [REG] is computed; and what phrases of one photo
have in common is computed once.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from jclip import kernels
from jclip.errors import ConfigError
from jclip.functional.initial_values import linear_start
from jclip.model.layers import LayerNorm, Linear
from jclip.runtime import jt

nn = jt.nn
SHARED = 0.8  # share of tokens that are distinct, below which the first layer's q, k, v are made of these


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

    def qkv(self, x):
        """(T, D) → (T, 3D), without biases."""
        return kernels.linear(x, self.in_proj_weight)

    def placed(self, positions):
        """(P, D) → (P, 3D): what a token's position adds to its q, k and v: W_q p + b_q, W_k p + b_k, b_v."""
        P, D = positions.shape
        moved = kernels.linear(positions, self.in_proj_weight[: 2 * D], self.in_proj_bias[: 2 * D])
        return jt.concat([moved, self.in_proj_bias[2 * D :].unsqueeze(0).expand((P, D))], dim=1)


class FusionLayer(nn.Module):
    """x ← LN(x + attention), then x ← LN(x + W2 ReLU(W1 x)): DETR's, with dropout at the same four places."""

    def __init__(self, shape: FusionShape):
        D = shape.hidden
        self.self_attn = _Attention(D, shape.heads)
        self.linear1, self.linear2 = Linear(D, shape.ffn, std=1.0), Linear(shape.ffn, D, std=1.0)
        self.norm1, self.norm2 = LayerNorm(D), LayerNorm(D)

    def execute(self, x, positions, sequences, rate: float = 0.0, seed: int = 0, qkv=None):
        """(T, D) of `kernels.Sequences`, positions (P, D) → (T, D). rate, seed: of dropout. qkv: of x, where it is there."""
        attention = self.self_attn
        qkv = attention.qkv(x) if qkv is None else qkv
        mixed = kernels.packed_attention(qkv, attention.placed(positions), sequences, attention.heads, rate, seed)
        return self._behind(x, mixed, sequences.tokens, rate, seed)

    def first(self, x, positions, sequences, rate: float = 0.0, seed: int = 0):
        """As a call, but (B, D): each sequence's first token alone."""
        own = self.self_attn
        weights = own.in_proj_weight, own.in_proj_bias
        mixed = kernels.first_attention(x, positions, *weights, sequences, own.heads, rate, seed)
        return self._behind(kernels.rows_of(x, sequences.firsts), mixed, sequences.first_tokens, rate, seed)

    def _behind(self, x, mixed, tokens, rate: float, seed: int):
        """What becomes of tokens (T, D) and of what attention gives them; dropout of a token is drawn by its number."""
        x = _added(x, kernels.linear(mixed, self.self_attn.out_proj.weight), self.self_attn.out_proj, self.norm1, tokens,
                   rate, seed + 1)  # fmt: skip
        inner = kernels.relu_linear(x, self.linear1.weight, self.linear1.bias, tokens, rate, seed + 2)
        y = kernels.linear(inner, self.linear2.weight)
        return _added(x, y, self.linear2, self.norm2, tokens, rate, seed + 3)


def _added(x, y, linear, norm, tokens, rate: float, seed: int):
    """norm(x + dropout(y + the linear map's bias))."""
    return kernels.residual_norm(x, y, linear.bias, norm.weight, norm.bias, tokens, norm.eps, rate, seed)


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
        """(..., W) of the image tower → (..., D): once for each photo, however many phrases there are for it."""
        x = getattr(self, shape_projection(self.shape))(_var(tokens))
        return self.visu_norm(x) if self.shape.project_norm else x

    def projected_texts(self, tokens):
        """(..., E) of the text tower → (..., D)."""
        x = self.text_proj(_var(tokens))
        return self.text_norm(x) if self.shape.project_norm else x

    def execute(
        self, images, texts, said, seen=None, of=None, seed: int | None = None, whole: bool = False, first: int = 0
    ) -> Found:
        """Image tokens (I, N, W) and text tokens (B, L, E), L up to `max_text`, → boxes of B phrases.

        said: (B, L) 1 where a phrase has a token. seen: (I, N) 0 at patches of padding; all are seen by default.
        of: (B,) which photo a phrase is of; by default the b-th of the b-th. seed: training, dropout drawn by it; None: no
        dropout. whole: nothing is left out, for comparison: the result is the same. first: of phrases that are a part of a
        batch, the number of the first one: dropout is as in the batch. Raises `ValueError` for other numbers of tokens.
        """
        if texts.shape[1] > self.shape.max_text or images.shape[1] != self.shape.image_tokens:
            wanted = f"{self.shape.image_tokens} image and at most {self.shape.max_text} text tokens"
            raise ValueError(f"tokens must be {wanted}, got {images.shape[1]} and {texts.shape[1]}")
        said = np.asarray(said, np.float32)
        seen = np.ones(images.shape[:2], np.float32) if seen is None else np.asarray(seen, np.float32)
        of = np.arange(len(said)) if of is None else np.asarray(of)
        packed = packed_tokens(said, seen, of, self.shape, whole, first)
        tokens = [
            self.reg_token.weight,
            self.projected_texts(_rows(texts, packed.texts)),
            self.projected_images(_rows(images, packed.images)),
        ]
        return self.fused(jt.concat(tokens, dim=0), packed.index, packed.sequences, seed, whole)

    def fused(self, tokens, index: np.ndarray, sequences, seed: int | None = None, whole: bool = False) -> Found:
        """Distinct projected tokens (R, D), which of them each of T tokens of `sequences` is → boxes; `seed`, `whole` as of
        a call."""
        positions, layers = self.vl_pos_embed.weight, list(self.vl_transformer.encoder.layers)
        rate, index = 0.0 if seed is None else self.shape.dropout, jt.array(index.astype(np.int32))
        draws = (
            np.random.default_rng(seed or 0).integers(2**30, size=len(layers)).tolist() if rate else [0] * len(layers)
        )
        x, qkv = kernels.rows_of(tokens, index), None
        if len(layers) > 1 and tokens.shape[0] < SHARED * index.shape[0]:
            qkv = kernels.rows_of(layers[0].self_attn.qkv(tokens), index)
        for number, (layer, draw) in enumerate(zip(layers, draws, strict=True)):
            last = number + 1 == len(layers) and not whole
            x = (
                layer.first(x, positions, sequences, rate, draw)
                if last
                else layer(x, positions, sequences, rate, draw, qkv)
            )
            qkv = None
        inner = self.bbox_embed.inner(kernels.rows_of(x, sequences.firsts) if whole else x)
        boxes = jt.sigmoid(self.bbox_embed.layers[2](inner))
        return Found(boxes, self.present_embed(inner)[:, 0] if self.shape.present else None)


class PackedTokens(NamedTuple):
    """texts, images: rows of (B L, E) and (I N, W) that are read at all; index: (T,) which of [REG], these texts and these
    images, in this order, each token of `sequences` is."""

    texts: np.ndarray
    images: np.ndarray
    index: np.ndarray
    sequences: kernels.Sequences


def packed_tokens(
    said: np.ndarray, seen: np.ndarray, of: np.ndarray, shape: FusionShape, whole: bool = False, first: int = 0
) -> PackedTokens:
    """What is read of texts (B, L) and images (I, N) where `said` and `seen` are 0 or 1; of: (B,) each phrase's photo."""
    read, looked_at = (np.ones_like(a, bool) if whole else a != 0 for a in (said, seen))
    rows = [np.cumsum(a).reshape(a.shape) - 1 for a in (read, looked_at)]  # among those that are read
    texts, images = (
        np.flatnonzero(a) if a.any() else np.zeros(1, int) for a in (read, looked_at)
    )  # Jittor wants a row
    index, places, keys = [], [], []
    for phrase, photo in enumerate(of.tolist()):
        words, patches = np.flatnonzero(read[phrase]), np.flatnonzero(looked_at[photo])
        index += [[0], 1 + rows[0][phrase, words], 1 + len(texts) + rows[1][photo, patches]]
        places.append(np.concatenate([[0], 1 + words, 1 + shape.max_text + patches]))
        keys.append(np.concatenate([[1], said[phrase, words], seen[photo, patches]]))
    return PackedTokens(texts, images, np.concatenate(index), kernels.Sequences.of(places, keys, shape.length, first))


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
    return x if isinstance(x, jt.Var) else jt.array(np.asarray(x, np.float32))


def _rows(tokens, rows: np.ndarray):
    """(B, L, E) → (n, E): those of B L rows, without a copy where it is all."""
    flat = tokens.reshape((-1, tokens.shape[-1]))
    if len(rows) == flat.shape[0]:
        return flat
    return kernels.rows_of(flat, jt.array(rows.astype(np.int32))) if isinstance(flat, jt.Var) else flat[rows]


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
