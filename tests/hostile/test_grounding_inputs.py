"""What people give grounding by mistake, through the commands that they type: one line, exit 2, and no file is changed."""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jclip.cli import main
from jclip.weights.checkpoint import random_arrays
from tests.hostile.test_box_files import Malicious
from tests.library.test_box_files import CONTAINERS, UNC, put
from tests.toys import SMALL_RESNET, SMALL_VIT, shapes_of

RUN = "shapes-tiny-ground"
GOOD = {"image": "a.png", "width": 64, "height": 48, "phrase": "the red one", "box": [4, 8, 40, 30]}
OLD = b"what stood there before"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Photos, a good file, and results of earlier commands, in a folder of an odd name that is the working one."""
    place = tmp_path / "my photos, new"
    (place / "photos").mkdir(parents=True)
    monkeypatch.chdir(place)
    for name in ("a.png", "b.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(
            place / "photos" / name
        )
    (place / "photos" / "broken.png").write_bytes((place / "photos" / "a.png").read_bytes()[:20])
    put(place / "good.jsonl", [GOOD], lines=True)
    for name in ("out.jsonl", "out.json", "unc_out.pth", "run.pth"):
        (place / name).write_bytes(OLD)
    return place


def rows(*changes: dict) -> list[dict]:
    return [GOOD, *({**GOOD, **change} for change in changes)]


ROWS = {  # what is wrong with a file of phrases, and what is said of it
    "outside": (rows({"box": [4, 8, 66, 30]}), "line 2: box must lie within the picture of 64 x 48 pixels"),
    "far outside": (rows({"box": [400, 300, 500, 400]}), "line 2: box must lie within the picture"),
    "negative": (rows({"box": [-5, 8, 20, 30]}), "line 2: box must lie within the picture"),
    "flipped": (rows({"box": [50, 40, 20, 30]}), "line 2: box must not be flipped"),
    "zero-sized": (rows({"box": [40, 8, 40, 30]}), "line 2: box must not be zero-sized"),
    "three numbers": (rows({"box": [4, 8, 30]}), "line 2: box must be four finite numbers"),
    "infinite": (rows({"box": [4, 8, 1e300, 30]}), "line 2: box must be four finite numbers"),
    "centres": (rows({"box": [0.5, 0.5, 0.2, 0.2]}), "flipped or leave the picture as xyxy, but fit as xywh"),
    "xywh as xyxy": (
        [{**GOOD, "box": [20, 20, 18, 15 + n]} for n in range(5)],
        "5 of 5 boxes .* declare it",
    ),
    "xyxy as xywh": ([{**GOOD, "box": [30, 20, 50, 40], "box_format": "xywh"}] * 3, "3 of 3 boxes .* but fit as xyxy"),
    "no such photo": (rows({"image": "c.png"}), "line 2: there is no photo: c.png below photos"),
    "a broken photo": (rows({"image": "broken.png"}), "line 2: there is a photo that does not open"),
    "another size": (rows({"width": 65}), "line 2: is declared 65 x 48 pixels, the photo is 64 x 48"),
    "no phrase": (rows({"phrase": ""}), "line 2: must have a phrase as text"),
    "a folder's phrase": (rows({"phrase": ["a"]}), "line 2: must have a phrase as text"),
}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(folder: Path, arguments: list[str], said: str, capsys) -> None:
    """One line that says it, exit 2, and every file as it was."""
    before = tree(folder)
    capsys.readouterr()
    assert main(arguments) == 2, arguments
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1, printed
    assert not printed.out or arguments[0] == "boxes", printed  # which reports what it read before it writes
    assert printed.err[:-1].isprintable()
    assert re.search(said, printed.err), printed.err
    assert tree(folder) == before


@pytest.mark.parametrize("what", ROWS)
def test_wrong_rows_in_every_command_that_reads_them(what, folder, capsys):
    values, said = ROWS[what]
    put(folder / "x.jsonl", values, lines=True)
    refused(folder, ["boxes", "x.jsonl", "--root", "photos", "--out", "out.jsonl"], said, capsys)
    refused(folder, ["predict", RUN, "x.jsonl", "--root", "photos", "--out", "out.jsonl"], said, capsys)
    put(folder / "p.json", [{"row": 0, "bbox": [1, 2, 3, 4]}])
    refused(folder, ["measure-boxes", "p.json", "x.jsonl", "--root", "photos", "--out", "out.json"], said, capsys)


@pytest.mark.parametrize("text", ["nan", "inf", "1e400", "1;2", "a"])
def test_tables_with_numbers_that_are_none(text, folder, capsys):
    (folder / "x.csv").write_text(f"image,x1,y1,x2,y2,phrase\na.png,4,8,{text},30,it\n")
    refused(folder, ["boxes", "x.csv", "--out", "out.jsonl"], "x.csv, line 2: box must be four finite numbers", capsys)


@pytest.mark.parametrize("container", CONTAINERS)
def test_split_files_that_would_run_code(container, folder, capsys):
    path = folder / "unc_val.pth"
    path.write_bytes(CONTAINERS[container]([*UNC, Malicious(os.system, f"touch '{folder}/ran'")]))
    for command in (
        ["boxes", str(path), "--out", "out.jsonl"], ["predict", RUN, str(path), "--root", "photos", "--out", "out.jsonl"],
        ["measure-boxes", "out.json", str(path)],
    ):  # fmt: skip
        if command[0] == "measure-boxes":
            put(folder / "out.json", [{"row": 0, "bbox": [1, 2, 3, 4]}])
        refused(folder, command, "names (posix|nt).system, which loading it would run or import: refused", capsys)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("phrase", ["red " * 100, "x" * 500])
def test_a_phrase_longer_than_the_tower(phrase, folder, capsys):
    refused(folder, ["ground", "photos/a.png", phrase, "--run", RUN, "--draw", "out.png"], "77", capsys)


def checkpoint(path: Path, config=SMALL_VIT, tokens: int = 17, **more) -> Path:
    """Towers of toy size with a network for `tokens` image tokens, as CLIP-VG's training saves them."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[parity]'")
    arrays = {
        f"clip.{k}": a.reshape(()) if k == "logit_scale" else a for k, a in random_arrays(shapes_of(config), 1).items()
    }
    D = config.text.width
    shapes = {"reg_token.weight": (1, D), "vl_pos_embed.weight": (78 + tokens, D), "ml_visu_proj.weight": (D, 96),
              "ml_visu_proj.bias": (D,), "text_proj.weight": (D, 24), "text_proj.bias": (D,)}  # fmt: skip
    layer = "vl_transformer.encoder.layers.0"
    shapes |= {f"{layer}.self_attn.in_proj_weight": (3 * D, D), f"{layer}.self_attn.in_proj_bias": (3 * D,)}
    for name, shape in (("self_attn.out_proj", (D, D)), ("linear1", (40, D)), ("linear2", (D, 40))):
        shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
    shapes |= {f"{layer}.{name}.{kind}": (D,) for name in ("norm1", "norm2") for kind in ("weight", "bias")}
    for i, outputs in enumerate((D, D, 4)):
        shapes |= {f"bbox_embed.layers.{i}.weight": (outputs, D), f"bbox_embed.layers.{i}.bias": (outputs,)}
    arrays |= {name: np.full(shape, 0.1, np.float32) for name, shape in shapes.items()} | more
    model = collections.OrderedDict((k, torch.tensor(a)) for k, a in arrays.items() if a is not None)
    torch.save({"model": model, "epoch": 3, "args": argparse.Namespace(vl_nheads=8)}, path)
    return path


