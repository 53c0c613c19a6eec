"""Weight files and features that lie, swell, or would run: one line, no memory but their own, whatever is in them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from jclip.errors import CheckpointError
from jclip.readers import jittor_pickle, read_weights, safetensors
from tests.hostile.fuzz import FORMATS, ends, ends_of_files
from tests.hostile.hostile_weights import FILES

SHARED = Path(__file__).parents[3] / "shared" / "data" / "hostile"
READERS = ("pickle", "torch", "safetensors", "npz")


@pytest.mark.parametrize("form", READERS)
def test_hostile_files_are_refused_in_one_line_and_200_mib(form, tmp_path):
    """Each in a child process whose address space is bounded; what crashes or exhausts it fails by name."""
    ending, made = FILES[form]
    cases = made()
    files = [tmp_path / f"{number}{ending}" for number in range(len(cases))]
    for file, (data, _) in zip(files, cases.values(), strict=True):
        file.write_bytes(data)
    ends = zip(cases.items(), ends_of_files(form, files), strict=True)
    wrong = [f"{what}: {end}" for (what, (_, said)), end in ends if not (end.startswith("refused: ") and said in end)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("form", FORMATS)
def test_mutants_end_in_a_line_or_in_values(form):
    """20,000 by `python -m tests.hostile.fuzz`."""
    if "vocabulary_formats" in FORMATS[form]:
        pytest.importorskip("tokenizers", reason="not installed: pip install '.[tokenizers]'")
    faults = [(n, end) for n, end in enumerate(ends(form, 300)) if end.startswith("FAULT")]
    assert not faults, faults[:3]


def test_hostile_files_of_the_campaign():
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    files = sorted(p for p in SHARED.iterdir() if p.suffix in (".pkl", ".pt") or p.name.startswith("st_"))
    for file, end in zip(files, ends_of_files("pickle", files), strict=True):
        assert end.startswith("refused: ") and file.name in end, end


WRITERS = {
    "x.safetensors": safetensors.write,
    "x.pkl": jittor_pickle.write,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("change", ["replaced", "cut", "written to", "removed"])
def test_a_file_that_changes_while_it_is_read_gives_no_mixture(name, change, tmp_path):
    path = tmp_path / name
    WRITERS[name](path, {"a": np.zeros(5000, np.float32), "b": np.zeros(5000, np.float32)})
    file = read_weights(path)
    assert not file["a"].read().any()
    if change == "replaced":
        WRITERS[name](path, {"a": np.ones(5000, np.float32), "b": np.ones(5000, np.float32)})
    elif change == "cut":
        os.truncate(path, 4096)
    elif change == "written to":
        with open(path, "rb+") as f:
            f.seek(-8000, os.SEEK_END)
            f.write(b"\1" * 400)
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=f"{name} was changed while it was read"):
        file["b"].read()


def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)
        listening.bind("socket")
        for name in ("fifo", "folder", "socket", "/dev/zero", "nowhere", "a\0b"):
            with pytest.raises(CheckpointError, match="can't read ") as error:
                read_weights(tmp_path / name)
            assert str(error.value).isprintable()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d7a2146" * 8 + "\n"


@pytest.mark.parametrize(
    "data, message",
    [
        (POINTER + "size 12345\n", "is a Git LFS pointer.*git lfs pull"),
        ("<!DOCTYPE html>\n<html><title>Not found</title>", "is a web page, not weights"),
        ("\ufeff\n <HTML>", "is a web page, not weights"),
        ('<?xml version="1.0"?><Error>', "is a web page, not weights"),
        ("", "is empty: fetch or copy it again"),
        ('{"error": "Repository not found"}', 'but text that begins with \'{"error"'),
        ("Entry not found\r\n", "but text that begins with 'Entry not found"),
        ("\x1b[31mred", "is no weight file that jclip knows [^\x1b]*$"),
    ],
)
@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.pkl"])
def test_what_is_named_like_weights_is_named(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data.encode())
    with pytest.raises(CheckpointError, match=message) as error:
        read_weights(tmp_path / name)
    assert str(error.value).isprintable()
