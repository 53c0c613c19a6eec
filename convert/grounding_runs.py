"""CLIP-VG's own checkpoints as finished runs of the recipe `grounding`, and such runs as its checkpoints.

A checkpoint is {model, optimizer, lr_scheduler, epoch, args, val_accu}; of `model` the towers stand under `clip.`, with the
image positions that were trained, and under other names again (`clip_vg_layout`). What of `model` neither towers nor network
hold is kept in a file of the run, so that the export has all of it again. Nothing in a checkpoint is executed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import finetune  # noqa: F401 - the run that is written is one of a recipe, found by name (`build_config`)
from convert.clip_vg_layout import HEADS, REST, UNUSED, tower_name
from convert.grounding_exports import export_grounding
from convert.to_jclip import scalar_scale
from jclip.errors import CheckpointError, ConfigError, MisfitError, notice, say
from jclip.functional.positions import resample_positions
from jclip.model import grounding, tower_levels
from jclip.paths import file_sha256, replacing
from jclip.readers import LazyTensor, read_weights, safetensors, torch_zip
from jclip.report.finished_run import MODEL
from jclip.train.configs import build_config, resolved
from jclip.train.run import Run
from jclip.train.run_folder import existing_run
from jclip.weights.checkpoint import Checkpoint, compare_keys, describe, finite_tensors, from_tensors, in_memory
from jclip.weights.families import Stated
from jclip.weights.parameter_shapes import parameter_shapes
from jclip.weights.variants import architecture_name

_LAYER = "vl_transformer.encoder.layers."
_EXACT = ("float32", "float16", "bfloat16")  # what float32 holds without rounding


def convert_grounding(args: argparse.Namespace) -> int:
    """Imports a checkpoint, or exports a run where SRC is a folder. Raises `ConfigError` for options that can't hold."""
    if args.dtype != "fp32" or args.to != "jclip" or args.check or args.tower or args.context_length:
        raise ConfigError("--grounding keeps numbers as they are stored: leave out --dtype, --to, --check, --tower and "
                          "--context-length")  # fmt: skip
    if existing_run(args.src).is_dir():
        return export_grounding(args)
    return import_grounding(args)


def import_grounding(args: argparse.Namespace) -> int:
    """Writes a finished run into DST. Raises `CheckpointError` for a SRC that is no such checkpoint, or a network that does
    not fit its towers."""
    src = Path(args.src)
    found = read_checkpoint(src)
    towers, network = found.towers, found.network
    checkpoint = from_tensors(src, towers, Stated(family="openai", head_width=args.vision_head_width), "openai names")
    check_towers(checkpoint)
    last = "ml_visu_proj.weight" not in network
    sizes = sizes_of(src, network, found.beside)
    if args.image_size:
        antialias = args.antialias != "no"
        checkpoint, network = resized(src, checkpoint, network, args.image_size, antialias)
    shape = tower_levels.fusion_shape(checkpoint.config, "last" if last else "levels", **sizes)
    arrays = fitting_arrays(src, network, shape)
    values = {
        "recipe": "grounding", "model": architecture_name(checkpoint.config) or src.name, "normalise": "imagenet",
        "visual_layers": "last" if last else "levels", "visual_positions": "trained", **sizes,
        "data": {"train": "", "val": "", "test": ""},
    }  # fmt: skip
    module, cfg = build_config(values, str(src))
    with Run(args.dst, resolved(module, cfg)) as run:
        if run.result is not None:
            raise ConfigError(f"{args.dst} must be a new folder, got a finished run: name another")
        with replacing(run.file(MODEL)) as temporary:
            write_towers(temporary, checkpoint)
        with replacing(run.file(REST)) as temporary:
            write_rest(temporary, found)
        run.note(weights_sha256=file_sha256(run.folder / MODEL), imported_sha256=file_sha256(src), imported="CLIP-VG")
        run.save_learned(arrays, shape=shape.to_dict())
        run.finish({"parameters": sum(array.size for array in arrays.values())})
    say(
        f"network: {shape.layers} layers of width {shape.hidden} over {values['model']}\n"
        f"written: {args.dst} (a run of grounding)"
    )
    return 0


def check_towers(checkpoint: Checkpoint) -> None:
    """Raises `CheckpointError` for towers that lack a tensor, or hold one that is broken: before anything is written."""
    got = {k: t.shape or (1,) for k, t in checkpoint.tensors.items()}
    try:
        compare_keys(parameter_shapes(checkpoint.config), got, f"{checkpoint.path}: clip.")
    except MisfitError as e:
        raise CheckpointError(str(e)) from e
    for tensor in checkpoint.tensors.values():
        tensor.read()  # which refuses what is no number


@dataclass(frozen=True)
class Parts:
    """A checkpoint. towers, network: under their own names. model: all tensors of `model`, in order, by the names there.
    beside: texts and numbers, such as `epoch`; None for a bare state dict."""

    towers: dict[str, LazyTensor]
    network: dict[str, LazyTensor]
    model: dict[str, LazyTensor]
    beside: dict[str, Any] | None


def read_checkpoint(src: Path) -> Parts:
    """Sorts the tensors of a checkpoint. Raises `CheckpointError` where towers or network are absent."""
    file = read_weights(src)
    whole = any(name.startswith("model.") for name in file)
    model = {k.removeprefix("model."): t for k, t in file.items() if k.startswith("model.") or not whole}
    named = {name.removeprefix("module."): t for name, t in model.items()}
    towers = {name.removeprefix("clip."): t for name, t in named.items() if name.startswith("clip.")}
    network = {name: t for name, t in named.items() if tower_name(name) is None}
    if "ml_visu_proj.weight" in network:
        network = {name: t for name, t in network.items() if name not in UNUSED}
    if not towers or "vl_pos_embed.weight" not in network:
        got = ", ".join([*named][:4]) or "none"
        raise CheckpointError(f"{src} must be a checkpoint of CLIP-VG, with clip.… and vl_pos_embed.weight, got {got}")
    beside = torch_zip.saved_values(src) if whole and file.kind == "torch" else {} if whole else None
    return Parts(towers, network, model, beside)


