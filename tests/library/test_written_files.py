"""What is written gets the rights that the user's umask leaves, whatever a temporary file had."""

from __future__ import annotations

import os

import pytest

from jclip.paths import replacing, replacing_folder


@pytest.fixture
def umask():
    """Sets the process's umask; it is as before when the test ends."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask, file, folder", [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o002, 0o664, 0o775)])
def test_rights_are_those_of_the_umask(mask, file, folder, umask, tmp_path):
    umask(mask)
    with replacing(tmp_path / "x.csv") as temporary:
        temporary.write_text("x")
    with replacing_folder(tmp_path / "run") as temporary:
        (temporary / "y").write_text("y")
    assert (tmp_path / "x.csv").stat().st_mode & 0o777 == file
    assert (tmp_path / "run").stat().st_mode & 0o777 == folder
    assert umask(mask) == mask, "asking for the umask leaves it"
