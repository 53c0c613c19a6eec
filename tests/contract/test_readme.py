"""Every command and program of the README and of the pages in docs/ runs, and prints what the page says it prints.

Each page is a test of its own; a block that several pages have runs once. Commands of `jclip` run in this process, but for
the README's, which run as people start them. What doesn't run is looked at in test_pages.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jclip.cli import main
from tests.conftest import FIGURE
from tests.pages import ROOT, blocks, commands

SHARE = re.compile(r"\b(0\.\d{4})\b(?: \((\d+) of (\d+)\))?")
PAGES = (
    "README.md", "docs/own_photos.md", "docs/zero_shot.md", "docs/experiments.md", "docs/training.md", "docs/parity.md",
    "docs/speed.md", "docs/weights.md", "docs/setup.md", "docs/captions.md", "docs/multi_label_scores.md",
    "docs/tagging.md", "docs/search.md", "docs/gallery.md", "docs/multi_label.md", "docs/retrieval.md",
    "docs/grounding_data.md", "docs/pseudo_labels.md", "docs/curriculum.md", "docs/grounding.md", "docs/teach.md",
    "docs/scale.md", "docs/report.md", "docs/coming_from.md",
)  # fmt: skip
ELSEWHERE = {"docs/evaluation.md": "recipes/test_new_classes.py", "docs/challenge.md": "recipes/test_challenge.py"}
SHORT = ["data.scenes=64", "data.val_scenes=8", "data.easy_epochs=0", "optim.epochs=1", "zero_shot=[]"]
SUITE = "python -m pytest"
SCIENTIFIC = re.compile(r"\d\.\d+e[-+]\d+")
RANDOM = "jclip models --random ViT-B/32 --out random.safetensors\n"  # as the pages have it
BREEDS = ("Birman", "beagle", "pug")
FEW, FEW_CLASSES = "few.tsv", (*BREEDS, "airplanes", "baklava")  # of three data sets, in one table


def shortened(text: str) -> str:
    """The same commands with settings that make them end in seconds. What pytest would run, the suite runs anyway."""
    text = re.sub(rf"^{SUITE} .*$", r"\g<0> --collect-only", text, flags=re.MULTILINE)
    return re.sub(r"^(python -m finetune train \S+).*$", rf"\1 {' '.join(SHORT)}", text, flags=re.MULTILINE)


def with_weights(text: str) -> str:
    """The same commands with random weights in place of ViT-B/32, which would be downloaded."""
    text = re.sub(r"^jclip zero-shot .*$", r"\g<0> --model random.safetensors", text, flags=re.MULTILINE)
    return re.sub(r"^jclip train .*$", r"\g<0> model=random.safetensors", text, flags=re.MULTILINE)


def with_few_photos(text: str) -> str:
    """The same commands on a part of the classes, which a processor encodes in seconds."""
    return text.replace(
        "photos_fewshot.yaml ", f"photos_fewshot.yaml data.split_file={FEW} data.root=../shared/data/fewshot "
    )


@pytest.fixture(autouse=True)
def own_cache():
    """These tests share the machine's cache with the processes that they start."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The project's rooms, linked, with the real data beside them, and a reader's photos: what commands write stays here."""
    folder = tmp_path_factory.mktemp("readme") / "jclip"
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("runs", "results", ".git"):
            (folder / path.name).symlink_to(path)
    shared = ROOT.parent / "shared"
    if shared.is_dir():
        (folder.parent / "shared").symlink_to(shared)
        lay_photos(folder, shared / "data" / "fewshot")
        lay_table(folder, shared / "data" / "fewshot")
    return folder


