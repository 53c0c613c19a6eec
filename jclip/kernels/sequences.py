"""Sequences of unequal lengths, one behind the other: no token of padding is computed, and every token keeps its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jclip.runtime import jt


@dataclass(frozen=True)
class Sequences:
    """B sequences of T tokens in all. Each has its first token and at least one that may be looked at.

    starts: (B + 1,) where each begins, T at the end. places: (T,) each token's row in a table of `rows` places, which says
    what it is in the whole sequence, whatever is left out of this one. keys: (T,) 0/1, which tokens may be looked at.
    first: of sequences that are a part of others, the number of the first one among these: dropout is drawn by it.
    """

    starts: np.ndarray
    places: np.ndarray
    keys: np.ndarray
    rows: int
    first: int = 0

    @classmethod
    def of(cls, places: Sequence[np.ndarray], keys: Sequence[np.ndarray], rows: int, first: int = 0) -> Sequences:
        """From each sequence's places (n,), of `rows` there are, and keys (n,) of 1 and 0."""
        starts = np.cumsum([0, *(len(own) for own in places)])
        whole = np.concatenate(places).astype(np.int32)
        return cls(starts.astype(np.int32), whole, np.concatenate(keys).astype(np.float32), rows, first)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def arrays(self) -> tuple:
        """starts, places and keys as Jittor arrays."""
        return jt.array(self.starts), jt.array(self.places), jt.array(self.keys)

    @cached_property
    def tokens(self):
        """(T,) int32: each token's number, by sequence and place: what dropout is drawn by."""
        return jt.array((np.repeat(self._numbers, self.lengths) * self.rows + self.places).astype(np.int32))

    @cached_property
    def firsts(self):
        """(B,) int32: where the first tokens are."""
        return jt.array(self.starts[:-1])

    @cached_property
    def first_tokens(self):
        """(B,) int32: the first tokens' numbers."""
        return jt.array((self._numbers * self.rows + self.places[self.starts[:-1]]).astype(np.int32))

    @property
    def _numbers(self) -> np.ndarray:
        return self.first + np.arange(len(self))

    @property
    def lengths(self) -> np.ndarray:
        """(B,)."""
        return np.diff(self.starts)

    @cached_property
    def spread(self) -> tuple:
        """Of a layout (B, N) of equal lengths: (B N,) int32 which token stands there, T where none does, and keys (B, N)."""
        lengths, longest = self.lengths, int(self.lengths.max())
        columns = np.arange(longest)
        inside = columns < lengths[:, None]
        index = np.where(inside, self.starts[:-1, None] + columns, len(self.places))
        keys = np.where(inside, np.append(self.keys, 0)[index], 0)
        return jt.array(index.ravel().astype(np.int32)), jt.array(keys.astype(np.float32))

    @cached_property
    def gathered(self):
        """(T,) int32: where each token stands in that layout."""
        lengths, longest = self.lengths, int(self.lengths.max())
        within = np.arange(len(self.places)) - np.repeat(self.starts[:-1], lengths)
        return jt.array((np.repeat(np.arange(len(self)), lengths) * longest + within).astype(np.int32))
