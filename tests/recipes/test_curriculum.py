"""Curricula end to end: boxes of the embedded world, files of phrases, wrong labels of photos; killed, planned, refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from finetune import curriculum as recipe
from jclip.cli import main
from jclip.data.box_rows import BoxRow
from jclip.data.box_tables import read_box_lines, write_box_lines
from jclip.data.named_things import count_things
from jclip.errors import ConfigError, DataError, UnknownName
from jclip.functional import metrics
from jclip.report import row_sets
from jclip.report.box_row_set import BoxRowSet
from jclip.report.curriculum_files import spelt
from jclip.report.label_row_set import LabelRowSet
from jclip.report.predictor import Predictor
from jclip.train.configs import build_config, read_config, resolved
from jclip.train.curriculum_state import STATE
from jclip.train.run import Run
from tests.killed import killed_at, made_again
from tests.tolerances import tolerance

BY_ELEVEN = """
import finetune
from jclip.cli import main
from jclip.report import row_scores
row_scores.PART = 11
main(sys.argv[1:])
"""
SMOKE = Path(__file__).parents[2] / "configs" / "curriculum" / "smoke.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The smoke config, MSA over two sources."""
    folder = tmp_path_factory.mktemp("curricula") / "a, b"
    assert main(["train", str(SMOKE), "--run", str(folder), "dataset=unc"]) == 0
    return folder


def state_of(folder: Path) -> dict:
    return json.loads((folder / STATE).read_text())


def test_every_training_is_a_run_and_the_chosen_rows_are_written(finished):
    state, result = state_of(finished), json.loads((finished / "result.json").read_text())["metrics"]
    runs = sorted(path.name for path in finished.glob("training-*"))
    assert runs == sorted(t["run"] for t in state["trainings"].values()) and len(runs) == result["trainings"]
    kept = state["result"]["kept"]
    selected = read_box_lines(finished / "selected.jsonl")
    assert len(selected) == result["rows"] == sum(map(len, kept.values()))
    winner = finished / state["result"]["run"]
    assert (winner / "rows.jsonl").read_text().count("\n") == result["rows"]
    assert result["val_accuracy"] == json.loads((winner / "result.json").read_text())["metrics"]["val_acc@0.5"]
    stages = [s for s in state["result"]["stages"] if s["used"]]
    for place, stage in enumerate(stages, start=1):
        name = f"{place}_unc_train_pseudo_{stage['source']}_{spelt(stage['threshold'])}.pth"
        assert (finished / name).is_file(), name
    assert (finished / "unc_train_pseudo.pth").is_file() and (finished / "histograms.png").is_file()


def test_reliabilities_are_ious_of_each_measurer(finished):
    """Those in the chosen rows, measured again one by one by the measurer's run."""
    state = state_of(finished)
    histograms = json.loads((finished / "histograms.json").read_text())
    assert histograms["bins"] == 1000 and {*histograms["measurers"]} == {"template", "caption"}
    for own in histograms["measurers"].values():
        assert all(sum(found["counts"]) + found["zeros"] == found["rows"] for found in own.values())
    _module, cfg, _ = read_config(str(SMOKE))
    rows = recipe.read_rows(cfg)
    whole = next(
        t["run"] for t in state["trainings"].values()
        if (finished / t["run"] / "rows.jsonl").read_text().count("\n") == len(rows.sources["template"])
    )  # fmt: skip
    done = Predictor.load(finished / whole)
    some = list(rows.sources["template"])[:7]
    together = rows.reliability(done, some)
    alone = np.concatenate([rows.only([n]).reliability(done, [0]) for n in some])
    np.testing.assert_allclose(together, alone, atol=tolerance("reliability_batches"))
    first = read_box_lines(finished / "selected.jsonl")[0]
    assert first.reliability["template"] == pytest.approx(together[0], abs=1e-6)


def test_a_curriculum_answers_by_its_winner(finished, tmp_path):
    from PIL import Image

    done = Predictor.load(finished)
    assert done.winner.folder.name == state_of(finished)["result"]["run"]
    found = done.predict(Image.new("RGB", (40, 30)), "red circle")
    assert found == done.winner.predict(Image.new("RGB", (40, 30)), "red circle")
    assert main(["eval", str(finished), "--out", str(tmp_path / "measured")]) == 0
    assert (tmp_path / "measured" / "boxes.jsonl").is_file()
    Image.new("RGB", (40, 30)).save(tmp_path / "a photo.png")
    assert main(["ground", str(tmp_path / "a photo.png"), "red circle", "--run", str(finished)]) == 0