WIDE = np.zeros((3, 3), np.float32)
CHECKPOINTS = {  # keyword arguments of `checkpoint`, options, and what is said
    "of another backbone": (
        {"tokens": 50},
        [],
        r"vl_pos_embed.weight must have shape \[95, 32\] to fit",
    ),
    "of another width": (
        {"ml_visu_proj.weight": np.zeros((32, 4096), np.float32)},
        [],
        "ml_visu_proj.weight must have shape",
    ),
    "of a ResNet": ({"config": SMALL_RESNET}, [], "must have shape"),
    "of no square": ({"tokens": 14}, ["--image-size", "64"], "class token and a square of patches"),
    "of no layers": ({"vl_transformer.encoder.layers.0.linear1.weight": None}, [], "must have layers"),
    "of a prompt": ({"language_prompt": WIDE}, [], "must hold a network of CLIP-VG alone, got language_prompt"),
    "of broken numbers": (
        {"reg_token.weight": np.full((1, 32), np.nan, np.float32)},
        [],
        "reg_token.weight must be finite",
    ),
    "of broken towers": ({"clip.ln_final.bias": np.full(32, np.inf, np.float32)}, [], "ln_final.bias must be finite"),
    "of half a tower": ({"clip.ln_final.bias": None}, [], "ln_final.bias"),
    "for a side that does not fit": ({}, ["--image-size", "30"], "image size must be a multiple of 8"),
    "for halves": ({}, ["--dtype", "fp16"], "keeps numbers as they are stored"),
}


@pytest.mark.parametrize("what", CHECKPOINTS)
def test_checkpoints_that_do_not_fit(what, folder, capsys):
    given, options, said = CHECKPOINTS[what]
    path = checkpoint(folder / "best.pth", **given)
    run = folder / "new run"
    refused(
        folder, ["convert", str(path), str(run), "--grounding", "--vision-head-width", "16", *options], said, capsys
    )
    assert not run.exists()


