"""The page on a fresh machine: a password, what to do, and pictures to try it on."""

from __future__ import annotations

from tests.app.conftest import PASSWORD

SENTENCE = "#sentence textarea, #sentence input"


def log_in(page, password: str) -> None:
    page.type("input[type=text]", "anybody")
    page.type("input[type=password]", password, enter=True)


def test_nothing_without_the_password(empty):
    assert empty.served.get("/gradio_api/info")[0] == 401
    assert empty.served.get("/config")[0] == 401
    empty.open()
    log_in(empty, "guess")
    empty.wait(lambda: "Incorrect" in empty.text("body"))
    log_in(empty, PASSWORD)
    empty.one("#world")
    empty.complaints()


def test_what_to_do_and_pictures_to_try_it_on(empty):
    empty.open(language="zh-CN")
    if empty.all("input[type=password]"):
        log_in(empty, PASSWORD)
    empty.wait(lambda: "还没有打开照片" in empty.text("#empty"))
    assert "jclip app PHOTOS" in empty.text("#empty")
    assert not empty.all(SENTENCE)
    empty.click("#world, #world button")
    empty.type(SENTENCE, "a red circle", enter=True)
    empty.wait(lambda: len(empty.all("#found img")) == 24)
    empty.click("#more > button")
    empty.wait(lambda: "style" in empty.text("#where"))
    empty.type("#where textarea", "things=2")
    empty.click("#go")
    empty.wait(lambda: 0 < len(empty.all("#found img")) < 24)
    assert empty.complaints() == []
