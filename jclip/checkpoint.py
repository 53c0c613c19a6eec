"""What a weight file is, and how it gets into a model and out again. Nothing in a file is executed or guessed.

A file written by jclip says everything in its metadata. Of other files, shapes tell the architecture; activation,
normalisation and resize mode are not in the weights, so they come from a known fingerprint (the three scalars that only
OpenAI's own files carry) or from `family`, which the user names. Otherwise the file is refused with the choices.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jclip.errors import CheckpointError, ConfigError, MisfitError, UnknownName
from jclip.functional.positions import resample_positions
from jclip.paths import cache_dir, replacing
from jclip.preprocess import Preprocess
from jclip.readers import LazyTensor, WeightFile, read_weights, safetensors
from jclip.variants import FAMILIES, CLIPConfig, ResNetConfig, TextConfig, ViTConfig

FORMAT_VERSION = "1"
SCALARS = ("input_resolution", "context_length", "vocab_size")  # only OpenAI's own files carry them
HEAD_WIDTHS = {384: 64, 512: 64, 768: 64, 896: 64, 1024: 64, 1280: 80, 1408: 88, 1664: 104, 1792: 112}
_WRAPPERS = ("state_dict.", "model.", "model_state_dict.")
_PREFIXES = ("module.", "_orig_mod.")
_FOREIGN = {  # a key that only this family has → what it is
    "vision_model.embeddings.class_embedding": "a Hugging Face CLIPModel",
    "visual.cls_token": "EVA-CLIP",
    "visual.trunk.": "a timm tower of OpenCLIP",
    "text.token_embedding.weight": "an OpenCLIP model with a separate text tower",
    "bert.encoder.layer.0.": "Chinese-CLIP",
}


@dataclass(frozen=True)
class Checkpoint:
    """A weight file that has been identified. `tensors` have OpenAI's names; they are read when asked for."""

    path: Path
    tensors: dict[str, LazyTensor]
    config: CLIPConfig
    preprocess: Preprocess
    metadata: dict[str, str]

    def arrays(self) -> Iterable[tuple[str, np.ndarray]]:
        """Name and float32 values, one after the other."""
        return ((k, t.read().astype(np.float32, copy=False)) for k, t in self.tensors.items())

    @property
    def sha256(self) -> str:
        """Of the file's bytes; remembered for this path, size and modification time."""
        return file_sha256(self.path)

    def resized(self, image_size: int | tuple[int, int], antialias: bool = True) -> Checkpoint:
        """The same weights for another input size (H, W), position tables resampled; see `functional.positions`.

        Raises `ConfigError` for a size that is no multiple of the patch (ResNets: of 32).
        """
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        old, new = self.config.vision, replace(self.config.vision, image_size=(height, width))
        step = new.patch_size if isinstance(new, ViTConfig) else 32
        if min(height, width) < step or height % step or width % step:
            raise ConfigError(f"image size {height} x {width} is no multiple of {step}, the model's step")
        key = "visual.positional_embedding" if isinstance(new, ViTConfig) else "visual.attnpool.positional_embedding"
        table = resample_positions(self.tensors[key].read().astype(np.float32), old.grid, new.grid, antialias)
        return replace(
            self,
            tensors={**self.tensors, key: LazyTensor(table.shape, "float32", lambda: table)},
            config=replace(self.config, vision=new),
            preprocess=replace(self.preprocess, size=(height, width)),
        )


def open_checkpoint(path: str | os.PathLike, family: str | None = None, head_width: int | None = None) -> Checkpoint:
    """Reads names and shapes and tells the model. Raises `CheckpointError` for what is not known, with what to pass.

    family: one of `FAMILIES`, for a file that doesn't say; contradicting one that does is an error. head_width: of the
    vision transformer, for a width that is not in the table.
    """
    path = Path(path)
    if family is not None and family not in FAMILIES:
        raise UnknownName("family", family, FAMILIES)
    file = read_weights(path)
    if file.metadata.get("format") == "jclip":
        return _from_metadata(path, file, family)
    scalars = [s for s in SCALARS if s in _plain_names(file)]
    tensors = plain_tensors(file)
    _refuse_foreign(tensors, path)
    told = "openai" if len(scalars) == len(SCALARS) else family
    if told is None:
        raise CheckpointError(
            f"{path} does not say which activation and normalisation it was trained with, and the weights don't show it: "
            f"pass family= (--family) one of {', '.join(FAMILIES)}; OpenAI's weights and the Jittor challenge's are 'openai'"
        )
    if family not in (None, told):
        raise CheckpointError(f"{path} carries OpenAI's own marks, family {family!r} contradicts them")
    config = config_from_shapes({k: t.shape for k, t in tensors.items()}, FAMILIES[told], head_width, str(path))
    return Checkpoint(path, tensors, config, Preprocess(size=config.vision.image_size), {"source_family": told})


