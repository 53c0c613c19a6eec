"""Names from strangers on terminals, in tables, pages and pictures: shown, never obeyed; and terminals that take nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jclip.errors import ConfigError, JclipError, UnknownName, fail, guarded, notice, printable, say
from jclip.report.class_pictures import plot_classes, plot_confusion
from jclip.report.contact_sheet import write_sheet
from jclip.report.plots import plot_shots
from jclip.report.predictions import Predictions, show

ROOT = Path(__file__).parent.parent.parent
NAMES = (
    "<script>alert(1)</script>", "\" onerror='alert(1)'", "</title><img src=x>", "&lt;b&gt;",
    "a\nb\rc\x0b", "\x1b[31mred\x1b]0;title\x07", "\u202egpj.exe", "\ud800 \udcb2", "\0", "\u2028\u2029\x85",
    r"$\frac{", "$x^2$ $", r"\$ \\$", "_hidden", "%s {0} {}", "", " ", "x" * 10_000_000,
    "\U0001f469\u200d\U0001f4bb", "می\u200cخواهم",
)  # fmt: skip
NOT_OF_FILES = re.compile("[/\0\ud800]")
TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "h1", "h2", "small", "p", "section", "div",
    "figure", "img", "span", "figcaption", "ol", "li", "b",
}  # fmt: skip


def is_one_line(text: str) -> bool:
    return all(c.isprintable() or c in "\u200c\u200d\u3000" for c in text)


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_messages_are_one_line_of_bounded_length(name, capsys):
    for error in (JclipError(name), ConfigError(f"{name} is wrong: fix it"), UnknownName("model", name, ["ViT-B/32"])):
        assert is_one_line(str(error)) and len(str(error)) < 2200
    assert str(ConfigError(f"{name} is wrong: fix it")).endswith(" is wrong: fix it")  # the end says what to do
    assert guarded(lambda: (_ for _ in ()).throw(ConfigError(name)), "jclip train") == 2
    assert fail("jclip", name, 3) == 3
    notice(name)
    lines = capsys.readouterr().err.split("\n")
    assert len(lines) == 4 and all(map(is_one_line, lines))
    say(f"first\n{name.replace(chr(10), ' ')}")
    assert all(map(is_one_line, capsys.readouterr().out.split("\n")))


def test_what_is_left_out_is_counted():
    assert printable("a" * 70 + "b" * 30, 40) == "a" * 30 + "… (60 more characters) …" + "b" * 10
    assert (
        printable("ok\x1b[0m\n\u202e") == "ok\\x1b[0m\\n\\u202e" and printable("全\u3000角\xa0é") == "全\u3000角\xa0é"
    )


@pytest.fixture
def predictions(tmp_path) -> Predictions:
    """A photo of each name that a file can have, whose best class is of that name."""
    photos = []
    for number, name in enumerate(NAMES):
        folder = tmp_path / str(number)
        folder.mkdir()
        photos.append(str(folder / (NOT_OF_FILES.sub("∕", name[:60]) + ".png")))
        Image.new("RGB", (20, 20)).save(photos[-1], format="PNG")
    return Predictions(tuple(photos), NAMES, np.eye(len(NAMES)) * 9, prompts=NAMES)


class Strict(HTMLParser):
    """Collects tags and attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_a_page_and_a_picture_show_names_as_text(predictions, tmp_path):
    for choice in ("spread", "certainty"):
        write_sheet(tmp_path / "sheet.html", predictions, [0] * len(NAMES), choice=choice)
        page = Strict(text := (tmp_path / "sheet.html").read_text(encoding="utf-8"))
        assert page.tags <= TAGS
        assert page.attributes <= {"lang", "charset", "name", "content", "class", "src", "alt", "style", "title"}
        assert "<script" not in text and "&lt;script&gt;alert(1)" in text and len(text) < 200_000
        write_sheet(tmp_path / "sheet.png", predictions, [0] * len(NAMES), choice=choice)
        assert Image.open(tmp_path / "sheet.png").width > 200


def test_pictures_show_names_as_text(tmp_path):
    shares = np.linspace(0, 1, len(NAMES))
    plot_classes(tmp_path / "classes.png", shares, NAMES)
    plot_confusion(tmp_path / "confusion.png", np.eye(len(NAMES), dtype=int), NAMES)
    plot_shots(tmp_path / "shots.png", {name: {1: (0.5, 0.1), 2: (0.6, 0.1)} for name in NAMES}, r"$\frac{", "top-1, %")
    assert all(Image.open(tmp_path / f"{name}.png").width > 200 for name in ("classes", "confusion", "shots"))


