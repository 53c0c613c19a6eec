"""BERT as a text tower: Chinese-CLIP's. Attention to all tokens but padding, norms behind each branch, read at the first.

Devlin et al., 2018, arXiv 1810.04805; Yang et al., 2022, arXiv 2211.01335. Parameters have the names of open_clip's text
tower (`text.transformer.resblocks.…`), the norm behind the embeddings that of an image tower's, `ln_pre`. Texts of unequal
lengths lie one behind the other: no padding is computed. B texts of L tokens, T tokens in all, D width.
"""

from __future__ import annotations

import numpy as np

from jclip import kernels
from jclip.model.layers import MLP, Attention, LayerNorm, TokenEmbedding, put_tokens
from jclip.runtime import jt
from jclip.weights.text_configs import BertConfig

nn = jt.nn


class PackedAttention(Attention):
    """Attention within each of several sequences that lie one behind the other; of (B, L, D) without `sequences`, to all
    tokens, or to those that `keys` (B, L) marks 1."""

    def execute(self, x, sequences: kernels.Sequences | None = None, residual=None, keys=None):
        qkv = self.in_proj(x)
        if sequences is None and keys is None:
            return self.out_proj(kernels.attention(qkv, self.heads), residual=residual)
        qkv = qkv if jt.flags.use_cuda else qkv.float32()  # what the fused operators take
        if sequences is None:
            mixed = kernels.masked_attention(qkv, keys, self.heads)
        else:
            still = jt.zeros((sequences.rows, qkv.shape[1]), qkv.dtype)  # positions were added to the tokens themselves
            mixed = kernels.packed_attention(qkv, still, sequences, self.heads)
        return self.out_proj(mixed, residual=residual)


class PostNormBlock(nn.Module):
    """LN(x + Attn(x)), then LN(x + MLP(x))."""

    def __init__(self, config: BertConfig):
        width, std = config.width, 0.02
        self.attn = PackedAttention(width, config.heads, std=std, out_std=std)
        self.ln_1 = LayerNorm(width, config.norm_eps)
        self.mlp = MLP(width, config.mlp_width, config.activation, std=std, out_std=std)
        self.ln_2 = LayerNorm(width, config.norm_eps)

    def execute(self, x, sequences: kernels.Sequences | None = None, keys=None):
        x = self.ln_1(self.attn(x, sequences, residual=x, keys=keys))
        return self.ln_2(self.mlp(x, residual=x))


class PostNormTransformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, config: BertConfig):
        self.resblocks = nn.Sequential(*(PostNormBlock(config) for _ in range(config.layers)))


