"""The file of photos' tokens: read as written, shared, whole after a kill, damage noticed."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.features.token_store import TokenStore

KEYS = [bytes([i]) * 32 for i in range(5)]
ROWS = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float16)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a b.tokens"
    TokenStore(path, 7, "float16").add(KEYS[:3], ROWS[:3])
    return path


def test_records_are_read_as_written_by_whoever_opens_the_file(path):
    store, other = TokenStore(path, 7, "float16"), TokenStore(path, 7, "float16")
    assert store.missing(KEYS) == [3, 4]
    other.add(KEYS[3:], ROWS[3:])
    assert store.missing(KEYS) == []
    assert np.array_equal(np.stack(store.read([KEYS[4], KEYS[0]])), ROWS[[4, 0]])
    assert store.read([bytes(32)])[0] is not None and store.read([b"x" * 32]) == [None]


def test_what_a_killed_process_left_half_written_is_written_again(path):
    index = path.with_name("a b.tokens.index")
    index.write_bytes(index.read_bytes()[:-5])  # the third record's line was cut off
    store = TokenStore(path, 7, "float16")
    assert store.missing(KEYS) == [2, 3, 4]
    store.add(KEYS[2:], ROWS[2:])
    again = TokenStore(path, 7, "float16")
    assert np.array_equal(np.stack(again.read(KEYS)), ROWS) and index.stat().st_size == 5 * 36


def test_a_damaged_record_is_missing_and_named_and_can_be_added_again(path, capsys):
    data = bytearray(path.read_bytes())
    data[14 + 3] ^= 1  # in the second record
    path.write_bytes(data)
    store = TokenStore(path, 7, "float16")
    found = store.read(KEYS[:3])
    assert found[1] is None and np.array_equal(found[0], ROWS[0]) and np.array_equal(found[2], ROWS[2])
    assert "a b.tokens is damaged in record 1" in capsys.readouterr().err
    store.add(KEYS[1:2], ROWS[1:2])
    assert np.array_equal(store.read(KEYS[1:2])[0], ROWS[1])
    path.unlink()
    assert TokenStore(path, 7, "float16").read(KEYS[:1]) == [None]