def test_pictures_grow_with_the_classes(tmp_path):
    """At 120 dots per inch: 0.22 inches of a class on both sides of the confusion, 0.2 of a bar, but for a few classes."""
    for count, square, high in ((3, 480, 300), (35, 1104, 960)):
        plot_confusion(tmp_path / "confusion.png", np.eye(count, dtype=int), names := [str(i) for i in range(count)])
        plot_classes(tmp_path / "classes.png", np.linspace(0, 1, count), names)
        with Image.open(tmp_path / "confusion.png") as confusion, Image.open(tmp_path / "classes.png") as classes:
            assert confusion.size == (square, square) and classes.size == (768, high)


def test_pictures_show_what_they_say(tmp_path):
    """The mean's dashes where the mean is, a bar as long as its share, and a row of the confusion in one blue."""
    plot_classes(tmp_path / "classes.png", np.array([0.5, np.nan, 1.0]), ["a", "b", "c"])
    plot_confusion(tmp_path / "confusion.png", np.array([[0, 4], [0, 0]]), ["a", "猫"])
    with Image.open(tmp_path / "classes.png") as picture:
        pixels = np.array(picture).astype(int)
    bars = (abs(pixels - (31, 119, 180)).sum(axis=2) == 0).sum(axis=1)
    shorter, longer = sorted({*bars[bars > 0]})[0], bars.max()
    assert abs(shorter - longer / 2) <= 3 and 300 < longer < pixels.shape[1]
    with Image.open(tmp_path / "confusion.png") as picture:
        colours = {colour: count for count, colour in picture.getcolors(1 << 24)}
    dark, light = colours[8, 48, 107], colours[247, 251, 255]
    assert 2.5 * dark < light < 3.5 * dark  # one of four cells


def test_legends_show_every_name(tmp_path, monkeypatch):
    """matplotlib leaves names that begin with an underscore out, and sets what stands between dollars as a formula."""
    import jclip.report.plots

    drawn = []
    monkeypatch.setattr(jclip.report.plots, "_save", lambda figure, path: drawn.append(figure))
    plot_shots(tmp_path / "x.png", {"_one": {1: (0.5, 0.1)}, "$two$": {1: (0.4, 0.1)}}, "", "")
    texts = drawn[0].axes[0].get_legend().get_texts()
    assert [text.get_text() for text in texts] == [" one", r"\$two\$"]
    assert not any(text._preprocess_math(text.get_text())[1] for text in texts)


def test_the_table_of_predictions(predictions):
    lines = show(predictions, limit=30).split("\n")
    assert len(lines) == len(NAMES) + 2 and all(map(is_one_line, lines)) and max(map(len, lines)) < 1000


# Terminals

PRINTS = """if True:
    import sys
    from jclip.errors import guarded, notice, say
    sys.exit(guarded(lambda: (say('图 \\x1b é\\n' * 50000), notice('图 é')) and 0, 'jclip'))
"""
ENDS = {
    "": 0,
    ">&-": 0,
    "2>&-": 0,
    "<&- >&- 2>&-": 0,
    ">/dev/full": 2,
    "2>/dev/full": 0,
    ">/dev/full 2>/dev/full": 2,
    "| head -c 1 >/dev/null": 141,
}


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "utf-16"])
@pytest.mark.parametrize("redirection", ENDS)
def test_terminals_that_take_nothing_end_in_no_traceback(redirection, encoding):
    if "/dev/full" in redirection and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    environment = {"PATH": "/usr/bin:/bin", "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT), "LC_ALL": "C"}
    script = f'set -o pipefail; "{sys.executable}" -c "$1" {redirection}'
    done = subprocess.run(["bash", "-c", script, "bash", PRINTS], capture_output=True, env=environment)
    assert done.returncode == ENDS[redirection] and b"Traceback" not in done.stderr and b"Exception" not in done.stderr


def test_a_file_never_gets_the_number_of_a_closed_stderr(tmp_path):
    """Jittor prints to descriptor 2, whatever stands there."""
    code = "from jclip.errors import guarded; guarded(lambda: print(open('x', 'w').fileno(), file=open('n', 'w')), 'x')"
    environment = {"PYTHONPATH": str(ROOT)}
    subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "$1" >&- 2>&- <&-', "bash", code], cwd=tmp_path, env=environment
    )
    assert int((tmp_path / "n").read_text()) > 2


@pytest.mark.parametrize("command", ["--help", "-V", "models", "recipes", "train --help", "nosuch", "inspect"])
def test_commands_on_a_full_disk_end_in_one_line(command):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "jclip.cli", *command.split()], cwd=ROOT, stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and done.stderr.startswith(b"jclip")
