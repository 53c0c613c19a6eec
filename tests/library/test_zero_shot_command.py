"""`jclip zero-shot`: the Ajou entry's YAML from photos to what is handed in, on shrunken models; and wrong questions."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune.zero_shot import members
from jclip.cli import main
from jclip.commands.zero_shot_photos import classify
from jclip.data.splits import natural_key
from jclip.prompts.class_sets import class_set
from jclip.train.configs import read_config
from jclip.weights.checkpoint import random_arrays
from tests.converters import writers
from tests.toys import SMALL_TEXT, SMALL_VIT, TOY_EVAS, shapes_of, toy_file

CLASSES = ["Buildings", "Forests", "Glacier", "Mountains", "Sea", "Street"]


def run(*arguments) -> int:
    return main([*map(str, arguments)])


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory) -> list[str]:
    """Shrunken, with random weights: a ViT with QuickGELU in place of MetaCLIP's bigG, EVA-CLIP-18B's kind of tower in its
    hub's layout in its place. Their inputs are of two sizes."""
    folder, eva = tmp_path_factory.mktemp("stand-ins"), TOY_EVAS["18b"]
    eva = replace(
        eva, embed_dim=20, vision=replace(eva.vision, image_size=(40, 40)), text=replace(SMALL_TEXT, width=40)
    )
    writers.eva_hub_folder(folder / "EVA-CLIP", eva, random_arrays(shapes_of(eva), 4))
    return [f"models.0.weights={toy_file(folder, SMALL_VIT, 3)}", f"models.1.weights={folder / 'EVA-CLIP'}"]


def test_the_ajou_entry_from_photos_to_what_is_handed_in(stand_ins, photo_folder, tmp_path, capsys):
    out, page = tmp_path / "submission.csv", tmp_path / "sheet.html"
    given = ["--config", "zero_shot/ajou", *stand_ins, "--out", out, "--format", "id_idx", "--sheet", page]
    assert run("zero-shot", photo_folder, *given) == 0
    assert not capsys.readouterr().err  # every class has its sentences, and no prompt is repeated
    cfg = read_config("zero_shot/ajou", stand_ins)[1]
    assert [len(prompts) for m in members(cfg) for prompts in m.class_prompts(CLASSES)] == [52] * 12
    assert [m.preprocess.sharpness for m in members(cfg)] == [2.3, 2.0] and cfg.drop_below == 0
    photos = sorted(map(str, photo_folder.rglob("*.png")), key=natural_key)
    scores = classify(members(cfg), photos, CLASSES).scores
    rows = list(csv.reader(out.read_text().splitlines()))
    assert rows == [["id_idx", "label"], *([str(i), str(k)] for i, k in enumerate(scores.argmax(1)))]
    assert len({k for _, k in rows[1:]}) > 1
    text = page.read_text(encoding="utf-8")
    assert text.index("least certain") < text.index("most certain") and "Glacier" in text


def test_names_of_a_benchmark_and_its_prompts(small_models, photo_folder, tmp_path, capsys):
    out = tmp_path / "named.json"
    given = ["--model", small_models["vit"], "--classes", "cifar10", "--templates", "cifar10", "--mode", "prob-prompts"]
    assert (
        run("zero-shot", photo_folder / "test", *given, "--out", out, "--explain", "--unknown", 0.9, "--top", 10) == 0
    )
    message, names = json.loads(out.read_text(encoding="utf-8")), class_set("cifar10")
    assert {p["class"] for p in message[0]["predictions"]} == {*names}
    assert all(entry["predictions"][0]["class"] in entry["prompt"] for entry in message)
    unknown = [entry["predictions"][0]["probability"] < 0.9 for entry in message]
    assert [entry["unknown"] for entry in message] == unknown and any(unknown)
    assert "unknown (" in capsys.readouterr().out


