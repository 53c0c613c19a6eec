"""Finished runs on classes that they never learned: halves of the classes, other names, other data sets, and H."""

from __future__ import annotations

import csv
import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import finetune
from finetune import Classifier
from jclip.cli import main
from jclip.commands.sweep import base_first
from jclip.config import DataConfig
from jclip.data.splits import draw_shots, half, read_photos
from jclip.errors import ConfigError, DataError
from jclip.features.extraction import few_shot_features
from jclip.functional.directions import unit
from jclip.functional.metrics import harmonic_mean
from jclip.report.scoring_run import columns_of
from tests.contract.test_readme import said
from tests.pages import blocks
from tests.recipes.toys import record, smoke_arrays

ROOT = Path(__file__).parents[2]
NAMES = ("blue thing", "green_thing", "grey thing", "red thing", "white thing")
COLOURS = ((20, 20, 200), (20, 180, 20), (120, 120, 120), (200, 20, 20), (240, 240, 240))


def photos_of(root: Path, names, parts=("train", "test"), count: int = 4) -> Path:
    """Noisy tiles of each class's colour."""
    rng = np.random.default_rng(3)
    for name in names:
        for part in parts:
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(-60, 60, (34, 40, 3)) + COLOURS[NAMES.index(name)]
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{name} {part} {i}.png")
    return root


@pytest.fixture(scope="module")
def five(tmp_path_factory) -> Path:
    return photos_of(tmp_path_factory.mktemp("five"), NAMES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_models, five):
    """recipe → the folder of its run on the base classes, trained once."""
    made = tmp_path_factory.mktemp("runs")
    extra = {
        "full": "loss: cross_entropy\naugment: none\noptim: {epochs: 2, batch: 6, lr: 1e-3}\n",
        "lora": "augment: none\nsteps: 3\noptim: {batch: 6, lr: 1e-2}\n",
        "clip_adapter": "views: 1\naugment: none\noptim: {epochs: 2, batch: 6, lr: 1e-2}\nratio: 0.5\n",
        "gda": "",
        "zero_shot": "",
    }

    def run(recipe: str, subset: str = "base") -> Path:
        folder = made / f"{recipe}-{subset}"
        if not folder.is_dir():
            (made / f"{recipe}.yaml").write_text(
                f"recipe: {recipe}\nmodel: '{small_models['vit']}'\ntemplates: simple\n"
                f"data: {{root: '{five}', shots: 2}}\n{extra[recipe]}",
                encoding="utf-8",
            )
            command = ["train", str(made / f"{recipe}.yaml"), f"data.subset={subset}", "--run", str(folder)]
            assert main(command) == 0
        return folder

    return run


def metrics_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "result.json").read_text())["metrics"]


def rounded(path: Path) -> dict[str, float]:
    """What `eval` wrote, with as many decimals as a run's result has."""
    return {k: round(v, 6) for k, v in json.loads(path.read_text()).items()}


# --- halves


def test_five_classes_are_three_and_two(five):
    assert [list(half(5, s)) for s in ("all", "base", "new")] == [[0, 1, 2, 3, 4], [0, 1, 2], [3, 4]]
    data = DataConfig(root=str(five), shots=2, seed=4)
    whole = read_photos(data)
    for subset, names, first in (("base", NAMES[:3], 0), ("new", NAMES[3:], 3)):
        part = read_photos(replace(data, subset=subset))
        assert part.classnames == names
        for split in ("train", "val", "test"):
            got, of_all = getattr(part, split), getattr(whole, split)
            rows = [i for i, label in enumerate(of_all.labels) if first <= label < first + len(names)]
            assert got.paths == tuple(of_all.paths[i] for i in rows) and len(
                rows
            )  # drawn before it is halved, as CoOp does
            assert got.labels.tolist() == [of_all.labels[i] - first for i in rows]
    assert {Path(p).parent.name for p in read_photos(replace(data, subset="new")).test.paths} == {*NAMES[3:]}


def test_recorded_features_are_halved_alike(tmp_path):
    arrays = smoke_arrays()
    path = record(tmp_path / "f.npz", arrays).partition("=")[2]
    whole = few_shot_features(DataConfig(features=path, shots=2, pool=4), None, "openai7")
    base, new = (few_shot_features(DataConfig(features=path, shots=2, pool=4, subset=s), None, "openai7")
                 for s in ("base", "new"))  # fmt: skip
    assert (base.classes, new.classes) == (4, 3) and new.classnames == whole.classnames[4:]
    np.testing.assert_array_equal(np.concatenate([base.text, new.text]), whole.text)
    for part in ("train", "val", "test"):
        labels = getattr(whole, f"{part}_labels")
        np.testing.assert_array_equal(getattr(new, part), getattr(whole, part)[labels >= 4])
        np.testing.assert_array_equal(getattr(new, f"{part}_labels"), labels[labels >= 4] - 4)
        np.testing.assert_array_equal(getattr(base, part), getattr(whole, part)[labels < 4])


