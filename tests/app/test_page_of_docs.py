"""What docs/app.md gives programs to ask, asked of a page that runs."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess

import pytest

from tests.browser import PATIENCE, ROOT
from tests.pages import blocks

ADDRESS = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def examples(served) -> dict[str, str]:
    """The blocks that ask the page, by their language, with the address of the test's page."""
    asking = [(lang, text) for lang, _, text in blocks(ROOT / "docs" / "app.md") if ADDRESS in text]
    return {lang: text.replace(ADDRESS, served.address) for lang, text in asking}


def test_curl_is_answered(examples, served):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    wanted = served.ask("search", query="a red circle", top=3)
    done = subprocess.run(
        ["sh", "-c", examples["sh"]], capture_output=True, text=True, env={**os.environ, "no_proxy": "*"}
    )
    event, data = done.stdout.strip().splitlines()[:2]
    assert event == "event: complete"
    assert json.loads(data.removeprefix("data: ")) == [wanted]


def test_the_python_client_is_answered(examples, served, capsys, monkeypatch):
    client = pytest.importorskip("gradio_client")
    patient = functools.partial(client.Client, httpx_kwargs={"timeout": PATIENCE})  # its own: five seconds
    monkeypatch.setattr(client, "Client", patient)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    wanted = served.ask("search", query="a red circle", top=3)
    exec(compile(examples["python"], "docs/app.md", "exec"), {})
    assert capsys.readouterr().out.strip() == str([(hit["row"], hit["cosine"]) for hit in wanted["photos"]])
