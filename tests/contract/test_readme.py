"""Every command and program of the README runs, and prints what the README says it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SCIENTIFIC = re.compile(r"\d\.\d+e[-+]\d+")


def blocks(path: Path) -> list[tuple[str, bool, str]]:
    """Language, whether it runs, text."""
    return [(lang, "no-test" not in rest, body) for lang, rest, body in BLOCK.findall(path.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The project's rooms, linked, with the real data beside them: what commands write stays here."""
    folder = tmp_path_factory.mktemp("readme") / "jclip"
    folder.mkdir()
    for name in ("jclip", "finetune", "configs", "tests", "setup.py", "pyproject.toml", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    if (ROOT.parent / "shared").is_dir():
        (folder.parent / "shared").symlink_to(ROOT.parent / "shared")
    return folder


def run(lang: str, text: str, folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["sh", "-ec", text] if lang == "sh" else [sys.executable, "-c", text]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def said(expected: str, printed: str) -> bool:
    """Whether each expected line was printed, in order; differences (1.2e-06) may be up to ten times as large."""
    lines = iter(printed.splitlines())
    for wanted in expected.splitlines():
        for line in lines:
            got, limits = SCIENTIFIC.findall(line), SCIENTIFIC.findall(wanted)
            same = SCIENTIFIC.sub("#", line).split() == SCIENTIFIC.sub("#", wanted).split()
            if same and all(float(g) <= 10 * float(x) for g, x in zip(got, limits, strict=True)):
                break
        else:
            return False
    return True


@pytest.mark.slow
def test_every_command_runs_and_prints_what_is_written(checkout, shared):
    printed = ""
    for lang, runs, text in blocks(ROOT / "README.md"):
        if lang in ("sh", "python") and runs:
            printed = run(lang, text, checkout)
        elif lang == "text":
            assert said(text, printed), f"expected\n{text}\ngot\n{printed}"
    assert (checkout / "results" / "result.csv").is_file() and (checkout / "results" / "result.txt").is_file()


def test_what_is_not_run_is_check_sh_or_a_download():
    for lang, runs, text in blocks(ROOT / "README.md"):
        if lang in ("sh", "python") and not runs:
            assert "check.sh" in text or "download" in text


def test_the_first_program_stands_within_twenty_lines_of_the_text():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines.index("import jclip") < 20


def test_yaml_of_the_readme_is_a_config():
    import yaml

    from finetune.__main__ import build_config

    for lang, _, text in blocks(ROOT / "README.md"):
        if lang == "yaml":
            build_config(yaml.safe_load(text), "README")


def test_links_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md", "docs/porting.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"


def test_said_can_fail():
    assert said("a 1.0e-06", "b\na   9.0e-06\n") and not said("a 1.0e-06", "a 1.1e-05") and not said("x\ny", "y\nx")
