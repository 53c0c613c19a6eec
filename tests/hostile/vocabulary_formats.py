"""Sound vocabularies to make mutants of: SentencePiece's models, WordPiece's lines, the JSON of tokenizers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jclip.prompts.vocabularies import tokenizer_files
from tests.hostile.fuzz import Format
from tests.hostile.readers_formats import other_values

MODELS = Path(__file__).parent.parent / "golden" / "sentencepiece"
TEXTS = ["", "a photo of a cat", "两只猫 ﬁ½ ｶﾞ e\u0301", "</s> [SEP] <eos>", "\U0001f468\u200d\U0001f469 x" * 9]
LENGTH = 24
WORDPIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "photo",
    "of",
    "cat",
    "##s",
    "两",
    "只",
    "猫",
    "##a",
    "c",
]


@dataclass
class Tower:
    """The text tower whose embedding the sound files fit."""

    vocab_size: int
    context_length: int = LENGTH


def tokenized(path: Path) -> dict[str, np.ndarray]:
    """What a vocabulary makes of a few texts."""
    file = tokenizer_files(path.parent)
    size = 15 if path.name == "vocab.txt" else 600
    ours = file.open(Tower(size if path.suffix != ".model" else len(json.loads(file.data)["model"]["vocab"])))
    rows = ours(TEXTS, LENGTH, truncate=True)
    ids = [ours.pad, ours.vocab_size, *(-1 if i is None else i for i in (ours.start, ours.end))]
    return {"rows": rows, "ends": ours.ends(rows), "ids": np.array(ids), "kind": np.array(ours.kind)}


def models() -> list[bytes]:
    """Unigrams with a table of characters, and byte pairs."""
    return [(MODELS / f"{name}.model").read_bytes() for name in ("unigram", "byte_pairs")]


def wordpieces() -> list[bytes]:
    """Lines that end in LF, and in CRLF."""
    return ["".join(piece + end for piece in WORDPIECES).encode() for end in ("\n", "\r\n")]


def descriptions() -> list[bytes]:
    """A short one of each model that the package knows."""
    special = [{"id": n, "content": name, "special": True} for n, name in enumerate(["<pad>", "</s>", "<unk>"])]
    pieces = ["<pad>", "</s>", "<unk>", "▁", "a", "▁a", "ca", "t", "cat", "▁cat", "c", "两", "只"]
    pieces += [f"x{n}" for n in range(600 - len(pieces))]
    after = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}},
             {"SpecialToken": {"id": "</s>", "type_id": 0}}], "pair": [],
             "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}}  # fmt: skip
    ids = {piece: number for number, piece in enumerate(pieces)}
    steps = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    rest = {"added_tokens": special, "normalizer": steps, "pre_tokenizer": spaces, "post_processor": after}
    unigram = {
        "type": "Unigram",
        "unk_id": 2,
        "vocab": [[p, -n / 8] for n, p in enumerate(pieces)],
        "byte_fallback": False,
    }
    pairs = {"type": "BPE", "vocab": ids, "merges": [["▁", "a"], ["ca", "t"], "▁ cat"], "unk_token": "<unk>"}
    words = {"type": "WordPiece", "vocab": ids, "unk_token": "<unk>", "continuing_subword_prefix": "##",
             "max_input_chars_per_word": 100}  # fmt: skip
    models = (unigram, pairs, words)
    return [json.dumps({"version": "1.0", **rest, "model": model}, ensure_ascii=False).encode() for model in models]


def _revalued(rng: random.Random, data: bytes, mutate: Callable[[bytes], bytes]) -> bytes:
    """Other values, but in the vocabulary, in what is JSON still; or any mutation."""
    if rng.random() < 0.2:
        return mutate(data)
    values = json.loads(data)
    vocab, values["model"]["vocab"] = values["model"]["vocab"], "VOCAB"
    text = json.dumps(values, ensure_ascii=False).encode()
    if rng.random() < 0.6:
        text = _other_step(rng, text)
    if rng.random() < 0.5:
        text = other_values(rng, text)
    if rng.random() < 0.3:
        return text.replace(b'"VOCAB"', rng.choice(VOCABULARIES))
    return text.replace(b'"VOCAB"', json.dumps(vocab, ensure_ascii=False).encode())


def _other_step(rng: random.Random, data: bytes) -> bytes:
    """One of the package's own steps in place of another."""
    values = json.loads(data)
    values[rng.choice(("normalizer", "pre_tokenizer", "post_processor", "padding", "truncation"))] = rng.choice(STEPS)
    return json.dumps(values, ensure_ascii=False).encode()