def _from_metadata(path: Path, file: WeightFile, family: str | None) -> Checkpoint:
    try:
        config = CLIPConfig.from_dict(json.loads(file.metadata["config"]))
        preprocess = Preprocess.from_dict(json.loads(file.metadata["preprocess"]))
    except (KeyError, ValueError) as e:
        raise CheckpointError(f"{path} was written by jclip but its metadata is damaged: {e}") from e
    if family is not None and FAMILIES[family] != config.activation:
        raise CheckpointError(f"{path} says activation {config.activation}, family {family!r} contradicts it")
    return Checkpoint(path, file.tensors, config, preprocess, file.metadata)


def plain_tensors(file: WeightFile) -> dict[str, LazyTensor]:
    """The floating tensors under their names without wrappers, but for counters that Jittor has no use for."""
    kept = {k: t for k, t in _plain_names(file).items() if k not in SCALARS and t.is_float}
    return {k: t for k, t in kept.items() if not k.endswith("num_batches_tracked")}


def _plain_names(file: WeightFile) -> dict[str, LazyTensor]:
    """Names without the wrappers of training scripts (`state_dict`, `module.`, `_orig_mod.`)."""
    tensors = dict(file)
    for wrapper in _WRAPPERS:
        inner = {k.removeprefix(wrapper): t for k, t in tensors.items() if k.startswith(wrapper)}
        tensors = inner or tensors
    for prefix in _PREFIXES:
        if tensors and all(k.startswith(prefix) for k in tensors):
            tensors = {k.removeprefix(prefix): t for k, t in tensors.items()}
    return tensors


def _refuse_foreign(tensors: Mapping[str, LazyTensor], path: Path) -> None:
    for mark, what in _FOREIGN.items():
        if any(k == mark or (mark.endswith(".") and k.startswith(mark)) for k in tensors):
            raise CheckpointError(
                f"{path} is {what}, whose names are not OpenAI's: `python convert FOLDER OUT` takes the folders of "
                "Hugging Face's CLIPModel and of open_clip"
            )
    if "visual.conv1.weight" not in tensors or "token_embedding.weight" not in tensors:
        shown = ", ".join(list(tensors)[:4]) or "no tensor at all"
        raise CheckpointError(f"{path} is no CLIP model in OpenAI's layout (it holds {shown} …)")


