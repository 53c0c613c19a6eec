"""Locate: the command that is shown finds the same, phrases are never options, wrong photos are named; clicks."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import finetune  # noqa: F401 - offers its recipes
from jclip.app import drawn_examples
from jclip.app.desk import Desk
from jclip.app.phrase_locating import Locator
from jclip.cli import main
from jclip.errors import ConfigError, DataError
from jclip.report.predictor import Predictor
from tests.app.test_classify_tab import hand_over

RUN = drawn_examples.RUN


@pytest.fixture(scope="module")
def locator():
    desk = Desk(model="shapes-tiny-rn", runs=[RUN])
    yield Locator(desk)
    desk.close()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[Path, list[str]]:
    """A scene under an odd name, and its phrases."""
    path, phrases = drawn_examples.scene(tmp_path_factory.mktemp("a scene, 照片"))
    return Path(path).rename(Path(path).with_name("-a=1 scene.png")), [*phrases]


@pytest.mark.parametrize("run", [RUN, ""])
def test_the_shown_command_finds_the_same(run, locator, drawn, tmp_path, monkeypatch, capsys):
    photo, phrases = drawn
    shutil.copy(photo, tmp_path / photo.name)
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--attention", "moon.png", "it's"]):
        found = locator.locate(str(photo), photo.name, "\n".join([*phrases, *more]), run)
        assert main([*shlex.split(found.command)[1:], "--json"]) == 0
        line, answer = json.loads(capsys.readouterr().out), found.to_json()
        assert line == {name: answer[name] for name in line}
        assert [thing["phrase"] for thing in answer["found"]] == [*phrases, *more]
        assert answer["method"] == ("network" if run else "rough") and answer["by"] == (run or "shapes-tiny-rn")
        written = sorted(path.name for path in tmp_path.iterdir() if path.name != photo.name)
        assert written == (["boxes.png", "looks.png"] if run else ["boxes.png"])
        with Image.open("boxes.png") as boxes:
            assert np.array_equal(np.asarray(boxes), np.asarray(found.drawn))
        assert len(found.looked) == (len(answer["found"]) if run else 0)
        for name in written:
            (tmp_path / name).unlink()


def test_a_run_stays_open_and_finds_what_it_predicts(locator, drawn):
    photo, phrases = drawn
    found = locator.locate(str(photo), photo.name, "\n".join(phrases), RUN)
    assert locator.opened.finder(RUN) is locator.opened.finder(RUN)
    for thing, wanted in zip(found.things, Predictor.load(RUN).predict(photo, phrases), strict=True):
        assert thing.box == wanted.box and thing.present == wanted.present


def test_what_is_wrong_is_the_line_of_the_command(locator, drawn, shared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(shared / "hostile" / "billion_laughs.pt", "laughs.jpg")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "result.json").write_text('{"config": {"recipe": "zero_shot", "model": "x"}, "metrics": {}}')
    shutil.copy(drawn[0], "scene.png")
    cases = [("laughs.jpg", "dog", RUN), ("scene.png", "very " * 90, RUN), ("scene.png", "very " * 90, ""),
             ("scene.png", "dog", "other"), ("scene.png", "dog", "nowhere")]  # fmt: skip
    for photo, phrase, run in cases:
        given = ["--run", run] if run else ["--model", "shapes-tiny-rn"]
        assert main(["ground", photo, phrase, *given]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        with pytest.raises((DataError, ConfigError)) as raised:
            locator.locate(str(tmp_path / photo), photo, phrase, run)
        assert f"jclip ground: {raised.value}" == said
    for phrases, message in (("  \n", "a phrase a line"), ("\n".join(map(str, range(101))), "at most 100")):
        with pytest.raises(ConfigError, match=message):
            locator.locate(str(drawn[0]), drawn[0].name, phrases)


# --- in the browser


def test_a_drawn_scene_is_located_by_clicks(page):
    page.open()
    page.tab("locate")
    page.click("#locate-example")
    page.wait(lambda: page.value("#locate-phrases textarea") and page.all("#locate-photo img"))
    page.click("#locate-go")
    page.wait(lambda: len(page.all("#locate-table tbody tr")) == 3)
    page.wait(lambda: len(page.all("#locate-pictures .sb-looked img")) == 3)
    page.says("#locate-summary", "3 phrases")
    page.wait(lambda: f"--run {RUN}" in page.value("#locate .command textarea"))
    assert page.complaints() == []


def test_a_wrong_photo_is_said_at_once_and_rough_boxes_need_no_run(page, drawn, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    page.open(390, language="zh-CN")
    page.tab("locate")
    hand_over(page, "#locate-photo", tmp_path / "broken.jpg")
    page.wait(lambda: "broken.jpg does not decode" in page.text("body"))
    page.open(390, language="zh-CN")
    page.tab("locate")
    hand_over(page, "#locate-photo", drawn[0])
    page.wait(lambda: page.all("#locate-photo img"))
    page.answered()  # the page has looked at the photo
    page.type("#locate-phrases textarea", "<img src=x onerror=document.title=1>\nthe moon")
    page.click("#locate-go")
    page.wait(lambda: len(page.all("#locate-table tbody tr")) == 2)
    page.says("#locate-summary", "粗略")
    assert not page.wider_than_screen() and page.browser.title == "jclip"