def test_options_of_one_model_do_as_the_yaml(small_models, photo_folder, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        f"recipe: zero_shot\nclasses: a cat,an owl\nmodels:\n  - weights: '{small_models['vit']}'\n    prompts: openai7\n"
        "    mode: max\n    scale: 7.0\n    views: five-crops\n    article: true\n"
        "    preprocess: {resize: squash, sharpness: 0.5, size: 48}\n", encoding="utf-8",
    )  # fmt: skip
    options = ["--templates", "openai7", "--mode", "max", "--scale", 7, "--views", "five-crops", "--article", "--resize",
               "squash", "--sharpness", 0.5, "--size", 48]  # fmt: skip
    for name, given in (
        ("a.json", ["--config", tmp_path / "mine.yaml"]),
        ("b.json", ["--model", small_models["vit"], "--classes", "a cat,an owl", *options]),
        ("c.json", ["--model", small_models["vit"], "--classes", "a cat,an owl"]),
    ):
        assert run("zero-shot", photo_folder / "test", *given, "--out", tmp_path / name) == 0
    got = [(tmp_path / name).read_text(encoding="utf-8") for name in ("a.json", "b.json", "c.json")]
    assert got[0] == got[1] != got[2]


def wrong(tmp_path: Path) -> dict[str, list]:
    (tmp_path / "search.yaml").write_text(
        "recipe: zero_shot\nsearch: true\nclasses: a,b\nmodels:\n  - {weights: x.pt}\n  - {weights: y.pt}\n"
    )
    (tmp_path / "none.yaml").write_text("recipe: zero_shot\nclasses: a,b\n")
    ajou, one = ["--config", "zero_shot/ajou"], ["--model", "shapes-tiny-rn"]
    return {
        "--mode must not stand beside --config: set models.0.mode=": [*ajou, "--mode", "max"],
        "set models.0.preprocess.sharpness=": [*ajou, "--sharpness", 2],
        "set models.0.prompts=": [*ajou, "--templates", "simple"],
        "settings must follow --config, got models.0.mode=max": [*one, "models.0.mode=max"],
        "unknown key models.0.mdoe, did you mean 'mode'": [*ajou, "models.0.mdoe=max"],
        "step must be left out: it is read with search=true alone": [*ajou, "step=0.1"],
        "unknown config 'zero_shot/ajuo', did you mean": ["--config", "zero_shot/ajuo"],
        "smoke.yaml must be of the recipe zero_shot, got gda: train it": ["--config", "gda/smoke"],
        "search.yaml must not set search, which needs labelled photos": ["--config", tmp_path / "search.yaml"],
        "a config must name a model or models, got neither": ["--config", tmp_path / "none.yaml"],
        "name the classes with --classes": one,
        "argument --unknown: must be a number in [0, 1), got '1.5'": [*one, "--classes", "a,b", "--unknown", 1.5],
        "--on-error must be stop with --format id_idx, which numbers the photos": [
            *ajou,
            "--format",
            "id_idx",
            "--out",
            "r.csv",
            "--on-error",
            "skip",
        ],
        "the form id_idx is a .csv file": [*ajou, "--format", "id_idx", "--out", "r.txt"],
        "set mode to prob-prompts (now embed)": [*one, "--classes", "a,b", "--drop-below", 0.1],
        "argument --sharpness: must be a number in [0, 1000]": [*one, "--classes", "a,b", "--sharpness", -1],
        "argument --size: must be an integer in [1, 4096], got '0'": [*one, "--classes", "a,b", "--size", 0],
    }


@pytest.mark.parametrize("case", range(16))
def test_what_is_wrong_is_reported_in_one_line(case, photo_folder, tmp_path, capsys):
    message, given = list(wrong(tmp_path).items())[case]
    assert run("zero-shot", photo_folder / "test", *given) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.startswith("jclip zero-shot: ") and not printed.out
    assert len(printed.err.strip().splitlines()) == 1


def test_photos_are_to_be_named(capsys):
    assert run("zero-shot", "models.0.weight=1", "--config", "zero_shot/ajou") == 2
    assert capsys.readouterr().err == "jclip zero-shot: name the photos, or folders of photos\n"


def test_numbers_in_names_are_those_that_a_computer_reads():
    assert sorted(["10.jpg", "²1.jpg", "2.jpg", "a²3.jpg"], key=natural_key) == ["2.jpg", "10.jpg", "a²3.jpg", "²1.jpg"]


def test_labels_agree_with_plain_scores(small_models, photo_folder):
    from jclip.features.member import Member

    photos = sorted(map(str, (photo_folder / "test").rglob("*.png")))
    one = Member(str(small_models["vit"]), "a photo of a {}.")
    got = [classify([replace(one, mode=mode)], photos, CLASSES).best[:, 0] for mode in ("embed", "max", "prob-prompts")]
    assert np.array_equal(got[0], got[1]) and np.array_equal(got[0], got[2])  # of one prompt a class
