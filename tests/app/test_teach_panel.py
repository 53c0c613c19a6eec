"""Teach it by yes and no in the page: by clicks and keys in a browser, and its files read back."""

from __future__ import annotations


def answered(page) -> str:
    return page.text("#teach-status")


def test_a_search_is_taught_by_clicks_and_keys(page, tmp_path):
    page.open()
    page.wait(lambda: "44" in page.text("#about"))
    page.type("#sentence textarea, #sentence input", "something red")
    page.click("#teach button")
    page.click("#teach-begin")
    page.wait(lambda: len(page.all("#teach-grid .ask-tile")) == 12)
    first = [tile.get_attribute("data-row") for tile in page.all("#teach-grid .ask-tile")]
    page.click("#teach-grid button[data-gives='yes']")
    page.wait(lambda: "1 yes, 0 no" in answered(page))
    page.browser.switch_to.active_element.send_keys("n")
    page.wait(lambda: "1 yes, 1 no" in answered(page))
    page.click("#teach-undo")
    page.wait(lambda: "1 yes, 0 no" in answered(page))
    for no in range(1, 12):
        page.click("#teach-grid .ask-tile:not([data-answer]) button[data-gives='no']")
        page.wait(lambda no=no: f"1 yes, {no} no" in answered(page))
    page.wait(lambda: [tile.get_attribute("data-row") for tile in page.all("#teach-grid .ask-tile")] != first)
    page.wait(lambda: "1 yes, 11 no" in answered(page))
    page.click("#teach-audit")
    page.wait(lambda: "Audit: 0 of" in answered(page))
    page.click("#teach-grid button[data-gives='no']")
    page.wait(lambda: "Audit, 1 random photos answered: precision" in answered(page))
    page.click("#teach-save")
    page.wait(lambda: ".concept" in page.text("#teach-files"))
    assert f"Put the .concept file into {page.served.cwd}: then concept:something red.concept" in page.text(
        "#teach-saved"
    )
    assert "jclip teach" in page.value("#teach .command textarea")
    assert not page.wider_than_screen() and page.complaints() == []
    page.picture(tmp_path / "teach.png")
