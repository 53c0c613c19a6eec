"""Search in a real browser: typed, clicked, ticked, in both languages, on a wide and on a narrow screen."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from pathlib import Path

import pytest

from tests.app.conftest import HOSTILE
from tests.app.held_streams import holding

SENTENCE, COMMAND = "#sentence textarea, #sentence input", "#search .command textarea, #search .command input"
PHOTOS = 44
WORDS = {"en-US": ("Search", "Classify and tag", "Locate", "Runs"), "zh-CN": ("搜索", "分类与标注", "定位", "训练结果")}


@pytest.fixture(scope="module")
def answered(page):
    """The page with an answer of all photos' best 24."""
    page.open()
    page.type(SENTENCE, "a red circle + 0.5:a star", enter=True)
    page.wait(lambda: len(page.all("#found img")) == 24)
    return page


def rows(page) -> list[int]:
    return [int(tile.get_attribute("data-row")) for tile in page.all("#found .tile")]


def test_what_is_typed_is_found_as_by_the_command(answered, served):
    page = answered
    page.wait(lambda: f"{PHOTOS} photos" in page.text("#about"))
    command = page.value(COMMAND)
    assert "'a red circle' + '0.5:a star' --unique 0.98 --top 24" in command
    found = json.loads(served.run(f"{command} --json").splitlines()[-1])["photos"]
    assert [hit["row"] for hit in found] == rows(page)
    shown = [float(e.text) for e in page.all("#found .score")]
    assert shown == [round(hit["cosine"], 3) for hit in found]
    asked = served.ask("search", query="a red circle + 0.5:a star", top=24, unique=0.98)["photos"]
    assert [(h["row"], h["cosine"]) for h in asked] == [(h["row"], h["cosine"]) for h in found]
    assert page.complaints() == []


def test_a_photo_opens_and_the_like_of_it_is_found(answered):
    page, third = answered, rows(answered)[2]
    page.click("#found .tile:nth-of-type(3) .open")
    assert f"row:{third}" in page.one("dialog.large").text
    page.click("dialog.large .similar")
    page.wait(lambda: page.value(SENTENCE) == f"row:{third}")
    page.wait(lambda: rows(page)[:1] == [third])
    page.says("#found .score", "1.000")
    page.gone("dialog.large")
    second = rows(page)[1]
    page.click("#found .tile:nth-of-type(2) .similar")
    page.wait(lambda: rows(page)[:1] == [second])


def test_near_duplicates_are_folded_and_shown_on_demand(answered, served):
    """Four photos of the folder stand twice, under other names."""
    page = answered
    page.click("#more > button")
    page.type("#where textarea", "path~.png")
    page.click("#top input")
    page.click("#top [role=option][data-index='2']")
    page.type(SENTENCE, "a star", enter=True)
    page.wait(lambda: len(rows(page)) == PHOTOS - 4 and "path~.png" in page.value(COMMAND))
    found = json.loads(served.run(f"{page.value(COMMAND)} --json").splitlines()[-1])["photos"]
    assert [hit["row"] for hit in found] == rows(page)
    folding = [hit["row"] for hit in found if "hidden" in hit]
    assert [e.text for e in page.all("#found .hidden")] == ["+1"] * 4
    page.click("#found .hidden")
    page.wait(lambda: len(rows(page)) == PHOTOS and page.value(SENTENCE) == f"row:{folding[0]}")
    page.wait(lambda: "--unique" not in page.value(COMMAND))
    assert folding[0] in rows(page)[:2]
    assert [e.text for e in page.all("#found .score")[:2]] == ["1.000", "1.000"]
    assert "--where 'path~.png'" in page.value(COMMAND)
    page.open()


def test_ticked_photos_become_a_table_and_a_class_folder(answered, served):
    page = answered
    page.type(SENTENCE, "a red circle", enter=True)
    page.wait(lambda: "'a red circle' --unique" in page.value(COMMAND))
    page.answered()
    page.click("#save-csv")
    assert "tick photos first" in page.toasts()
    for place in (1, 3):
        page.click(f"#found .tile:nth-of-type({place}) .tick")
    assert page.one("#ticked").text == "2 / 24"
    page.click("#save-csv")
    link = page.one("#csv-file a").get_attribute("href")
    status, table = served.get(link.removeprefix(served.address))
    chosen = [r for i, r in enumerate(rows(page)) if i in (0, 2)]
    assert status == 200
    assert [int(row["row"]) for row in csv.DictReader(table.decode().splitlines())] == chosen
    page.click("#place button")
    page.type("#class textarea, #class input", "round/things")
    page.click("#put button, button#put")
    page.wait(lambda: "2 written to" in page.text("#put-done"))
    made = sorted(p.relative_to(served.cwd) for p in Path(served.cwd).rglob("*") if p.is_symlink())
    assert [str(p.parent) for p in made] == ["found/round_things"] * 2
    page.click("#put button, button#put")
    page.wait(lambda: "2 stood there already" in page.text("#put-done"))
    page.type("#class textarea, #class input", "others")
    page.click("#found .tile:nth-of-type(1) .tick")
    page.click("#put button, button#put")
    page.wait(lambda: "1 written to" in page.text("#put-done"))
    page.type("#folder textarea, #folder input", "../elsewhere")
    page.click("#put button, button#put")
    assert "must lie below where jclip app was started" in page.toasts()
    served.run(f"jclip unsort {served.cwd}/found/sorted.json".replace(str(served.cwd), f"'{served.cwd}'"))
    assert not [*Path(served.cwd).rglob("*.png")]


