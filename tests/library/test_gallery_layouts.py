"""clip-retrieval's layout: written, read again, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jclip.data import gallery_inputs, gallery_store
from jclip.data.shapes import draw_scene
from jclip.errors import ConfigError, DataError
from jclip.features import gallery_embedding, gallery_layouts, gallery_merge
from jclip.features.source import ModelSource

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install '.[parquet]'")
arrow = pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def source():
    return ModelSource("shapes-tiny-rn")


@pytest.fixture
def layout(source, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        draw_scene((number,), count=(1, 2)).render().save(folder / f"{number}, x.png")
    (tmp_path / "t.csv").write_text('name,year,caption\n"0, x.png",2019,a red star\n"3, x.png",2020,two moons\n')
    gallery_embedding.embed(gallery_inputs.read_inputs([folder], table=str(tmp_path / "t.csv")), source, tmp_path / "g")
    gallery_layouts.export_layout(gallery_store.open_store(tmp_path / "g"), tmp_path / "cr", source)
    return tmp_path / "cr"


def test_a_gallery_comes_back(layout, source, tmp_path, close):
    store = gallery_layouts.import_layout(layout, source, tmp_path / "back")
    before = gallery_store.open_store(tmp_path / "g")
    close(
        np.asarray(store.parts[0], "f4"), np.asarray(before.parts[0], "f4"), "stored_half", "a gallery that came back"
    )
    for ours, theirs in zip(store.rows, before.rows, strict=True):
        assert (ours["caption"], ours["columns"], ours["sha256"]) == (
            theirs["caption"],
            theirs["columns"],
            theirs["sha256"],
        )
        assert Path(store.manifest.root, ours["path"]).resolve() == Path(before.manifest.root, theirs["path"]).resolve()


def test_it_is_what_clip_retrieval_reads(layout, close):
    images, texts = (np.load(layout / n / f"{n}_0.npy") for n in ("img_emb", "text_emb"))
    table = parquet.read_table(layout / "metadata" / "metadata_0.parquet").to_pydict()
    assert images.dtype == np.float16 and images.shape == texts.shape == (5, 128)
    close(np.linalg.norm(images.astype("f4"), axis=1), np.ones(5), "stored_half", "lengths of stored features")
    assert table["caption"] == ["a red star", "", "", "two moons", ""] and all(
        map(Path.is_file, map(Path, table["image_path"]))
    )


def test_numbers_of_many_parts_sort_as_clip_retrieval_sorts_them(layout, source, tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir()
        for number in range(4):
            draw_scene((number, ord(name))).render().save(tmp_path / "photos" / name / f"{number}.png")
    monkeypatch.setattr(gallery_merge, "PART_ROWS", 1)
    gallery_embedding.embed(gallery_inputs.read_inputs([tmp_path / "photos"]), source, tmp_path / "many")
    many = gallery_store.open_store(tmp_path / "many")
    gallery_layouts.export_layout(many, tmp_path / "wide")
    files = sorted((tmp_path / "wide" / "img_emb").iterdir())
    assert [file.name for file in files] == [f"img_emb_{number:02d}.npy" for number in range(13)]
    assert np.array_equal(np.concatenate([np.load(file) for file in files]), np.concatenate(many.parts))
    tables = sorted((tmp_path / "wide" / "metadata").iterdir())
    named = [path for file in tables for path in parquet.read_table(file).column("image_path").to_pylist()]
    assert named == [str(tmp_path / "photos" / row["path"]) for row in many.rows]
    back = gallery_layouts.import_layout(tmp_path / "wide", source, tmp_path / "back")
    assert [row["sha256"] for row in back.rows] == [row["sha256"] for row in many.rows]


def test_features_of_absent_photos_are_taken(source, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "cr" / "img_emb").mkdir(parents=True)
    (tmp_path / "cr" / "metadata").mkdir()
    for number, count in enumerate((3, 4)):
        np.save(tmp_path / "cr" / "img_emb" / f"img_emb_{number}.npy", rng.standard_normal((count, 128)).astype("f2"))
        table = {"image_path": [f"gone/{number}-{i}.jpg" for i in range(count)], "NSFW": ["UNLIKELY"] * count}
        parquet.write_table(arrow.table(table), tmp_path / "cr" / "metadata" / f"metadata_{number}.parquet")
    store = gallery_layouts.import_layout(tmp_path / "cr", source, tmp_path / "g")
    assert len(store) == 7 and len(store.parts) == 2 and store.rows[3]["path"] == "1-0.jpg"
    assert store.manifest.root == str(tmp_path / "cr" / "gone")  # what holds all of them
    assert store.rows[3]["columns"] == {"NSFW": "UNLIKELY"} and len(set(store.rows.column("sha256"))) == 7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda cr: (cr / "metadata" / "metadata_0.parquet").unlink(), "must stand beside"),
        (lambda cr: (cr / "metadata" / "metadata_0.parquet").write_bytes(b"no table"), "must be a Parquet file"),
        (lambda cr: np.save(cr / "img_emb" / "img_emb_0.npy", np.ones((4, 128), "f2")), "a row for each of 4"),
        (lambda cr: np.save(cr / "img_emb" / "img_emb_0.npy", np.ones((5, 64), "f2")), "rows of 128 numbers"),
        (lambda cr: np.save(cr / "img_emb" / "img_emb_0.npy", np.full((5, 128), np.nan, "f2")), "finite numbers"),
        (lambda cr: (cr / "img_emb" / "img_emb_0.npy").unlink(), "got none"),
    ],
)
def test_what_is_wrong_is_said(change, said, layout, source, tmp_path):
    change(layout)
    with pytest.raises(DataError, match=said):
        gallery_layouts.import_layout(layout, source, tmp_path / "new")


def test_paths_are_those_of_the_gallery_before(layout, source, tmp_path):
    store = gallery_layouts.import_layout(layout, source, tmp_path / "back")
    assert store.manifest.root == str(tmp_path / "photos") and store.rows[3]["path"] == "3, x.png"


def test_nothing_is_written_over(layout, source, tmp_path):
    with pytest.raises(ConfigError, match="must be an empty folder"):
        gallery_layouts.export_layout(gallery_store.open_store(tmp_path / "g"), layout)
    with pytest.raises(ConfigError, match="must be empty or absent"):
        gallery_layouts.import_layout(layout, source, tmp_path / "g")
