"""Finished runs of the recipe `grounding` as checkpoints that CLIP-VG's own code loads, strictly and by name.

Of an imported run each tensor of `model` is again as it was: name, place, shape, data type, numbers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convert.clip_vg_layout import HEADS, MODELS, REST, UNUSED, UNUSED_INPUTS, state_names, tower_name
from convert.to_jclip import scalar_scale
from jclip.errors import CheckpointError, ConfigError, notice, say
from jclip.paths import replacing
from jclip.readers import LazyTensor, read_weights, torch_writer
from jclip.report.finished_run import FinishedRun
from jclip.report.predictor import Predictor
from jclip.weights.checkpoint import Checkpoint, in_memory
from jclip.weights.download import find_weights
from jclip.weights.families import Stated
from jclip.weights.identify import identify
from jclip.weights.variants import CLIPConfig, ViTConfig, architecture_name

POSITIONS = "visual.positional_embedding"
ENDING = ".pth"
OWN = ("project_norm", "present")  # of our networks alone


@dataclass(frozen=True)
class Model:
    """`model` of a checkpoint: tensors and data types by name, in order; `same`: names that share the numbers of others.
    beside: what else the file has; None: the tensors are the whole file."""

    tensors: dict[str, LazyTensor]
    dtypes: dict[str, str]
    same: dict[str, str]
    beside: dict[str, Any] | None


def export_grounding(args: argparse.Namespace) -> int:
    """Writes the run in SRC as DST. Raises `ConfigError` for a run whose network CLIP-VG's code can't be."""
    dst = Path(args.dst)
    if dst.suffix != ENDING or dst.is_dir():
        raise ConfigError(f"DST must end in {ENDING} where SRC is a run, got {dst}")
    if args.image_size:
        raise ConfigError("--image-size is for importing: a run has the side that it was trained with; leave it out")
    done = Predictor.load(args.src)
    if done.task != "ground":
        raise done.refusal("a checkpoint of CLIP-VG, which finds boxes of phrases")
    if dst.resolve().is_relative_to(done.folder.resolve()):
        raise ConfigError(f"DST must not be in the run's folder, got {dst}: name a file elsewhere")
    model = model_of(done)
    with replacing(dst) as temporary:
        torch_writer.write(temporary, model.tensors, model.dtypes, model.same, model.beside)
    count = len(model.tensors)
    say(f"{count} tensors, {count - len(model.same)} of them stored\nwritten: {dst} (a checkpoint of CLIP-VG, for --retrain "
        "and eval.py; a run keeps no optimiser's state for --resume)")  # fmt: skip
    return 0


def model_of(done: FinishedRun) -> Model:
    """`model` of the checkpoint: as it was imported, or laid out as CLIP-VG's."""
    towers = towers_of(done)
    check(done, towers.config)
    held = {name: in_memory(array) for name, array in done.learned.items() if name != POSITIONS}
    tensors = scalar_scale(towers.tensors)
    if POSITIONS in done.learned:
        tensors = {**tensors, POSITIONS: in_memory(done.learned[POSITIONS])}
    rest = done.folder / REST
    return _as_imported(rest, tensors, held) if rest.is_file() else _laid_out(done, towers.config, tensors, held)


def towers_of(done: FinishedRun) -> Checkpoint:
    """The towers' weights."""
    found = identify(find_weights(done.model), Stated(family=getattr(done.config, "family", None)))
    found.check()
    return found.checkpoint


