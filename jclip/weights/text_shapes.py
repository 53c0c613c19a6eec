"""Names and shapes of the parameters of text towers, by kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jclip.weights.block_shapes import Shapes, affine, linear, transformer_shapes
from jclip.weights.text_configs import AnyText, BertConfig, SigLIPTextConfig, TextConfig


def text_shapes(config: AnyText, embed: int) -> Shapes:
    """Return names and shapes of all parameters of a text tower, as they stand in a model."""
    return TEXT_SHAPES[config.kind](config, embed)


def clip_text(t: TextConfig, embed: int) -> Shapes:
    """Return those of CLIP's tower, under OpenAI's names, which have no prefix."""
    return {
        "token_embedding.weight": (t.vocab_size, t.width),
        "positional_embedding": (t.context_length, t.width),
        **transformer_shapes("transformer", t),
        **affine("ln_final", t.width),
        "text_projection": (t.width, embed),
    }


def bert_text(t: BertConfig, embed: int) -> Shapes:
    """Return those of a BERT. Its blocks, tables and projection have the names of open_clip's text tower (`text.…`), the
    norm before the blocks that of the image tower's; `token_type_embedding` is BERT's own."""
    shapes = {
        "token_embedding.weight": (t.vocab_size, t.width),
        "positional_embedding": (t.positions, t.width),
        "token_type_embedding": (t.types, t.width),
        **affine("ln_pre", t.width),
        **transformer_shapes("transformer", t),
        "text_projection": (t.width, embed),
    }
    return {f"text.{name}": shape for name, shape in shapes.items()}


def siglip_text(t: SigLIPTextConfig, embed: int) -> Shapes:
    """Return those of SigLIP's, under open_clip's names (`text.…`)."""
    shapes = {
        "token_embedding.weight": (t.vocab_size, t.width),
        "positional_embedding": (t.context_length, t.width),
        **transformer_shapes("transformer", t),
        **affine("ln_final", t.width),
        **(linear("text_projection", t.width, embed) if t.projection else {}),
    }
    return {f"text.{name}": shape for name, shape in shapes.items()}


TEXT_SHAPES: dict[str, Callable[[Any, int], Shapes]] = {"clip": clip_text, "bert": bert_text, "siglip": siglip_text}
