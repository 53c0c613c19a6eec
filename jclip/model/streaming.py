"""Towers whose blocks stay on disk: one block's weights in memory at a time, for models larger than the memory.

Each pass through a tower reads its file once, so large batches pay. For inference only, in float32.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from jclip.errors import ConfigError, notice
from jclip.machine import available
from jclip.model import bert, eva, layers, perception, siglip
from jclip.model.clip import CLIP
from jclip.readers import LazyTensor
from jclip.runtime import jt
from jclip.weights.checkpoint import Checkpoint, load_strict, weight_bytes
from jclip.weights.variants import CLIPConfig

ROOM = 0.8  # of the available memory may be weights
TEXT_BLOCKS = {
    "clip": "transformer.resblocks.",
    "bert": "text.transformer.resblocks.",
    "siglip": "text.transformer.resblocks.",
}
IMAGE_BLOCKS = {
    **dict.fromkeys(("vit", "pe", "mobile"), "visual.transformer.resblocks."),
    **dict.fromkeys(("eva", "siglip"), "visual.trunk.blocks."),
}


class StreamedBlocks:
    """Stands where a tower's blocks stand: `blocks[i]` is always the same module, filled with the i-th block's weights."""

    def __init__(self, block, prefix: str, count: int, tensors: Mapping[str, LazyTensor], place: str):
        self._block, self._prefix, self._count, self._place = block, prefix, count, place
        self._tensors, self._loaded = tensors, -1
        block.eval()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int):
        if i != self._loaded:
            jt.sync_all()  # what reads the weights that are about to be replaced
            start = f"{self._prefix}{i}."
            own = {k.removeprefix(start): t for k, t in self._tensors.items() if k.startswith(start)}
            load_strict(self._block, own, self._place)
            self._loaded = i
        return self._block


def build_streamed(checkpoint: Checkpoint) -> CLIP:
    """The model, in evaluation mode, its blocks on disk. Raises `MisfitError` when keys or shapes don't fit."""
    if _too_large(checkpoint):
        weights, there = weight_bytes(checkpoint) / 2**20, available.there_is(available.memory())
        notice(
            f"{checkpoint.path} has {weights:,.0f} MiB of weights, and {there}: blocks are read from disk at each batch"
        )
    whole = checkpoint.config
    image = whole.vision if whole.vision and whole.vision.kind in IMAGE_BLOCKS else None
    bare = replace(
        whole,
        vision=replace(image, layers=0) if image else whole.vision,
        text=replace(whole.text, layers=0) if whole.text else None,
    )
    model, streamed = CLIP(bare), [IMAGE_BLOCKS[image.kind]] if image else []
    streamed += [TEXT_BLOCKS[whole.text.kind]] if whole.text else []
    model.vocabulary = checkpoint.vocabulary
    kept = {k: t for k, t in checkpoint.tensors.items() if not k.startswith(tuple(streamed))}
    load_strict(model, kept, str(checkpoint.path))
    if whole.text:
        _stream_text(model, whole, checkpoint)
    if image and image.kind in ("vit", "pe", "mobile"):
        block = layers.Block(replace(image, layers=1), whole.activation, getattr(image, "norm_eps", whole.norm_eps))
        if image.kind == "pe":
            perception.turn_blocks([block], image)
        model.visual.transformer.resblocks = _blocks(block, IMAGE_BLOCKS[image.kind], image.layers, checkpoint)
    elif image:
        block = (siglip if image.kind == "siglip" else eva).Block(image)
        model.visual.trunk.blocks = _blocks(block, IMAGE_BLOCKS[image.kind], image.layers, checkpoint)
    model.config, model.streamed = whole, True
    model.eval()
    jt.sync_all()
    return model


def _stream_text(model: CLIP, whole: CLIPConfig, checkpoint: Checkpoint) -> None:
    """Puts blocks on disk in the place of the text tower's."""
    one, prefix = replace(whole.text, layers=1), TEXT_BLOCKS[whole.text.kind]
    if whole.text.kind == "bert":
        blocks = _blocks(bert.PostNormBlock(one), prefix, whole.text.layers, checkpoint)
        model.text.transformer.resblocks = blocks
    elif whole.text.kind == "siglip":
        block = layers.Block(one, one.activation, one.norm_eps)
        model.text.transformer.resblocks = _blocks(block, prefix, whole.text.layers, checkpoint)
    else:
        block = layers.Block(one, whole.activation, whole.norm_eps)
        model.transformer.resblocks = _blocks(block, prefix, whole.text.layers, checkpoint)


def _blocks(block, prefix: str, count: int, checkpoint: Checkpoint) -> StreamedBlocks:
    return StreamedBlocks(block, prefix, count, checkpoint.tensors, str(checkpoint.path))


def wanted(checkpoint: Checkpoint) -> bool:
    """Whether the weights, as float32, take more than this process's memory; JCLIP_STREAM=1 or 0 decides instead.

    Raises `ConfigError` for another value.
    """
    said = os.environ.get("JCLIP_STREAM", "")
    if said not in ("", "0", "1"):
        raise ConfigError(f"JCLIP_STREAM must be 0 or 1, got {said}")
    if said:
        return said == "1"
    return _too_large(checkpoint)


def _too_large(checkpoint: Checkpoint) -> bool:
    return weight_bytes(checkpoint) > ROOM * available.memory()
