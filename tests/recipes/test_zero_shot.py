"""The zero-shot recipe: figures of the recorded real features, and photos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jclip.cli import main
from jclip.data import world
from jclip.errors import ConfigError, DataError
from jclip.readers import read_weights
from jclip.report.predictor import Classifier
from jclip.train.configs import read_config
from tests.recipes import toys

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "zero_shot"


def train(name, folder, *overrides):
    return toys.train(CONFIGS / name, folder, *overrides)


def test_the_published_figure(shared, tmp_path):
    metrics = train("features_caltech_lvis.yaml", tmp_path)
    d = np.load(shared / "clip_vitb32_features" / "caltech_lvis.npz")
    right = (d["test_features"].astype(np.float64) @ d["text_features"].astype(np.float64).T).argmax(1) == d[
        "test_labels"
    ]
    assert metrics["test_correct"] == 900 == right.sum() and metrics["test_count"] == 922


def test_features_without_text_ask_for_a_model(shared, tmp_path):
    with pytest.raises(DataError, match="set model="):
        train(
            "features_caltech_lvis.yaml",
            tmp_path,
            f"data.features={shared / 'clip_vitb32_features' / 'oxford_pets.npz'}",
        )


def test_photos_agree_with_the_command(small_models, photo_folder, tmp_path, monkeypatch, capsys):
    """The recipe on a test folder and `jclip zero-shot` on the same photos say the same."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        f"recipe: zero_shot\nmodel: '{small_models['vit']}'\ndata: {{root: '{photo_folder}', shots: 0}}\n",
        encoding="utf-8",
    )
    assert main(["train", "mine.yaml", "--run", "run"]) == 0
    assert main(["predict", "run", str(photo_folder / "test"), "--out", "recipe.json"]) == 0
    names = sorted((p.name for p in (photo_folder / "train").iterdir()), key=lambda n: n.encode())
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    options = [
        "--model",
        str(small_models["vit"]),
        "--classes",
        "names.txt",
        "--templates",
        "openai7",
        "--out",
        "command.json",
    ]
    assert main(["zero-shot", str(photo_folder / "test"), *options]) == 0
    written = [json.loads((tmp_path / f"{n}.json").read_text(encoding="utf-8")) for n in ("recipe", "command")]
    assert written[0] == written[1] and len(written[0]) == 18


def models_yaml(tmp_path, data: str, *members: str, **settings) -> Path:
    lines = [f"{k}: {v}" for k, v in {"recipe": "zero_shot", "data": data, **settings}.items()]
    (tmp_path / "mine.yaml").write_text(
        "\n".join([*lines, "models:", *(f"  - {m}" for m in members)]), encoding="utf-8"
    )
    return tmp_path / "mine.yaml"


@pytest.fixture
def two(small_models) -> list[str]:
    return [f"{{weights: '{small_models[kind]}', prompts: simple, mode: {mode}}}" for kind, mode in
            (("vit", "max"), ("resnet", "embed"))]  # fmt: skip


def test_weights_are_searched_on_validation_and_kept(two, small_models, photo_folder, tmp_path, monkeypatch, close):
    """The run's figures are those of the weights that the search found, alone or on photos; and no others are as good."""
    monkeypatch.chdir(tmp_path)
    data = f"{{root: '{photo_folder}', shots: 2, val_shots: 6}}"
    metrics = toys.train(models_yaml(tmp_path, data, *two, search="true", step=0.1), tmp_path / "run")
    found = [metrics["weight_0"], metrics["weight_1"]]
    close(sum(found), 1.0, "rounding")
    val = []
    for tenths in range(11):
        given = [two[0].replace("}", f", weight: {tenths}}}"), two[1].replace("}", f", weight: {10 - tenths}}}")]
        one = toys.train(models_yaml(tmp_path, data, *given), tmp_path / f"{tenths}")
        val.append(one["val_correct"])
        if tenths == round(10 * found[0]):
            assert {k: one[k] for k in metrics if "top" in k} == {k: v for k, v in metrics.items() if "top" in k}
    assert metrics["val_correct"] == max(val) and val[round(10 * found[0])] == max(val) > min(val)
    assert main(["eval", "run"]) == 0
    written = json.loads((tmp_path / "run" / "eval.json").read_text())
    close(written["top1"], metrics["test_top1"], "rounding")
    place = f"models.0.weights={shutil.copy(small_models['vit'], tmp_path / 'moved.safetensors')}"
    assert main(["predict", "run", str(photo_folder / "test"), place, "--out", "all.csv"]) == 0
    assert len((tmp_path / "all.csv").read_text(encoding="utf-8").splitlines()) == 19


