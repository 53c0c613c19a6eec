"""`jclip tag` as people type it: tags in every format, into folders and back; one name; and wrong questions in one line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jclip.cli import main
from jclip.config import DataConfig
from jclip.data.multi_label import read_multi_label
from jclip.data.shapes import SEEN_STYLES, draw_scene
from jclip.errors import ConfigError, DataError
from jclip.features.tagging import PhotoScores
from jclip.readers.spreadsheet import read_csv
from jclip.report.calibration_file import read_calibration
from jclip.report.contact_sheet import write_tag_sheet
from jclip.report.score_files import read_scores
from jclip.report.sorted_folders import MANIFEST, read_manifest
from jclip.report.tags import Tags, plan_tags, show_tags, write_tags

PAIRS = (("red", "circle"), ("blue", "star"), ("green", "moon"), ("white", "cross"))
NAMES = ("red circle", "blue star", "green moon", "white cross")
MODEL = ("--model", "shapes-tiny-rn", "--templates", "simple")


def run(*arguments) -> int:
    return main([*map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twelve scenes of two or three of four things, filled; those of odd number in a folder of their own."""
    root, found = tmp_path_factory.mktemp("scenes"), []
    for i in range(12):
        scene = draw_scene((5, i), pairs=PAIRS, styles=SEEN_STYLES[:1], count=(2, 3))
        place = root / ("照片" if i % 2 else "a") / f"{i // 2}.png"
        place.parent.mkdir(exist_ok=True)
        scene.render(64).save(place)
        found.append((str(place), {*scene.labels}))
    (root / "truth.json").write_text(json.dumps([[path, sorted(names)] for path, names in found]))
    return root


def truth(folder: Path) -> dict[str, set[str]]:
    return {path: {*names} for path, names in json.loads((folder / "truth.json").read_text())}


