"""Identify a source: its layout from its keys, its architecture from its description or its shapes. Nothing is
guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jclip.data.preprocess import Preprocess
from jclip.errors import CheckpointError, ConfigError, LayoutError, MisfitError, UnknownName, notice
from jclip.prompts.vocabularies import VocabularyFile, tokenizer_files
from jclip.readers import LazyTensor, WeightFile, read_weights
from jclip.readers.schema import TABLE, obey, read_table, read_weight_map
from jclip.weights.checkpoint import (
    Checkpoint,
    compare_keys,
    family_of,
    family_of_tower,
    finite_tensors,
    from_tensors,
    is_ours,
    open_checkpoint,
)
from jclip.weights.families import Stated, refused
from jclip.weights.layouts import (
    from_chinese_clip,
    from_eva,
    from_fg_clip,
    from_huggingface,
    from_open_clip,
    from_siglip,
    from_timm,
    photo_sizes,
)
from jclip.weights.layouts.keymap import Report
from jclip.weights.parameter_shapes import parameter_shapes
from jclip.weights.plain_names import plain_tensors, prefix_hint
from jclip.weights.text_configs import AnyText
from jclip.weights.variants import CLIPConfig

Tower = Literal["image", "text"]
Mapped = Callable[[Mapping[str, LazyTensor]], tuple[dict[str, LazyTensor], Report]]
DESCRIPTIONS = ("open_clip_config.json", "config.json")
WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
INDEX = ".index.json"
LAYOUTS: dict[str, Mapped] = {
    "open_clip": from_open_clip.canonical,
    "Hugging Face CLIPModel": from_huggingface.canonical,
    "EVA-CLIP of the hub": from_eva.hugging_face,
    "EVA-CLIP original": from_eva.original,
    from_timm.OPEN_CLIP: from_timm.canonical,
    from_timm.OWN: from_timm.apple,
    from_chinese_clip.HUGGING_FACE: from_chinese_clip.hugging_face,
    from_chinese_clip.CN_CLIP: from_chinese_clip.cn_clip,
    from_siglip.HUGGING_FACE: from_siglip.hugging_face,
    from_siglip.OPEN_CLIP: from_siglip.open_clip,
    **from_fg_clip.MAPS,
}

FAMILY_OF = {  # layouts that only one family has
    "EVA-CLIP of the hub": "eva",
    "EVA-CLIP original": "eva",
    from_chinese_clip.HUGGING_FACE: from_chinese_clip.FAMILY,
    from_chinese_clip.CN_CLIP: from_chinese_clip.FAMILY,
    from_siglip.HUGGING_FACE: "siglip",
    from_siglip.OPEN_CLIP: "siglip",
}
WORDS = {  # kind of text tower → the file that holds its vocabulary, and where that is published
    "bert": "vocab.txt (of the weights' repository, such as OFA-Sys/chinese-clip-vit-base-patch16, or cn_clip/clip/vocab.txt)",
    "worldwide": "tokenizer.json (of the weights' repository, such as facebook/metaclip-2-worldwide-huge-quickgelu)",
    "siglip": "tokenizer.json or spiece.model (of the weights' repository, such as google/siglip2-base-patch16-224)",
}


@dataclass(frozen=True)
class Source:
    """An identified model, and the mapping of each key to jclip's names."""

    checkpoint: Checkpoint
    report: Report
    layout: str

    def check(self) -> None:
        """Raise `MisfitError` for keys that are unknown, missing or misshaped, before anything is written."""
        place, tensors = str(self.checkpoint.path), self.checkpoint.tensors
        if self.report.unknown:
            shown = ", ".join(self.report.unknown[:4])
            raise MisfitError(f"{place} holds {len(self.report.unknown)} keys that no rule knows ({shown})")
        got = {k: t.shape or (1,) for k, t in tensors.items()}
        compare_keys(parameter_shapes(self.checkpoint.config), got, place)


