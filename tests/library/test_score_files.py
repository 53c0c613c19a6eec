"""Score files and `jclip measure`: written and read back, put into one order, measured; published outputs as goldens."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from jclip.cli import main
from jclip.data.multi_label_sets import read_labels
from jclip.errors import ConfigError, DataError
from jclip.functional.calibration import Calibration
from jclip.functional.score_ensemble import searched_merge
from jclip.report.calibration_file import calibration_for, read_calibration, write_calibration
from jclip.report.score_files import (
    Scores,
    aligned,
    joined,
    ordered_classes,
    photo_places,
    read_image_names,
    read_scores,
    write_scores,
)

NAMES, PHOTOS = ("cat", "dog", "cow"), ("一/a.jpg", "b c.jpg", "d.jpg", "e.jpg")


def drawn(seed: int, name: str = "m", **more) -> Scores:
    rng = np.random.default_rng(seed)
    return Scores(name, {"scores": rng.normal(size=(4, 3)).astype(np.float32)}, NAMES, PHOTOS, **more)


@pytest.mark.parametrize("form, ending", [("npz", "npz"), ("json", "json"), ("seed", "json")])
def test_what_is_written_is_read(form, ending, tmp_path):
    path, wanted = tmp_path / f"x.{ending}", drawn(0, uses_label_statistics=True)
    write_scores(path, wanted, form)
    first = path.read_bytes()
    found = read_scores(str(path), NAMES, PHOTOS)
    assert np.array_equal(found.parts["scores"], wanted.parts["scores"])
    assert (found.classnames, found.photos, found.name) == (NAMES, PHOTOS, path.name)
    assert found.uses_label_statistics == (form != "seed")
    write_scores(path, wanted, form)
    assert path.read_bytes() == first


def test_the_contests_list_is_bare(tmp_path):
    write_scores(tmp_path / "result.json", drawn(0), "seed")
    rows = json.loads((tmp_path / "result.json").read_text())
    assert isinstance(rows, list) and np.array(rows).shape == (4, 3) and isinstance(rows[0][0], float)


def test_parts_of_an_npz(tmp_path):
    g, local = np.arange(6.0).reshape(2, 3), np.ones((2, 3))
    np.savez(tmp_path / "x.npz", a_global=g, a_local=local, b=g, **{"global": local, "local": g})
    assert read_scores(f"{tmp_path}/x.npz:a").parts["global"].tolist() == g.tolist()
    assert (
        {*read_scores(f"{tmp_path}/x.npz:a").parts} == {*read_scores(f"{tmp_path}/x.npz").parts} == {"global", "local"}
    )
    assert {*read_scores(f"{tmp_path}/x.npz:b").parts} == {"scores"}
    both = read_scores(f"{tmp_path}/x.npz:a").with_merged(0.25)
    assert both.main.tolist() == (0.25 * g + 0.75 * local).tolist()
    with pytest.raises(ConfigError, match="merge them first"):
        read_scores(f"{tmp_path}/x.npz:a").main  # noqa: B018
    with pytest.raises(DataError, match="must hold scores as 'a_globl', did you mean 'a_global'"):
        read_scores(f"{tmp_path}/x.npz:a_globl")
    assert read_scores(f"{tmp_path}/x.npz:b").with_merged(0.5).main.tolist() == g.tolist()


def test_scores_that_are_none(tmp_path):
    broken = np.ones((4, 3))
    broken[1, 2], broken[3, 0] = np.nan, np.inf
    np.savez(tmp_path / "x.npz", scores=broken, images=np.array(PHOTOS), classes=np.array(NAMES))
    with pytest.raises(DataError, match=r"x.npz, scores: .* got 2 of 12 .*\(b c.jpg, cow: nan; e.jpg, cat: inf\)"):
        read_scores(str(tmp_path / "x.npz"))
    with pytest.raises(DataError, match="must be of 3 classes, got 2"):
        Scores("x", {"scores": np.ones((4, 2))}, NAMES, PHOTOS)
    with pytest.raises(DataError, match="names its photos and classes, got none"):
        write_scores(tmp_path / "y.npz", Scores("x", {"scores": np.ones((4, 3))}))
    with pytest.raises(DataError, match="names its photos and classes, got none"):
        write_scores(tmp_path / "y.json", Scores("x", {"scores": np.ones((4, 3))}, NAMES), "json")
    for text, message in (
        ("[[1, 2], [3]]", "row 1: must be a list of 2"), ("[]", "at least one"), ("[1]", "row 0: must be a list of numbers"),
        ("[[1, true]]", "must be numbers, got True"), ("[[NaN]]", "NaN is not a number"),
        ('{"scores": [[1]]}', "an object with"),
        ('{"classes": ["a"], "images": ["b"], "scores": [[1]], "x": 1}', "nothing but .* got 'x'"),
        ('{"classes": "a", "images": ["b"], "scores": [[1]]}', "lists of texts"),
    ):  # fmt: skip
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(DataError, match=message):
            read_scores(str(tmp_path / "x.json"))
    with pytest.raises(DataError, match="holds one matrix, got 'global'"):
        read_scores(f"{tmp_path}/x.json:global")


def test_another_order_of_classes_and_photos(capsys):
    one = drawn(0)
    turned = one.take([2, 0, 3, 1], [2, 0, 1])
    assert turned.classnames == ("cow", "cat", "dog")
    _, found = aligned([one, turned])
    assert np.array_equal(found.main, one.main) and found.photos == PHOTOS and found.classnames == NAMES
    assert "classes stand in another order" in capsys.readouterr().err
    spelt = Scores("m", one.parts, ("Cat", "dog", "COW"), PHOTOS)
    assert np.array_equal(ordered_classes(spelt, NAMES).main, one.main)
    with pytest.raises(DataError, match=r"m: classes must be the 3 .* \(not there: bird; missing: cow\)"):
        aligned([one, Scores("m", one.parts, ("cat", "dog", "bird"), PHOTOS)])
    with pytest.raises(DataError, match=r"m: photos .* got 4 of which 3 are among its 4 \(missing: 一/a.jpg\)"):
        aligned([one, Scores("m", one.parts, NAMES, ("z.jpg", *PHOTOS[1:]))])
    with pytest.raises(DataError, match=r"the shape \(4, 3\) of m, got \(3, 3\)"):
        aligned([one, Scores("n", {"scores": one.main[:3]}, NAMES)])
    with pytest.raises(DataError, match="a column for each of 3 classes, got 2"):
        aligned([one, Scores("n", {"scores": one.main[:, :2]})])


def test_parts_are_joined():
    whole = drawn(0, uses_label_statistics=True)
    parts = [whole.take([0, 1]), whole.take([2]), whole.take([3])]
    found = joined(parts)
    assert np.array_equal(found.main, whole.main) and found.photos == PHOTOS and found.uses_label_statistics
    with pytest.raises(DataError, match="must be listed once, got 'd.jpg' again"):
        joined([*parts, parts[1]])
    with pytest.raises(DataError, match="parts must have scores of the same classes as m, got scores of 2 classes"):
        joined([parts[0], parts[1].take(columns=[0, 1])])
    with pytest.raises(DataError, match="got global of 3 classes"):
        joined([parts[0], Scores("n", {"global": parts[1].main}, NAMES, PHOTOS[2:3])])
    with pytest.raises(DataError, match="all name their photos, or none"):
        joined([parts[0], Scores("n", parts[1].parts, NAMES)])


def test_photos_are_found_by_name_then_file_then_id():
    def found(have, wanted):
        rows, places = photo_places(have, wanted)
        return rows.tolist(), places.tolist()

    assert found(["x/a.jpg", "y/a.jpg"], ["y/a.jpg", "x/a.jpg"]) == ([1, 0], [0, 1])
    assert found(["000139", "000285"], ["val/000285.jpg", "val/1.jpg", "val/000139.jpg"]) == ([1, 0], [0, 2])
    assert found(["p\\b.jpg"], ["q/b.jpg"]) == ([0], [0])
    assert found(["x/a.jpg", "y/a.jpg"], ["z/a.jpg"]) == ([], [])  # which one is not known
    assert found(["v1.2"], ["v1.jpg"]) == ([], [])


def test_names_of_images(tmp_path):
    (tmp_path / "l.txt").write_text("a b.jpg\nc.jpg 3\nd\n")
    assert read_image_names(tmp_path / "l.txt") == ("a b.jpg", "c.jpg", "d")


def fitted(**more) -> Calibration:
    values = dict(classnames=NAMES, rule="class_f1", thresholds=np.array([0.1, 1 / 3, -2.5]), a=np.array([1.5, np.nan, 2e-9]),
                  b=np.array([-0.5, np.nan, 0.0]), photos_of="val.txt", sha256="ab" * 32, photos=40)  # fmt: skip
    return Calibration(**(values | more))


def test_a_calibration_is_read_back_exactly(tmp_path):
    path = tmp_path / "calibration.json"
    write_calibration(path, fitted())
    found = calibration_for(path, NAMES)
    for key, value in vars(fitted()).items():
        assert (
            np.array_equal(getattr(found, key), value, equal_nan=True)
            if isinstance(value, np.ndarray)
            else getattr(found, key) == value
        )
    assert json.loads(path.read_text())["without_probability"] == ["dog"]
    with pytest.raises(DataError, match=r"same order, got 'cat' where 'dog' stands \(class 0 of 3\)"):
        calibration_for(path, ("dog", "cat", "cow"))
    with pytest.raises(DataError, match=r"got 'nothing' where 'x' stands \(class 3 of 4\)"):
        calibration_for(path, (*NAMES, "x"))


@pytest.mark.parametrize("change, message", [
    ({"kind": "x"}, "must be a calibration file"), ({"version": 2}, "version must be 1, got 2"),
    ({"rule": "best"}, "got 'best'"),
    ({"thresholds": [1, 2]}, "a list of 3 numbers"), ({"thresholds": [1, 2, None]}, "must be numbers, got None"),
    ({"a": [1, 2, "3"]}, "numbers or null, got '3'"), ({"a": [1, 2, 3]}, "null for the same classes"),
    ({"list": {"name": "x"}}, "list must have name, sha256, photos"), ({"extra": 1}, "nothing but .* got 'extra'"),
    ({"classes": []}, "a list of names"), ({"b": ...}, "got none of b"),
])  # fmt: skip
def test_what_is_no_calibration(change, message, tmp_path):
    path = tmp_path / "calibration.json"
    write_calibration(path, fitted())
    values = {k: v for k, v in (json.loads(path.read_text()) | change).items() if v is not ...}
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=message):
        read_calibration(path)


def lines(text: str) -> list[str]:
    """Lines with single blanks."""
    return [re.sub(" +", " ", line) for line in text.splitlines()]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Two score files of four photos, labels, another list of labels; the working folder."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("one", 0), ("two", 1)):
        write_scores(f"{name}.npz", drawn(seed, name))
    tmp_path.joinpath("labels.csv").write_text(
        "photo,cat,dog,cow\n一/a.jpg,1,0,1\nb c.jpg,0,1,-1\nd.jpg,1,1,0\ne.jpg,0,0,1\n"
    )
    return tmp_path


def run(capsys, *words: str, code: int = 0) -> tuple[list[str], str]:
    """Printed lines and stderr of `jclip measure`."""
    assert main(["measure", *words]) == code
    printed = capsys.readouterr()
    return lines(printed.out), printed.err


def test_thresholds_that_differ_between_classes_are_not_one_in_the_rows_name(small, capsys):
    run(capsys, "one.npz", "--labels", "labels.csv", "--threshold", "class_f1", "--out", "m.json")
    assert "class_f1" in json.loads((small / "m.json").read_text())["rows"][0]["decisions"]


def test_metrics_and_files_of_a_measurement(small, capsys):
    from jclip.functional.multi_label_metrics import best_k, decision_report, ranking_report

    out, _ = run(
        capsys, "one.npz", "two.npz", "--labels", "labels.csv", "--ensemble", "mean", "--at", "1", "--threshold", "0.1",
        "--out", "m.json", "--per-class", "c.csv", "--unseen", "cow,dog", "--thirds",
    )  # fmt: skip
    values, targets = json.loads((small / "m.json").read_text()), read_labels("labels.csv").targets
    mean = (drawn(0).main.astype(float) + drawn(1).main) / 2
    assert values["files"]["one.npz"]["map"] == ranking_report(drawn(0).main, targets).mean
    last = values["rows"][-1]
    assert last["map"] == pytest.approx(ranking_report(mean, targets).mean) and len(values["rows"]) == 3
    assert last["map_seen"] == pytest.approx(ranking_report(mean, targets).precisions[0])
    assert {*last["decisions"]} == {"best 1", "best 1 above threshold", "threshold 0.1000"}
    assert last["decisions"]["best 1"] == decision_report(best_k(mean, 1), targets).values()
    both = best_k(mean, 1) & (mean >= 0.1)
    assert last["decisions"]["best 1 above threshold"] == decision_report(both, targets).values()
    assert (
        values["labels"]["unknown"] == 1
        and values["labels"]["photos"] == 4
        and values["chosen_on_measured_photos"] == []
    )
    assert values["uses_label_statistics"] is False
    assert values["labels"]["photos_without_label"] == values["labels"]["photos_with_every_label"] == 0
    rows = (small / "c.csv").read_text().splitlines()
    assert rows[0] == "class,positives,negatives,unknown,ap,tie_share,threshold,precision,recall,f1" and len(rows) == 4
    assert rows[3].startswith("cow,2,1,1,")
    recalls = decision_report(mean >= 0.1, targets).recalls
    assert [float(row.split(",")[8]) for row in rows[1:]] == pytest.approx(recalls.tolist(), abs=1e-6)
    assert recalls.tolist() != decision_report(both, targets).recalls.tolist()
    assert out[0] == "scores part mAP mAP seen mAP unseen mAP head mAP medium mAP tail" and out[4].startswith(
        "ensemble mean "
    )


def test_thirds_go_by_the_labels(small, capsys):
    (small / "labels.csv").write_text("photo,cat,dog,cow\n一/a.jpg,0,0,1\nb c.jpg,0,1,1\nd.jpg,1,1,1\ne.jpg,0,0,0\n")
    run(capsys, "one.npz", "--labels", "labels.csv", "--thirds", "--out", "m.json", "--per-class", "c.csv")
    (row,) = json.loads((small / "m.json").read_text())["rows"]
    of_class = {
        line.split(",")[0]: float(line.split(",")[4]) for line in (small / "c.csv").read_text().splitlines()[1:]
    }
    found = [row[f"map_{third}"] for third in ("head", "medium", "tail")]
    assert found == pytest.approx([of_class["cow"], of_class["dog"], of_class["cat"]], abs=1e-6)
    assert len({*found}) == 3
    (small / "two.csv").write_text("photo,cat,dog\na,1,0\nb,0,1\n")
    write_scores("small.npz", Scores("s", {"scores": np.eye(2)}, ("cat", "dog"), ("a", "b")))
    out, _ = run(capsys, "small.npz", "--labels", "two.csv", "--thirds", "--out", "m.json", "--no-positive", "zero")
    assert out[2] == "small.npz scores 100.0000 100.0000 100.0000 -"
    assert json.loads((small / "m.json").read_text())["rows"][0]["map_tail"] is None


def test_thresholds_are_fitted_on_one_list_and_used_on_another(small, capsys):
    out, err = run(capsys, "one.npz", "--labels", "labels.csv", "--threshold", "class_f1", "--calibrate", "cal.json")
    assert "threshold chosen on the photos that are measured: for comparing, no result" in out
    found = read_calibration("cal.json")
    assert found.rule == "class_f1" and found.photos == 4 and found.photos_of == "labels.csv"
    assert found.sha256 == read_labels("labels.csv").sha256()
    run(capsys, "one.npz", "--labels", "labels.csv", "--threshold", "0.25", "--calibrate", "fixed.json")
    assert read_calibration("fixed.json").thresholds.tolist() == [0.25] * 3
    _, err = run(
        capsys, "one.npz", "--labels", "labels.csv", "--threshold", "cal.json", "--calibrate", "new.json", code=2
    )
    assert "a number or a rule, got a calibration file" in err
    _, err = run(capsys, "one.npz", "--labels", "labels.csv", "--threshold", "cal.json")
    assert "cal.json was fitted on the photos that are measured" in err
    (small / "other.csv").write_text((small / "labels.csv").read_text().replace("-1", "0"))
    out, err = run(capsys, "two.npz", "one.npz", "--labels", "other.csv", "--threshold", "cal.json", "--out", "m.json")
    rows = json.loads((small / "m.json").read_text())["rows"]
    assert not err and not rows[0]["decisions"] and rows[1]["thresholds"] == found.thresholds.tolist()


def test_the_merge_is_searched_and_said(small, capsys):
    targets = read_labels("labels.csv").targets
    parts = {
        "global": np.where(targets == 1, 1.0, 0.0) - 0.1 * drawn(0).main,
        "local": 10 * drawn(1).main.astype(float),
    }
    write_scores("both.npz", Scores("both", parts, NAMES, PHOTOS))
    out, _ = run(capsys, "both.npz", "--labels", "labels.csv", "--merge", "search", "--out", "m.json")
    values = json.loads((small / "m.json").read_text())
    assert values["settings"]["merge"] == searched_merge(parts["global"], parts["local"], targets) > 0.5
    assert values["chosen_on_measured_photos"] == ["merge"] and values["map_merged"] >= max(
        values["map_global"], values["map_local"]
    )
    assert f"merge {values['settings']['merge']:g}" in out
    assert "merge chosen on the photos that are measured: for comparing, no result" in out
    write_scores("again.npz", Scores("again", parts, NAMES, PHOTOS))
    _, err = run(capsys, "both.npz", "again.npz", "--labels", "labels.csv", "--merge", "search", code=2)
    assert "is for one file with global and local scores, got 2" in err


def test_columns_refuse_what_compares_classes(small, capsys):
    (small / "columns.yaml").write_text("two.npz: [dog]\n")
    files = ("one.npz", "two.npz", "--labels", "labels.csv", "--ensemble", "columns", "--columns", "columns.yaml")
    run(capsys, *files, "--out", "m.json", "--threshold", "class_f1")
    assert json.loads((small / "m.json").read_text())["uses_label_statistics"] is True
    for more in (("--at", "2"), ("--threshold", "0.5"), ("--threshold", "global_f1")):
        _, err = run(capsys, *files, *more, code=2)
        assert "side by side" in err and "set column_norm" in err
        run(capsys, *files, *more, "--column-norm", "zscore")
    (small / "columns.yaml").write_text("two.npz: [dgo]\n")
    assert (
        "columns.two.npz: classes must be among the 3 named, got 'dgo', did you mean 'dog'?"
        in run(capsys, *files, code=2)[1]
    )
    (small / "columns.yaml").write_text("two.npz: dog\n")
    assert "must be a list of class names" in run(capsys, *files, code=2)[1]


def test_photos_of_one_file_only(small, capsys):
    text = (small / "labels.csv").read_text()
    (small / "more.csv").write_text(text + "z.jpg,1,0,0\n")
    out, err = run(capsys, "one.npz", "--labels", "more.csv")
    assert "measured are 4 photos: 1 have labels without scores, 0 scores without labels" in err
    assert out == run(capsys, "one.npz", "--labels", "labels.csv")[0]
    (small / "less.csv").write_text("".join(text.splitlines(keepends=True)[:4]))
    _, err = run(capsys, "one.npz", "--labels", "less.csv", code=2)
    assert "got 1 of 4 without (first: e.jpg): --common measures the others" in err
    assert "0 have labels without scores, 1 scores" in run(capsys, "one.npz", "--labels", "less.csv", "--common")[1]


def test_files_without_names_are_taken_in_order(small, capsys):
    np.savez("labels.npz", targets=read_labels("labels.csv").targets)
    out, err = run(capsys, "one.npz", "--labels", "labels.npz")
    assert "photos are taken in order" in err and out == run(capsys, "one.npz", "--labels", "labels.csv")[0]
    write_scores("bare.json", drawn(0), "seed")
    listed = ("bare.json", "--labels", "labels.csv", "--classes", "cat,dog,cow")
    out, err = run(capsys, *listed)
    assert "photos are taken in order" in err and out[2].endswith(
        run(capsys, "one.npz", "--labels", "labels.csv")[0][2][-8:]
    )
    (small / "names.txt").write_text("\n".join(PHOTOS[::-1]))
    (small / "turned.csv").write_text("photo,cat,dog,cow\ne.jpg,1,0,1\nd.jpg,0,1,-1\nb c.jpg,1,1,0\n一/a.jpg,0,0,1\n")
    found, err = run(capsys, "bare.json", "--labels", "turned.csv", "--images", "names.txt")
    assert not err and found == out
    np.savez("labels.npz", targets=np.eye(3, dtype=np.int8))
    _, err = run(capsys, "one.npz", "--labels", "labels.npz", code=2)
    assert "a row for each of the 3 photos of labels.npz:targets, got 4" in err


@pytest.mark.parametrize("words, message", [
    (("--rho", "0.5"), "--rho weighs two score files"), (("--ensemble", "mean"), "at least two score files, got one"),
    (("--columns", "x"), "belong together"), (("--column-norm", "rank"), "belongs to --ensemble columns"),
    (("--quantiles", "9"), "--quantiles belongs to"), (("--ties", "expected", "--ap", "voc11"), "for --ap rank, got voc11"),
    (("--merge", "0.5"), "needs a score file with global and local"), (("--merge", "1.5"), r"in \[0, 1\], got '1.5'"),
    (("--threshold", "best_f1"), "unknown threshold 'best_f1'"), (("--threshold", "no.json"), "no such calibration file"),
    (("--out", "labels.csv"), "labels.csv is read, and would be overwritten"), (("--unseen", "bird,cat"), "got 'bird'"),
    (("--out", "one.npz"), "one.npz is read"),
    (("--classes", "cat,dog"), "classes must be the 2 of the other file|among the 2"),
])  # fmt: skip
def test_what_a_measurement_refuses(words, message, small, capsys):
    _, err = run(capsys, "one.npz", "--labels", "labels.csv", *words, code=2)
    assert re.search(message, err) and err.count("\n") == 1


@pytest.fixture
def voc(shared):
    if not (path := shared / "tai_voc2007" / "scores.npz").is_file():
        pytest.skip(f"published scores not found at {path}")
    return str(path)


def test_published_scores_of_two_systems(voc, capsys):
    out, _ = run(
        capsys, f"{voc}:tai", f"{voc}:dualcoop_local", "--labels", voc, "--label-values", "voc", "--classes", "voc2007",
        "--merge", "0.5", "--ensemble", "weighted", "--rho", "0.8", "--at", "3", "--threshold", "global_f1",
        "--quantiles", "60",
    )  # fmt: skip
    for line in (
        "scores.npz:tai global 86.0784", "scores.npz:tai local 73.5070", "scores.npz:tai merged 88.0747",
        "scores.npz:dualcoop_local scores 94.1827", "ensemble weighted 0.8 94.7585",
        "scores.npz:tai merged best 3 46.0313 92.7355 61.5239 59.4001 43.8409 92.8704 59.5638",
        "scores.npz:tai merged global_f1 0.4275 73.0595 86.9587 79.4054 77.5735 74.0457 79.9373 76.8788",
    ):  # fmt: skip
        assert line in out


def test_published_scores_without_difficult_objects(voc, capsys):
    how = (f"{voc}:tai", "--labels", voc, "--label-values", "voc", "--classes", "voc2007", "--merge", "0.5")
    assert "scores.npz:tai merged 88.9862" in run(capsys, *how, "--difficult", "ignore")[0]
    assert "scores.npz:tai merged 84.4562" in run(capsys, *how, "--ap", "voc11")[0]


@pytest.mark.parametrize("name, classes, wanted", [
    ("coco2017_val", "coco", (0.6263, 0.7857, 0.4125, 0.5410)), ("voc2012_val", "voc2007", (0.8759, 0.9251, 0.7713, 0.8412)),
])  # fmt: skip
def test_published_label_lists(name, classes, wanted, shared, tmp_path, capsys):
    """TagCLIP's own predictions."""
    folder = shared / "tagclip_coco"
    if not folder.is_dir():
        pytest.skip(f"published label lists not found at {folder}")
    run(capsys, str(folder / f"{name}_tagclip_example.txt"), "--labels", str(folder / f"{name}.txt"), "--classes", classes,
        "--out", str(tmp_path / "m.json"))  # fmt: skip
    (row,) = json.loads((tmp_path / "m.json").read_text())["rows"]
    found = row["decisions"]["as listed"]
    assert tuple(round(found[key], 4) for key in ("CF1", "OP", "OR", "OF1")) == wanted and "map" not in row


def test_label_lists_against_names_of_photos(shared, tmp_path, capsys):
    """The same predictions on the annotated photos at hand, whose names have endings and whose labels are names."""
    source, listed = shared / "coco" / "coco.json", shared / "tagclip_coco" / "coco2017_val_tagclip_example.txt"
    if not source.is_file() or not listed.is_file():
        pytest.skip(f"photos or label lists not found below {shared}")
    images = [i for i in json.loads(source.read_text())["images"] if i["split"] == "val2017" and i["annotated"]]
    rows = [json.dumps({"photo": i["image"], "labels": [*dict.fromkeys(i["labels"])]}) for i in images]
    (tmp_path / "labels.jsonl").write_text("\n".join(rows))
    _, err = run(capsys, str(listed), "--labels", str(tmp_path / "labels.jsonl"), "--classes", "coco", "--common",
                 "--out", str(tmp_path / "m.json"))  # fmt: skip
    found = json.loads((tmp_path / "m.json").read_text())["rows"][0]["decisions"]["as listed"]
    assert tuple(round(found[key], 4) for key in ("OP", "OR", "OF1")) == (0.8306, 0.3888, 0.5297)
    assert "measured are 204 photos" in err