def test_photos_in_tags_out(folder, tmp_path, capsys):
    """The same tags in every format, nearly all of them right; a photo in as many folders as it has tags, and back."""
    given = [folder, *MODEL, "--classes", ",".join(NAMES)]
    for ending in ("csv", "json", "jsonl", "txt"):
        assert run("tag", *given, "--out", tmp_path / f"tags.{ending}") == 0
    printed = capsys.readouterr().out
    assert "tags with their score" in printed and "probabilit" not in printed and "photos with a tag: " in printed
    entries = json.loads((tmp_path / "tags.json").read_text(encoding="utf-8"))
    message = {entry["photo"]: [tag["class"] for tag in entry["tags"]] for entry in entries}
    right = truth(folder)
    hits = sum(len(right[photo] & {*tags}) for photo, tags in message.items())
    assert message.keys() == right.keys() and 2 * hits / sum(map(len, [*message.values(), *right.values()])) > 0.9
    for entry in entries:
        scores = [tag["score"] for tag in entry["tags"]]
        assert scores == sorted(scores, reverse=True) and all(0 < x <= 1 for x in scores)
        assert [NAMES[tag["label"]] for tag in entry["tags"]] == message[entry["photo"]]
    lines = (tmp_path / "tags.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == entries
    rows = read_csv(tmp_path / "tags.csv")
    assert {row["photo"]: [v for k, v in row.items() if k.startswith("tag_") and v] for row in rows} == message
    assert [float(row["score_1"]) for row in rows] == [entry["tags"][0]["score"] for entry in entries]
    (tmp_path / "names.txt").write_text("".join(f"{name} {i}\n" for i, name in enumerate(NAMES)))
    read = read_multi_label(DataConfig(test=str(tmp_path / "tags.txt"), classes=str(tmp_path / "names.txt")))
    assert {p: {NAMES[i] for i in np.flatnonzero(t)} for p, t in zip(read.photos.paths, read.targets, strict=True)} == {
        photo: {*tags} for photo, tags in message.items()
    }


@pytest.mark.parametrize("how", ["link", "copy"])
def test_a_photo_in_several_folders_and_back(how, folder, tmp_path, capsys):
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    out = tmp_path / "sorted"
    given = ["--classes", ",".join(NAMES), "--sort-into", out, *([] if how == "link" else ["--copy"])]
    assert run("tag", folder, *MODEL, *given, "--dry-run") == 0 and not out.exists()
    assert "nothing was written: repeat without --dry-run" in capsys.readouterr().out
    assert run("tag", folder, *MODEL, *given) == 0
    manifest = read_manifest(out / MANIFEST)
    assert all(one.score is not None and one.probability is None for one in manifest.photos)
    made = list(out.rglob("*.png"))
    assert len(made) == len(manifest.photos) > len(before) and {path.parent.name for path in made} <= {*NAMES}
    for one in manifest.photos:
        target = out / one.target
        assert target.is_symlink() == (how == "link") and target.read_bytes() == before[Path(one.photo)]
    mine = out / manifest.photos[0].target
    mine.unlink()
    mine.write_bytes(b"changed by hand")  # what people changed stays
    assert run("unsort", out / MANIFEST) == 0
    said = capsys.readouterr().out
    assert f"removed: {len(made) - 1} of what was made" in said and "left, as it " in said
    assert list(out.rglob("*.png")) == [mine] and mine.read_bytes() == b"changed by hand"
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == before


def test_one_name_alone(folder, tmp_path, capsys):
    """Photos that have it are found; the rest has no tag, and a folder that says so."""
    out = tmp_path / "red"
    assert run("tag", folder, *MODEL, "--classes", "red circle", "--background", "blue star,green moon,white cross",
               "--sort-into", out, "--sheet", tmp_path / "sheet.html") == 0  # fmt: skip
    folders = {path.name: {p.resolve() for p in path.iterdir()} for path in out.iterdir() if path.is_dir()}
    right = {Path(path).resolve() for path, names in truth(folder).items() if "red circle" in names}
    every = {Path(path).resolve() for path in truth(folder)}
    assert folders["red circle"] | folders["_none"] == every and folders["red circle"] == right and right < every
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert page.count('<span class="badge">none</span>') == len(folders["_none"]) and "numbers: score" in page
    assert "none" in capsys.readouterr().out
    given = ["--method", "dense", "--background", "none", "--classes", "red circle"]
    assert run("tag", folder, *MODEL, *given) == 2
    assert "set --threshold, or name a --background" in capsys.readouterr().err
    assert run("tag", folder, *MODEL, *given, "--threshold", 1e6) == 0
    assert "photos with a tag: none 12" in capsys.readouterr().out


def test_options_choose(folder, tmp_path, capsys):
    base = ["tag", folder, *MODEL, "--classes", ",".join(NAMES)]

    def tags(*options) -> list[int]:
        assert run(*base, *options, "--out", tmp_path / "x.json") == 0
        return [len(entry["tags"]) for entry in json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))]

    plain = tags()
    assert tags("--top", 1) == [1] * 12 != plain
    assert tags("--threshold", 0) == [4] * 12 and tags("--threshold", 1) == [1] * 12
    assert tags("--threshold", 1, "--none") == [0] * 12
    assert tags("--threshold", 1, "--none", "--dry-run") == [0] * 12
    assert tags("--per-class-norm") != tags("--windows", "2") != []
    assert tags("--method", "whole", "--windows", "2") != tags("--method", "whole")
    capsys.readouterr()
    assert run(*base[:2], folder / "a", *MODEL, "--classes", "coco", "--top", 7, "--threshold", 0, "--sheet",
               tmp_path / "s.png") == 0  # fmt: skip
    assert " and 2 more" in capsys.readouterr().out
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.height > 192


def test_a_dry_run_writes_nothing(folder, tmp_path, capsys):
    given = ["--out", tmp_path / "x.csv", "--sheet", tmp_path / "x.png", "--sort-into", tmp_path / "x"]
    assert run("tag", folder, *MODEL, "--classes", ",".join(NAMES), *given, "--dry-run") == 0
    assert not any(tmp_path.iterdir()) and "folder in" in capsys.readouterr().out


