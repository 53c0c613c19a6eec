"""Tokenizers of text towers: CLIP's own, and those that come as a file beside the weights.

A `VocabularyFile` holds such a file's bytes and settings; `open_tokenizer` makes the `TextTokenizer` of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jclip.errors import CheckpointError, ConfigError, UnknownName
from jclip.prompts import text_cleaning, tokenizer_json, vocabulary_folder, wordpiece
from jclip.prompts.tokenizer import OPENAI_BPE, TextShape, tokenizer_for
from jclip.readers.schema import FLAG, NOTHING, TEXT, either, obey, one_of

WORDPIECE, TOKENIZER_JSON = "wordpiece", "tokenizer.json"
KINDS = (OPENAI_BPE, WORDPIECE, TOKENIZER_JSON)
_NAME = either(TEXT, NOTHING)
SETTINGS = {
    "clean": one_of(*text_cleaning.CLEANERS), "lower_case": FLAG, "padding_side": one_of("left", "right"),
    "pad_token": _NAME, "start_token": _NAME, "end_token": _NAME,
    "do_lower_case": FLAG, "tokenize_chinese_chars": FLAG, "strip_accents": either(FLAG, NOTHING),
    "cls_token": _NAME, "sep_token": _NAME, "unk_token": _NAME,
}  # fmt: skip


class TextTokenizer(Protocol):
    """Texts to the ids of one vocabulary. A special token that stands in a text is text, never a command."""

    vocab_size: int
    kind: str  # one of KINDS
    digest: str  # SHA-256 of the vocabulary file and its settings; of CLIP's own vocabulary its kind
    pad: int  # id that fills rows
    start: int | None  # id before each text, where there is one
    end: int | None  # id after each text, where there is one

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start, end and padding."""

    def __call__(self, texts: str | Sequence[str], context_length: int, truncate: bool = False) -> np.ndarray:
        """int32 (B, context_length): start, ids, end, padding.

        Raises `DataError` for a text that is too long, unless `truncate` cuts it before its end token.
        """

    def ends(self, ids: np.ndarray) -> np.ndarray:
        """int (B,): where each row's last token that is not padding stands. ids: (B, L) as `__call__` gives them."""


@dataclass(frozen=True)
class VocabularyFile:
    """What a tokenizer is opened from.

    kind: "wordpiece" or "tokenizer.json". data: the bytes of vocab.txt or tokenizer.json. settings: plain values that
    JSON can hold, with the keys of `SETTINGS`: case, cleaning, padding.
    """

    kind: str
    data: bytes
    settings: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)  # the file, for messages

    def open(self, text_config: TextShape) -> TextTokenizer:
        """The tokenizer for a text tower. Raises as `open_tokenizer` does, with the file's name."""
        try:
            return open_tokenizer(self.kind, self.data, text_config, self.settings)
        except CheckpointError as e:
            raise CheckpointError(f"{self.place}: {e}" if self.place else str(e)) from None


def open_tokenizer(
    kind: str, data: bytes, text_config: TextShape, settings: Mapping[str, Any] | None = None
) -> TextTokenizer:
    """The tokenizer of a vocabulary file for a text tower.

    kind: one of `KINDS`; "openai-bpe" is CLIP's own vocabulary and takes no data. settings: as `VocabularyFile` has them.
    Raises `UnknownName` for another kind, `CheckpointError` for a file that is none of its kind or belongs to another
    embedding than the tower's, `SetupError` where the package `tokenizers` is absent.
    """
    if kind == OPENAI_BPE:
        return tokenizer_for(text_config)
    if kind not in KINDS:
        raise UnknownName("kind of tokenizer", kind, KINDS)
    settings = dict(settings or {})
    try:
        obey(settings, SETTINGS, "the tokenizer's settings")
    except ConfigError as e:
        raise CheckpointError(str(e)) from None
    if kind == WORDPIECE:
        spec = wordpiece.tokenizer_of_vocabulary(data, settings)
    else:
        spec = vocabulary_folder.parsed(data, TOKENIZER_JSON)
    digest = tokenizer_json.digest_of([kind.encode(), data], settings)
    return tokenizer_json.JsonTokenizer(spec, settings, text_config.vocab_size, kind, digest)


def tokenizer_files(folder: str | Path) -> VocabularyFile | None:
    """The vocabulary that lies in a folder of weights, None where there is none or it is CLIP's own.

    tokenizer.json wins over vocab.txt, and that over spiece.model, sentencepiece.bpe.model and tokenizer.model, which are
    converted. Case, cleaning and padding are what tokenizer_config.json, open_clip_config.json and config.json say.
    Raises `CheckpointError` for a file that can't be read.
    """
    found = vocabulary_folder.find(Path(folder))
    return None if found is None else VocabularyFile(*found)
