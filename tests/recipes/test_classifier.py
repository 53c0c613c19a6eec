"""A finished run in Python and on the command line: photos in, classes out, and photos into folders."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune import Classifier
from jclip.cli import main
from jclip.errors import CheckpointError, ConfigError, DataError
from jclip.report.evaluation import write_evaluation
from jclip.report.predictor import unlabelled


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_models, photo_folder) -> Path:
    """Tip-Adapter on the seeded photos."""
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "mine.yaml").write_text(
        f"recipe: tip_adapter\nmodel: '{small_models['vit']}'\ntemplates: simple\nviews: 1\n"
        f"data: {{root: '{photo_folder}', shots: 4, val_shots: 2}}\nalpha: 50.0\nbeta: 20.0\n",
        encoding="utf-8",
    )
    assert main(["train", str(folder / "mine.yaml"), "--run", str(folder / "run")]) == 0
    return folder / "run"


def test_photos_in_classes_out(run, photo_folder, close):
    classifier = Classifier.load(run)
    predictions = classifier.predict([photo_folder / "test"])
    assert len(predictions.photos) == 18 and predictions.scores.shape == (18, 3)
    assert set(predictions.classnames) == {"red_thing", "绿 thing", "blue thing"} == set(classifier.classnames)
    one = classifier.predict([predictions.photos[5]])
    close(one.scores[0], predictions.scores[5], "scores", relative=True)
    assert one.best[0, 0] == predictions.best[5, 0]


def test_five_classes_are_listed_of_a_photo_unless_asked_otherwise(run, photo_folder):
    """Of a run on three classes whose columns are scored as seven classes."""
    seven = replace(Classifier.load(run), classnames=tuple("abcdefg"), columns=np.array([0, 1, 2, 0, 1, 2, 0]))
    photo = photo_folder / "test" / "red_thing" / "test 0-0.png"
    assert seven.predict([photo]).best.shape == (1, 5) and seven.predict([photo], top=2).best.shape == (1, 2)
    assert seven.label(unlabelled([str(photo)]))[0].best.shape == (1, 5)


def test_it_equals_the_command(run, photo_folder, tmp_path):
    assert main(["predict", str(run), str(photo_folder / "test"), "--out", str(tmp_path / "r.csv")]) == 0
    with open(tmp_path / "r.csv", encoding="utf-8", newline="") as f:
        rows = {row["photo"]: row["class_1"] for row in csv.DictReader(f)}
    predictions = Classifier.load(run).predict([str(photo_folder / "test")])
    assert rows == {
        photo: predictions.classnames[i] for photo, i in zip(predictions.photos, predictions.best[:, 0], strict=True)
    }


def test_given_photos_that_do_not_decode_are_skipped_and_counted(run, photo_folder, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_text("no photo")
    out = ["--out", str(tmp_path / "r.csv")]
    assert main(["predict", str(run), str(photo_folder / "test"), str(broken), *out]) == 0
    assert "skipped 1 of 19 photos (first: " in capsys.readouterr().err
    assert len((tmp_path / "r.csv").read_text(encoding="utf-8").splitlines()) == 19
    assert main(["predict", str(run), str(broken), *out]) == 2
    assert main(["predict", str(run), str(photo_folder / "test"), str(broken), *out, "--on-error", "stop"]) == 2


def test_photos_go_into_folders_and_back(run, photo_folder, tmp_path, capsys):
    out = tmp_path / "sorted"
    command = [
        "predict",
        str(run),
        str(photo_folder / "test"),
        "--out",
        str(tmp_path / "r.txt"),
        "--sort-into",
        str(out),
    ]
    assert main([*command, "--dry-run"]) == 0
    assert not out.exists() and "nothing was moved" in capsys.readouterr().out
    assert main([*command, "--link", "--unsure", "0.9"]) == 0
    printed = capsys.readouterr().out
    links = list(out.rglob("*.png"))
    assert len(links) == 18 and all(p.is_symlink() and p.resolve().is_file() for p in links)
    predictions = Classifier.load(run).predict([photo_folder / "test"])
    unsure = int((predictions.probabilities.max(axis=1) < 0.9).sum())
    assert len(list((out / "_unsure").glob("*"))) == unsure if unsure else not (out / "_unsure").exists()
    assert f"jclip unsort {out / 'sorted.json'}" in printed
    assert main([*command]) == 2
    assert "stands there already: name another folder" in capsys.readouterr().err
    assert main(["unsort", str(out / "sorted.json")]) == 0
    assert not any(out.iterdir())


def test_what_is_missing_is_reported(run, small_models, tmp_path, photo_folder):
    with pytest.raises(ConfigError, match="holds no finished run"):
        Classifier.load(tmp_path)
    with pytest.raises(DataError):
        Classifier.load(run).predict([tmp_path / "absent.jpg"])
    smoke = Path(__file__).parents[2] / "configs" / "tip_adapter" / "smoke.yaml"
    assert main(["train", str(smoke), "--run", str(tmp_path / "recorded")]) == 0
    with pytest.raises(ConfigError, match="learned from precomputed features: name the model"):
        Classifier.load(tmp_path / "recorded").predict([photo_folder / "test"])
    with pytest.raises(CheckpointError, match="gives 24-dimensional features"):
        Classifier.load(tmp_path / "recorded", model=str(small_models["vit"])).predict([photo_folder / "test"])


def test_eval_writes_what_people_look_at(run, photo_folder, tmp_path, capsys):
    assert main(["eval", str(run), "--out", str(tmp_path)]) == 0
    assert "macro_f1" in capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} == {
        "eval.json",
        "per_class.csv",
        "per_class.png",
        "confusion.csv",
        "confusion.png",
        "predictions.csv",
        "result.txt",
    }
    assert (tmp_path / "confusion.png").read_bytes()[:4] == b"\x89PNG"
    with open(tmp_path / "predictions.csv", encoding="utf-8", newline="") as f:
        named = {Path(row["photo"]).name: row["predicted"] for row in csv.DictReader(f)}
    predictions = Classifier.load(run).predict([photo_folder / "test"])
    assert named == {
        Path(p).name: predictions.classnames[k] for p, k in zip(predictions.photos, predictions.best[:, 0], strict=True)
    }
    lines = [line.rsplit(" ", 3) for line in (tmp_path / "result.txt").read_text(encoding="utf-8").splitlines()]
    assert {name: predictions.classnames[int(best)] for name, best, _, _ in lines} == named


def test_photos_of_one_name_are_distinguished_by_their_folders(tmp_path):
    scores, labels = np.eye(3, dtype=np.float32)[[0, 2]], np.array([0, 1])
    write_evaluation(tmp_path, scores, labels, tuple("abc"), ("a/1.jpg", "b/1.jpg"))
    assert "b/1.jpg,b,c," in (tmp_path / "predictions.csv").read_text() and not (tmp_path / "result.txt").exists()
    write_evaluation(tmp_path, scores, labels, tuple("abc"))
    assert (tmp_path / "result.txt").read_text() == "0 0 1 2\n1 2 0 1\n"
