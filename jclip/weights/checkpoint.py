"""Checkpoints: read weights, identify the model, load them strictly, and save them. Nothing is executed or guessed.

A file written by jclip describes itself in its metadata. Of other files, shapes give the architecture; activation,
normalisation and resize mode are not in the weights, so they come from a known fingerprint (the three scalars that
only OpenAI's own files carry) or from `family`, which the user names. Otherwise the file is refused with the choices.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from jclip.data.preprocess import Preprocess
from jclip.errors import CheckpointError, ConfigError, LayoutError, MisfitError, printable
from jclip.functional.positions import resample_positions
from jclip.paths import file_sha256
from jclip.prompts.tokenizer import OPENAI_BPE
from jclip.prompts.vocabularies import VocabularyFile
from jclip.readers import LazyTensor, WeightFile, read_weights, safetensors
from jclip.readers.schema import LARGEST_DESCRIPTION, parse
from jclip.weights import catalogue
from jclip.weights.context_lengths import ContextMethod, another_context, check_context
from jclip.weights.families import FAMILIES, Stated
from jclip.weights.layouts import from_long_clip
from jclip.weights.parameter_shapes import config_from_shapes, parameter_shapes
from jclip.weights.plain_names import SCALARS, plain_names, plain_tensors
from jclip.weights.random_weights import random_arrays as random_arrays
from jclip.weights.stored_vocabulary import SETTINGS, stored, vocabulary_of, weights_alone
from jclip.weights.text_configs import TEXT_NAMES
from jclip.weights.tower_shapes import PROBE, STEM
from jclip.weights.variants import CLIPConfig, EVAConfig, ResNetConfig, SigLIPImageConfig, architecture_name

FORMAT_VERSION = "1"
LARGEST_SCALE = 7.0  # of |logit_scale|: e^7 is eleven times what CLIP clamps its temperature to
_TOWERS = {"visual.trunk.cls_token": "eva", PROBE: "pe", STEM: "mobileclip"}


@dataclass(frozen=True)
class Checkpoint:
    """Identified weights. `tensors` have the names of `parameter_shapes`, and are read on demand."""

    path: Path  # the file, or the folder of `files`
    tensors: dict[str, LazyTensor]
    config: CLIPConfig
    preprocess: Preprocess
    metadata: dict[str, str]
    files: tuple[Path, ...] = ()
    vocabulary: VocabularyFile | None = None  # None: CLIP's own

    def arrays(self) -> Iterable[tuple[str, np.ndarray]]:
        """Yield name and float32 values, one tensor at a time."""
        return ((k, t.read().astype(np.float32, copy=False)) for k, t in self.tensors.items())

    @property
    def sha256(self) -> str:
        """The hash of the file, or of several files' hashes; cached as in `file_sha256`."""
        if len(self.files) < 2:
            return file_sha256(self.files[0] if self.files else self.path)
        return hashlib.sha256("".join(map(file_sha256, self.files)).encode()).hexdigest()

    def resized(self, image_size: int | tuple[int, int], antialias: bool | None = None) -> Checkpoint:
        """Return the weights for another input size (H, W), position tables resampled; see `functional.positions`.

        antialias: True as open_clip does it, False as Hugging Face, EVA and SigLIP; by default each family's own way. A tower
        for any proportions becomes one for squares, its table resampled as for a photo of that size. Raises
        `ConfigError` for a size that is not a multiple of the patch (ResNets: of 32).
        """
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        old = self.config.vision
        if old is None:
            raise ConfigError(f"{self.path} holds no image tower: it has no image size")
        linear = isinstance(old, SigLIPImageConfig) and old.any_shape
        if old.image_size == (height, width) and not linear:
            return self
        step = 32 if isinstance(old, ResNetConfig) else old.patch_size
        if min(height, width) < step or height % step or width % step:
            raise ConfigError(f"image size must be a multiple of {step}, the model's step, got {height} x {width}")
        new = replace(old, image_size=(height, width), **({"any_shape": False} if linear else {}))
        usual = linear or not isinstance(new, (EVAConfig, SigLIPImageConfig))
        antialias = usual if antialias is None else antialias
        key, before = IMAGE_POSITIONS[new.kind], self.tensors[IMAGE_POSITIONS[new.kind]]
        table = before.read().astype(np.float32)
        table = resample_positions(table.reshape(table.shape[-2:]), old.grid, new.grid, antialias, linear=linear)
        table = table.reshape((*before.shape[:-2], *table.shape))
        how = f"antialias {str(antialias).lower()}{', bilinear' * linear}"
        said = f"{old.grid[0]}x{old.grid[1]} to {new.grid[0]}x{new.grid[1]}, {how}"
        return replace(
            self,
            tensors={**self.tensors, key: in_memory(table)},
            config=replace(self.config, vision=new),
            preprocess=replace(self.preprocess.fixed(), size=(height, width)),
            metadata={**self.metadata, "image_positions": said},
        )

    def with_context(self, length: int, method: ContextMethod = "auto") -> Checkpoint:
        """Return the weights for another context length: rows cut off, or resampled linearly; "auto" cuts and grows.

        "long-clip": 77 tokens to 248, see `stretch_fourfold`. Raises `ConfigError` for a length that can't be.
        """
        text = self.config.text
        if text is None:
            raise ConfigError(f"{self.path} holds no text tower: it has no context length")
        if length == text.context_length:
            return self
        check_context(text.context_length, length, method)
        if text.kind == "siglip":
            raise ConfigError(f"SigLIP reads a text at its last place: its context of {text.context_length} must stay")
        if text.kind != "clip":
            return self._with_fewer_positions(length)
        resized = replace(text, context_length=length)
        table, said = another_context(self.tensors["positional_embedding"].read().astype(np.float32), length, method)
        return replace(
            self,
            tensors={**self.tensors, "positional_embedding": in_memory(table)},
            config=replace(self.config, text=resized),
            metadata={**self.metadata, "text_positions": said},
        )

    def _with_fewer_positions(self, length: int) -> Checkpoint:
        """Return the weights of a tower whose table has more positions than its context uses, for another context."""
        most = getattr(self.config.text, "positions", self.config.text.context_length)
        if length > most:
            raise ConfigError(
                f"a context must be at most {most} long, the rows of the table of positions, got {length}"
            )
        return replace(self, config=replace(self.config, text=replace(self.config.text, context_length=length)))


