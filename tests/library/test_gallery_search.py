"""A gallery searched without a model: equal to NumPy over all rows, filters, near-duplicates, pages, background, re-ranking,
and damaged or foreign files in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jclip.cli import main
from jclip.data import row_columns
from jclip.data.gallery_store import open_store
from jclip.errors import ConfigError, DataError, UnknownName
from jclip.features import gallery_ranking
from jclip.features.gallery import Gallery, Search
from jclip.features.gallery_ranking import Ranking, parse_method
from jclip.functional.background import background
from jclip.functional.reranking import METHODS, Photos, rerank
from jclip.report.search_results import How, record_of, show_answer
from tests.made_galleries import WIDTH, made_gallery, unit_rows

ROWS = 131
QUERIES = unit_rows(7, seed=1)
RERANKINGS = ("expand,k=3,mix=0.6", "expand,spread=all", "reciprocal,candidates=40", "a3r,k=5", "querybank")


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    """Random rows, some of which stand twice: ties."""
    found = unit_rows(ROWS)
    found[90:100] = found[20:30]
    return found


@pytest.fixture(scope="module")
def gallery(tmp_path_factory, features) -> Gallery:
    columns = [{"year": str(1990 + i % 40), "city": ("Paris", "New York, NY", "=1+1")[i % 3]} for i in range(ROWS)]
    for i in range(0, ROWS, 10):
        del columns[i]["year"]
    rows = [
        {
            "path": f"{'ab'[i % 2]}/photo {i}.png",
            "size": 7 * i,
            "mtime": i,
            "sha256": f"{i:064x}",
            "columns": columns[i],
        }
        | ({"caption": f"caption {i}"} if i % 4 else {})
        for i in range(ROWS)
    ]
    return Gallery.open(made_gallery(tmp_path_factory.mktemp("made") / "g", features, rows))


def by_numpy(features: np.ndarray, query: np.ndarray, rows: np.ndarray | None = None) -> list[int]:
    rows = np.arange(len(features)) if rows is None else rows
    scores = features[rows].astype(np.float64) @ query.astype(np.float64)
    return rows[np.lexsort((rows, -scores.round(6)))].tolist()


def rows_of(found) -> list[int]:
    return [hit.row for hit in found.hits]


def test_search_is_the_sorted_product(gallery, features, close):
    for top in (1, 10, ROWS, 10 * ROWS):
        for query, found in zip(QUERIES, gallery.search_many(list(QUERIES), Search(top)), strict=True):
            assert rows_of(found) == by_numpy(features, query)[:top]
    hits = gallery.search(QUERIES[0], 5).hits
    close([hit.score for hit in hits], features[rows_of(gallery.search(QUERIES[0], 5))] @ QUERIES[0], "rounding")
    assert hits[0].path == f"{gallery.root}/{'ab'[hits[0].row % 2]}/photo {hits[0].row}.png"


def test_terms_add_up_and_pages_join(gallery, features, tmp_path, close):
    np.save(tmp_path / "mean.npy", (3 * QUERIES[2:3]).astype(np.float64))
    vector = 2 * features[5] - features[9] + QUERIES[2]
    want = by_numpy(features, vector / np.linalg.norm(vector))
    terms = ["2:row:5", "-", "row:9", "+", f"@{tmp_path}/mean.npy"]
    assert rows_of(gallery.search(terms, ROWS)) == want
    pages = [rows_of(gallery.search(terms, 50, page=page)) for page in (1, 2, 3, 4)]
    assert [row for page in pages for row in page] == want and [len(page) for page in pages] == [50, 50, 31, 0]
    assert gallery.search(terms).query == " ".join(terms)


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        (["year>=2020"], lambda i: i % 10 and 1990 + i % 40 >= 2020),
        (["year!=1991"], lambda i: not i % 10 or i % 40 != 1),
        (["city=new york, ny", "year < 2000"], lambda i: i % 3 == 1 and i % 10 and i % 40 < 10),
        (["path~a/"], lambda i: i % 2 == 0),
        (["city==" "=1+1"], lambda i: i % 3 == 2),
        (["caption!~caption"], lambda i: i % 4 == 0),
        (["size>700"], lambda i: 7 * i > 700),
    ],
)  # fmt: skip
def test_filters_act_before_the_best_are_taken(gallery, features, where, holds):
    rows = np.array([i for i in range(ROWS) if holds(i)])
    assert rows_of(gallery.search(QUERIES[1], 12, where=where)) == by_numpy(features, QUERIES[1], rows)[:12]


def test_filters_that_leave_nothing_or_know_no_column(gallery):
    for where, error, said in (
        (["year>3000"], DataError, "no row meets year>3000: none of 131 is left"),
        (["yaer=1"], UnknownName, "did you mean 'year'"),
        (["year"], ConfigError, "must be COLUMN"),
        (["__import__('os')"], ConfigError, "must be COLUMN"),
    ):
        with pytest.raises(error, match=said):
            gallery.search(QUERIES[0], where=where)
    with pytest.raises(ConfigError, match="must be a list of conditions"):
        gallery.search(QUERIES[0], where="year>3000")


def test_columns_are_kept_and_made_again_where_they_are_damaged(gallery, monkeypatch):
    monkeypatch.setattr(row_columns, "FEW", 10)
    store = open_store(gallery.store.folder)
    made = row_columns.read_columns(store, ["year", "size"])
    file = row_columns._file(store, "year")
    assert file.is_file()
    with monkeypatch.context() as patch:
        patch.setattr(row_columns, "_made", None)  # not asked again
        again = row_columns.read_columns(store, ["year", "size"])
    assert all(again[n].values == made[n].values and (again[n].codes == made[n].codes).all() for n in made)
    file.write_bytes(file.read_bytes()[:-3])
    assert row_columns.read_columns(store, ["year"])["year"].values == made["year"].values


def test_equal_values_of_two_types_stay_apart(tmp_path, features):
    values = [True, 1, 1.0, "1", None, [1]]
    rows = [{"path": str(i), "columns": {"x": v}} for i, v in enumerate(values)]
    column = row_columns.read_columns(open_store(made_gallery(tmp_path / "g", features[:6], rows)), ["x"])["x"]
    assert [type(column.values[code]) for code in column.codes] == [bool, int, float, str, type(None), str]


@pytest.mark.parametrize("most", [0.2, 0.5, 0.98])
@pytest.mark.parametrize("rerank", ["none", "expand"])
def test_near_duplicates_are_hidden_behind_the_better_one(gallery, features, most, rerank):
    ranking = Ranking(parse_method(rerank))
    order = rows_of(gallery.search(QUERIES[3], ROWS, ranking=ranking))
    for top in (4, ROWS):
        kept: dict[int, int] = {}  # row → what it hides
        for row in order:
            near = next((other for other in kept if features[row] @ features[other] > most), None)
            if near is not None:
                kept[near] += 1
            elif len(kept) < top:
                kept[row] = 0
        found = gallery.search(QUERIES[3], top, unique=most, ranking=ranking)
        assert {hit.row: hit.hidden for hit in found.hits} == kept and rows_of(found) == [*kept]
        assert [photo.get("hidden", 0) for photo in record_of(found, How())["photos"]] == [*kept.values()]
        assert ("hidden" in show_answer(found, How()).split("\n")[0]) == any(kept.values())
    assert sum(kept.values()) == ROWS - len(kept) >= 10


def test_background_by_hand():
    """Median 3, median distance 1: deviation 1.4826; of two scores in a hundred rows the line is that of one in a hundred."""
    scores = np.array([1, 2, 3, 4, 5] * 5, np.float64)
    ground = background(scores, 100)
    assert (ground.middle, round(ground.deviation, 4), round(ground.line, 4)) == (3.0, 1.4826, 2.3263)
    assert ground.above(np.array([3 + 1.4826 * 2.33, 3 + 1.4826 * 2.32])).tolist() == [True, False]
    assert background(np.append(scores, np.nan), 100, line=1.0) == background(scores, 100, line=1.0)
    few = background(scores[:10], 10)
    assert few.deviation == 0 and few.above(scores).all() and not few.z(scores).any()


def test_only_what_stands_out_with_cut(gallery, features):
    query = features[3]
    found = gallery.search(query, ROWS)
    scores = features @ query
    middle = np.median(scores)
    z = (scores - middle) / (1.4826 * np.median(np.abs(scores - middle)))
    above = [row for row in by_numpy(features, query) if z[row] >= found.background.line]
    assert 0 < len(above) < 10 and rows_of(gallery.search(query, ROWS, cut=True)) == above
    assert [hit.row for hit in found.hits if hit.above] == above
    assert len(gallery.search(query, ROWS, cut=True, line=-100.0).hits) == ROWS


@pytest.mark.parametrize("text", RERANKINGS)
def test_reranked_as_the_methods_do(gallery, features, text, close):
    method, bank = parse_method(text), unit_rows(9, seed=2)
    assert isinstance(method, METHODS[text.split(",")[0]])
    ranking = Ranking(method, bank if text == "querybank" else None)
    want = rerank(method, QUERIES, Photos(features), bank)
    found = list(gallery.search_many(list(QUERIES), Search(ROWS, ranking=ranking)))
    for order, own in zip(want.tolist(), found, strict=True):
        assert rows_of(own) == order
    assert all(own.uses_other_queries == (text == "expand,spread=all") for own in found)
    close([hit.score for hit in found[0].hits], features[rows_of(found[0])] @ QUERIES[0], "rounding")


def test_queries_that_depend_on_each_other_are_not_too_many(gallery, monkeypatch):
    ranking = Ranking(parse_method("expand,spread=all"))
    monkeypatch.setattr(gallery_ranking, "MOST_ORDERS", 2 * ROWS)
    assert len(list(gallery.search_many(list(QUERIES[:2]), Search(3, ranking=ranking)))) == 2
    with pytest.raises(ConfigError, match=f"3 queries that depend on each other and {ROWS} photos are too many"):
        list(gallery.search_many(list(QUERIES[:3]), Search(3, ranking=ranking)))


def test_candidates_alone_are_sorted_anew(gallery, features):
    method = parse_method("reciprocal,candidates=30")
    rows = np.arange(0, ROWS, 2)
    own = gallery.search(QUERIES[4], 10, where=["path~a/"], ranking=Ranking(method, candidates=30))
    best = np.array(by_numpy(features, QUERIES[4], rows)[:30])
    (order,) = rerank(method, QUERIES[4:5], Photos(features[best]))
    assert rows_of(own) == best[order][:10].tolist()
    with pytest.raises(ConfigError, match="compares all 131 photos.*--candidates 131"):
        gallery.search(QUERIES[4], ranking=Ranking(parse_method("expand,spread=all"), candidates=30))
    with pytest.raises(ConfigError, match="needs training captions"):
        Ranking(parse_method("querybank"))


@pytest.mark.parametrize("flips", ["max", "mean"])
def test_mirrored_candidates_count(gallery, features, monkeypatch, flips):
    mirrored, asked = unit_rows(ROWS, seed=3), []

    def given(self, rows):
        asked.append(rows)
        return mirrored[rows]

    monkeypatch.setattr(Gallery, "_mirrored", given)
    found = gallery.search(QUERIES[5], 15, ranking=Ranking(flips=flips, candidates=20))
    best = np.array(by_numpy(features, QUERIES[5])[:20])
    (order,) = rerank(parse_method("none"), QUERIES[5:6], Photos(features[best], mirrored[best], flips))
    assert rows_of(found) == best[order][:15].tolist() and asked[0].tolist() == sorted(best.tolist())


def test_wrong_features_and_rows_are_refused(gallery, tmp_path, features):
    np.save(tmp_path / "wide.npy", np.ones(WIDTH + 1))
    np.save(tmp_path / "text.npy", np.array(["a"] * WIDTH))
    np.save(tmp_path / "nan.npy", np.full(WIDTH, np.nan))
    np.save(tmp_path / "object.npy", np.array([{}], object), allow_pickle=True)
    for terms, said in (
        (["row:131"], r"row:131 must be in \[0, 130\]"),
        ([f"@{tmp_path}/wide.npy"], "must hold 23 finite numbers"),
        ([f"@{tmp_path}/text.npy"], "must hold numbers"),
        ([f"@{tmp_path}/nan.npy"], "got NaN"),
        ([f"@{tmp_path}/object.npy"], "cut or damaged"),
        ([f"@{tmp_path}/none.npy"], "No such file"),
    ):
        with pytest.raises(DataError, match=said):
            gallery.search(terms)
    with pytest.raises(ConfigError, match="cancel each other"):
        gallery.search(["row:3", "-", "row:3"])
    with pytest.raises(DataError, match="not all 0, got zeros"):
        gallery.search(np.zeros(WIDTH, np.float32))
    for options, said in ((dict(top=0), "at least 1"), (dict(page=0), "at least 1"), (dict(unique=1.5), "cosine in")):
        with pytest.raises(ConfigError, match=said):
            gallery.search(QUERIES[0], **options)


def test_damaged_features_are_named_and_do_not_bend_the_background(tmp_path, features):
    broken = features.copy()
    broken[77] = np.nan
    gallery = Gallery.open(made_gallery(tmp_path / "g", broken))
    with pytest.raises(DataError, match=r"row 77 holds NaN or infinite numbers: .*embed the photos again"):
        gallery.search(QUERIES[0])
    with pytest.raises(DataError, match=r"row 77 of .*got NaN or infinity"):
        gallery.search("row:77")
    found = gallery.search(QUERIES[0], where=["size<77"])
    assert np.isfinite(found.background.deviation) and np.isfinite([hit.z for hit in found.hits]).all()


def test_an_index_older_than_its_gallery_is_refused(tmp_path, features):
    folder = made_gallery(tmp_path / "g", features)
    (folder / "index.json").write_text(json.dumps({"kind": "hnsw", "state": "0" * 64, "sha256": "0" * 64}))
    with pytest.raises(DataError, match="older than its gallery: build it again with `jclip index"):
        Gallery.open(folder).search(QUERIES[0])
    assert rows_of(Gallery.open(folder).search(QUERIES[0], exact=True)) == by_numpy(features, QUERIES[0])[:10]


def test_a_moved_gallery_needs_no_computing(tmp_path, features):
    folder = made_gallery(tmp_path / "g", features)
    assert Gallery.open(folder, root=tmp_path / "new").path_of(3) == f"{tmp_path}/new/photo 3.png"


def test_a_tars_photo_is_opened_in_its_place(tmp_path, features):
    row = {"path": "x.tar", "member": {"name": "d/1.jpg", "at": 512}, "size": 9, "mtime": 0, "sha256": "0" * 64}
    gallery = Gallery.open(made_gallery(tmp_path / "g", features[:1], [row]))
    assert gallery.path_of(0) == f"{tmp_path}/x.tar::d/1.jpg"
    assert gallery.photo_at(0) == f"{tmp_path}/x.tar\x00512:9:raw\x00d/1.jpg"


def test_a_stored_row_answers_without_jittor(gallery):
    """In a process of its own, as people start it."""
    code = "import sys; from jclip.cli import main; code = main(sys.argv[1:]); print('jittor' in sys.modules); sys.exit(code)"
    command = [
        sys.executable,
        "-c",
        code,
        "search",
        str(gallery.store.folder),
        "row:3",
        "-",
        "row:5",
        "--filepath-only",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent.parent)
    *paths, jittor = done.stdout.splitlines()
    assert jittor == "False" and not done.returncode, done.stderr
    assert paths == [hit.path for hit in gallery.search(["row:3", "-", "row:5"]).hits]


def test_options_that_do_not_go_together(gallery, tmp_path, capsys):
    folder = str(gallery.store.folder)
    (tmp_path / "q.txt").write_text("row:1\n")
    for options, said in (
        (["row:1", "--queries", f"{tmp_path}/q.txt"], "got both"),
        (["row:1", "--null"], "beside --filepath-only"),
        (["row:1", "--rerank", "querybank"], "must stand together"),
        (["row:1", "--bank", f"{tmp_path}/q.txt"], "must stand together"),
        (["row:1", "--out", "x.xlsx"], "one of .csv"),
        (["row:1", "--sheet", "x.pdf"], "a sheet is written as"),
        (["--out", "x.csv"], "needs a query"),
        (["row:1", "--dtype", "bf16"], "leave --family and --dtype out"),
        (["row:1", "-fruit"], "put - alone in front"),
        (["row:1", "--root", f"{tmp_path}/gone"], "--root must be the folder where the photos lie now"),
        (["--queries", f"{tmp_path}/none.txt"], "No such file"),
    ):
        assert main(["search", folder, *options]) == 2, options
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and said in err, err
    assert main(["search", str(tmp_path), "row:1", "--root", "x"]) == 2
    assert "--root is for galleries" in capsys.readouterr().err


def test_the_line_stands_where_the_background_begins(gallery, features, monkeypatch):
    found = gallery.search(features[3], 9)
    above = sum(hit.above for hit in found.hits)
    lines = show_answer(found, How()).split("\n")
    assert 0 < above < 9 and lines[0].split() == ["photo", "cosine", "z", "caption"]
    assert [i for i, line in enumerate(lines) if line.startswith("--- below: background")] == [2 + above]
    assert lines[2].split()[0] == "1" and lines[-1].split()[0] == "9"
    turned = replace(found, hits=found.hits[::-1])  # as a re-ranking may have it
    assert "stands out" in show_answer(turned, How()) and "--- below" not in show_answer(turned, How())
    assert "no photo stands out" in show_answer(replace(found, hits=()), How(cut=True))


def test_names_that_are_no_utf_8_stay_as_they_are(tmp_path, features, capfdbinary):
    name = os.fsdecode(b"caf\xe9.png")
    folder = made_gallery(tmp_path / "g", features[:1], [{"path": name}])
    assert main(["search", str(folder), "row:0", "--filepath-only", "--out", f"{tmp_path}/a.txt"]) == 0
    want = os.fsencode(f"{tmp_path}/") + b"caf\xe9.png\n"
    assert capfdbinary.readouterr().out == want == (tmp_path / "a.txt").read_bytes()
    for ending in ("json", "csv", "html"):
        option = "--sheet" if ending == "html" else "--out"
        assert main(["search", str(folder), "row:0", option, f"{tmp_path}/a.{ending}"]) == 0
    (found,) = json.loads((tmp_path / "a.json").read_text())
    assert found["photos"][0]["photo"] == f"{tmp_path}/{name}"
