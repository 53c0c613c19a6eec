"""One server and one browser for all tests of the page. What is missing, Gradio, selenium or chromium, is a skip."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jclip.data import shape_sources
from tests.browser import Page, Recorder, Served, start_chromium, why_no_browser

# What the browser itself asks for, on an empty page as well.
OF_CHROMIUM = re.compile(r"[ /](clients\d|update|accounts|content-autofill|optimizationguide-pa|redirector|"
                         r"passwordsleakcheck-pa)\.(google|googleapis|gvt1)\.com[:/]")  # fmt: skip

MODEL = "shapes-tiny-vit"
PASSWORD = "open sesame 芝麻"
FEW_PICTURES = (
    "import functools; from jclip.data import shape_sources; "
    "shape_sources.kept_photos = functools.partial(shape_sources.kept_photos, 30); "
)
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
    """The page over the folder of scenes, embedded by the server, and the grounding run that ships; at the end nothing has
    asked another server, and nothing was raised but what the tests provoke."""
    needs_gradio()
    recorder, folder = Recorder(), tmp_path_factory.mktemp("started here")
    cache = tmp_path_factory.mktemp("cache")
    given = (str(scenes), "--model", MODEL, "--run", "shapes-tiny-ground")
    slow = "from tests.app import held_streams; held_streams.install(); "
    found = Served(cache, *given, cwd=folder, env=recorder.environ, start=slow)
    yield found
    lines = found.end()
    assert recorder.asked == []
    assert lines[-1] == "jclip app: stopped"
    raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    assert not [line for line in raised if "was not uploaded by a user" not in line]


@pytest.fixture(scope="session")
def outside() -> Recorder:
    """What chromium would ask of other servers goes here."""
    return Recorder()


@pytest.fixture(scope="session")
def chromium(outside) -> Iterator[Any]:
    """A headless chromium."""
    if reason := why_no_browser():
        pytest.skip(reason)
    browser = start_chromium(f"--proxy-server={outside.address}")
    yield browser
    browser.quit()


@pytest.fixture(scope="session")
def page(chromium, served, outside) -> Iterator[Page]:
    """The page, not loaded yet; at the end it has asked its own server alone."""
    found = Page(chromium, served.address, served)
    yield found
    asked = found.requests()
    assert asked and [url for url in asked if not url.startswith((served.address, "data:", "blob:"))] == []
    assert [line for line in outside.asked if not OF_CHROMIUM.search(line)] == []


@pytest.fixture(scope="session")
def empty(chromium, tmp_path_factory) -> Iterator[Page]:
    """The page over nothing, behind a password, with fewer drawn pictures than people get."""
    needs_gradio()
    folder = tmp_path_factory.mktemp("nothing here")
    found = Served(folder / "cache", cwd=folder, env={"JCLIP_PASSWORD": PASSWORD}, start=FEW_PICTURES)
    yield Page(chromium, found.address, found)
    assert found.end()[-1] == "jclip app: stopped"
