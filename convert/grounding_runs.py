"""CLIP-VG's own checkpoints as finished runs of the recipe `grounding`: towers and fusion network, with what they were read by.

A checkpoint is {model, optimizer, lr_scheduler, epoch, args, val_accu}; of `model` the towers stand under `clip.`, with the
image positions that were trained, and under other names again, which are not read. Nothing in it is executed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import finetune  # noqa: F401 - the run that is written is one of a recipe, found by name (`build_config`)
from convert.to_jclip import scalar_scale
from jclip.errors import CheckpointError, ConfigError, say
from jclip.model import grounding, tower_levels
from jclip.paths import file_sha256, replacing
from jclip.readers import LazyTensor, read_weights, safetensors
from jclip.report.finished_run import MODEL
from jclip.train.configs import build_config, resolved
from jclip.train.run import Run
from jclip.weights.checkpoint import Checkpoint, describe, finite_tensors, from_tensors
from jclip.weights.families import Stated
from jclip.weights.variants import architecture_name

HEADS = 8  # of every published network; no shape shows it
UNREAD = ("visu_proj.", "image_encoder_clip_vg.", "text_encoder_clip_vg.")  # a layer never used, and the towers again
_LAYER = "vl_transformer.encoder.layers."


def import_grounding(args: argparse.Namespace) -> int:
    """Writes a finished run into DST. Raises `CheckpointError` for a SRC that is no such checkpoint, or a network that does
    not fit its towers."""
    src = Path(args.src)
    towers, network = parts_of(src)
    checkpoint = from_tensors(src, towers, Stated(family="openai", head_width=args.vision_head_width), "openai names")
    last = "ml_visu_proj.weight" not in network
    sizes = sizes_of(src, network)
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
        run.note(weights_sha256=file_sha256(run.folder / MODEL), imported_sha256=file_sha256(src), imported="CLIP-VG")
        run.save_learned(arrays, shape=shape.to_dict())
        run.finish({"parameters": sum(array.size for array in arrays.values())})
    say(
        f"network: {shape.layers} layers of width {shape.hidden} over {values['model']}\n"
        f"written: {args.dst} (a run of grounding)"
    )
    return 0


def parts_of(src: Path) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """Tensors of the towers and of the network, under their own names. Raises `CheckpointError` where either is absent."""
    named = {
        name.removeprefix("model."): t for name, t in read_weights(src).items() if not name.startswith("optimizer.")
    }
    named = {name.removeprefix("module."): t for name, t in named.items()}
    towers = {name.removeprefix("clip."): t for name, t in named.items() if name.startswith("clip.")}
    network = {name: t for name, t in named.items() if not name.startswith(("clip.", *UNREAD[1:]))}
    if "ml_visu_proj.weight" in network:
        network = {name: t for name, t in network.items() if not name.startswith(UNREAD[0])}
    if not towers or "vl_pos_embed.weight" not in network:
        got = ", ".join([*named][:4]) or "none"
        raise CheckpointError(f"{src} must be a checkpoint of CLIP-VG, with clip.… and vl_pos_embed.weight, got {got}")
    return towers, network


def sizes_of(src: Path, network: Mapping[str, LazyTensor]) -> dict[str, int]:
    """What the network's own shapes say: hidden, layers, ffn, and the heads of the reference. Raises `CheckpointError`."""
    numbers = {name.removeprefix(_LAYER).split(".")[0] for name in network if name.startswith(_LAYER)}
    first = network.get(f"{_LAYER}0.linear1.weight")
    if first is None or numbers != {str(i) for i in range(len(numbers))} or len(first.shape) != 2:
        raise CheckpointError(f"{src} must have layers {_LAYER}0 and so on, got {', '.join(sorted(numbers)) or 'none'}")
    ffn, hidden = first.shape
    if hidden % HEADS:
        raise CheckpointError(f"{src} must have a width that {HEADS} heads divide, got {hidden}")
    return {"hidden": hidden, "layers": len(numbers), "ffn": ffn, "heads": HEADS}


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
