"""One server and one browser for all tests of the page. What is missing, Gradio, selenium or chromium, is a skip."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jclip.data import shape_sources
from tests.browser import Page, Served, start_chromium, why_no_browser

MODEL = "shapes-tiny-vit"
HOSTILE = (
    "<img src=x onerror=document.title='gotcha'>.png",
    "two\nlines.png",
    f"{'n' * 200}.png",
    "rtl\u202egnp.exe.png",
)


def needs_gradio() -> None:
    """Skips where the page can't be built."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed: pip install 'jclip[app]'")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """A folder of 40 photos of the embedded world, with its lists beside it, four of them under hostile names."""
    world = tmp_path_factory.mktemp("app") / "a world, of shapes"
    world.mkdir()
    shape_sources.write_world(world, 40, seed=3)
    photos = sorted((world / "photos").iterdir())
    for photo, name in zip(photos, HOSTILE, strict=False):
        shutil.copy(photo, photo.with_name(name))
    return world / "photos"


@pytest.fixture(scope="session")
def served(scenes, tmp_path_factory) -> Iterator[Served]:
    """The page over the folder of scenes, embedded by the server, and the grounding run that ships."""
    needs_gradio()
    found = Served(tmp_path_factory.mktemp("cache"), str(scenes), "--model", MODEL, "--run", "shapes-tiny-ground")
    yield found
    if found.process.poll() is None:
        found.end()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless chromium that asks no other server."""
    if reason := why_no_browser():
        pytest.skip(reason)
    browser = start_chromium()
    yield browser
    browser.quit()


@pytest.fixture(scope="session")
def page(chromium, served) -> Page:
    """The page, not loaded yet."""
    return Page(chromium, served.address)
