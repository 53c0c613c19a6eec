"""An index over a gallery by faiss, for what exact search takes too long for; its answers are scored from the features."""

from __future__ import annotations

import json
import math
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.gallery_store import Store
from jclip.errors import DataError, SetupError, counted, notice
from jclip.functional.nearest import nearest, scores_of, take
from jclip.paths import compute_sha256, replacing, write_together
from jclip.readers.text import read_json

FILE, FACTS = "index.faiss", "index.json"
FEW, MANY = 200_000, 5_000_000  # rows up to which search is exact, and from which features are quantised
RESCORED = 8  # times as many candidates as answers are scored from the features
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 80, 128
SAMPLE = 1000  # rows that recall is measured on
TRAINED_PER_CELL = 64
FEWEST_VISITED = 8  # cells of a query; of fewer cells all
FEWEST = {"hnsw": 1, "ivf": 39, "pq": 39 * 16}  # rows that faiss asks for: 39 a cell, and a value of a code
ADDED = 1 << 16  # rows at once


@dataclass(frozen=True)
class Built:
    """A new index: its kind, bytes, and share of the ten nearest that it finds for 1,000 rows; None of exact search."""

    kind: str
    bytes: int = 0
    recall: float | None = None


class Index:
    """An index in memory, beside the features that its answers are scored from."""

    def __init__(self, faiss_index: Any, store: Store):
        self._index, self._store = faiss_index, store

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `jclip.functional.nearest.nearest`, but some rows may be missed; then the last ones are fewer good."""
        k = min(k, len(self._store))
        _, ids = self._index.search(np.ascontiguousarray(queries, np.float32), min(k * RESCORED, len(self._store)))
        if (ids < 0).any():  # too few cells were visited: exact search answers whole
            return nearest(self._store.parts, queries, k)
        scores = scores_of(self._store.parts, queries, ids)
        order = np.lexsort((ids, -scores), axis=1)[:, :k]
        return np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)


def chosen_kind(store: Store, kind: str = "auto", memory: int | None = None) -> str:
    """What `auto` stands for: exact up to 200,000 rows; above, a graph where it fits half of the memory; from 5 million on,
    or where it does not fit, cells, quantised where the features themselves do not fit."""
    if kind != "auto":
        return kind
    rows, width = len(store), store.manifest.width
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if memory is None else memory
    if rows <= FEW:
        return "exact"
    if rows < MANY and rows * (4 * width + 8 * HNSW_LINKS) <= memory / 2:
        return "hnsw"
    return "ivf" if rows < MANY and 4 * rows * width <= memory / 2 else "pq"


def build_index(store: Store, kind: str = "auto", k: int = 10) -> Built:
    """Builds and writes an index; of the kind `exact` an earlier one is removed.

    Raises `SetupError` without faiss, `DataError` for fewer rows than the kind needs.
    """
    kind = chosen_kind(store, kind)
    folder = store.folder
    if kind == "exact":
        for name in (FACTS, FILE):
            (folder / name).unlink(missing_ok=True)
        return Built(kind)
    if len(store) < FEWEST[kind]:
        raise DataError(
            f"{folder}: --kind {kind} needs at least {counted(FEWEST[kind], 'row')}, got {len(store)}: search exactly, "
            "with --kind exact"
        )
    faiss = _faiss()
    made = _trained(faiss, store, kind)
    for at in range(0, len(store), ADDED):
        made.add(take(store.parts, np.arange(at, min(at + ADDED, len(store)))))
    recall = _recall(Index(made, store), store, k)
    (folder / FACTS).unlink(missing_ok=True)
    with replacing(folder / FILE) as temporary:
        faiss.write_index(made, str(temporary))
    facts = {"kind": kind, "state": store.manifest.state, "sha256": compute_sha256(folder / FILE), "recall": recall}
    write_together(folder, {FACTS: json.dumps(facts, indent=1).encode() + b"\n"})
    _opened.clear()
    return Built(kind, (folder / FILE).stat().st_size, recall)


def _trained(faiss: Any, store: Store, kind: str) -> Any:
    rows, width = len(store), store.manifest.width
    product = faiss.METRIC_INNER_PRODUCT
    if kind == "hnsw":
        made = faiss.IndexHNSWFlat(width, HNSW_LINKS, product)
        made.hnsw.efConstruction, made.hnsw.efSearch = HNSW_BUILD, HNSW_SEARCH
        return made
    cells = max(1, min(4 * math.isqrt(rows), rows // 39 or 1))  # faiss asks for 39 rows a cell
    coarse = faiss.IndexFlatIP(width)
    if kind == "ivf":
        made = faiss.IndexIVFFlat(coarse, width, cells, product)
    else:
        codes = next(m for m in (64, 32, 16, 8, 4, 2, 1) if width % m == 0)
        bits = 8 if rows >= 39 * 256 else 4
        made = faiss.IndexIVFPQ(coarse, width, cells, codes, bits, product)
    count = min(rows, max(cells * TRAINED_PER_CELL, 256 * 39))
    made.train(take(store.parts, np.unique(np.linspace(0, rows - 1, count).astype(np.int64))))
    made.nprobe = min(cells, max(FEWEST_VISITED, cells // 8))
    return made


def _recall(index: Index, store: Store, k: int) -> float:
    sample = np.unique(np.linspace(0, len(store) - 1, min(SAMPLE, len(store))).astype(np.int64))
    queries = take(store.parts, sample)
    exact, _ = nearest(store.parts, queries, k)
    found, _ = index.nearest(queries, k)
    return float(np.mean([len({*a} & {*b}) / len(a) for a, b in zip(exact.tolist(), found.tolist(), strict=True)]))


_opened: dict[Path, tuple[str, Index]] = {}


def open_index(store: Store) -> Index | None:
    """The gallery's index; None where it has none.

    Raises `DataError` for one that is older than its gallery or damaged, `SetupError` without faiss.
    """
    if not (store.folder / FACTS).is_file():
        return None
    facts = read_json(store.folder / FACTS)
    state = facts.get("state") if isinstance(facts, dict) else None
    if state != store.manifest.state:
        raise DataError(
            f"{store.folder / FILE} is older than its gallery: build it again with `{_again(store)}`, or "
            "remove it with --kind exact"
        )
    if store.folder not in _opened or _opened[store.folder][0] != state:
        if not (store.folder / FILE).is_file() or compute_sha256(store.folder / FILE) != facts.get("sha256"):
            raise DataError(f"{store.folder / FILE} is cut or damaged: build it again with `{_again(store)}`")
        _opened[store.folder] = (state, Index(_faiss().read_index(str(store.folder / FILE)), store))
    return _opened[store.folder][1]


def _again(store: Store) -> str:
    return f"jclip index {shlex.quote(str(store.folder))}"


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise SetupError(
            "an index needs faiss: pip install 'jclip[index]', or search exactly with --kind exact"
        ) from None
    return faiss


def warn_low_recall(built: Built) -> None:
    """One line on stderr where an index misses much."""
    if built.recall is not None and built.recall < 0.9:
        notice(f"recall@10 is {built.recall:.3f}: choose another --kind; exact search misses nothing")


def warn_old_index(store: Store) -> None:
    """One line on stderr where the gallery has an index of a former state."""
    if not (store.folder / FACTS).is_file():
        return
    facts = read_json(store.folder / FACTS)
    if not isinstance(facts, dict) or facts.get("state") != store.manifest.state:
        notice(f"the index is older than the gallery now: build it again with `{_again(store)}`")
