"""Texts for the text tower: tokenizer, templates, grammar, names of classes. Imports no Jittor."""

from __future__ import annotations

from jclip.postponed import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "class_sets": ("class_set",),
        "spelling": ("alike", "difference", "name_key", "nearest"),
        "templates": ("class_prompts", "load_templates", "prompts_of"),
        "tokenizer": ("Tokenizer", "tokenize", "tokenizer_for"),
        "vocabularies": ("TextTokenizer", "VocabularyFile", "open_tokenizer", "tokenizer_files"),
    },
)