def test_broken_photos_are_skipped_and_counted(folder, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    given = ["tag", folder / "a", tmp_path / "broken.jpg", *MODEL, "--classes", "red circle,blue star"]
    assert run(*given, "--out", tmp_path / "x.jsonl") == 0
    assert "skipped 1 of 7 photos (first: " in capsys.readouterr().err
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 6
    assert run(*given, "--on-error", "stop") == 2
    assert "does not decode" in capsys.readouterr().err


def test_probabilities_after_a_calibration(folder, tmp_path, capsys):
    """Scores written, thresholds and sigmoids fitted on labels, and both used; a class that nobody could fit is left out."""
    base = ["tag", folder, *MODEL, "--classes", ",".join([*NAMES, "pink bolt"])]
    assert run(*base, "--out", tmp_path / "scores.npz") == 0
    rows = [
        f"{path} {' '.join(str(NAMES.index(name)) for name in sorted(names))}" for path, names in truth(folder).items()
    ]
    (tmp_path / "labels.txt").write_text("\n".join(rows) + "\n")
    assert run("measure", tmp_path / "scores.npz", "--labels", tmp_path / "labels.txt", "--threshold", "class_f1",
               "--calibrate", tmp_path / "fitted.json") == 0  # fmt: skip
    capsys.readouterr()
    assert run(*base, "--calibration", tmp_path / "fitted.json", "--out", tmp_path / "x.json") == 0
    printed = capsys.readouterr()
    assert "tags with their probability" in printed.out and " %" in printed.out
    assert "classes without a probability in the calibration, left out: 1 (first: pink bolt)" in printed.err
    fitted, scores = read_calibration(tmp_path / "fitted.json"), read_scores(str(tmp_path / "scores.npz"))
    entries = {e["photo"]: e["tags"] for e in json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))}
    for photo, row in zip(scores.photos, scores.main, strict=True):
        own = {tag["class"]: tag["probability"] for tag in entries[photo]}
        assert {*own} == {name for name, x, t in zip(NAMES, row, fitted.thresholds, strict=False) if x >= t}
        for name, given in own.items():
            k = NAMES.index(name)
            assert given == pytest.approx(1 / (1 + np.exp(-(fitted.a[k] * row[k] + fitted.b[k]))), abs=1e-5)
    assert run(*base, "--calibration", tmp_path / "fitted.json", "--threshold", 0.999) == 0
    assert "photos with a tag: none 12" in capsys.readouterr().out
    assert run(*base[:-1], "red circle,blue star", "--calibration", tmp_path / "fitted.json") == 2
    assert "must be fitted for the same classes in the same order" in capsys.readouterr().err


def wrong(folder: Path, tmp_path: Path) -> dict[str, list]:
    two, photos = ["--classes", "red circle,blue star"], [folder / "a"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / MANIFEST).write_text("{}")
    return {
        "name the classes with --classes: a,b,c, a file": [*photos],
        "no class names given": [*photos, "--classes", ", ,"],
        "class names stand more than once: red circle (name 1 and name 3)": [
            *photos, "--classes", "red circle,x,red circle"],
        "no such file of class names: nowhere.txt": [*photos, "--classes", "nowhere.txt"],
        "unknown prompt set or file": [*photos, *two, "--templates", "tagclip58"],
        "tagclip reads the attention of vision transformers, got a tower of kind resnet: use --method places": [
            *photos, *two, "--method", "tagclip"],
        "tags are written as one of .csv, .json, .jsonl, .txt, .npz, got x.yaml": [*photos, *two, "--out", "x.yaml"],
        "a sheet is written as one of": [*photos, *two, "--sheet", "x.pdf"],
        "stands there already: name another folder, or undo it": [*photos, *two, "--sort-into", tmp_path / "full"],
        "no such photo or folder: nowhere": ["nowhere", *two],
        "argument --windows: must be an integer in [2, 32], got '1': give scales such as 2 or 2,3": [
            *photos, *two, "--windows", "1"],
        "scales of windows must be different": [*photos, *two, "--windows", "2,2"],
        "not allowed with argument": [*photos, *two, "--model", "shapes-tiny-rn", "--run", "somewhere"],
        "argument --top: must be an integer in [1, 1000000], got '0'": [*photos, *two, "--top", "0"],
        "--per-class-norm needs two photos and two names, got 1 and 2": [
            folder / "a" / "0.png", *two, "--per-class-norm"],
        "is read, and would be overwritten": [*photos, *two, "--sheet", folder / "a" / "0.png"],
    }  # fmt: skip


