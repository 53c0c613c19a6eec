"""Long-CLIP's files: OpenAI's names, with two tables of text positions, of which each row is read from one.

Zhang et al., ECCV 2024, arXiv 2403.15378.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jclip.errors import CheckpointError
from jclip.functional.positions import KEPT_ROWS
from jclip.readers import LazyTensor

TABLE, TRAINED = "positional_embedding", "positional_embedding_res"
CONTEXT = 248  # tokens; the authors' code knows no other


def is_long_clip(names: Mapping[str, object]) -> bool:
    """Return whether these are the names of a file of Long-CLIP."""
    return TRAINED in names and TABLE in names


def joined(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return the tensors with one table, of the rows that the model reads: the first twenty of CLIP's own, the others of
    what Long-CLIP trained. Other files stay as they are.

    Raises `CheckpointError` for tables of different shapes.
    """
    if not is_long_clip(tensors):
        return dict(tensors)
    own, trained = tensors[TABLE], tensors[TRAINED]
    if own.shape != trained.shape:
        raise CheckpointError(f"{TRAINED} must have {TABLE}'s shape {own.shape}, got {trained.shape}")

    def read() -> np.ndarray:
        return np.concatenate([own.read()[:KEPT_ROWS], trained.read()[KEPT_ROWS:]])

    kept = {name: tensor for name, tensor in tensors.items() if name != TRAINED}
    return {**kept, TABLE: LazyTensor(own.shape, own.dtype, read)}


def parted(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Invert `joined`: return the tensors with both tables, equal ones."""
    return {**tensors, TRAINED: tensors[TABLE]}