def check(done: FinishedRun, config: CLIPConfig) -> None:
    """Raises `ConfigError` for what CLIP-VG's code has not, and reports what must be said to it."""
    shape, vision, text = done.shape, config.vision, config.text
    last = bool(shape.get("last"))
    reasons = {
        "an image tower that is no ViT": not isinstance(vision, ViTConfig) or vision.layer_scale,
        "GELU": config.activation != "quickgelu",
        "one tower": vision is None or text is None,
        "norms after the projections (project_norm)": shape.get("project_norm"),
        "an output for presence (present)": shape.get("present"),
    }
    if reason := next((reason for reason, true in reasons.items() if true), ""):
        raise ConfigError(f"CLIP-VG's code must have the network, which has {reason}: {done.folder} can't be exported")
    if not last and shape["hidden"] != text.width:
        raise ConfigError(
            f"CLIP-VG's network of several levels must be as wide as the text tower, {text.width}, got {shape['hidden']}: "
            f"{done.folder} can't be exported"
        )
    name = architecture_name(config)
    if name not in MODELS:
        notice(
            f"CLIP-VG's code knows {', '.join(MODELS)}, these towers are {name or 'without a name'}: it can't build them"
        )
    if getattr(done.config, "normalise", "imagenet") != "imagenet":
        notice(
            "the run sees photos normalised as its model wants it, CLIP-VG's code by ImageNet's mean: boxes will differ"
        )
    said = {"vl_nheads": (shape["heads"], HEADS), "vl_hidden_dim": (shape["hidden"], 512),
            "vl_dim_feedforward": (shape["ffn"], 2048), "vl_enc_layers": (shape["layers"], 6),
            "imsize": (vision.image_size[0], 224)}  # fmt: skip
    if odd := [f"--{option} {ours}" for option, (ours, usual) in said.items() if ours != usual]:
        notice(f"CLIP-VG's code needs {' '.join(odd)} for it")


def _as_imported(rest: Path, towers: Mapping[str, LazyTensor], held: Mapping[str, LazyTensor]) -> Model:
    kept = read_weights(rest)
    try:
        names = [(str(name), str(dtype), tuple(shape)) for name, dtype, shape in json.loads(kept.metadata["names"])]
        beside = json.loads(kept.metadata["beside"])
    except (KeyError, ValueError, TypeError) as e:
        raise CheckpointError(
            f"{rest} must list the names of a checkpoint: it is damaged; import the checkpoint again"
        ) from e
    tensors: dict[str, LazyTensor] = {}
    for name, dtype, shape in names:
        plain = name.removeprefix("module.")
        own = tower_name(plain)
        found = kept.get(name) or (held.get(plain) if own is None else towers.get(own))
        if found is None:
            raise CheckpointError(f"{rest} names {name}, which the run lacks: import the checkpoint again")
        tensors[name] = replace(found, dtype=dtype) if found.shape == shape else found
    return Model(tensors, {name: dtype for name, dtype, _ in names}, _same(tensors, kept), beside)


def _laid_out(
    done: FinishedRun, config: CLIPConfig, towers: Mapping[str, LazyTensor], held: Mapping[str, LazyTensor]
) -> Model:
    shape = done.shape
    last = bool(shape.get("last"))
    names = state_names(config.vision, config.text.layers, shape["layers"], last)
    unused = {} if last else dict(zip(UNUSED, ((shape["hidden"], UNUSED_INPUTS), (shape["hidden"],)), strict=True))
    tensors: dict[str, LazyTensor] = {}
    for name in names:
        own = tower_name(name)
        if name in unused:
            tensors[name] = in_memory(np.zeros(unused[name], np.float32))
        else:
            tensors[name] = held[name] if own is None else towers[own]
    if odd := [*({*held} - {*names}), *({*towers} - {n.removeprefix("clip.") for n in names})]:
        raise ConfigError(
            f"CLIP-VG's code must have every tensor of the run, got {sorted(odd)[0]}: it can't be exported"
        )
    accuracy = next((v for k, v in done.metrics.items() if k == "val_acc@0.5"), 0.0)
    about = {
        "model": architecture_name(config) or "", "imsize": config.vision.image_size[0], "max_query_len": shape["max_text"],
        "vl_hidden_dim": shape["hidden"], "vl_nheads": shape["heads"], "vl_dim_feedforward": shape["ffn"],
        "vl_enc_layers": shape["layers"], "vl_dropout": shape["dropout"],
    }  # fmt: skip
    epoch = getattr(done.config.optim, "trained_epochs", 1) - 1
    beside = {"epoch": epoch, "args": about, "val_accu": float(accuracy)}
    return Model(tensors, {name: t.dtype for name, t in tensors.items()}, _same(tensors), beside)


def _same(tensors: Mapping[str, LazyTensor], apart: Mapping[str, LazyTensor] | None = None) -> dict[str, str]:
    """Names under which the towers stand again, and the names whose numbers they share; but for those stored `apart`."""
    first: dict[str, str] = {}
    same = {}
    for name in tensors:
        own = tower_name(name.removeprefix("module."))
        if own is not None and name not in (apart or {}) and first.setdefault(own, name) != name:
            same[name] = first[own]
    return same
