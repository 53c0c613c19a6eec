"""`jclip predict` of a run of several labels: thresholds by every rule, kept beside the run; lists, folders, sheets."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import finetune  # noqa: F401 - offers its recipes
from jclip.cli import main
from jclip.data.multi_label_sets import read_labels
from jclip.functional.calibration import fitted_thresholds, sigmoid
from jclip.report.calibration_file import read_calibration
from jclip.report.score_files import read_scores
from jclip.report.tagging_run import TaggingRun
from jclip.train.configs import read_config, resolved
from jclip.train.run import Run

SMOKE = Path(__file__).parents[2] / "configs" / "text_as_image" / "smoke.yaml"
NAMES = ("red thing", "green thing", "blue thing")


def trained(folder: Path, small_models, *more: str) -> Path:
    settings = [f"model={small_models['resnet']}", "data={}", f"classes={','.join(NAMES)}", "captions=[]"]
    settings += ["search=false", "per_name=12", "optim.batch=8", "optim.epochs=1", *more]
    module, cfg, _ = read_config(str(SMOKE), settings)
    with Run(folder, resolved(module, cfg)) as run:
        run.finish(module.run(cfg, run))
    return folder


@pytest.fixture(scope="module")
def made(small_models, tmp_path_factory) -> Path:
    """A run, and photos of one to three colours with a list of their labels."""
    folder, rng = tmp_path_factory.mktemp("标签, of photos"), np.random.default_rng(0)
    trained(folder / "run", small_models)
    (folder / "photos").mkdir()
    lines = []
    for i in range(12):
        own = sorted({i % 3, int(rng.integers(3))})
        pixels = rng.integers(0, 60, (30, 40, 3), dtype=np.uint8)
        for k in own:
            pixels[:, 10 * k : 10 * k + 10, k] += 150
        Image.fromarray(pixels).save(folder / "photos" / f"{i:02d}.png")
        lines.append(json.dumps({"image": f"photos/{i:02d}.png", "labels": [NAMES[k] for k in own]}) + "\n")
    (folder / "labels.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def run(made):
    (made / "run" / "calibration.json").unlink(missing_ok=True)
    return made / "run"


def predict(*argv, code: int = 0) -> None:
    assert main(["predict", *map(str, argv)]) == code


@pytest.mark.parametrize("rule", ["global_f1", "class_f1", "prevalence"])
def test_what_is_fitted_is_kept_and_used_again(rule, made, run, tmp_path, close, capsys):
    argv = ["--run", run, made / "photos", "--out", tmp_path / "tags.json"]
    predict(*argv, "--calibrate-on", made / "labels.jsonl", "--threshold", rule)
    assert f"({rule} and probabilities, on 12 photos" in capsys.readouterr().out
    first = (tmp_path / "tags.json").read_bytes()
    predict(*argv)
    assert f"thresholds: {rule} and probabilities of" in capsys.readouterr().out
    assert (tmp_path / "tags.json").read_bytes() == first
    photos = sorted(map(str, (made / "photos").iterdir()))
    scores, kept = TaggingRun.load(run).scored(photos).scores, read_calibration(run / "calibration.json")
    targets = read_labels(str(made / "labels.jsonl"), NAMES).targets
    thresholds = fitted_thresholds(scores, targets, rule)
    close(kept.thresholds, thresholds, "scores")
    for row, entry in enumerate(json.loads(first)):
        assert entry["photo"] == photos[row]
        wanted = {NAMES[c]: sigmoid(kept.a[c] * scores[row, c] + kept.b[c]) for c in range(3)
                  if scores[row, c] >= kept.thresholds[c]}  # fmt: skip
        assert {tag["class"] for tag in entry["tags"]} == {*wanted}
        for tag in entry["tags"]:
            close(tag["probability"], float(wanted[tag["class"]]), "scores")
    predict(*argv, "--threshold", "0.5")  # of the probability
    for row, entry in enumerate(json.loads((tmp_path / "tags.json").read_text())):
        p = sigmoid(kept.a * scores[row] + kept.b)
        assert {tag["class"] for tag in entry["tags"]} == {NAMES[c] for c in np.flatnonzero(p > 0.5)}


def test_the_same_file_serves_measure_tag_and_score(made, run, tmp_path, capsys):
    photos, labels = str(made / "photos"), str(made / "labels.jsonl")
    predict(run, photos, "--out", tmp_path / "a.csv", "--calibrate-on", labels)
    kept = str(run / "calibration.json")
    assert main(["tag", photos, "--run", str(run), "--calibration", kept, "--out", str(tmp_path / "b.csv")]) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    out = str(tmp_path / "scores")
    assert main(["score", photos, "--run", str(run), "--windows", "none", "--out", out]) == 0
    capsys.readouterr()
    assert main(["measure", f"{out}/run.npz:scores", "--labels", labels, "--threshold", kept]) == 0
    assert "global_f1" in capsys.readouterr().out


def test_lists_folders_and_sheets(made, run, tmp_path, capsys):
    argv = [
        run,
        made / "photos",
        "--threshold",
        "halfway",
        "--out",
        tmp_path / "all.npz",
        "--list",
        tmp_path / "list.json",
    ]
    predict(*argv, "--sheet", tmp_path / "sheet.html", "--sort-into", tmp_path / "sorted")
    scores = read_scores(str(tmp_path / "all.npz"))
    assert np.array_equal(np.array(json.loads((tmp_path / "list.json").read_text())), scores.main.astype(float))
    halfway = (scores.main.min(axis=1) + scores.main.max(axis=1)) / 2
    has = scores.main > halfway[:, None]
    links = [*(tmp_path / "sorted").glob("*/*.png")]
    assert len(links) == has.sum() > 12 and all(link.is_symlink() for link in links)
    assert (tmp_path / "sheet.html").read_text().count("<img") == 12
    predict(run, made / "photos", "--threshold", "1e5", "--out", tmp_path / "none.csv")
    with open(tmp_path / "none.csv", encoding="utf-8", newline="") as f:
        assert all(not any(row[1:]) for row in [*csv.reader(f)][1:])
    predict(run, made / "photos", "--top", "1", "--out", tmp_path / "one.csv")
    assert (tmp_path / "one.csv").read_text().splitlines()[0] == "photo,tag_1,score_1"


def test_what_was_fitted_on_other_scores_is_not_used(made, run, tmp_path, small_models, capsys):
    predict(run, made / "photos", "--out", tmp_path / "a.csv", "--calibrate-on", made / "labels.jsonl")
    predict(run, made / "photos", "--out", tmp_path / "b.csv", "tau_image=30")
    assert "is of other settings or another training, and is not used" in capsys.readouterr().err
    other = trained(tmp_path / "other", small_models, "seed=5")
    (other / "calibration.json").write_bytes((run / "calibration.json").read_bytes())
    predict(other, made / "photos", "--out", tmp_path / "c.csv")
    assert "is of other settings or another training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--threshold", "class_f1"], "--threshold class_f1 is fitted on labelled photos, got none there"),
        (["--threshold", "classf1"], "unknown threshold 'classf1', did you mean 'class_f1'"),
        (["--calibrate-on", "{}/labels.jsonl", "--threshold", "halfway"], "leave one of them out"),
        (["--calibrate-on", "{}/gone.jsonl"], "gone.jsonl"),
        (["--calibrate-on", "{}/strange.jsonl"], "'cow'"),
        (["--calibrate-on", "{}/lost.jsonl"], "zz.png (name their folder with --root)"),
        (["--root", "{}"], "give both or none"),
        (["--unsure", "0.5"], "--unsure is of runs with one class"),
        (["--list", "a.txt"], "--list is a .json file"),
        (["--list", "a.json", "--on-error", "skip"], "--list has a row for each photo"),
        (["--out", "a.doc"], "a.doc"),
        (["{}/no.png"], "no.png"),
        (["--out", "{}/labels.jsonl", "--calibrate-on", "{}/labels.jsonl"], "would be overwritten"),
    ],
)
def test_refused_in_a_line(more, message, made, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (made / "strange.jsonl").write_text('{"image": "photos/00.png", "labels": ["cow"]}\n')
    (made / "lost.jsonl").write_text('{"image": "zz.png", "labels": ["red thing"]}\n')
    predict(run, made / "photos", *(m.format(made) for m in more), code=2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1], lines
    assert not [*tmp_path.iterdir()]
