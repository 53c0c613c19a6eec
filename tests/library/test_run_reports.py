"""Runs as pages: figures, what changed between two, hostile names, files that lack something. Without Jittor."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from jclip.cli import main
from jclip.data.box_samples import world_samples
from jclip.functional.metrics import classification_report
from jclip.functional.multi_label_metrics import average_precision
from jclip.paths import ASSETS
from jclip.report import confusion_map, judged_rows, run_comparison, run_difference, run_page, run_record
from jclip.report.page_photos import PagePhotos
from jclip.report.page_words import Words, language_of_locale
from jclip.train.configs import read_config, resolved
from tests.made_runs import CLASSES, made_run, scored, write_lines
from tests.tolerances import TOLERANCES

ENGLISH = Words("en")
NAMES = (
    '<script>alert(1)</script>', '"><img src=x onerror=alert(2)>', "two\nlines", "\u202ertl", "${1+1} {{x}} `y`", "n" * 400,
    "=cmd()", *(f"class {n}" for n in range(7, CLASSES)),
)  # fmt: skip


class Page(HTMLParser):
    """What a page holds: elements with attributes, its text."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.inside = "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text += f" {data}"

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Two finished runs on the same photos, half of which are no longer there, one that was killed, one of features."""
    folder = tmp_path_factory.mktemp("runs")
    photos = [folder / ("there" if n % 2 else "gone") / f"<b>{n}.png" for n in range(2 * CLASSES)]
    (folder / "there").mkdir()
    for photo in photos[1::2]:
        Image.new("RGB", (12, 9), (200, 30, 60)).save(photo)
    places = [str(photo) for photo in photos]
    first = made_run(folder / "a <i>", *scored(1), NAMES, places, weights_sha256="a" * 64, test_sha256="b" * 64)
    second = made_run(
        folder / "second", *scored(2), NAMES, places, config={"seed": 4, "context": 2}, weights_sha256="a" * 64
    )
    killed = made_run(folder / "killed", epochs=3, finish=False)
    with open(killed / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('not json\n{"slot": "train", "epo')
    rows = made_run(folder / "rows", *scored(3), NAMES, config={"data": {"features": "some.npz"}}, epochs=0)
    return {"first": first, "second": second, "killed": killed, "rows": rows}


def written(tmp_path, *words, name="page.html") -> Page:
    assert main(["report", *map(str, words), "--out", str(tmp_path / name), "--language", "en"]) == 0
    return Page((tmp_path / name).read_text(encoding="utf-8"))


def test_a_page_asks_for_nothing_and_runs_its_own_script_alone(runs, tmp_path):
    page = written(tmp_path, runs["first"])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    (policy,) = [own["content"] for own in page.of("meta") if own.get("http-equiv") == "Content-Security-Policy"]
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:;") and f"script-src 'sha256-{digest}'" in policy
    assert len(page.of("script")) == 1 and not {"link", "iframe", "object", "a", "form"} & {
        tag for tag, _ in page.elements
    }
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    assert "url(" not in style and "@import" not in style
    assert {"width=device-width, initial-scale=1"} <= {own.get("content") for own in page.of("meta")}
    assert "prefers-color-scheme: dark" in style and "@media print" in style


def test_names_are_text_and_nothing_else(runs, tmp_path):
    page = written(tmp_path, runs["first"])
    assert "<script>alert(1)</script>" in page.text and '"><img src=x onerror=alert(2)>' in page.text
    assert "${1+1} {{x}} `y`" in page.text and "a <i>" in page.text
    assert "\u202e" not in page.text and "n" * 301 not in page.text
    assert not page.of("b") or all(not attributes for attributes in page.of("b"))
    assert "$" not in (tmp_path / "page.html").read_text(encoding="utf-8").split("</style>")[-1].split("<script>")[0]


def test_the_figures_are_those_of_the_run(runs, tmp_path):
    text = written(tmp_path, runs["first"]).text
    scores, labels = scored(1)
    report = classification_report(scores, labels)
    assert f"{100 * report['test_top1' if 'test_top1' in report else 'top1']:.2f} %" in text
    assert f"{report['correct']} of {report['count']}" in text
    assert "a" * 64 in text and "2.0000 (1)" not in text and "0.3333 (6)" in text  # the loss, last and best
    assert "best epoch" in text and "recipe: coop" in text


def test_worst_photos_are_the_most_certain_wrong_ones(runs):
    judged = judged_rows.judged_rows(run_record.read_record(runs["first"]))
    scores, labels = scored(1)
    wrong = np.flatnonzero(scores.argmax(axis=1) != labels)
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    sure = (odds / odds.sum(axis=1, keepdims=True)).max(axis=1)
    order = wrong[np.argsort(-sure[wrong], kind="stable")]
    assert judged.wrong == len(wrong) > 5
    assert [Path(row.photo).name for row in judged.worst(5)] == [f"<b>{n}.png" for n in order[:5]]
    assert judged.worst(1)[0].true == NAMES[labels[order[0]]]
    assert judged_rows.answers_of(judged, NAMES) == Counter(
        zip(labels.tolist(), scores.argmax(axis=1).tolist(), strict=True)
    )


def test_photos_that_moved_are_counted_and_found_again(runs, tmp_path):
    there = written(tmp_path, runs["first"])
    shown = [own for own in there.of("img") if own["src"].startswith("data:image/jpeg")]
    assert "Photos that are no longer where they were: " in there.text
    moved = tmp_path / "moved" / "gone"
    moved.mkdir(parents=True)
    for n in range(0, 2 * CLASSES, 2):
        Image.new("RGB", (9, 12), (20, 200, 60)).save(moved / f"<b>{n}.png")
    again = written(tmp_path, runs["first"], "--root", tmp_path / "moved")
    assert len(again.of("img")) > len(shown) > 0 and "no longer where they were" not in again.text


def test_a_page_holds_no_more_photos_than_it_may(runs):
    record = run_record.read_record(runs["first"])
    photos = PagePhotos(ENGLISH, most_bytes=2000)
    text = "".join(run_page.run_parts(ENGLISH, record, photos))
    assert 0 < photos.shown < 6 and "Photos left out, so that the file stays small: " in text


def test_a_killed_run_says_how_far_it_came(runs, tmp_path):
    text = written(tmp_path, runs["killed"]).text
    assert "3 of 6 epochs are logged" in text and "Damaged lines of the log, left out: 2" in text
    assert "0.6000 (3)" in text and "It is written when the run ends." in text


def test_rows_of_features_have_numbers_and_no_photos(runs, tmp_path):
    page = written(tmp_path, runs["rows"])
    assert "features that carry no photos" in page.text and "no log of its epochs" in page.text and not page.of("img")


def test_what_changed_between_two_runs(runs, tmp_path):
    judged = [judged_rows.judged_rows(run_record.read_record(runs[name])) for name in ("first", "second")]
    (one, labels), (other, _) = scored(1), scored(2)
    before, after = one.argmax(axis=1) == labels, other.argmax(axis=1) == labels
    found = run_difference.rows_changed(*judged)
    assert (found.both, found.neither) == (int((before & after).sum()), int((~before & ~after).sum()))
    assert len(found.repaired) == int((~before & after).sum()) and len(found.broken) == int((before & ~after).sum())
    assert found.unmatched == 0 and found.total == len(labels)
    page = written(tmp_path, runs["first"], runs["second"])
    assert (
        f"Repaired: {len(found.repaired)}" in page.text and f"p = {run_comparison.shown_p(found.p_value)}" in page.text
    )
    assert "seed" in page.text and "context" in page.text and "a <i> · second" in page.text


def test_rows_are_matched_by_what_was_asked():
    def judged(*rows):
        return judged_rows.Judged("top1", [judged_rows.JudgedRow(key, key, right, 0.5, "x") for key, right in rows])

    found = run_difference.rows_changed(
        judged(("a", True), ("a", False), ("b", False), ("c", True)),
        judged(("a", True), ("a", True), ("b", True), ("d", True)),
    )
    assert (found.both, found.neither, len(found.repaired), len(found.broken), found.unmatched) == (1, 0, 2, 0, 2)
    assert found.p_value == 0.5  # 2 · ½²


def test_settings_that_differ():
    records = [
        run_record.RunRecord(Path("x"), "classify", {"recipe": "coop", "optim": {"lr": lr, **more}})
        for lr, more in ((1, {"eps": 2}), (3, {}), (1, {"eps": 2}))
    ]
    changed = run_difference.settings_changed(records)
    assert changed == {"optim.lr": [1, 3, 1], "optim.eps": [2, run_difference.ABSENT, 2]}


def test_names_of_runs_differ():
    assert run_comparison.short_names([Path("/r/coop/a"), Path("/r/full/a"), Path("/r/x")]) == [
        "coop/a",
        "full/a",
        "r/x",
    ]
    assert run_comparison.short_names([Path("/r/a"), Path("/r/a")]) == ["a (1)", "a (2)"]


def test_the_strongest_confusions_come_first():
    counts = {(0, 0): 5, (0, 1): 2, (1, 0): 7, (1, 1): 1, (1, 2): 2, (2, 2): 4}
    assert confusion_map.confusions(counts, 9) == [(1, 0, 7), (0, 1, 2), (1, 2, 2)]
    assert confusion_map.confusions(counts, 1) == [(1, 0, 7)]
    drawn = confusion_map.confusion_map(ENGLISH, counts, ("a", "<b>", "c"))
    assert drawn.count('class="right"') == 3 and drawn.count('class="wrong"') == 3 and "&lt;b&gt; → a: 7" in drawn


def test_several_labels_show_average_precision(tmp_path):
    rng = np.random.default_rng(4)
    names, photos = ("cat", "dog", "sky"), [tmp_path / f"{n}.png" for n in range(5)]
    for photo in photos:
        Image.new("RGB", (8, 8)).save(photo)
    targets = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]])
    lines = [
        f"{photo} {' '.join(map(str, np.flatnonzero(row)))}".strip() for photo, row in zip(photos, targets, strict=True)
    ]
    (tmp_path / "test.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "classes.txt").write_text("".join(f"{name} {n}\n" for n, name in enumerate(names)))
    settings = [f"data.test={tmp_path}/test.txt", f"data.classes={tmp_path}/classes.txt", "data.root="]
    module, config, _ = read_config("configs/text_as_image/smoke.yaml", settings)
    run = made_run(tmp_path / "run", config=resolved(module, config), metrics={"test_map_merged": 0.5})
    scores = rng.normal(size=(5, 3))
    with open(run / "scores.npz", "wb") as file:
        np.savez(file, merged=scores, classes=np.array(names), images=np.array([str(photo) for photo in photos]))
    judged = judged_rows.judged_rows(run_record.read_record(run))
    assert judged.reason == "" and [Path(row.photo).name for row in judged.rows] == ["0.png", "1.png", "2.png", "3.png"]
    for row, own, true in zip(judged.rows, scores, targets, strict=False):
        assert row.right == bool(true[own.argmax()])
        assert 1 - row.badness == pytest.approx(average_precision(own, true == 1), abs=TOLERANCES["closed_form"])
    (tmp_path / "test.txt").unlink()
    assert "labels that the config names are no longer there" in written(tmp_path, run).text


def test_boxes_are_drawn_on_the_scenes_they_are_of(tmp_path):
    module, config, _ = read_config("configs/grounding/smoke.yaml", [])
    run = made_run(tmp_path / "run", config=resolved(module, config), metrics={"test_acc@0.5": 0.25, "best_epoch": 1})
    samples = world_samples(config.data, "test", 64)
    rows = [
        {"photo": samples.name(samples.of[n]), "phrase": samples.phrases[n], "iou": iou,
         "box": samples.boxes[n + 1].tolist(), "true": samples.boxes[n].tolist()}
        for n, iou in enumerate((0.5, 0.1, 0.75, 0.3))
    ]  # fmt: skip
    write_lines(run / "boxes.jsonl", rows)
    judged = judged_rows.judged_rows(run_record.read_record(run))
    assert [row.right for row in judged.rows] == [True, False, True, False]
    assert [row.said for row in judged.worst(9)] == [samples.phrases[1], samples.phrases[3]]
    assert (np.asarray(judged.rows[1].draw()) == np.asarray(samples.photo(samples.of[1]))).all()
    page = written(tmp_path, run)
    assert "25.00 %" in page.text and len(page.of("img")) == 2 and "groups.csv" in page.text
    (run / "boxes.jsonl").write_text('{"photo": 1}\n')
    assert main(["report", str(run), "--out", str(tmp_path / "x.html")]) == 2


def test_captions_that_do_not_find_their_image(tmp_path):
    module, config, _ = read_config("configs/contrastive/smoke.yaml", [])
    run = made_run(tmp_path / "run", config=resolved(module, config), metrics={"t2i_r1": 0.5, "best_epoch": 1})
    (run / "ranks.csv").write_text(
        "photo,caption,rank_of_caption,rank_of_image\n0,red star,1,1\n1,a moon,2,17\n3,sun,1,4\n"
    )
    judged = judged_rows.judged_rows(run_record.read_record(run))
    assert [(row.said, row.number) for row in judged.worst(5)] == [("a moon", "#17"), ("sun", "#4")]
    page = written(tmp_path, run)
    assert "50.00 %" in page.text and len(page.of("img")) == 2 and "2 of 3 captions" in page.text


def test_damaged_files_are_one_line(runs, tmp_path, capsys):
    run = made_run(tmp_path / "run", *scored(5), NAMES)
    (run / "predictions.csv").write_text("photo,class\nx,y\n")
    assert main(["report", str(run), "--out", str(tmp_path / "x.html")]) == 2
    assert "predictions.csv is damaged" in capsys.readouterr().err
    strange = made_run(
        tmp_path / "strange", metrics={"test_top1": 10**400, "val_top1": float("inf"), "best_epoch": "x"}
    )
    write_lines(
        strange / "metrics.jsonl",
        [{"epoch": n, "loss": float(f"1e{150 * n}"), "lr": 10**400, "top1": None} for n in range(3)],
    )
    assert "e+300" not in written(tmp_path, strange).text
    deep = {"recipe": "coop"}
    for _ in range(40):
        deep = {"recipe": "coop", "data": deep}
    assert main(["report", str(made_run(tmp_path / "deep", config=deep)), "--out", str(tmp_path / "x.html")]) == 2
    assert not (tmp_path / "x.html").exists()


def test_what_the_command_refuses(runs, tmp_path, capsys):
    other = made_run(tmp_path / "pairs", config={"recipe": "contrastive"})
    for words, said in (
        ([runs["first"]], "--out FILE.html"),
        ([runs["first"], "--out", "x.txt"], "must end in .html"),
        ([tmp_path / "none", "--out", "x.html"], "holds no finished run"),
        ([runs["first"], "--query", "a dog", "--out", "x.html"], "--query is for galleries"),
        ([runs["first"], other, "--out", "x.html"], "must be of one task, got classify and retrieve"),
        ([runs["first"], "--root", tmp_path / "none", "--out", "x.html"], "no such folder"),
        ([runs["first"], "--out", tmp_path / "folder.html"], "got a folder"),
    ):
        (tmp_path / "folder.html").mkdir(exist_ok=True)
        assert main(["report", *map(str, words)]) == 2
        assert said in capsys.readouterr().err
    inside = runs["first"] / "own.html"
    inside.write_text("kept")
    assert main(["report", str(runs["first"]), "--out", str(inside)]) == 2 and inside.read_text() == "kept"
    inside.unlink()


def test_words_of_both_languages_fill_in_the_same(monkeypatch):
    texts = yaml.safe_load((ASSETS / "report_words.yaml").read_text(encoding="utf-8"))
    for name, (english, chinese) in texts.items():
        assert set(re.findall(r"{\w+}", english)) == set(re.findall(r"{\w+}", chinese)), name
    used = {
        key
        for file in (ASSETS.parent / "report").glob("*.py")
        for key in re.findall(r'words\(\s*"([\w.]+)"', file.read_text())
    }
    assert used <= set(texts) and len(used) > 40
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    assert language_of_locale() == "en"
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert language_of_locale() == "zh"
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    assert language_of_locale() == "en"


def test_in_chinese(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert main(["report", str(runs["first"]), str(runs["second"]), "--out", str(tmp_path / "x.html")]) == 0
    text = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert '<html lang="zh">' in text and "McNemar 精确 p 值" in text and "Repaired" not in text


def test_three_runs_are_a_table_and_curves_on_one_axis(runs, tmp_path):
    page = written(tmp_path, runs["first"], runs["second"], runs["killed"])
    assert "Not finished, so that figures are missing: killed." in page.text and "Repaired:" not in page.text
    drawings = [own for own in page.of("svg") if own.get("role") == "img"]
    assert len(drawings) == 3 and page.text.count("killed") > 4
    assert json.dumps(page.text).count("learning rate") == 1