def test_other_classes_take_the_weights_along(two, photo_folder, small_models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    toys.train(models_yaml(tmp_path, f"{{root: '{photo_folder}', subset: base}}", *two), tmp_path / "run")
    assert main(["eval", "run", "--base-to-new"]) == 2  # three classes have but one new
    assert "only one class" in capsys.readouterr().err
    toys.train(models_yaml(tmp_path, f"{{root: '{photo_folder}'}}", *two), tmp_path / "whole")
    assert main(["eval", "run", f"data.root={photo_folder}", "data.subset=all", "--out", "other"]) == 0
    written = [json.loads((tmp_path / name).read_text()) for name in ("other/eval.json", "whole/result.json")]
    assert written[0]["correct"] == written[1]["metrics"]["test_correct"] and written[0]["count"] == 18


def test_folders_without_parts_are_measured_whole(two, photo_folder, tmp_path):
    metrics = toys.train(models_yaml(tmp_path, f"{{root: '{photo_folder / 'train'}'}}", *two), tmp_path / "run")
    assert metrics["test_count"] == 30 and "val_count" not in metrics
    searched = models_yaml(tmp_path, f"{{root: '{photo_folder / 'train'}'}}", *two, search="true")
    metrics = toys.train(searched, tmp_path / "searched")
    assert (metrics["val_count"], metrics["test_count"]) == (6, 24)  # a fifth of each class's ten


def test_the_fields_of_clip_benchmark(two, photo_folder, tmp_path, close):
    metrics = toys.train(models_yaml(tmp_path, f"{{root: '{photo_folder}'}}", *two), tmp_path / "run")
    written = json.loads((tmp_path / "run" / "benchmark.json").read_text(encoding="utf-8"))
    assert list(written) == ["dataset", "model", "pretrained", "task", "metrics", "language"]
    assert written["metrics"].pop("acc5") is None and written["task"] == "zeroshot_classification"  # of three classes
    close(written["metrics"].pop("acc1"), metrics["test_top1"], "rounding")
    close(written["metrics"].pop("mean_per_class_recall"), metrics["test_mean_per_class"], "rounding")
    assert not written["metrics"]
    assert written["dataset"] == photo_folder.name and written["model"].count(" + ") == 1


def test_names_of_a_benchmark_stand_in_place_of_folders(small_models, photo_folder, tmp_path):
    """Folders in the order of the labels take the names one after the other; folders with known names are among them."""
    from jclip.features.heads import zero_shot_head
    from jclip.features.source import ModelSource

    (tmp_path / "names.txt").write_text("a hat\na cat\na dog\n")
    (tmp_path / "mine.yaml").write_text(
        f"recipe: zero_shot\nmodel: '{small_models['vit']}'\ntemplates: 'a {{}}'\ndata: {{root: '{photo_folder}'}}\n"
        "classes: names.txt\n", encoding="utf-8",
    )  # fmt: skip
    toys.train(tmp_path / "mine.yaml", tmp_path / "run")
    learned = read_weights(tmp_path / "run" / "learned.safetensors")
    head = zero_shot_head(ModelSource(small_models["vit"]), [["a a hat"], ["a a cat"], ["a a dog"]])
    assert np.array_equal(learned["text"].read(), head.weights)
    (tmp_path / "names.txt").write_text("a hat\nBlue thing\n绿_thing\nred thing\n", encoding="utf-8")
    toys.train(tmp_path / "mine.yaml", tmp_path / "among")
    rows = (tmp_path / "among" / "learned.safetensors").read_bytes()
    assert "绿_thing".encode() in rows
    (tmp_path / "names.txt").write_text("a hat\nBlue thing\n", encoding="utf-8")
    with pytest.raises(DataError, match="2 of which are none of the 2 that are named"):
        toys.train(tmp_path / "mine.yaml", tmp_path / "few")


def test_eval_and_predict_see_the_classes_that_the_run_saw(small_models, photo_folder, tmp_path, monkeypatch, capsys):
    """Among more names than the data has, all later commands measure as the run did; sets have classes of their own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("a hat\nred thing\n绿 thing\na shoe\nblue thing\n", encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(
        f"recipe: zero_shot\nmodel: '{small_models['vit']}'\ntemplates: 'a {{}}'\n"
        f"data: {{root: '{photo_folder}'}}\nclasses: names.txt\n", encoding="utf-8",
    )  # fmt: skip
    metrics = toys.train(tmp_path / "mine.yaml", tmp_path / "run")
    assert main(["eval", "run"]) == 0 and main(["predict", "run", "--out", "all.json"]) == 0
    written = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert (written["correct"], round(written["nll"], 6)) == (metrics["test_correct"], metrics["test_nll"])
    assert f"top-1 {written['top1']:.4f} of these photos" in capsys.readouterr().out
    assert main(["eval", "run", "--on", "own", f"data.root={photo_folder}", "--out", "sets"]) == 0
    assert json.loads((tmp_path / "sets" / "sets.json").read_text())["sets"]["own"]["classes"] == 3


def test_recorded_features_are_measured_among_the_same_classes(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows, labels = rng.standard_normal((12, 5)).astype(np.float32), np.arange(12) % 3
    parts = {f"{part}_features{end}": rows for part, end in (("train", "_1"), ("val", ""), ("test", ""))}
    parts |= {f"{part}_labels{end}": labels for part, end in (("train", "_1"), ("val", ""), ("test", ""))}
    np.savez(tmp_path / "f.npz", classnames=np.array(["cat", "dog", "owl"]), **parts)
    np.save(tmp_path / "text.npy", rng.standard_normal((6, 5)).astype(np.float32))
    (tmp_path / "names.txt").write_text("hat\nowl\nshoe\ncat\ntree\ndog\n")
    (tmp_path / "mine.yaml").write_text(
        "recipe: zero_shot\nclasses: names.txt\ndata: {features: f.npz, text_features: text.npy, shots: 1}\n"
    )
    monkeypatch.chdir(tmp_path)
    metrics = toys.train(tmp_path / "mine.yaml", tmp_path / "run")
    assert main(["eval", "run"]) == 0
    written = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert (written["correct"], round(written["nll"], 6)) == (metrics["test_correct"], metrics["test_nll"])


def test_photos_that_changed_since_the_run_are_reported(small_models, photo_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photo_folder, tmp_path / "photos")
    (tmp_path / "mine.yaml").write_text(f"recipe: zero_shot\nmodel: '{small_models['vit']}'\ndata: {{root: photos}}\n")
    toys.train(tmp_path / "mine.yaml", tmp_path / "run")
    capsys.readouterr()
    assert main(["eval", "run"]) == 0 and main(["predict", "run"]) == 0
    assert "changed" not in capsys.readouterr().err
    first = min((tmp_path / "photos" / "test").rglob("*.png"))
    shutil.copyfile(max((tmp_path / "photos" / "test").rglob("*.png")), first)
    for command in (["eval", "run"], ["predict", "run"]):
        assert main(command) == 0
        stderr = capsys.readouterr().err
        assert (
            "the run's test photos have changed since it finished: now 18, 1 of them later than result.json" in stderr
        )
        assert f"(first: {first})" in stderr and "train photos" not in stderr
    assert main(["eval", "run", "data.root=photos/test", "--out", "o"]) in (0, 2)
    assert "have changed" not in capsys.readouterr().err  # other data was asked for


def test_photos_that_change_before_the_run_ends_are_measured_as_it_saw_them(
    small_models, photo_folder, tmp_path, monkeypatch, capsys
):
    """What is written last is of the scores handed over; a later command reports the change."""
    import jclip.commands.train as command

    monkeypatch.chdir(tmp_path)
    shutil.copytree(photo_folder, tmp_path / "photos")
    (tmp_path / "mine.yaml").write_text(f"recipe: zero_shot\nmodel: '{small_models['vit']}'\ndata: {{root: photos}}\n")
    write = command.write_handed_over
    test = sorted((tmp_path / "photos" / "test").rglob("*.png"))

    def after_a_change(*arguments):
        shutil.copyfile(test[-1], test[0])
        test[1].write_bytes(b"no photo any more")
        return write(*arguments)

    monkeypatch.setattr(command, "write_handed_over", after_a_change)
    assert main(["train", "mine.yaml", "--run", "run"]) == 0
    assert "have changed" not in capsys.readouterr().err
    result, stderr = (json.loads((tmp_path / "run" / name).read_text()) for name in ("result.json", "eval.json"))
    assert stderr["correct"] == result["metrics"]["test_correct"]
    assert len((tmp_path / "run" / "predictions.csv").read_text().splitlines()) == 1 + len(test)
    test[1].unlink()
    shutil.copyfile(test[2], test[1])
    assert main(["eval", "run"]) == 0
    stderr = capsys.readouterr().err
    assert "the run's test photos have changed since it finished: now 18" in stderr and "train photos" not in stderr


def test_1203_classes_of_lvis(shared, tmp_path):
    """Photos of 35 classes among the recorded text of all LVIS names: the count of a product written out."""
    metrics = train("features_lvis.yaml", tmp_path)
    d = np.load(shared / "clip_vitb32_features" / "caltech_lvis.npz")
    names = json.loads((shared / "clip_vitb32_text" / "lvis_v1_train_cat_info.json").read_text())
    by_id = sorted(names, key=lambda entry: entry["id"])
    places = []
    for name in (str(c).replace(" ", "_") for c in d["classnames"]):
        own = [k for k, entry in enumerate(by_id) if entry["name"] == name]
        places.append((own or [k for k, entry in enumerate(by_id) if name in entry["synonyms"]])[0])
    text = np.load(shared / "clip_vitb32_text" / "lvis_v1_clip_a+cname.npy").astype(np.float64)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    right = (d["test_features"].astype(np.float64) @ text.T).argmax(1) == np.array(places)[d["test_labels"]]
    assert metrics["test_correct"] == right.sum() == 559 and metrics["test_count"] == 922 and len(text) == 1203


def test_photos_of_several_classes(small_models, photo_folder, tmp_path, close):
    """From folders in which one photo lies twice, and from a list of all labels: the mean of each class's precision."""
    from sklearn.metrics import average_precision_score

    from jclip.commands.zero_shot_photos import classify
    from jclip.features.member import Member

    root, paths = tmp_path / "photos", sorted((photo_folder / "test").rglob("*.png"))
    names, targets, lines = ["blue thing", "red_thing", "绿 thing"], [], []
    for i, path in enumerate(paths):
        own = sorted({names.index(path.parent.name), *([i % 3] if i % 2 else [])})
        targets.append([k in own for k in range(3)])
        lines.append(f"{path.parent.name}/{path.name} {' '.join(map(str, own))}")
        for k in own:
            (root / names[k]).mkdir(parents=True, exist_ok=True)
            (root / names[k] / f"{k} of {path.name}").write_bytes(path.read_bytes())
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "names.txt").write_text("".join(f"{name} {k}\n" for k, name in enumerate(names)), encoding="utf-8")
    head = f"recipe: zero_shot\nmulti_label: true\nmodel: '{small_models['vit']}'\n"
    by_list = f"{{root: '{photo_folder / 'test'}', test: list.txt, classes: names.txt}}"
    scores = classify([Member(str(small_models["vit"]), "openai7")], list(map(str, paths)), names).scores
    wanted = [average_precision_score(np.array(targets)[:, k], scores[:, k]) for k in range(3)]
    assert np.array(targets).sum(axis=1).max() == 2
    for run, data in (("folders", f"{{root: '{root}'}}"), ("list", by_list)):
        (tmp_path / "mine.yaml").write_text(f"{head}data: {data}\n", encoding="utf-8")
        metrics = toys.train(tmp_path / "mine.yaml", tmp_path / run)
        close(metrics["test_map"], np.mean(wanted), "probabilities_at_100", "mAP of several classes")
        assert metrics["test_count"] == 18
        written = json.loads((tmp_path / run / "benchmark.json").read_text())["metrics"]
        close(written["mean_average_precision"], metrics["test_map"], "rounding")
    rows = (tmp_path / "list" / "per_class.csv").read_text(encoding="utf-8").splitlines()
    assert rows[1] == f"blue thing,{np.array(targets)[:, 0].sum()},{wanted[0]:.4f}"
    (tmp_path / "list.txt").write_text("none.png 0 3\n")
    with pytest.raises(DataError, match="list.txt, line 1: label 3 is beyond the 3 classes"):
        toys.train(tmp_path / "mine.yaml", tmp_path / "wrong")


