"""Every command and program of the README runs, and prints what the README says it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import finetune
from tests.conftest import FIGURE

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHARE = re.compile(r"\b(0\.\d{4})\b(?: \((\d+) of (\d+)\))?")
PAGES = ("porting", "weights", "challenge", "evaluation", "zero_shot")
SHORT = ["data.scenes=64", "data.val_scenes=8", "data.easy_epochs=0", "optim.epochs=1", "zero_shot=[]"]
SUITE = "python -m pytest"
SCIENTIFIC = re.compile(r"\d\.\d+e[-+]\d+")


def blocks(path: Path) -> list[tuple[str, str, str]]:
    """Language, marks behind it, text. Marks: `no-test`; `shortened` (long trainings); `about` (figures of a training)."""
    return BLOCK.findall(path.read_text(encoding="utf-8"))


def shortened(text: str) -> str:
    """The same commands with settings that make them end in seconds. What pytest would run, the suite runs anyway."""
    text = re.sub(rf"^{SUITE} .*$", r"\g<0> --collect-only", text, flags=re.MULTILINE)
    return re.sub(r"^(python -m finetune train \S+).*$", rf"\1 {' '.join(SHORT)}", text, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The project's rooms, linked, with the real data beside them: what commands write stays here."""
    folder = tmp_path_factory.mktemp("readme") / "jclip"
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("runs", "results", ".git"):
            (folder / path.name).symlink_to(path)
    if (ROOT.parent / "shared").is_dir():
        (folder.parent / "shared").symlink_to(ROOT.parent / "shared")
    return folder


def run(lang: str, text: str, folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["sh", "-ec", text] if lang == "sh" else [sys.executable, "-c", text]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def said(expected: str, printed: str, about: bool = False) -> bool:
    """Whether each expected line was printed, in order; differences (1.2e-06) may be up to ten times as large.

    about: accuracies may differ by three in a hundred, as a training's do from one kind of processor to another.
    """
    lines = iter(printed.splitlines())
    return all(any(matches(line, wanted, about) for line in lines) for wanted in expected.splitlines())


def matches(line: str, wanted: str, about: bool) -> bool:
    got, limits = SCIENTIFIC.findall(line), SCIENTIFIC.findall(wanted)
    line, wanted = SCIENTIFIC.sub("#", line), SCIENTIFIC.sub("#", wanted)
    shares = [[float(share) for share, _, _ in SHARE.findall(text)] for text in (line, wanted)]
    if about:
        line, wanted = SHARE.sub("%", line), SHARE.sub("%", wanted)
    if line.split() != wanted.split():
        return False
    near = all(abs(a - b) <= 0.03 for a, b in zip(*shares, strict=True))
    return near and all(float(g) <= 10 * float(x) for g, x in zip(got, limits, strict=True))


@pytest.mark.slow  # a minute: the README's own trainings, eight zero-shots and sweeps, each a process as people start it
def test_every_command_runs_and_prints_what_is_written(checkout, shared):
    ran = printed = ""
    for lang, marks, text in blocks(ROOT / "README.md"):
        if lang in ("sh", "python") and "no-test" not in marks:
            ran, short = text, "shortened" in marks or text.startswith(SUITE)
            printed = run(lang, shortened(text) if short else text, checkout)
        elif lang == "text" and ran.startswith(SUITE):  # each test compares its own figure as it measures it
            assert len(FIGURE.findall(text)) == len(text.splitlines())
        elif lang == "text":
            assert said(text, printed, "about" in marks), f"expected\n{text}\ngot\n{printed}"
    assert (checkout / "results" / "result.csv").is_file() and (checkout / "results" / "result.txt").is_file()


def test_what_is_not_run_is_check_sh_or_a_download():
    for lang, marks, text in blocks(ROOT / "README.md"):
        if lang in ("sh", "python") and "no-test" in marks:
            assert "check.sh" in text or "download" in text
        if "shortened" in marks:
            assert shortened(text).count("optim.epochs=1") == text.count("finetune train")


def test_the_first_program_stands_within_twenty_lines_of_the_text():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines.index("import jclip") < 20


def test_yaml_of_the_readme_is_a_config():
    import yaml

    from jclip.train.configs import build_config

    for lang, _, text in blocks(ROOT / "README.md"):
        if lang == "yaml":
            build_config(yaml.safe_load(text), "README")


def test_links_lead_somewhere():
    names = ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in PAGES))
    for name in names:
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"


def test_said_can_fail():
    assert said("a 1.0e-06", "b\na   9.0e-06\n") and not said("a 1.0e-06", "a 1.1e-05") and not said("x\ny", "y\nx")
    table = "a  0.1000 (40 of 400)  0.7010 (701 of 1000)"
    assert said(table, "a  0.1200 (48 of 400)  0.7010 (701 of 1000)", about=True)
    assert not said(table, "a  0.1200 (48 of 400)  0.7010 (701 of 1000)")
    assert not said(table, "a  0.1400 (56 of 400)  0.7010 (701 of 1000)", about=True)


def test_the_chinese_readme_has_the_same_commands_and_figures():
    """So that what runs the one runs the other; comments are Chinese there."""

    def bare(text: str) -> list[str]:
        return [line for line in (re.sub(r"\s*#.*", "", line) for line in text.splitlines()) if line]

    ours, theirs = (blocks(ROOT / name) for name in ("README.md", "README.zh-CN.md"))
    assert [(lang, marks, bare(text)) for lang, marks, text in theirs] == [
        (lang, marks, bare(text)) for lang, marks, text in ours
    ]
    recipes = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)
    ours, theirs = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    assert {*recipes.findall(theirs)} == {*recipes.findall(ours)} == {*finetune.names()}