def test_a_half_of_one_class_or_without_names_is_refused(tmp_path, photo_folder):
    with pytest.raises(DataError, match=r"data.subset=new: only one class \(绿 thing\): at least two are needed"):
        read_photos(DataConfig(root=str(photo_folder), shots=1, subset="new"))
    arrays = smoke_arrays()
    del arrays["classnames"]
    data = DataConfig(features=record(tmp_path / "f.npz", arrays).partition("=")[2], shots=4, subset="base")
    with pytest.raises(DataError, match="names no classes: data.subset=base needs classnames"):
        few_shot_features(data, None, "openai7")


def test_dassl_draws_among_all_classes(five):
    """Python's own generator, one stream: the base half must not shift what is drawn."""
    data = read_photos(DataConfig(root=str(five), shots=0))
    drawn = draw_shots(data, 1, 1, 7)
    part = read_photos(DataConfig(root=str(five), shots=1, val_shots=1, seed=7, subset="new"))
    assert part.train.paths == drawn.train.paths[3:] and part.val.paths == drawn.val.paths[3:]


# --- other classes than the run's


def test_zero_shot_on_new_is_zero_shot_trained_on_new(trained, tmp_path):
    assert main(["eval", str(trained("zero_shot")), "data.subset=new", "--out", str(tmp_path)]) == 0
    got, wanted = rounded(tmp_path / "eval.json"), metrics_of(trained("zero_shot", "new"))
    assert {f"test_{k}": v for k, v in got.items()} == {k: v for k, v in wanted.items() if k.startswith("test_")}
    with open(tmp_path / "per_class.csv", encoding="utf-8", newline="") as f:
        assert [row["class"] for row in csv.DictReader(f)] == list(NAMES[3:])


def test_recorded_features_need_no_model(tmp_path):
    smoke = str(ROOT / "configs" / "zero_shot" / "smoke.yaml")
    for subset in ("base", "new"):
        assert main(["train", smoke, f"data.subset={subset}", "--run", str(tmp_path / subset)]) == 0
    assert main(["eval", str(tmp_path / "base"), "--base-to-new"]) == 0
    got = rounded(tmp_path / "base" / "base_to_new.json")
    for half_ in ("base", "new"):
        for key in ("top1", "nll", "count"):
            assert got[f"{half_}_{key}"] == metrics_of(tmp_path / half_)[f"test_{key}"]


@pytest.mark.parametrize("recipe", ["full", "lora", "clip_adapter"])
def test_new_classes_are_scored_with_what_was_learned(recipe, trained, five, tmp_path, close):
    """Independently: the run's own weights through `jclip.load`, photo by photo and prompt by prompt."""
    import jclip

    folder = trained(recipe)
    done = Classifier.load(folder, ["data.subset=new"])
    there = done.telling_apart(NAMES[3:], done.source())
    model, preprocess = jclip.load(done.model)
    photos = read_photos(done.config.data).test
    texts = model.encode_text(model.tokenize([f"a photo of a {n}." for n in NAMES[3:]])).numpy()
    pixels = np.stack([preprocess(Image.open(p)).numpy() for p in photos.paths])
    images = model.encode_image(pixels).numpy()
    if recipe == "clip_adapter":
        down, up = done.learned["down"], done.learned["up"]
        images = 0.5 * np.maximum(np.maximum(images @ down.T, 0) @ up.T, 0) + 0.5 * images
    wanted = float(np.exp(model.logit_scale.numpy()[0])) * unit(images) @ unit(texts).T
    predictions, _ = there.label(photos)
    close(predictions.scores, wanted, "scores", f"{recipe} on new classes", relative=True)
    assert main(["eval", str(folder), "data.subset=new", "--out", str(tmp_path)]) == 0
    top1 = json.loads((tmp_path / "eval.json").read_text())["top1"]
    assert top1 == (wanted.argmax(axis=1) == photos.labels).mean()


