"""`python convert SRC DST`: weights of CLIP in any layout that is known, to files that jclip reads and that say what they are.

Nothing in SRC is executed and nothing is guessed; tensors pass one after the other, so memory stays small. Exit code 2
for what the user can mend, 1 for weights that do not fit.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from convert import from_huggingface, from_open_clip
from convert.keymap import Report
from jclip.checkpoint import compare_keys, describe, file_sha256, open_checkpoint
from jclip.errors import CheckpointError, ConfigError, MisfitError, guarded
from jclip.paths import replacing
from jclip.preprocess import Preprocess
from jclip.readers import LazyTensor, jittor_pickle, safetensors
from jclip.variants import FAMILIES, CLIPConfig, ResNetConfig, parameter_shapes

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Source:
    """A model that has been identified, its tensors in OpenAI's names and not yet read."""

    tensors: dict[str, LazyTensor]
    config: CLIPConfig
    preprocess: Preprocess
    report: Report
    layout: str
    facts: dict[str, str]  # hash and family, for the metadata


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser("convert", description=__doc__.split("\n\n")[0])
    p.add_argument("src", metavar="SRC", help="a weight file, or a folder of Hugging Face's CLIPModel or of open_clip")
    p.add_argument("dst", metavar="DST", help="a folder, or a file that ends in .safetensors or .pkl (Jittor's)")
    p.add_argument("--dtype", choices=DTYPES, default="fp32", help="how floats are stored; the logit scale stays fp32")
    add_identity(p)
    return p


def add_identity(p: argparse.ArgumentParser) -> None:
    """Options for what a file may not say of itself."""
    p.add_argument("--family", choices=FAMILIES, help="whose weights these are, for a file that doesn't say")
    p.add_argument("--vision-head-width", type=int, help="for an image tower of a width that is not in the table")


def main(argv: list[str]) -> int:
    """Converts, and returns the exit code."""
    args = parser().parse_args(argv)
    return guarded(lambda: convert(args), "convert")


def inspect(argv: list[str]) -> int:
    """`jclip inspect SRC`: tells what a weight file or folder is, without reading its tensors."""
    p = argparse.ArgumentParser("jclip inspect", description=inspect.__doc__)
    p.add_argument("src", metavar="SRC", help="a weight file, or a folder of Hugging Face's CLIPModel or of open_clip")
    add_identity(p)
    args = p.parse_args(argv)
    print(told(identify(Path(args.src), args.family, args.vision_head_width)))
    return 0


def convert(args: argparse.Namespace) -> int:
    """Identify, compare all names and shapes, then write."""
    source, dst = identify(Path(args.src), args.family, args.vision_head_width), Path(args.dst)
    check(source, args.src)
    kind = "folder" if dst.suffix not in WRITERS else dst.suffix
    if kind == "folder" and dst.is_file():
        raise ConfigError(f"{dst} is a file: name a folder, or a file that ends in {' or '.join(WRITERS)}")
    dtypes = {k: "float32" if k == "logit_scale" else DTYPES[args.dtype] for k in source.tensors}
    if kind == "folder":
        write_folder(dst, source, dtypes)
    else:
        WRITERS[kind](dst, source, dtypes)
    print(told(source))
    print(f"keys: {source.report}\nwritten: {dst} ({args.dtype})")
    return 0


def identify(src: Path, family: str | None, head_width: int | None) -> Source:
    """What SRC is. Raises `CheckpointError` when it is not known, or does not say all that must be known."""
    if not src.exists():
        raise CheckpointError(f"there is no {src}")
    if not src.is_dir():
        return _file(src, family, head_width)
    if family or head_width:
        raise ConfigError(f"{src} is a folder, which says itself what --family and --vision-head-width would say")
    if (src / from_open_clip.CONFIG).is_file():
        return Source(*from_open_clip.read(src), "open_clip folder", {"source_family": "openclip"})
    if (src / "config.json").is_file():
        return Source(*from_huggingface.read(src), "Hugging Face CLIPModel folder", {"source_family": "huggingface"})
    raise CheckpointError(
        f"{src} is neither a folder of open_clip ({from_open_clip.CONFIG}) nor of Hugging Face (config.json)"
    )