@pytest.mark.slow  # six processes
def test_killed_five_times_it_ends_with_equal_results(finished):
    """After the first training, in the second, at a score, at another training, and before the table."""
    arguments = ("train", str(SMOKE), "--run", str(finished), "dataset=unc")
    kills = [
        (f"*{STATE}", 1),
        ("*/training-*/learned.safetensors", 1),
        ("*scores-*", 1),
        (f"*{STATE}", 2),
        ("*road.csv", 1),
    ]
    with made_again(finished):
        for pattern, times in kills:
            killed_at(pattern, *arguments, times=times)
        assert main([*arguments]) == 0


def test_files_are_sources_and_held_out_pseudo_labels_choose(tmp_path, monkeypatch):
    world = tmp_path / "my world, 1"
    assert main(["world", str(world), "--scenes", "30", "--seed", "3"]) == 0
    monkeypatch.chdir(tmp_path)
    settings = [
        f"data.sources={{template: '{world}/template.jsonl', relation: '{world}/relation.jsonl'}}", "mode=ssa",
        "source=relation", "selection=pseudo_val", "held_out=0.2", "learn.data.val=''", "learn.data.val_scenes=0",
        "proxy_epochs=1", "learn.optim.epochs=2",
    ]  # fmt: skip
    _module, cfg, _ = read_config(str(SMOKE), settings)
    rows = recipe.read_rows(cfg)
    held = recipe.held_rows(cfg, rows)
    photos = {rows.group(n) for n in held}
    assert 0 < len(held) < len(rows) and {n for n in range(len(rows)) if rows.group(n) in photos} == {*held}
    assert main(["train", str(SMOKE), "--run", "run", *settings]) == 0
    learned = read_box_lines("run/selected.jsonl")
    assert learned and not photos & {row.image for row in learned} and {r.source for r in learned} == {"relation"}
    assert {row.image for row in read_box_lines("run/held.jsonl")} == photos
    epochs = {
        json.loads((f / "result.json").read_text())["config"]["optim"]["epochs"] for f in Path("run").glob("training-*")
    }
    assert epochs == {1, 2}


