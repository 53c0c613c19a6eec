"""Every mutant of a users' text file is refused in one line, or read as something well-formed."""

from __future__ import annotations

import pytest

from tests.hostile.list_mutants import SEEDS, end_of, run


@pytest.mark.parametrize("kind", SEEDS)
def test_mutants_of_text_files_end_well(kind, tmp_path):
    ends, bad = run(kind, 300, tmp_path)
    assert not bad, bad[0]
    assert sum(ends.values()) == 300 and ends["refused"] > 30 and ends["read"] > 30


@pytest.mark.parametrize("kind", SEEDS)
def test_the_files_themselves_are_read(kind, tmp_path):
    run(kind, 0, tmp_path)
    for name, text in SEEDS[kind].items():
        assert end_of(kind, tmp_path / name, text.encode()) == ("read", "")