def identify(src: Path, stated: Stated | None = None, tower: Tower | None = None) -> Source:
    """Identify a file or a folder. tower: the one that an export holds, or the one to keep of two.

    Raises `CheckpointError` when it is unknown, or does not state all that is needed.
    """
    stated = stated or Stated()
    if not src.exists():
        raise CheckpointError(f"there is no {src}")
    found = _folder(src, stated) if src.is_dir() else _file(src, stated)
    if stated.texts and found.layout.removesuffix(" folder") not in from_fg_clip.MAPS:
        raise ConfigError(f"--texts must be of FG-CLIP 2's weights, got {src}, which read texts in one way")
    config = found.checkpoint.config
    alone = "text" if config.vision is None else "image" if config.text is None else None
    if alone and tower != alone:
        raise CheckpointError(f"{src} holds the {alone} tower alone: pass --tower {alone} if that is meant")
    return _only(found, tower) if tower and not alone else found


def _only(found: Source, tower: Tower) -> Source:
    """Keep one of two towers; the logit scale, which belongs to the pair, is dropped with the other."""
    kept = replace(found.checkpoint.config, **{"text" if tower == "image" else "vision": None})
    names = set(parameter_shapes(kept))
    tensors = {k: t for k, t in found.checkpoint.tensors.items() if k in names}
    dropped = [k for k in found.checkpoint.tensors if k not in names]
    report = replace(found.report, dropped=[*found.report.dropped, *dropped])
    words = found.checkpoint.vocabulary if tower == "text" else None
    checkpoint = replace(found.checkpoint, tensors=tensors, config=kept, vocabulary=words)
    return replace(found, checkpoint=checkpoint, report=report)


def _file(src: Path, stated: Stated) -> Source:
    try:
        checkpoint = open_checkpoint(src, stated=stated)
        layout = "jclip" if checkpoint.metadata.get("format") == "jclip" else "OpenAI's names"
        return Source(checkpoint, Report(copied=list(checkpoint.tensors)), layout)
    except LayoutError:
        pass
    if any((src.parent / name).is_file() for name in DESCRIPTIONS) and src.name in WEIGHTS:
        return _folder(src.parent, stated)
    file = read_weights(src)
    raw = plain_tensors(file, src, stated)
    layout = layout_of(raw, src)
    tensors, report = LAYOUTS[layout](raw)
    family = FAMILY_OF.get(layout) or family_of_tower(tensors) or family_of(src, file, stated)
    found = from_tensors(src, tensors, stated.believing(family), layout)
    return Source(replace(found, vocabulary=words_beside(src.parent, found.config.text, src)), report, layout)


def _folder(folder: Path, stated: Stated) -> Source:
    described = described_by(folder)
    files = weight_files(folder)
    if described is None:
        if len(files) == 1:
            return _file(files[0], stated)
        raise CheckpointError(f"{folder} describes its weights in neither {' nor '.join(DESCRIPTIONS)}")
    if described.name == DESCRIPTIONS[0] and len(files) == 1 and is_ours(files[0]):
        return _file(files[0], stated)
    if stated.anything or stated.head_width:
        raise ConfigError(
            f"{folder} is a folder that says itself what --family, --activation, --normalisation, --resize and "
            f"--vision-head-width would say: remove these, or name {files[0]} in a folder without {described.name}"
        )
    said = read_table(described)
    with _errors_name(described):
        if fine := said.get("model_type") == from_fg_clip.KIND:
            config, preprocess = _fg_clip(said, described, stated.texts)
        else:
            config, preprocess = (_open_clip if described.name == DESCRIPTIONS[0] else _hugging_face)(said, described)
    raw = plain_tensors(_tensors_of(folder), folder, stated)
    layout = from_fg_clip.LAYOUTS[stated.texts or from_fg_clip.DEFAULT] if fine else layout_of(raw, folder)
    tensors, report = LAYOUTS[layout](raw)
    layout = from_siglip.called(layout, config)
    facts = {"source_family": f"as {described.name} says", "source_layout": layout}
    words = words_beside(folder, config.text, folder)
    checkpoint = Checkpoint(folder, finite_tensors(tensors, folder), config, preprocess, facts, tuple(files), words)
    return Source(checkpoint, report, f"{layout} folder")


