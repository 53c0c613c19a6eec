"""Runs in a real browser: opened, compared, sorted, saved as one file that asks for nothing."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from jclip.app import runs_tab
from jclip.app.desk import Desk
from jclip.cli import main
from jclip.errors import ConfigError, DataError
from jclip.paths import ASSETS
from tests.browser import Page
from tests.made_runs import CLASSES, made_run, scored

NAMES = (
    "<img src=x onerror=document.title='gotcha'>",
    "${document.title='gotcha'}",
    *(f"class {n}" for n in range(2, CLASSES)),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with two finished runs and one that was killed."""
    folder = tmp_path_factory.mktemp("several runs")
    photos = [folder / "photos" / f"<b>{n}.png" for n in range(2 * CLASSES)]
    (folder / "photos").mkdir()
    for photo in photos:
        Image.new("RGB", (8, 6), (200, 30, 60)).save(photo)
    for n, name in enumerate(("first", "second")):
        made_run(folder / "made" / name, *scored(n + 1), NAMES, [str(photo) for photo in photos], config={"seed": n})
    made_run(folder / "made" / "killed", epochs=3, finish=False)
    return folder / "made"


def rows(page, number: int) -> list[str]:
    """The first cells of a table of the view."""
    cells = page.all("#run-view .tablebox")[number].find_elements("css selector", "tbody tr td:first-child")
    return [cell.text for cell in cells if cell.is_displayed()]


def test_runs_are_opened_compared_and_sorted(page, runs):
    page.open(path="/")
    page.tab("runs")
    page.type("#run-folder textarea, #run-folder input", str(runs), enter=True)
    page.wait(lambda: "killed" in page.text("#runs") and page.all("#run-view h1"))
    page.wait(lambda: not [box.click() for box in page.all("#runs input:checked")[:1]])
    page.gone("#run-view h1")
    choose(page, "first")
    page.wait(lambda: page.text("#run-view h1") == "first")
    page.wait(lambda: len(page.all("#run-view .tile img")) == 24)
    assert "onerror" in page.text("#run-view")
    assert page.browser.title == "jclip" and not page.wider_than_screen()
    heads = page.all("#run-view .tablebox")[1].find_elements("css selector", "th button")
    before = rows(page, 1)
    page.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", heads[0])
    heads[0].click()
    assert rows(page, 1) == sorted(before, key=str.lower) or rows(page, 1) != before
    page.type("#run-view .filter", "class 77")
    page.wait(lambda: rows(page, 1) == ["class 77"])
    choose(page, "second")
    page.wait(lambda: page.text("#run-view h1") == "first · second")
    page.says("#run-view", "McNemar")
    page.answered()
    assert "Repaired: " in page.text("#run-view")
    command = shlex.split(page.value("#run-command textarea"))
    assert command == [
        "jclip",
        "report",
        str(runs / "first"),
        str(runs / "second"),
        "--out",
        "report.html",
        "--language",
        "en",
    ]
    assert page.complaints() == []


def test_on_a_phone_in_chinese_and_a_wrong_folder(page, runs):
    page.open(width=390, language="zh-CN")
    page.tab("runs")
    page.type("#run-folder textarea, #run-folder input", str(runs / "killed"), enter=True)
    page.wait(lambda: page.text("#run-view h1") == "killed")
    page.says("#run-view", "未完成")
    assert not page.wider_than_screen()
    page.type("#run-folder textarea, #run-folder input", str(runs / "none"), enter=True)
    page.wait(lambda: "holds no finished run" in page.text("body"))


def choose(page, name: str) -> None:
    (label,) = page.wait(lambda: [one for one in page.all("#runs label") if one.text == name])
    label.click()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_file_asks_for_nothing_and_fits_the_screen(chromium, runs, tmp_path, width):
    out = tmp_path / "page.html"
    assert main(["report", str(runs / "first"), "--out", str(out), "--language", "en"]) == 0
    page = Page(chromium, out.as_uri())
    page.load(width)
    assert not page.wider_than_screen() and page.complaints() == []
    own = (out.as_uri(), "data:", "blob:")
    assert [url for url in page.requests() if not url.startswith(own)] == []
    table = page.all(".tablebox")[1]
    first = table.find_element("css selector", "tbody td").text
    button = table.find_elements("css selector", "th button")[0]
    chromium.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    button.click()
    assert button.find_element("xpath", "..").get_attribute("aria-sort") == "descending"
    assert table.find_element("css selector", "tbody td").text == f"class {CLASSES - 1}" != first
    assert chromium.title == "first"


def test_which_runs_a_folder_holds(runs):
    assert {run.name for run in runs_tab.runs_at(str(runs.parent))} == {"first", "second", "killed"}
    assert runs_tab.runs_at(f" {runs / 'first'} ") == [runs / "first"]
    assert runs_tab.runs_at("shapes-tiny-ground") == [ASSETS / "shapes-tiny-ground"]
    for typed, message in (("", "name the folder of a run"), (str(runs / "none"), "none holds no finished run"),
                           (str(runs.parent / "photos"), "photos holds no run")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            runs_tab.runs_at(typed)


def test_a_run_whose_name_no_browser_can_be_told_is_not_offered(runs, tmp_path):
    """One name that is no UTF-8 in the list, and no answer at all reaches the page any more."""
    strange = tmp_path / os.fsdecode(b"run \xff")
    shutil.copytree(runs / "first", strange)
    shutil.copytree(runs / "second", tmp_path / "plain")
    assert runs_tab.runs_at(str(tmp_path)) == [tmp_path / "plain"]
    with pytest.raises(ConfigError, match=r"whose name is UTF-8, as browsers have it, got .*run \\udcff: rename it"):
        Desk(runs=[strange])


def test_a_view_is_that_of_the_command(runs, tmp_path):
    desk = Desk(runs=[runs / "first", runs / "second"])
    try:
        view, command, whole = runs_tab.view_of(desk, [str(run) for run in desk.runs], "", "en")
        assert main([*shlex.split(command)[1:], "--out", str(tmp_path / "x.html")]) == 0
        made = (tmp_path / "x.html").read_text(encoding="utf-8")
        assert view.partition("</p>")[2].rpartition("</div>")[0].strip() in made
        assert whole.partition("<footer>")[0] == made.partition("<footer>")[0]
        with pytest.raises(DataError, match="not among the runs"):
            runs_tab.view_of(desk, ["/etc"], "", "en")
        with pytest.raises(ConfigError, match="no such folder"):
            runs_tab.view_of(desk, [str(runs / "first")], "/none/such", "en")
    finally:
        desk.close()
