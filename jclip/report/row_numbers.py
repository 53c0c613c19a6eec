"""Numbers of rows of several sources, counted over all of them. Imports nothing of weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def numbered(rows: Mapping[str, Sequence[Any]]) -> dict[str, range]:
    """Return for each source the numbers of its rows."""
    found, at = {}, 0
    for name, own in rows.items():
        found[name] = range(at, at + len(own))
        at += len(own)
    return found
