"""Converts CLIP weights from any known layout to files for jclip or another library.

Nothing in SRC is executed and nothing is guessed; tensors are read one at a time, so memory stays small. Exit code 2 for
what the user can fix, 1 for weights that compute something else than the reference of --check.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jclip.choices import LARGEST_SIZE
from jclip.commands.arguments import Parser, add_shared, nonempty, whole
from jclip.errors import CheckpointError, ConfigError, SetupError, UnsaidError, guarded, say
from jclip.machine import memory_limit
from jclip.paths import replacing, replacing_folder
from jclip.readers import tensors
from jclip.readers.schema import SIDE, shown
from jclip.weights import checkpoint as checkpoints
from jclip.weights import identify, stored_vocabulary
from jclip.weights.download import find_weights, local_path
from jclip.weights.families import NORMALISATIONS, Stated

if TYPE_CHECKING:  # --help answers before NumPy is imported
    import numpy as np

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Target:
    """Where weights go: a folder, or a file with one of these endings. Writers are named, and imported when used."""

    folder: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


_TORCH_FILES = (".pth", ".pt", ".bin")
TARGETS = {
    "jclip": Target("to_jclip:write_folder", {".safetensors": "to_jclip:write_file", ".pkl": "to_jclip:write_pickle"}),
    "open_clip": Target("to_torch:write_open_clip"),
    "huggingface": Target("to_huggingface:write"),
    "cn_clip": Target(files=dict.fromkeys(_TORCH_FILES, "to_chinese_clip:write_cn_clip")),
    "fg_clip": Target("to_fg_clip:write"),
    "long_clip": Target(files=dict.fromkeys(_TORCH_FILES, "to_torch:write_long_clip")),
    "mobileclip": Target(files=dict.fromkeys(_TORCH_FILES, "to_torch:write_mobileclip")),
    "openai": Target(files=dict.fromkeys(_TORCH_FILES, "to_torch:write_openai")),
    "torch": Target(files=dict.fromkeys(_TORCH_FILES, "to_torch:write_state_dict")),
}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("convert", description=__doc__.split("\n\n")[0])
    p.add_argument("src", type=nonempty, metavar="SRC", help=_SRC)
    p.add_argument(
        "dst", type=nonempty, metavar="DST", help="a folder, or a file: .safetensors or .pkl (Jittor's), .pt for torch"
    )
    p.add_argument("--to", choices=TARGETS, default="jclip", help="the library that reads DST (default: jclip)")
    p.add_argument(
        "--dtype",
        choices=DTYPES,
        default="fp32",
        help="data type of stored floats (default: fp32); the logit scale stays fp32",
    )
    p.add_argument(
        "--check", action="store_true", help="also compare the output for a fixed input with the family's reference"
    )
    p.add_argument(
        "--rest-of",
        type=nonempty,
        metavar="FOLDER",
        help="with --to fg_clip: the authors' folder, from which DST takes what SRC does not hold: the other ways to read "
        "texts, the dense head, configuration and tokenizer",
    )
    p.add_argument("--tower", choices=("image", "text"), help="the tower that SRC holds, or the one to keep")
    add_identity(p.add_argument_group("what SRC may not say of itself"))
    finished = p.add_argument_group("DST as a finished run")
    add_prompts(finished)
    add_heads(finished)
    add_sizes(p.add_argument_group("other sizes"))
    return p


def add_heads(p: argparse._ArgumentGroup) -> None:
    """Options for what SRC holds beside a model's towers."""
    p.add_argument(
        "--head",
        nargs="?",
        const="",
        metavar="NAME",
        help="keep the classifier that SRC holds beside its towers (NAME: which, such as head): DST becomes a finished run "
        "of linear_probe with its model",
    )
    p.add_argument(
        "--grounding",
        action="store_true",
        help="SRC is a checkpoint of CLIP-VG, towers and fusion network: DST becomes a finished run; or SRC is such a run: "
        "DST, a .pth, becomes a checkpoint of CLIP-VG",
    )