def words_beside(folder: Path, text: AnyText | None, place: Path) -> VocabularyFile | None:
    """Return the vocabulary that a text tower needs, from the folder of its weights; None where it is CLIP's own.

    Raises `CheckpointError` with the file to put there.
    """
    kind = None if text is None else "worldwide" if getattr(text, "end", None) is not None else text.kind
    if kind not in WORDS:
        return None
    if (found := tokenizer_files(folder)) is None:
        raise CheckpointError(f"{place} needs its vocabulary, which is not beside it: put {WORDS[kind]} into {folder}")
    return found


def described_by(folder: Path) -> Path | None:
    """Return the file of a folder that describes its weights."""
    return next((folder / name for name in DESCRIPTIONS if (folder / name).is_file()), None)


def _open_clip(said: dict[str, Any], place: Path) -> tuple[CLIPConfig, Preprocess]:
    obey(said, {"model_cfg": TABLE, "preprocess_cfg": TABLE})
    config = from_open_clip.config_from(said.get("model_cfg", {}), place)
    return config, from_open_clip.preprocess_from(said.get("preprocess_cfg", {}), config)


def _hugging_face(said: dict[str, Any], place: Path) -> tuple[CLIPConfig, Preprocess]:
    if from_chinese_clip.is_config(said):
        return _chinese_clip(said, place)
    of_siglip = said.get("model_type") in from_siglip.KINDS
    layout = from_siglip if of_siglip else from_eva if from_eva.is_config(said) else from_huggingface
    config = layout.config_from(said, place)
    return config, _photos_beside(place, config, from_siglip if of_siglip else from_huggingface)


def _fg_clip(said: dict[str, Any], place: Path, texts: str | None) -> tuple[CLIPConfig, Preprocess]:
    config = from_fg_clip.config_from(said, texts or from_fg_clip.DEFAULT, place)
    return config, _photos_beside(place, config, from_fg_clip)


def _chinese_clip(said: dict[str, Any], place: Path) -> tuple[CLIPConfig, Preprocess]:
    config = from_chinese_clip.config_from(said, place)
    return config, _photos_beside(place, config, from_chinese_clip, absent=from_chinese_clip.PREPROCESSOR)


def _photos_beside(place: Path, config: CLIPConfig, layout: Any, absent: Mapping[str, Any] | None = None) -> Preprocess:
    """Return what preprocessor_config.json beside `place` says of photos, as `layout` reads it; `absent` is read where
    there is no file. What jclip does otherwise is reported in a line."""
    beside = place.with_name("preprocessor_config.json")
    with _errors_name(beside):
        said = read_table(beside) if beside.is_file() else absent or {}
        made = layout.preprocess_from(said, config)
    if config.vision is not None and (other := photo_sizes.differing(said, made)):
        _say_sizes(beside, made.size, ", ".join(other))
    return made


@cache
def _say_sizes(file: Path, size: tuple[int, int], other: str) -> None:
    notice(
        f"{file} says {other}: photos are resized to the model's {size[0]} x {size[1]} and normalised all the same, unlike "
        "in transformers"
    )