def test_checkpoints_that_would_run_code_or_are_none(folder, capsys):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[parity]'")
    evil = Malicious(os.system, f"touch '{folder}/ran'")
    torch.save({"model": {"clip.visual.proj": torch.zeros(2)}, "args": evil}, "evil.pth")
    torch.save({"visual.conv1.weight": torch.zeros(2)}, "clip.pth")
    torch.save(UNC, "unc_train.pth")
    for name, said in (
        ("evil.pth", "system, which loading it would run or import: refused"),
        ("clip.pth", "must be a checkpoint of CLIP-VG"), ("unc_train.pth", "must be a checkpoint of CLIP-VG"),
        ("good.jsonl", "no weight file that jclip knows"), ("none.pth", "none.pth"),
    ):  # fmt: skip
        refused(folder, ["convert", name, "new run", "--grounding"], said, capsys)
    refused(folder, ["convert", "photos", "new run", "--grounding"], "DST must end in .pth where SRC is a run", capsys)
    assert not (folder / "ran").exists() and not (folder / "new run").exists()


def test_runs_with_other_towers(folder, capsys):
    arguments = ["predict", RUN, "good.jsonl", "--root", "photos", "--out", "out.jsonl"]
    refused(folder, [*arguments, "--model", "shapes-tiny-vit"], "was trained with image_width=", capsys)
    refused(folder, [*arguments, "--model", "none.safetensors"], "none.safetensors", capsys)
    refused(
        folder, ["convert", RUN, "run.pth", "--grounding"], "CLIP-VG's code must have the network, which has", capsys
    )


def test_outputs_over_inputs_and_of_other_kinds(folder, capsys):
    put(folder / "p.json", [{"row": 0, "bbox": [4, 8, 36, 22]}])
    for arguments, said in (
        (["boxes", "good.jsonl", "--out", "good.jsonl"], "good.jsonl"),
        (["boxes", "good.jsonl", "--to", "odvg", "--out", "out.json"], "must end in .jsonl to be written as odvg"),
        (["boxes", "good.jsonl", "--proposals", "out.json"], "no row has boxes of a detector"),
        (["boxes", "good.jsonl", "--to", "odvg"], "--to is the form of --out"),
        (["boxes", "good.jsonl", "--proposals", "out.txt"], "--proposals must end in .json"),
        (["boxes", "good.jsonl", "--out", "out.pth"], "must be for one of the data sets"),
        (["measure-boxes", "p.json", "good.jsonl", "--out", "p.json"], "p.json"),
        (
            ["measure-boxes", "p.json", "good.jsonl", "--worst", "w.png"],
            "--worst shows photos: give their folder with --root",
        ),
        (
            ["measure-boxes", "p.json", "good.jsonl", "--worst", "w.bmp", "--root", "photos"],
            "a sheet is written as one of",
        ),
        (["measure-boxes", "p.json", "good.jsonl", "--root", "none"], "the folder of photos must be there"),
        (["measure-boxes", "good.jsonl", "p.json"], "p.json"),
    ):
        refused(folder, arguments, said, capsys)


def test_predictions_for_rows_that_are_not_there(folder, capsys):
    put(folder / "p.json", [{"row": 0, "bbox": [4, 8, 36, 22]}, {"row": 7, "bbox": [4, 8, 36, 22]}])
    said = "p.json, entry 1: must be for a row of good.jsonl, got row 7 of 1 "
    refused(folder, ["measure-boxes", "p.json", "good.jsonl"], said, capsys)


def test_a_table_with_semicolons(folder, capsys):
    (folder / "x.csv").write_text("image;box;phrase\na.png;4,8,40,30;it\n")
    refused(folder, ["boxes", "x.csv"], r"must have 1 fields .*, got 4 \(separated by commas\)", capsys)


def test_sources_that_rows_state_stay_and_that_is_said(folder, capsys):
    put(folder / "two.jsonl", [{**GOOD, "source": "caption"}, GOOD], lines=True)
    assert main(["boxes", "two.jsonl", "--sources", "template"]) == 0
    printed = capsys.readouterr()
    assert "two.jsonl: 1 of 2 rows state another source than template, which they keep" in printed.err
    assert "caption 1" in printed.out and "template 1" in printed.out


def test_good_files_still_pass(folder, capsys):
    assert main(["boxes", "good.jsonl", "--root", "photos", "--out", "out.jsonl"]) == 0
    assert (folder / "out.jsonl").read_bytes() != OLD
    put(folder / "p.json", [{"row": 0, "bbox": [4, 8, 36, 22]}])
    assert main(["measure-boxes", "p.json", "good.jsonl", "--out", "out.json"]) == 0
    assert json.loads((folder / "out.json").read_text())["acc@0.9"] == 1
    pytest.importorskip("torch", reason="torch is not installed: pip install '.[parity]'")
    path = checkpoint(folder / "best.pth")
    assert main(["convert", str(path), "new run", "--grounding", "--vision-head-width", "16"]) == 0
