"""A folder that is replaced is whole at every moment, old or new, whatever ends the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from convert.cli import main
from jclip.paths import replaced_folders, replacing_folder
from tests.toys import TOY_VIT, TOY_VIT_GELU, toy_file

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = """
import ctypes, os, shutil, sys
from pathlib import Path
from jclip.paths import replaced_folders
from tests.hostile.killed import operations

root, exchanges = Path(sys.argv[1]), sys.argv[2] == "exchange"
if not exchanges:  # as on a file system that can't
    replaced_folders.ctypes = type("ctypes", (), {"CDLL": lambda *a, **k: object()})
target = root / "out"

def work():
    with replaced_folders.replacing_folder(target) as temporary:
        for name in ("a", "b"):
            (temporary / name).write_text("new")
        (temporary / "sub").mkdir()
        (temporary / "sub" / "c").write_text("new")

def state():
    return {str(p.relative_to(target)): p.read_text() for p in sorted(target.rglob("*")) if p.is_file()}

OLD = {"a": "old", "b": "old", "keep/own": "mine", "link": "old", "sub/d": "old"}
NEW = {"a": "new", "b": "new", "keep/own": "mine", "link": "new", "sub/c": "new"}
ends = []

def look(n):
    if target.exists():
        ends.append("old" if state() == OLD else "new" if state() == NEW else f"broken: {state()}")
    else:
        ends.append("absent")
    work()  # the next start
    assert state() == NEW, (n, state())
    assert sorted(p.name for p in root.iterdir()) == ["out"], (n, list(root.iterdir()))
    shutil.rmtree(target)
    begin()

def begin():
    (target / "keep").mkdir(parents=True)
    (target / "sub").mkdir()
    for name in ("a", "b", "sub/d"):
        (target / name).write_text("old")
    (target / "keep" / "own").write_text("mine")
    (target / "link").symlink_to("a")

begin()
operations(work, look)
print(*ends, sep="\\n")
"""
CONVERT = """
import shutil, sys
from pathlib import Path
from convert.cli import main
from jclip.readers import safetensors
from tests.hostile.killed import operations

old, new, target = (Path(p) for p in sys.argv[1:])
main([str(old), str(target)])
ends = []

def state():
    held = {p.name: p.read_bytes() for p in target.iterdir()}
    return held

OLD = state()
main([str(new), str(target.with_name("wanted"))])
NEW = {p.name: p.read_bytes() for p in target.with_name("wanted").iterdir()}
assert OLD.keys() == NEW.keys() and OLD != NEW

def look(n):
    now = state()
    ends.append("old" if now == OLD else "new" if now == NEW else "broken")
    for left in target.parent.glob(".*"):
        shutil.rmtree(left)
    for name, data in OLD.items():
        (target / name).write_bytes(data)

operations(lambda: main([str(new), str(target)]), look)
sys.stderr.write("\\n".join(ends))
"""


def ends_of(script: str, *arguments) -> list[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (done.stdout if script is FOLDER else done.stderr).split("\n")


@pytest.mark.parametrize("how", ["exchange", "aside"])
def test_a_folder_is_whole_at_every_file_operation(how, tmp_path):
    ends = [end for end in ends_of(FOLDER, tmp_path, how) if end]
    assert len(ends) > 15 and {"old", "new"} <= set(ends)
    assert set(ends) <= {"old", "new"} | ({"absent"} if how == "aside" else set())
    assert ends.count("absent") <= 1  # between two renames; the next start puts it back
    assert ends.index("new") == len([e for e in ends if e != "new"]), "old again after it was new"


def test_convert_onto_a_folder_is_whole_at_every_file_operation(tmp_path):
    old, new = toy_file(tmp_path, TOY_VIT), toy_file(tmp_path, TOY_VIT_GELU, seed=1)
    ends = [end for end in ends_of(CONVERT, old, new, tmp_path / "out") if end in ("old", "new", "broken", "absent")]
    assert len(ends) > 10 and set(ends) == {"old", "new"}


def test_what_another_process_is_filling_is_left_alone(tmp_path):
    with replacing_folder(tmp_path / "out") as first:
        (first / "a").write_text("first")
        with replacing_folder(tmp_path / "out") as second:
            (second / "a").write_text("second")
        assert (first / "a").read_text() == "first"
    assert (tmp_path / "out" / "a").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replacing_folder(tmp_path / "link") as temporary:
        (temporary / "a").write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "a").read_text() == "new"


def test_the_folder_that_a_command_runs_in_is_not_taken_away(tmp_path, monkeypatch, capsys):
    source, work = toy_file(tmp_path, TOY_VIT), tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert main([str(source), "."]) == 2
    assert "must not be the folder that this command runs in" in capsys.readouterr().err
    assert not list(work.iterdir())


def test_a_mode_and_a_failure_are_kept_as_they_were(tmp_path):
    (tmp_path / "out").mkdir(mode=0o750)
    with replacing_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("new")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    with pytest.raises(RuntimeError), replacing_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("newer")
        raise RuntimeError
    assert (tmp_path / "out" / "a").read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "target", ["folder", "folder/new", "folder/deep/new", "folder/x.safetensors", "hard.safetensors"]
)
def test_convert_never_writes_into_its_source(target, tmp_path, capsys):
    assert main([str(toy_file(tmp_path, TOY_VIT)), str(tmp_path / "folder")]) == 0
    os.link(tmp_path / "folder" / "model.safetensors", tmp_path / "hard.safetensors")
    source = tmp_path / "folder" / ("model.safetensors" if target == "hard.safetensors" else "")
    before = sorted(p for p in tmp_path.rglob("*"))
    capsys.readouterr()
    assert main([str(source), str(tmp_path / target)]) == 2
    stderr = capsys.readouterr().err
    assert "name a" in stderr and len(stderr.splitlines()) == 1
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_the_system_exchanges_folders_where_it_can(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    replaced_folders._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "a").is_file() and not list(tmp_path.glob("*.old"))
