"""Weight files by name: OpenAI's nine, resumed after a break and checked against their SHA-256, and Hugging Face's hub."""

from __future__ import annotations

import os
from pathlib import Path

from jclip.checkpoint import compute_sha256, file_sha256
from jclip.errors import CheckpointError, UnknownName, did_you_mean
from jclip.paths import ASSETS, cache_dir
from jclip.variants import SHIPPED, VARIANTS, canonical_name, file_stem

OPENAI = "https://openaipublic.azureedge.net/clip/models"
SHA256 = {
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-L/14@336px": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
}
HUB = "hf-hub:"
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")
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
    """The file of a path or a known name, the latter shipped, or downloaded when it is absent. Raises `CheckpointError`.

    `hf-hub:owner/name` is a repository of the hub.
    """
    path = Path(name_or_path).expanduser()
    if (path / "model.safetensors").is_file():  # a folder that `python convert` wrote
        path = path / "model.safetensors"
    if path.is_file():
        return path
    if str(name_or_path).startswith(HUB):
        return fetch_hub(str(name_or_path).removeprefix(HUB))
    try:
        name = canonical_name(str(name_or_path))
    except UnknownName:
        known = [*SHIPPED, *VARIANTS]
        raise CheckpointError(
            f"{name_or_path} is neither a file nor a model's name{did_you_mean(str(name_or_path), known)} "
            f"(known: {', '.join(known)})"
        ) from None
    return ASSETS / f"{name}.safetensors" if name in SHIPPED else fetch_openai(name)


def fetch_hub(repository: str) -> Path:
    """The local file of a repository's weights, by `huggingface_hub`, which honours HF_ENDPOINT, HF_HUB_OFFLINE and HF_HOME.

    Raises `CheckpointError` when it can't be had, naming the files that were looked for.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError:
        raise CheckpointError(f"{HUB}{repository} needs huggingface_hub: pip install 'jclip[hub]'") from None
    place, cause = os.environ.get("HF_ENDPOINT", "the hub"), "has"
    for name in HUB_FILES:
        try:
            return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError:  # before its base class: not here, and the hub can't be asked
            cause = "can't be reached, and the cache has"
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, HFValidationError, OSError) as e:
            raise CheckpointError(f"{HUB}{repository}: {place} answered {' '.join(str(e).split())[:200]}") from e
    raise CheckpointError(f"{HUB}{repository}: {place} {cause} none of {', '.join(HUB_FILES)}")


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