@pytest.mark.parametrize(
    "method, tower", [("dense", "resnet"), ("places", "resnet"), ("tagclip", "vit"), ("dense", "vit")]
)
def test_places_are_rows_of_the_same_measurement(method, tower, small_models, photo_folder, tmp_path, close):
    """Their mAP is scikit-learn's of the tagger's own scores, normalised by photo and by class in NumPy where asked."""
    from jclip.features.source import ModelSource
    from jclip.features.tagging import Tagger

    average_precision_score = pytest.importorskip("sklearn.metrics").average_precision_score
    paths = sorted((photo_folder / "test").rglob("*.png"))[:9]
    names, targets = ("red thing", "green thing", "blue thing"), np.arange(9)[:, None] % 3 == np.arange(3)
    lines = [f"{path.relative_to(photo_folder)} {k % 3}\n" for k, path in enumerate(paths)]
    (tmp_path / "list.txt").write_text("".join(lines))
    (tmp_path / "names.txt").write_text("".join(f"{name} {k}\n" for k, name in enumerate(names)))
    head = (
        f"recipe: zero_shot\nmulti_label: true\nmodel: '{small_models[tower]}'\ntemplates: simple\nmethod: {method}\n"
    )
    data = f"data: {{root: '{photo_folder}', test: '{tmp_path}/list.txt', classes: '{tmp_path}/names.txt'}}\n"
    (tmp_path / "mine.yaml").write_text(head + data, encoding="utf-8")
    scores = Tagger(ModelSource(small_models[tower]), names, "simple", method=method).scores([*map(str, paths)])
    for normalise in ("none", "image+class"):
        if normalise != "none":
            scores = scores.astype(np.float64)
            for axis in (1, 0):
                scores = (scores - scores.mean(axis, keepdims=True)) / scores.std(axis, keepdims=True)
        wanted = np.mean([average_precision_score(targets[:, k], scores[:, k]) for k in range(3)])
        metrics = toys.train(tmp_path / "mine.yaml", tmp_path / normalise.replace("+", "_"), f"normalise={normalise}")
        close(metrics["test_map"], wanted, "probabilities_at_100", "mAP by places")
        assert metrics["test_count"] == 9


