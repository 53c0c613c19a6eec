"""Byte-pair encoding against OpenAI's own (goldens) and, where cleaning changes nothing, transformers' tokenizer."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import ftfy
import numpy as np
import pytest

from jclip.errors import DataError
from jclip.tokenizer import VOCABULARY, Tokenizer, clean, tokenize, tokenizer
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
