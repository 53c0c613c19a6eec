"""The retrieval challenge from lists to the file that is handed in: killed or not, scored by another scorer, and refused."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import finetune  # noqa: F401 - brings the recipes
from jclip.cli import main
from jclip.commands.retrieval_steps import Config, Pipeline
from jclip.config import build
from jclip.data import traffic_world
from jclip.data.attribute_tables import read_attributes
from jclip.data.photo_queries import read_gallery, read_queries, read_truth
from jclip.errors import ConfigError, DataError, UnknownName
from jclip.features.photo_search import SearchedWith, SearchFeatures
from jclip.prompts.query_rules import load_rules
from jclip.report.ranked_results import read_results, scored
from tests.killed import killed_at, made_again

CONFIG = "retrieval_challenge_shapes.yaml"
QUICK = ("tune.mix=1", "rules=[none, shapes-bare]", "rerank=[{kind: none}, {kind: expand, k: 3}]", "flips=[none]")
RESULTS, NOTES = "retrieval_results.json", "retrieval_notes.json"


def official(file: Path, truth: Path) -> float:
    """The challenge's scorer, from its description: hits counted from 1e-6, divided by the hits that were found."""
    total, lines = 0.0, [line.split("$") for line in truth.read_text().splitlines()]
    for entry, (text, *right) in zip(json.loads(file.read_text())["results"], lines, strict=True):
        assert entry["text"] == text and len(entry["image_names"]) == len(set(entry["image_names"])) == 10
        hits, ap = 1e-6, 0.0
        for rank, name in enumerate(entry["image_names"], start=1):
            if name in right:
                hits += 1
                ap += hits / rank
        total += ap / hits
    return total / len(lines)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished challenge: runs, and out with the results."""
    root = tmp_path_factory.mktemp("whole")
    assert main(["challenge", CONFIG, *QUICK, "--runs", str(root / "runs"), f"out={root / 'out'}"]) == 0
    return root


def test_what_is_handed_in_is_scored_alike_by_another_scorer(whole, capsys):
    world = traffic_world.named_folder("small-traffic")
    notes = json.loads((whole / "out" / NOTES).read_text())
    told = notes["figures"]["test"]
    assert told["map@10_of_found"] == pytest.approx(
        official(whole / "out" / RESULTS, world / "test_truth.txt"), abs=1e-12
    )
    assert scored(whole / "out" / RESULTS, world / "test_truth.txt") == told
    texts = [entry["text"] for entry in json.loads((whole / "out" / RESULTS).read_text())["results"]]
    assert texts == (world / "test_text.txt").read_text().splitlines()
    assert {*notes} >= {"chosen", "tried", "uses_other_queries"} and notes["uses_other_queries"] is False
    before = {path: path.stat().st_mtime_ns for path in (whole / "runs").rglob("*") if path.is_file()}
    held = (whole / "out" / RESULTS).read_bytes()
    assert main(["challenge", CONFIG, *QUICK, "--runs", str(whole / "runs"), f"out={whole / 'out'}"]) == 0
    out = capsys.readouterr().out
    assert "official mAP@10" in out and "taken" in out and (whole / "out" / RESULTS).read_bytes() == held
    assert {path: path.stat().st_mtime_ns for path in (whole / "runs").rglob("*") if path.is_file()} == before


def test_a_dry_run_shows_the_plan_and_writes_nothing(whole, tmp_path, capsys):
    assert main(["challenge", CONFIG, *QUICK, "--runs", str(tmp_path / "runs"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "80 photos" in shown and shown.count("to do") == 2 and not (tmp_path / "runs").exists()
    assert main(["challenge", CONFIG, *QUICK, "--runs", str(whole / "runs"), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("done") == 2


@pytest.mark.parametrize("pattern", ["*/filled-*/filled.csv", "*/tuned-*/*.safetensors"])
def test_killed_it_goes_on_to_the_same_bytes(whole, pattern):
    arguments = ["challenge", CONFIG, *QUICK, "--runs", str(whole / "runs"), f"out={whole / 'out'}"]
    with made_again(whole / "runs", whole / "out"):
        killed_at(pattern, *arguments)
        assert not (whole / "out").exists() and main(arguments) == 0


def test_filled_captions_have_both_words_and_sentences_stay(whole):
    (file,) = (whole / "runs").rglob("train.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    cars = [row["title"] for row in rows if "vehicle_" in row["filepath"]]
    sentences = [row["title"] for row in rows if "vehicle_" not in row["filepath"]]
    assert len(cars) == 60 and all(len(title.split()) == 2 for title in cars)
    assert len(sentences) == 20 and all(title.endswith(".") and len(title.split()) >= 6 for title in sentences)
    (dollars,) = (whole / "runs").rglob("filled.txt")
    assert all(line.count("$") == 3 for line in dollars.read_text().splitlines())


# Zero-shot, without tuning


def pipeline(root: str, **more) -> Pipeline:
    values = {"model": "shapes-tiny-vit", "data": {"root": root, "truth": "test_truth.txt"}, **more}
    return Pipeline(build(Config, values, "x.yaml"), Path("runs"), "x.yaml")


def test_what_depends_on_other_queries_is_flagged_in_every_output(tmp_path, capsys):
    settings = ["tune={}", "fill.preset=", "rerank=[{kind: expand, spread: all}]", "flips=[none]", "rules=[none]"]
    assert main(["challenge", CONFIG, *settings, "--runs", str(tmp_path), f"out={tmp_path}"]) == 0
    assert capsys.readouterr().out.count("depends on the other queries") == 3
    assert json.loads((tmp_path / RESULTS).read_text())["uses_other_queries"] is True
    notes = json.loads((tmp_path / NOTES).read_text())
    assert notes["uses_other_queries"] is True and [t["uses_other_queries"] for t in notes["tried"]] == [
        False,
        False,
        True,
    ]


def test_plain_answers_are_the_cosines_of_the_towers():
    """Against features by the towers themselves, without cache, rules or re-ranking in between."""
    from jclip.features.extraction import encode_photos
    from jclip.features.heads import encode_prompts

    work = pipeline("shapes:small-traffic")
    source, search = work.given(), work.test
    found = SearchFeatures(source, search).found(SearchedWith(load_rules("none")), 7)
    split = Split_of(search.photos)
    _, photos = encode_photos(source.model, source.preprocess, split)
    texts = encode_prompts(source.model, source.model.tokenize(list(search.texts)))
    photos, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (photos, texts))
    order = np.argsort(-(texts.astype(np.float64) @ photos.astype(np.float64).T), axis=1, kind="stable")[:, :7]
    assert found == [[search.names[i] for i in row] for row in order]


def Split_of(paths):
    from jclip.data.splits import Split

    return Split(tuple(paths), np.full(len(paths), -1, np.int32))


def test_chinese_clips_files_in_and_out(tmp_path):
    """Queries with ids, photos inside of a table: predictions.jsonl is what its scorer takes."""
    world = traffic_world.named_folder("small-traffic")
    lines = [line.split("$") for line in (world / "test_truth.txt").read_text().splitlines()]
    ids = {path.name: str(1000 + i) for i, path in enumerate(sorted((world / "test").iterdir()))}
    texts = [
        {"text_id": 7 * i, "text": text, "image_ids": [int(ids[name]) for name in names]}
        for i, (text, *names) in enumerate(lines)
    ]
    (tmp_path / "t_texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    rows = (f"{key}\t{base64.b64encode((world / 'test' / name).read_bytes()).decode()}\n" for name, key in ids.items())
    (tmp_path / "t_imgs.tsv").write_text("".join(rows))
    named = [f"data.queries={tmp_path / 't_texts.jsonl'}", f"data.gallery={tmp_path / 't_imgs.tsv'}", "data.truth="]
    settings = ["tune={}", "fill.preset=", "rerank=[{kind: none}]", "flips=[none]", "rules=[none]"]
    for out, more in (("plain", []), ("chinese", named)):
        assert main(["challenge", CONFIG, *settings, *more, "--runs", str(tmp_path), f"out={tmp_path / out}"]) == 0
    found = map(json.loads, (tmp_path / "chinese" / "retrieval_predictions.jsonl").read_text().splitlines())
    plain = read_results(tmp_path / "plain" / RESULTS)[1]
    assert [(row["text_id"], row["image_ids"]) for row in found] == [
        (7 * i, [int(ids[name]) for name in names]) for i, names in enumerate(plain)
    ]
    figures = [json.loads((tmp_path / out / NOTES).read_text())["figures"]["test"] for out in ("plain", "chinese")]
    assert figures[0] == figures[1]


def test_lists_named_from_here_and_a_broken_photo_skipped(folder, monkeypatch, capsys):
    """Everything relative to where the command is typed; the photo is looked at once, however many ways are tried."""
    (folder / "test" / "broken.png").write_bytes(b"none")
    monkeypatch.chdir(folder.parent)
    named = {
        "train_list": "train_label.txt",
        "val_list": "val_label.txt",
        "queries": "test_text.txt",
        "gallery": "test",
    }
    settings = [f"data.{key}={folder.name}/{name}" for key, name in named.items()]
    settings += ["data.root=", "data.truth=", f"data.train_photos={folder.name}/train", "data.on_error=skip"]
    assert (
        main(["challenge", CONFIG, *QUICK, *settings, "tune.optim.epochs=1", "--runs", "runs", "out=my results"]) == 0
    )
    assert capsys.readouterr().err.count("broken.png") == 1
    found = read_results(Path("my results", RESULTS))[1]
    assert len(found) == 14 and not any("broken.png" in names for names in found)


# What is refused


def test_queries_in_another_order_than_the_truth(tmp_path):
    (tmp_path / "q.txt").write_text("a red one\na blue one\n\na cat, sitting\n")
    texts = read_queries(tmp_path / "q.txt").texts
    assert texts == ("a red one", "a blue one", "a cat, sitting")
    truth = tmp_path / "truth.txt"
    truth.write_text("a red one$1.jpg\na blue one$2.jpg$3.jpg\na cat, sitting$3.jpg\n")
    assert read_truth(truth, texts, ("1.jpg", "2.jpg", "3.jpg"))[1] == {"2.jpg", "3.jpg"}
    for text, said in (
        ("a blue one$2.jpg\na red one$1.jpg\na cat, sitting$3.jpg\n",
         "line 1: queries must stand in the order of their file, where 'a red one' comes here, got 'a blue one'"),
        ("a red one$1.jpg\na cat, sitting$3.jpg\n", "must have the 3 queries of their file, got 2; 'a blue one' stands"),
        ("a red one$1.jpg\na blue one$2.jpg\na cat, sitting$9.jpg\n", "line 3: must name photos of the gallery, got '9.jpg'"),
        ("a red one$1.jpg\na blue one$2.jpg$2.jpg\na cat, sitting$3.jpg\n", "line 2: must be .*each photo once, got one twice"),
        ("a red one$1.jpg\na blue one$\na cat, sitting$3.jpg\n", "line 2: must be .*, got none"),
    ):  # fmt: skip
        truth.write_text(text)
        with pytest.raises(DataError, match=said):
            read_truth(truth, texts, ("1.jpg", "2.jpg", "3.jpg"))


def test_a_photo_listed_twice_and_photos_that_are_absent(tmp_path):
    for name in ("1, one.png", "2 two.png"):
        (tmp_path / name).write_bytes(b"x")
    file = tmp_path / "list.txt"
    file.write_text("2 two.png\n1, one.png\n")
    assert read_gallery(file) == (
        (str(tmp_path / "2 two.png"), str(tmp_path / "1, one.png")),
        ("2 two.png", "1, one.png"),
    )
    file.write_text("2 two.png\n1, one.png\n2 two.png\n")
    with pytest.raises(DataError, match="line 3: a photo must be listed once, got '2 two.png' in line 1"):
        read_gallery(file)
    file.write_text("2 two.png\nlost.png\n")
    with pytest.raises(DataError, match="1 of 2 photos are missing below .*line 2: lost.png"):
        read_gallery(file)


@pytest.fixture
def folder(tmp_path) -> Path:
    """The lists of the embedded world, to be changed."""
    root = tmp_path / "traffic, here"
    shutil.copytree(traffic_world.named_folder("small-traffic"), root)
    return root


def changed(root: Path, name: str, old: str, new: str) -> None:
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("name", "old", "new", "settings", "said"),
    [
        ("val_label.txt", "vehicle_0003.png", "vehicle_9999.png", [], "val_label.txt: 1 of 32 images are missing"),
        ("train_label.txt", "vehicle_0003.png", "vehicle_9999.png", [], "train_label.txt: 1 of 80 photos are missing"),
        ("train_label.txt", "$", "", [], "train_label.txt, line 1: must be `image$attributes$caption`"),
        ("test_text.txt", "\n", " x\n", [], "test_truth.txt must have the 14 queries of their file"),
        ("val_label.txt", "", "", ["data.val_list=train_label.txt"], "80 of 80 validation photos are training photos"),
        ("val_label.txt", "", "", ["rules=[nome]"], "set of query rules 'nome'"),
        ("val_label.txt", "", "", ["rerank=[{kind: expand, k: 0}]"], "rerank.0: k must be at least 1"),
        ("val_label.txt", "", "", ["rerank=[{kind: expand, kk: 0}]"], "rerank.0: unknown key kk, did you mean 'k'"),
        ("val_label.txt", "", "", ["rerank=[]"], "rerank must hold at least one entry"),
        ("val_label.txt", "", "", ["fill.preset=car"], "preset of attributes 'car'"),
        ("val_label.txt", "", "", ["tune.recipe=coop"], "tune"),
        ("val_label.txt", "", "", ["data.queries=none.txt"], "none.txt"),
        ("val_label.txt", "", "", ["data.gallery=none"], "none"),
    ],
)  # fmt: skip
def test_wrong_lists_and_settings_in_one_line(folder, name, old, new, settings, said, capsys):
    if old:
        changed(folder, name, old, new)
    assert main(["challenge", CONFIG, f"data.root={folder}", *settings, "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_a_query_of_which_rules_leave_nothing(folder):
    changed(folder, "test_text.txt", (folder / "test_text.txt").read_text().splitlines()[0], "A .")
    changed(folder, "test_truth.txt", (folder / "test_truth.txt").read_text().split("$")[0], "A .")
    work = pipeline(str(folder), rules=["shapes-bare"])
    with pytest.raises(DataError, match="must keep some words behind its rules, got none of 'A .'"):
        SearchFeatures(work.given(), work.test).found(SearchedWith(load_rules("shapes-bare")))


def test_results_that_are_none(tmp_path):
    truth, file = tmp_path / "truth.txt", tmp_path / "results.json"
    truth.write_text("one$a.jpg\ntwo$b.jpg$c.jpg\n")
    entries = [{"text": "one", "image_names": ["x.jpg", "a.jpg"]}, {"text": "two", "image_names": ["b.jpg"]}]
    file.write_text(json.dumps({"results": entries}))
    found = scored(file, truth)  # by hand: (1 + 1e-6) / 2 / (1 + 1e-6) and 1; 1/2 and 1/2
    assert found == {"map@10_of_found": pytest.approx(0.75), "map@10": 0.5}
    for values, said in (
        (
            {"results": entries[::-1]},
            r"results\[0\]: queries must stand in the order of .* line 1 has 'one', got 'two'",
        ),
        ({"results": entries[:1]}, "must answer the 2 queries of"),
        ({"results": []}, 'must be {"results"'),
        ([], 'must be {"results"'),
        ({"results": [{"text": "one", "image_names": ["a", "b", "a"]}]}, "a photo must be named once, got 'a' twice"),
        ({"results": [{"text": "one", "image_names": "a"}]}, "must have text and image_names"),
    ):
        file.write_text(json.dumps(values))
        with pytest.raises(DataError, match=said):
            scored(file, truth)


@pytest.mark.parametrize(
    ("more", "error"),
    [({"bank": 0}, ConfigError), ({"tune": {"data": {}}}, ConfigError), ({"flips": []}, ConfigError),
     ({"choose": "map"}, ConfigError), ({"data": {"root": "shapes:trafic"}}, UnknownName)],
)  # fmt: skip
def test_settings_that_are_refused(more, error):
    with pytest.raises(error):
        work = Pipeline(build(Config, {"model": "shapes-tiny-vit", **more}, "x.yaml"), Path("runs"), "x.yaml")
        assert work.root


# Rules and the world


def test_a3rs_rules_of_queries():
    """Cars are known by a type's name in the line; variant A takes the opening away, B adds the cameras."""
    bare, suffix = load_rules("traffic-bare"), load_rules("traffic")
    cars = read_attributes("a3r").attributes
    for rules in (bare, suffix):  # the winners' cars are sentences with a type or a brand
        assert {*rules.rules[0].words} == {*cars["type"], *cars["brand"]}
    car, person = "This is a white Audi SUV.", "A woman with a red bag."
    assert (bare(car), bare(person)) == ("white Audi SUV", "A woman with a red bag")
    assert suffix(car) == "This is a white Audi SUV image taken by traffic surveillance cameras"
    assert (suffix.kind_of(car), suffix.kind_of(person)) == ("car", "other")


