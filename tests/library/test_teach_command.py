"""`jclip teach` as people and scripts use it, and its concepts in `jclip search`, `jclip tag` and `jclip predict`."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jclip.cli import main
from jclip.data.shapes import SEEN_STYLES, draw_scene
from jclip.features.concepts import read_concept
from tests.made_galleries import made_gallery, unit_rows

MODEL = "shapes-tiny-rn"
PAIRS = (("red", "circle"), ("blue", "star"), ("red", "star"), ("green", "moon"))


def run(*arguments) -> int:
    return main([*map(str, arguments)])


@pytest.fixture(autouse=True)
def default_model(monkeypatch):
    monkeypatch.setenv("JCLIP_MODEL", MODEL)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """48 photos of one thing each; i shows `PAIRS[i % 4]`."""
    root = tmp_path_factory.mktemp("my photos, 2026")
    for i in range(48):
        draw_scene((3, i), pairs=[PAIRS[i % 4]], styles=SEEN_STYLES[:1], count=(1, 1)).render(64).save(
            root / f"{i:02}.png"
        )
    return root


@pytest.fixture
def typed(monkeypatch):
    """Lines that are read in place of a pipe's, or of a terminal's."""

    def type_in(text: str, terminal: bool = False) -> None:
        stream = io.StringIO(text)
        stream.isatty = lambda: terminal
        monkeypatch.setattr("sys.stdin", stream)

    return type_in


@pytest.fixture
def stored(tmp_path):
    """A gallery without a model, its photos, and a stored feature to begin with."""
    root = tmp_path / "kept"
    root.mkdir()
    folder = made_gallery(root / "g", unit_rows(90))
    for i in range(90):
        (root / f"photo {i}.png").touch()
    np.save(root / "text.npy", unit_rows(1, seed=3)[0])
    return folder, f"@{root}/text.npy"


def test_it_learns_a_red_star_of_something_red(photos, tmp_path, capsys, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    given = ["--out", "red star.concept", "--name", "red star", "--sheet", "round.html"]
    for _ in range(2):
        typed("")  # the end of the input: writes what is known and ends
        assert run("teach", photos, "something red", *given) == 0
        shown = [
            line.split("/")[-1].split(".png")[0] for line in capsys.readouterr().out.splitlines() if ".png  " in line
        ]
        typed("".join("y" if int(stem) % 4 == 2 else "n" for stem in shown) + "\nq\n")
        assert run("teach", photos, "something red", *given) == 0
        capsys.readouterr()
    concept = read_concept("red star.concept")
    assert concept.answers["yes"] >= 6 and sum(concept.answers.values()) == 24 and concept.query == "something red"
    assert (tmp_path / "round.html").read_text().count("data:image") == 12
    assert (tmp_path / "red star.answers.jsonl").read_text().count("\n") == 25

    stars = {str(photos / f"{i:02}.png") for i in range(48) if i % 4 == 2}
    monkeypatch.setenv("JCLIP_MODEL", "shapes-tiny-vit")  # the concept's own is taken
    assert run("search", photos, "concept:red star.concept", "--top", 12, "--filepath-only") == 0
    assert {*capsys.readouterr().out.splitlines()} == stars
    named = "a green moon,concept:red star.concept,a blue star"
    assert run("tag", photos, "--classes", named, "--out", "tags.csv", "--sort-into", "sorted") == 0
    with open("tags.csv", newline="") as file:
        tagged = {row[0] for row in csv.reader(file) if "red star" in row}
    assert tagged == stars == {os.path.realpath(p) for p in Path("sorted", "red star").iterdir()}
    assert {path.name for path in Path("sorted").iterdir()} == {
        "red star",
        "a green moon",
        "a blue star",
        "sorted.json",
    }
    assert run("predict", "red star.concept", photos, "--out", "p.json", "--sort-into", "found", "--copy") == 0
    assert {path.name for path in Path("found", "red star").iterdir()} == {Path(path).name for path in stars}
    assert len([*Path("found", "_none").iterdir()]) == 36
    probabilities = [tag["probability"] for one in json.loads(Path("p.json").read_text()) for tag in one["tags"]]
    assert len(probabilities) == 12 and all(0.5 < p <= 1 for p in probabilities)
    (tmp_path / "names.txt").write_text("concept:red star.concept\na green moon\n")
    assert run("tag", photos / "02.png", "--classes", "names.txt") == 0
    assert "red star" in capsys.readouterr().out
    Path("a\nb.png").touch()
    for wrong, said in (
        (["predict", "red star.concept", "a\nb.png"], "got a line break in 'a\\nb.png': rename it"),
        (["search", photos, "@red star.concept", "--model", MODEL.replace("rn", "vit")], "needs the same weights"),
        (["tag", photos, "--classes", "@red star.concept", "--model", "shapes-tiny-vit"], "needs the same weights"),
        (["tag", photos, "--classes", "concept:red star.concept", "--dtype", "bf16"], "states family and dtype"),
        (["tag", photos, "--classes", "concept:red star.concept,red star"], "class names must be unique"),
        (["tag", photos, "--classes", "a,concept:none.concept"], "no such concept: none.concept"),
        (["predict", "red star.concept"], "name the photos"),
        (["predict", "red star.concept", photos, "--list", "x.json"], "--list is of runs with several labels"),
        (["predict", "red star.concept", photos, "--threshold", "halfway"], "must be a probability"),
        (["predict", "tags.concept", photos], "no such concept"),
    ):
        assert run(*wrong) == 2 and said in capsys.readouterr().err


def test_lines_of_a_pipe(stored, tmp_path, capsys, typed):
    out = tmp_path / "my thing.concept"
    typed("ynn\nu?\n\nyyyyyynnnnnn\na\nynyn?nyny\nq\n")
    assert run("teach", *stored, "--out", out, "--audit", 20) == 0
    printed = capsys.readouterr()
    assert "1 yes, 1 no, 1 unsure" in printed.out and "audit, photos 1 to 12" in printed.out
    assert printed.out.count("audit of 8 random photos: precision") == 1 and "7 yes, 7 no, 1 unsure" in printed.out
    concept = read_concept(out)
    assert concept.audit["asked"] == 8 and concept.answers == {"yes": 7, "no": 7, "unsure": 1}
    typed("")
    assert run("teach", *stored, "--out", out, "--audit", 20) == 0
    assert read_concept(out).audit == concept.audit
    typed("x\n")
    assert run("teach", *stored, "--out", out) == 2
    printed = capsys.readouterr().err
    assert "answers must be y, n or ?" in printed and "the answers are kept in" in printed
    typed("y" * 13)
    assert run("teach", *stored, "--out", out) == 2 and "at most 12 answers" in capsys.readouterr().err


def test_a_terminal_is_asked_again(stored, tmp_path, capsys, typed):
    typed("maybe\nyN\na\n??\nq\n", terminal=True)
    assert run("teach", *stored, "--out", tmp_path / "a.concept") == 0
    printed = capsys.readouterr()
    assert "answers must be y, n or ?" in printed.err and "photo 3 of 12: " in printed.err
    assert "1 yes, 1 no" in printed.out
    assert printed.out.count("audit: every answer is ?, so it says nothing yet") == 1


def test_the_concept_without_answers_is_the_text_and_same_answers_are_same_bytes(stored, tmp_path, typed):
    for name in ("a", "b"):
        typed("")
        assert run("teach", *stored, "--out", tmp_path / f"{name}.concept") == 0
    first = (tmp_path / "a.concept").read_bytes()
    assert first == (tmp_path / "b.concept").read_bytes()
    concept = read_concept(tmp_path / "a.concept")
    assert (concept.head.vector == concept.text).all()
    typed("yny")
    assert run("teach", *stored, "--out", tmp_path / "a.concept") == 0
    (tmp_path / "b.answers.jsonl").write_bytes((tmp_path / "a.answers.jsonl").read_bytes())
    typed("")
    assert run("teach", *stored, "--out", tmp_path / "b.concept") == 0
    assert first != (tmp_path / "a.concept").read_bytes() == (tmp_path / "b.concept").read_bytes()


def test_all_answered_and_photos_that_are_not_there(stored, tmp_path, capsys, typed):
    folder, term = stored
    for i in range(90):
        if i not in (3, 8):
            (folder.parent / f"photo {i}.png").unlink()
    typed("yn\ny\n")
    assert run("teach", folder, term, "--out", tmp_path / "a.concept") == 0
    assert "every photo that can be looked at is answered" in capsys.readouterr().out
    typed("y\n")
    assert run("teach", folder, term, "--out", tmp_path / "b.concept", "--root", tmp_path) == 2
    assert "name where they are by --root" in capsys.readouterr().err
    assert not (tmp_path / "b.concept").exists()
    empty = made_gallery(tmp_path / "empty", unit_rows(1)[:0], rows=())
    assert run("teach", empty, term, "--out", tmp_path / "c.concept") == 2
    assert "must hold photos to ask about, got none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "x.txt"], "--out must be a file with the ending .concept"),
        (["--answers", "{}/same", "--sheet", "{}/same"], "a sheet is written as one of"),
        (["--answers", "{}/a.html", "--sheet", "{}/a.html"], "must be different files"),
        (["--answers", "{}/kept/text.npy"], "would be overwritten"),
        (["--name", " "], "--name must be a text"),
        (["--answers", "{}/kept/g"], "got a folder"),
    ],
)
def test_files_that_do_not_go_together(stored, tmp_path, capsys, typed, options, said):
    typed("")
    given = [option.format(tmp_path) for option in options]
    assert run("teach", *stored, *given) == 2
    assert said in capsys.readouterr().err


def test_answers_outlive_the_process(stored, tmp_path):
    given = [sys.executable, "-m", "jclip.cli", "teach", *map(str, stored), "--out", str(tmp_path / "a.concept")]
    child = subprocess.Popen(given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    child.stdin.write("yn\n")
    child.stdin.flush()
    answers, until = tmp_path / "a.answers.jsonl", time.monotonic() + 300
    while time.monotonic() < until and (not answers.exists() or answers.read_text().count("\n") < 3):
        time.sleep(0.02)
    child.kill()
    child.communicate(timeout=300)
    assert child.returncode == -signal.SIGKILL
    assert answers.read_text().count("\n") == 3 and not (tmp_path / "a.concept").exists()


def test_ctrl_c_keeps_the_answers(stored, tmp_path, capsys, monkeypatch):
    class Typed(io.StringIO):
        def readline(self, size: int = -1) -> str:
            if line := super().readline():
                return line
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Typed("yny\n"))
    assert run("teach", *stored, "--out", tmp_path / "a.concept") == 130
    assert "the same command goes on from them" in capsys.readouterr().err
    assert (tmp_path / "a.answers.jsonl").read_text().count("\n") == 4 and not (tmp_path / "a.concept").exists()