def test_unknown_photos_are_counted(small_models, photo_folder, tmp_path, close):
    head = f"recipe: zero_shot\nmodel: '{small_models['vit']}'\ndata: {{root: '{photo_folder}'}}\n"
    (tmp_path / "mine.yaml").write_text(head, encoding="utf-8")
    assert "test_known" not in toys.train(tmp_path / "mine.yaml", tmp_path / "all")
    done = Classifier.load(tmp_path / "all")
    predictions = done.predict([photo_folder / "test"])
    best = predictions.probabilities.max(1)
    assert predictions.known.all()
    metrics = toys.train(tmp_path / "mine.yaml", tmp_path / "run", f"unknown={np.median(best):.6f}")
    sure = Classifier.load(tmp_path / "run").predict([photo_folder / "test"]).known
    labels = np.array([done.classnames.index(Path(p).parent.name) for p in predictions.photos])
    assert np.array_equal(sure, best >= np.median(best).round(6)) and 0 < sure.sum() < 18
    close(metrics["test_known"], sure.mean(), "rounding")
    close(metrics["test_known_top1"], (predictions.best[sure, 0] == labels[sure]).mean(), "rounding")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["search=true"], "search=true weighs several models"),
        (["unknown=1.5"], r"unknown in \[0, 1\), got .* and 1.5"),
        (["drop_below=0.1"], "mode prob-prompts"),
        (["model=x.pt", "models=[{weights: y.pt}]"], "leave model and data.features out"),
        (["models=[{weights: x.pt, mode: prob-prompts}]", "drop_below=0.1", "drop_below_uniform=0.5"], "one threshold"),
        (["models=[{weights: x.pt}]", "models.1.mode=max"], "1 is none of the list's 1 entries"),
        (["models=[{prompts: simple}]"], "models.0.weights is missing"),
        (["models=[{weights: x.pt}]", "data.draft=true"], "set models.0.preprocess.draft"),
        (["multi_label=true", "classes=imagenet1k", "model=x.pt"], "leave search, classes"),
        (["method=dense", "model=x.pt"], "method and normalise are of photos of several classes, got method=dense"),
    ],
)
def test_wrong_settings(settings, message):
    data = "data.features=" if settings[0].startswith("models") and "model=x" not in settings[0] else "data.shots=4"
    with pytest.raises(ConfigError, match=message):
        read_config(str(CONFIGS / "smoke.yaml"), [data, *settings])


@pytest.mark.parametrize("method", ["whole", "places"])
def test_eval_of_several_labels_finds_what_the_run_found(method, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(world, "SCENE_COUNTS", {"val": 3, "test": 12})
    monkeypatch.setattr(world, "cache_dir", lambda *parts: tmp_path)
    config = tmp_path / "labels of photos.yaml"
    config.write_text("recipe: zero_shot\nmodel: shapes-tiny-rn\ndata: {root: 'shapes:scenes'}\nmulti_label: true\n")
    folder = str(tmp_path / "run")
    assert main(["train", str(config), f"method={method}", "--run", folder]) == 0
    table, result = Path(folder, "per_class.csv").read_bytes(), json.loads(Path(folder, "result.json").read_text())
    capsys.readouterr()
    assert main(["eval", folder]) == 0
    found = json.loads(Path(folder, "eval.json").read_text())
    assert {"map": round(found["map"], 6), "count": found["count"]} == {
        "map": round(result["metrics"]["test_map"], 6), "count": 12,
    }  # fmt: skip
    assert Path(folder, "per_class.csv").read_bytes() == table
    assert f"mAP {100 * found['map']:.2f} of 12 photos" in capsys.readouterr().out
