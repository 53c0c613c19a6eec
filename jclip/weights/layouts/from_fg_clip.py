"""FG-CLIP 2's folders (qihoo360/fg-clip2-base and larger): SigLIP 2's towers with three ways to read texts.

Xie et al., 2025, arXiv 2510.10921. "short" texts have 64 positions and SigLIP's head, "box" (of regions) the same positions
and a head of their own, "long" ones 196 positions, of which the first twenty are another table's, and a head of their own.
Each is a SigLIP text tower of its own here. Photos keep their proportions, within a number of patches that grows with them:
see `jclip.data.patch_counts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from functools import partial
from typing import Any

import numpy as np

from jclip.data.patch_counts import FG_CLIP_STEPS
from jclip.data.preprocess import Preprocess
from jclip.errors import CheckpointError
from jclip.readers import LazyTensor
from jclip.readers.schema import NOTHING, TABLE, either, obey, one_of
from jclip.weights.layouts import from_siglip
from jclip.weights.layouts.keymap import Report
from jclip.weights.tower_sizes import CONTEXT
from jclip.weights.variants import CLIPConfig

KIND, DEFAULT = "fgclip2", "short"
HEADS = {"short": "text_model.head", "box": "boxtext_head", "long": "longtext_head"}
LAYOUTS = {texts: f"FG-CLIP 2, {texts} texts" for texts in HEADS}
_POSITIONS = "text_model.embeddings.position_embedding"
_KEPT, _TRAINED, _KEEP = f"{_POSITIONS}_ori.weight", f"{_POSITIONS}_res.weight", 20


def is_fg_clip(names: Set[str]) -> bool:
    """Return whether these are the names of FG-CLIP 2's tensors."""
    return _TRAINED in names and f"{HEADS['long']}.weight" in names


def hugging_face(texts: str, tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], Report]:
    """Return SigLIP's tensors under our names, of the one way to read texts, and the report of all keys."""
    own, usual = ({f"{head}.{part}" for part in ("weight", "bias")} for head in (HEADS[texts], HEADS[DEFAULT]))
    heads = {f"{head}.{part}" for head in HEADS.values() for part in ("weight", "bias")}
    unread = heads - own | ({f"{_POSITIONS}.weight"} if texts == "long" else {_KEPT, _TRAINED})
    read = {n: t for n, t in tensors.items() if n not in unread and not n.startswith("dense_feature_head.")}
    given = {n: t for n, t in read.items() if n not in (*own, _KEPT, _TRAINED)}
    given |= {theirs: read[ours] for theirs, ours in zip(sorted(usual), sorted(own), strict=True) if ours in read}
    if texts == "long" and _KEPT in read and _TRAINED in read:
        given[f"{_POSITIONS}.weight"] = _long(read[_KEPT], read[_TRAINED])
    made, report = from_siglip.hugging_face(given)
    changed = {_KEPT, _TRAINED} | (own - usual)
    report.copied = [name for name in report.copied if name in read and name not in changed]
    report.transformed += [name for name in read if name in changed]
    report.dropped += [name for name in tensors if name not in read]
    return made, report


def to_hugging_face(
    texts: str, tensors: Mapping[str, LazyTensor], rest: Mapping[str, LazyTensor]
) -> dict[str, LazyTensor]:
    """Return tensors under the authors' names: the inverse of `hugging_face`, as far as `tensors` go.

    rest: the authors' tensors, from which rows come that long texts do not read. Raises `CheckpointError`.
    """
    made = from_siglip.to_hugging_face(tensors, any_shape=True)
    for part in ("weight", "bias"):
        if head := made.pop(f"{HEADS[DEFAULT]}.{part}", None):
            made[f"{HEADS[texts]}.{part}"] = head
    if texts == "long" and (table := made.pop(f"{_POSITIONS}.weight", None)):
        for name in (_KEPT, _TRAINED):
            if name not in rest or rest[name].shape != table.shape:
                got = rest[name].shape if name in rest else "none"
                raise CheckpointError(
                    f"{name} must have the shape of the long texts' positions {table.shape}, got {got}"
                )
        made[_KEPT], made[_TRAINED] = _long(table, rest[_KEPT]), _long(rest[_TRAINED], table)
    return made


def _long(kept: LazyTensor, trained: LazyTensor) -> LazyTensor:
    if kept.shape != trained.shape:
        raise CheckpointError(f"{_TRAINED} must have {_KEPT}'s shape {kept.shape}, got {trained.shape}")
    return LazyTensor(kept.shape, kept.dtype, lambda: np.concatenate([kept.read()[:_KEEP], trained.read()[_KEEP:]]))


MAPS = {LAYOUTS[texts]: partial(hugging_face, texts) for texts in HEADS}


def config_from(config: Mapping[str, Any], texts: str, place: object) -> CLIPConfig:
    """Return the configuration of config.json for one way to read texts. Raises `CheckpointError` and `ConfigError`."""
    obey(config, {"vision_config": either(TABLE, NOTHING), "text_config": either(TABLE, NOTHING)})
    vision, text = dict(config.get("vision_config") or {}), dict(config.get("text_config") or {})
    obey(text, {"keep_len": one_of(_KEEP), "longtext_len": CONTEXT}, "text_config")
    if texts == "long":
        text["max_position_embeddings"] = text.get("longtext_len", 196)
    return from_siglip.config_from({"model_type": "siglip2", "vision_config": vision, "text_config": text}, place)


def preprocess_from(said: Mapping[str, Any], config: CLIPConfig) -> Preprocess:
    """Return the preprocessing: photos in proportion, of as many patches as the authors' examples take. Raises
    `ConfigError`."""
    return from_siglip.preprocess_from({**said, "max_num_patches": None}, config, FG_CLIP_STEPS)