IMAGE_POSITIONS = {
    "vit": "visual.positional_embedding",
    "resnet": "visual.attnpool.positional_embedding",
    "eva": "visual.trunk.pos_embed",
    "pe": "visual.positional_embedding",
    "mobile": "visual.positional_embedding",
    "siglip": "visual.trunk.pos_embed",
}


def weight_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of all weights as float32."""
    return sum(4 * math.prod(tensor.shape) for tensor in checkpoint.tensors.values())


def in_memory(array: np.ndarray) -> LazyTensor:
    """Wrap an array as a tensor of a file."""
    return LazyTensor(array.shape, str(array.dtype), lambda: array)


def open_checkpoint(
    path: str | os.PathLike, family: str | None = None, head_width: int | None = None, stated: Stated | None = None
) -> Checkpoint:
    """Read names and shapes of a file in OpenAI's layout, or jclip's, and identify the model.

    family, head_width, stated: what the file does not state itself, see `Stated`; contradicting one that does is an
    error. Raises `LayoutError` for another layout, which `convert` reads, and `CheckpointError` for unknown files.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} must be a regular file, got a {'folder' if path.is_dir() else 'FIFO or device'}")
    stated = stated or Stated(family=family, head_width=head_width)
    file = read_weights(path)
    if file.metadata.get("format") == "jclip":
        stated.refuse_names(path)
        return _from_metadata(path, file, stated)
    tensors = plain_tensors(file, path, stated)
    if not is_openai_layout(tensors):
        shown = ", ".join(list(tensors)[:4]) or "no tensor at all"
        raise LayoutError(f"{path} must be a CLIP model in OpenAI's layout, got {shown} …")
    return _fitting(from_tensors(path, tensors, stated.believing(family_of(path, file, stated)), "openai names"))


def is_ours(path: Path) -> bool:
    """Return whether jclip wrote this file, so that it describes itself."""
    return read_weights(path).metadata.get("format") == "jclip"


def is_openai_layout(names: Iterable[str]) -> bool:
    """Return whether these are the names of `CLIP`'s own parameters, with both towers."""
    return {"visual.conv1.weight", "token_embedding.weight"} <= set(names)