def lay_photos(folder: Path, source: Path) -> None:
    """`photos` with train and test photos of `BREEDS`, and `new_photos`, the test photos without labels."""
    for line in (source / "index.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        path, part = line.split("\t")[0], line.split("\t")[-1]
        if Path(path).parent.name in BREEDS:
            for place in [Path("photos", part, Path(path).parent.name), *[Path("new_photos")] * (part == "test")]:
                (folder / place).mkdir(parents=True, exist_ok=True)
                (folder / place / Path(path).name).symlink_to(source / path)


def lay_table(folder: Path, source: Path) -> None:
    """`FEW`, the table of all photos cut to `FEW_CLASSES`."""
    head, *rows = (source / "index.tsv").read_text(encoding="utf-8").splitlines()
    few = [row for row in rows if Path(row.split("\t")[0]).parent.name in FEW_CLASSES]
    assert len({Path(row.split("\t")[0]).parent for row in few}) == len(FEW_CLASSES)
    (folder / FEW).write_text("\n".join([head, *few]) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def printed() -> dict[tuple[str, str], str]:
    """What the blocks that ran have printed."""
    return {}


def run_in_process(arguments: list[list[str]], folder: Path, monkeypatch, capsys) -> str:
    monkeypatch.chdir(folder)
    capsys.readouterr()
    for words in arguments:
        assert main(words) == 0, (words, capsys.readouterr())
    return capsys.readouterr().out


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


@pytest.mark.slow  # a minute and a half in all: trainings, zero-shots and sweeps as people start them
@pytest.mark.parametrize("page", PAGES)
def test_every_command_runs_and_prints_what_is_written(page, checkout, printed, shared, monkeypatch, capsys):
    def reads(lang: str, text: str) -> str:
        if (lang, text) not in printed:
            arguments = commands(text) if lang == "sh" and page != "README.md" else None
            printed[lang, text] = (
                run(lang, text, checkout)
                if arguments is None
                else run_in_process(arguments, checkout, monkeypatch, capsys)
            )
        return printed[lang, text]

    ran = out = ""
    for lang, marks, text in blocks(ROOT / page):
        if lang in ("sh", "python") and "no-test" not in marks:
            if "weights" in marks:
                reads("sh", RANDOM)
                text = with_weights(text)
            if "few" in marks:
                text = with_few_photos(text)
            ran, short = text, "shortened" in marks or text.startswith(SUITE)
            if text.startswith(SUITE):
                pytest.importorskip("torch", reason="its tests compare with torch: pip install '.[parity]'")
            out = reads(lang, shortened(text) if short else text)
        elif lang == "text" and ran.startswith(SUITE):  # each test compares its own figure as it measures it
            assert len(FIGURE.findall(text)) == len(text.splitlines())
        elif lang == "text" and "no-test" not in marks:
            assert said(text, out, "about" in marks), f"expected\n{text}\ngot\n{out}"
    made = {
        "README.md": ("result.txt", "sheet.jpg", "zero_shot.csv", "predicted.csv"),
        "docs/zero_shot.md": ("result.csv",),
    }
    assert all((checkout / "results" / name).is_file() for name in made.get(page, ()))


def test_what_is_not_run_is_check_sh_or_a_download():
    for page in PAGES:
        for lang, marks, text in blocks(ROOT / page):
            if lang in ("sh", "python") and "no-test" in marks:
                assert "check.sh" in text or "download" in text, f"{page}:\n{text}"
            if "shortened" in marks:
                assert shortened(text).count("optim.epochs=1") == text.count("finetune train")
            if "weights" in marks:
                assert with_weights(text) != text
            if "few" in marks:
                assert with_few_photos(text) != text


def test_every_page_with_commands_is_run():
    with_commands = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        if any(lang in ("sh", "python") and "no-test" not in marks for lang, marks, _ in blocks(path))
    }
    assert with_commands == {*PAGES, *ELSEWHERE}
    assert all(
        page.rpartition("/")[2] in (ROOT / "tests" / test).read_text("utf-8") for page, test in ELSEWHERE.items()
    )


def test_said_can_fail():
    assert said("a 1.0e-06", "b\na   9.0e-06\n") and not said("a 1.0e-06", "a 1.1e-05") and not said("x\ny", "y\nx")
    table = "a  0.1000 (40 of 400)  0.7010 (701 of 1000)"
    assert said(table, "a  0.1200 (48 of 400)  0.7010 (701 of 1000)", about=True)
    assert not said(table, "a  0.1200 (48 of 400)  0.7010 (701 of 1000)")
    assert not said(table, "a  0.1400 (56 of 400)  0.7010 (701 of 1000)", about=True)