def noisy(folder: Path, seed: int, classes: int = 5, shots: int = 24, wrong: float = 0.3) -> tuple[Path, np.ndarray]:
    """Features of classes that lie apart, of which 30 % of the training labels are others'; which ones are wrong."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, 16))

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(classes), count)
        return (centres[labels] + 0.9 * rng.standard_normal((len(labels), 16))).astype(np.float32), labels

    (train, labels), (val, val_labels), (test, test_labels) = drawn(shots), drawn(40), drawn(80)
    faulty = rng.random(len(labels)) < wrong
    given = np.where(faulty, (labels + rng.integers(1, classes, len(labels))) % classes, labels)
    path = folder / f"noisy {seed}.npz"
    np.savez(
        path, train_features_16=train, train_labels_16=given, val_features=val, val_labels=val_labels, test_features=test,
        test_labels=test_labels, classnames=np.array(list("abcde")),
    )  # fmt: skip
    return path, faulty


LABELS = {
    "recipe": "curriculum", "mode": "ssa", "start": 0.3, "low": 0.1, "high": 0.6,
    "learn": {"recipe": "gda", "shrinkage": "none", "data": {"features": "asset:smoke_features.npz"}},
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_wrong_labels_of_photos_are_found(seed, tmp_path):
    path, faulty = noisy(tmp_path, seed)
    values = {**LABELS, "data": {"sources": {"human": str(path)}}}
    values["learn"] = {**LABELS["learn"], "data": {"features": str(path), "shots": 16}}
    module, cfg = build_config(values, "here")
    with Run(tmp_path / "run", resolved(module, cfg), quiet=True) as run:
        result = run.finish(module.run(cfg, run))["metrics"]
    kept = np.zeros(len(faulty), bool)
    kept[state_of(tmp_path / "run")["result"]["kept"]["human"]] = True
    assert kept[~faulty].mean() > 0.9 and kept[faulty].mean() < 0.3
    assert result["val_accuracy"] > result["baseline_human"]
    assert Predictor.load(tmp_path / "run").winner.metrics["test_top1"] == result["test_accuracy"]
    assert main(["reliability", str(tmp_path / "run"), str(path), "--out", str(tmp_path / "scored")]) == 0
    assert (tmp_path / "scored" / "rows.csv").read_text().count("\n") == 1 + len(faulty)
    about = json.loads((tmp_path / "scored" / "reliability.json").read_text())
    assert about["measurers"]["run"]["learned"] == result["rows"]  # each row is known again
    rows = recipe.read_rows(cfg)
    done = next(Predictor.load(p) for p in sorted((tmp_path / "run").glob("training-*")))
    recorded = np.load(path)
    unit = recorded["train_features_16"] / np.linalg.norm(recorded["train_features_16"], axis=1, keepdims=True)
    want = metrics.softmax(done.scorer()(unit))[np.arange(len(unit)), recorded["train_labels_16"]]
    np.testing.assert_allclose(rows.reliability(done, range(len(rows))), want, atol=tolerance("reliability"))


def test_a_recipe_may_bring_rows_of_its_own(monkeypatch):
    values = {**LABELS, "data": {"sources": {"human": "rows of some kind"}}}
    module, cfg = build_config(values, "here")
    assert module is recipe
    asked = []
    monkeypatch.setattr(cfg.recipe[0], "row_set", lambda sources, cfg: asked.append(sources) or "rows", raising=False)
    assert recipe.read_rows(cfg) == "rows" and asked == [{"human": "rows of some kind"}]


def test_photos_of_a_list_are_rows(tmp_path):
    """Written and read they are the same rows; the recipe's config names all of them."""
    for i in range(4):
        (tmp_path / f"{i}, x.png").write_bytes(bytes([i]))
    (tmp_path / "all.txt").write_text("".join(f"{i}, x.png {i % 2}\n" for i in range(4)))
    rows = LabelRowSet.of_files({"a": str(tmp_path / "all.txt")}, None, str(tmp_path))
    rows.write(tmp_path / "some.txt", [3, 1])
    again = LabelRowSet.of_files({"a": str(tmp_path / "some.txt")}, None)
    assert [again.identity(n) for n in range(2)] == [rows.identity(3), rows.identity(1)] and len(rows) == 4
    cfg = build_config({"recipe": "gda", "data": {"root": str(tmp_path), "shots": 4, "val": "v.txt"}}, "here")[1]
    data = rows.learning(cfg, "some.txt", "held.txt").data
    assert (data.train, data.val, data.shots, data.root) == ("some.txt", "held.txt", 0, str(tmp_path))


def test_other_modes(tmp_path):
    path, faulty = noisy(tmp_path, 3)
    learn = {**LABELS["learn"], "data": {"features": str(path), "shots": 16}}
    found = {}
    for mode in ("all", "measure"):
        values = {**LABELS, "mode": mode, "folds": 2, "data": {"sources": {"human": str(path)}}, "learn": learn}
        module, cfg = build_config(values, "here")
        with Run(tmp_path / mode, resolved(module, cfg), quiet=True) as run:
            found[mode] = run.finish(module.run(cfg, run))["metrics"]
    assert found["all"]["trainings"] == 1 and found["all"]["rows"] == len(faulty)
    assert found["measure"]["trainings"] == 3  # and one for each half that is left out
    own = list((tmp_path / "measure").glob("scores-*.npy"))
    assert sum(len(np.load(p)) for p in own) == len(faulty)
    assert found["all"]["val_accuracy"] == found["measure"]["val_accuracy"]


def test_a_plan_says_what_would_be_trained(finished, capsys):
    module, cfg, _ = read_config(str(SMOKE))
    before = module.plan(cfg, finished.parent / "none")
    assert "measurers" in before and "hours are extrapolated from the first steps" in before
    assert "one training of the search, on the 39 rows of template:" in before and "bottleneck: " in before
    held = module.plan(read_config(str(SMOKE), ["selection=pseudo_val", "held_out=0.2"])[1], finished.parent / "none")
    left = int(held.split("template ")[1].split(",")[0])
    assert (
        left < 39
        and f"on the {left} rows of template:" in held
        and "held out" in held
        and f"train: {left} phrases" in held
    )
    after = module.plan(cfg, finished)
    assert f"{state_of(finished) and len(state_of(finished)['trainings'])} trainings have finished" in after
    assert before.splitlines()[0] == "rows: template 39, caption 14"


