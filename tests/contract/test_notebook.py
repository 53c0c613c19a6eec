"""The notebook runs from photos to a results file, and prints what it shows."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.contract.test_readme import said

NOTEBOOK = Path(__file__).parents[2] / "docs" / "photos_to_results.ipynb"


def printed(cell) -> str:
    return "".join(output.get("text", "") for output in cell.get("outputs", ()))


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_is_stored(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="pip install -e '.[dev]' brings nbclient and ipykernel")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    stored = nbformat.read(NOTEBOOK, as_version=4)
    run = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        run, timeout=None, startup_timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    tables = 0
    for before, after in zip(stored.cells, run.cells, strict=True):
        if "of 1000" in printed(before):
            accuracies = "\n".join(line for line in printed(before).splitlines() if " of 1000" in line)
            assert said(accuracies, printed(after), about=True), printed(after)
            tables += 1
        assert [o.output_type for o in before.get("outputs", ())] == [o.output_type for o in after.get("outputs", ())]
    assert tables == 1
    lines = (tmp_path / "results" / "result.txt").read_text().splitlines()
    assert len(lines) == 1000 and all(len(set(line.split()[1:])) == 5 for line in lines)
    assert (tmp_path / "results" / "sheet.jpg").is_file()
