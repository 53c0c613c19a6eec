"""Columns of a gallery's rows as codes of their distinct values, kept in the cache: a filter reads no row twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jclip import paths
from jclip.data.gallery_store import FIXED, Store
from jclip.errors import CheckpointError
from jclip.readers import safetensors

FEW = 2000  # rows that are read each time


@dataclass(frozen=True)
class Column:
    """Distinct values, and of each row (N,) which one it has; None stands for a row without."""

    values: list[Any]
    codes: np.ndarray


def read_columns(store: Store, names: Sequence[str]) -> dict[str, Column]:
    """Those columns, from the cache where it has them. Raises `DataError` for a damaged row."""
    found = {name: column for name in names if (column := _kept(store, name))}
    if new := [name for name in names if name not in found]:
        for name, column in _made(store, new).items():
            found[name] = column
            if len(store) > FEW:
                _keep(store, name, column)
    return found


def _made(store: Store, names: Sequence[str]) -> dict[str, Column]:
    """Read row by row, all at once."""
    places: dict[str, dict[Any, int]] = {name: {} for name in names}
    codes = {name: np.empty(len(store), np.int32) for name in names}
    for number, row in enumerate(store.rows):
        for name in names:
            value = row[name] if name in FIXED else row["columns"].get(name)
            if not isinstance(value, str | int | float | None):
                value = json.dumps(value)
            own = places[name]
            codes[name][number] = own.setdefault((type(value), value), len(own))
    return {name: Column([value for _, value in places[name]], codes[name]) for name in names}


def _file(store: Store, name: str) -> Path:
    folder = paths.cache_dir("columns", store.manifest.table["rows"].removesuffix(".jsonl"))
    return folder / f"{name.encode().hex()[:200]}.safetensors"


def _kept(store: Store, name: str) -> Column | None:
    file = _file(store, name) if len(store) > FEW else None
    if not file or not file.is_file():
        return None
    try:
        held = {key: np.array(tensor.read()) for key, tensor in safetensors.read_sealed(file).items()}
        column = Column(json.loads(held["values"].tobytes()), held["codes"])
    except (CheckpointError, OSError, ValueError, KeyError):
        return None
    whole = column.codes.shape == (len(store),) and column.codes.max(initial=-1) < len(column.values)
    return column if whole else None


def _keep(store: Store, name: str, column: Column) -> None:
    values = np.frombuffer(json.dumps(column.values).encode(), np.uint8)
    safetensors.write(_file(store, name), {"values": values, "codes": column.codes})
