"""What is written gets the rights that the user's umask leaves, whatever a temporary file had."""

from __future__ import annotations

import os

import pytest

from jclip.paths import creating, replacing, replacing_folder


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


def test_what_was_written_is_synced_before_it_has_its_name(tmp_path, monkeypatch):
    """Nothing but a cut of the power could tell: the suite itself waits for no disk."""
    file, folder, new, synced = tmp_path / "x.csv", tmp_path / "run", tmp_path / "new", []

    def sync(descriptor: int) -> None:
        held, there = os.fstat(descriptor), [path.name for path in (file, folder, new) if path.exists()]
        synced.append((held.st_ino, held.st_size, there))

    monkeypatch.setattr(os, "fsync", sync)
    with replacing(file) as temporary:
        temporary.write_text("four")
    assert synced.pop() == (file.stat().st_ino, 4, []) and not synced
    with replacing_folder(folder) as temporary:
        (temporary / "y").write_text("yes")
    assert {entry[0] for entry in synced} == {folder.stat().st_ino, (folder / "y").stat().st_ino}
    assert all("run" not in there for _, _, there in synced)
    synced.clear()
    with creating(new) as temporary:
        temporary.write_text("fives")
    assert synced == [(new.stat().st_ino, 5, ["x.csv", "run"])]