def _step(kind: str, **options: object) -> dict[str, object]:
    return {"type": kind, **options}


STEPS = [
    None, _step("StripAccents"), _step("NFD"), _step("Nmt"), _step("BertPreTokenizer"), _step("Whitespace"),
    _step("UnicodeScripts"),
    _step("BertNormalizer", clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True),
    _step("Strip", strip_left=True, strip_right=True), _step("Prepend", prepend="▁"),
    _step("Precompiled", precompiled_charsmap="AAAA"), _step("Precompiled", precompiled_charsmap=None),
    _step("Precompiled", precompiled_charsmap="AAQAAA" + "A" * 1362),
    _step("Replace", pattern={"Regex": "(a|a)*b"}, content="\uffff"), _step("Replace", pattern={"Regex": "("}, content=""),
    _step("Replace", pattern={"String": ""}, content="x"), _step("Sequence", normalizers=[{"type": "NFKC"}, 3]),
    _step("ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True), _step("Sequence", processors=[]),
    _step("Split", pattern={"String": " "}, behavior="MergedWithPrevious", invert=False),
    _step("Punctuation", behavior="Isolated"), _step("Digits", individual_digits=True),
    _step("BertProcessing", sep=["</s>", 1], cls=["<pad>", 0]),
    _step("RobertaProcessing", sep=["</s>", -1], cls=3, trim_offsets=True, add_prefix_space=True),
    {"pad_id": 1 << 40}, {"pad_id": 5, "direction": "Left"}, _step("FixedLength", length=0),
]  # fmt: skip
VOCABULARIES = [
    b"{}",
    b"[]",
    b'{"a": 599}',
    b'{"a": 4294967295}',
    b'{"a": 1, "b": 1}',
    b'[["a", null]]',
    b'[["a", "b"]]',
    b'[["", 0.0]]',
    b'[["a", 0.0], ["a", 1.0]]',
    b'[["a", 1e308], ["b", -1e308]]',
    b'{"": 0}',
    b'{"\uffff": 1, "\uffff</s>": 2}',
    b"null",
]
PROTOBUF = [
    b"\x0a", b"\x15", b"\x18\x03", b"\x18\x04", b"\x12\x02\x18\x02", b"\x80" * 9, b"\xff\xff\xff\xff\x0f",
    b"\x00\x00\xc0\x7f", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"</s>", b"\x1a\x04\x12\x02ab", b"\xe2\x96\x81",
]  # fmt: skip
LINES = [
    b"\n", b"\r", b"[UNK]\n", b"[SEP]\n", b"##", b"\xff", b"\0", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"[PAD]\n[PAD]\n",
]  # fmt: skip
WORDS = [
    b'"type":', b'"BPE"', b'"Unigram"', b'"WordPiece"', b'"WordLevel"', b'"Precompiled"', b'"precompiled_charsmap":',
    b'"Sequence"', b'"normalizers":', b'"ByteLevel"', b'"Replace"', b'{"Regex": "(a*)*b"}', b'"unk_id":', b'"special":',
    b'"id":', b"null", b"-1", b"1e999", b"NaN", b"4294967296", b"18446744073709551616", b"[]", b"{}", b'"\\ud800"', b'"</w>"',
    b'"a b"', b'["a"]', b"true", b'""', b'"vocab":', b'"merges":', b'"byte_fallback":true', b'"ignore_merges":true',
    b'"dropout":0.5', b"[" * 300,
]  # fmt: skip

SENTENCEPIECE = Format("spiece.model", models, tokenized, PROTOBUF)
WORDPIECE = Format("vocab.txt", wordpieces, tokenized, LINES)
TOKENIZER_JSON = Format("tokenizer.json", descriptions, tokenized, WORDS, _revalued)
