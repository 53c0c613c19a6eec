"""What every recipe on frozen features does with broken, missing or contradictory input: one line, and no wrong numbers."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import finetune
from jclip.config import DataConfig
from jclip.data.splits import read_photos
from jclip.errors import CheckpointError, ConfigError, DataError, JclipError
from jclip.features.extraction import few_shot_features
from jclip.features.source import ModelSource
from jclip.report.predictor import Classifier, measure
from jclip.train.configs import build_config, read_config
from jclip.train.on_photos import check_photos
from tests.recipes.toys import record, smoke_arrays, smoke_without, train

ROOT = Path(__file__).parent.parent.parent
SMOKE = smoke_arrays()
QUICK = {
    "tip_adapter": ("search_steps=[2,2]", "optim.epochs=1"),
    "ape": ("search_steps=[2,2,2]", "optim.epochs=1"),
    "gda": (),
    "linear_probe": ("search_C=[1.0]", "search_rounds=0"),
    "lp_plus": ("epochs=2",),
    "clap": ("optim.epochs=1",),
    "task_res": ("optim.epochs=2",),
    "clip_adapter": ("optim.epochs=2", "search_ratio=[0.2]"),
    "cross_modal": ("optim.epochs=1", "every=1", "grid_lr=[]"),
    "wise_ft": ("optim.epochs=1",),
    "zero_shot": (),
    "ensemble": (),
}
PHOTOS_ALONE = ["gda", "linear_probe"]  # no text teaches them a class
WITH_TEXT = [name for name in QUICK if name not in (*PHOTOS_ALONE, "zero_shot", "ensemble")]
PROMPTED = [
    "coop",
    "kgcoop",
    "cocoop",
    "maple",
    "promptsrc",
]  # of a model that features of no more than 16 numbers lack
LEARNING = [*WITH_TEXT, *PHOTOS_ALONE]
CHOOSING = [name for name in QUICK if name not in ("clap", "zero_shot")]  # in their smoke configs


def each_once(recipes, checks) -> list[tuple]:
    """Pairs in which every recipe and every check stands: a check is one function, which all recipes call."""
    recipes, checks = list(recipes), list(checks)
    turns = range(max(len(recipes), len(checks)))
    return [(recipes[i % len(recipes)], checks[i % len(checks)]) for i in turns]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run on sound features, for ensembles."""
    folder = tmp_path_factory.mktemp("finished") / "zero_shot"
    train(ROOT / "configs" / "zero_shot" / "smoke.yaml", folder)
    return folder


@pytest.fixture
def run_on(tmp_path, finished, capfd):
    """(recipe, setting of features, more settings) → metrics and the lines on stderr, those of epochs left out.

    What NumPy or Jittor would warn of is an error.
    """

    def run(recipe: str, features: str, *more: str) -> tuple[dict[str, float], list[str]]:
        capfd.readouterr()
        members = (f"runs=[{finished}]",) if recipe == "ensemble" else ()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            config = ROOT / "configs" / recipe / "smoke.yaml"
            folder = Path(tempfile.mkdtemp(dir=tmp_path))
            metrics = train(config, folder, features, *QUICK[recipe], *members, *more)
        assert all(math.isfinite(v) for v in metrics.values())
        stderr = capfd.readouterr().err.splitlines()
        return metrics, [line for line in stderr if line.strip() and not line.startswith("epoch ")]

    return run


def put(name: str, index, value: float) -> dict[str, np.ndarray]:
    """Smoke's array `name` with one entry or row replaced."""
    array = SMOKE[name].astype(np.float32 if SMOKE[name].dtype.kind == "f" else SMOKE[name].dtype)
    array[index] = value
    return {name: array}


def only(labels, parts=("train_{}_4", "val_{}", "test_{}")) -> dict[str, np.ndarray]:
    """Smoke's rows of these labels."""
    changes = {}
    for part in parts:
        rows = np.isin(SMOKE[part.format("labels")], labels)
        changes |= {part.format(k): SMOKE[part.format(k)][rows] for k in ("features", "labels")}
    return changes