def layout_of(names: Iterable[str], place: object) -> str:
    """Return the layout, identified by the keys. Raises `CheckpointError` naming a family that is recognised but not
    supported."""
    names = set(names)

    def has(*starts: str) -> bool:
        return any(name.startswith(starts) for name in names)

    if from_fg_clip.is_fg_clip(names):
        raise CheckpointError(f"{place} is of FG-CLIP 2: its folder must hold config.json and the vocabulary as well")
    if layout := from_timm.layout_of(names, place) or from_siglip.layout_of(names):
        return layout
    if has("bert.encoder.layer."):
        return from_chinese_clip.CN_CLIP
    if has("text_model.encoder.layer."):
        return from_chinese_clip.HUGGING_FACE
    if has("text_decoder.", "visual.attn_pool."):
        raise refused("coca", place)
    if has("text.transformer.encoder.layer.", "text.transformer.embeddings."):
        raise refused("foreign-tower", place, "its text tower")
    if has("vision_model.embeddings.", "text_model.embeddings."):
        eva = has("vision_model.embeddings.patch_embedding.bias") and not has("vision_model.pre_layrnorm.")
        return "EVA-CLIP of the hub" if eva else "Hugging Face CLIPModel"
    if has("visual.cls_token", "visual.patch_embed."):
        return "EVA-CLIP original"
    if has("visual.trunk."):
        return _trunk(names, place)
    if has("visual.conv1.") and has("visual.proj") and not has("visual.ln_pre."):
        raise refused("clipa", place)
    if has("visual.conv1.", "text.token_embedding.", "token_embedding."):
        return "open_clip"
    shown = ", ".join(sorted(names)[:4]) or "no tensor at all"
    raise CheckpointError(f"{place} is of no CLIP family that is known (it holds {shown} …){prefix_hint(names)}")


def _trunk(names: set[str], place: object) -> str:
    """Return the layout of timm's towers, of which EVA02's and E's are supported."""
    block = "visual.trunk.blocks.0"
    if {f"{block}.attn.qkv.bias", f"{block}.attn.gate.weight"} & names or "visual.trunk.cls_token" not in names:
        parts = sorted({name.split(".")[2] for name in names if name.startswith("visual.trunk.")})
        raise refused("foreign-tower", place, f"a timm tower of {', '.join(parts[:6])}")
    return "open_clip"


def weight_files(folder: Path) -> list[Path]:
    """Return the one file with a folder's weights, or the shards that an index names. Raises `CheckpointError`."""
    first = _weights(folder)
    if not first.name.endswith(INDEX):
        return [first]
    return [folder / file for file in sorted(set(_weight_map(first).values()))]


def _weights(folder: Path) -> Path:
    """Return the first existing file in the order of `WEIGHTS`, whole or as an index of shards."""
    for name in WEIGHTS:
        for candidate in (folder / name, folder / f"{name}{INDEX}"):
            if candidate.is_file():
                return candidate
    raise CheckpointError(f"{folder} holds no weights (one of {', '.join(WEIGHTS)}, or an index of shards)")


def _tensors_of(folder: Path) -> WeightFile:
    """Return all tensors; of shards exactly those that the index places there."""
    first = _weights(folder)
    if not first.name.endswith(INDEX):
        return read_weights(first)
    placed = _weight_map(first)
    shards = {file: read_weights(folder / file) for file in sorted(set(placed.values()))}
    lost = [key for key, file in placed.items() if key not in shards[file]]
    if lost:
        raise CheckpointError(f"{folder}: {placed[lost[0]]} lacks {lost[0]}, which {first.name} places there")
    return WeightFile({key: shards[file][key] for key, file in placed.items()})


def _weight_map(index: Path) -> dict[str, str]:
    placed = read_weight_map(index)
    absent = sorted({file for file in placed.values() if not (index.parent / file).is_file()})
    if absent or not placed:
        missing = ", ".join(absent[:4]) or "every shard"
        raise CheckpointError(f"{index.parent}: {missing} is missing, which {index.name} names: fetch it as well")
    return placed


@contextmanager
def _errors_name(place: Path) -> Iterator[None]:
    """Turn errors of a description into a `CheckpointError` that names its file."""
    try:
        yield
    except (ConfigError, UnknownName) as e:
        raise CheckpointError(f"{place}: {e}") from e
