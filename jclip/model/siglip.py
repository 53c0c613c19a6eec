"""SigLIP's towers. Zhai et al., 2023, arXiv 2303.15343; SigLIP 2: Tschannen et al., 2025, arXiv 2502.14786.

Parameters have open_clip's names: `visual.trunk.…` (timm's) and `text.…`. Of the image tower one learned query attends to all
patches (Lee et al., 2019, arXiv 1810.00825), with q, k_n, v_n of the query and of the patches after the last norm:

    a = W softmax_n(q k_n / sqrt(d)) v_n + b,   embedding = a + MLP(LN(a))
"""

from __future__ import annotations

from functools import cache

import numpy as np

from jclip import kernels
from jclip.errors import DataError
from jclip.functional.positions import triangle_matrix
from jclip.model.layers import LayerNorm, Linear, TokenEmbedding, Transformer, put_tokens
from jclip.model.vit import Patches
from jclip.runtime import jt
from jclip.weights.image_configs import SigLIPImageConfig
from jclip.weights.text_configs import SigLIPTextConfig

nn = jt.nn


class SigLIPTower(nn.Module):
    """Images to one embedding each, what a learned query takes from the patches; on request to one per patch as well."""

    def __init__(self, config: SigLIPImageConfig):
        self.trunk = Trunk(config)
        self.image_size = config.image_size

    def embed(self, images, positions=None):
        """(B, 3, H, W) → (B, N, D): patches, positions added.

        positions: (N, D) in place of the tower's own, for photos of another size; a tower for photos of any proportions
        makes them itself.
        """
        return self.trunk.embed(images, positions)

    def encode(self, tokens, **options):
        """(B, N, D) from `embed`, prompts appended or not → pooled (B, E); with `dense` also (B, N, E)."""
        return self.trunk(tokens, **options)

    def execute(self, images, **options):
        """(B, 3, H, W) → (B, E); with `dense` also (B, N, E), patches row by row. options: as of `Trunk.execute`."""
        tokens = self.embed(images)
        return self.encode(tokens, **{"patches": tokens.shape[1], **options})


