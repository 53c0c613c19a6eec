"""Prompts that other projects learned, as a finished run: TaI-DPT, the entry built on it, DualCoOp, DualCoOp++.

Their checkpoints hold vectors under these names, among buffers that are remade of class names and not read:
ctx, ctx_double, ctx_evidence (TaI-DPT and its kin), ctx_pos, ctx_neg (DualCoOp), ctx and ctx_neg (DualCoOp by TaI-DPT).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import finetune  # noqa: F401 - the run that is written is one of a recipe, found by name (`build_config`)
from jclip.config import apply_overrides, protocols
from jclip.data.class_names import read_class_names
from jclip.data.lexicons import spoken_names
from jclip.errors import CheckpointError, say
from jclip.features.source import ModelSource, source_of
from jclip.model import prompt_sets
from jclip.paths import file_sha256
from jclip.postponed import jt
from jclip.readers import LazyTensor, read_weights
from jclip.train.configs import build_config, resolved
from jclip.train.run import Run

KNOWN = ("ctx", "ctx_double", "ctx_evidence", "ctx_pos", "ctx_neg")
FACTORS = {"scale": "temperature", "sharpness": "spatial_T"}  # what is learned besides, as logarithms


@dataclass(frozen=True)
class Origin:
    """Where prompts come from: what they are called there, by set, and what the recipe's config is then.

    factors: which of `FACTORS` the scores take from the file, where it has them.
    """

    name: str
    recipe: str
    sets: Mapping[str, str]
    settings: Mapping[str, Any]
    factors: tuple[str, ...] = ()


_TAI = {"global": "ctx", "local": "ctx_double"}
_PAIR = {"positive": "ctx_pos", "negative": "ctx_neg"}
_E3 = math.exp(3.0)
_AUTHORS = {"size": 448, "interpolation": "bilinear"}
ORIGINS = (  # of which the first fits whose names are all there
    Origin(
        "TaI-DPT with evidence", "text_as_image", {**_TAI, "evidence": "ctx_evidence"},
        {"evidence": True, "winner": "seed", "tau_image": 50.0},
    ),
    Origin("TaI-DPT", "text_as_image", _TAI, {}),
    Origin(
        "DualCoOp++", "dual_prompt", {**_PAIR, "evidence": "ctx_evidence"},
        {**_AUTHORS, "kind": "dualcoop_pp", "scale": _E3, "sharpness": _E3, "learn": ["sharpness"]}, ("sharpness",),
    ),
    Origin("DualCoOp", "dual_prompt", _PAIR, _AUTHORS),
    Origin(
        "DualCoOp by TaI-DPT", "dual_prompt", {"positive": "ctx", "negative": "ctx_neg"},
        {"size": 448, "places": "cells", "loss": "difference", "learn": ["scale", "sharpness"], "scale": 50.0},
        ("scale", "sharpness"),
    ),
)  # fmt: skip


def import_prompts(args: argparse.Namespace) -> int:
    """Writes a finished run into DST. Raises `CheckpointError` for a SRC that holds no prompts of this model and classes."""
    src, names = Path(args.src), read_class_names(args.classes).names
    found = _prompts(src)
    origin = next((one for one in ORIGINS if {*one.sets.values()} <= {*found}), None)
    if origin is None:
        raise CheckpointError(
            f"{src} must hold learned prompts, ctx and ctx_double or ctx_pos and ctx_neg, got {', '.join(found) or 'none'}"
        )
    vectors = {name: found[theirs] for name, theirs in origin.sets.items()}
    factors = {name: found[theirs] for name, theirs in FACTORS.items() if name in origin.factors and theirs in found}
    module, cfg = build_config(apply_overrides(_settings(origin, args.prompts_of, vectors, factors), args.set), "--set")
    source = source_of(cfg)
    own = _check(src, vectors, source, names)
    arrays = {name: v.read().astype(np.float32).reshape(-1, v.shape[-1]) for name, v in vectors.items()}
    learned = _learned(origin, cfg, source, arrays, own, names)
    with Run(args.dst, resolved(module, cfg)) as run:
        run.note(weights_sha256=source.weights_sha256, imported_sha256=file_sha256(src), imported=origin.name)
        run.save_learned(learned, classnames=names, width=source.config.embed_dim)
        run.finish({"classes": len(names)})
    shapes = ", ".join(f"{theirs} {list(found[theirs].shape)}" for theirs in origin.sets.values())
    say(f"prompts: {origin.name}, {shapes}\nwritten: {args.dst} (a run of {origin.recipe}, {len(names)} classes)")
    return 0


def _prompts(src: Path) -> dict[str, LazyTensor]:
    """What of a checkpoint has a known name, by it."""
    found: dict[str, LazyTensor] = {}
    for name, tensor in read_weights(src).items():
        head, _, last = name.rpartition(".")
        if last in (*KNOWN, *FACTORS.values()) and not head.startswith("optim"):
            found.setdefault(last, tensor)
    return found


def _settings(
    origin: Origin, model: str, vectors: Mapping[str, LazyTensor], factors: Mapping[str, LazyTensor]
) -> dict[str, Any]:
    first = next(iter(vectors.values()))
    values = {"recipe": origin.recipe, "model": model, **origin.settings, "per_class": len(first.shape) == 3}
    values["context"] = int(first.shape[-2]) if len(first.shape) > 1 else 1
    if "evidence" in vectors and origin.recipe == "text_as_image":
        values["evidence_per_class"] = len(vectors["evidence"].shape) == 3
    return values | {name: math.exp(_number(tensor)) for name, tensor in factors.items()}


def _number(tensor: LazyTensor) -> float:
    values = tensor.read().reshape(-1)
    if values.size != 1 or not np.isfinite(values).all() or abs(float(values[0])) > 20:
        raise CheckpointError(f"temperature and spatial_T must be one number in [-20, 20], got {list(tensor.shape)}")
    return float(values[0])


def _check(src: Path, vectors: Mapping[str, LazyTensor], source: ModelSource, names: Sequence[str]) -> tuple[str, ...]:
    """The sets with vectors of each class's own. Raises `CheckpointError` for shapes that do not fit."""
    if source.config.text is None:
        raise CheckpointError(
            f"{source.checkpoint.path} must have a text tower to read prompts: name such with --prompts-of"
        )
    width, dims = source.config.text.width, {len(v.shape) for name, v in vectors.items() if name != "evidence"}
    for name, tensor in vectors.items():
        shape = list(tensor.shape)
        if len(shape) not in (2, 3) or shape[-1] != width or not shape[-2]:
            raise CheckpointError(
                f"{src}: the {name} prompts must be {width}-dimensional, as the model's, got shape {shape}: name the "
                "model that they were learned with"
            )
        if len(shape) == 3 and shape[0] != len(names):
            raise CheckpointError(
                f"{src}: the {name} prompts are of {shape[0]} classes, got {len(names)} names: name those with --classes"
            )
        if not np.isfinite(tensor.read()).all():
            raise CheckpointError(f"{src}: the {name} prompts must be finite, got NaN or infinite numbers")
    if len(dims) > 1:
        raise CheckpointError(f"{src}: the sets of prompts must all be of each class or all shared")
    return tuple(name for name, tensor in vectors.items() if len(tensor.shape) == 3)


def _learned(
    origin: Origin,
    cfg: protocols.WithPosition,
    source: ModelSource,
    arrays: Mapping[str, np.ndarray],
    own: Sequence[str],
    names: Sequence[str],
) -> dict[str, np.ndarray]:
    """What such a run would have kept."""
    spoken = spoken_names(names) if origin.recipe == "text_as_image" else names
    frame = prompt_sets.frame_of(source.model, spoken, arrays, cfg.position, own)
    with jt.no_grad():
        text = prompt_sets.features_of(frame, {name: jt.array(v) for name, v in arrays.items()})
    rest = ("merge",) if origin.recipe == "text_as_image" else ("scale", "sharpness")
    return {
        **{f"context_{name}": v for name, v in arrays.items()},
        **{f"text_{name}": t.numpy() for name, t in text.items()},
        **{name: np.array([getattr(cfg, name)], np.float32) for name in rest},
    }
