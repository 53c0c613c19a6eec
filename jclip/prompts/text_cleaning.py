"""How texts are cleaned before other tokenizers than CLIP's own, as each family's published code does it."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping

from jclip.prompts.tokenizer import repaired

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SPACE = "▁"  # SentencePiece's


def whitespace(text: str) -> str:
    """open_clip's "whitespace": mojibake repaired, HTML unescaped, white space collapsed."""
    return " ".join(repaired(text).split())


def lower(text: str) -> str:
    """open_clip's "lower": as `whitespace`, and lower case."""
    return whitespace(text).lower()


def canonicalize(text: str) -> str:
    """open_clip's "canonicalize", after SigLIP's authors: repaired; `_` a space, other ASCII punctuation removed; lower."""
    text = repaired(text).strip().replace("_", " ").translate(_NO_PUNCTUATION).lower()
    return " ".join(text.split())


def siglip(text: str) -> str:
    """transformers' rule for SigLIP: lower case, ASCII punctuation removed, white space collapsed; nothing repaired."""
    text = f"{_SPACE}{text.replace(_SPACE, ' ')}".lower().translate(_NO_PUNCTUATION)
    return re.sub(r"\s+", " ", text).strip()


CLEANERS: Mapping[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "whitespace": whitespace,
    "lower": lower,
    "canonicalize": canonicalize,
    "siglip": siglip,
}