def add_sizes(p: argparse._ArgumentGroup) -> None:
    """Options that resample positions."""
    p.add_argument(
        "--image-size",
        type=whole(1, LARGEST_SIZE),
        nargs="+",
        metavar="N",
        help="resample to another input size, HEIGHT [WIDTH]; or SRC's own where it is not square",
    )
    p.add_argument(
        "--antialias",
        choices=("yes", "no"),
        help="how image positions are resampled: yes as open_clip, no as Hugging Face and EVA",
    )
    p.add_argument("--context-length", type=whole(2, 4096), metavar="N", help="change the context length to N tokens")
    p.add_argument(
        "--context-by",
        choices=("auto", "truncate", "linear", "long-clip"),
        default="auto",
        help="how (default: auto, which truncates, or grows linearly); long-clip: 77 tokens to 248, the first 20 kept",
    )


_SRC = (
    "a weight file, a folder of jclip, open_clip or Hugging Face, a model's name, hf-hub:owner/name, ms:owner/name, "
    "architecture/tag"
)


def add_identity(p: argparse._ActionsContainer) -> None:
    """Options for what a file may not say of itself."""
    add_shared(p, "--family")
    p.add_argument(
        "--activation", choices=("quickgelu", "gelu", "gelu_tanh"), help="activation (default: the family's)"
    )
    p.add_argument(
        "--normalisation", choices=NORMALISATIONS, help="mean and standard deviation of pixels (default: the family's)"
    )
    p.add_argument("--resize", choices=("shortest", "squash"), help="how photos are resized (default: the family's)")
    p.add_argument(
        "--vision-head-width",
        type=whole(1, 4096),
        metavar="N",
        help="width of an attention head, for an image tower of unknown width",
    )
    p.add_argument(
        "--weights-key",
        type=nonempty,
        metavar="KEY",
        help="which of several sets of weights in SRC, such as state_dict_ema",
    )
    p.add_argument(
        "--prefix", type=nonempty, metavar="NAME", help="what the model's names begin with in SRC, such as model.clip."
    )
    p.add_argument(
        "--post-norm", choices=("yes", "no"), help="whether an EVA tower of unknown width has post-norm blocks"
    )
    p.add_argument(
        "--texts", choices=("short", "box", "long"), help="how FG-CLIP 2's weights read texts (default: short)"
    )


def add_prompts(p: argparse._ActionsContainer) -> None:
    """Options for a SRC that holds learned prompts."""
    p.add_argument(
        "--prompts-of",
        type=nonempty,
        metavar="M",
        help="SRC holds prompts learned with this model (TaI-DPT's, DualCoOp's): DST becomes a finished run",
    )
    p.add_argument(
        "--classes",
        type=nonempty,
        metavar="SET|FILE|a,b,c",
        help="with --prompts-of or --head: the classes' names, in the order of SRC",
    )
    p.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="with --prompts-of or --head: settings of the run, such as tau_image=4 or normalize=true",
    )


def main(argv: list[str]) -> int:
    """Converts, and returns the exit code."""
    return guarded(lambda: memory_limit.require_libraries() or convert(parser().parse_args(argv)), "convert")


def inspect(argv: list[str]) -> int:
    """Shows what a weight file or folder holds, without reading its tensors."""
    p = Parser("jclip inspect", description=inspect.__doc__)
    p.add_argument("src", type=nonempty, metavar="SRC", help=_SRC)
    add_identity(p)
    p.add_argument("--tower", choices=("image", "text"), help="the tower that a single-tower export holds")
    args = p.parse_args(argv)

    from convert.summary import summary

    path, stated, unsaid = locate(args.src), stated_by(args), False
    try:
        source = identify.identify(path, stated, args.tower)
    except UnsaidError:  # all else is known
        source, unsaid = identify.identify(path, replace(stated, activation="gelu"), args.tower), True
    say(summary(source, unsaid))
    return 0


