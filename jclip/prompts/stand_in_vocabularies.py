"""Vocabularies for weights that are random: as large as the real ones, of single letters, so that any text has tokens.

They stand where a trial needs a text tower's vocabulary and none was fetched. What a text means is lost in them.
"""

from __future__ import annotations

import json

from jclip.prompts.vocabularies import VocabularyFile

_LETTERS = "".join(map(chr, range(0x21, 0x7F)))
_COMMON = "".join(map(chr, (*range(0x4E00, 0x9FA6), *range(0x3041, 0x30FF), *range(0xC0, 0x180), *range(0x391, 0x450))))


def letters_of_sentence_pieces(size: int, start: bool = False) -> VocabularyFile:
    """A tokenizer.json of `size` pieces; with `start` `<s>` stands before each text, as XLM-V has it, and `</s>` after."""
    special = ["<s>", "<pad>", "</s>", "<unk>"] if start else ["<pad>", "</s>", "<unk>"]
    pieces = _filled([*special, "▁", *_LETTERS, *_COMMON], "<unused{}>", size)
    around = ["<s>"] * start, ["</s>"]
    single = [{"SpecialToken": {"id": name, "type_id": 0}} for name in around[0]]
    single += [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    tokens = {name: {"id": name, "ids": [special.index(name)], "tokens": [name]} for name in (*around[0], *around[1])}
    spec = {
        "version": "1.0", "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False},
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens},
        "model": {
            "type": "Unigram", "unk_id": special.index("<unk>"),
            "vocab": [[piece, -float(i)] for i, piece in enumerate(pieces)],
        },
    }  # fmt: skip
    settings = {} if start else {"clean": "siglip", "pad_token": "</s>"}
    return VocabularyFile("tokenizer.json", json.dumps(spec, ensure_ascii=False).encode(), settings)


def letters_of_word_pieces(size: int) -> VocabularyFile:
    """A vocab.txt of `size` pieces, BERT's special ones first; each Chinese character is a word."""
    inside = [f"##{letter}" for letter in _LETTERS]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_LETTERS, *inside, *_COMMON]
    return VocabularyFile("wordpiece", "\n".join(_filled(pieces, "[unused{}]", size)).encode(), {})


def _filled(pieces: list[str], name: str, size: int) -> list[str]:
    return (pieces + [name.format(i) for i in range(size - len(pieces))])[:size]