BARE = {"classnames": None, "text_features": None}
BROKEN = {
    "one class": (
        only([0]) | {k: SMOKE[k][:1] for k in ("classnames", "text_features")},
        r"only one class \(class 0\): at least two are needed",
    ),
    "one class without a name": (only([0]) | BARE, r"only one class \(0\): at least two are needed"),
    "a gap": (only([0, 1, 3, 4, 5, 6]) | BARE, "no row has label 2, though labels reach 6: number them without a gap"),
    "a label too high": (put("train_labels_4", 0, 7), "train labels reach from 0 to 7, there are 7 classes"),
    "a label below 0": (put("test_labels", 0, -1), "test labels reach from -1 to 6, there are 7 classes"),
    "half labels": (
        {"val_labels": SMOKE["val_labels"] + 0.5},
        r"val_labels must be class ids from 0 as integers, got float64",
    ),
    "no label": ({"val_labels": np.full(42, np.nan)}, "val_labels must be class ids from 0 as integers, got float64"),
    "labels in words": (
        {"test_labels": np.full(63, "x")},
        r"test_labels must be class ids from 0 as integers, got <U1",
    ),
    "more names than text": ({"text_features": SMOKE["text_features"][:6]}, "6 text features for 7 classes"),
    "wider text": ({"text_features": np.ones((7, 24))}, "features of different widths: 16, 24"),
    "wider test": ({"test_features": np.ones((63, 24))}, "features of different widths: 16, 24"),
    "NaN to train": (put("train_features_4", (3, 2), np.nan), r"train_features_4 holds 1 values .* \(first: row 3\)"),
    "infinite val": (put("val_features", (4, 2), np.inf), r"val_features holds 1 values .* \(first: row 4\)"),
    "NaN to test": (put("test_features", 5, np.nan), r"test_features holds 16 values .* \(first: row 5\)"),
    "NaN text": (put("text_features", (6, 2), np.nan), r"text_features holds 1 values .* \(first: row 6\)"),
    "zeros to train": (
        put("train_features_4", 3, 0),
        r"train_features_4 has 1 rows .* \(first: row 3, of length 0.0\)",
    ),
    "zeros in val": (put("val_features", 4, 0), r"val_features has 1 rows that can't be brought to length one"),
    "zeros to test": (put("test_features", 5, 0), r"test_features has 1 rows that can't be brought to length one"),
    "zero text": (put("text_features", 6, 0), r"text_features has 1 rows .* \(first: row 6, of length 0.0\)"),
    "too long": (put("val_features", 4, 1e38), r"val_features has 1 rows .* \(first: row 4, of length inf\)"),
    "imaginary": ({"val_features": SMOKE["val_features"] + 1j}, r"val_features.npy .*values of kind c8 are not read"),
    "no scale": (
        {"logit_scale": np.float32(np.nan)},
        "logit_scale must be one number above 0 .*, got nan",
    ),
    "scale of 0": (
        {"logit_scale": np.float32(0)},
        "logit_scale must be one number above 0 .*, got 0.0",
    ),
}


@pytest.mark.parametrize("recipe, defect", each_once(QUICK, BROKEN))
def test_broken_features_are_refused_in_one_line(recipe, defect, run_on, tmp_path, capfd):
    changes, message = BROKEN[defect]
    arrays = {k: v for k, v in {**SMOKE, **changes}.items() if v is not None}
    with pytest.raises(DataError, match=f"broken.npz.*{message}") as error:
        run_on(recipe, record(tmp_path / "broken.npz", arrays))
    assert "\n" not in str(error.value) and not capfd.readouterr().err


# Classes with few photos, or none


@pytest.mark.parametrize("recipe", WITH_TEXT)
def test_classes_without_training_photos_go_by_their_text_and_are_reported(recipe, run_on, tmp_path):
    arrays = SMOKE | only([0, 1, 3, 5, 6], ["train_{}_4"])
    metrics, got = run_on(recipe, record(tmp_path / "two_lack.npz", arrays))
    assert got == ['2 of 7 classes have no training photos (first: "class 2"): learned from their text alone']
    assert metrics["test_count"] == 63


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("recipe", PHOTOS_ALONE)
def test_classes_without_training_photos_are_refused_where_photos_alone_teach(recipe, text, run_on, tmp_path, capfd):
    arrays = SMOKE | only([0, 1, 3, 4, 5, 6], ["train_{}_4"])
    if not text:
        del arrays["text_features"], arrays["classnames"]
    first = '"class 2"' if text else "label 2"
    with pytest.raises(DataError, match=rf"1 of 7 classes has no training photos \(first: {first}\), and this recipe"):
        run_on(recipe, record(tmp_path / "one_lacks.npz", arrays))
    assert not capfd.readouterr().err


