"""Configs from strangers: built, or refused in one line, in bounded work. `config_mutants` tries more of them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import typing
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import finetune
from jclip.cli import main
from jclip.config import apply_overrides, load_groups, load_values, to_values
from jclip.errors import ConfigError, JclipError
from jclip.readers.strict_yaml import MOST_BYTES, MOST_DEPTH, MOST_VALUES
from jclip.train.configs import build_config
from tests.conftest import ROOT, SHARED
from tests.hostile.config_mutants import end_of, mutants

NINE = "".join(f", &{letter} [{', '.join([f'*{before}'] * 9)}]" for before, letter in pairwise("abcdefghi"))
LAUGHS = f"[&a [l, l]{NINE}]"  # 9 ** 8 values
REFUSED = {  # what is in a file → what is said of it
    f"seed: {LAUGHS}": "line 1: anchors and aliases (&a, *a) are not allowed in settings: write the value out",
    "a: &x 1": "line 1: anchors and aliases",
    "a: 1\nb: &x {<<: *x}": "line 2: anchors and aliases",
    "seed: !!int abc": "line 1: the tag 'tag:yaml.org,2002:int' is not allowed in settings: write the value plainly",
    "seed: !!timestamp 2001-99-99": "line 1: the tag 'tag:yaml.org,2002:timestamp' is not allowed",
    "a: !!python/object/apply:os.system [true]": "the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
    "a: !x y": "the tag '!x' is not allowed",
    f"seed: {'9' * 5000}": "line 1: an integer must have at most 18 digits, got 5,000",
    f"a: {'[' * 5000}": f"line 1: groups and lists must stand at most {MOST_DEPTH} deep inside each other",
    f"{'{a: ' * 3000}": f"must stand at most {MOST_DEPTH} deep",
    f"a: [{'1, ' * MOST_VALUES}]": f"settings must have at most {MOST_VALUES:,} values",
    "a: " + "x" * MOST_BYTES: f"is too long: settings must have at most {MOST_BYTES:,} bytes",
    "? [a, b]\n: 1": "line 1: a key must be a word, got a list or a group",
    '"\\e[31mseed\\n": 1': r"line 1: a key must be printable text of at most 255 letters, got '\x1b[31mseed\n'",
    f"{'k' * 1000}: 1": "a key must be printable text of at most 255 letters",
    'a: "x\\0y"': "line 1: text must not hold NUL",
    'a: "\\ud800"': "line 1: text must not hold half a character",
    "a: \x1b[31m": "special characters are not allowed",
    "a: 1\n'a': 2": "key 'a' stands on line 1 and again on line 2",
    "{a: 1, a: 2}": "key 'a' stands on line 1 and again on line 1",
    "1: a\n'1': b": "key '1' stands on line 1 and again on line 2",
    "a: 1\n---\na: 2": "expected a single document",
    "%YAML 9.9\n---\na: 1": "found incompatible YAML document",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_a_file_is_refused_in_one_line(text, tmp_path):
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    for read in (load_values, load_groups):
        with pytest.raises(ConfigError) as error:
            read(tmp_path / "mine.yaml")
        assert REFUSED[text] in str(error.value) and str(tmp_path / "mine.yaml") in str(error.value)
        assert str(error.value).isprintable() and len(str(error.value)) < 700


@pytest.mark.parametrize("name", sorted(p.name for p in (SHARED / "hostile").glob("*.yaml")) or ["none"])
def test_recorded_configs_are_refused(name, shared, capsys):
    if not (shared / "hostile" / name).is_file():
        pytest.skip("there are no recorded configs")
    assert main(["train", str(shared / "hostile" / name)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_no_file_of_text_is_refused(tmp_path, capsys):
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "utf16.yaml").write_bytes("seed: 1".encode("utf-16"))
    (tmp_path / "bom.yaml").write_bytes("seed: 1".encode("utf-8-sig"))
    said = {
        "fifo.yaml": "must be a regular file, got a FIFO, socket or device",
        "folder.yaml": "must be a regular file, got a folder",
        "loop.yaml": "Too many levels of symbolic links",
        "utf16.yaml": "is not UTF-8 text: save it as UTF-8",
    }
    for name, message in said.items():
        with pytest.raises(ConfigError, match=message):
            load_values(tmp_path / name)
        assert main(["train", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
    assert load_values(tmp_path / "bom.yaml") == {"seed": 1}
    with pytest.raises(ConfigError, match="must be a regular file"):
        load_values(Path("/dev/zero"))


SETTINGS = {
    f"seed={LAUGHS}": "is not a valid value (is not valid YAML: line 1: anchors and aliases",
    "seed=!!int 3": "is not a valid value (is not valid YAML: line 1: the tag",
    f"seed={'9' * 5000}": "must have at most 18 digits",
    f"a={'[' * 5000}": "is not a valid value",
    "." * 10**6 + "=1": "is not a setting: write key=value, such as data.shots=4",
    ".".join("abcdefghij") + "=1": "is not a setting",
    "a..b=1": "is not a setting",
    ".a=1": "is not a setting",
    "a\x1b=1": "is not a setting",
    f"models.{'9' * 5000}.weight=1": "is none of the list's 1 entries",
    "models.٩.weight=1": "is none of the list's 1 entries",
    "models.-1.weight=1": "is none of the list's 1 entries",
    "models.0.weight.x=1": "weight is a single value and has no x inside",
    f"a={'x' * (MOST_BYTES + 1)}": "is too long",
    "data.features=asset:../../x": "'asset:../../x' must name a file that ships with jclip",
    "data.features=asset:/etc/passwd": "'asset:/etc/passwd' must name a file that ships with jclip",
}


@pytest.mark.parametrize("override", SETTINGS, ids=range(len(SETTINGS)))
def test_a_setting_is_refused_in_one_line(override):
    with pytest.raises(ConfigError) as error:
        apply_overrides({"models": [{"weight": 1}]}, [override])
    assert SETTINGS[override] in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 2300


@pytest.mark.parametrize(
    "override, value",
    [
        ("a==1+1", "=1+1"),
        ("a=b=c", "b=c"),
        ("a=", ""),
        ("a=[1, {b: 2}]", [1, {"b": 2}]),
        ("a=/photos/\udcb2\udcd4", "/photos/\udcb2\udcd4"),  # a path whose bytes are no UTF-8
        ("a=图 💥", "图 💥"),
    ],
)
def test_settings_that_are_fine(override, value):
    assert apply_overrides({}, [override]) == {"a": value}


def test_paths_that_lead_nowhere_are_kept(tmp_path, monkeypatch):
    """They are refused by who opens them, not by who reads the config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    for path in ("~nosuchuser/x", "loop/x", "x" * 5000, "\udcb2"):
        assert apply_overrides({}, [f"data.root={path}", f"model={path}", f"classes={path}"])["data"]["root"].endswith(
            path
        )


