"""A finished run of several labels: what eval, predict, compare and tag make of it; scenes of the embedded world."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from jclip.config import DataConfig, load_values
from jclip.data import shapes, world
from jclip.data.labelled_photos import read_labelled_photos
from jclip.data.multi_label import has_photos, read_multi_label
from jclip.errors import ConfigError, DataError
from jclip.functional.metrics import average_precisions
from jclip.report.predictor import Predictor, write_handed_over
from jclip.report.score_files import read_scores
from jclip.report.tagging_run import FILES, TaggingRun
from jclip.train.configs import read_config, resolved
from jclip.train.run import Run
from tests.recipes import toys

SMOKE = Path(__file__).parents[2] / "configs" / "text_as_image" / "smoke.yaml"
NAMES = toys.COLOURS


@pytest.fixture(scope="module")
def done(small_models, tmp_path_factory) -> Path:
    """A run that learned three colours from sentences, and saw photos of one to three of them."""
    folder = tmp_path_factory.mktemp("照片 of colours")
    photos = toys.photos_of_colours(folder, val=5, test=8)
    settings = [f"model={small_models['resnet']}", "captions=[]", "per_name=12", "optim.batch=8"]
    module, cfg, _ = read_config(str(SMOKE), [*photos, *settings])
    with Run(folder / "run", resolved(module, cfg)) as run:
        written = []
        run.finish(module.run(cfg, run), lambda result: written.extend(write_handed_over(run, module, result)))
    assert written == [*FILES]
    return folder / "run"


def test_eval_finds_what_training_handed_over(done, tmp_path):
    run = Predictor.load(done)
    assert type(run) is TaggingRun
    metrics = run.measure(tmp_path)
    assert all((tmp_path / name).read_bytes() == (done / name).read_bytes() for name in FILES)
    written = json.loads((done / "eval.json").read_text())
    assert {k: v for k, v in metrics.items() if k != "count"} == {
        k: pytest.approx(run.metrics[f"test_{k}"], abs=1e-6) for k in ("map_global", "map_local", "map_merged")
    }
    assert written == metrics and metrics["count"] == 8


def test_the_files_are_what_they_say(done, close):
    scores, photos = read_scores(str(done / "scores.npz")), read_multi_label(Predictor.load(done).config.data)
    assert scores.classnames == NAMES and scores.photos == photos.photos.paths
    parts, share = scores.parts, Predictor.load(done).metrics["merge"]
    close(parts["merged"], share * parts["global"] + (1 - share) * parts["local"], "loss")
    with open(done / "per_class.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [row["class"] for row in rows] == [*NAMES]
    assert [int(row["n"]) for row in rows] == photos.targets.sum(axis=0).tolist()
    for name in ("global", "local", "merged"):
        wanted = average_precisions(parts[name], photos.targets)
        close([float(row[f"ap_{name}"]) for row in rows], wanted, "rounding")


def test_a_table_of_names_says_the_same_as_the_list(done, tmp_path):
    """Labels by name, as JSON lines, in the place of the list."""
    run, folder = Predictor.load(done), done.parent
    photos = read_multi_label(run.config.data)
    lines = [
        {"image": Path(path).name, "labels": [NAMES[k] for k in np.flatnonzero(own)]}
        for path, own in zip(photos.photos.paths, photos.targets, strict=True)
    ]
    table = folder / "test.jsonl"
    table.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    other = Predictor.load(done, [f"data.test={table}"])
    assert other.measure(tmp_path) == run.measure(tmp_path)
    assert run.own_split()[1].paths == other.own_split()[1].paths
    (folder / "test 0.png").rename(folder / "gone.png")
    try:
        with pytest.raises(DataError, match=r"test.jsonl: 1 of 8 photos are missing: .*test 0.png"):
            other.measure(tmp_path)
    finally:
        (folder / "gone.png").rename(folder / "test 0.png")


def test_photos_get_tags(done, tmp_path, close):
    run = Predictor.load(done)
    own, split = run.own_split()
    tags, rows = own.label(split, top=2)
    scores = read_scores(str(done / "scores.npz")).parts["merged"]
    close(tags.scores, scores, "rounding")
    halfway = (scores.min(axis=1) + scores.max(axis=1)) / 2
    assert np.array_equal(tags.has.sum(axis=1), np.minimum((scores > halfway[:, None]).sum(axis=1), 2))
    run.write_predictions(tags, str(tmp_path / "tags.txt"))
    assert (tmp_path / "tags.txt").read_text().splitlines()[0].startswith(split.paths[0])
    assert "tags with their score" in run.show(tags) and rows.tolist() == [*range(8)]
    found = run.module.tagger(done, run.config).scored(split.paths[2:4])
    close(found.scores, scores[2:4], "scores")
    assert found.background.shape == (2, 0)


def test_other_classes_are_a_choice_or_made_anew(done, close):
    run = Predictor.load(done)
    split = run.own_split()[1]
    all_three, some = run.parts_of(split)[1], run.telling_apart(("blue thing", "red_thing"), run.source())
    for name, scores in some.parts_of(split)[1].items():
        close(scores, all_three[name][:, [2, 0]], "rounding")
    new = run.telling_apart(("red thing", "a cow"), run.source())
    close(new.parts_of(split)[1]["local"][:, 0], all_three["local"][:, 0], "scores")


def test_photos_may_be_seen_larger_and_whole(done):
    """A ResNet without its pool's positions: 3 x 3 places in place of 2 x 2, and nothing cut off."""
    settings = ["preprocess.size=96", "preprocess.resize=squash"]
    split = Predictor.load(done).own_split()[1]
    usual, larger = (Predictor.load(done, own).parts_of(split)[1]["local"] for own in ([], settings))
    assert larger.shape == usual.shape and np.isfinite(larger).all() and np.abs(larger - usual).min() > 0


