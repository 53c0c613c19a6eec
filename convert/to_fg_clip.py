"""FG-CLIP 2's own folder: one way to read texts out of a file of jclip, all else from the authors' folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from convert.to_jclip import dtypes_of, reshaped_scale
from jclip.errors import CheckpointError, ConfigError, MisfitError
from jclip.readers import read_weights, safetensors
from jclip.readers.schema import read_table
from jclip.weights.checkpoint import Checkpoint, finite_tensors
from jclip.weights.families import Stated
from jclip.weights.identify import Source, identify, weight_files
from jclip.weights.layouts import from_fg_clip, from_siglip

COPIED = (".json", ".txt", ".model", ".jinja", ".py", ".md")  # what lies beside weights: never read as code here
_INDEX = ".index.json"


def is_authors(folder: Path) -> bool:
    """Return whether this is a folder of FG-CLIP 2's authors, by its config.json. Raises `CheckpointError`."""
    described = folder / "config.json"
    return described.is_file() and read_table(described).get("model_type") == from_fg_clip.KIND


def check_places(dst: Path, rest: Path) -> None:
    """Raises `ConfigError` unless `rest` is an authors' folder that DST leaves as it is."""
    if not (rest.is_dir() and is_authors(rest)):
        raise ConfigError(f"--rest-of must be a folder whose config.json says model_type fgclip2, got {rest}")
    ours, theirs = dst.resolve(), rest.resolve()
    if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
        raise ConfigError(f"DST must be apart from --rest-of's folder {rest}, got {dst}: name another")


def joined(found: Checkpoint, rest: Path, texts: str | None) -> tuple[Checkpoint, list[str]]:
    """Return all tensors under the authors' names, those of `found` in place of `rest`'s, and the names that are `rest`'s.

    texts: how `found` reads texts, where neither its metadata nor its context length says so. Raises `ConfigError` for
    weights of another model than `rest`'s, `CheckpointError` and `MisfitError` for a damaged `rest`.
    """
    way = _way(found, rest, texts)
    tower = "image" if found.config.text is None else "text" if found.config.vision is None else None
    model = identify(rest, Stated(texts=way), tower)
    model.check()
    _refuse_others(found, model)
    whole = {name: tensor for file in weight_files(rest) for name, tensor in read_weights(file).items()}
    whole = finite_tensors(whole, rest)
    made = from_fg_clip.to_hugging_face(way, found.tensors, whole)
    for name in {"logit_scale", "logit_bias"} & made.keys() & whole.keys():
        made |= reshaped_scale({name: made[name]}, whole[name].shape)
    wrong = [name for name in made if name not in whole or whole[name].shape != made[name].shape]
    if wrong:
        raise MisfitError(f"{rest} must hold every tensor of SRC in the same shape, got others: {', '.join(wrong[:4])}")
    every = {name: made.get(name, tensor) for name, tensor in whole.items()}
    own = {name for name, tensor in whole.items() if name not in made}
    return replace(found, path=rest, tensors=every), [name for name in every if name in own]


def _way(found: Checkpoint, rest: Path, texts: str | None) -> str:
    """How the weights read texts: what they say of themselves, or `texts`, or what only long texts have."""
    config, layout = found.config, found.metadata.get("source_layout")
    if not from_siglip.is_whole(config) or layout not in (None, *from_fg_clip.MAPS):
        raise ConfigError(f"--to fg_clip must be of weights made from FG-CLIP 2's, got {found.path}, of another family")
    said = next((way for way, name in from_fg_clip.LAYOUTS.items() if name == layout), None)
    if said and texts not in (None, said):
        raise ConfigError(f"--texts must be {said}, as {found.path} says of itself, got {texts}")
    if way := said or texts:
        return way
    if config.text is None:
        return from_fg_clip.DEFAULT
    long = from_fg_clip.config_from(read_table(rest / "config.json"), "long", rest).text.context_length
    if config.text.context_length == long:
        return "long"
    raise ConfigError(f"--texts must be short or box, as {found.path} was made: it does not say which itself")


_OF_READERS = (
    "upright",
    "draft",
    "resize",
    "rgb_first",
    "patch",
    "patch_counts",
)  # not weights': photos may be squashed here


def _refuse_others(found: Checkpoint, model: Source) -> None:
    theirs = model.checkpoint
    named = [(one.config.to_dict(), one.preprocess.to_dict()) for one in (found, theirs)]
    for (ours, wanted), reader in zip(zip(*named, strict=True), ((), _OF_READERS), strict=True):
        for key, got in _flat(ours).items():
            value = _flat(wanted).get(key)
            if got != value and key not in reader:
                raise ConfigError(f"SRC must be of the model in {theirs.path}, which has {key} {value}, got {got}")
    if found.config.text is not None and _words(found) != _words(theirs):
        raise ConfigError(f"SRC must have the vocabulary of {theirs.path}, got another")


def _flat(values: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{at}{key}.") if isinstance(value, Mapping) else {f"{at}{key}": _listed(value)}
    return flat


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _words(checkpoint: Checkpoint) -> bytes | None:
    return None if checkpoint.vocabulary is None else checkpoint.vocabulary.data


def write(folder: Path, checkpoint: Checkpoint, dtype: str) -> None:
    """model.safetensors of what `joined` returned, and copies of what lies beside the weights in `checkpoint.path`."""
    floats = dtypes_of(checkpoint, dtype)
    dtypes = {name: floats[name] if tensor.is_float else tensor.dtype for name, tensor in checkpoint.tensors.items()}
    safetensors.write_tensors(folder / "model.safetensors", checkpoint.tensors, dtypes, {"format": "pt"})
    for file in sorted(checkpoint.path.iterdir()):
        if file.is_file() and file.suffix in COPIED and not file.name.endswith(_INDEX):
            try:
                shutil.copyfile(file, folder / file.name)
            except OSError as e:
                raise CheckpointError(f"can't copy {file}: {e.strerror}") from e
