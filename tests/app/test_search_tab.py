"""Search in a real browser: typed, clicked, ticked."""

from __future__ import annotations


def test_what_is_typed_is_found(page):
    page.open()
    page.wait(lambda: "44" in page.text("#about"))
    page.type("#sentence textarea, #sentence input", "a red circle", enter=True)
    page.wait(lambda: len(page.all("#found img")) == 24)
    assert page.complaints() == []