def test_mixed_towers_read_new_names_and_a_tuned_head_does_not(small_models, close):
    from jclip.features.source import ModelSource

    module = finetune.load("wise_ft")
    source = ModelSource(small_models["vit"])
    cfg = module.Config(data=DataConfig(), model="m", tuned="t", templates="simple")
    got = module.for_classes({"weight": np.zeros((3, 24)), "alpha": np.ones(1)}, cfg, NAMES[3:], source)
    text = source.model.encode_text(source.model.tokenize([f"a photo of a {n}." for n in NAMES[3:]])).numpy()
    scale = float(np.exp(source.model.logit_scale.numpy()[0]))
    close(got["weight"], scale * unit(text), "scores", "mixed towers on new classes", relative=True)
    assert not got["bias"].any() and got["bias"].shape == (2,) and got["alpha"] == 1
    with pytest.raises(ConfigError, match="the run's own for wise_ft without `tuned`"):
        module.for_classes(got, replace(cfg, tuned=""), NAMES, source)


def test_known_names_are_found_whatever_the_recipe(trained, five, tmp_path):
    """A head of all five classes on three of them in another order, `_` for a space, scored among these three."""
    folder = photos_of(tmp_path / "three", [NAMES[3], NAMES[1], NAMES[0]], parts=("test",))
    (folder / "test" / "green_thing").rename(folder / "test" / "zzz")
    (tmp_path / "names.txt").write_text("n0 not there\nzzz green thing\nblue blue\nred red\n" + "".join(
        f"{n.split()[0]} {n}\n" for n in (NAMES[0], NAMES[3])), encoding="utf-8")  # fmt: skip
    for name in (NAMES[0], NAMES[3]):
        (folder / "test" / name).rename(folder / "test" / name.split()[0])
    done = Classifier.load(trained("gda", "all"), [f"data.root={folder}", f"data.classes={tmp_path / 'names.txt'}"])
    photos = read_photos(done.config.data)
    assert photos.classnames == ("blue thing", "red thing", "green thing")
    all_scores = done.label(photos.test)[0].scores
    there = done.telling_apart(photos.classnames, None)
    np.testing.assert_array_equal(there.label(photos.test)[0].scores, all_scores[:, [0, 3, 1]])
    assert main(["eval", str(done.folder), f"data.root={folder}", f"data.classes={tmp_path / 'names.txt'}"]) == 0


def test_columns_by_hand():
    assert columns_of(["c", "a"], ["a", "b", "c"]).tolist() == [2, 0]
    assert columns_of(["b", "a", "b"], ["a", "b"]).tolist() == [1, 0, 1]
    assert columns_of(["a"], ["a", "b", "a"]) is None  # which of the two
    assert columns_of(["Caf\u00e9", "A"], ["a", "cafe\u0301"]).tolist() == [1, 0]  # other spellings of the same names
    assert columns_of(["a", "A"], ["A", "a"]).tolist() == [1, 0] and columns_of(["\uff21"], ["a", "A"]) is None
    assert columns_of(["a", "d"], ["a", "b"]) is None


def test_names_that_stand_twice(trained, small_models):
    """Equal names have equal text, and the first of them wins; for a head it is undecided which of its own is meant."""
    done = Classifier.load(trained("full", "base"))
    twice = done.telling_apart(("red thing", "cat", "red thing"), done.source())
    scores = twice.scorer()(np.eye(24, dtype=np.float32))
    np.testing.assert_array_equal(scores[:, 0], scores[:, 2])
    head = replace(Classifier.load(trained("gda", "all")), classnames=("a", "b", "c", "a", "d"))
    assert head.telling_apart(("b", "d"), None).columns.tolist() == [1, 4]
    with pytest.raises(ConfigError, match="gda learned its own 5 classes: 'a' stands there twice: rename one"):
        head.telling_apart(("a", "b"), None)


def test_what_knows_no_other_classes_says_so(trained, five, tmp_path, capsys):
    capsys.readouterr()
    for command in (["data.subset=new"], ["--base-to-new"], ["data.subset=all"]):
        assert main(["eval", str(trained("gda")), *command, "--out", str(tmp_path / "o")]) == 2
        stderr = capsys.readouterr().err
        assert "gda learned its own 3 classes: 2 of the data's" in stderr.splitlines()[-1] and "'red thing'" in stderr
    assert main(["eval", str(trained("gda")), "templates=openai7"]) == 2
    assert "its templates can't be changed afterwards" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    with pytest.raises(ConfigError, match="tip_adapter/smoke learns a head of its own classes|smoke learns a head"):
        base_first(["tip_adapter/smoke"], str(tmp_path))


