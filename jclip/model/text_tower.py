"""The text half of a model: CLIP's own causal transformer, read at the end-of-text token, or a tower of another kind."""

from __future__ import annotations

import numpy as np

from jclip import kernels
from jclip.errors import ConfigError, DataError
from jclip.model.bert import BertTower
from jclip.model.layers import LayerNorm, SharedStart, TokenEmbedding, Transformer
from jclip.model.siglip import SigLIPText
from jclip.prompts.vocabularies import TextTokenizer, VocabularyFile
from jclip.runtime import jt
from jclip.weights.stored_vocabulary import check_takes_vectors, tokenizer_of
from jclip.weights.text_configs import AnyText

nn = jt.nn
TEXT_TOWERS = {"bert": BertTower, "siglip": SigLIPText}  # by kind; CLIP's own is no module, see below


class TextEncoder:
    """The text half of `CLIP`. Of CLIP's own kind it holds the parameters itself: OpenAI's files keep them beside the
    image tower, unprefixed; a tower of another kind is the module `text`.

    A mixin and not a module, so that `transformer`, `token_embedding`, … keep their names.
    """

    vocabulary: VocabularyFile | None = None  # None: CLIP's own
    _tokenizer: TextTokenizer | None = None

    def _init_text(self, config: AnyText, embed_dim: int, activation: str, eps: float) -> None:
        if config.kind in TEXT_TOWERS:
            self.text = TEXT_TOWERS[config.kind](config, embed_dim)
            return
        width = config.width
        self.token_embedding = TokenEmbedding(config.vocab_size, width)
        self.positional_embedding = jt.init.gauss((config.context_length, width), "float32", std=0.01)
        self.transformer = Transformer(config, activation, eps)
        self.ln_final = LayerNorm(width, eps)
        self.text_projection = jt.init.gauss((width, embed_dim), "float32", std=width**-0.5)

    def _text_config(self) -> AnyText:
        if self.config.text is None:
            raise ConfigError("these weights are an image tower alone: they embed no texts")
        return self.config.text

    @property
    def holds_text(self) -> bool:
        """Whether the text tower is CLIP's own kind, whose parameters the model holds itself."""
        return self._text_config().kind not in TEXT_TOWERS

    @property
    def causal(self) -> bool:
        """Whether a token depends on those before it alone, so that what follows a text's end can't matter."""
        return self.holds_text and self.config.text.causal

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of these weights, opened at first use. Raises `ConfigError` and `DataError` as `tokenizer_of`."""
        if self._tokenizer is None:
            self._tokenizer = tokenizer_of(self._text_config(), self.vocabulary)
        return self._tokenizer

    def tokenize(self, texts, truncate: bool = False) -> np.ndarray:
        """Texts → (B, L) ids in this model's vocabulary and context length. Raises `DataError` for one too long."""
        return self.tokenizer(texts, self._text_config().context_length, truncate)

    def ends(self, ids: np.ndarray) -> np.ndarray:
        """(B, L) ids → (B,): where each row's last token stands that counts; CLIP's texts are read there."""
        config, ids = self._text_config(), np.asarray(ids)
        if not self.holds_text:
            return self.text.ends(ids)
        return (ids if config.end is None else ids == config.end).argmax(axis=1)

    @property
    def word_vectors(self):
        """(V, D): the embedding of each token. Raises `ConfigError` where no vectors can stand beside them."""
        check_takes_vectors(self.config.text)
        return (self if self.holds_text else self.text).token_embedding.weight

    def embed(self, tokens):
        """(B, L) ids → (B, L, D) token embeddings, without positions."""
        return self.token_embedding(jt.array(tokens)) if self.holds_text else self.text.embed(tokens)

    def encode_text(self, tokens, dense: bool = False, taps: dict | None = None):
        """(B, L) ids → (B, E), of CLIP's tower read at each end-of-text token; with `dense` also (B, L', E) of all tokens.

        L': the longest text of the batch. Of a causal tower all rows are cut there: what stands after a text's end can't
        matter. Neither result is normalised. Raises `DataError` for an id beyond the vocabulary.
        """
        vocabulary = self._text_config().vocab_size
        ids = tokens.numpy() if isinstance(tokens, jt.Var) else np.asarray(tokens)
        if ids.max(initial=0) >= vocabulary:
            raise DataError(
                f"token {ids.max()} is beyond this model's vocabulary of {vocabulary}: use model.tokenize(texts)"
            )
        if not self.holds_text:
            return self.text(ids, dense=dense, taps=taps)
        ends = self.ends(ids)
        length = ends.max() + 1 if self.causal else ids.shape[1]
        return self.encode_text_embeddings(self.embed(ids[:, :length]), ends, dense, taps=taps)

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

        insert: deep prompts, see `Transformer`. shared: how the rows begin alike, which a causal tower computes once;
        without `dense` and `taps`. Raises `ConfigError` for a tower that takes no vectors in the place of tokens.
        """
        if not self.holds_text:
            check_takes_vectors(self.config.text)
            return self.text.encode_embeddings(x, np.asarray(eot), dense, insert=insert, taps=taps)
        if not self.causal:
            x, shared = self._padded(x), None
        length = x.shape[1]
        x = x + self.positional_embedding[:length]
        if shared:
            x = self.transformer(shared.once(x), causal=True, insert=insert, shared=shared)
            ends = jt.array(shared.at(eot).astype(np.int32))
            return jt.matmul(self.ln_final(x[ends]), self.text_projection)
        if taps is not None:
            taps["text.stem"] = x
        x = self.transformer(x, causal=self.causal, insert=insert, taps=taps, name="text.")
        if dense:
            every = kernels.linear(self.ln_final(x), self.text_projection.transpose(0, 1))
            return _pick_rows(every, eot), every
        return jt.matmul(self.ln_final(_pick_rows(x, eot)), self.text_projection)

    def _padded(self, x):
        """(B, L, D) → (B, context, D): embeddings with those of padding after them, which a tower that is not causal sees."""
        B, L, D = x.shape
        rest = self.config.text.context_length - L
        if not rest:
            return x
        pad = 0 if self.vocabulary is None else self.tokenizer.pad
        padding = self.token_embedding.weight[pad].reshape((1, 1, D)).expand((B, rest, D))
        return jt.concat([x, padding.cast(x.dtype)], dim=1)


def _pick_rows(x, positions):
    """(B, L, D) and (B,) → (B, D): of each row the token at its position."""
    B, L, D = x.shape
    flat = np.arange(B) * L + np.asarray(positions)
    return x.reshape((B * L, D))[jt.array(flat.astype(np.int32))]
