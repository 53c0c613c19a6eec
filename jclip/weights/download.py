"""Find weights by path or name; download OpenAI's nine files, resumed after a break and checked against their
SHA-256."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

from jclip.choices import HUGGING_FACE
from jclip.errors import CheckpointError, UnknownName, did_you_mean, printable
from jclip.paths import ASSETS, cache_dir, compute_sha256, exists, expanded, file_sha256, is_file
from jclip.weights import catalogue
from jclip.weights.http_transfer import Download, TransferError, is_address
from jclip.weights.hub import fetch_hub, is_hub_name
from jclip.weights.parameter_shapes import parameter_shapes
from jclip.weights.resumed_files import WrongBytes, fetch_whole
from jclip.weights.variants import SHIPPED, VARIANTS, canonical_name, file_stem

OPENAI = "https://openaipublic.azureedge.net/clip/models"
SHA256 = {name: catalogue.sha256_of(f"{file_stem(name)}.pt") for name in VARIANTS}


def fetch_openai(name: str, folder: Path | None = None) -> Path:
    """Return the local file of a model's weights, downloaded when absent.

    An interrupted download is kept and continued by the next call. `JCLIP_MIRROR` replaces OpenAI's address. Raises
    `CheckpointError`, which says which file to put where, when it can't be downloaded.
    """
    expected, file_name = SHA256[name], f"{file_stem(name)}.pt"
    target = (folder or cache_dir("weights")) / file_name
    if target.is_file():
        if file_sha256(target) == expected:
            return target
        raise CheckpointError(
            f"{target} is not OpenAI's {file_name} (its SHA-256 differs): remove it, or name your file by path"
        )
    url = f"{_mirror()}/{expected}/{file_name}"
    wanted, part = Download(url, _room(name)), target.with_suffix(".part")
    try:
        fetch_whole(wanted, target, part, lambda path: compute_sha256(path) == expected)
    except WrongBytes as e:
        raise CheckpointError(
            f"{url} sent other bytes than OpenAI's {file_name}: nothing was kept; try another mirror"
        ) from e
    except TransferError as e:
        again = f"{e.kept}; " if e.kept else ""
        raise CheckpointError(
            f"can't download {url}: {e} ({again}offline, put {file_name} (SHA-256 {expected}) at {target})"
        ) from e
    return target


def _mirror() -> str:
    """Return the address that holds OpenAI's files. Raises `CheckpointError` for an invalid `JCLIP_MIRROR`."""
    base = (os.environ.get("JCLIP_MIRROR") or OPENAI).rstrip("/")
    if not is_address(base):
        raise CheckpointError(f"JCLIP_MIRROR must be an address that begins with http:// or https://, got {base!r}")
    return base


def _room(name: str) -> int:
    """Return the limit in bytes of a file of this model's weights: twice their size in half precision, plus 64 MiB."""
    return 4 * sum(math.prod(shape) for shape in parameter_shapes(VARIANTS[name]).values()) + (64 << 20)


def local_path(name_or_path: str | os.PathLike) -> Path:
    """Return the path that a name may be, `~` expanded. Raises `CheckpointError` for what the system can't look up."""
    path = expanded(name_or_path)
    try:
        path.exists()
    except OSError as e:
        raise CheckpointError(f"can't look for {printable(str(name_or_path), 200)}: {e.strerror}") from e
    return path


def is_here(name_or_path: str | os.PathLike) -> bool:
    """Return whether weights are a file or folder, ship with the package, or were downloaded from OpenAI before."""
    if exists(local_path(name_or_path)):
        return True
    with contextlib.suppress(UnknownName):
        name = canonical_name(str(name_or_path))
        return name in SHIPPED or (cache_dir("weights") / f"{file_stem(name)}.pt").is_file()
    return False


def find_weights(name_or_path: str | os.PathLike) -> Path:
    """Return the file or folder of a path or a known name; named weights ship with the package or are downloaded when
    absent.

    `hf-hub:owner/name` and `ms:owner/name` are repositories of Hugging Face's hub and of ModelScope's, see
    `jclip.weights.hub`; `architecture/tag`, as open_clip has it, is an entry of the catalogue. Raises `CheckpointError`.
    """
    path = local_path(name_or_path)
    if is_file(path / "model.safetensors") and not is_file(path / "config.json"):  # `python convert` wrote it
        path = path / "model.safetensors"
    if exists(path):
        return path
    if is_hub_name(str(name_or_path)):
        return fetch_hub(str(name_or_path))
    with contextlib.suppress(UnknownName):
        name = canonical_name(str(name_or_path))
        return ASSETS / f"{name}.safetensors" if name in SHIPPED else fetch_openai(name)
    if (row := catalogue.lookup(str(name_or_path))) is None:
        near = did_you_mean(str(name_or_path), [*SHIPPED, *VARIANTS, *catalogue.names()])
        raise CheckpointError(
            f"{name_or_path} is neither a file nor a model's name{near} (known: {', '.join([*SHIPPED, *VARIANTS])}, "
            "open_clip's architecture/tag as `jclip models --published` lists them, hf-hub:owner/name and ms:owner/name)"
        )
    openais = [name for name in VARIANTS if row.tag == "openai" and row.url.endswith(f"/{file_stem(name)}.pt")]
    return fetch_openai(openais[0]) if openais else fetch_hub(f"{HUGGING_FACE}{row.hub}")
