"""One tower of a model alone, loaded without the other: a text query needs no image tower, a gallery no text tower."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from jclip.errors import ConfigError
from jclip.features.source import ModelSource
from jclip.model import clip, streaming
from jclip.weights.checkpoint import Checkpoint
from jclip.weights.parameter_shapes import parameter_shapes

OTHER = {"text": "vision", "vision": "text"}


def half_of(checkpoint: Checkpoint, tower: Literal["text", "vision"]) -> Checkpoint:
    """The checkpoint with that tower alone. Raises `ConfigError` where it holds no such tower."""
    if getattr(checkpoint.config, tower) is None:
        kind = "text" if tower == "text" else "image"
        raise ConfigError(f"{checkpoint.path} must hold a {kind} tower, got the other one alone")
    config = replace(checkpoint.config, **{OTHER[tower]: None})
    return replace(
        checkpoint, config=config, tensors={name: checkpoint.tensors[name] for name in parameter_shapes(config)}
    )


def load_half(source: ModelSource, tower: Literal["text", "vision"]):
    """That tower as a `CLIP`, kept with the source; the whole model where it is loaded already, or is streamed."""
    if "model" in vars(source):
        return source.model
    halves = vars(source).setdefault("_halves", {})
    if tower not in halves:
        checkpoint = half_of(source.checkpoint, tower)
        halves[tower] = source.model if streaming.wanted(checkpoint) else clip.build(checkpoint, source.dtype)
    return halves[tower]