def test_tables(done):
    metrics = Predictor.load(done).metrics
    table = TaggingRun.run_table(metrics)
    assert [line.split("  ")[0] for line in table.splitlines()[2:6]] == [
        "val, zero-shot", "val", "test, zero-shot", "test",
    ]  # fmt: skip
    assert f"{100 * metrics['test_map_merged']:.2f}" in table.splitlines()[5]
    both = TaggingRun.comparison({"runs/one": metrics, "runs/two": {**metrics, "test_map_local": 0.5}})
    assert both.splitlines()[3].split()[:3] == ["two", f"{100 * metrics['test_map_global']:.2f}", "50.00"]
    with pytest.raises(ConfigError, match="runs must share a mAP on val or test, got none in common: a, b"):
        TaggingRun.comparison({"a": metrics, "b": {"train_loss": 1.0}})


def test_what_is_another_tasks_is_refused(done):
    run = Predictor.load(done)
    with pytest.raises(ConfigError, match="it can't be measured on photos of one class each"):
        run.check_photos()
    alone = Predictor.load(done, ["data.test=", "data.root="])
    for call in (alone.own_split, lambda: alone.measure(done)):
        with pytest.raises(ConfigError, match="set data.test"):
            call()


def test_scenes_have_lists_with_all_their_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(world, "SCENE_COUNTS", {"val": 3, "test": 5})
    monkeypatch.setattr(world, "cache_dir", lambda *parts: tmp_path)
    config = DataConfig(root="shapes:unseen_scenes")
    assert has_photos(config, "val") and has_photos(config, "test")
    parts = {part: read_multi_label(config, part) for part in ("val", "test")}
    for number, (part, count) in enumerate((("val", 3), ("test", 5))):
        found = parts[part]
        assert found.classnames == shapes.CLASSNAMES and len(found.photos) == count
        for i, own in enumerate(found.targets):
            seed = (world._SEEDS["unseen_scenes"], number, i)
            scene = shapes.draw_scene(seed, styles=shapes.UNSEEN_STYLES, count=(2, 4))
            assert tuple(sorted(shapes.CLASSNAMES[k] for k in np.flatnonzero(own))) == scene.labels
            assert scene.style in shapes.UNSEEN_STYLES and 2 <= len(scene.things) <= 4
    beside = DataConfig(root="photos", train="train.jsonl")  # the root is that of the training photos
    assert (
        has_photos(beside, "train") and not has_photos(beside, "test") and has_photos(DataConfig(root="photos"), "test")
    )
    assert not has_photos(DataConfig(), "test") and not has_photos(DataConfig(test="x"), "val")


@pytest.mark.parametrize("lines", ["cat\ndog\n", "cat 0\ndog 1\n"])
def test_labels_that_name_their_classes_need_no_numbers_of_these(lines, tmp_path):
    (tmp_path / "names.txt").write_text(lines)
    (tmp_path / "labels.csv").write_text("photo,labels\na.png,dog\n")
    (tmp_path / "a.png").write_bytes(b"no pixels are read")
    config = DataConfig(test=str(tmp_path / "labels.csv"), classes=str(tmp_path / "names.txt"))
    found = read_labelled_photos(config)
    assert found.classnames == ("cat", "dog") and found.targets.tolist() == [[0, 1]]


def test_captions_of_a_config_are_relative_to_its_project(tmp_path):
    (tmp_path / "configs").mkdir()
    config = tmp_path / "configs" / "a.yaml"
    config.write_text("recipe: text_as_image\nmodel: x\ncaptions: [a.jsonl, shapes]\ninit_from: runs/one\n")
    values = load_values(config)
    assert values["captions"] == [str(tmp_path / "a.jsonl"), "shapes"]
    assert values["init_from"] == str(tmp_path / "runs/one")
    one = load_values(config, ["captions=b.jsonl"])["captions"]
    assert one == [str(Path.cwd() / "b.jsonl")]