def test_mutants_end_in_a_config_or_a_line(tmp_path):
    ends = [end_of(mutant, tmp_path) for mutant in mutants(seed=0, count=300)]
    assert {*ends} == {"built", "refused"} and ends.count("built") > 20


def leaves(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, type) of each setting of a recipe."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from leaves(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hints[field.name]


@pytest.mark.parametrize("recipe", finetune.names())
def test_absurd_values_of_every_setting(recipe):
    """Numbers that memory or time would follow are refused, whatever the setting; other values build or are refused."""
    module = finetune.load(recipe)
    smoke = to_values(build_config(load_values(ROOT / "configs" / recipe / "smoke.yaml"), "smoke")[1])
    for dotted, hint in leaves(module.Config):
        *above, last = dotted.split(".")
        numbers = {int, float} & {hint, *typing.get_args(hint)}
        for value in (10**18, 1e300, -(10**9), 10**9, {}, [], [[]], None, True, "", "x" * 10_000, "a\x1b\nb"):
            values = copy.deepcopy(smoke)
            group = functools.reduce(dict.__getitem__, above, values)
            group[last] = value
            try:
                build_config({"recipe": recipe, **values}, "mine.yaml")
                assert value != 1e300 and (value != 10**18 or float in numbers), dotted
                assert value != 10**9 or last == "seed" or int not in numbers, dotted
            except JclipError as e:
                assert str(e).isprintable() and len(str(e)) < 2300, dotted
