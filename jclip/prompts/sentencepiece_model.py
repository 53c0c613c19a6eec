"""SentencePiece's model files (spiece.model, sentencepiece.bpe.model, tokenizer.model) to the JSON of a tokenizer.

The rules are those by which transformers makes its fast tokenizers of such files; SentencePiece itself is not needed.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jclip.errors import CheckpointError
from jclip.prompts.character_table import CharacterTable
from jclip.readers.protobuf import fields

MOST_PIECES = 1 << 21
LONGEST_PIECE = 1 << 10  # characters
SPACE = "▁"  # stands for a space within pieces
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
UNIGRAM, BPE = 1, 2
_OTHER_MODELS = {3: "words", 4: "characters"}
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of the model
_MODEL_TYPE, _BYTE_FALLBACK, _UNK_ID = 3, 35, 40  # of its trainer's settings
_CHARSMAP = 2  # of its normalizer's settings
FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")  # stand in the place of the model's first three pieces
_MASK = "<mask>"


@dataclass(frozen=True)
class SentencePieces:
    """A model's pieces with their scores and types, and how text is brought to them."""

    pieces: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    model: int  # UNIGRAM or BPE
    unknown: int  # id
    byte_fallback: bool
    charsmap: bytes  # replacements of characters, compiled; empty: none


def read_sentence_pieces(data: bytes, place: object) -> SentencePieces:
    """The contents of a SentencePiece model. Raises `CheckpointError` for a damaged file, and for a model of words."""
    rows, trainer, normalizer = [], {}, {}
    for number, value in fields(memoryview(data), place):
        if number == _PIECES:
            rows.append(_piece(_message(value, place), place))
        elif number == _TRAINER:
            trainer |= dict(fields(_message(value, place), place))
        elif number == _NORMALIZER:
            normalizer |= dict(fields(_message(value, place), place))
        if len(rows) > MOST_PIECES:
            raise CheckpointError(f"{place} must hold at most {MOST_PIECES:,} pieces, got more")
    if not rows or len({piece for piece, _, _ in rows}) < len(rows):
        raise CheckpointError(f"{place} must be a SentencePiece model with pieces that differ, got {len(rows)}")
    model = trainer.get(_MODEL_TYPE, UNIGRAM)
    if model not in (UNIGRAM, BPE):
        got = _OTHER_MODELS.get(model, "another kind")
        raise CheckpointError(f"{place} must be a unigram or byte-pair model of SentencePiece, got one of {got}")
    unknown, charsmap = trainer.get(_UNK_ID, 0), normalizer.get(_CHARSMAP, b"")
    if not isinstance(unknown, int) or unknown >= len(rows):
        raise CheckpointError(f"{place} is damaged: its unknown piece must be one of {len(rows):,}, got {unknown!r}")
    charsmap = bytes(_message(charsmap, place)) if charsmap else b""
    if charsmap:
        CharacterTable(charsmap, place)
    pieces, scores, types = zip(*rows, strict=True)
    return SentencePieces(pieces, scores, types, model, unknown, bool(trainer.get(_BYTE_FALLBACK)), charsmap)


def _message(value: int | float | memoryview, place: object) -> memoryview:
    if not isinstance(value, (memoryview, bytes)):
        raise CheckpointError(f"{place} must be a SentencePiece model, got another protocol buffer")
    return value


def _piece(message: memoryview, place: object) -> tuple[str, float, int]:
    found = dict(fields(message, place))
    text, score, kind = found.get(1, b""), found.get(2, 0.0), found.get(3, NORMAL)
    if not isinstance(score, float) or not math.isfinite(score) or not isinstance(kind, int):
        raise CheckpointError(f"{place} is damaged: a piece must have a finite score, got {score!r}")
    try:
        piece = bytes(_message(text, place)).decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{place} is damaged: a piece is not UTF-8") from None
    if not 0 < len(piece) <= LONGEST_PIECE:
        raise CheckpointError(
            f"{place} is damaged: a piece must have 1 to {LONGEST_PIECE:,} characters, got {len(piece):,}"
        )
    return piece, score, kind


