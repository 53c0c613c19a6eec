"""An index by faiss beside exact search: recall, scores of the features, and an index older than its gallery."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jclip.data import gallery_store
from jclip.errors import DataError
from jclip.features import gallery_index
from jclip.functional.nearest import nearest

WIDTH = 32


def made(folder, rows=4000, seed=0):
    folder.mkdir(exist_ok=True)
    features = np.random.default_rng(seed).standard_normal((rows, WIDTH)).astype("f4")
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    parts = [
        gallery_store.write_features(folder, [half], np.dtype("<f2"), WIDTH, len(half))
        for half in np.split(features, 2)
    ]
    table = gallery_store.write_rows(folder, ({"path": f"{i}.jpg", "sha256": f"{i:064x}"} for i in range(rows)))
    table |= gallery_store.write_skipped(folder, [])
    gallery_store.write_manifest(folder, gallery_store.Manifest("none", [], {}, "fp16", WIDTH, "/", rows, parts, table))
    return gallery_store.open_store(folder)


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "pq"])
def test_what_an_index_finds_is_scored_exactly(kind, tmp_path):
    pytest.importorskip("faiss", reason="faiss is not installed: pip install '.[index]'")
    store = made(tmp_path / "g")
    built = gallery_index.build_index(store, kind)
    assert built.kind == kind and built.recall > 0.6
    queries = np.random.default_rng(1).standard_normal((50, WIDTH)).astype("f4")
    rows, scores = gallery_index.open_index(store).nearest(queries, 10)
    exact, wanted = nearest(store.parts, queries, 10)
    found = [len({*a} & {*b}) / 10 for a, b in zip(rows.tolist(), exact.tolist(), strict=True)]
    assert np.mean(found) > 0.5
    features = np.concatenate([np.asarray(p, "f4") for p in store.parts])
    np.testing.assert_allclose(scores, np.einsum("qe,qke->qk", queries, features[rows]), atol=1e-4)
    assert (np.diff(scores, axis=1) <= 0).all() and (scores[:, 0] <= wanted[:, 0] + 1e-5).all()


def test_auto_chooses_by_rows_and_memory(tmp_path):
    class Sized:
        manifest = gallery_store.Manifest("m", [], {}, "fp16", 512, "/", 0)

        def __init__(self, rows):
            self.rows = rows

        def __len__(self):
            return self.rows

    chosen = [gallery_index.chosen_kind(Sized(n), "auto", 24 << 30) for n in (10**4, 200_000, 10**6, 5 * 10**6)]
    assert chosen == ["exact", "exact", "hnsw", "pq"]
    assert gallery_index.chosen_kind(Sized(10**6), "auto", 4200 << 20) == "ivf"  # without room for the graph's links
    assert gallery_index.chosen_kind(Sized(10**6), "auto", 1 << 30) == "pq"


def test_an_index_that_is_older_than_its_gallery_is_refused(tmp_path):
    store = made(tmp_path / "g", 100)
    (tmp_path / "g" / gallery_index.FILE).write_bytes(b"x")
    facts = {"kind": "hnsw", "state": "of another time", "sha256": "", "recall": 1.0}
    (tmp_path / "g" / gallery_index.FACTS).write_text(json.dumps(facts))
    with pytest.raises(DataError, match="is older than its gallery"):
        gallery_index.open_index(store)
    gallery_index.build_index(store, "exact")
    assert gallery_index.open_index(store) is None
