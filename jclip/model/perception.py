"""Perception Encoder's vision transformer, PE-Core. Bolya et al., 2025, arXiv 2504.13181.

    x = norm_pre([class?; patches] + positions),  blocks with q and k turned by row and column,  y = norm_post(x)
    a = W_o softmax(q k^T / sqrt(d)) v + b_o of a learned query q,  k and v of all y,  pooled = a + MLP(norm a)

Parameters have the authors' names, which are OpenAI's where OpenAI's tower has the part.
"""

from __future__ import annotations

import numpy as np

from jclip import kernels
from jclip.model.layers import MLP, Attention, LayerNorm, Transformer
from jclip.model.rotary import Rotation, grid_angles
from jclip.model.vit import PatchEmbedding
from jclip.runtime import jt
from jclip.weights.perception_configs import PerceptionConfig

nn = jt.nn


class PerceptionTower(nn.Module):
    """Images to one embedding each, pooled by attention; on request to one per patch as well."""

    def __init__(self, config: PerceptionConfig, embed_dim: int, activation: str, eps: float):
        width, (rows, columns) = config.width, config.grid
        scale = width**-0.5
        self.conv1 = PatchEmbedding(width, config.patch_size)
        self._first = int(config.class_token)
        if config.class_token:
            self.class_embedding = jt.init.gauss((width,), "float32", std=scale)
        self.positional_embedding = jt.init.gauss((self._first + rows * columns, width), "float32", std=scale)
        self.ln_pre = LayerNorm(width, eps)
        self.transformer = Transformer(config, activation, eps)
        turn_blocks(self.transformer.resblocks, config)
        self.ln_post = LayerNorm(width, eps)
        self.attn_pool = AttentionPooling(config, activation, eps)
        self.proj = jt.init.gauss((width, embed_dim), "float32", std=scale)
        self.proj_bias = jt.zeros((embed_dim,)) if config.proj_bias else None
        self.image_size = config.image_size

    def embed(self, images):
        """(B, 3, H, W) → (B, 1 + N, D): class token, where there is one, and patches, positions added, before `ln_pre`."""
        x = self.conv1(images)
        if self._first:
            first = self.class_embedding.reshape((1, 1, -1)).expand((x.shape[0], 1, x.shape[2]))
            x = jt.concat([first.cast(x.dtype), x], dim=1)
        return x + self.positional_embedding

    def encode(
        self,
        tokens,
        dense: str | None = None,
        insert: dict | None = None,
        taps: dict | None = None,
        penultimate: bool = False,
    ):
        """(B, 1 + N, D) from `embed`, prompts appended or not → pooled (B, E), with `penultimate` (B, D); with `dense` also
        (B, N, E).

        The pool reads prompts as well. Either kind of `dense` gives what the pool makes
        of each patch alone: the last attention is the pool's, and these are its values.
        """
        x = self.ln_pre(tokens)
        if taps is not None:
            taps["visual.stem"] = x
        return self.leave(self.transformer(x, insert=insert, taps=taps, name="visual."), dense, penultimate)

    def leave(self, x, dense: str | None = None, penultimate: bool = False):
        """The last block's output (B, 1 + N, D) → as `encode`."""
        y = self.ln_post(x)
        pooled = self.attn_pool(y)
        pooled = pooled if penultimate else self.project(pooled)
        if dense is None:
            return pooled
        return pooled, self.project(self.attn_pool.values(y[:, self._first : self.positional_embedding.shape[0]]))

    def project(self, x):
        """(..., D) → (..., E)."""
        return kernels.linear(x, self.proj.transpose(0, 1), self.proj_bias)

    def execute(self, images, **options):
        """(B, 3, H, W) → (B, E); with `dense` also (B, N, E), patches row by row. options: as of `encode`."""
        return self.encode(self.embed(images), **options)


class AttentionPooling(nn.Module):
    """One learned query's attention to all tokens, and an MLP behind it."""

    def __init__(self, config: PerceptionConfig, activation: str, eps: float):
        width = config.width
        narrow = width**-0.5
        self.probe = jt.init.gauss((1, 1, width), "float32")
        self.attn = Attention(width, config.pool_heads, std=narrow, out_std=narrow)
        self.layernorm = LayerNorm(width, eps)
        self.mlp = MLP(width, config.pool_mlp_width, activation, std=(2 * width) ** -0.5, out_std=narrow)

    def execute(self, x):
        """(B, N, D) → (B, D)."""
        D, weight, bias = x.shape[2], self.attn.in_proj_weight, self.attn.in_proj_bias
        query = kernels.linear(self.probe.reshape((1, D)), weight, bias)[0, :D]
        return self._behind(kernels.probe_attention(query, x, kernels.rows(weight, D), bias[D:], self.attn.heads))

    def values(self, x):
        """(..., D) → (..., D): what the pool makes of each token if it sees that one alone."""
        D = x.shape[-1]
        weight, bias = self.attn.in_proj_weight, self.attn.in_proj_bias
        return self._behind(kernels.linear(x, kernels.rows(weight, 2 * D), bias[2 * D :]))

    def _behind(self, mixed):
        a = self.attn.out_proj(mixed)
        return self.mlp(self.layernorm(a, self.mlp.c_fc.weight), residual=a)


def turn_blocks(blocks, config: PerceptionConfig) -> None:
    """Give the attention of all blocks the tower's rotary positions."""
    rotation = rotation_of(config)
    for i in range(len(blocks)):
        blocks[i].attn.turn_by(rotation)


def rotation_of(config: PerceptionConfig) -> Rotation:
    """Rotary positions of the patches, columns first; they count from 1 where the class token stands at 0."""
    first = int(config.class_token)
    vertical, horizontal = (
        (np.arange(side) + first) / side * known for side, known in zip(config.grid, config.rope_grid, strict=True)
    )
    angles = grid_angles(vertical, horizontal, config.width // config.heads, columns_first=True)
    return Rotation(angles, first)
