"""Galleries: which photos are encoded, what is kept of them, and that a killed run goes on to the same bytes."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from jclip.cli import main
from jclip.data import gallery_inputs, gallery_store
from jclip.data.shapes import draw_scene
from jclip.errors import ConfigError, DataError
from jclip.features import gallery_changes, gallery_embedding, gallery_parts, half_models, photo_galleries
from jclip.features.source import ModelSource

MODEL = "shapes-tiny-rn"
ODD = [
    "comma, and space.png",
    "new\nline.png",
    "<b>bold</b> & 'quoted'.png".replace("/", ""),
    "ünï—漢字.png",
    "-dash.png",
]


@pytest.fixture(scope="module")
def source():
    return ModelSource(MODEL)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(7):
        draw_scene((number,), count=(1, 2)).render().save(folder / f"{number}.png")
    for number, name in enumerate(ODD, start=20):
        draw_scene((number,), count=(1, 2)).render().save(folder / name)
    return folder


@pytest.fixture
def photos(drawn, tmp_path):
    import shutil

    return Path(shutil.copytree(drawn, tmp_path / "photos"))


@pytest.fixture
def counted(monkeypatch):
    """Photos that went through the model."""
    seen = []
    batches = gallery_embedding.extraction.encoded_batches

    def counting(model, paths, *rest, **more):
        for at, features in batches(model, paths, *rest, **more):
            seen.extend(paths[i] for i in at)
            yield at, features

    monkeypatch.setattr(gallery_embedding.extraction, "encoded_batches", counting)
    return seen


def made(places, source, folder, **more):
    inputs = gallery_inputs.read_inputs([places] if isinstance(places, str | os.PathLike) else places)
    return gallery_embedding.embed(inputs, source, Path(folder), **more)


def files_of(folder):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def features_by_path(folder):
    store = gallery_store.open_store(folder)
    features = np.concatenate([np.asarray(part, np.float32) for part in store.parts])
    return {row["path"]: features[i] for i, row in enumerate(store.rows)}


def test_features_are_those_of_the_model(photos, source, tmp_path, close):
    made(photos, source, tmp_path / "g", dtype="fp32")
    found = features_by_path(tmp_path / "g")
    assert sorted(found) == sorted(p.name for p in photos.iterdir())
    paths = [str(photos / name) for name in found]
    wanted = np.concatenate(
        [f for _, f in gallery_embedding.extraction.encoded_batches(source.model, paths, views(source))]
    )
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    close(np.stack(list(found.values())), wanted, "features_normalised", "a gallery's features")


def views(source):
    from jclip.data.augment import Views

    return Views(source.preprocess)


def test_a_second_time_nothing_is_encoded_and_no_byte_changes(photos, source, tmp_path, counted):
    made(photos, source, tmp_path / "g")
    before, first = files_of(tmp_path / "g"), len(counted)
    outcome = made(photos, source, tmp_path / "g")
    assert first == 12 and len(counted) == 12 and outcome.encoded == 0
    assert files_of(tmp_path / "g") == before


def test_an_update_encodes_new_and_changed_photos_alone(photos, source, tmp_path, counted):
    made(photos, source, tmp_path / "g")
    counted.clear()
    (photos / "1.png").unlink()
    draw_scene((99,), count=(1, 1)).render().save(photos / "2.png")
    draw_scene((98,), count=(1, 1)).render().save(photos / "added.png")
    (photos / "copy of 3.png").write_bytes((photos / "3.png").read_bytes())
    with pytest.raises(ConfigError, match=r"3 to add, 2 to drop.*--update"):
        made(photos, source, tmp_path / "g")
    outcome = made(photos, source, tmp_path / "g", update=True)
    assert sorted(Path(p).name for p in counted) == ["2.png", "added.png"]
    assert (outcome.rows, outcome.encoded, outcome.added, outcome.dropped, outcome.duplicates) == (13, 2, 3, 2, 1)
    made(photos, source, tmp_path / "anew")
    assert files_of(tmp_path / "g") == files_of(tmp_path / "anew")


def test_one_of_a_hundred_more_is_one_encoded(source, tmp_path, counted):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(100):
        draw_scene((number,), count=(1, 1)).render().resize((16, 16)).save(folder / f"{number}.png")
    made(folder, source, tmp_path / "g")
    draw_scene((500,), count=(1, 1)).render().save(folder / "more.png")
    counted.clear()
    assert made(folder, source, tmp_path / "g", update=True).encoded == 1
    assert [Path(p).name for p in counted] == ["more.png"]


def test_broken_photos_are_listed_and_not_tried_again(photos, source, tmp_path, counted):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff no photo")
    (photos / "empty.jpg").write_bytes(b"")
    outcome = made(photos, source, tmp_path / "g")
    assert [path for path, _ in outcome.skipped] == ["broken.jpg", "empty.jpg"] and outcome.rows == 12
    listed = list(gallery_store.open_store(tmp_path / "g").skipped())
    assert [found["path"] for found in listed] == ["broken.jpg", "empty.jpg"]
    counted.clear()
    assert made(photos, source, tmp_path / "g").encoded == 0 and not counted


def test_a_photo_that_changes_while_it_is_read_is_left_out(photos, source, tmp_path, monkeypatch):
    inputs = gallery_inputs.read_inputs([photos])
    assert len(inputs.rows) == 12  # read now
    draw_scene((77,), count=(1, 1)).render().save(photos / "4.png")  # between the list and the model
    draw_scene((78,), count=(1, 1)).render().save(photos / "late.png")
    outcome = gallery_embedding.embed(inputs, source, tmp_path / "g")
    assert outcome.skipped == [("4.png", gallery_embedding.CHANGED)]
    outcome = made(photos, source, tmp_path / "g", update=True)
    assert outcome.encoded == 2 and not outcome.skipped
    made(photos, source, tmp_path / "anew")
    assert features_by_path(tmp_path / "g").keys() == features_by_path(tmp_path / "anew").keys()


def test_columns_of_a_table_come_along_and_stay(photos, source, tmp_path, capsys):
    table = tmp_path / "facts.csv"
    table.write_text(
        'name,year,caption\n0.png,2019,"a, b"\n"comma, and space.png",2020,<i>x</i>\nabsent.png,1,x\n0.png,7,y\n'
    )
    inputs = gallery_inputs.read_inputs([photos], table=str(table))
    said = capsys.readouterr().err
    assert "photos that are not here: 1 row (first: line 4, 'absent.png')" in said and "line 5" in said
    gallery_embedding.embed(inputs, source, tmp_path / "g")
    draw_scene((98,), count=(1, 1)).render().save(photos / "added.png")
    made(photos, source, tmp_path / "g", update=True)
    rows = {row["path"]: (row["caption"], row["columns"]) for row in gallery_store.open_store(tmp_path / "g").rows}
    assert rows["0.png"] == ("a, b", {"year": "2019"}) and rows["comma, and space.png"] == (
        "<i>x</i>",
        {"year": "2020"},
    )
    assert rows["1.png"] == (None, {}) and rows["added.png"] == (None, {})
    assert gallery_store.open_store(tmp_path / "g").manifest.columns == ["year"]


def test_tars_keep_captions_and_facts_and_unpack_nothing(photos, source, tmp_path, close):
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for number in range(3):
            (tmp_path / "caption.txt").write_text(f"caption {number}")
            (tmp_path / "facts.json").write_text(json.dumps({"width": 64, "nested": {"a": 1}}))
            tar.add(photos / f"{number}.png", f"{number:09d}.png")
            tar.add(tmp_path / "caption.txt", f"{number:09d}.txt")
            tar.add(tmp_path / "facts.json", f"{number:09d}.json")
    made(tmp_path / "00000.tar", source, tmp_path / "g", dtype="fp32")
    made(photos, source, tmp_path / "plain", dtype="fp32")
    store, plain = gallery_store.open_store(tmp_path / "g"), features_by_path(tmp_path / "plain")
    assert [row["caption"] for row in store.rows] == ["caption 0", "caption 1", "caption 2"]
    assert [row["columns"] for row in store.rows] == [{"width": 64}] * 3
    for number, feature in enumerate(np.concatenate(store.parts)):
        close(feature, plain[f"{number}.png"], "features_normalised", "features of a tar's photos")


def test_hidden_tars_and_photos_are_left_alone(photos, source, tmp_path):
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        tar.add(photos / "1.png", "000.png")
    (photos / ".cache" / "deep").mkdir(parents=True)
    (photos / "shards").mkdir()
    for place in (".cache/deep/a.tar", "shards/.b.tar", "shards/c.tar"):
        (photos / place).write_bytes((tmp_path / "some.tar").read_bytes())
    (photos / ".cache" / "2.png").write_bytes((photos / "2.png").read_bytes())
    inputs = gallery_inputs.read_inputs([photos])
    named = [row["path"] for row in inputs.rows]
    assert named[-1] == "shards/c.tar" and len(named) == 13 and not any("/." in f"/{path}" for path in named)


def test_a_cut_tar_is_listed_with_what_stood_before(photos, source, tmp_path):
    with tarfile.open(tmp_path / "cut.tar", "w") as tar:
        for number in range(4):
            tar.add(photos / f"{number}.png", f"{number}.png")
    data = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 2])
    outcome = made(tmp_path / "cut.tar", source, tmp_path / "g")
    assert 0 < outcome.rows < 4 and len(outcome.skipped) == 1 and "tar" in outcome.skipped[0][1]


def test_another_type_is_refused_and_what_never_decoded_is_not_counted(photos, source, tmp_path, capsys):
    (photos / "broken.png").write_bytes(b"nothing")
    for given, stored in ((["--store", "fp32"], "fp32"), ([], "fp16")):
        place = tmp_path / stored
        assert main(["embed", str(photos), "--out", str(place), "--model", MODEL, *given]) == 0
        assert gallery_store.open_store(place).manifest.dtype == stored
    assert main(["embed", str(photos), "--out", str(tmp_path / "fp32"), "--update"]) == 0
    capsys.readouterr()
    assert main(["embed", str(photos), "--out", str(tmp_path / "fp32"), "--store", "fp16"]) == 2
    assert "stores fp32, and must go on so, got fp16" in capsys.readouterr().err
    (photos / "added.png").write_bytes((photos / "0.png").read_bytes())
    assert main(["embed", str(photos), "--out", str(tmp_path / "fp16")]) == 2
    assert "(1 to add, 0 to drop)" in capsys.readouterr().err


def test_another_model_is_refused(photos, source, tmp_path):
    made(photos, source, tmp_path / "g")
    with pytest.raises(ConfigError, match="must be used with the same weights"):
        made(photos, ModelSource("shapes-tiny-vit"), tmp_path / "g", update=True)


def test_a_changed_or_cut_part_is_refused(photos, source, tmp_path):
    made(photos, source, tmp_path / "g")
    part = next((tmp_path / "g").glob("features-*.npy"))
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    with pytest.raises(DataError, match="has changed since it was written"):
        made(photos, source, tmp_path / "g")
    part.write_bytes(data[:-2])
    with pytest.raises(DataError, match="cut"):
        gallery_store.open_store(tmp_path / "g")


def test_a_photo_listed_twice_counts_once(photos, source, tmp_path, capsys):
    (tmp_path / "list.txt").write_text(f"{photos}/0.png\n{photos}/1.png\n{photos}/0.png\n")
    outcome = made(tmp_path / "list.txt", source, tmp_path / "g")
    assert outcome.rows == 2 and "1 photo listed twice" in capsys.readouterr().err


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_a_killed_run_goes_on_to_the_same_bytes(stop, photos, source, tmp_path, monkeypatch, counted):
    monkeypatch.setenv("JCLIP_BATCH", "3")
    monkeypatch.setattr(gallery_inputs, "PART", 8)
    made(photos, source, tmp_path / "whole")
    counted.clear()
    monkeypatch.setattr(gallery_embedding, "SAVE_SECONDS", 0.0)
    saved = gallery_parts.Parts.keep_piece
    calls = []

    def killing(*arguments):
        calls.append(arguments)
        if len(calls) > stop:
            raise KeyboardInterrupt
        saved(*arguments)

    monkeypatch.setattr(gallery_parts.Parts, "keep_piece", killing)
    with pytest.raises(KeyboardInterrupt):
        made(photos, source, tmp_path / "g")
    monkeypatch.setattr(gallery_parts.Parts, "keep_piece", saved)
    counted.clear()
    made(photos, source, tmp_path / "g")
    assert len(counted) == 12 - (0, 3, 6, 8)[stop]  # parts of 8 and 4 photos, batches of 3, 3, 2 and 3, 1
    assert files_of(tmp_path / "g") == files_of(tmp_path / "whole")


def test_the_commands_from_photos_to_duplicates(photos, tmp_path, capsys):
    (photos / "copy.png").write_bytes((photos / "3.png").read_bytes())
    assert main(["embed", str(photos), "--out", str(tmp_path / "g"), "--model", MODEL]) == 0
    assert "13 photos (fp16, 128 numbers each)" in (said := capsys.readouterr().out) and "copies of another 1" in said
    assert main(["index", str(tmp_path / "g")]) == 0
    assert "exact search (chosen for 13 rows)" in capsys.readouterr().out
    options = ["--above", "0.999999", "--out", str(tmp_path / "d.json"), "--sheet", str(tmp_path / "d.html")]
    assert main(["duplicates", str(tmp_path / "g"), *options]) == 0
    rows = json.loads((tmp_path / "d.json").read_text())
    assert {Path(row["path"]).name for row in rows if row["same_bytes"]} >= {"3.png", "copy.png"}
    assert "copy.png" in (tmp_path / "d.html").read_text()


def test_only_the_image_tower_is_loaded(photos, tmp_path, monkeypatch):
    towers = []
    load = half_models.load_half
    monkeypatch.setattr(half_models, "load_half", lambda s, tower: towers.append(tower) or load(s, tower))
    made(photos, ModelSource(MODEL), tmp_path / "g")
    assert towers == ["vision"]


def test_a_folder_of_other_files_is_no_target(photos, tmp_path, capsys):
    before = sorted(p.name for p in photos.iterdir())
    (tmp_path / "file").touch()
    for place, said in ((photos, "a folder of its own"), (tmp_path / "file", "must be a folder")):
        assert main(["embed", str(photos), "--out", str(place), "--model", MODEL]) == 2
        assert said in capsys.readouterr().err
    assert sorted(p.name for p in photos.iterdir()) == before


def test_an_export_is_refused_before_the_work(photos, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    there = ["--export", str(tmp_path / "full")]
    assert main(["embed", str(photos), "--out", str(tmp_path / "g"), "--model", MODEL, *there]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "g").exists()


def test_an_update_says_that_the_index_is_older_now(photos, tmp_path, capsys):
    command = ["embed", str(photos), "--out", str(tmp_path / "g"), "--model", MODEL, "--update"]
    assert main(command) == 0
    state = gallery_store.open_store(tmp_path / "g").manifest.state
    (tmp_path / "g" / "index.json").write_text(json.dumps({"state": state}))
    assert main(command) == 0 and "older" not in capsys.readouterr().err
    (photos / "0.png").unlink()
    assert main(command) == 0 and "the index is older than the gallery now" in capsys.readouterr().err


def test_photos_can_be_searched_while_the_others_are_encoded(photos, counted, monkeypatch):
    monkeypatch.setattr(photo_galleries, "FIRST", 2)
    monkeypatch.setenv("JCLIP_BATCH", "2")
    monkeypatch.setattr(gallery_embedding, "SAVE_SECONDS", 0.0)
    seen, states = [], []
    for gallery in photo_galleries.growing_gallery(photos, MODEL, seen=lambda *both: seen.append(both)):
        states.append([gallery.path_of(row) for row in range(len(gallery))])
    whole = states[-1]
    assert [len(state) for state in states] == [2, 8, 12] == [*map(len, map(set, states))]
    assert all(state == whole[: len(state)] for state in states)
    assert sorted(counted) == sorted(whole)  # each once
    assert {total for _, total in seen} == {12} and max(seen) == (12, 12)
    again = [*photo_galleries.growing_gallery(photos, MODEL)]
    assert [len(gallery) for gallery in again] == [12, 12] and len(counted) == 12


def test_what_is_stopped_goes_on_where_it_was(photos, counted, monkeypatch):
    class Enough(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done >= 6:
            raise Enough

    monkeypatch.setattr(photo_galleries, "FIRST", 3)
    monkeypatch.setenv("JCLIP_BATCH", "1")
    monkeypatch.setattr(gallery_embedding, "SAVE_SECONDS", 0.0)
    with pytest.raises(Enough):
        for gallery in photo_galleries.growing_gallery(photos, MODEL, seen=stop):
            assert len(gallery) == 3
    kept = [len(gallery) for gallery in photo_galleries.growing_gallery(photos, MODEL)]
    assert kept == [3, 12]
    assert len(counted) <= 13 and len({*counted}) == 12  # what was under way when it was stopped, at most, again


def test_a_failure_leaves_no_empty_folder(source, tmp_path):
    (tmp_path / "no.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match="no photo decodes"):
        made(tmp_path / "no.tar", source, tmp_path / "g")
    assert not (tmp_path / "g").exists()


def test_a_damaged_gallery_says_what_to_do_and_the_cache_s_own_is_made_anew(photos, source, capsys):
    gallery = photo_galleries.gallery_of_photos(photos, MODEL, None)
    whole, kept = len(gallery), gallery.store.folder
    rows = next(kept.glob("rows-*.jsonl"))
    rows.write_bytes(rows.read_bytes()[:-5])
    with pytest.raises(DataError, match=f"was cut or replaced: remove {kept} and embed"):
        made(photos, source, kept)
    capsys.readouterr()
    assert len(photo_galleries.gallery_of_photos(photos, MODEL, None)) == whole
    assert "was cut or replaced; the photos are encoded again" in capsys.readouterr().err


def test_files_of_others_in_a_gallerys_folder_stay(photos, source, tmp_path):
    made(photos, source, tmp_path / "g")
    for name in ("features-train.npy", "rows.npy", "skipped-.jsonl", "features.npy", "notes.txt"):
        (tmp_path / "g" / name).write_text("mine")
    for name in (f".features-{'0' * 16}.npy.part", "..skipped.jsonl.part", ".skipped.jsonl", ".gallery.json.part"):
        (tmp_path / "g" / name).write_text("a killed run's")
    (photos / "0.png").unlink()
    made(photos, source, tmp_path / "g", update=True)
    kept = {path.name for path in (tmp_path / "g").iterdir() if path.read_bytes() == b"mine"}
    assert kept == {"features-train.npy", "rows.npy", "skipped-.jsonl", "features.npy", "notes.txt"}
    assert not [path for path in (tmp_path / "g").iterdir() if path.read_bytes() == b"a killed run's"]


def test_of_many_rows_one_part_at_a_time_is_compared(photos, source, tmp_path, counted, monkeypatch):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff no photo")
    made(photos, source, tmp_path / "g")
    monkeypatch.setattr(gallery_changes, "ROWS_IN_MEMORY", 0)
    counted.clear()
    (photos / "copy.png").write_bytes((photos / "3.png").read_bytes())
    with pytest.raises(ConfigError, match="holds a gallery of other photos: add --update"):
        made(photos, source, tmp_path / "g")
    assert made(photos, source, tmp_path / "g", update=True).duplicates == 1
    again = made(photos, source, tmp_path / "g")
    assert (again.rows, again.added, again.duplicates) == (13, 0, 1) and not counted
    (photos / "unreadable.jpg").symlink_to(photos / "nothing")
    (photos / "3.png").unlink()
    with pytest.raises(ConfigError, match="holds a gallery of other photos: add --update"):
        made(photos, source, tmp_path / "g")
