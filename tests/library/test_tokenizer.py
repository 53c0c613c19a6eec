"""Byte-pair encoding against OpenAI's own (goldens) and, where cleaning changes nothing, transformers' tokenizer."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from itertools import pairwise
from pathlib import Path

import ftfy
import numpy as np
import pytest

from jclip.errors import DataError
from jclip.prompts.tokenizer import MOST_LETTERS, VOCABULARY, Tokenizer, _merge, clean, tokenize, tokenizer
from tests.golden.inputs import HARD_STRINGS, random_strings

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "tokenizer.json").read_text())


def test_vocabulary_is_the_published_file():
    digest = hashlib.sha256(VOCABULARY.read_bytes()).hexdigest()
    assert digest == "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    assert (tokenizer().vocab_size, tokenizer().start, tokenizer().end) == (49408, 49406, 49407)


@pytest.mark.parametrize("row", range(len(HARD_STRINGS)), ids=lambda i: repr(HARD_STRINGS[i])[:30])
def test_hard_strings_equal_openai(row):
    assert tokenizer().encode(HARD_STRINGS[row]) == GOLDEN["hard"][row]


def test_twenty_thousand_random_strings_equal_openai():
    ids = [np.array(tokenizer().encode(text), np.int32) for text in random_strings(20_000)]
    assert sum(map(len, ids)) == GOLDEN["random_count"]
    assert hashlib.sha256(np.concatenate(ids).tobytes()).hexdigest() == GOLDEN["random_sha256"]


def test_twenty_thousand_random_strings_equal_transformers():
    transformers = pytest.importorskip("transformers", reason="the reference is not installed: pip install '.[parity]'")
    with gzip.open(VOCABULARY, "rt", encoding="utf-8") as f:
        lines = f.read().split("\n")[1 : 48894 + 1]
    ours = tokenizer()
    vocab = {symbol: i for i, symbol in enumerate(ours._symbols)}
    reference = transformers.CLIPTokenizer(vocab=vocab, merges=[tuple(line.split()) for line in lines])
    texts = [t for t in random_strings(20_000, seed=7) if ftfy.fix_text(t) == t and "&" not in t]
    assert len(texts) > 15_000
    for text, ids in zip(texts, reference(texts, add_special_tokens=False)["input_ids"], strict=True):
        assert ours.encode(text) == ids, text


def test_shape_of_a_batch():
    tokens = tokenize(["a cat", ""], context_length=7)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [[49406, 320, 2368, 49407, 0, 0, 0], [49406, 49407, 0, 0, 0, 0, 0]]
    assert tokenize("a cat").shape == (1, 77)


def test_too_long_is_an_error_that_names_the_text_unless_cut():
    text = "very " * 90 + "long"
    with pytest.raises(DataError, match=r"93 tokens is too long for context length 77: 'very very"):
        tokenize(["short", text])
    cut = tokenize(text, truncate=True)[0]
    assert cut[0] == 49406 and cut[76] == 49407 and (cut[1:76] == tokenizer().encode("very")[0]).all()
    assert tokenize("very " * 75, truncate=False)[0, 76] == 49407  # fits exactly
    with pytest.raises(DataError, match="no room"):
        tokenize("x", context_length=1)


def test_special_strings_are_text_unless_allowed():
    plain = tokenizer().encode("a <|endoftext|> b")
    assert 49407 not in plain
    assert tokenizer().encode("a <|endoftext|> b", allow_special=True) == [320, 49407, 321]


def test_decoding_gives_the_cleaned_text_back():
    for text in HARD_STRINGS[:-3] + random_strings(500, seed=3):
        words = tokenizer().decode(tokenizer().encode(text)).replace(" ", "")
        assert words == "".join(clean(text).split()), text


def test_plain_ascii_needs_no_repair():
    """The short way around ftfy is taken for printable ASCII without `&` only, which ftfy leaves as it is."""
    for text in random_strings(3000, seed=11):
        if text.isascii() and text.isprintable() and "&" not in text:
            assert ftfy.fix_text(text) == text


def test_a_smaller_vocabulary_keeps_end_of_text_last():
    small = Tokenizer(merges=1500)
    assert small.vocab_size == 512 + 1500 + 2 and small.end == small.vocab_size - 1
    assert small.decode(small.encode("a photo of a red circle")).strip() == "a photo of a red circle"


def merged_by_definition(symbols: list[str], ranks: dict[str, int]) -> list[str]:
    """Byte-pair encoding as the paper has it: look for the best pair, join it everywhere, look again."""
    while pairs := [pair for pair in map(" ".join, pairwise(symbols)) if pair in ranks]:
        best, joined = min(pairs, key=ranks.__getitem__), []
        for symbol in symbols:
            if joined and f"{joined[-1]} {symbol}" == best:
                joined[-1] += f" {symbol}"  # the blank keeps it from being joined once more
            else:
                joined.append(symbol)
        symbols = [symbol.replace(" ", "") for symbol in joined]
    return symbols


def test_merges_are_those_of_the_definition():
    """Of published merges, and of tables in any order, whose later pairs may be more urgent than those they are made of."""
    rng, published = random.Random(5), tokenizer()._ranks
    for number in range(3000):
        word = rng.choices("abc", k=rng.randrange(1, 30))
        parts = ["a", "b", "c", "ab", "bc", "aa", "aab", "abc", "abab", "ca"]
        table = rng.sample([f"{x} {y}" for x in parts for y in parts], rng.randrange(1, 60))
        ranks = {pair: rank for rank, pair in enumerate(table)}
        assert _merge(list(word), ranks) == merged_by_definition(list(word), ranks), (word, table)
        letters = [*rng.choices("etaoinshrdlu", k=number % 40), "s</w>"]
        assert _merge(list(letters), published) == merged_by_definition(letters, published), letters


RANDOM_WORD = "".join(random.Random(3).choices("etaoinshrdlucmfw", k=20_000))


@pytest.mark.parametrize("letters", [RANDOM_WORD, "é", "&amp;", "\u202e", "\U0001f469\u200d", "a\n"], ids=range(6))
def test_long_words_are_encoded(letters):
    """In n log n: a word of so many letters takes minutes by definition."""
    text = letters * (20_000 // len(letters))
    assert len(tokenizer().encode(text)) > 1000
    assert (tokenize(text, truncate=True)[0, :76] == [49406, *tokenizer().encode(text)[:75]]).all()


def test_texts_out_of_bounds():
    with pytest.raises(DataError, match="a text must have at most 100,000 letters, got 3,000,000: 'aaa"):
        tokenize("a" * 3_000_000)
    assert tokenize("very " * MOST_LETTERS, truncate=True)[0, 76] == 49407
    replaced = tokenizer().encode("a photo of a \ufffd")
    assert tokenizer().encode("a photo of a \udcb2") == tokenizer().encode("a photo of a \ud800") == replaced
    assert tokenizer().encode("nul \x00 and \x1b[31m red") == tokenizer().encode("nul and red")