class BertTower(nn.Module):
    """(B, L) ids → (B, E). Padding is by id: rows end with tokens `pad`."""

    def __init__(self, config: BertConfig, embed_dim: int):
        width = config.width
        self.token_embedding = TokenEmbedding(config.vocab_size, width)
        self.positional_embedding = jt.init.gauss((config.positions, width), "float32", std=0.02)
        self.token_type_embedding = jt.init.gauss((config.types, width), "float32", std=0.02)
        self.ln_pre = LayerNorm(width, config.norm_eps)
        self.transformer = PostNormTransformer(config)
        self.text_projection = jt.init.gauss((width, embed_dim), "float32", std=width**-0.5)
        self.pad = config.pad

    def ends(self, ids: np.ndarray) -> np.ndarray:
        """(B, L) ids → (B,): where each row's last token stands that is no padding; 0 of an empty row."""
        said = ids != self.pad
        return np.where(said.any(axis=1), said.shape[1] - 1 - said[:, ::-1].argmax(axis=1), 0)

    def embed(self, ids):
        """(B, L) ids → (B, L, D) token embeddings, without positions."""
        return self.token_embedding(jt.array(ids))

    def execute(self, ids: np.ndarray, dense: bool = False, taps: dict | None = None):
        """(B, L) ids → (B, E) read at the first token; with `dense` also (B, L', E) of all tokens, L' of the longest text
        and 0 behind each text's end. Neither is normalised. taps: receives (B, L', D) after each block."""
        lengths = self.ends(ids) + 1
        said = ids[:, : lengths.max(initial=1)] != self.pad
        inside = np.arange(said.shape[1]) < lengths[:, None]
        sequences = None if said.all() else _sequences(said, inside)
        x = self._blocks(self._stem(ids[:, : said.shape[1]], inside, sequences), sequences, taps=taps)
        first = x[:, 0] if sequences is None else kernels.rows_of(x, sequences.firsts)
        pooled = jt.matmul(first, self.text_projection)
        return (pooled, _padded(self._projected(x), sequences)) if dense else pooled

    def encode_embeddings(
        self, x, ends: np.ndarray, dense: bool = False, insert: dict | None = None, taps: dict | None = None
    ):
        """As a call, from embeddings (B, L, D) without positions; ends: (B,) each row's last token that counts.

        insert: layer → (position, tokens (n, D) or (B, n, D)); before that layer the tokens from `position` on are replaced
        by these.
        """
        x = x[:, : int(ends.max()) + 1]
        inside = np.arange(x.shape[1]) <= ends[:, None]
        keys = None if inside.all() else jt.array(inside.astype(np.float32))
        x = self.ln_pre(x + (self.positional_embedding[: x.shape[1]] + self.token_type_embedding[0]))
        x = self._blocks(x, keys=keys, insert=insert, taps=taps)
        pooled = jt.matmul(x[:, 0], self.text_projection)
        if not dense:
            return pooled
        every = self._projected(x)
        return pooled, every if keys is None else every * keys.cast(every.dtype).unsqueeze(2)

    def _blocks(self, x, sequences=None, keys=None, insert: dict | None = None, taps: dict | None = None):
        """All blocks, one after the other; `taps` as of a call."""
        for i in range(len(self.transformer.resblocks)):
            if taps is not None:
                taps["text.stem" if i == 0 else f"text.block{i - 1}"] = _padded(x, sequences)
            if insert and i in insert:
                x = put_tokens(x, *insert[i])
            x = self.transformer.resblocks[i](x, sequences, keys)
        if taps is not None:
            taps[f"text.block{len(self.transformer.resblocks) - 1}"] = _padded(x, sequences)
        return x

    def _projected(self, x):
        return kernels.linear(x, self.text_projection.transpose(0, 1))

    def _stem(self, ids: np.ndarray, inside: np.ndarray, sequences: kernels.Sequences | None):
        """Embeddings of tokens, positions and the first type, normed: (B, L, D), or (T, D) of sequences."""
        if sequences is None:
            words, places = self.embed(ids), self.positional_embedding[: ids.shape[1]]
        else:
            words = kernels.rows_of(self.token_embedding.weight, jt.array(ids[inside].astype(np.int32)))
            places = kernels.rows_of(self.positional_embedding, sequences.arrays[1])
        return self.ln_pre(words + (places + self.token_type_embedding[0]))


def _sequences(said: np.ndarray, inside: np.ndarray) -> kernels.Sequences:
    """The tokens (B, L) that are `inside` a text, as sequences; `said`: those that are no padding. The first always counts."""
    said = said.copy()
    said[:, 0] = True
    places = np.broadcast_to(np.arange(said.shape[1]), said.shape)[inside].astype(np.int32)
    starts = np.cumsum([0, *inside.sum(axis=1)]).astype(np.int32)
    return kernels.Sequences(starts, places, said[inside].astype(np.float32), said.shape[1])


def _padded(x, sequences: kernels.Sequences | None):
    """(T, D) → (B, L, D) with 0 where no token is; of equal lengths as it is."""
    if sequences is None:
        return x
    rows = jt.concat([x, jt.zeros((1, x.shape[1]), x.dtype)], dim=0)
    return rows[sequences.spread[0]].reshape((len(sequences), -1, x.shape[1]))
