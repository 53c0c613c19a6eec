"""Folders whose names are commands: nothing of a path is run where a command is put together."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from jclip import runtime
from jclip.machine import gpu as cuda
from jclip.machine import toolchain
from jclip.paths import plain_path

NAMES = ["a$(touch x)b c", "`touch x`", "'; touch x; '", '"; touch x; "', "a\ntouch x\nb", "a & touch x &", "$HOME \\"]
PLAIN = re.compile(r"[\w./+@:-]+", re.ASCII)


@pytest.fixture(params=NAMES)
def folder(request, tmp_path, monkeypatch) -> Path:
    """A folder of that name; the current folder is an empty one, which stays empty where nothing is run."""
    (made := tmp_path / request.param).mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return made


def run(command: str) -> str:
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(Path().iterdir()), "a command in the folder's name was run"
    return done.stdout


def test_the_compile_script_runs_nothing_of_its_folders_name(folder, monkeypatch, tmp_path):
    python = folder / "python"
    python.write_text('#!/bin/sh\necho "python $*"\n')
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    script = shlex.quote(str(toolchain.compile_script(folder)))
    assert run(f"{script} dlink_compiler.py 1 2") == "python dlink_compiler.py 1 2\n"
    (tmp_path / "a.cc").write_text("int main() { return 0; }")
    compiler = toolchain.find_compiler()
    run(f"{script} asm_tuner.py --cc_path={compiler} {tmp_path}/a.cc -o {tmp_path}/a.out && {tmp_path}/a.out")


@pytest.mark.parametrize("version", [(12, 4), (13, 0)])
def test_the_nvcc_script_runs_nothing_of_the_toolkits_name(version, folder, tmp_path):
    nvcc = folder / "nvcc"
    nvcc.write_text('#!/bin/sh\necho "nvcc $*"\n')
    nvcc.chmod(0o755)
    script = tmp_path / "script"
    script.write_text(cuda._nvcc_script(cuda.Toolkit(nvcc, version, None, (), (), ())))
    script.chmod(0o755)
    assert "nvcc" in run(f"{script} -std=c++14 x.cu") and run(f"{script} --version") == "nvcc --version\n"


def test_jittor_is_given_paths_that_are_one_word(folder, monkeypatch):
    link = plain_path(folder)
    assert PLAIN.fullmatch(str(link)) and link.samefile(folder) and plain_path(folder) == link
    monkeypatch.setenv("JCLIP_CACHE", str(folder))
    home = Path(runtime._settings()["HOME"])
    assert PLAIN.fullmatch(str(home)) and home.samefile(folder / "jittor")
    nvcc = folder / "bin" / "nvcc"
    for made in ("include", "lib"):
        (folder / made).mkdir()
    toolkit = cuda.Toolkit(nvcc, (13, 0), None, (folder / "include",), (folder / "lib",), ())
    given = cuda.jittor_environment(toolkit)
    assert PLAIN.fullmatch(given["nvcc_path"]) and PLAIN.fullmatch(given["cc_flags"].split('"')[1])
    shutil.rmtree(folder)