def _file(src: Path, family: str | None, head_width: int | None) -> Source:
    found = open_checkpoint(src, family, head_width)
    facts = {k: found.metadata[k] for k in ("source_family",) if k in found.metadata}
    report = Report(copied=list(found.tensors))
    return Source(
        found.tensors, found.config, found.preprocess, report, "file", {**facts, "source_sha256": file_sha256(src)}
    )


def check(source: Source, place: str) -> None:
    """Raises `MisfitError` for keys that are unknown, missing or misshaped, before anything is written."""
    if source.report.unknown:
        shown = ", ".join(source.report.unknown[:4])
        raise MisfitError(f"{place} holds {len(source.report.unknown)} keys that no rule knows ({shown})")
    got = {k: t.shape or (1,) for k, t in source.tensors.items()}
    compare_keys(parameter_shapes(source.config), got, place)


def told(source: Source) -> str:
    """What it is, line by line."""
    v, t = source.config.vision, source.config.text
    kind = "ResNet" if isinstance(v, ResNetConfig) else f"ViT, patch {v.patch_size}"
    layers = "-".join(map(str, v.layers)) if isinstance(v, ResNetConfig) else v.layers
    dtypes = sorted({tensor.dtype for tensor in source.tensors.values()})
    count = sum(_size(tensor.shape) for k, tensor in source.tensors.items() if "running_" not in k)
    rows = {
        "layout": source.layout,
        "family": source.facts.get("source_family", "jclip"),
        "image tower": f"{kind}, width {v.width}, layers {layers}, heads {v.heads}, input {_times(v.image_size)}",
        "text tower": f"width {t.width}, layers {t.layers}, heads {t.heads}, context length {t.context_length}",
        "embedding": source.config.embed_dim,
        "activation": source.config.activation,
        "parameters": f"{count:,} in {len(source.tensors)} tensors, {', '.join(dtypes)}",
        "sha256": source.facts.get("source_sha256", "of a folder, not computed"),
    }
    return "\n".join(f"{name:<12} {value}" for name, value in rows.items())


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _size(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def write_safetensors(path: Path, source: Source, dtypes: dict[str, str]) -> None:
    """One file that says all of itself."""
    scale = float(source.tensors["logit_scale"].read().reshape(()))
    metadata = {**source.facts, **describe(source.config, source.preprocess, scale)}
    tensors = {**source.tensors, "logit_scale": _scalar(source.tensors["logit_scale"])}
    safetensors.write_tensors(path, tensors, dtypes, metadata)


def write_pickle(path: Path, source: Source, dtypes: dict[str, str]) -> None:
    """Jittor's `.pkl`, for code of the challenge; it says nothing of itself, and knows no bfloat16."""
    if "bfloat16" in dtypes.values():
        raise ConfigError(f"{path}: a .pkl holds NumPy's numbers, which lack bf16: use fp16 or a .safetensors")
    jittor_pickle.write(path, {k: t.read().astype(dtypes[k]) for k, t in source.tensors.items()})


def write_folder(folder: Path, source: Source, dtypes: dict[str, str]) -> None:
    """model.safetensors, and the description by which open_clip loads the folder as `local-dir:`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", source, dtypes)
    with replacing(folder / from_open_clip.CONFIG) as temporary:
        temporary.write_text(json.dumps(from_open_clip.described(source.config, source.preprocess), indent=2) + "\n")


def _scalar(tensor: LazyTensor) -> LazyTensor:
    return LazyTensor((), tensor.dtype, lambda: tensor.read().reshape(()))


WRITERS = {".safetensors": write_safetensors, ".pkl": write_pickle}
