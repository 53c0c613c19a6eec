"""What stands around the recipes: links to runs, runs in one table, the entrants' scripts."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from finetune import Classifier
from finetune.__main__ import main as finetune_main
from jclip.cli import main
from jclip.errors import ConfigError
from jclip.readers.spreadsheet import read_csv

ROOT = Path(__file__).parent.parent.parent
SMOKE = str(ROOT / "configs" / "tip_adapter" / "smoke.yaml")


def test_a_link_moves_to_the_run_that_finished_last(tmp_path, capsys):
    command = ["train", SMOKE, "--runs", str(tmp_path / "runs"), "--link", str(tmp_path / "latest")]
    assert main(command) == 0
    first = (tmp_path / "latest").resolve()
    assert main([*command, "alpha=2"]) == 0
    second = (tmp_path / "latest").resolve()
    assert first != second and (second / "result.json").is_file() and not list(tmp_path.glob(".latest*"))
    assert main(["compare", str(first), str(tmp_path / "latest")]) == 0
    rows = capsys.readouterr().out.splitlines()[-4:]
    assert [row.split()[0] for row in rows[1:]] == ["zero-shot", first.name, "latest"]
    assert main([*command[:-1], str(tmp_path)]) == 2
    assert (
        f"{tmp_path} must be a link or absent, got a file or folder: choose another name with --link-run"
        in capsys.readouterr().err
    )


def test_a_table_needs_finished_runs_that_share_something(tmp_path, capsys):
    assert main(["compare", str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err
    (tmp_path / "result.json").write_text('{"metrics": {"loss": 1.0}}')
    assert main(["compare", str(tmp_path)]) == 2
    assert "got none in common" in capsys.readouterr().err


def test_predicting_without_photos_needs_a_run_that_has_some(tmp_path, capsys, small_models):
    assert main(["train", SMOKE, "--run", str(tmp_path)]) == 0
    assert main(["predict", str(tmp_path), "--model", str(small_models["vit"])]) == 2
    assert "name the photos to label: this run has none of its own" in capsys.readouterr().err
    assert main(["predict", str(tmp_path), "--sheet", "x.gif"]) == 2
    assert "x.gif: a sheet is written as one of .png" in capsys.readouterr().err
    assert finetune_main([]) == 2


@pytest.fixture(scope="module")
def captioned_run(tmp_path_factory) -> Path:
    """A finished run of image-caption pairs."""
    smoke, folder = str(ROOT / "configs" / "contrastive" / "smoke.yaml"), tmp_path_factory.mktemp("captioned")
    settings = ["data.scenes=16", "data.val_scenes=13", "optim.epochs=1", "zero_shot=[]"]
    assert main(["train", smoke, "--run", str(folder), *settings]) == 0
    return folder


def test_a_captioned_run_is_measured_by_retrieval(captioned_run, tmp_path, capsys):
    """What its model file finds again is what training measured last; ranks.csv has what R@k is the share of."""
    assert sorted(p.name for p in captioned_run.glob("[!.]*")) == [
        "config.yaml", "metrics.jsonl", "model.safetensors", "result.json"
    ]  # fmt: skip
    assert main(["eval", str(captioned_run), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    written = json.loads((captioned_run / "result.json").read_text())["metrics"]
    measured = json.loads((tmp_path / "eval.json").read_text())
    grouped = {k: measured.pop(k) for k in [*measured] if k.startswith(("image_retrieval", "text_retrieval"))}
    assert grouped["text_retrieval_recall@5"] == measured["i2t_r5"]
    assert grouped["image_retrieval_recall@10"] == measured["t2i_r10"] and "by groups" in printed
    assert measured.pop("count") == measured.pop("images") == measured.pop("texts") == 13 and {*measured} < {*written}
    assert {k: round(v, 6) for k, v in measured.items()} == {k: written[k] for k in measured}
    rows = read_csv(tmp_path / "ranks.csv")
    assert [row["photo"] for row in rows] == [str(i) for i in range(13)]
    for way, column in (("i2t", "rank_of_caption"), ("t2i", "rank_of_image")):
        ranks = sorted(int(row[column]) for row in rows)
        assert (
            sum(rank <= 5 for rank in ranks) / 13 == measured[f"{way}_r5"]
            and ranks[6] == measured[f"{way}_median_rank"]
        )
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["text_id"] for line in lines] == [*range(13)]
    hits = [line["text_id"] in line["image_ids"][:5] for line in lines]  # of the rendered pairs, image and text alike
    assert sum(hits) / 13 == measured["t2i_r5"] and {len(line["image_ids"]) for line in lines} == {10}
    assert (
        f"{measured['i2t_r10']:.4f}" in printed
        and f"written: {tmp_path}/eval.json, ranks.csv, predictions.jsonl" in printed
    )
    assert main(["eval", str(captioned_run), "data.val=", "--out", str(tmp_path)]) == 2
    assert "there are no image-caption pairs to measure on: set data.val" in capsys.readouterr().err
    for place in (captioned_run, ROOT / "configs/contrastive/smoke.yaml"):
        assert main(["eval", str(place), "top=3"]) == 2
        assert "top must be left out: it is read with update=top alone" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["predict"], ["predict", "photos"], ["eval", "--base-to-new"]])
def test_a_captioned_run_is_no_classifier(command, captioned_run, capsys):
    assert main([command[0], str(captioned_run), *command[1:]]) == 2
    how = f"use `jclip zero-shot PHOTOS --model {captioned_run}/model.safetensors --classes NAMES`"
    assert how in capsys.readouterr().err
    with pytest.raises(
        ConfigError, match="must hold a run of the task classify, got retrieve \\(recipe contrastive\\)"
    ):
        Classifier.load(captioned_run)


def test_captioned_runs_stand_in_one_table_and_not_beside_classifiers(captioned_run, tmp_path, capsys):
    assert main(["compare", str(captioned_run)]) == 0
    head, _, row = capsys.readouterr().out.splitlines()[-3:]
    written = json.loads((captioned_run / "result.json").read_text())["metrics"]
    columns = [f"{way} R@{k}" for way in ("image → text", "text → image") for k in (1, 5, 10)]
    assert head.split() == " ".join(columns).split()
    figures = [f"{written[f'{way}_r{k}']:.4f}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
    assert row.split() == [captioned_run.name, *figures]
    assert main(["train", SMOKE, "--run", str(tmp_path)]) == 0
    assert main(["compare", str(tmp_path), str(captioned_run)]) == 2
    assert f"runs must be of one task, got classify and retrieve ({captioned_run})" in capsys.readouterr().err


def test_training_ends_with_tables_of_the_scores_that_it_computed(tmp_path, monkeypatch, capsys):
    """No list is read and no feature scored a second time; a run that a sweep finished is measured by `eval`."""
    from jclip.report import classifier

    monkeypatch.setattr(classifier.Classifier, "read", lambda *_: pytest.fail("the finished run is read again"))
    cocoop = str(ROOT / "configs" / "cocoop" / "smoke.yaml")
    assert main(["train", cocoop, "--run", str(tmp_path)]) == 0
    assert "confusion.png" in capsys.readouterr().out
    written = json.loads((tmp_path / "result.json").read_text())
    assert {*classifier.Classifier.files()} <= {*written["files"]}
    assert json.loads((tmp_path / "eval.json").read_text())["correct"] == written["metrics"]["test_correct"]
    (tmp_path / "eval.json").unlink()
    assert main(["train", cocoop, "--run", str(tmp_path)]) == 0
    assert f"`jclip eval {tmp_path}` measures it" in capsys.readouterr().out
    monkeypatch.undo()
    before = (tmp_path / "predictions.csv").read_bytes()
    assert main(["eval", str(tmp_path)]) == 0 and (tmp_path / "predictions.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("zero_shot", []),
        ("zero_shot", ["data.shots=0"]),
        ("tip_adapter", ["train=true", "optim.epochs=3"]),  # a fresh view in each epoch
        ("coop", ["views=0", "optim.epochs=3", "context=2"]),
        ("maple", ["optim.epochs=1", "text=2", "image=2", "depth=2"]),
        ("full", ["optim.epochs=2", "optim.batch=4", "loss=cross_entropy"]),
    ],
)
def test_a_runs_photos_are_read_once(recipe, settings, small_models, photo_folder, tmp_path, monkeypatch):
    """By training, measuring and the tables at its end together."""
    from jclip.data import splits
    from jclip.features import run_data

    read, calls = splits.read_all_photos, []
    for module in (splits, run_data):
        monkeypatch.setattr(module, "read_all_photos", lambda data: calls.append(data) or read(data))
    (tmp_path / "mine.yaml").write_text(f"recipe: {recipe}\n")
    photos = [f"data.root={photo_folder}", "data.shots=2", "data.val_shots=2", f"model={small_models['vit']}"]
    assert main(["train", str(tmp_path / "mine.yaml"), "--run", str(tmp_path / "run"), *photos, *settings]) == 0
    assert len(calls) == 1
    assert (tmp_path / "run" / "eval.json").is_file() == (recipe != "full")


@pytest.mark.parametrize("script", ["train1.sh", "train2.sh", "test.sh", "check.sh"])
def test_scripts_are_plain_shell(script):
    subprocess.run(["sh", "-n", ROOT / script], check=True)
    text = (ROOT / script).read_text()
    assert text.startswith("#!/bin/sh\n") and "set -eu" in text and os.access(ROOT / script, os.X_OK)


@pytest.mark.skipif(not (ROOT / ".venv").is_dir(), reason="the scripts would make an environment first")
def test_a_scripts_settings_reach_the_recipe_from_any_folder(tmp_path):
    done = subprocess.run(["sh", ROOT / "train1.sh", "optim.bach=3"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "unknown key optim.bach, did you mean 'batch'" in done.stderr
    done = subprocess.run(
        ["sh", ROOT / "train1.sh", "data.root=photos", "--run", tmp_path / "r"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and f"data.root must be a folder, got {tmp_path}/photos" in done.stderr