class Trunk(nn.Module):
    """What open_clip's files keep under `visual.trunk`."""

    def __init__(self, config: SigLIPImageConfig):
        width, (rows, columns) = config.width, config.grid
        self.patch_embed = Patches(width, config.patch_size)
        self.pos_embed = jt.init.gauss((1, rows * columns, width), "float32", std=width**-0.5)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.layers)))
        self.norm = LayerNorm(width, config.norm_eps)
        self.attn_pool = AttentionPool(config)
        self._grid, self._any_shape = config.grid, config.any_shape

    def embed(self, images, positions=None):
        """As of `SigLIPTower`. What is left of a side beyond its last whole patch is not seen."""
        _, _, H, W = images.shape
        patch = self.patch_embed.proj.patch
        whole = images[:, :, : H - H % patch, : W - W % patch] if H % patch or W % patch else images
        return self.patch_embed(whole) + (self._positions(H // patch, W // patch) if positions is None else positions)

    def _positions(self, rows: int, columns: int):
        """(1, N, D) for so many rows and columns of patches: the table, resampled bilinearly with antialias."""
        if not self._any_shape or (rows, columns) == self._grid:
            return self.pos_embed
        table = self.pos_embed.float32().reshape((*self._grid, -1))
        by_row, by_column = (jt.array(m) for m in position_weights(self._grid, (rows, columns)))
        wide = jt.matmul(by_row, table.reshape((self._grid[0], -1))).reshape((rows, self._grid[1], -1))
        made = jt.matmul(by_column, wide.permute(1, 0, 2).reshape((self._grid[1], -1))).reshape((columns, rows, -1))
        return made.permute(1, 0, 2).reshape((1, rows * columns, -1)).cast(self.pos_embed.dtype)

    def execute(
        self,
        x,
        dense: str | None = None,
        insert: dict | None = None,
        taps: dict | None = None,
        penultimate: bool = False,
        patches: int = 0,
    ):
        """(B, N, D) → (B, E); with `dense` also (B, N, E). The query attends to learned vectors after the patches as well.

        dense: "value" takes what the query would if it attended to one patch alone, in the space of texts; "token" the
        patches after the last norm, which are not. penultimate: false, as there is no projection. patches: N of photos of
        another size than the tower's.
        """
        if taps is not None:
            taps["visual.stem"] = x
        for i in range(len(self.blocks)):
            if insert and i in insert:
                x = put_tokens(x, *insert[i])
            x = self.blocks[i](x)
            if taps is not None:
                taps[f"visual.block{i}"] = x
        x = self.norm(x)
        pooled = self.attn_pool(x)
        if dense is None:
            return pooled
        cells = x[:, : patches or self.pos_embed.shape[1]]
        return pooled, self.attn_pool.values(cells) if dense == "value" else cells


@cache
def position_weights(grid: tuple[int, int], new: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(rows', rows) and (columns', columns) float32 that resample a table of positions for `grid`."""
    return tuple(triangle_matrix(old, to).astype(np.float32) for old, to in zip(grid, new, strict=True))


class Block(nn.Module):
    """x + Attn(norm1 x), then x + MLP(norm2 x)."""

    def __init__(self, config: SigLIPImageConfig):
        self.norm1 = LayerNorm(config.width, config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = LayerNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def execute(self, x):
        x = self.attn(self.norm1(x, self.attn.reader), residual=x)
        return self.mlp(self.norm2(x, self.mlp.fc1.weight), residual=x)


class Attention(nn.Module):
    """Multi-head self-attention with q, k and v in one projection."""

    def __init__(self, config: SigLIPImageConfig):
        width = config.width
        self.qkv = Linear(width, 3 * width, std=width**-0.5)
        self.proj = Linear(width, width, std=width**-0.5)
        self.heads = config.heads

    def in_proj(self, x):
        """(B, N, D) → (B, N, 3D): q, k, v side by side. A recipe may put a module of its own in this place."""
        return self.qkv(x, half=True)

    @property
    def reader(self):
        """The weight that alone multiplies what attention is given; None where a recipe's own `in_proj` does."""
        return None if "in_proj" in vars(self) else self.qkv.weight

    @property
    def in_proj_weight(self):
        """(3D, D), by the name that OpenAI's attention has it."""
        return self.qkv.weight

    @property
    def in_proj_bias(self):
        """(3D,)."""
        return self.qkv.bias

    def execute(self, x, residual=None):
        return self.proj(kernels.attention(self.in_proj(x), self.heads), residual=residual)


class MLP(nn.Module):
    """fc2 GELU(fc1 x)."""

    def __init__(self, config: SigLIPImageConfig):
        self.fc1 = Linear(config.width, config.mlp_width, std=config.width**-0.5)
        self.fc2 = Linear(config.mlp_width, config.width, std=config.mlp_width**-0.5)
        self.activation = config.activation

    def execute(self, x, residual=None):
        return self.fc2(self.fc1(x, self.activation, half=True), residual=residual)


class AttentionPool(nn.Module):
    """What one learned query takes from the patches, and an MLP after it: see the module."""

    def __init__(self, config: SigLIPImageConfig):
        width = config.width
        self.latent = jt.init.gauss((1, 1, width), "float32", std=width**-0.5)
        self.q = Linear(width, width, std=width**-0.5)
        self.kv = Linear(width, 2 * width, std=width**-0.5)
        self.proj = Linear(width, width, std=width**-0.5)
        self.norm = LayerNorm(width, config.norm_eps)
        self.mlp = MLP(config)
        self.heads = config.heads

    def execute(self, x):
        """(B, N, D) → (B, D)."""
        query = self.q(self.latent).reshape((-1,))
        return self._finished(kernels.probe_attention(query, x, self.kv.weight, self.kv.bias, self.heads))

    def values(self, x):
        """(B, N, D) → (B, N, D): the embedding of each token, if the query attended to it alone."""
        return self._finished(self.kv(x)[:, :, x.shape[2] :])

    def _finished(self, taken):
        a = self.proj(taken)
        return self.mlp(self.norm(a, self.mlp.fc1.weight), residual=a)


class SigLIPText(nn.Module):
    """Attention to all tokens, padding too, read at the last one: texts are padded to the context length, never cut."""

    def __init__(self, config: SigLIPTextConfig, embed_dim: int):
        width = config.width
        self.token_embedding = TokenEmbedding(config.vocab_size, width)
        self.positional_embedding = jt.init.gauss((config.context_length, width), "float32", std=0.01)
        self.transformer = Transformer(config, config.activation, config.norm_eps)
        self.ln_final = LayerNorm(width, config.norm_eps)
        self.projects = config.projection
        if config.projection:
            self.text_projection = Linear(width, embed_dim, std=width**-0.5)

    def embed(self, ids):
        """(B, L) ids → (B, L, D) token embeddings, without positions."""
        return self.token_embedding(jt.array(ids))

    def execute(self, ids, dense: bool = False, taps: dict | None = None):
        """(B, L) ids → (B, E); with `dense` also (B, L, E). Raises `DataError` for rows that are not padded to the end."""
        length = self.positional_embedding.shape[0]
        if ids.shape[1] != length:
            raise DataError(
                f"SigLIP's texts must be {length} tokens long, padding included, got {ids.shape[1]}: use "
                "model.tokenize(texts)"
            )
        return self.encode_embeddings(self.embed(ids), self.ends(ids), dense, taps=taps)

    def encode_embeddings(
        self, x, ends: np.ndarray, dense: bool = False, insert: dict | None = None, taps: dict | None = None
    ):
        """`execute` from embeddings (B, L, D) without positions, L the whole context; `ends` are not needed.

        insert: layer → (position, tokens (n, D)); before that layer the tokens from `position` on are replaced by these.
        """
        x = x + self.positional_embedding
        if taps is not None:
            taps["text.stem"] = x
        x = self.transformer(x, insert=insert, taps=taps, name="text.")
        if dense:
            every = self._projected(x)
            return every[:, -1], every
        return self._projected(x[:, -1])

    def _projected(self, x):
        x = self.ln_final(x)
        return self.text_projection(x) if self.projects else x

    def ends(self, ids: np.ndarray) -> np.ndarray:
        """(B, L) → (B,): where each text is read, its last place."""
        return np.full(len(ids), ids.shape[1] - 1)