def test_trainings_of_equal_steps():
    """Epochs that give at least so many steps, five times the recipe's at most."""
    _, cfg, _ = read_config(str(SMOKE), ["steps=20", "learn.optim.epochs=3"])
    work = recipe.Trainings(cfg, None, recipe.read_rows(cfg), [])
    learned = cfg.recipe[1]
    assert learned.optim.batch == 8
    assert [work.epochs(learned, rows, True) for rows in (80, 87, 40, 16, 3)] == [2, 2, 4, 10, 15]
    _, cfg, _ = read_config(str(SMOKE))
    assert recipe.Trainings(cfg, None, None, []).epochs(learned, 80, True) == 0
    with pytest.raises(ConfigError, match="only one of proxy_epochs and steps"):
        read_config(str(SMOKE), ["steps=20", "proxy_epochs=1"])


def test_orders_of_sources():
    _, cfg, _ = read_config(str(SMOKE), ["order=auto", "data.sources={caption: shapes, template: shapes}"])
    assert recipe.order_of(cfg, recipe.read_rows(cfg)) == ["template", "caption"]
    _, cfg, _ = read_config(str(SMOKE), ["order=[caption]"])
    assert recipe.order_of(cfg, recipe.read_rows(cfg)) == ["caption", "template"]


@pytest.mark.parametrize(
    ("phrase", "count"),
    [("red circle", 1), ("man wearing hat", 2), ("the man on the left", 1), ("a dog, a cat and two birds", 3), ("left", 1),
     ("left red shirt man", 1), ("woman with umbrella next to the bus", 3)],
)  # fmt: skip
def test_things_of_a_phrase(phrase, count):
    assert count_things(phrase) == count


def test_what_cannot_be_searched_is_one_line(tmp_path):
    def build(**changed):
        return build_config({**LABELS, "data": {"sources": {"human": "rows.npz"}}, **changed}, "here")[1]

    wrong = [
        ({"dataset": "unk"}, UnknownName, "unknown dataset 'unk', did you mean 'unc'"),
        ({"source": "humans"}, UnknownName, "unknown source 'humans', did you mean 'human'"),
        ({"order": ["x"]}, UnknownName, "unknown source 'x'"),
        ({"start": 0.05}, ConfigError, "low <= start"),
        ({"learn": {"recipe": "contrastive", "model": "RN50", "data": {"train": "shapes"}}}, ConfigError, "task retrieve"),
        ({"learn": {"recipe": "nothing"}}, ConfigError, "recipe 'nothing'"),
        ({"learn": {"model": "RN50"}}, ConfigError, "learn: recipe is missing"),
        ({"data": {"sources": {}}}, ConfigError, "data.sources must be a file for each name"),
        ({"data": {"sources": {"a": "shapes", "b": "x.jsonl"}}}, ConfigError, "all files or all shapes"),
        ({"data": {"sources": {"human": "shapes"}}}, UnknownName, "source of shapes 'human'"),
    ]  # fmt: skip
    for changed, _kind, message in wrong:
        with pytest.raises((ConfigError, UnknownName), match=message):
            build(**changed)
    row = BoxRow("a.png", None, "a thing", (8, 8))
    with pytest.raises(DataError, match="each row must have a box"):
        BoxRowSet({"s": [row]}, {"s": tmp_path})
    with pytest.raises(ConfigError, match=r"all precomputed features \(.npz\) or all lists"):
        LabelRowSet.of_files({"a": "a.npz", "b": "b.txt"}, None)


def test_another_datas_state_and_an_empty_threshold_are_refused(finished, tmp_path, capsys):
    world = tmp_path / "world"
    assert main(["world", str(world), "--scenes", "20", "--seed", "3"]) == 0
    run, source = str(tmp_path / "run"), f"data.sources={{template: '{world}/template.jsonl'}}"
    more = ["train", str(SMOKE), source, "mode=ssa", "--run", run]
    assert main(more) == 0
    (tmp_path / "run" / "result.json").unlink()
    rows = (world / "template.jsonl").read_text().splitlines(keepends=True)
    (world / "template.jsonl").write_text("".join(rows[1:]))
    capsys.readouterr()
    assert main(more) == 2 and "state of a curriculum over other data" in capsys.readouterr().err
    assert main([*more[:-1], str(tmp_path / "b"), "low=0.9", "start=0.9", "high=0.9"]) == 2
    assert "no row of template has a reliability above 0.9" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "b" / STATE).is_file()  # what was trained is kept