def test_templates_of_the_data_take_the_place_of_the_runs(trained, close):
    from jclip.prompts.templates import class_prompts, load_templates

    done = Classifier.load(trained("full"), ["templates=a {} tile."])
    source = done.source()
    there = done.telling_apart(done.classnames, source)
    text = source.model.encode_text(
        source.model.tokenize([p for c in class_prompts(NAMES[:3], load_templates("a {} tile.")) for p in c])
    )
    close(there.learned["text"], unit(text.numpy()), "features_normalised")
    assert done.telling_apart(done.classnames, source) is not done
    assert np.abs(there.learned["text"] - done.learned["text"]).max() > 1e-3


def test_predict_names_the_data_classes(trained, tmp_path):
    out = tmp_path / "r.csv"
    assert main(["predict", str(trained("full")), "data.subset=new", "--out", str(out)]) == 0
    with open(out, encoding="utf-8", newline="") as f:
        assert {row["class_1"] for row in csv.DictReader(f)} <= {*NAMES[3:]}


# --- the commands


def test_harmonic_mean_by_hand():
    assert harmonic_mean(0.5, 0.25) == pytest.approx(1 / 3) and harmonic_mean(0.7, 0.7) == pytest.approx(0.7)
    assert harmonic_mean(0.0, 0.0) == 0.0 == harmonic_mean(0.0, 1.0)
    assert harmonic_mean(0.6934, 0.7422) == pytest.approx(0.7170, abs=5e-5)  # CLIP's mean of 11 data sets


