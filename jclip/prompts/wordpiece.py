"""BERT's WordPiece from a bare vocab.txt: one piece a line, its id the line's number from 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jclip.errors import CheckpointError, quoted

LONGEST_WORD = 100  # characters; longer ones are unknown
CONTINUED = "##"  # begins a piece that continues a word
NAMES = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
_MASK = "[MASK]"


def tokenizer_of_vocabulary(data: bytes, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What tokenizer.json holds, for the bytes of vocab.txt.

    settings: `do_lower_case` (True), `tokenize_chinese_chars` (True: each Chinese character is a word), `strip_accents`
    (None: where lower-cased), and the names of `NAMES`. Raises `CheckpointError` for a file that is no such vocabulary.
    """
    lines = _lines_of(data)
    ids = _ids_of(lines)
    names = {key: settings.get(key) or default for key, default in NAMES.items()}
    missing = [name for name in names.values() if name not in ids]
    if missing:
        raise CheckpointError(
            f"vocab.txt must be a vocabulary of BERT's kind, with {', '.join(names.values())} among its "
            f"{len(lines):,} lines: it lacks {quoted(missing[0])}"
        )
    special = sorted({ids[name] for name in (*names.values(), _MASK) if name in ids})
    return {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": lines[number], "special": True} for number in special],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True,
            "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
            "strip_accents": settings.get("strip_accents"), "lowercase": settings.get("do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing",
            "cls": [names["cls_token"], ids[names["cls_token"]]], "sep": [names["sep_token"], ids[names["sep_token"]]],
        },
        "model": {
            "type": "WordPiece", "unk_token": names["unk_token"], "continuing_subword_prefix": CONTINUED,
            "max_input_chars_per_word": LONGEST_WORD, "vocab": ids,
        },
    }  # fmt: skip


def _lines_of(data: bytes) -> list[str]:
    """The lines of vocab.txt. Raises `CheckpointError` for what is no text."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise CheckpointError(f"vocab.txt, line {line}: must be UTF-8 text, got other bytes") from None
    if "\0" in text:
        raise CheckpointError("vocab.txt must be text, got a NUL byte")
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")


def _ids_of(lines: list[str]) -> dict[str, int]:
    """piece → id. Raises `CheckpointError` for a piece that stands twice."""
    ids: dict[str, int] = {}
    for number, piece in enumerate(lines):
        if (first := ids.setdefault(piece, number)) != number:
            raise CheckpointError(
                f"vocab.txt must name each piece once, got {quoted(piece, 60)} on lines {first + 1} and {number + 1}"
            )
    return ids
