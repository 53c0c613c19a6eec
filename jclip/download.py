"""Weight files by name: OpenAI's nine, resumed after a break and checked against their SHA-256, and Hugging Face's hub."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from jclip import catalogue
from jclip.errors import CheckpointError, UnknownName, did_you_mean
from jclip.paths import ASSETS, cache_dir, compute_sha256, exists, expanded, file_sha256, is_file
from jclip.variants import SHIPPED, VARIANTS, canonical_name, file_stem

OPENAI = "https://openaipublic.azureedge.net/clip/models"
SHA256 = {name: catalogue.sha256_of(f"{file_stem(name)}.pt") for name in VARIANTS}
HUB = "hf-hub:"
HUB_SAYS = ("open_clip_config.json", "config.json", "preprocessor_config.json")
HUB_FILES = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin",
    "model.safetensors.index.json", "pytorch_model.bin.index.json",
)  # fmt: skip
ATTEMPTS = 3
TIMEOUT = 30  # seconds without a byte
_BLOCK = 1 << 20


def fetch_openai(name: str, folder: Path | None = None) -> Path:
    """The local file of a model's weights, downloaded when it is absent.

    What a break leaves is kept and continued. `JCLIP_MIRROR` stands for OpenAI's address. Raises `CheckpointError`,
    which says which file to put where, when it can't be had.
    """
    expected, file_name = SHA256[name], f"{file_stem(name)}.pt"
    target = (folder or cache_dir("weights")) / file_name
    if target.is_file():
        if file_sha256(target) == expected:
            return target
        raise CheckpointError(
            f"{target} is not OpenAI's {file_name} (its SHA-256 differs): remove it, or name your file by path"
        )
    base = os.environ.get("JCLIP_MIRROR", OPENAI).rstrip("/")
    url = f"{base}/{expected}/{file_name}"
    part = target.with_suffix(".part")
    import fcntl

    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_file():
            return target
        _download(url, part, f"put {file_name} (SHA-256 {expected}) at {target}")
        if compute_sha256(part) != expected:
            part.unlink()
            raise CheckpointError(
                f"{url} sent other bytes than OpenAI's {file_name}: nothing was kept; try another mirror"
            )
        part.replace(target)
    return target


def find_weights(name_or_path: str | os.PathLike) -> Path:
    """The file or folder of a path or a known name, the latter shipped, or downloaded when it is absent.

    `hf-hub:owner/name` is a repository of the hub; `architecture/tag`, as open_clip has it, one of the catalogue's.
    Raises `CheckpointError`.
    """
    path = expanded(name_or_path)
    if is_file(path / "model.safetensors") and not is_file(path / "config.json"):  # `python convert` wrote it
        path = path / "model.safetensors"
    if exists(path):
        return path
    if str(name_or_path).startswith(HUB):
        return fetch_hub(str(name_or_path).removeprefix(HUB))
    with contextlib.suppress(UnknownName):
        name = canonical_name(str(name_or_path))
        return ASSETS / f"{name}.safetensors" if name in SHIPPED else fetch_openai(name)
    if (row := catalogue.lookup(str(name_or_path))) is None:
        near = did_you_mean(str(name_or_path), [*SHIPPED, *VARIANTS, *catalogue.names()])
        raise CheckpointError(
            f"{name_or_path} is neither a file nor a model's name{near} (known: {', '.join([*SHIPPED, *VARIANTS])}, "
            "and open_clip's architecture/tag as docs/weights.md lists them)"
        )
    openais = [name for name in VARIANTS if row.tag == "openai" and row.url.endswith(f"/{file_stem(name)}.pt")]
    return fetch_openai(openais[0]) if openais else fetch_hub(row.hub)


def fetch_hub(repository: str) -> Path:
    """What `huggingface_hub` fetches of a repository; it honours HF_ENDPOINT, HF_HUB_OFFLINE and HF_HOME.

    One set of weights, all its shards, and the folder of these with what describes the model; a file that nothing
    describes alone. Raises `CheckpointError` when it can't be had, naming the files that were looked for.
    """
    described = [name for name in HUB_SAYS if _from_hub(repository, name)]
    for name in HUB_FILES:
        path = _from_hub(repository, name)
        if path is None:
            continue
        for shard in _shards(path) if name.endswith(".index.json") else ():
            if _from_hub(repository, shard) is None:
                raise CheckpointError(f"{HUB}{repository} lacks {shard}, which {name} names")
        return path.parent if described else path
    place = os.environ.get("HF_ENDPOINT", "the hub")
    raise CheckpointError(f"{HUB}{repository}: {place} has none of {', '.join(HUB_FILES)}")


def _from_hub(repository: str, name: str) -> Path | None:
    """The local copy of one file; None where the repository has none of that name, or it can't be asked and none is here."""
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError:
        raise CheckpointError(f"{HUB}{repository} needs huggingface_hub: pip install 'jclip[hub]'") from None
    place = os.environ.get("HF_ENDPOINT", "the hub")
    try:
        return Path(hf_hub_download(repository, name))
    except errors.LocalEntryNotFoundError as e:  # before its base class: not here, and the hub can't be asked
        if name == HUB_FILES[-1]:
            raise CheckpointError(
                f"{HUB}{repository}: {place} can't be reached, and the cache has none of {', '.join(HUB_FILES)}"
            ) from e
        return None
    except errors.EntryNotFoundError:
        return None
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as e:
        raise CheckpointError(f"{HUB}{repository}: {place} answered {' '.join(str(e).split())[:200]}") from e


def _shards(index: Path) -> list[str]:
    """The files that an index places tensors in."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as e:
        raise CheckpointError(f"{index} is no index of shards: {e}") from e


def _download(url: str, part: Path, by_hand: str) -> None:
    """Fetches `url` into `part`, going on where an earlier attempt broke off."""
    import http.client
    import urllib.error

    cause = ""
    for _ in range(ATTEMPTS):
        try:
            if _fetch_rest(url, part):
                return
            cause = "the connection broke off"
        except urllib.error.HTTPError as e:
            if e.code == 416:  # nothing left to fetch, or a part of something else: the checksum will tell
                return
            cause = f"the server answered {e.code} {e.reason}"
            break
        except (urllib.error.URLError, OSError, http.client.HTTPException) as e:
            cause = str(getattr(e, "reason", e)) or type(e).__name__
    kept = part.stat().st_size if part.is_file() else 0
    again = f"{kept} bytes are kept, run again to go on; " if kept else ""
    raise CheckpointError(f"can't download {url}: {cause} ({again}offline, {by_hand})")


def _fetch_rest(url: str, part: Path) -> bool:
    """One connection's worth. True when the whole file has arrived."""
    import urllib.request

    from tqdm import tqdm

    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if answer.status != 206:
            have = 0  # the server starts from the beginning
        total = have + int(answer.headers.get("Content-Length") or 0)
        with (
            open(part, "r+b" if have else "wb") as f,
            tqdm(desc=part.stem, initial=have, total=total or None, unit="B", unit_scale=True, disable=None) as bar,
        ):
            f.seek(have)
            while block := answer.read(_BLOCK):
                f.write(block)
                bar.update(len(block))
        return part.stat().st_size >= total