def test_base_to_new(trained, tmp_path, capsys, monkeypatch, close):
    """Zero-shot beside is that of the model before, H that of the two columns; towers are loaded once each."""
    from jclip.model import clip

    loads, build = [], clip.build
    monkeypatch.setattr(clip, "build", lambda *a: (loads.append(a[0].path), build(*a))[1])
    folder = trained("full")
    loads.clear()
    assert main(["eval", str(folder), "--base-to-new", "--out", str(tmp_path)]) == 0
    assert len(loads) == 2 == len({*loads})  # the tuned model and the one before
    written = json.loads((tmp_path / "base_to_new.json").read_text())
    before = {s: metrics_of(trained("zero_shot", s)) for s in ("base", "new")}
    for half_ in ("base", "new"):
        close(written[f"zero_shot_{half_}_nll"], before[half_]["test_nll"], "scores")
        assert written[f"{half_}_top1"] == written[f"{half_}_correct"] / written[f"{half_}_count"]
    assert round(written["base_top1"], 6) == metrics_of(folder)["test_top1"] and written["base_count"] == 12
    b, n = written["base_top1"], written["new_top1"]
    assert written["harmonic_mean"] == pytest.approx(2 * b * n / (b + n) if b + n else 0)
    with open(tmp_path / "base_to_new.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.reader(f))
    assert rows[0] == ["", "base", "new", "H"] and [row[0] for row in rows[1:]] == ["zero-shot", "this run"]
    assert rows[2][1:] == [f"{written[k]:.4f}" for k in ("base_top1", "new_top1", "harmonic_mean")]
    loads.clear()
    assert main(["eval", str(folder), "--base-to-new", "--out", str(tmp_path)]) == 0
    assert not loads  # features and heads were kept
    capsys.readouterr()
    assert main(["eval", str(trained("zero_shot", "new")), "--base-to-new"]) == 2
    assert "train it with data.subset=base" in capsys.readouterr().err


def test_several_sets_in_one_command(trained, five, tmp_path, capsys, close):
    plain = photos_of(tmp_path / "plain", NAMES[1:4], parts=(".",))  # class folders without parts: measured whole
    (tmp_path / "sets.yaml").write_text(
        "two: {data: {root: plain, subset: base}, templates: 'a {}.'}\nthree: {data: {root: plain}}\n"
    )
    folder, sketch = trained("full"), ["--on", "own", f"data.root={five}", "data.subset=base"]
    out = ["--out", str(tmp_path / "out")]
    assert main(["eval", str(folder), *sketch, "--on", str(tmp_path / "sets.yaml"), *out]) == 0
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "sets.json").read_text())
    sets = written["sets"]
    assert [(k, m["classes"], m["count"]) for k, m in sets.items()] == [("own", 3, 12), ("two", 2, 8), ("three", 3, 12)]
    assert round(sets["own"]["top1"], 6) == metrics_of(folder)["test_top1"]
    close(sets["own"]["zero_shot_nll"], metrics_of(trained("zero_shot"))["test_nll"], "scores")
    assert written["mean"]["top1"] == pytest.approx(np.mean([m["top1"] for m in sets.values()]))
    assert f"{written['mean']['top1']:.4f}" in printed.splitlines()[-2]
    again = Classifier.load(folder, [f"data.root={plain}", "data.shots=0", "templates=a {}."])
    photos = read_photos(replace(again.config.data, subset="base")).train
    scores = again.telling_apart((NAMES[1], NAMES[2]), again.source()).label(photos)[0].scores
    assert (scores.argmax(axis=1) == photos.labels).mean() == sets["two"]["top1"]
    with open(tmp_path / "out" / "sets.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [row["set"] for row in rows] == ["own", "two", "three", "mean"] and rows[1]["photos"] == "8"


def test_what_is_wrong_with_sets_is_reported_before_anything_is_computed(trained, five, tmp_path, capsys):
    (tmp_path / "sets.yaml").write_text(f"a: {{data: {{root: '{five}'}}}}\nb: {five}\n")
    wrong = {
        ("x",): "--on x: must be NAME data.root=",
        ("data.root=a", "data.seed=1"): "--on data.root=a: must be NAME",
        ("x", "model=ViT-B/32"): "--on x: a set has data.… settings and templates, got model",
        ("x", "data.rot=1"): "--on x: unknown key data.rot, did you mean 'root'",
        ("x", f"data.root={five}", "data.draft=true"): "--on x: data.draft must be set for all sets",
        (str(tmp_path / "sets.yaml"),): "sets.yaml: b must be a group of settings",
        ("x", "data.root=nowhere"): "data.root must be a folder",
    }
    for given, message in wrong.items():
        assert main(["eval", str(trained("zero_shot")), "--on", *given]) == 2
        assert message in (line := capsys.readouterr().err) and line.count("\n") == 1
    assert main(["eval", str(trained("zero_shot")), "--on", "x", "data.root=a", "--on", "x", "data.root=b"]) == 2
    assert "x stands there twice" in capsys.readouterr().err


def test_a_model_that_is_no_longer_there_leaves_zero_shot_out(trained, tmp_path, capsys):
    gone = ["model=gone.safetensors", "--base-to-new", "--out", str(tmp_path)]
    assert main(["eval", str(trained("full")), *gone]) == 0
    printed = capsys.readouterr()
    assert "zero-shot is left out: " in printed.err and "zero-shot" not in printed.out and "this run" in printed.out


def test_names_of_folders(five, tmp_path):
    names = tmp_path / "classnames.txt"
    for text, message in (
        ("blue 0\n", "data.classes holds `folder name` lines"),
        (
            "blue a thing\n",
            "classnames.txt must have a line `folder name` for each of 5 class folders, and lacks 5: blue thing, green_thing",
        ),
    ):
        names.write_text(text)
        with pytest.raises(DataError, match=message):
            read_photos(DataConfig(root=str(five), classes=str(names)))


def test_a_sweep_has_base_new_and_H(tmp_path, capsys):
    command = ["sweep", "zero_shot/smoke", "clip_adapter/smoke", "seed=1,2", "--base-to-new"]
    assert main([*command, "--runs", str(tmp_path / "r"), "--out", str(tmp_path / "o")]) == 0
    printed = capsys.readouterr().out
    with open(tmp_path / "o" / "sweep.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 4
    for row in rows:
        written = json.loads((Path(row["run"]) / "base_to_new.json").read_text())
        assert float(row["base_top1"]) == written["base_top1"] and round(written["base_top1"], 6) == float(
            row["test_top1"]
        )
        assert float(row["new_top1"]) == written["new_top1"]
    own = [float(r["harmonic_mean"]) for r in rows if r["recipe"] == "clip_adapter"]
    assert f"{100 * np.mean(own):.2f} ± {100 * np.std(own):.2f}" in printed and "zero-shot" in printed


@pytest.mark.parametrize("name", [n for n in finetune.names() if hasattr(finetune.load(n), "for_classes")])
def test_the_seam_has_one_form(name):
    import inspect

    assert list(inspect.signature(finetune.load(name).for_classes).parameters) == [
        "learned", "cfg", "classnames", "source",
    ]  # fmt: skip


def test_the_commands_of_the_page_print_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for lang, marks, text in blocks(ROOT / "docs" / "evaluation.md"):
        if lang == "sh":
            capsys.readouterr()
            for line in text.splitlines():
                program, *arguments = shlex.split(line, comments=True)
                assert program == "jclip" and main(arguments) == 0
            printed = capsys.readouterr().out
        elif lang == "text":
            assert said(text, printed, "about" in marks), f"expected\n{text}\ngot\n{printed}"
    assert {"sets.csv", "base_to_new.csv"} <= {p.name for p in (tmp_path / "runs" / "base").iterdir()}
