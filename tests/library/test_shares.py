"""Photos embedded by several processes: one gallery of the same bytes, whoever did what, and whoever was killed."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import tarfile

import pytest

from jclip.cli import main
from jclip.data import gallery_inputs, gallery_store
from jclip.data.shapes import draw_scene
from jclip.data.shares import WHOLE, Share, share
from jclip.data.unfinished_gallery import what_is_missing
from jclip.errors import ConfigError, DataError
from jclip.features import cached, gallery_embedding, gallery_lock, part_arrays, photo_galleries
from jclip.features.source import ModelSource
from jclip.machine import available

MODEL = "shapes-tiny-rn"
PART = 8
KILLING = """
import os, signal
from pathlib import Path
import jclip.data.gallery_inputs as inputs
import jclip.features.gallery_embedding as embedding
import jclip.features.gallery_parts as parts
inputs.PART = 8
embedding.SAVE_SECONDS = 0.0
keep = parts.Parts.keep_piece
def killing(self, number, *rest):
    keep(self, number, *rest)
    marks = [Path(os.environ["MARKS"]) / f"{number}-{i}" for i in range(int(os.environ["KILLS"]))]
    left = [mark for mark in marks if not mark.exists()]
    if number == 1 and left:
        left[0].touch()
        os.kill(os.getpid(), signal.SIGKILL)
parts.Parts.keep_piece = killing
if os.environ.get("IN_VAIN"):
    parts.Parts.keep_piece = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("some photos, here")
    for number in range(29):
        draw_scene((number,), count=(1, 2)).render().save(folder / f"{number:02d} a.png")
    (folder / "17 a.png").write_bytes((folder / "03 a.png").read_bytes())  # a copy in another part
    (folder / "20 a.png").write_bytes(b"\x89PNG broken")
    return folder


@pytest.fixture(scope="module")
def source():
    return ModelSource(MODEL)


@pytest.fixture
def parts_of_8(monkeypatch):
    monkeypatch.setattr(gallery_inputs, "PART", PART)
    monkeypatch.setenv("JCLIP_BATCH", "3")


def made(photos, source, folder, part=WHOLE, **more):
    return gallery_embedding.embed(gallery_inputs.read_inputs([photos]), source, folder, share=part, **more)


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("order", [(1, 2), (2, 1), (3, 1, 2), (5, 4, 3, 2, 1)])
def test_shares_in_any_order_are_one_gallery_of_the_same_bytes(order, parts_of_8, photos, source, tmp_path):
    whole = made(photos, source, tmp_path / "whole")
    encoded = []
    for number in order:
        outcome = made(photos, source, tmp_path / "g", Share(number, len(order)))
        encoded.append(outcome.encoded)
        assert bool(outcome.missing) == (number != order[-1])
    assert (outcome.rows, outcome.duplicates, len(outcome.skipped)) == (28, 1, 1) == (
        whole.rows, whole.duplicates, len(whole.skipped),
    )  # fmt: skip
    assert sum(encoded) == whole.encoded == 28
    assert files_of(tmp_path / "g") == files_of(tmp_path / "whole")


def test_shares_bring_a_gallery_up_to_date(parts_of_8, photos, source, tmp_path):
    import shutil

    own = shutil.copytree(photos, tmp_path / "own")
    for folder in ("whole", "g"):
        made(own, source, tmp_path / folder)
    before = files_of(tmp_path / "g")
    late = made(own, source, tmp_path / "g", Share(2, 2))  # as in an array of more jobs than there are parts
    assert (late.rows, late.encoded, late.missing) == (28, 0, None) and files_of(tmp_path / "g") == before
    draw_scene((77,), count=(1, 2)).render().save(own / "00 b.png")
    with pytest.raises(ConfigError, match=r"holds a gallery of other photos \(1 to add, 0 to drop\): add --update"):
        made(own, source, tmp_path / "g", Share(1, 2))
    made(own, source, tmp_path / "whole", update=True)
    outcomes = [made(own, source, tmp_path / "g", Share(number, 2), update=True) for number in (1, 2)]
    assert [outcome.encoded for outcome in outcomes] == [1, 0] and outcomes[1].added == 1
    assert files_of(tmp_path / "g") == files_of(tmp_path / "whole")


