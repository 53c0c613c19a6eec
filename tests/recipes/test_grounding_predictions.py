"""`jclip predict` with a run of grounding: boxes of a file's phrases, measured and drawn; what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jclip.cli import main
from jclip.data.box_files import read_box_file, write_box_file
from jclip.data.box_rows import BoxRow
from jclip.data.shape_sources import write_world
from jclip.functional.boxes import iou
from jclip.report.predictor import Predictor
from tests.tolerances import tolerance

SMOKE = Path(__file__).parents[2] / "configs" / "grounding" / "smoke.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs of grounding") / "a, b"
    assert main(["train", str(SMOKE), "optim.epochs=1", "--run", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("a world, of shapes")
    write_world(folder, 6, 3)
    return folder


def test_lines_and_results_hold_what_the_run_finds(run, world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = str(world / "boxes.jsonl")
    arguments = ["predict", str(run), file, "--root", str(world / "photos")]
    assert main([*arguments, "--out", "boxes.jsonl", "--sheet", "worst.png"]) == 0
    printed = capsys.readouterr().out
    assert "Acc@0.5" in printed and "boxes.jsonl" in printed and Image.open("worst.png").width > 192
    rows = read_box_file(file).rows
    lines = [json.loads(line) for line in Path("boxes.jsonl").read_text().splitlines()]
    assert [(line["id"], line["image"], line["phrase"]) for line in lines] == [(r.id, r.image, r.phrase) for r in rows]
    done = Predictor.load(run)
    for image in (rows[0].image, rows[-1].image):
        own = [line for line in lines if line["image"] == image]
        found = done.predict(world / "photos" / image, [line["phrase"] for line in own])
        for line, thing in zip(own, found, strict=True):
            assert np.allclose(line["predicted"], thing.box, atol=tolerance("found_again")) and 0 < line["present"] < 1
            assert line["iou"] == pytest.approx(float(iou(np.array(line["predicted"]), np.array(line["box"]))))
    assert main([*arguments, "--out", "boxes.json"]) == 0
    results = json.loads(Path("boxes.json").read_text())
    for line, result in zip(lines, results, strict=True):
        x1, y1, x2, y2 = line["predicted"]
        assert result["bbox"] == [x1, y1, x2 - x1, y2 - y1] and result["row"] == line["id"]
    capsys.readouterr()
    assert main(["measure-boxes", "boxes.json", file]) == 0
    again = capsys.readouterr().out.split("\n\n")[0]
    assert again in printed  # the same figures


def test_long_phrases_absent_things_turned_and_broken_photos(run, world, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    picture = Image.open(world / "photos" / read_box_file(world / "boxes.jsonl").rows[0].image)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.crop((0, 0, 64, 40)).save(photos / "turned.jpg", exif=exif)
    (photos / "broken.jpg").write_bytes((photos / "turned.jpg").read_bytes()[:400])
    rows = [
        BoxRow("turned.jpg", (50.0, 2.0, 62.0, 30.0), "the star", (64, 40), id=5),
        BoxRow("turned.jpg", None, "red " * 200, (64, 40), id=6),
    ]
    write_box_file(tmp_path / "x.jsonl", rows)
    out = tmp_path / "found.jsonl"
    arguments = ["predict", str(run), str(tmp_path / "x.jsonl"), "--root", str(photos), "--out", str(out)]
    assert main(arguments) == 0
    assert "1 of 2 phrases are longer than the text tower's 77 tokens: they are cut" in capsys.readouterr().err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["id"], line["iou"] is None) for line in lines] == [(5, False), (6, True)]
    plain = Image.fromarray(np.asarray(Image.open(photos / "turned.jpg")))
    assert np.allclose(
        lines[0]["predicted"], Predictor.load(run).predict(plain, "the star")[0].box, atol=tolerance("found_again")
    )
    write_box_file(tmp_path / "x.jsonl", [*rows, BoxRow("broken.jpg", (1.0, 2.0, 3.0, 4.0), "it", (64, 40), id=7)])
    before = out.read_bytes()
    assert main(arguments) == 2
    printed = capsys.readouterr().err.splitlines()
    assert "broken.jpg" in printed[-1] and out.read_bytes() == before
    assert main([*arguments, "--on-error", "skip"]) == 0
    assert len(out.read_text().splitlines()) == 2 and "broken.jpg" in capsys.readouterr().err


def test_what_is_no_file_of_phrases_is_one_line(run, world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = str(world / "boxes.jsonl")
    for arguments, said in (
        ([file], "there is no photo: scene_"),
        ([file, "--root", "none"], "the folder of photos must be there"),
        ([file, file], "name one file of photos and phrases"),
        ([], "name one file of photos and phrases"),
        ([str(world / "photos" / "none.png")], "can't be used to label photos without phrases"),
        ([str(world / "photos")], "can't be used to label photos without phrases"),
        ([str(world / "none.jsonl")], "there is no file"),
        ([file, "--top", "3"], "--top is of runs that label photos"),
        ([file, "--sort-into", "x"], "--sort-into is of runs that label photos"),
        ([file, "--out", "x.csv"], "boxes are written as .jsonl or .json"),
        ([file, "--out", file], "boxes.jsonl"),
    ):
        assert main(["predict", str(run), *arguments]) == 2, arguments
        printed = capsys.readouterr()
        assert said in printed.err and printed.err.count("\n") == 1 and not printed.out, (arguments, printed.err)
    assert [*tmp_path.iterdir()] == []
