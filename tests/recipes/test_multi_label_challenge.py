"""The challenge of several labels from names to the list that is handed in: by hand, killed, chosen, and what is refused."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

import finetune  # noqa: F401 - offers its recipes
from jclip.cli import main
from jclip.functional.score_ensemble import searched_weights, weighted
from jclip.report.score_files import read_scores
from jclip.train.run import read_result
from tests.killed import killed_at, made_again
from tests.loopback import Loopback, said
from tests.recipes.multi_label_folder import LABELS, NAMES, write_folder


def arguments(config: Path, runs: Path, *more: str) -> list[str]:
    """The command on the labelled photos beside the config."""
    root = config.parent
    places = [f"data.val={root / 'val.jsonl'}", f"data.test={root / 'test.jsonl'}", f"data.root={root}"]
    return ["challenge", str(config), "--runs", str(runs), *places, *more]


@pytest.fixture(scope="module")
def made(small_models, tmp_path_factory) -> Path:
    """A config whose challenge has ended, its runs beside it."""
    config = write_folder(tmp_path_factory.mktemp("名 of contest") / "one", small_models["resnet"])
    assert main(arguments(config, config.parent / "runs")) == 0
    return config


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("result.json", "scores.npz", "parts.csv")}


def runs_of(config: Path) -> dict[str, Path]:
    """Model → the folder of its run."""
    return {path.name.rsplit("-", 1)[0]: path for path in (config.parent / "runs/challenge").iterdir()}


def mean_precision(scores: np.ndarray, labels: list[tuple[int, ...]], own: list[int]) -> float:
    """By scikit-learn, of the classes that are on some photo."""
    targets = np.zeros(scores.shape)
    for row, present in zip(targets, labels, strict=True):
        row[list(present)] = 1
    return float(np.mean([average_precision_score(targets[:, c], scores[:, c]) for c in own if targets[:, c].any()]))


# The whole


def test_the_list_is_the_ensemble_of_the_models_scores(made, close):
    folders = runs_of(made)
    scored = next(path for name, path in folders.items() if name == "scores-test")
    main_one, teacher, hard = (
        read_scores(str(scored / f"{name}.npz")).parts for name in ("main", "teacher", "hard_one")
    )
    share = float(read_result(folders["teacher"])["metrics"].get("merge", 0.5))
    wanted = main_one["global"] + 1.5 * main_one["local"]
    wanted[:, 3] = (share * hard["global"] + (1 - share) * hard["local"])[:, 3]
    wanted[:, 1] = (share * teacher["global"] + (1 - share) * teacher["local"])[:, 1]
    rows = json.loads((made.parent / "results/result.json").read_text())
    close(np.array(rows), wanted, "rounding")
    named = read_scores(str(made.parent / "results/scores.npz"))
    assert named.classnames == NAMES and [Path(p).name for p in named.photos] == [f"{i} photo.png" for i in range(5)]
    assert named.uses_label_statistics and not named.comparable and (named.main == np.array(rows)).all()
    report = json.loads((made.parent / "results/report.json").read_text())
    assert report["uses_label_statistics"] and not report["classes_comparable"] and report["chosen_on"] is None


def test_the_table_is_what_scikit_learn_finds(made):
    scored = next(path for name, path in runs_of(made).items() if name == "scores-val")
    with (made.parent / "results/parts.csv").open(newline="") as f:
        rows = {row[0]: row for row in list(csv.reader(f))[1:]}
    for row, file, own, weights in (
        ("names alone, places", "names-alone-whole", range(4), (0, 1)),
        ("main, whole photos", "main-whole", range(4), (1, 1.5)),
        ("main, with windows", "main", range(4), (1, 1.5)),
        ("hard_one, with windows (2 classes)", "hard_one", (0, 3), (0.5, 0.5)),
    ):
        parts = read_scores(str(scored / f"{file}.npz")).parts
        found = mean_precision(weights[0] * parts["global"] + weights[1] * parts["local"], LABELS["val"], list(own))
        assert rows[row][2] == f"{100 * found:.2f}", row
    gain = float(rows["main, with windows"][2]) - float(rows["main, whole photos"][2])
    assert float(rows["main, with windows"][3]) == pytest.approx(gain, abs=0.011)
    assert rows["hard_one, whole photos (2 classes)"][1] == "teacher, whole photos"
    assert rows["ensemble, columns of 3"][-1] == "kept"


def test_what_models_start_from_and_learn(made):
    folders = runs_of(made)
    config = json.loads((folders["hard_one"] / "result.json").read_text())["config"]
    assert config["init_from"] == str(folders["teacher"]) and config["only"] == ["dog", "red thing"]
    captions = folders["captions"]
    assert config["captions"] == [str(captions / "hard.jsonl")]
    lines = [json.loads(line) for line in (captions / "hard.jsonl").read_text().splitlines()]
    assert len(lines) > 2 * 89 and all(
        {"green thing", "blue thing"} <= {*row["labels"], *row["unknown"]} for row in lines
    )
    assert json.loads((captions / "classes.json").read_text()) == list(NAMES)


def test_again_it_does_nothing_anew_and_a_new_setting_only_what_depends_on_it(made, tmp_path, capsys):
    def state() -> tuple:  # score files are put together again of their parts
        parts = [*(made.parent / "runs").rglob("parts/*"), *(p for n, p in runs_of(made).items() if "scores" not in n)]
        return files(made.parent / "results"), [(path, path.stat().st_mtime_ns) for path in sorted(parts)]

    before = state()
    capsys.readouterr()
    assert main(arguments(made, made.parent / "runs")) == 0
    assert "part 1 of" not in capsys.readouterr().err
    assert before == state()
    runs = tmp_path / "runs"
    shutil.copytree(made.parent / "runs", runs)
    assert main(arguments(made, runs, "models.hard_one.tau_text=20", f"out={tmp_path / 'out'}", "--dry-run")) == 0
    assert not (tmp_path / "out").exists()
    # paths of captions are those of the copy, so models are planned anew; the captions are done
    plan = capsys.readouterr().out
    assert (
        re.search(r"captions +generated: template +\S+ +done", plan)
        and "hard_one: 2 epochs of hard, from teacher" in plan
    )
    assert main(arguments(made, made.parent / "runs", "models.hard_one.tau_text=20", "--dry-run")) == 0
    states = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.startswith("models ")]
    assert [state == "done" for state in states] == [True, True, False]


def test_killed_twice_and_equal_to_the_run_that_was_not(made):
    root = made.parent
    command = arguments(made, root / "runs")
    with made_again(root / "runs", root / "results"):
        killed_at("*/teacher-*/train.safetensors", *command)
        assert not (root / "results").exists() and len([*(root / "runs").rglob("result.json")]) == 1
        killed_at("*/scores-test-*/parts/*", *command)
        assert main(command) == 0


def test_choices_are_made_on_validation_photos_alone(made, tmp_path, capsys):
    out, choose = tmp_path / "chosen", "choose=[windows, merge, ensemble]"
    assert main(arguments(made, made.parent / "runs", choose, f"out={out}")) == 0
    report = json.loads((out / "report.json").read_text())
    lines = (made.parent / "test.jsonl").read_text().splitlines()
    other = made.parent / "other.jsonl"
    other.write_text("".join(json.dumps({"photo": json.loads(x)["photo"], "labels": ["dog"]}) + "\n" for x in lines))
    again = arguments(made, made.parent / "runs", choose, f"out={tmp_path / 'again'}", f"data.test={other}")
    assert main(again) == 0
    assert (out / "result.json").read_bytes() == (tmp_path / "again/result.json").read_bytes()
    assert (out / "parts.csv").read_bytes() != (tmp_path / "again/parts.csv").read_bytes()
    assert report["chosen_on"]["photos"] == 5
    with (out / "parts.csv").open(newline="") as f:
        rows = list(csv.reader(f))[1:]
    kinds = {row[0]: row for row in rows if row[0].startswith("ensemble")}
    assert len(kinds) == 5
    best = max(float(row[2]) for row in kinds.values())
    assert [float(row[2]) for row in kinds.values() if row[-1] == "kept"] == [best]
    capsys.readouterr()
    unlabelled = [f"photos={made.parent / 'test'}", "data={}", f"out={tmp_path / 'plain'}", "ensemble.kind=mean"]
    assert main(["challenge", str(made), "--runs", str(made.parent / "runs"), *unlabelled]) == 0
    assert "no labelled photos" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "plain/result.json").read_text())) == 5


def test_steps_end_where_they_are_asked_to(made, capsys):
    for step, printed in (("captions", "captions: "), ("models", "hard_one"), ("scores", "test scores: ")):
        assert main(arguments(made, made.parent / "runs", "--until", step)) == 0
        assert printed in capsys.readouterr().out


def test_captions_of_files_take_the_place_of_generated_ones(made, tmp_path, capsys):
    own = tmp_path / "my captions.txt"
    own.write_text("A red thing and a dog.\nA green thing.\nNothing here.\nTwo dogs near a blue thing.\n")
    runs = tmp_path / "runs"
    given = arguments(made, runs, f"captions={own}", "--until", "captions")
    assert main(given) == 0
    folder = next((runs / "challenge").iterdir())
    lines = [json.loads(line)["labels"] for line in (folder / "captions.jsonl").read_text().splitlines()]
    assert lines == [["red thing", "dog"], ["green thing"], ["blue thing", "dog"]]
    assert len((folder / "whole_sets.jsonl").read_text().splitlines()) == 2
    own.write_text("Ein Hund.\n")
    assert main(given) == 2 and "must be in the language of the class names" in capsys.readouterr().err


def test_a_chat_server_that_fails_is_asked_on_by_the_same_command(made, tmp_path, capsys):
    sentence, failing = "1. A red thing and a green thing near a blue thing and a dog.", [True]

    def answer(prompt: str, number: int) -> tuple:
        return (500, {}, b"no") if failing[0] and "dog" in prompt else said(sentence)

    with Loopback(answer) as loopback:
        server = f"generate.server={{base_url: '{loopback.url}', model: m, tries: 1, api_key_env: ''}}"
        stages = "generate.stages={calls: 1, names_per_call: 2, single_rounds: 1, judge: false, top_up_rounds: 0}"
        command = ["generate.generator=openai", server, stages, "--until", "captions"]
        assert main(arguments(made, tmp_path / "runs", *command)) == 2
        assert "questions to the chat server got no reply: run the same command again" in capsys.readouterr().err
        failing[0], before = False, len(loopback.requests)
        assert main(arguments(made, tmp_path / "runs", *command)) == 0
        asked = len(loopback.requests)
        assert 0 < asked - before < asked
        assert main(arguments(made, tmp_path / "runs", *command)) == 0 and len(loopback.requests) == asked
        assert len([*(tmp_path / "runs").rglob("all.jsonl")]) == 1


# Weights of an ensemble


def test_weights_are_added_up_greedily():
    rng = np.random.default_rng(0)
    targets = (rng.random((60, 4)) < 0.3).astype(int)
    noise = {name: rng.standard_normal((60, 4)) for name in "abc"}
    scores = {"a": targets + noise["a"], "b": targets + 0.7 * noise["b"], "c": noise["c"]}
    found = searched_weights(scores, targets)
    assert sum(found.values()) == pytest.approx(1) and found["b"] >= found["a"] > found["c"]
    labels = [tuple(np.flatnonzero(row)) for row in targets]
    joined = mean_precision(weighted(scores, [found[name] for name in scores]).scores, labels, [0, 1, 2, 3])
    assert joined > max(mean_precision(one, labels, [0, 1, 2, 3]) for one in scores.values())


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["models.main.learns=[captoins]"], "part of the captions in models.main.learns 'captoins', did you mean 'captions'"),
        (["models.hard_one.init_from=hard_one"], "a circle: hard_one → hard_one"),
        (["models.hard_one.context=5"], "as many vectors as teacher, which it starts from: context 3, got 5"),
        (["models.hard_one.only=[cat]"], "models.hard_one.only: classes must be among the 4 named, got 'cat'"),
        (["generate.hard=[]"], "learns hard captions: name their classes in generate.hard"),
        (["generate.templates.sets=false"], "learns whole_sets: set generate.templates.sets=true"),
        (["generate.hard=[cat]"], "class in hard 'cat'"),
        (["ensemble.columns={main: [cat]}"], "ensemble.columns.main: classes must be among the 4 named, got 'cat'"),
        (["ensemble.columns={none: [dog]}"], "model 'none'"),
        (["ensemble.columns={}"], "ensemble.kind is columns: name the classes"),
        (["ensemble.weights={main: -1}"], "ensemble.weights.main must be a number, at least 0, got -1"),
        (["score=[main]"], "scores no photos: add it to score"),
        (["classes=dog", "ensemble={kind: mean}", "models={main: {}}"], "classes must be at least two, got one (dog)"),
        (["models={}"], "models must hold at least one model"),
        (["models={'../x': {}}"], "a model's name must be letters, digits"),
        (["models.main.recipe=tip_adapter"], "recipe must be text_as_image"),
        (["models.main.search=true"], "search must be left out"),
        (["models.main.captions=[a.txt]"], "models learn from the challenge's captions"),
        (["models.main.windows=1"], "unknown key windows"),
        (["models.teacher.bank_mix=.3"], "models.teacher.bank_mix must be left out: it is read with bank!=0 alone, got bank=0"),
        (["models.main={learns: [captions], bank_mix: .3}"], "models.main: bank_mix must be left out"),
        (["common.optim.step_epochs=3"], "common.optim.step_epochs must be left out: it is read with"),
        (["common.data={shots: 4}"], "data may have `upright` alone, got {'shots': 4}"),
        (["models.main.fusion.from=mean"], "unknown key from, did you mean 'form'"),
        (["windows.scales=[40]"], "40"),
        (["windows.mode=dense", "model={vit}"], "dense windows are of a ResNet's map"),
        (["captions=[none.txt]"], "no such file of captions"),
        (["data.test={root}/val.jsonl"], "5 validation photos are among the test photos"),
        (["data.root=/nowhere"], "5 of 5 photos are missing"),
        (["data={}"], "name the photos to score"),
        (["photos={root}/none"], "no such photo or folder"),
        (["task=multi"], "task of a challenge 'multi', did you mean 'multi_label'"),
        (["--until", "tune"], "step for --until 'tune' (known: captions, models, scores, result)"),
        (["first=-1"], "first must be at least 0"),
        (["out={root}/names.txt"], "out must be a folder, got a file"),
        (["model=none.safetensors"], "none.safetensors"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_before_anything_is_done(settings, message, made, small_models, tmp_path, capsys):
    filled = [text.replace("{root}", str(made.parent)).replace("{vit}", str(small_models["vit"])) for text in settings]
    assert main(arguments(made, tmp_path / "runs", *filled)) == 2
    label = capsys.readouterr()
    assert message in label.err and label.err.count("\n") == 1 and not label.out
    assert not (tmp_path / "runs").exists()