def test_photos_alone_teach_a_random_head_without_texts(run_on, tmp_path):
    features = record(tmp_path / "one_lacks.npz", SMOKE | only(range(6), ["train_{}_4"]))
    assert len(run_on("cross_modal", features, "texts=false")[1]) == 1
    with pytest.raises(DataError, match='1 of 7 classes has no training photos .first: "class 6"., and this recipe'):
        run_on("cross_modal", features, "texts=false", "init=random")


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("recipe", LEARNING)
def test_classes_with_fewer_photos_are_reported_and_all_are_taken(recipe, pool, run_on, tmp_path):
    fewer = {k: SMOKE[k][1:] for k in ("train_features_4", "train_labels_4")}
    more = ("data.pool=4", "data.shots=4", "data.val_shots=0") if pool else ()
    metrics, got = run_on(recipe, record(tmp_path / "three.npz", SMOKE | fewer), *more)
    assert metrics == run_on(recipe, f"data.features={tmp_path / 'three.npz'}")[0]  # all that are recorded
    assert got == ['1 of 7 classes has fewer than 4 training photos (first: "class 0", 3): all of them are taken']


# Parts that are empty


@pytest.mark.parametrize("recipe", LEARNING)
def test_nothing_to_learn_from_is_refused(recipe, run_on, tmp_path, capfd):
    with pytest.raises(DataError, match="there is nothing to learn from: the training split is empty"):
        run_on(recipe, smoke_without("train", tmp_path))
    assert not capfd.readouterr().err


def own_member(recipe: str, features: str, folder: Path) -> list[str]:
    """An ensemble's setting that names a run on the same features; nothing for another recipe."""
    if recipe != "ensemble":
        return []
    train(ROOT / "configs" / "zero_shot" / "smoke.yaml", folder / "own", features)
    return [f"runs=[{folder / 'own'}]"]


@pytest.mark.parametrize("recipe", QUICK)
def test_choosing_needs_validation_photos(recipe, run_on, tmp_path):
    features = smoke_without("val", tmp_path)
    member = own_member(recipe, features, tmp_path)
    if recipe in CHOOSING:
        with pytest.raises(ConfigError, match="validation photos, and there are none: set data.val, or .*=false"):
            run_on(recipe, features, *member)
    fields = {f.name for f in dataclasses.fields(finetune.load(recipe).Config)}
    off = [s for s in ("search=false", "selection=last", "inputs=logits") if s.partition("=")[0] in fields]
    metrics, got = run_on(recipe, features, *member, *off)
    assert not got and metrics["test_count"] == 63 and not [k for k in metrics if k.startswith("val_")]


@pytest.mark.parametrize("recipe", QUICK)
def test_without_test_photos_only_validation_is_measured(recipe, run_on, tmp_path):
    features = smoke_without("test", tmp_path)
    metrics, got = run_on(recipe, features, *own_member(recipe, features, tmp_path))
    assert not got and metrics["val_count"] == 42 and not [k for k in metrics if "test_" in k]


def test_zero_shot_without_photos_is_refused(run_on, tmp_path):
    arrays = SMOKE | only([], ["val_{}", "test_{}"])
    with pytest.raises(DataError, match="there are no photos to measure on: set data.val or data.test"):
        run_on("zero_shot", record(tmp_path / "none.npz", arrays))


# Widths


@pytest.mark.parametrize("recipe", QUICK)
def test_a_model_of_another_width_than_the_features_is_refused(recipe, run_on, tmp_path, small_models):
    with pytest.raises(ConfigError, match="the model gives features of 24 dimensions and not 16: set model"):
        run_on(recipe, smoke_without("text", tmp_path), f"model={small_models['vit']}")


@pytest.mark.parametrize("recipe", QUICK)
def test_text_recorded_of_another_model_is_refused(recipe, run_on, tmp_path):
    np.save(tmp_path / "text.npy", np.ones((7, 24)))
    with pytest.raises(DataError, match="features of different widths: 16, 24: all must come from one model"):
        run_on(recipe, smoke_without("text", tmp_path), f"data.text_features={tmp_path / 'text.npy'}")


def test_a_model_can_make_no_text_of_unnamed_classes(run_on, tmp_path, small_models):
    arrays = {k: v for k, v in SMOKE.items() if k not in BARE}
    with pytest.raises(DataError, match="names no classes, so no text can be made for them: set data.text_features"):
        run_on("linear_probe", record(tmp_path / "bare.npz", arrays), f"model={small_models['vit']}")