def test_another_search_goes_on_with_the_trainings_there_are(tmp_path, capsys):
    """After an empty threshold lower ones, after a small budget a larger one; nothing is trained twice, no old choice stays."""
    world, run = tmp_path / "world", tmp_path / "run"
    assert main(["world", str(world), "--scenes", "20", "--seed", "3"]) == 0
    more = ["train", str(SMOKE), f"data.sources={{template: '{world}/template.jsonl'}}", "mode=ssa", "--run", str(run)]
    assert main([*more, "low=0.9", "start=0.9", "high=0.9"]) == 2
    assert main([*more, "low=0.9", "start=0.9", "high=0.9", "learn.hidden=48"]) == 2
    assert "differs in learn.hidden" in capsys.readouterr().err
    (first,) = run.glob("training-*")
    before = (first / "result.json").stat().st_mtime_ns
    assert main([*more, "max_trainings=1", "dataset=unc"]) == 0
    assert "goes on with another dataset, high, low, max_trainings, start" in capsys.readouterr().err
    assert [*run.glob("training-*")] == [first] and (run / "unc_train_pseudo.pth").is_file()
    assert json.loads((run / "result.json").read_text())["metrics"]["complete"] == 0
    assert main(more) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["metrics"]["complete"] == 1 and result["config"]["max_trainings"] == 0
    assert len([*run.glob("training-*")]) == result["metrics"]["trainings"] > 1
    assert (first / "result.json").stat().st_mtime_ns == before and not [*run.glob("*_train_pseudo*.pth")]


# ---- jclip reliability


@pytest.mark.slow  # a process that is killed
def test_reliability_of_a_file(finished, tmp_path, monkeypatch, capsys):
    """Two measurers; killed behind the first part, then to its end, and once more."""
    _module, cfg, _ = read_config(str(SMOKE))
    rows = recipe.read_rows(cfg)
    file = tmp_path / "rows, 1.jsonl"
    write_box_lines(file, rows.rows[:30])
    runs = sorted(str(p) for p in finished.glob("training-*"))[:2]
    photos = ["--root", str(rows._folders[0])]
    out = tmp_path / "out"
    arguments = ["reliability", *runs, str(file), "--out", str(out), *photos, "--above", "0.01"]
    killed_at(
        "*.npy", *arguments,
        program=BY_ELEVEN,
    )  # fmt: skip
    assert len([*out.glob(".parts-*/*.npy")]) == 1 and not (out / "rows.jsonl").exists()
    monkeypatch.setattr("jclip.report.row_scores.PART", 11)
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "learned from" in printed and not [*out.glob(".parts-*")]
    scored = read_box_lines(out / "rows.jsonl")
    for run in runs:
        want = rows.reliability(Predictor.load(run), range(30))
        np.testing.assert_allclose(
            [row.reliability[Path(run).name] for row in scored], want, atol=tolerance("reliability_written")
        )
    first = [row.reliability[Path(runs[0]).name] for row in scored]
    assert len(read_box_lines(out / "rows, 1_0_01.jsonl")) == sum(r > 0.01 for r in first)
    before = (out / "rows.jsonl").stat().st_mtime_ns
    assert main(arguments) == 0 and (out / "rows.jsonl").stat().st_mtime_ns == before
    assert main([*arguments[:2], str(file), "--out", str(out), *photos]) == 2
    assert "reliabilities of other rows or by other runs" in capsys.readouterr().err


def test_reliability_of_another_kind_is_one_line(finished, tmp_path, capsys):
    path, _ = noisy(tmp_path, 5)
    run = str(next(finished.glob("training-*")))
    assert main(["reliability", run, str(path), "--out", str(tmp_path / "o")]) == 2
    assert "FILE must hold phrases with boxes" in capsys.readouterr().err
    settings = [f"data.features={path}", "data.shots=16"]
    assert main(["train", "gda/smoke", *settings, "--run", str(tmp_path / "probe")]) == 0
    assert main(["reliability", str(tmp_path / "probe"), str(path), "--out", str(tmp_path / "o")]) == 0
    assert "120 rows" in capsys.readouterr().out and (tmp_path / "o" / "rows.csv").is_file()
    assert main(["reliability", run, str(tmp_path / "probe"), str(path), "--out", str(tmp_path / "p")]) == 2
    assert "runs must be of one task" in capsys.readouterr().err
    other, _ = noisy(tmp_path, 6)
    assert main(["reliability", str(tmp_path / "probe"), str(other), "--out", str(tmp_path / "q")]) == 0
    assert "learned from none of these rows" in capsys.readouterr().err
    assert row_sets.KINDS