def from_tensors(path: Path, tensors: dict[str, LazyTensor], stated: Stated, layout: str) -> Checkpoint:
    """Identify a model by its shapes and what is stated. Raises `CheckpointError` with what must be stated."""
    config = config_from_shapes({k: t.shape for k, t in tensors.items()}, stated, path)
    size = config.vision.image_size if config.vision else (224, 224)
    facts = {"source_family": stated.family or "stated", "source_layout": layout}
    files = (path,) if path.is_file() else ()
    return Checkpoint(path, finite_tensors(tensors, path), config, stated.preprocess(size), facts, files)


def finite_tensors(tensors: Mapping[str, LazyTensor], path: Path) -> dict[str, LazyTensor]:
    """Return the same tensors, each checked when it is read: NaN and infinite values, and a temperature that is not
    stored as its logarithm, raise `CheckpointError` with the tensor's name."""
    return {k: replace(t, read=partial(_read_finite, k, t, path)) for k, t in tensors.items()}


def _read_finite(name: str, tensor: LazyTensor, path: Path) -> np.ndarray:
    values = tensor.read()
    refuse_infinite(name, values, path)
    if name == "logit_scale" and values.size == 1:
        _check_scale(float(values.reshape(())), path)
    return values


def refuse_infinite(name: str, values: np.ndarray, place: object) -> None:
    """Raise `CheckpointError` where a value is NaN or infinite."""
    if values.dtype.kind != "f":
        return
    half = values.dtype == np.float16  # by its bits: ten times as fast as NumPy's own test
    finite = (values.view(np.uint16) & 0x7C00) != 0x7C00 if half else np.isfinite(values)
    if not finite.all():
        lost = values.size - int(np.count_nonzero(finite))
        raise CheckpointError(f"{place}: {name} must be finite, got {lost:,} NaN or infinite of {values.size:,} values")


def _check_scale(value: float, path: Path) -> None:
    if abs(value) <= LARGEST_SCALE:
        return
    meant = f": it is already exponentiated; save its logarithm {math.log(value):.4f} instead" if value > 0 else ""
    raise CheckpointError(
        f"{path}: logit_scale must be the logarithm of a temperature, from -{LARGEST_SCALE:g} to {LARGEST_SCALE:g} "
        f"(CLIP's own: 4.6052), got {value:g}{meant}"
    )


