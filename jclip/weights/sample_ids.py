"""Ids of short texts, for trials of a text tower without its tokenizer."""

from __future__ import annotations

import numpy as np

from jclip.weights.text_configs import AnyText


def sample_ids(text: AnyText, rows: int, tokens: int = 6) -> np.ndarray:
    """Return ids (rows, context_length) of texts about that many tokens long, in the form in which the tower takes them."""
    length, last = text.context_length, text.vocab_size - 1
    ids = np.zeros((rows, length), np.int32)
    if text.kind == "clip":
        ids[:, min(tokens, length) - 1] = last if text.end is None else text.end
        return ids
    pad = getattr(text, "pad", 0)
    ids[:] = pad
    for row, own in enumerate(ids):  # of unequal lengths, which towers compute by operators of their own
        own[: min(tokens + row, length)] = 0 if pad else last
    return ids
