"""Shapes of the parts that towers of several kinds are made of, under OpenAI's names."""

from __future__ import annotations

from typing import Protocol

Shapes = dict[str, tuple[int, ...]]


class Blocks(Protocol):
    """What of a tower the shapes of its blocks follow from; `layer_scale`, where it has it, adds two vectors to each."""

    @property
    def width(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def mlp_width(self) -> int: ...


def affine(name: str, width: int) -> Shapes:
    """Return weight and bias of a norm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    """Return weight and bias of a linear map."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def transformer_shapes(name: str, config: Blocks) -> Shapes:
    """Return all parameters of a stack of blocks, under OpenAI's names."""
    shapes: Shapes = {}
    width, hidden = config.width, config.mlp_width
    for block in (f"{name}.resblocks.{i}" for i in range(config.layers)):
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= linear(f"{block}.attn.out_proj", width, width) | affine(f"{block}.ln_1", width)
        shapes |= linear(f"{block}.mlp.c_fc", width, hidden) | linear(f"{block}.mlp.c_proj", hidden, width)
        shapes |= affine(f"{block}.ln_2", width)
        if getattr(config, "layer_scale", False):
            shapes |= {f"{block}.ls_{i}.gamma": (width,) for i in (1, 2)}
    return shapes