def write_rest(path: Path, found: Parts) -> None:
    """What the export needs beside towers and network: tensors that are neither, and names with data types, in order."""
    kept = {
        name: t for name, t in found.model.items() if not _is_held(found, name.removeprefix("module."), t)
    }  # by the file's names
    beside = None if found.beside is None else {k: v for k, v in found.beside.items() if k in ("epoch", "val_accu")}
    about = {
        "names": json.dumps([[name, t.dtype, list(t.shape)] for name, t in found.model.items()]),
        "beside": json.dumps(beside),
    }
    safetensors.write_tensors(path, kept, {name: t.dtype for name, t in kept.items()}, about)


def _is_held(found: Parts, name: str, tensor: LazyTensor) -> bool:
    """Whether the run holds that tensor's numbers as they are, as a tensor of the towers or of the network."""
    own = tower_name(name)
    if own is None:
        return name in found.network and tensor.dtype in _EXACT
    if name.startswith("clip."):
        return True
    other = found.towers.get(own)
    if other is None or (other.dtype, other.shape) != (tensor.dtype, tensor.shape):
        return False
    return tensor.read().tobytes() == other.read().tobytes()


def resized(
    src: Path, checkpoint: Checkpoint, network: Mapping[str, LazyTensor], sides: list[int], antialias: bool = True
) -> tuple[Checkpoint, dict[str, LazyTensor]]:
    """Towers and network for photos of another side: both tables of positions resampled, which is reported. Raises
    `ConfigError` for a side that the towers can't have."""
    side, text = sides[0], checkpoint.config.text.context_length
    if len({*sides}) > 1:
        raise ConfigError(f"--image-size must be one number for grounding, which sees squares, got {sides}")
    towers, before = checkpoint.resized(side, antialias), network["vl_pos_embed.weight"]
    table = before.read().astype(np.float32)
    own = math.isqrt(max(len(table) - 2 - text, 0))
    if table.ndim != 2 or own < 1 or len(table) != 2 + text + own * own:
        raise CheckpointError(f"{src}: vl_pos_embed.weight must have rows of [REG], {text} tokens of text, the class token and "
                              f"a square of patches, got {list(before.shape)}")  # fmt: skip
    grid = towers.config.vision.grid
    if (own, own) == grid and towers is checkpoint:
        return checkpoint, dict(network)
    moved = resample_positions(table[1 + text :], (own, own), grid, antialias)
    notice(
        f"positions of photos are resampled, of the towers and of the network from {own} x {own} to {grid[0]} x {grid[1]} "
        f"patches: boxes of {side} pixels are not those that were published"
    )
    return towers, {**network, "vl_pos_embed.weight": in_memory(np.concatenate([table[: 1 + text], moved]))}


def sizes_of(src: Path, network: Mapping[str, LazyTensor], beside: Mapping[str, Any] | None = None) -> dict[str, int]:
    """What the network's own shapes say: hidden, layers, ffn; and the heads that the checkpoint names, else the reference's.
    Raises `CheckpointError`."""
    numbers = {name.removeprefix(_LAYER).split(".")[0] for name in network if name.startswith(_LAYER)}
    first = network.get(f"{_LAYER}0.linear1.weight")
    if first is None or numbers != {str(i) for i in range(len(numbers))} or len(first.shape) != 2:
        raise CheckpointError(f"{src} must have layers {_LAYER}0 and so on, got {', '.join(sorted(numbers)) or 'none'}")
    ffn, hidden = first.shape
    heads = (beside or {}).get("args.vl_nheads", HEADS)
    if type(heads) is not int or heads < 1 or hidden % heads:
        raise CheckpointError(f"{src} must have a width that its {heads} heads divide, got {hidden}")
    return {"hidden": hidden, "layers": len(numbers), "ffn": ffn, "heads": heads}


def fitting_arrays(src: Path, network: Mapping[str, LazyTensor], shape: grounding.FusionShape) -> dict[str, np.ndarray]:
    """The network's parameters, float32. Raises `CheckpointError` for names, shapes or numbers that do not fit."""
    wanted = {name: tuple(v.shape) for name, v in grounding.GroundingNetwork(shape).state_dict().items()}
    for name, there in wanted.items():
        if name not in network or tuple(network[name].shape) != there:
            got = list(network[name].shape) if name in network else "none"
            raise CheckpointError(f"{src}: {name} must have shape {list(there)} to fit its towers, got {got}")
    if strangers := [name for name in network if name not in wanted]:
        raise CheckpointError(f"{src} must hold a network of CLIP-VG alone, got {', '.join(strangers[:4])} besides")
    return {
        name: t.read().astype(np.float32) for name, t in finite_tensors({n: network[n] for n in wanted}, src).items()
    }


def write_towers(path: Path, checkpoint: Checkpoint) -> None:
    """The towers in the numbers that they were stored in, so that nothing is rounded."""
    tensors = scalar_scale(checkpoint.tensors)
    about = describe(checkpoint.config, checkpoint.preprocess, float(tensors["logit_scale"].read()))
    safetensors.write_tensors(
        path, tensors, {name: t.dtype for name, t in tensors.items()}, {**checkpoint.metadata, **about}
    )