def test_a_finished_run_refuses_features_of_another_width_or_of_more_classes(
    finished, tmp_path, small_models, photo_folder
):
    wide = {k: np.ones((len(v), 24)) if "features" in k else v for k, v in SMOKE.items()}
    record(tmp_path / "wide.npz", wide)
    with pytest.raises(CheckpointError, match="wide.npz gives 24-dimensional features, the run learned on 16"):
        measure(Classifier.load(finished, [f"data.features={tmp_path / 'wide.npz'}"]), tmp_path)
    photos = [f"data.root={photo_folder}", "data.features="]
    with pytest.raises(CheckpointError, match="gives 24-dimensional features, the run learned on 16"):
        measure(Classifier.load(finished, photos, str(small_models["vit"])), tmp_path)
    bare = {k: v for k, v in SMOKE.items() if k not in BARE}
    own = record(tmp_path / "bare.npz", bare)
    train(ROOT / "configs" / "gda" / "smoke.yaml", tmp_path / "gda", own)
    more = record(tmp_path / "more.npz", bare | {"test_labels": bare["test_labels"] + (bare["test_labels"] == 6)})
    with pytest.raises(ConfigError, match="the data must have the run's 7 classes, got 8"):
        measure(Classifier.load(tmp_path / "gda", [more]), tmp_path)


def test_runs_of_other_widths_make_no_ensemble(finished, run_on, tmp_path):
    wide = {k: np.tile(v, 2) if "features" in k else v for k, v in SMOKE.items()}
    with pytest.raises(ConfigError, match="zero_shot was made from other data: data differs"):
        run_on("ensemble", record(tmp_path / "wide.npz", wide))


# Photos


