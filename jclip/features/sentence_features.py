"""Sentences encoded once, each with a feature at every token, kept without padding and cached by what made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jclip import paths
from jclip.errors import ConfigError, DataError, notice
from jclip.features.cached import keep, key_of, read_cached
from jclip.features.heads import check_directions
from jclip.features.source import ModelSource
from jclip.functional.directions import unit
from jclip.machine import work_meter
from jclip.postponed import jt

Stored = Literal["fp32", "fp16"]
PART = 8192  # distinct sentences whose features are kept together: a break loses those of one part
AT_ONCE = 256  # sentences in the text tower at once


@dataclass(frozen=True)
class SentenceFeatures:
    """Features of length one: of each sentence (N, E), read at its end token, and of all its tokens.

    tokens: (T, E), from the start token to the end token, of one distinct sentence after the other. starts, lengths: (N,)
    where those of each sentence are; the same for sentences that say the same. truncated: sentences that were cut.
    """

    sentences: np.ndarray
    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.sentences)

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features of the sentences `rows` (B,): (B, E) and (B, L, E) float32, 0 after each one's end, and (B, L) 1 before it.

        L is the length of the longest of them.
        """
        lengths = self.lengths[rows]
        places = np.arange(lengths.max(initial=0))
        mask = places < lengths[:, None]
        tokens = np.zeros((*mask.shape, self.tokens.shape[1]), np.float32)
        tokens[mask] = self.tokens[(self.starts[rows][:, None] + places)[mask]]
        return self.sentences[rows].astype(np.float32), tokens, mask.astype(np.int8)


def sentence_features(source: ModelSource, texts: Sequence[str], stored: Stored = "fp16") -> SentenceFeatures:
    """The features of `texts` by the model's text tower; equal ones are encoded once, those too long cut before their end
    token and counted on stderr.

    stored: the kind of number that is kept in memory and in the cache. The model is loaded only where the cache lacks some.
    Raises `DataError` for no texts, `ConfigError` for a model without a text tower.
    """
    if not texts:
        raise DataError("there are no captions to learn from: set captions to a file of them")
    if not source.has_text or source.config.text is None:
        raise ConfigError("captions need a model with a text tower: set model= to one")
    distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    named = list(distinct)
    parts = [_part(source, named[at : at + PART], stored) for at in range(0, len(named), PART)]
    sentences, tokens, lengths = (
        np.concatenate([part[name] for part in parts]) for name in ("sentences", "tokens", "lengths")
    )
    if truncated := sum(int(part["truncated"][0]) for part in parts):
        longest = source.config.text.context_length
        notice(f"{truncated} of {len(named)} captions are longer than {longest} tokens and were cut")
    rows = np.array([distinct[text] for text in texts])
    starts = np.cumsum([0, *lengths[:-1]])
    return SentenceFeatures(sentences[rows], tokens, starts[rows], lengths[rows].astype(np.int64), truncated)


def _part(source: ModelSource, texts: Sequence[str], stored: Stored) -> dict[str, np.ndarray]:
    """Arrays of distinct sentences, from the cache where it has them."""
    file = _file_of(source, texts, stored)
    names = ("sentences", "tokens", "lengths", "truncated")
    if (saved := read_cached(file, names)) is not None:
        return saved
    made = encode_captions(source, texts, stored)
    keep(file, made)
    return made


def _file_of(source: ModelSource, texts: Sequence[str], stored: Stored) -> Path:
    made_of = [source.text_identity, source.vocabulary_digest, "every token", stored, list(texts), "sealed"]
    return paths.cache_dir("features") / f"captions-{key_of(made_of)}.safetensors"


def encode_captions(source: ModelSource, texts: Sequence[str], stored: Stored) -> dict[str, np.ndarray]:
    """sentences (N, E), tokens (T, E), lengths (N,), truncated (1,) of texts; nothing is cached.

    Sentences of about the same length go through the tower together, cut at the longest one's end.
    """
    tokens = source.tokenize(list(texts), truncate=True)
    lengths = source.model.ends(tokens) + 1
    full = np.flatnonzero(lengths == tokens.shape[1])
    truncated = sum(_is_longer(source, texts[row]) for row in full)
    kind, width = {"fp16": np.float16, "fp32": np.float32}[stored], source.config.embed_dim
    starts = np.cumsum([0, *lengths[:-1]])
    sentences, every = np.zeros((len(texts), width), kind), np.zeros((int(lengths.sum()), width), kind)
    order = np.argsort(lengths, kind="stable")
    with jt.no_grad():
        starts_at = range(0, len(order), AT_ONCE)
        of = {"phase": "encoding texts", "weigh": lambda at: float(lengths[order[at : at + AT_ONCE]].sum())}
        for at in work_meter.some(starts_at, ("sentences", id(source.model)), **of):
            rows = order[at : at + AT_ONCE]
            ends, places = (x.float32().numpy() for x in source.model.encode_text(tokens[rows], dense=True))
            check_directions(ends, [texts[row] for row in rows])
            sentences[rows] = unit(ends)
            for row, own in zip(rows, places, strict=True):
                every[starts[row] : starts[row] + lengths[row]] = unit(own[: lengths[row]])
    if work_meter.running() and not every[-1].any():  # some were left out
        seen, lost = every[every.any(axis=1)], np.flatnonzero(~every.any(axis=1))
        every[lost] = work_meter.resembling(seen, lost)
        lost = np.flatnonzero(~sentences.any(axis=1))
        sentences[lost] = work_meter.resembling(sentences[sentences.any(axis=1)], lost)
    about = {"lengths": lengths.astype(np.int32), "truncated": np.array([truncated], np.int64)}
    return {"sentences": sentences, "tokens": every, **about}


def _is_longer(source: ModelSource, text: str) -> bool:
    """Whether the tower's context has no room for all of a text."""
    try:
        source.tokenize([text])
    except DataError:
        return True
    return False