def _fitting(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint. Raises `MisfitError` unless the file holds what its description, or its shapes, require,
    before anything is allocated."""
    got = {k: t.shape or (1,) for k, t in checkpoint.tensors.items()}
    compare_keys(parameter_shapes(checkpoint.config), got, str(checkpoint.path))
    return checkpoint


def family_of_tower(names: Iterable[str]) -> str | None:
    """Return the family that an image tower alone shows, by `CLIP`'s names; else None."""
    names = set(names)
    return next((family for key, family in _TOWERS.items() if key in names), None)


def family_of(path: Path, file: WeightFile, stated: Stated) -> str | None:
    """Return the family that a file shows: OpenAI's by its scalars, Long-CLIP's by its second table, a published one by its
    SHA-256; else None."""
    names = plain_names(file, stated)
    if from_long_clip.is_long_clip(names):
        return "long-clip"
    if family := family_of_tower(names):
        return family
    if all(s in names for s in SCALARS):
        return "openai"
    if stated.anything:
        return None
    known = catalogue.by_sha256(file_sha256(path))
    return known.family if known else None


def _from_metadata(path: Path, file: WeightFile, stated: Stated) -> Checkpoint:
    try:
        config = CLIPConfig.from_dict(_described(file, "config"))
        preprocess = Preprocess.from_dict(_described(file, "preprocess"))
        if config.vision and preprocess.size != config.vision.image_size:
            raise ConfigError(f"size must be image_size {config.vision.image_size} of vision, got {preprocess.size}")
        vocabulary = vocabulary_of(file) if config.text else None
        if config.text and config.text.kind != "clip" and vocabulary is None:
            raise ConfigError(f"{TEXT_NAMES[config.text.kind]} needs a vocabulary, tokenizer is {OPENAI_BPE}")
    except (CheckpointError, ConfigError) as e:
        raise CheckpointError(f"{path} was written by jclip but its metadata is damaged: {e}") from e
    wanted = stated.activation or (FAMILIES[stated.family].activation if stated.family else None)
    if wanted not in (None, config.activation):
        said = f"family {stated.family!r}" if stated.family else f"--activation {wanted}"
        raise CheckpointError(f"{path} says activation {config.activation}, {said} contradicts it")
    facts = {
        printable(k): printable(v) for k, v in file.metadata.items() if k not in ("config", "preprocess", SETTINGS)
    }
    tensors = finite_tensors(weights_alone(file.tensors), path)
    return _fitting(Checkpoint(path, tensors, config, preprocess, facts, (path,), vocabulary))


def _described(file: WeightFile, key: str) -> dict:
    if key not in file.metadata:
        raise CheckpointError(f"{key} is missing")
    if len(file.metadata[key]) > LARGEST_DESCRIPTION:
        raise CheckpointError(f"{key} must be at most {LARGEST_DESCRIPTION:,} characters long")
    return parse(file.metadata[key], key)


def load_strict(
    model,
    arrays: Iterable[tuple[str, np.ndarray]] | Mapping[str, np.ndarray | LazyTensor],
    place: str = "weights",
) -> None:
    """Fill `model`. All names and shapes are compared before anything is assigned; tensors of a file are read one by
    one.

    Raises `MisfitError` listing missing, unexpected and misshaped keys, and `CheckpointError` for NaN and infinite
    values. Jittor's own loader raises nothing.
    """
    values = dict(arrays.items() if isinstance(arrays, Mapping) else arrays)
    state = model.state_dict()
    shapes = {k: tuple(v.shape) or (1,) for k, v in values.items()}
    compare_keys({k: tuple(v.shape) for k, v in state.items()}, shapes, place)
    for name, var in state.items():
        frozen, value = var.is_stop_grad(), values[name]
        array = value.read().astype(np.float32, copy=False) if isinstance(value, LazyTensor) else value
        refuse_infinite(name, array, place)
        var.update(type(var)(np.ascontiguousarray(array.reshape(shapes[name]))))
        if frozen:
            var.stop_grad()


def compare_keys(wanted: Mapping[str, tuple], got: Mapping[str, tuple], place: str) -> None:
    """Raise `MisfitError` unless both have the same names and shapes."""
    problems = {
        "missing": [k for k in wanted if k not in got],
        "unexpected": [k for k in got if k not in wanted],
        "misshaped": [f"{k} {got[k]} instead of {wanted[k]}" for k in wanted if k in got and got[k] != wanted[k]],
    }
    differences = [
        f"{len(keys)} {what} ({', '.join(keys[:4])}{', …' if len(keys) > 4 else ''})"
        for what, keys in problems.items()
        if keys
    ]
    if differences:
        raise MisfitError(f"{place} does not fit the model: {'; '.join(differences)}")


def save_checkpoint(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray | LazyTensor],
    config: CLIPConfig,
    preprocess: Preprocess,
    metadata: Mapping[str, str] | None = None,
    vocabulary: VocabularyFile | None = None,
) -> None:
    """Write safetensors that describe themselves; `open_checkpoint` needs nothing else. vocabulary: None for CLIP's.
    `logit_scale` must be an array."""
    scale = arrays["logit_scale"].reshape(())
    described = describe(config, preprocess, float(scale), vocabulary)
    further, _ = stored(vocabulary)
    safetensors.write(path, {**arrays, "logit_scale": scale, **further}, {**(metadata or {}), **described})


def describe(
    config: CLIPConfig, preprocess: Preprocess, logit_scale: float | None, vocabulary: VocabularyFile | None = None
) -> dict[str, str]:
    """Return the metadata by which `open_checkpoint` recognises jclip's own files."""
    said = {
        "format": "jclip",
        "format_version": FORMAT_VERSION,
        "arch": architecture_name(config) or "unnamed",
        "config": json.dumps(config.to_dict()),
        "preprocess": json.dumps({k: v for k, v in preprocess.to_dict().items() if k != "upright"}),  # the reader's
        **stored(vocabulary)[1],
    }
    return said if logit_scale is None else {**said, "logit_scale_raw": repr(logit_scale)}