def test_what_a_gallery_lacks_is_said(parts_of_8, photos, source, tmp_path):
    made(photos, source, tmp_path / "g", Share(6, 6))  # which has no part
    place = tmp_path / "g"
    assert what_is_missing(place) == (
        f"{place} is a gallery that is not finished: 0 of 4 parts are there, those of shard 1/6, 2/6, 3/6, 4/6 are not; run "
        "the same `jclip embed` with --shard 1/6 and the others"
    )
    with pytest.raises(DataError, match="those of shard 1/6"):
        photo_galleries.gallery_of_photos(place, MODEL)
    (place / ".shard-6-of-6.lock").write_bytes(b"")  # killed before it knew
    assert what_is_missing(place).endswith(
        "is a gallery that is not finished: give `jclip embed` the same command again"
    )
    for none in (photos, photos / "00 a.png", place / "absent"):
        assert what_is_missing(none) == ""


def test_one_process_finishes_what_shares_began(parts_of_8, photos, source, tmp_path):
    made(photos, source, tmp_path / "whole")
    made(photos, source, tmp_path / "g", Share(2, 3))
    assert made(photos, source, tmp_path / "g").encoded == 20
    assert files_of(tmp_path / "g") == files_of(tmp_path / "whole")


def test_other_photos_weights_and_a_share_twice_are_refused(parts_of_8, photos, source, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery_lock, "PATIENCE", 0.1)
    made(photos, source, tmp_path / "g", Share(1, 3))
    with pytest.raises(ConfigError, match="parts of another list of photos, of other weights"):
        made(photos, ModelSource("shapes-tiny-vit"), tmp_path / "g", Share(2, 3))
    fewer = gallery_inputs.read_inputs(sorted(photos.iterdir())[1:], str(photos))
    with pytest.raises(ConfigError, match="parts of another list of photos"):
        gallery_embedding.embed(fewer, source, tmp_path / "g", share=Share(2, 3))
    descriptor = os.open(tmp_path / "g" / ".shard-2-of-3.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=r"another process is writing shard 2/3 of .*g: wait for its end"):
            made(photos, source, tmp_path / "g", Share(2, 3))
        assert what_is_missing(tmp_path / "g").endswith(
            "2 of 4 parts are there, those of shard 2/3, 3/3 are not (2/3 at work); run the same `jclip embed` with --shard 3/3"
        )
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "1/0", "a/b", "1/2/3", "1/1000000"])
def test_a_share_is_a_number_and_a_count(text, capsys):
    assert main(["embed", "x", "--out", "y", "--shard", text]) == 2
    assert "must be a number and a count such as 2/8" in capsys.readouterr().err


def test_the_numbers_of_shares_are_all_parts_once():
    for parts in range(9):
        for count in range(1, 11):
            own = [n for i in range(1, count + 1) for n in share(f"{i}/{count}").of_numbers(parts)]
            assert sorted(own) == list(range(parts))


def test_shares_with_unfinished_parts_are_named(parts_of_8, photos, tmp_path, capsys):
    assert share("3/8").names_of([1, 9, 4, 12, 20]) == "2/8, 5/8"
    assert share("1/50").names_of(range(3, 12)) == "4/50, 5/50, 6/50, 7/50, 8/50 and 4 more"
    order = ["embed", str(photos), "--out", str(tmp_path / "g"), "--model", MODEL, "--shard"]
    assert main([*order, "2/3"]) == 0
    said = capsys.readouterr().out
    assert "encoded 8" in said and f"1 of 4 parts are finished in {tmp_path / 'g'}, those of 1/3, 3/3 are not" in said


