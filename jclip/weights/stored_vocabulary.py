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
        return vocabulary.open(text)
    if text.kind != "clip" or text.end is not None:
        whose = TEXT_NAMES[text.kind] if text.kind != "clip" else f"a vocabulary of {text.vocab_size:,}"
        raise ConfigError(f"weights of {whose} must come with their vocabulary, got none")
    return tokenizer_for(text)


def check_clip_words(text: AnyText | None, vocabulary: VocabularyFile | None, what: str) -> None:
    """Raise `ConfigError` unless texts are CLIP's: its tower, and its own vocabulary.

    what: what needs it, with a verb, such as "recipe coop learns vectors between CLIP's own token embeddings".
    """
    if text is None or (text.kind == "clip" and vocabulary is None and text.causal):
        return
    got = (
        TEXT_NAMES[text.kind]
        if text.kind != "clip"
        else f"another vocabulary ({vocabulary.kind})"
        if vocabulary
        else ("one whose tokens see those after them too")
    )
    raise ConfigError(f"{what}: it takes models with CLIP's text tower and vocabulary, got {got}")