def convert(args: argparse.Namespace) -> int:
    """Writes what the options ask for: a model, or a finished run of learned prompts, of a classifier, of CLIP-VG."""
    if args.head is not None and (args.prompts_of or args.grounding or not args.classes or args.to != "jclip"):
        raise ConfigError("--head must come with --classes, and without --prompts-of, --grounding and --to")
    if (args.rest_of is not None) != (args.to == "fg_clip"):
        raise ConfigError(
            "--to fg_clip and --rest-of must be given together: FOLDER is the authors' folder of FG-CLIP 2"
        )
    if args.grounding:
        from convert.grounding_runs import convert_grounding

        return convert_grounding(args)
    if args.head is None and (args.prompts_of or args.classes or args.set):
        if not (args.prompts_of and args.classes):
            raise ConfigError(
                "--prompts-of and --classes must be given together, with a SRC of learned prompts; or --head and --classes"
            )
        from convert.learned_prompts import import_prompts

        return import_prompts(args)
    return convert_weights(args)


def convert_weights(args: argparse.Namespace) -> int:
    """Writes the model of SRC, all names and shapes compared, for the library that reads DST; or with its classifier."""
    from convert.summary import summary

    src, dst = locate(args.src), Path(args.dst)
    write = None if args.head is not None else writer_for(args.to, dst, src)
    stated, rest = stated_by(args), None
    if args.rest_of is not None:
        rest, stated = rest_of(args, dst, src, stated)
    source = identify.identify(src, stated, args.tower)
    source.check()
    check_vocabulary(source.checkpoint)
    source = replace(source, checkpoint=reshaped(source.checkpoint, args))
    if args.check:
        from convert.check import against_reference

        say("\n".join(against_reference(source)))
    if write is None:
        from convert.classifier_heads import import_head

        fitted = replace(source, checkpoint=fitting(source.checkpoint, args.dtype))
        return import_head(args, src, fitted, stated_by(args), DTYPES[args.dtype])
    written, kept = source.checkpoint, ""
    if rest is not None:
        from convert.to_fg_clip import joined

        written, names = joined(source.checkpoint, rest, args.texts)
        kept = f"\nof {rest}: {len(names)} tensors ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
    write(fitting(written, args.dtype), DTYPES[args.dtype])
    say(summary(source))
    say(f"keys: {source.report}{kept}\nwritten: {dst} ({args.to}, {args.dtype})")
    return 0


def rest_of(args: argparse.Namespace, dst: Path, src: Path, stated: Stated) -> tuple[Path, Stated]:
    """The authors' folder, and what is stated of SRC: how it reads texts is asked of an authors' folder alone."""
    from convert.to_fg_clip import check_places, is_authors

    rest = locate(args.rest_of)
    check_places(dst, rest)
    described = src.parent if src.name in identify.WEIGHTS else src
    return rest, stated if is_authors(described) else replace(stated, texts=None)


def check_vocabulary(checkpoint: checkpoints.Checkpoint) -> None:
    """Opens a vocabulary that comes as a file, where the package for that is there. Raises `CheckpointError` for one of
    another embedding."""
    if checkpoint.config.text is not None and checkpoint.vocabulary is not None:
        with contextlib.suppress(SetupError):
            stored_vocabulary.tokenizer_of(checkpoint.config.text, checkpoint.vocabulary)


def locate(src: str) -> Path:
    """The local file or folder of SRC, fetched when it is a name. Raises `CheckpointError`."""
    path = local_path(src)
    return path if path.exists() else find_weights(src)


def stated_by(args: argparse.Namespace) -> Stated:
    """What the options state of SRC."""
    size = getattr(args, "image_size", None)
    return Stated(
        family=args.family,
        activation=args.activation,
        normalisation=args.normalisation,
        resize=args.resize,
        head_width=args.vision_head_width,
        post_norm=None if args.post_norm is None else args.post_norm == "yes",
        image_size=image_size(size) if size else None,
        texts=args.texts,
        weights_key=args.weights_key,
        prefix=args.prefix,
    )