def tokenizer_of(found: SentencePieces, fairseq: bool = False) -> dict[str, Any]:
    """What tokenizer.json holds, for a model.

    Unigram: T5's rules, `</s>` after each text; fairseq: XLM-R's, with its four tokens first, `<mask>` last, and `<s>`
    before each text as well. Byte pairs: Gemma's rules, `<eos>` after each text.
    """
    if found.model == BPE:
        return _byte_pairs(found)
    pieces = list(zip(found.pieces, found.scores, strict=True))
    special = {piece for piece, kind in zip(found.pieces, found.types, strict=True) if kind in (CONTROL, UNKNOWN)}
    unknown = found.unknown
    if fairseq:
        pieces = [*((name, 0.0) for name in FAIRSEQ), *pieces[3:], (_MASK, 0.0)]
        special |= {*FAIRSEQ, _MASK}
        unknown = FAIRSEQ.index("<unk>")
    ids = {piece: number for number, (piece, _) in enumerate(pieces)}
    spaces = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    encoded = base64.b64encode(found.charsmap).decode()
    return {
        "version": "1.0",
        "added_tokens": _added(found, ids, special),
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": encoded} if encoded else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, spaces]},
        "post_processor": _template(ids, ["<s>"] if fairseq else [], ["</s>"]),
        "model": {"type": "Unigram", "unk_id": unknown, "vocab": pieces, "byte_fallback": found.byte_fallback},
    }


def _byte_pairs(found: SentencePieces) -> dict[str, Any]:
    ids = {piece: number for number, piece in enumerate(found.pieces)}
    special = {piece for piece, kind in zip(found.pieces, found.types, strict=True) if kind in (CONTROL, UNKNOWN)}
    return {
        "version": "1.0",
        "added_tokens": _added(found, ids, special),
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
        },
        "post_processor": _template(ids, [], ["<eos>" if "<eos>" in ids else "</s>"]),
        "model": {
            "type": "BPE", "vocab": ids, "merges": _merges(found), "unk_token": found.pieces[found.unknown],
            "fuse_unk": True, "byte_fallback": found.byte_fallback,
        },
    }  # fmt: skip


def _merges(found: SentencePieces) -> list[list[str]]:
    """Pairs of pieces that make a piece, by that piece's score, the highest first, then by the left one's length."""
    rank = {
        piece: (-score, number)
        for number, (piece, score, kind) in enumerate(zip(found.pieces, found.scores, found.types, strict=True))
        if kind == NORMAL
    }
    pairs = [
        (rank[piece], at, piece)
        for piece in rank
        for at in range(1, len(piece))
        if piece[:at] in rank and piece[at:] in rank
    ]
    return [[piece[:at], piece[at:]] for _, at, piece in sorted(pairs)]


def _added(found: SentencePieces, ids: Mapping[str, int], special: set[str]) -> list[dict[str, Any]]:
    user = {piece for piece, kind in zip(found.pieces, found.types, strict=True) if kind == USER_DEFINED}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    named = sorted((ids[piece], piece) for piece in (special | user) if piece in ids)
    return [{"id": number, "content": piece, **flags, "special": piece in special} for number, piece in named]


def _template(ids: Mapping[str, int], before: Sequence[str], after: Sequence[str]) -> dict[str, Any]:
    """The tokens of `before` and `after` that the vocabulary has, around each text."""
    before, after = [name for name in before if name in ids], [name for name in after if name in ids]
    text = [{"Sequence": {"id": "A", "type_id": 0}}]
    single = [*_specials(before), *text, *_specials(after)]
    named = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in (*before, *after)}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": named}


def _specials(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    return ({"SpecialToken": {"id": name, "type_id": 0}} for name in names)