def test_the_world_as_traffic_is_what_its_seed_says(tmp_path):
    counts = traffic_world.Counts((12, 4), (6, 2), (20, 6), 50)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        traffic_world.write_traffic(tmp_path / name, 5, counts)
    one, two = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in ("one", "two")
    )
    assert one == two and sum(path.suffix == ".png" for path in one) == 50
    truth = [line.split("$") for line in (tmp_path / "one" / "test_truth.txt").read_text().splitlines()]
    assert [text for text, *_ in truth] == (tmp_path / "one" / "test_text.txt").read_text().splitlines()
    named = [name for _, *names in truth for name in names]
    assert len(named) == len(set(named)) < 26 and {*named} <= {
        path.name for path in (tmp_path / "one" / "test").iterdir()
    }
    rows = [line.split("$") for line in (tmp_path / "one" / "train_label.txt").read_text().splitlines()]
    assert [row[1].count(",") for row in rows] == [0] * 12 + [3] * 4
    assert all(len(row[1].split()) == 1 for row in rows[:12])  # colour or shape, never both


# Weights measured as they are


def test_weights_are_measured_as_they_are(tmp_path, capsys):
    from jclip.features.source import ModelSource

    settings = ["model=shapes-tiny-vit", "data.val_scenes=24"]
    arguments = ["train", "contrastive/measure.yaml", *settings, "--run", str(tmp_path / "run")]
    assert main([*arguments, "data.val=shapes"]) == 0
    assert "by groups" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert metrics["images"] == metrics["texts"] == 24 and metrics["image_retrieval_recall@10"] == metrics["t2i_r10"]
    given, kept = (
        ModelSource(name).checkpoint.tensors for name in ("shapes-tiny-vit", tmp_path / "run" / "model.safetensors")
    )
    for name in ("text_projection", "visual.conv1.weight"):
        assert np.array_equal(np.float32(given[name].read()), np.float32(kept[name].read()))
    assert main(["train", "contrastive/measure.yaml", *settings, "data.val=", "--run", str(tmp_path / "other")]) == 2
    assert "update=none measures: set data.val" in capsys.readouterr().err
