"""Score files of several models as one, as a YAML says it by names: every kind by hand, other orders, and what is refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from jclip.cli import main
from jclip.errors import ConfigError, DataError, UnknownName
from jclip.report.ensemble_files import EnsembleRule, put_together, read_ensemble, together_in_parts
from jclip.report.score_files import Scores, read_scores, write_list_in_parts, write_scores

NAMES, PHOTOS = ("dog", "dining table", "car"), ("a.jpg", "b.jpg")
A = np.array([[1.0, 5.0, 0.0], [3.0, 2.0, 4.0]])
B = np.array([[10.0, 0.0, 2.0], [0.0, 5.0, 8.0]])


def files() -> list[Scores]:
    """Two models; the second has its photos and classes in other orders."""
    second = Scores("second.npz", {"scores": B}, NAMES, PHOTOS).take([1, 0], [2, 0, 1])
    return [Scores("first.npz", {"scores": A}, NAMES, PHOTOS), second]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("kind: mean", (A + B) / 2),
        ("kind: weighted", (A / 5 + B / 10) / 2),
        ("kind: weighted\nweights: {second: 0.75, first.npz: 0.25}", 0.25 * A / 5 + 0.75 * B / 10),
        ("kind: columns\ncolumns: {second: [dining_table]}", np.c_[A[:, 0], B[:, 1], A[:, 2]]),
        ("kind: columns\nbase: second\ncolumns: {first: [car, Dog]}", np.c_[A[:, 0], B[:, 1], A[:, 2]]),
        ("kind: rank", [[0.75, 0.75, 0.5], [0.75, 0.75, 1.0]]),
    ],
)
def test_kinds_by_hand(text, wanted, tmp_path, close):
    (tmp_path / "e.yaml").write_text(text)
    made = put_together(files(), read_ensemble(tmp_path / "e.yaml"))
    assert (made.name, made.classnames, made.photos) == ("ensemble", NAMES, PHOTOS)
    close(made.main, np.array(wanted), "closed_form")
    columns = "columns" in text
    assert made.comparable is not columns and made.uses_label_statistics is columns


RULES = [
    "kind: mean", "kind: rank", "kind: weighted", "kind: weighted\nweights: {one: 0.75, two: 0.25}",
    "kind: columns\ncolumns: {two: [car]}", "kind: columns\nbase: two\ncolumns: {one: [car, dog]}",
    "kind: columns\ncolumns: {two: [car]}\ncolumn_norm: zscore", "kind: columns\ncolumns: {two: [car]}\ncolumn_norm: rank",
]  # fmt: skip


@pytest.mark.parametrize("text", RULES)
def test_in_parts_is_as_in_one(text, tmp_path, close):
    """Eleven photos in parts of 4, with equal scores among them, and a constant column."""
    rng = np.random.default_rng(3)
    whole = {name: rng.integers(-3, 4, (11, 3)).astype(np.float64) for name in ("one", "two")}
    whole["one"][:, 1], whole["two"][9] = 2, [-9, 8, 7]  # the least and the greatest in the last part
    photos = tuple(f"{n}.jpg" for n in range(11))
    (tmp_path / "e.yaml").write_text(text)
    rule = read_ensemble(tmp_path / "e.yaml")
    wanted = put_together([Scores(name, {"scores": m}, NAMES, photos) for name, m in whole.items()], rule)
    given = {name: lambda m=m: (m[start : start + 4] for start in (0, 4, 8)) for name, m in whole.items()}
    parts, comparable = together_in_parts(given, 11, NAMES, rule, tmp_path)
    assert comparable is wanted.comparable and [len(part) for part in parts()] == [4, 4, 3]
    for _ in range(2):  # for an array and for a list
        close(np.concatenate([*parts()]), wanted.main, "rounding")
    assert [path.name for path in tmp_path.iterdir()] == ["e.yaml"]
    write_scores(tmp_path / "one.json", wanted, "seed")
    write_list_in_parts(tmp_path / "parts.json", lambda: [wanted.main[:4], wanted.main[4:8], wanted.main[8:]])
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "parts.json").read_bytes()


@pytest.mark.parametrize("text", ["kind: weighted", "kind: rank"])
def test_an_ensemble_in_parts_holds_no_whole_matrix(text, tmp_path):
    photos, names = 40_000, tuple(f"class {c}" for c in range(20))
    (tmp_path / "e.yaml").write_text(text)

    def given(seed: int):
        rng = np.random.default_rng(seed)
        return lambda: (rng.normal(size=(256 if n < photos - 256 else photos - n, 20)) for n in range(0, photos, 256))

    tracemalloc.start()
    try:
        rule = read_ensemble(tmp_path / "e.yaml")
        parts, _ = together_in_parts({"one": given(0), "two": given(1)}, photos, names, rule, tmp_path)
        assert sum(len(part) for part in parts()) == photos
        assert tracemalloc.get_traced_memory()[1] < photos * 20 * 8 / 2
    finally:
        tracemalloc.stop()


def test_what_an_ensemble_says_of_itself_is_kept(tmp_path):
    rule = EnsembleRule("columns", {"second": ["car"]})
    made = put_together(files(), rule)
    for name, form in (("a.npz", "npz"), ("a.json", "json")):
        write_scores(tmp_path / name, made, form)
        back = read_scores(str(tmp_path / name))
        assert back.uses_label_statistics and not back.comparable
        assert not put_together([back, files()[0]], EnsembleRule()).comparable
        assert put_together([back, files()[0]], EnsembleRule("rank")).comparable
    said = EnsembleRule("columns", {"second": ["car"]}, column_norm="zscore", chosen_on_labels=False)
    made = put_together(files(), said)
    assert made.comparable and not made.uses_label_statistics
    assert put_together(files(), EnsembleRule("mean", chosen_on_labels=True)).uses_label_statistics
    (tmp_path / "odd.json").write_text(
        json.dumps({"classes": ["a"], "images": ["b"], "scores": [[1]], "comparable": 0})
    )
    with pytest.raises(DataError, match='"comparable" must be true or false, got 0'):
        read_scores(str(tmp_path / "odd.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("columns: {second: [car]}", "must have `kind:`, one of columns, mean, weighted, rank"),
        ("kind: median", "unknown kind of ensemble 'median'"),
        ("kinds: mean", "unknown key in .*'kinds'"),
        ("kind: [mean]", "kind: must be text"),
        ("kind: columns", "names the classes of models below columns"),
        ("kind: mean\ncolumns: {second: [car]}", "names the classes of models below columns"),
        ("kind: mean\nweights: {second: 1}", "weights belong to the kind weighted"),
        ("kind: mean\nbase: first", "belong to the kind columns"),
        ("kind: columns\ncolumns: {second: car}", r"columns.second: must be a list of class names, got 'car'"),
        ("kind: columns\ncolumns: [car]", "columns: must be a group"),
        ("kind: columns\ncolumns: {third: [car]}", "unknown model of an ensemble 'third'"),
        ("kind: columns\ncolumns: {second: [kar]}", "'kar'.*did you mean 'car'"),
        ("kind: columns\ncolumns: {second: [car], first: [car]}", "each class must be decided by one model"),
        ("kind: columns\ncolumns: {second: [car]}\ncolumn_norm: l2", "unknown column_norm 'l2'"),
        ("kind: weighted\nweights: {second: -1}", "weights.second: must be a number, at least 0, got -1"),
        ("kind: weighted\nweights: {second: 1}", "weights must name every model, got none of first.npz"),
        ("kind: weighted\nweights: {second: 0, first: 0}", "not all 0"),
        ("kind: rank\nchosen_on_labels: 1", "chosen_on_labels: must be true or false, got 1"),
    ],
)
def test_rules_that_do_not_fit_are_refused(text, message, tmp_path):
    (tmp_path / "my ensemble, 2.yaml").write_text(text)
    with pytest.raises((ConfigError, UnknownName, DataError), match=message):
        put_together(files(), read_ensemble(tmp_path / "my ensemble, 2.yaml"))


def test_files_that_do_not_fit_are_refused():
    first, second = files()
    with pytest.raises(ConfigError, match="need different names, got first.npz, first.npz"):
        put_together([first, first], EnsembleRule())
    with pytest.raises(DataError, match="classes must be the 3 of the other file, got 2"):
        put_together([first, second.take(columns=[0, 1])], EnsembleRule())
    with pytest.raises(DataError, match=r"photos must be those of the other file, got 1 .*missing: a.jpg"):
        put_together([first, second.take([0])], EnsembleRule())
    lists = Scores("list.txt", {"scores": A > 2}, NAMES, PHOTOS, decided=True)
    with pytest.raises(ConfigError, match=r"got a list of predicted labels: list.txt"):
        put_together([first, lists], EnsembleRule())


def test_measure_takes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for scores in files():
        write_scores(scores.name, scores)
    Path("labels.csv").write_text("photo,labels\na.jpg,dog;dining table\nb.jpg,car\n")
    Path("by class.yaml").write_text("kind: columns\ncolumns: {second: [dog]}\n")
    argv = ["measure", "first.npz", "second.npz", "--labels", "labels.csv", "--ensemble", "by class.yaml"]
    assert main([*argv, "--out", "m.json"]) == 0
    assert "ensemble    by class  100.0000" in capsys.readouterr().out
    assert json.loads(Path("m.json").read_text())["uses_label_statistics"]
    assert main([*argv, "--at", "1"]) == 2
    assert "an ensemble by columns has scores of different models side by side" in capsys.readouterr().err
    for more, code in (([], 2), (["--threshold", "class_f1"], 0)):
        assert main([*argv, *more, "--calibrate", "c.json"]) == code
    assert "fit each class's own with --threshold class_f1 or prevalence" in capsys.readouterr().err
    write_scores("both.npz", put_together(files(), read_ensemble("by class.yaml")))
    assert main(["measure", "both.npz", "--labels", "labels.csv", "--threshold", "global_f1"]) == 2
    assert "an ensemble by columns" in capsys.readouterr().err
    for odd in ("median", "by.txt"):
        assert main([*argv[:-1], odd]) == 2
        assert "unknown ensemble" in capsys.readouterr().err
