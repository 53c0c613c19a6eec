"""CLIP's text transformer: causal, read at the end-of-text token."""

from __future__ import annotations

import numpy as np

from jclip import kernels
from jclip.errors import ConfigError, DataError
from jclip.model.layers import LayerNorm, SharedStart, Transformer
from jclip.prompts.tokenizer import tokenize_for
from jclip.runtime import jt
from jclip.weights.variants import TextConfig

nn = jt.nn


class TokenEmbedding(nn.Module):
    """(B, L) ids → (B, L, D)."""

    def __init__(self, vocab_size: int, width: int):
        self.weight = jt.init.gauss((vocab_size, width), "float32", std=0.02)

    def execute(self, tokens):
        return self.weight[tokens]


class TextEncoder:
    """The text half of `CLIP`, which holds its parameters: OpenAI's files keep them beside the image tower, unprefixed.

    A mixin and not a module, so that `transformer`, `token_embedding`, … keep their names.
    """

    def _init_text(self, config: TextConfig, embed_dim: int, activation: str, eps: float) -> None:
        width = config.width
        self.token_embedding = TokenEmbedding(config.vocab_size, width)
        self.positional_embedding = jt.init.gauss((config.context_length, width), "float32", std=0.01)
        self.transformer = Transformer(config, activation, eps)
        self.ln_final = LayerNorm(width, eps)
        self.text_projection = jt.init.gauss((width, embed_dim), "float32", std=width**-0.5)

    def _text_config(self) -> TextConfig:
        if self.config.text is None:
            raise ConfigError("these weights are an image tower alone: they embed no texts")
        return self.config.text

    def tokenize(self, texts, truncate: bool = False) -> np.ndarray:
        """Texts → (B, L) ids in this model's vocabulary and context length. Raises `DataError` for one too long."""
        return tokenize_for(self._text_config(), texts, truncate)

    def embed(self, tokens):
        """(B, L) ids → (B, L, D) token embeddings, without positions."""
        return self.token_embedding(jt.array(tokens))

    def encode_text(self, tokens, dense: bool = False, taps: dict | None = None):
        """(B, L) ids → (B, E) read at each end-of-text token; with `dense` also (B, L', E) of all tokens.

        All rows are cut at the longest end-of-text in the batch, L' of them: attention is causal, so what stands after
        it can't matter. Neither result is normalised.
        """
        vocabulary = self._text_config().vocab_size
        ids = tokens.numpy() if isinstance(tokens, jt.Var) else np.asarray(tokens)
        if ids.max(initial=0) >= vocabulary:
            raise DataError(
                f"token {ids.max()} is beyond this model's vocabulary of {vocabulary}: use model.tokenize(texts)"
            )
        ends = ids.argmax(axis=1)
        return self.encode_text_embeddings(self.embed(ids[:, : ends.max() + 1]), ends, dense, taps=taps)

    def encode_text_embeddings(
        self,
        x,
        eot,
        dense: bool = False,
        insert: dict | None = None,
        taps: dict | None = None,
        shared: SharedStart | None = None,
    ):
        """`encode_text` from embeddings (B, L, D) without positions; `eot` (B,) holds each row's end-of-text position.

        insert: deep prompts, see `Transformer`. shared: how the rows begin alike, which is then computed once; without
        `dense` and `taps`.
        """
        length = x.shape[1]
        x = x + self.positional_embedding[:length]
        if shared:
            x = self.transformer(shared.once(x), causal=True, insert=insert, shared=shared)
            ends = jt.array(shared.at(eot).astype(np.int32))
            return jt.matmul(self.ln_final(x[ends]), self.text_projection)
        if taps is not None:
            taps["text.stem"] = x
        x = self.transformer(x, causal=True, insert=insert, taps=taps, name="text.")
        if dense:
            every = kernels.linear(self.ln_final(x), self.text_projection.transpose(0, 1))
            return _pick_rows(every, eot), every
        return jt.matmul(self.ln_final(_pick_rows(x, eot)), self.text_projection)


def _pick_rows(x, positions):
    """(B, L, D) and (B,) → (B, D): of each row the token at its position."""
    B, L, D = x.shape
    flat = np.arange(B) * L + np.asarray(positions)
    return x.reshape((B * L, D))[jt.array(flat.astype(np.int32))]