def image_size(numbers: list[int]) -> tuple[int, int]:
    """(H, W) of one number or two. Raises `ConfigError`."""
    if len(numbers) > 2:
        raise ConfigError(f"--image-size must be HEIGHT [WIDTH], got {len(numbers)} numbers")
    for side in numbers:
        if not SIDE.holds(side):
            raise ConfigError(f"--image-size must be {SIDE.phrase}, got {shown(side)}")
    return numbers[0], numbers[-1]


def reshaped(checkpoint: checkpoints.Checkpoint, args: argparse.Namespace) -> checkpoints.Checkpoint:
    """The weights at the sizes that the options ask for."""
    if args.image_size:
        antialias = None if args.antialias is None else args.antialias == "yes"
        checkpoint = checkpoint.resized(image_size(args.image_size), antialias)
    if args.context_length is not None:
        checkpoint = checkpoint.with_context(args.context_length, args.context_by)
    return checkpoint


def fitting(checkpoint: checkpoints.Checkpoint, dtype: str) -> checkpoints.Checkpoint:
    """The weights, each compared when it is read: one that `dtype` can't hold is a `CheckpointError`."""
    import numpy as np

    most = float(np.finfo(np.float16 if dtype == "fp16" else np.float32).max)

    def read(name: str, tensor: tensors.LazyTensor) -> np.ndarray:
        values = tensor.read()
        if values.size and (largest := max(values.max(), -values.min())) > most:
            raise CheckpointError(
                f"{checkpoint.path}: {name} must be at most {most:g} in size as {dtype}, got {largest:g}: "
                "take --dtype bf16 or fp32"
            )
        return values

    kept = {name: replace(tensor, read=partial(read, name, tensor)) for name, tensor in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=kept)


def writer_for(target: str, dst: Path, src: Path) -> Callable[[checkpoints.Checkpoint, str], None]:
    """Writes DST at once or not at all. Raises `ConfigError` for a DST that the target can't be."""
    to = TARGETS[target]
    if src.is_dir() and dst.resolve().is_relative_to(src.resolve()):
        raise ConfigError(f"DST must not be in SRC, or SRC itself, got {dst}: name a file or folder elsewhere")
    if dst.suffix in to.files:
        if dst.is_dir() or (dst.exists() and dst.samefile(src)):
            given = "the folder" if dst.is_dir() else "SRC itself,"
            raise ConfigError(f"DST must be a new file, got {given} {dst}: name another")
        return lambda checkpoint, dtype: _write_file(to.files[dst.suffix], dst, checkpoint, dtype)
    endings = " or ".join(to.files)
    if not to.folder:
        raise ConfigError(f"DST must end in {endings} with --to {target}, got {dst}")
    if dst.is_file():
        raise ConfigError(
            f"DST must be a folder{f', or a file that ends in {endings}' if endings else ''}, got the file {dst}"
        )
    if dst.is_dir() and src.resolve().is_relative_to(dst.resolve()):
        raise ConfigError(f"DST must not be a folder that SRC is in, got {dst}: name another")
    return lambda checkpoint, dtype: _write_folder(to.folder, dst, checkpoint, dtype)


def _write_file(writer: str, path: Path, checkpoint: checkpoints.Checkpoint, dtype: str) -> None:
    with replacing(path) as temporary:
        _imported(writer)(temporary, checkpoint, dtype)


def _write_folder(writer: str, folder: Path, checkpoint: checkpoints.Checkpoint, dtype: str) -> None:
    with replacing_folder(folder) as temporary:
        _imported(writer)(temporary, checkpoint, dtype)
        strangers = [
            n
            for n in (*identify.WEIGHTS, *identify.DESCRIPTIONS)
            if (folder / n).is_file() and not (temporary / n).is_file()
        ]
        if strangers:
            raise ConfigError(f"{folder} already holds {', '.join(strangers)} of other weights: name another folder")


def _imported(writer: str) -> Callable[[Path, checkpoints.Checkpoint, str], None]:
    module, _, function = writer.partition(":")
    return getattr(importlib.import_module(f"convert.{module}"), function)