def write_photos(root: Path, counts: dict[str, int]) -> Path:
    """A folder per class with so many pictures of one colour."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 40), (60 * label, 20 * i, 90)).save(root / name / f"{i}.png")
    return root


def test_photos_short_of_shots_are_reported_once(tmp_path, small_models, capfd):
    root = write_photos(tmp_path / "photos", {"ant": 3, "bee": 9, "cow": 1, "eel": 0, "fox": 4})
    settings = (
        "data.val_shots=0",
        f"model={small_models['vit']}",
        "templates=simple",
        "views=1",
        "search=false",
        "train=false",
    )
    config = ROOT / "configs" / "tip_adapter" / "smoke.yaml"
    metrics = train(config, tmp_path / "run", "data.features=", f"data.root={root}", "data.val_shots=0", *settings)
    got = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("epoch ")]
    assert got == [
        '1 of 5 classes has no training photos (first: "eel"): learned from their text alone',
        '2 of 5 classes have fewer than 4 training photos (first: "ant", 3): all of them are taken',
    ]
    assert math.isfinite(metrics["alpha"])
    photos = read_photos(DataConfig(root=str(root), shots=4, val_shots=0))
    assert np.bincount(photos.train.labels).tolist() == [3, 4, 1, 0, 4]
    _, cfg = build_config({"recipe": "full", "model": "x", "data": {"shots": 4}, "selection": "last",
                           "optim": {"batch": 2}}, "x")  # fmt: skip
    check_photos(cfg, photos)
    assert capfd.readouterr().err.splitlines() == got


def test_photos_that_are_learned_from_and_measured_are_reported(tmp_path, small_models, capfd):
    root = write_photos(tmp_path / "photos", {"ant": 3, "bee": 3})
    lists = {"train": ["ant/0.png 0", "ant/1.png 0", "bee/0.png 1", "bee/1.png 1"],
             "val": ["ant/2.png 0", "bee/2.png 1"], "test": ["ant/1.png 0", "ant/2.png 0", "bee/2.png 1"]}  # fmt: skip
    for part, lines in lists.items():
        (root / f"{part}.txt").write_text("\n".join(lines))
    (root / "classes.txt").write_text("ant 0\nbee 1")
    data = DataConfig(**{part: str(root / f"{part}.txt") for part in (*lists, "classes")}, shots=2)
    source = ModelSource(small_models["vit"])
    few_shot_features(data, source, "simple", training=None)
    assert not capfd.readouterr().err
    assert len(few_shot_features(data, source, "simple").test) == 3
    assert capfd.readouterr().err == (
        f"1 of 3 test photos are training photos too (first: {root}/ant/1.png): their figures do not generalise to new photos\n"
    )


# Settings


GENERAL = {
    "seed=-1": "smoke.yaml: seed must be at least 0, got -1",
    "data.seed=-1": "smoke.yaml: data.seed must be at least 0, got -1",
    "data.pool=-1": "data.pool must be at least 0 .*, got -1",
    "seed=1.5": "smoke.yaml: seed must be an integer, got 1.5",
}
OPTIM = {
    "optim.lr=-1": "optim.lr must be at least 0, got -1.0",
    "optim.lr=1e999": "optim.lr must be a finite number, got inf",
    "optim.weight_decay=-1": "optim.weight_decay must be at least 0, got -1.0",
    "optim.eps=0": "optim.eps must be above 0, got 0.0",
    "optim.betas=[0.9,1]": r"optim.betas must be in \[0, 1\), got \[0.9, 1.0\]",
    "optim.momentum=-1": r"optim.momentum must be in \[0, 1\), got -1.0",
    "optim.epochs=0": "optim.epochs must be at least 1, got 0",
}
OWN = [
    ("tip_adapter", "views=0", "views and search_steps must be at least 1, got 0 and"),
    ("tip_adapter", "search_steps=[0,2]", "views and search_steps must be at least 1"),
    ("tip_adapter", "alpha=-1", "alpha must be at least 0 and beta above 0, got -1.0"),
    ("tip_adapter", "beta=0", "beta above 0, got 1.17 and 0.0"),
    ("tip_adapter", "search_beta=-1", "search_alpha and search_beta must be above 0.1"),
    ("ape", "alpha=-1", "alpha and gamma must be at least 0 and beta above 0, got -1.0"),
    ("ape", "beta=0", "beta above 0, got .* and 0.0"),
    ("ape", "search_gamma=0", "search_gamma above 0"),
    ("ape", "criterion=[0,0]", "criterion and train_criterion must be two weights of at least 0"),
    ("ape", "train_criterion=[-1,0.3]", "criterion and train_criterion must be two weights of at least 0"),
    ("gda", "alpha=-1", "alpha and search_alpha must be at least 0"),
    ("gda", "search_alpha=[1,-1]", "alpha and search_alpha must be at least 0"),
    ("linear_probe", "C=0", "C and search_C must be above 0"),
    ("lp_plus", "init_alpha=-1", "init_alpha must be at least 0, got -1.0"),
    ("clap", "text_length=0", "text_length above 0, got .* and 0.0"),
    ("task_res", "alpha=0", "alpha must be above 0, got 0.0"),
    ("clip_adapter", "ratio=-0.1", r"ratio and search_ratio must be in \[0, 1\)"),
    ("cross_modal", "logit_scale=100", "logit_scale must be the scale's logarithm, such as 4.60517 for 100, got 100.0"),
    ("wise_ft", "alpha=1.5", r"alpha must be in \[0, 1\] .*, got 1.5"),
    ("ensemble", "step=0", r"step must be in \[0.001, 1\] .*, got 0.0"),
    ("cocoop", "context=0", "context must be at least 1 and views at least 0, got 0"),
    ("cocoop", "views=-1", "views at least 0, got .* and -1"),
    ("maple", "depth=0", "depth=0 1"),
    ("maple", "text=3", "give both one number, or set coupled=false"),
    ("maple", "data.features=x.npz", "tunes towers on photos"),
    ("promptsrc", "image=0", "text and image must be at least 1 vector each, got 4 and 0"),
    ("promptsrc", "deviation=0", "deviation above 0, got deviation=0.0"),
]
TRAINED = [*PROMPTED, *(recipe for recipe in WITH_TEXT if recipe != "lp_plus")]
SETTINGS = [(recipe, *row) for recipe, row in each_once(QUICK, GENERAL.items()) + each_once(TRAINED, OPTIM.items())]


@pytest.mark.parametrize("recipe, setting, message", SETTINGS + OWN, ids=lambda x: x[:24])
def test_settings_out_of_range_are_reported_before_anything_is_read(recipe, setting, message):
    with pytest.raises(ConfigError, match=message) as error:
        read_config(str(ROOT / "configs" / recipe / "smoke.yaml"), [setting])
    assert "smoke.yaml: " in str(error.value) and "\n" not in str(error.value)


# From outside


@pytest.mark.parametrize("changes, code, line", [
    (put("val_features", 4, 0), 2, "val_features has 1 rows that can't be brought to length one (first: row 4"),
    (only([1], ["train_{}_4"]), 0, '6 of 7 classes have no training photos (first: "class 0"): learned from their text alone'),
], ids=["refused", "reported"])  # fmt: skip
def test_the_command_reports_one_line(changes, code, line, tmp_path):
    features = record(tmp_path / "x.npz", SMOKE | changes)
    command = [sys.executable, "-m", "finetune", "train", "clap/smoke", features, "--run", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    got = [x for x in done.stderr.splitlines() if not x.startswith("epoch ")]
    assert done.returncode == code and len(got) == 1 and line in got[0], done.stderr
    assert ("finetune train: " in done.stderr) == (code == JclipError.exit_code)
