"""The one reader of users' text files: encodings, line ends, JSON and tables, each refusal in one line."""

from __future__ import annotations

import json
import os

import pytest

from jclip.errors import CheckpointError, DataError, printable
from jclip.paths import is_file
from jclip.readers.text import MOST_BYTES, parse_json, read_json, read_lines, read_records, read_table, read_text

ENCODED = {
    "utf-8": "猫\n黑狗\n".encode(),
    "BOM": b"\xef\xbb\xbf" + "猫\n黑狗\n".encode(),
    "UTF-16 LE": b"\xff\xfe" + "猫\n黑狗\n".encode("utf-16-le"),
    "UTF-16 BE": b"\xfe\xff" + "猫\n黑狗\n".encode("utf-16-be"),
    "GB18030": "猫\n黑狗\n".encode("gb18030"),
    "CRLF": "猫\r\n黑狗\r\n".encode(),
    "CR": "猫\r黑狗\r".encode(),
    "no end": "猫\n黑狗".encode(),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_encodings_and_line_ends(tmp_path, capsys, kind):
    (tmp_path / "a.txt").write_bytes(ENCODED[kind])
    assert read_lines(tmp_path / "a.txt") == ["猫", "黑狗"]
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == (kind == "GB18030") and ("read as GB18030 (line 1: 猫)" in stderr) == (
        kind == "GB18030"
    )


def test_what_ends_no_line(tmp_path):
    (tmp_path / "a.txt").write_text("a\u2028b\n\nc\u0085d\x0ce\n", encoding="utf-8")
    assert read_lines(tmp_path / "a.txt") == ["a\u2028b", "", "c\u0085d\x0ce"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf\n \r\n", "is empty"),
        (b"cat\0dog\n", "must be a text file, got NUL bytes"),
        (b"\xff\xfea\0\n\0\0\0", "line 2: must be text, got a NUL byte"),
        ("cat\n猫狗马牛羊".encode()[:-1], "line 2: must be UTF-8 text"),  # cut within a letter: not read as GB18030
        ("Käfer\nHündin\n".encode("latin-1"), "line 1: must be UTF-8 text"),
        ("naïve\ncafé\n".encode("latin-1"), "line 1: must be UTF-8 text"),
        ("こんにちは\nねこ\n".encode("shift-jis"), "line 1: must be UTF-8 text"),
        (bytes(range(1, 256)), "must be UTF-8 text"),
        (b"\xff\xfea\0\x00\xd8", "line 1: must be UTF-8 text"),
    ],
)
def test_what_is_no_text(tmp_path, data, message):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError, match=message) as refusal:
        read_text(tmp_path / "a.txt")
    assert "\n" not in printable(str(refusal.value))


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, message in (
        ("fifo", "must be a regular file, got a FIFO"),
        (".", "got a folder"),
        ("no", "No such file"),
    ):
        with pytest.raises(DataError, match=f"can't read .*{message}"):
            read_text(tmp_path / name)
    for name in ("x" * 300, "a\0b", "\ud800"):
        assert not is_file(name)
        with pytest.raises(CheckpointError, match="can't read"):
            read_text(name, CheckpointError)
    with open(tmp_path / "vast", "wb") as f:
        f.write(b"a\n")
        f.truncate(MOST_BYTES + 1)
    with pytest.raises(DataError, match=r"vast must be a text file"):
        read_text(tmp_path / "vast")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n "b" 2}', "is not valid JSON, line 2"),
        ('{"a": 1, "a": 2}', "key 'a' appears more than once"),
        ("[NaN]", "NaN is not a number in JSON"),
        ("[-Infinity]", "-Infinity is not a number"),
        ("[1e999]", "exceeds the range of numbers"),
        ("[" + "9" * 5000 + "]", "is beyond 64 bits"),
        ("[" * 100_000, "nested too deeply"),
        ('["\\ud800"]', "half of a surrogate pair"),
    ],
)
def test_json_that_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=rf"a\.json.*{message}"):
        read_json(tmp_path / "a.json")
    with pytest.raises(CheckpointError, match=f"header.*{message}"):
        parse_json(text, "header", CheckpointError)


def test_json_that_is_read(tmp_path):
    values = {"猫": [1, -2.5, 1e100, "\U0001f63a", None, True, 2**62], "": {}}
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(values).encode())
    assert read_json(tmp_path / "a.json") == values


def test_records_keep_the_numbers_of_their_lines(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'path,label\r\n"a\r\nb, c",1\r\n\r\n,\r\nd,2\r\n')
    assert read_records(tmp_path / "a.csv") == [(1, ["path", "label"]), (2, ["a\nb, c", "1"]), (6, ["d", "2"])]
    assert read_table(tmp_path / "a.csv")[1][1] == (6, {"path": "d", "label": "2"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n", "line 3: must have 2 fields .a, b., got 1"),
        ("a,b\n1,2\n3,4,5\n", "line 3: must have 2 fields .a, b., got 3"),
        ("a,a\n1,2\n", "line 1: column 'a' must be unique, got it 2 times"),
        ('a,b\n1,"2\n3,4\n', "line 2: is not valid CSV"),
        (f"a,b\n1,{'x' * 200_000}\n", "line 2: is not valid CSV"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "a.csv")
    if "column" not in message:
        broken = []
        columns, rows = read_table(tmp_path / "a.csv", on_broken=broken.append)
        assert columns == ["a", "b"] and len(broken) == 1 and len(rows) == text.startswith("a,b\n1,2")


def test_padding_of_a_table_program_is_no_field(tmp_path):
    (tmp_path / "a.tsv").write_text("a\tb\n1\t2\t\t\n")
    assert read_table(tmp_path / "a.tsv", "\t") == (["a", "b"], [(2, {"a": "1", "b": "2"})])
