"""Galleries of seeded random features, written as `jclip embed` writes them, for tests that need no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.gallery_store import (
    DTYPES,
    Manifest,
    write_features,
    write_manifest,
    write_rows,
    write_skipped,
)
from jclip.data.preprocess import Preprocess

WIDTH = 23


def unit_rows(count: int, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    """(count, width) float32 of length one."""
    x = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def made_gallery(
    folder: Path,
    features: np.ndarray,
    rows: Sequence[Mapping[str, Any]] | None = None,
    dtype: str = "fp32",
    part: int = 50,
    identity: Sequence = ("0" * 64, {}, "fp32"),
    preprocess: Mapping[str, Any] | None = None,
    model: str = "none.safetensors",
) -> Path:
    """A gallery of these features in parts of `part` rows; rows: by default a path and a size each."""
    folder.mkdir(exist_ok=True)
    rows = rows or [
        {"path": f"photo {i}.png", "size": i, "mtime": i, "sha256": f"{i:064x}"} for i in range(len(features))
    ]
    blocks = [features[at : at + part] for at in range(0, len(features), part)]
    parts = [write_features(folder, [some], DTYPES[dtype], features.shape[1], len(some)) for some in blocks]
    table = {**write_rows(folder, rows), **write_skipped(folder, [])}
    columns = list(dict.fromkeys(name for row in rows for name in row.get("columns", {})))
    seen = dict(preprocess or Preprocess((32, 32)).to_dict())
    write_manifest(
        folder,
        Manifest(
            model, list(identity), seen, dtype, features.shape[1], str(folder.parent), len(rows), parts, table, columns
        ),
    )
    return folder