def test_filters_and_what_is_wrong_say_what_the_command_says(answered):
    page = answered
    page.click("#more > button")
    page.type("#where textarea", "path~scene_00000")
    page.click("#go")
    page.wait(lambda: 0 < len(rows(page)) < 12)
    page.wait(lambda: "--where 'path~scene_00000'" in page.value(COMMAND))
    page.type("#where textarea", "colour=red")
    page.click("#go")
    assert "unknown column 'colour'" in page.toasts()
    page.type("#where textarea", "\ue003")
    page.type(SENTENCE, "@/etc/passwd", enter=True)
    assert "must be uploaded here, not named by its path" in page.toasts()


def test_photos_are_a_query_and_no_photo_is_said(answered, served, scenes, tmp_path):
    page = answered
    photo, odd = sorted(scenes.glob("scene_*"))[9], tmp_path / "it's <b>odd.png"
    shutil.copy(photo, odd)
    upload = "#like-photos input[type=file]"
    page.wait(lambda: page.browser.find_elements("css selector", upload))[0].send_keys(f"{photo}\n{odd}")
    page.wait(lambda: len(page.all("#like-photos img")) == 2)
    page.answered()
    page.type(SENTENCE, "\ue003")
    page.click("#go")
    page.wait(lambda: f"@{photo.name}" in page.value(COMMAND))
    page.says("#found .score", "1.000")
    assert shlex.join([f"@{photo.name}", "+", f"@{odd.name}"]) in page.value(COMMAND)
    page.click("#like-photos button[aria-label='Clear']")
    page.gone("#like-photos img")
    wrong = tmp_path / "no photo.png"
    wrong.write_text("plain text")
    page.wait(lambda: page.browser.find_elements("css selector", upload))[0].send_keys(str(wrong))
    page.wait(lambda: page.all("#like-photos img"))
    page.click("#go")
    assert "no photo.png does not decode: its bytes are of none of the formats" in page.toasts()


def test_names_are_shown_and_do_nothing(page):
    page.open()
    page.type(SENTENCE, "a thing", enter=True)
    page.wait(lambda: len(page.all("#found img")) == 24)
    page.click("#more > button")
    page.type("#where textarea", "path~<img")
    page.click("#go")
    page.wait(lambda: rows(page) and len(rows(page)) == 1)
    assert page.one("#found .name").text == HOSTILE[0]
    page.click("#found .open")
    assert HOSTILE[0] in page.one("dialog.large").text
    page.click("dialog.large .close")
    page.type("#where textarea", "path~.exe")
    page.click("#go")
    page.wait(lambda: "rtl" in page.one("#found .name").text)
    assert page.one("#found .name").text == r"rtl\u202egnp.exe.png"
    assert page.browser.title == "jclip"


def test_what_is_asked_while_the_last_answer_ends_is_answered(page, served):
    """The server has ended the stream of answers, the browser has not read of it: Gradio alone would wait for ever."""
    page.open()
    page.answered()  # else the stream of the first questions may be held
    put = "return performance.getEntriesByType('resource').filter(entry => entry.name.includes('/queue/join')).length"
    with holding(served.cwd):
        page.type(SENTENCE, "a red star", enter=True)
        page.wait(lambda: "'a red star'" in page.value(COMMAND))
        page.answered()
        before = page.browser.execute_script(put)
        page.type(SENTENCE, "a blue star", enter=True)
        page.wait(lambda: page.browser.execute_script(put) > before)
    page.wait(lambda: "'a blue star'" in page.value(COMMAND))
    assert page.complaints() == []


def test_a_page_that_is_left_in_the_middle_of_an_answer_is_no_error(page, served):
    """Neither in the next page nor, as the fixture sees at the end, on the terminal."""
    with holding(served.cwd):
        page.open()
        page.answered()
        page.leave()
    page.open()
    assert page.complaints() == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_both_languages_on_both_screens(page, width, language):
    page.open(width, language=language)
    page.type(SENTENCE, "a star", enter=True)
    page.wait(lambda: len(page.all("#found img")) == 24)
    words = (
        ("搜索", "分类与标注", "定位", "训练结果")
        if language == "zh-CN"
        else ("Search", "Classify and tag", "Locate", "Runs")
    )
    body = page.text("body")
    assert [word for word in words if word not in body] == []
    assert not page.wider_than_screen()
    assert page.complaints() == []
