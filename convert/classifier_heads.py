"""A fine-tuned tower with its classifier, as a finished run of `linear_probe`: what `jclip eval` and `predict` use.

Training scripts save such a head beside the towers: `{"state_dict": {"model.visual…": …, "head.weight": (C, D), …}}`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import finetune  # noqa: F401 - the run that is written is one of a recipe, found by name (`build_config`)
from convert.to_jclip import write_file
from jclip.config import apply_overrides
from jclip.data.class_names import read_class_names
from jclip.errors import CheckpointError, ConfigError, say
from jclip.paths import file_sha256
from jclip.readers import LazyTensor, read_weights
from jclip.report.finished_run import MODEL
from jclip.train.configs import build_config, resolved
from jclip.train.run import Run
from jclip.weights.families import Stated
from jclip.weights.identify import Source
from jclip.weights.plain_names import classifier_heads
from jclip.weights.variants import CLIPConfig, PatchTower


def import_head(args: argparse.Namespace, src: Path, found: Source, stated: Stated, dtype: str) -> int:
    """Write a finished run into DST: the towers as they are, and the classifier. Raises `CheckpointError` for a SRC
    without this head, or one of other classes or widths, `ConfigError` for a DST that is a file."""
    names = read_class_names(args.classes).names
    name, head = _head(src, args.head, stated)
    weight, bias = _arrays(src, name, head, names)
    layer = _layer(found.checkpoint.config, weight.shape[1], f"{src}: {name}.weight")
    values = {"recipe": "linear_probe", "data": {}, "model": str(src.absolute()), "features": layer}
    module, cfg = build_config(apply_overrides(values, args.set), "--set")
    if cfg.solver != "lbfgs" or cfg.features != layer:
        raise ConfigError(f"a classifier on {layer} features needs solver=lbfgs and features={layer}: leave others out")
    with Run(args.dst, resolved(module, cfg)) as run:
        write_file(run.file(MODEL), found.checkpoint, dtype)
        run.note(weights_sha256=file_sha256(run.file(MODEL)), imported_sha256=found.checkpoint.sha256, imported=name)
        run.save_learned({"weights": weight, "bias": bias}, classnames=names, width=weight.shape[1])
        run.finish({"classes": len(names)})
    say(
        f"classifier: {name}, {len(names)} classes on {layer} features of width {weight.shape[1]}\n"
        f"written: {args.dst} (a run of linear_probe and its model)"
    )
    return 0


def _head(src: Path, wanted: str, stated: Stated) -> tuple[str, Mapping[str, LazyTensor]]:
    if not src.is_file():
        raise CheckpointError(f"{src} must be one weight file that holds a classifier beside the towers, got a folder")
    heads = classifier_heads(read_weights(src), stated)
    near = [name for name in heads if wanted in ("", name, name.rpartition(".")[2])]
    if len(near) != 1:
        shown = ", ".join(heads) or "none"
        raise CheckpointError(
            f"{src} must hold one classifier {wanted or 'beside the towers'}, got {shown}: name it with --head"
        )
    return near[0], heads[near[0]]


def _arrays(
    src: Path, name: str, head: Mapping[str, LazyTensor], names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return W (C, D) and b (C,), zeros where the head has none. Raises `CheckpointError`."""
    weight = head[f"{name}.weight"].read().astype(np.float32)
    bias = (
        head[f"{name}.bias"].read().astype(np.float32) if f"{name}.bias" in head else np.zeros(len(weight), np.float32)
    )
    if bias.shape != weight.shape[:1]:
        raise CheckpointError(f"{src}: {name}.bias must have shape {weight.shape[:1]}, got {bias.shape}")
    if len(weight) != len(names):
        raise CheckpointError(
            f"{src}: {name} is of {len(weight)} classes, got {len(names)} names: name those with --classes"
        )
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise CheckpointError(f"{src}: {name} must be finite, got NaN or infinite numbers")
    return weight, bias


def _layer(config: CLIPConfig, width: int, place: str) -> str:
    """Return which image features a classifier of this width reads. Raises `CheckpointError`."""
    if config.vision is None:
        raise CheckpointError(f"{place} classifies photos: SRC must hold an image tower")
    widths: dict[str, Any] = {"projected": config.embed_dim}
    if isinstance(config.vision, PatchTower):
        widths["penultimate"] = config.vision.width
    found = next((layer for layer, own in widths.items() if own == width), None)
    if found is None:
        shown = " or ".join(f"{own} ({layer})" for layer, own in widths.items())
        raise CheckpointError(f"{place} must read image features of width {shown}, got {width}")
    return found