@pytest.fixture
def killing(tmp_path, monkeypatch):
    """Other processes have parts of 8, and are killed after a piece of the second part as often as KILLS says."""
    (tmp_path / "sitecustomize.py").write_text(KILLING)
    (tmp_path / "marks").mkdir()
    settings = {"PYTHONPATH": str(tmp_path), "MARKS": str(tmp_path / "marks"), "KILLS": "2", "JCLIP_WORKERS": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def test_processes_and_a_killed_one_make_the_same_bytes(killing, parts_of_8, photos, source, tmp_path, capsys):
    made(photos, source, tmp_path / "whole")
    order = ["embed", str(photos), "--out", str(tmp_path / "g"), "--model", MODEL, "--processes", "2"]
    assert main(order) == 0
    said = capsys.readouterr()
    assert said.err.count("the process of share 2/2 was ended by signal 9: it is started again") == 2
    assert "28 photos" in said.out and "left out 1" in said.out
    whole, found = files_of(tmp_path / "whole"), files_of(tmp_path / "g")
    assert whole.pop("gallery.json").replace(str(source.checkpoint.path).encode(), MODEL.encode()) == found.pop(
        "gallery.json"
    )
    assert found == whole


def test_a_process_that_is_killed_with_nothing_done_ends_the_command(
    killing, parts_of_8, photos, tmp_path, capsys, monkeypatch
):
    order = ["embed", str(photos), "--out", str(tmp_path / "g"), "--model", MODEL, "--processes", "2"]
    monkeypatch.setenv("IN_VAIN", "1")
    assert main(order) == 2
    assert "by signal 9 again, with nothing done in between (out of memory?)" in capsys.readouterr().err
    monkeypatch.delenv("IN_VAIN")
    monkeypatch.setenv("KILLS", "0")
    assert main(order) == 0


def test_what_a_process_refuses_is_the_commands_line(photos, tmp_path, capsys):
    order = ["embed", str(photos), "--out", str(tmp_path / "g"), "--model", MODEL, "--processes", "2"]
    assert main([*order, "--shard", "1/2"]) == 2
    assert "--shard and --processes must not be given together" in capsys.readouterr().err
    assert main([*order, "--dtype", "fp16"]) == 2
    assert "fp16" in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_who_has_others_make_a_gallery_is_alone(parts_of_8, photos, source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gallery_lock, "PATIENCE", 0.1)
    order = ["embed", str(photos), "--out", str(tmp_path / "g"), "--model", MODEL]
    with gallery_lock.sharing(tmp_path / "g"):
        for way in (["--processes", "2"], ["--scheduler", "tcp://127.0.0.1:9"]):
            assert main([*order, *way]) == 2
            said = capsys.readouterr().err
            assert "another process is writing" in said and said.count("\n") == 1
        assert what_is_missing(tmp_path / "g") == ""
    assert made(photos, source, tmp_path / "g").rows == 28


def test_builds_that_made_features_are_counted(parts_of_8, photos, tmp_path, capsys, monkeypatch):
    import shutil

    own, place = shutil.copytree(photos, tmp_path / "own"), tmp_path / "g"
    order = ["embed", str(own), "--out", str(place), "--model", MODEL]
    assert main(order) == 0
    first = gallery_store.read_manifest(place).builds
    monkeypatch.setattr(cached, "build_digest", lambda: "after an upgrade")
    (own / "00 a.png").unlink()
    assert main([*order, "--update"]) == 0 and gallery_store.read_manifest(place).builds == first
    assert "builds" not in capsys.readouterr().err
    draw_scene((77,), count=(1, 2)).render().save(own / "00 b.png")
    assert main([*order, "--update"]) == 0
    assert gallery_store.read_manifest(place).builds == [*first, cached.build_name()] and len(first) == 1
    assert f"{place}: its features were made by 2 builds (versions of jclip" in capsys.readouterr().err


def test_a_dry_run_says_what_the_whole_takes(photos, tmp_path, capsys, monkeypatch):
    from jclip.features import gallery_estimate

    monkeypatch.setattr(gallery_estimate, "SECONDS", 0.2)
    monkeypatch.setattr(available, "memory", lambda: 6e7)
    order = ["embed", str(photos), "--out", str(tmp_path / "g"), "--model", MODEL, "--dry-run", "--processes", "3"]
    assert main(order) == 0
    said = capsys.readouterr().out
    assert "of 29; to start takes" in said and "bottleneck: " in said and "3 " in said.splitlines()[3]
    assert said.splitlines()[-1].startswith("won't fit: ") and "of memory" in said.splitlines()[-1]
    assert said.count("extrapolated from one process") == 1 and not (tmp_path / "g").exists()


def test_estimates_follow_from_what_was_measured():
    from jclip.features.gallery_estimate import Estimate, spoken

    found = Estimate((36_000,) * 10, 500, (0.001, 0.02, 0.05), 0.06, 0.11, 36.0, 700.0, 1500.0, 4)
    assert found.bottleneck == "the model"
    assert found.hours() == pytest.approx(0.01 + 100 * 0.061) and found.hours(2) == pytest.approx(0.01 + 100 * 0.0305)
    assert found.hours(8) == pytest.approx(0.01 + 100 * (0.001 + 0.11) / 4)  # as many processes as cores can feed
    assert dataclasses.replace(found, sizes=(360_000,)).hours(8) == found.hours()  # one part is one process's
    assert dataclasses.replace(found, sizes=(200_000, 100_000, 60_000)).hours(2) == pytest.approx(
        0.01 + 26 * 0.061 / 0.36
    )
    assert dataclasses.replace(found, load_cpu=30).cpu_seconds(2) == pytest.approx(60 + 360_000 * 0.111)
    assert found.disk == 2 * 360_000 * 1500
    assert [spoken(hours) for hours in (0.01, 0.5, 3.4, 100)] == ["36 s", "30 min", "3.4 h", "4.17 d"]


def test_tars_hold_as_many_photos_a_byte_as_the_first(photos, tmp_path):
    from jclip.features.gallery_estimate import sample_of

    some = sorted(photos.rglob("*.png"))[:7]
    for name, held in (("0.tar", some[:2]), ("1.tar", some[2:])):
        with tarfile.open(tmp_path / name, "w") as tar:
            for photo in held:
                tar.add(photo, photo.name)
    paths, count = sample_of(gallery_inputs.read_inputs([str(tmp_path / "0.tar"), str(tmp_path / "1.tar")]))
    sizes = [(tmp_path / name).stat().st_size for name in ("0.tar", "1.tar")]
    assert len(paths) == 2 and sizes[1] > sizes[0] and count == [2, round(2 * sizes[1] / sizes[0])]


SCENES = 25


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    for number in range(SCENES):
        draw_scene((number,), count=(1, 2)).render().save(folder / f"{number:02d}.png")
    (folder / "07.png").write_bytes(b"\x89PNG broken")
    return folder


def test_a_shard_without_a_part_has_nothing_to_do(scenes, tmp_path, capsys):
    order = ["tag", str(scenes), "--model", MODEL, "--classes", "a,b", "--out", str(tmp_path / "tags.csv")]
    assert main([*order, "--shard", "2/2"]) == 0
    assert capsys.readouterr().out == "shard 2/2 has nothing to do: the photos are 1 part, of other shards\n"
    assert not (tmp_path / "tags.csv").exists()


SMALL = """
import jclip.features.part_arrays as parts
import jclip.report.row_scores as rows
import jclip.report.window_files as windows
parts.PART = 8
rows.PART = 8
windows.PHOTOS_OF_PART = 8
"""


@pytest.fixture
def small_parts(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(SMALL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("JCLIP_WORKERS", "1")
    monkeypatch.setattr(part_arrays, "PART", 8)


def in_all_ways(order, out, tmp_path, last=3):
    """What a command writes alone, by two processes, and by shards, of which the last one ends the work."""
    found = []
    ways = [[], ["--processes", "2"], *(["--shard", f"{number}/{last}"] for number in range(1, last + 1))]
    for way in ways:
        assert main([*order, *way]) == 0, way
        if "--shard" in way and way[1] != f"{last}/{last}":
            assert not out.exists()
            continue
        found.append(out.read_bytes())
        out.unlink()
    return found


def test_tags_are_the_same_bytes_whoever_scored(small_parts, scenes, tmp_path, capsys, monkeypatch):
    own, init = [], part_arrays.PhotoParts.__init__  # the cache's folder is other tests' too: only its own is looked at
    monkeypatch.setattr(part_arrays.PhotoParts, "__init__", lambda *a: (init(*a), own.append(a[0].folder))[0])
    out = tmp_path / "tags.csv"
    order = ["tag", str(scenes), "--classes", "circle,square,star", "--model", MODEL, "--out", str(out)]
    assert len({*in_all_ways(order, out, tmp_path)}) == 1
    said = capsys.readouterr()
    assert "shard 1/3: 2 of 4 parts are finished" in said.out and "skipped 1 of" in said.err
    assert own and not any(folder.exists() for folder in own)  # what was kept is removed


def test_filled_values_are_the_same_bytes_whoever_encoded(small_parts, scenes, tmp_path):
    table, out = tmp_path / "t.csv", tmp_path / "filled.csv"
    rows = [f"{number:02d}.png,{'red' if number < 3 else ''}" for number in range(SCENES)]
    table.write_text("\n".join(["filepath,color", *rows]) + "\n")
    order = [
        "fill", str(table), "--out", str(out), "--model", MODEL, "--root", str(scenes), "--fill", "color", "--values",
        "color=red,blue,green", "--template", "a {color} thing", "--on-error", "skip",
    ]  # fmt: skip
    assert len({*in_all_ways(order, out, tmp_path)}) == 1