def config_from_shapes(
    shapes: Mapping[str, tuple], activation: str, head_width: int | None = None, place: str = ""
) -> CLIPConfig:
    """Every number that shapes tell; `head_width` and the square input are assumptions that shapes can't confirm."""
    try:
        vision = (
            _vit_from_shapes(shapes, head_width, place)
            if "visual.proj" in shapes
            else _resnet_from_shapes(shapes, place)
        )
        width = shapes["ln_final.weight"][0]
        text = TextConfig(
            width=width,
            heads=max(width // 64, 1),
            layers=_count(shapes, r"transformer\.resblocks\.(\d+)\."),
            mlp_width=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
            context_length=shapes["positional_embedding"][0],
            vocab_size=shapes["token_embedding.weight"][0],
        )
        return CLIPConfig(shapes["text_projection"][1], vision, text, activation)
    except KeyError as e:
        raise CheckpointError(f"{place}: a CLIP model needs {e.args[0]}, which is missing") from e


def _vit_from_shapes(shapes: Mapping[str, tuple], head_width: int | None, place: str) -> ViTConfig:
    width, _, patch, _ = shapes["visual.conv1.weight"]
    head_width = head_width or HEAD_WIDTHS.get(width)
    if not head_width:
        raise CheckpointError(f"{place}: a vision width of {width} does not tell its head width: pass head_width=")
    side = _square_side(shapes["visual.positional_embedding"][0] - 1, place)
    layers = _count(shapes, r"visual\.transformer\.resblocks\.(\d+)\.")
    hidden = shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0]
    return ViTConfig((side * patch, side * patch), patch, width, layers, width // head_width, hidden)


def _resnet_from_shapes(shapes: Mapping[str, tuple], place: str) -> ResNetConfig:
    width = shapes["visual.layer1.0.conv1.weight"][0]
    side = 32 * _square_side(shapes["visual.attnpool.positional_embedding"][0] - 1, place)
    blocks = tuple(_count(shapes, rf"visual\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
    return ResNetConfig((side, side), width, blocks, heads=max(width * 32 // 64, 1))


def _square_side(cells: int, place: str) -> int:
    side = math.isqrt(cells)
    if side * side != cells:
        raise CheckpointError(f"{place}: {cells} positions are no square grid")
    return side


def _count(shapes: Mapping[str, tuple], pattern: str) -> int:
    return len({m.group(1) for m in (re.match(pattern, k) for k in shapes) if m})


def load_strict(
    model, arrays: Iterable[tuple[str, np.ndarray]] | Mapping[str, np.ndarray], place: str = "weights"
) -> None:
    """Fills `model`. All names and shapes are compared before anything is assigned.

    Raises `MisfitError` listing missing, unexpected and misshaped keys. Jittor's own loader raises nothing.
    """
    values = dict(arrays.items() if isinstance(arrays, Mapping) else arrays)
    state = model.state_dict()
    values = {k: v.reshape(1) if v.ndim == 0 else v for k, v in values.items()}
    compare_keys({k: tuple(v.shape) for k, v in state.items()}, {k: tuple(v.shape) for k, v in values.items()}, place)
    for name, var in state.items():
        frozen = var.is_stop_grad()
        var.update(type(var)(np.ascontiguousarray(values[name])))
        if frozen:
            var.stop_grad()


def compare_keys(wanted: Mapping[str, tuple], got: Mapping[str, tuple], place: str) -> None:
    """Raises `MisfitError` unless both have the same names and shapes."""
    problems = {
        "missing": [k for k in wanted if k not in got],
        "unexpected": [k for k in got if k not in wanted],
        "misshaped": [f"{k} {got[k]} instead of {wanted[k]}" for k in wanted if k in got and got[k] != wanted[k]],
    }
    told = [
        f"{len(keys)} {what} ({', '.join(keys[:4])}{', …' if len(keys) > 4 else ''})"
        for what, keys in problems.items()
        if keys
    ]
    if told:
        raise MisfitError(f"{place} does not fit the model: {'; '.join(told)}")


def save_checkpoint(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    config: CLIPConfig,
    preprocess: Preprocess,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes safetensors that say all about themselves; `open_checkpoint` needs nothing else."""
    scale = arrays["logit_scale"].reshape(())
    described = describe(config, preprocess, float(scale))
    safetensors.write(path, {**arrays, "logit_scale": scale}, {**(metadata or {}), **described})


def describe(config: CLIPConfig, preprocess: Preprocess, logit_scale: float) -> dict[str, str]:
    """The metadata by which `open_checkpoint` knows a file as jclip's."""
    return {
        "format": "jclip",
        "format_version": FORMAT_VERSION,
        "config": json.dumps(config.to_dict()),
        "preprocess": json.dumps(preprocess.to_dict()),
        "tokenizer": "openai-bpe",
        "logit_scale_raw": repr(logit_scale),
    }


def random_arrays(shapes: Mapping[str, tuple], seed: int) -> dict[str, np.ndarray]:
    """Seeded random weights for parameters of these names: the same on every machine, activations of order one.

    Norms and statistics are random as well, so that swapped or forgotten ones show.
    """
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes.items():
        x = rng.standard_normal(shape, dtype=np.float32)
        if name == "logit_scale":
            x = np.full(shape, math.log(100.0), np.float32)
        elif name.endswith("running_var"):
            x = 0.5 + np.abs(x)
        elif re.search(r"(ln_\w+|bn\d|downsample\.1)\.weight$", name):
            x = 1.0 + 0.1 * x
        elif name.endswith(("bias", "running_mean")):
            x = 0.05 * x
        else:
            fan_in = shape[0] if name.endswith(("proj", "text_projection")) else math.prod(shape[1:]) or shape[0]
            x = x * fan_in**-0.5
        made[name] = x.astype(np.float32)
    return made


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, remembered in the cache for its path, size and modification time."""
    path = Path(path).absolute()
    stat = path.stat()
    key = hashlib.sha256(f"{path}\n{stat.st_size}\n{stat.st_mtime_ns}".encode()).hexdigest()
    note = cache_dir("hashes") / key
    if note.is_file() and len(known := note.read_text()) == 64:
        return known
    digest = compute_sha256(path)
    with replacing(note) as temporary:
        temporary.write_text(digest)
    return digest


def compute_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, read now."""
    sha = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()
