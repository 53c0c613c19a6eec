"""Names and shapes of the parameters of text towers, by kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
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


def bert_from_shapes(shapes: Mapping[str, tuple]) -> BertConfig:
    """Return the configuration of a BERT whose heads are 64 wide, as all published ones are; a text of 52 tokens. Raises
    `KeyError` for what is missing."""
    vocabulary, width = shapes["text.token_embedding.weight"]
    positions = shapes["text.positional_embedding"][0]
    return BertConfig(
        width=width,
        heads=max(width // 64, 1),
        layers=count_of(shapes, r"text\.transformer\.resblocks\.(\d+)\."),
        mlp_width=shapes["text.transformer.resblocks.0.mlp.c_fc.weight"][0],
        context_length=min(52, positions),
        vocab_size=vocabulary,
        positions=positions,
        types=shapes["text.token_type_embedding"][0],
    )


def count_of(shapes: Mapping[str, tuple], pattern: str) -> int:
    """Return how many different numbers the pattern finds at the start of names."""
    return len({m.group(1) for m in (re.match(pattern, k) for k in shapes) if m})


BERT_RANKS = {  # axes of the tensors whose shapes are read above
    "text.token_embedding.weight": 2, "text.positional_embedding": 2, "text.token_type_embedding": 2,
    "text.transformer.resblocks.0.mlp.c_fc.weight": 2, "text.text_projection": 2,
}  # fmt: skip
TEXT_SHAPES: dict[str, Callable[[Any, int], Shapes]] = {"clip": clip_text, "bert": bert_text, "siglip": siglip_text}
