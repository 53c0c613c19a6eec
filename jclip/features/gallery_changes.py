"""Whether a gallery that is there has the photos that were named, with few rows in memory where it has many. No Jittor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.gallery_inputs import Inputs
from jclip.data.gallery_store import Store
from jclip.errors import ConfigError
from jclip.features.gallery_merge import facts_of

ROWS_IN_MEMORY = 10**6  # that are compared at once; of more one part's at a time


def same_rows(old: Store, inputs: Inputs) -> bool:
    """Whether the gallery has just the rows that it would get now."""
    if len(old) > ROWS_IN_MEMORY:
        return _same_parts(old, inputs)
    now = _readable(old, inputs)
    absent = sorted(found["path"] for found in old.skipped() if not found.get("sha256"))
    return (
        old.manifest.root == inputs.root
        and len(now) == len(old)
        and absent == sorted(path for path, _ in inputs.skipped)
        and all(before == row for before, row in zip(old.rows, now, strict=True))
    )


def _same_parts(old: Store, inputs: Inputs) -> bool:
    """`same_rows` with one part's rows in memory at a time; the bytes of tars are read again where they then are encoded."""
    if old.manifest.root != inputs.root:
        return False
    lost = {found.get("sha256") for found in old.skipped()} - {None}
    before, absent = iter(old.rows), []
    for number in range(inputs.parts):
        part = inputs.part(number)
        absent += [path for path, _ in part.skipped]
        if any(row["sha256"] not in lost and row != next(before, None) for row in part.rows):
            return False
    unread = sorted(found["path"] for found in old.skipped() if not found.get("sha256"))
    return next(before, None) is None and sorted(absent) == unread


def _readable(old: Store, inputs: Inputs) -> list[dict[str, Any]]:
    """Without the bytes that did not decode before."""
    lost = {found.get("sha256") for found in old.skipped()} - {None}
    return [row for row in inputs.rows if row["sha256"] not in lost]


def of_others(old: Store, inputs: Inputs, folder: Path) -> ConfigError:
    """What is raised where a gallery holds other photos than those that were named."""
    if len(old) > ROWS_IN_MEMORY:
        return ConfigError(f"{folder} holds a gallery of other photos: add --update to bring it up to date")
    there, now = {facts_of(row) for row in old.rows}, {facts_of(row) for row in _readable(old, inputs)}
    return ConfigError(
        f"{folder} holds a gallery of other photos ({len(now - there)} to add, {len(there - now)} to drop): "
        "add --update to bring it up to date"
    )


def distinct_photos(store: Store) -> int:
    """How many photos of a gallery differ in their bytes, by 64 bits of their hashes."""
    prints = np.fromiter((int(row["sha256"][:16], 16) for row in store.rows), np.uint64, len(store))
    return len(np.unique(prints))
