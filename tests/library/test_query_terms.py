"""The language of queries, its lists, rules that rewrite texts, and scripts that weights never learned."""

from __future__ import annotations

import json

import pytest

from jclip.errors import ConfigError, DataError
from jclip.prompts import scripts
from jclip.prompts.query_rules import load_rules
from jclip.prompts.query_terms import Term, parse_listed, parse_terms, parse_typed, read_queries
from jclip.prompts.templates import load_templates


@pytest.mark.parametrize(
    ("words", "terms"),
    [
        (["two parrots"], [Term("text", "two parrots")]),
        (
            ["2:golden retriever", "+", "./pool.jpg", "-", "fruit"],
            [Term("text", "golden retriever", 2.0), Term("photo", "./pool.jpg"), Term("text", "fruit", -1.0)],
        ),
        (["-", ".5:row:17"], [Term("row", "17", -0.5)]),
        (["@a, b.png", "/x/y.jpg", "../z.jpg"], [Term("photo", p) for p in ("a, b.png", "/x/y.jpg", "../z.jpg")]),
        (["@mean.npy"], [Term("feature", "mean.npy")]),
        (["row:x", "+dog", "-cat", "a - b"], [Term("text", w) for w in ("row:x", "+dog", "-cat", "a - b")]),
        (["3:00 pm"], [Term("text", "00 pm", 3.0)]),  # so a weight of 1 stands in front of a clock
        (["1:3:00 pm"], [Term("text", "3:00 pm")]),
        (["row:007"], [Term("row", "7")]),
    ],
)  # fmt: skip
def test_each_argument_is_a_term(words, terms):
    query = parse_terms(words)
    assert query.name == " ".join(words) and list(query.terms) == terms


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "must have a term"), (["+"], "got it last"), (["a", "-"], "got it last"), (["+", "-", "a"], "two signs"),
        (["0:a"], "weight must be in"), (["9" * 400 + ":a"], "weight must be in"), ([""], "must hold"), (["2:"], "must hold"),
        (["@"], "must hold"), (["   "], "must hold"), (["row:-1"], "a row's number, from 0, got '-1'"),
        (["2:row:+3"], "a row's number"), (["row:" + "9" * 16], "a row's number"),
    ],
)  # fmt: skip
def test_what_is_no_term_is_one_line(words, said):
    with pytest.raises(ConfigError, match=said):
        parse_terms(words)


def test_a_typed_line_is_cut_at_lone_signs_and_a_listed_one_is_not():
    line = "2:golden retriever + ./my pool.jpg - fruit-salad"
    assert parse_typed(line) == parse_terms(["2:golden retriever", "+", "./my pool.jpg", "-", "fruit-salad"])
    assert parse_typed("- fruit").terms == (Term("text", "fruit", -1.0),)
    assert parse_listed("a man - in red + a dog").terms == (Term("text", "a man - in red + a dog"),)


def test_lists_of_queries(tmp_path):
    (tmp_path / "q.txt").write_text("two parrots\n\n@a.png\nred car - fast\n", encoding="utf-8")
    found = read_queries(tmp_path / "q.txt")
    assert [query.name for query in found] == ["two parrots", "@a.png", "red car - fast"]
    assert found[1].terms == (Term("photo", str(tmp_path / "a.png")),)  # beside the list
    (tmp_path / "q.json").write_text(json.dumps(["two parrots", ["a", "-", "/b.png"]]))
    assert read_queries(tmp_path / "q.json")[1].terms == (Term("text", "a"), Term("photo", "/b.png", -1.0))
    for text in ('{"a": 1}', "[1]", '[["a", 2]]'):
        (tmp_path / "q.json").write_text(text)
        with pytest.raises(DataError, match="must hold a list of queries"):
            read_queries(tmp_path / "q.json")
    (tmp_path / "q.json").write_text('["a", ["b", "+"]]')
    with pytest.raises(ConfigError, match=r"q\.json, query 2: .*got it last"):
        read_queries(tmp_path / "q.json")
    (tmp_path / "q.txt").write_text("\n\n")
    with pytest.raises(DataError, match="is empty"):
        read_queries(tmp_path / "q.txt")
    (tmp_path / "q.json").write_text("[]")
    with pytest.raises(DataError, match="got none"):
        read_queries(tmp_path / "q.json")


def test_rules_rewrite_by_kind():
    rules = load_rules("traffic")
    assert rules("A red Sedan runs.") == "A red Sedan runs image taken by traffic surveillance cameras"
    assert rules("A man in black.") == "A man in black" and rules.kind_of("A man") == "other"
    assert rules("This is a white Audi.") == "This is a white Audi image taken by traffic surveillance cameras"
    assert load_rules("photo")("two parrots") == "a photo of two parrots"


def test_an_english_prompt_around_a_chinese_name_is_warned_of(capsys):
    for name, prompt, kind in (("狗", "a photo of a 狗.", "openai-bpe"), ("狗", "一张狗的照片", "wordpiece"),
                               ("dog", "a photo of a dog.", "wordpiece"), ("狗", "狗", "wordpiece")):  # fmt: skip
        scripts.warn_mixed(name, prompt, kind)
        assert not capsys.readouterr().err
    scripts.warn_mixed("狗", "a photo of a 狗.", "wordpiece")
    assert "--templates chinese" in capsys.readouterr().err
    assert all("{}" in t and scripts.script_of(t) == "CJK" for t in load_templates("chinese"))


def test_scripts_that_weights_never_learned_are_warned_of_once(capsys, monkeypatch):
    monkeypatch.setattr(scripts, "_warned", set())
    scripts.warn_unread(["a dog", "Übergröße", "🦜 2024", "café — naïve", ""])
    assert not capsys.readouterr().err
    scripts.warn_unread(["a dog", "两只鹦鹉", "三只狗"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "'两只鹦鹉' is Chinese" in said and "Chinese-CLIP" in said
    scripts.warn_unread(["四只猫"])
    assert not capsys.readouterr().err
    for text, name in (
        ("собака", "Cyrillic"),
        ("كلب", "Arabic"),
        ("いぬ", "Japanese"),
        ("강아지", "Korean"),
        ("σκύλος", "Greek"),
    ):
        scripts.warn_unread([text])
        assert f"is {name}," in capsys.readouterr().err
    scripts.warn_unread(["両方の人", "四只猫"], "wordpiece")
    assert not capsys.readouterr().err
    scripts._warned.clear()
    scripts.warn_unread(["강아지"], "wordpiece")
    assert "is Korean, which these weights never learned (Chinese captions)" in capsys.readouterr().err
    scripts.warn_unread(["四只猫"], scripts.SIGLIP_ENGLISH)
    assert "is Chinese, which these weights never learned (English captions)" in capsys.readouterr().err
    scripts.warn_unread(["ไทย"], "tokenizer.json")
    assert not capsys.readouterr().err
    assert scripts.script_of("a 狗 called Rex") == "LATIN"
