"""An index by faiss beside exact search: recall, scores of the features, and an index older than its gallery."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jclip.cli import main
from jclip.data import gallery_store
from jclip.errors import DataError
from jclip.features import gallery_index
from jclip.features.gallery import Gallery
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
def test_what_an_index_finds_is_scored_exactly(kind, tmp_path, close):
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
    close(scores, np.einsum("qe,qke->qk", queries, features[rows]), "scores", "scores of an index")
    assert (np.diff(scores, axis=1) <= 0).all() and (scores[:, 0] <= wanted[:, 0] + 1e-5).all()


@pytest.mark.parametrize("kind", ["ivf", "pq"])
def test_a_kind_that_needs_more_rows_is_refused_before_the_work(kind, tmp_path):
    store = made(tmp_path / "g", 38)
    with pytest.raises(DataError, match=f"--kind {kind} needs at least [0-9]+ rows, got 38"):
        gallery_index.build_index(store, kind)
    assert gallery_index.open_index(store) is None


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "pq"])
def test_a_search_through_an_index_is_the_exact_one_where_it_sees_all(kind, tmp_path, capsys, monkeypatch, close):
    """The command and `Gallery.search`, pages, filters and cuts, with every row among the candidates."""
    pytest.importorskip("faiss", reason="faiss is not installed: pip install '.[index]'")
    monkeypatch.setattr(gallery_index, "FEWEST_VISITED", 700)
    monkeypatch.setattr(gallery_index, "RESCORED", 700)
    place = tmp_path / "g"
    made(place, 700)
    assert main(["index", str(place), "--kind", kind]) == 0
    assert f"{kind}, " in capsys.readouterr().out
    gallery = Gallery.open(place)
    asked = [{}, {"page": 3}, {"unique": 0.4}, {"cut": True, "line": 1.0}, {"where": ["path~1"]}, {"top": 300}]
    for row in (0, 333, 699):
        for options in asked:
            got, wanted = (gallery.search(f"row:{row}", **{"top": 5, **options, "exact": e}) for e in (False, True))
            assert [hit.row for hit in got.hits] == [hit.row for hit in wanted.hits]
            close([h.score for h in got.hits], [h.score for h in wanted.hits], "rounding", "cosines by an index")
    lines = []
    for more in ([], ["--exact"]):
        searched = []
        with monkeypatch.context() as patch:
            patch.setattr(gallery_index.Index, "nearest", counted(searched, gallery_index.Index.nearest))
            assert main(["search", str(place), "row:5", "+", "row:6", "--csv", *more]) == 0
        lines.append(capsys.readouterr().out)
        assert len(searched) == (0 if more else 1)
    assert lines[0] == lines[1] != ""


def counted(calls, function):
    """The function, and each call of it in `calls`."""

    def noted(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return noted


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