@pytest.mark.parametrize("case", range(16))
def test_what_is_wrong_is_one_line(case, folder, tmp_path, capsys):
    message, given = list(wrong(folder, tmp_path).items())[case]
    model = [] if "--run" in given else ["--model", "shapes-tiny-rn"]
    assert run("tag", *given, *model) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.startswith("jclip tag: ") and len(printed.err.splitlines()) == 1
    assert not printed.out


def test_runs_of_other_tasks_are_refused_and_a_recipe_may_bring_its_own(folder, tmp_path, monkeypatch, capsys):
    import jclip.train.configs
    import jclip.train.run

    class Learned:
        classnames = ("day", "night")

        def scored(self, photos, on_error="stop", label="photos"):
            assert on_error == "skip"
            scores = np.tile(np.float32([0.25, 0.75]), (len(photos), 1))
            return PhotoScores(tuple(photos), scores, scores[:, :0])

    recipes = {
        "gda": SimpleNamespace(__name__="finetune.gda"),
        "tai": SimpleNamespace(
            __name__="finetune.tai", TASK="multi_label", tagger=lambda folder, config: (folder, config) and Learned()
        ),
    }
    monkeypatch.setattr(jclip.train.run, "read_result", lambda run: {"config": {"recipe": Path(run).name}})
    monkeypatch.setattr(
        jclip.train.configs, "build_config", lambda values, place: (recipes[values["recipe"]], "config")
    )
    assert run("tag", folder / "a", "--run", "runs/gda") == 2
    stderr = capsys.readouterr().err
    assert "runs/gda must be a run of a recipe that gives several labels, got gda of the task classify" in stderr
    assert "use `jclip predict runs/gda`" in stderr and len(stderr.splitlines()) == 1
    assert run("tag", folder / "a", "--run", "runs/tai", "--classes", "a,b") == 2
    assert "--classes must not stand beside --run" in capsys.readouterr().err
    assert run("tag", folder / "a", "--run", "runs/tai", "--out", tmp_path / "x.jsonl") == 0
    first = json.loads((tmp_path / "x.jsonl").read_text().splitlines()[0])
    assert first["tags"] == [{"class": "night", "label": 1, "score": 0.75}]


# Tags, without a model

SCORES = np.array([[0.9, 0.48, 0.1], [0.2, 0.2, 0.2], [0.1, 0.6, 0.7]], np.float32)


def tags_of(**more) -> Tags:
    return Tags(("a/x.jpg", "b/x.jpg", "c/=y.jpg"), ("cat", "=1+1", "a/b"), SCORES, **more)


def test_thresholds_by_hand():
    assert [tags_of().of(row) for row in range(3)] == [[0], [0], [2, 1]]  # .48 is not above halfway, .5
    beside = np.array([[0.0], [0.9], [0.0]], np.float32)
    assert [tags_of(background=beside, none=True).of(row) for row in range(3)] == [[0, 1], [], [2, 1]]
    assert [tags_of(background=beside).of(row) for row in range(3)] == [[0], [0], [2, 1]]
    assert [tags_of(threshold=0.15, top=2).of(row) for row in range(3)] == [[0, 1], [0, 1], [2, 1]]
    logs = Tags(("x.jpg",), ("a", "b"), np.log(np.array([[0.2, 0.1]], np.float32)), logits=True)
    assert logs.of(0) == [0] and Tags(("x.jpg",), ("a", "b"), logs.scores + 9).of(0) == [0]
    assert Tags((), ("a", "b"), np.zeros((0, 2), np.float32)).has.shape == (0, 2)
    with pytest.raises(ConfigError, match="needs a threshold where there is one class and no background"):
        Tags(("x.jpg",), ("a",), SCORES[:1, :1], none=True)


