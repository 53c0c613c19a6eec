"""A table of text positions for another number of tokens."""

from __future__ import annotations

from typing import Literal

import numpy as np

from jclip.errors import ConfigError
from jclip.functional.positions import KEPT_ROWS, resample_linearly, stretch_fourfold

ContextMethod = Literal["auto", "truncate", "linear", "long-clip"]


def check_context(old: int, length: int, method: ContextMethod) -> None:
    """Raise `ConfigError` for a length that a table of `old` rows can't be brought to by this method."""
    if length < 3 or (length > old and method == "truncate"):
        raise ConfigError(f"a context of {old} can't be made {length} long by method {method}")
    longest = 4 * old - 3 * KEPT_ROWS
    if method == "long-clip" and (old < KEPT_ROWS + 2 or length != longest):
        wanted = f"{longest} tokens" if old >= KEPT_ROWS + 2 else f"at least {KEPT_ROWS + 2} tokens before"
        raise ConfigError(f"a context of {old} tokens must have {wanted} by method long-clip, got {length}")


def another_context(table: np.ndarray, length: int, method: ContextMethod) -> tuple[np.ndarray, str]:
    """(L, D) → (length, D), and how, in words: rows cut off, resampled linearly, or stretched as by Long-CLIP.

    "auto" cuts, and grows linearly.
    """
    if method == "long-clip":
        return stretch_fourfold(table), f"{len(table)} to {length}, long-clip"
    if length > len(table) or method == "linear":
        return resample_linearly(table, length), f"{len(table)} to {length}, linear"
    return table[:length], f"{len(table)} to {length}, truncated"
