"""The vocabulary of a text tower inside a jclip file, so that the file needs no other beside it.

It is the uint8 tensor `tokenizer`, its kind and settings are metadata. Files without one use CLIP's own vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from jclip.errors import CheckpointError, ConfigError
from jclip.prompts.tokenizer import OPENAI_BPE, tokenizer_for
from jclip.prompts.vocabularies import KINDS, TextTokenizer, VocabularyFile
from jclip.readers import LazyTensor, WeightFile
from jclip.readers.schema import LARGEST_DESCRIPTION, parse
from jclip.weights.text_configs import TEXT_NAMES, AnyText

TENSOR, KIND, SETTINGS = "tokenizer", "tokenizer", "tokenizer_settings"  # the tensor, and keys of the metadata
TAKE_VECTORS = ("clip", "bert", "siglip")  # kinds of text towers that read vectors in the place of tokens
LARGEST = 256 << 20  # bytes of a vocabulary


def vocabulary_of(file: WeightFile) -> VocabularyFile | None:
    """Return the vocabulary that a jclip file holds; None where it uses CLIP's own. Raises `CheckpointError` for one
    that is not there, or is no vocabulary."""
    kind, tensor = file.metadata.get(KIND, OPENAI_BPE), file.tensors.get(TENSOR)
    if kind == OPENAI_BPE:
        return None
    if kind not in KINDS:
        raise CheckpointError(f"tokenizer must be one of {', '.join(KINDS)}, got {kind[:60]!r}: update jclip")
    if tensor is None or tensor.dtype != "uint8" or len(tensor.shape) != 1 or tensor.shape[0] > LARGEST:
        found = "nothing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
        raise CheckpointError(
            f"the tensor tokenizer must hold at most {LARGEST:,} bytes of a {kind} vocabulary, got {found}"
        )
    said = file.metadata.get(SETTINGS, "{}")
    if len(said) > LARGEST_DESCRIPTION:
        raise CheckpointError(f"{SETTINGS} must be at most {LARGEST_DESCRIPTION:,} characters long")
    return VocabularyFile(kind, tensor.read().tobytes(), parse(said, SETTINGS))


def weights_alone(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return the tensors of a jclip file but the vocabulary."""
    return {name: tensor for name, tensor in tensors.items() if name != TENSOR}


def stored(vocabulary: VocabularyFile | None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the array and the metadata by which `vocabulary_of` finds it again."""
    if vocabulary is None:
        return {}, {KIND: OPENAI_BPE}
    array = np.frombuffer(vocabulary.data, np.uint8)
    return {TENSOR: array}, {KIND: vocabulary.kind, SETTINGS: json.dumps(dict(vocabulary.settings))}


def tokenizer_of(text: AnyText | None, vocabulary: VocabularyFile | None) -> TextTokenizer:
    """Return the tokenizer of a text tower, opened. Raises `ConfigError` for weights without a text tower, or without the
    vocabulary that it needs, `DataError` for a vocabulary that does not fit it."""
    if text is None:
        raise ConfigError("these weights are an image tower alone: they embed no texts")
    if vocabulary is not None:
        return _ending_as(text, vocabulary.open(text))
    if text.kind != "clip" or text.end is not None:
        whose = TEXT_NAMES[text.kind] if text.kind != "clip" else f"a vocabulary of {text.vocab_size:,}"
        raise ConfigError(f"weights of {whose} must come with their vocabulary, got none")
    return tokenizer_for(text)


def _ending_as(text: AnyText, opened: TextTokenizer) -> TextTokenizer:
    """Return the tokenizer. Raises `ConfigError` where texts would not end with the token that the tower reads them at."""
    end = text.end if text.kind == "clip" else None
    if end is not None and opened.end != end:
        got = "no such token" if opened.end is None else opened.end
        raise ConfigError(f"the tokenizer must end texts with token {end}, where the tower reads them, got {got}")
    return opened


def check_takes_vectors(text: AnyText | None) -> None:
    """Raise `ConfigError` unless vectors can stand between a text tower's token embeddings, where they are learned."""
    if text is None:
        raise ConfigError("learned prompts must be read by a text tower, got an image tower alone")
    if text.kind not in TAKE_VECTORS:
        takes = " or ".join(TEXT_NAMES[kind] for kind in TAKE_VECTORS)
        raise ConfigError(
            f"learned prompts must stand between the token embeddings of {takes}, got {TEXT_NAMES[text.kind]}"
        )