def test_files_of_odd_names(tmp_path):
    tags = tags_of(threshold=0.45)
    write_tags(tags, str(tmp_path / "t.csv"))
    text = (tmp_path / "t.csv").read_text()
    assert "'=1+1" in text and ",=" not in text  # no formula for a spreadsheet
    assert [row["tag_2"] for row in read_csv(tmp_path / "t.csv")] == ["=1+1", "", "=1+1"]
    broken = Tags(("a\nb.jpg",), ("cat", "dog"), SCORES[:1, :2])
    with pytest.raises(DataError, match="got a line break in"):
        write_tags(broken, str(tmp_path / "t.txt"))
    write_tags(broken, str(tmp_path / "t.jsonl"))
    assert json.loads((tmp_path / "t.jsonl").read_text())["photo"] == "a\nb.jpg"
    undecodable = Tags(("\udce7.jpg",), ("cat", "dog"), SCORES[:1, :2])
    write_tags(undecodable, str(tmp_path / "u.txt"))
    assert (tmp_path / "u.txt").read_bytes() == b"\xe7.jpg 0\n"


def test_places_of_tags(tmp_path):
    beside = np.array([[0.0], [0.9], [0.0]], np.float32)
    placed = plan_tags(tags_of(background=beside, none=True), tmp_path / "out")
    assert [(one.target, one.label, one.score) for one in placed] == [
        ("cat/x.jpg", "cat", 0.9), ("=1+1/x.jpg", "=1+1", 0.48), ("_none/x.jpg", "", 0.2), ("a_b/=y.jpg", "a/b", 0.7),
        ("=1+1/=y.jpg", "=1+1", 0.6),
    ]  # fmt: skip
    forced = [one.target for one in plan_tags(tags_of(threshold=0.15), tmp_path / "out")]
    assert forced.count("cat/x.jpg") == forced.count("cat/x-2.jpg") == 1
    assert all(one.photo.startswith("/") for one in placed)


def test_numbers_are_probabilities_only_where_they_are_said_to_be(tmp_path):
    tags = tags_of(kind="probability", threshold=0.45)
    assert "tags with their probability" in show_tags(tags) and "cat 90.0 %" in show_tags(tags)
    write_tags(tags, str(tmp_path / "t.json"))
    assert json.loads((tmp_path / "t.json").read_text())[0]["tags"][0]["probability"] == 0.9
    assert plan_tags(tags, tmp_path / "out")[0].probability == 0.9
    plain = show_tags(tags_of())
    assert "cat 0.900" in plain and "%" not in plain and "photos with a tag: cat 2, =1+1 1, a/b 1" in plain


def test_a_sheet_has_a_row_for_each_tag(tmp_path):
    photos = []
    for i in range(3):
        Image.new("RGB", (40, 30), (80 * i, 9, 9)).save(tmp_path / f"{i}.png")
        photos.append(str(tmp_path / f"{i}.png"))
    names = tuple(f"<i>{i}" for i in range(9))
    scores = np.linspace(-20, 30, 27, dtype=np.float32).reshape(3, 9)
    for threshold, end in ((-30.0, "all"), (25.0, "few")):
        tags = Tags(tuple(photos), names, scores, threshold=threshold, none=True)
        for suffix in (".html", ".png"):
            write_tag_sheet(tmp_path / f"{end}{suffix}", tags)
    page, few = ((tmp_path / name).read_text() for name in ("all.html", "few.html"))
    assert page.count("<li>") == 18 and "&lt;i&gt;8" in page and "<i>" not in page and page.count("width:100.0%") == 1
    assert few.count('<span class="badge">none</span>') == 2 and few.count("<li>") == 3 and "30.0" in few
    with Image.open(tmp_path / "all.png") as tall, Image.open(tmp_path / "few.png") as short:
        assert tall.height > short.height and tall.width == short.width
