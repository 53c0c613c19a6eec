"""A share of work that is cut into parts: which parts one of several processes does. Parts never depend on their number."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass

from jclip.errors import quoted

MOST = 100_000  # shares
SHOWN = 5


@dataclass(frozen=True)
class Share:
    """Share `number` of `of`, counted from 1: every `of`-th part. ends: whether it may do what is left once all parts are
    finished."""

    number: int = 1
    of: int = 1
    ends: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether there is no other share."""
        return self.of == 1 and self.ends

    def of_numbers(self, parts: int) -> range:
        """The numbers of its parts, of `parts` in all."""
        return range(self.number - 1, parts, self.of)

    def names_of(self, parts: Iterable[int]) -> str:
        """The shares that have parts among these numbers: `2/8, 5/8 and 3 more`."""
        numbers = sorted({number % self.of + 1 for number in parts})
        shown = ", ".join(f"{number}/{self.of}" for number in numbers[:SHOWN])
        return f"{shown} and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else shown

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


WHOLE = Share()


def share(text: str) -> Share:
    """The type of the option `--shard`: 2/8."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]) <= MOST:
        raise argparse.ArgumentTypeError(
            f"must be a number and a count such as 2/8, the number in [1, count], got {quoted(text, 60)}"
        )
    return Share(int(found[1]), int(found[2]))
