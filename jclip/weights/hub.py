"""Weights from a Hugging Face hub. `huggingface_hub` supplies metadata and the cache's location; downloads have
limits."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

from jclip.errors import CheckpointError, printable
from jclip.paths import compute_sha256, replacing
from jclip.readers.schema import LARGEST_INDEX, is_plain_name, read_weight_map
from jclip.weights import http_transfer
from jclip.weights.http_transfer import Download, TransferError, is_address, one_line, transfer, within

HUB = "hf-hub:"
HUB_SAYS = ("open_clip_config.json", "config.json", "preprocessor_config.json")
HUB_FILES = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin",
    "model.safetensors.index.json", "pytorch_model.bin.index.json",
)  # fmt: skip
LARGEST_FILE = 200 << 30  # bytes of one file of a hub
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch_hub(repository: str) -> Path:
    """Return the local copy of a repository's weights; HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and HF_TOKEN are
    honoured.

    Fetches one set of weights with all its shards, and returns the folder of these and the files that describe the
    model, or the one file where nothing describes it. A hub that does not answer is asked once; then the cache is
    used. Raises `CheckpointError`, naming the files that were looked for.
    """
    hub = _Hub(repository)
    described = [name for name in HUB_SAYS if hub.file(name)]
    for name in HUB_FILES:
        path = hub.file(name)
        if path is None:
            continue
        for shard in sorted(set(read_weight_map(path).values())) if name.endswith(".index.json") else ():
            if hub.file(shard) is None:
                raise CheckpointError(f"{HUB}{repository} lacks {shard}, which {name} names")
        return path.parent if described else path
    if hub.silent:
        raise CheckpointError(
            f"{HUB}{repository}: {hub.place} can't be reached, and the cache has none of {', '.join(HUB_FILES)} "
            f"({hub.silent})"
        )
    raise CheckpointError(f"{HUB}{repository}: {hub.place} has none of {', '.join(HUB_FILES)}")


class _Hub:
    """One repository. `silent` is why its hub is not asked any more, or empty."""

    def __init__(self, repository: str):
        try:
            import huggingface_hub
        except ImportError:
            raise CheckpointError(f"{HUB}{repository} needs huggingface_hub: pip install 'jclip[hub]'") from None
        self._hub, self.repository, self.silent = huggingface_hub, repository, ""
        self.place = os.environ.get("HF_ENDPOINT", "the hub")
        if "HF_ENDPOINT" in os.environ and not is_address(self.place):
            raise CheckpointError(
                f"HF_ENDPOINT must be an address that begins with http:// or https://, got {self.place!r}"
            )

    def file(self, name: str) -> Path | None:
        """Return the local copy of one file; None where the repository has none of that name, or the hub is silent and
        none is here. Raises `CheckpointError`."""
        from huggingface_hub import errors

        try:
            there = None if self.silent else self._look_up(name)
            if there is None:  # this asks no hub
                return Path(self._hub.hf_hub_download(self.repository, name, local_files_only=True))
            return self._in_cache(name, there)
        except errors.EntryNotFoundError:  # of which a file that is not in the cache is one
            return None
        except CheckpointError:
            raise
        except TransferError as e:
            raise CheckpointError(f"{HUB}{self.repository}: can't download {name} from {self.place}: {e}") from e
        except Exception as e:  # whatever the package, or what it is made of, raises
            raise CheckpointError(f"{HUB}{self.repository}: {self.place} answered {one_line(e)}") from e

    def _look_up(self, name: str) -> Any:
        """Size, commit, tag and address of a file, asked once and for a bounded time; None of a hub that can't be asked,
        which is silent from then on. Raises `EntryNotFoundError`, or what else the package makes of an answer."""
        from huggingface_hub import errors

        url = self._hub.hf_hub_url(self.repository, name)
        try:
            return within(
                http_transfer.ANSWER, lambda: self._hub.get_hf_file_metadata(url, timeout=http_transfer.TIMEOUT)
            )
        except (errors.EntryNotFoundError, errors.HfHubHTTPError, errors.HFValidationError):
            raise  # it did answer
        except Exception as e:
            self.silent = one_line(e)
            return None

    def _in_cache(self, name: str, there: Any) -> Path:
        """Return the file's place in the cache of `huggingface_hub`, downloaded unless it is there in its full size.

        The layout is the one that its documentation describes: blobs by tag, snapshots by commit, and the newest commit
        in refs. Its own download is not used: it has no limit on sizes, and repeats a stall six times.
        """
        self._check(name, there)
        folder = Path(self._hub.constants.HF_HUB_CACHE) / f"models--{self.repository.replace('/', '--')}"
        blob, pointer = folder / "blobs" / there.etag, folder / "snapshots" / there.commit_hash / name
        if not _is_whole(pointer, there.size):
            if not _is_whole(blob, there.size):
                self._fetch(name, there, blob)
            pointer.parent.mkdir(parents=True, exist_ok=True)
            _link(blob, pointer)
        newest = folder / "refs" / "main"
        if not newest.is_file() or newest.read_text(encoding="utf-8") != there.commit_hash:
            with replacing(newest) as temporary:
                temporary.write_text(there.commit_hash, encoding="utf-8")
        return pointer

    def _check(self, name: str, there: Any) -> None:
        """Raises `CheckpointError` for a file that is too large, or whose commit or tag can't name a file."""
        place = f"{HUB}{self.repository}: {name}"
        most = _most(name)
        if there.size is not None and there.size > most:
            raise CheckpointError(f"{place} must be at most {most:,} bytes, got {there.size:,}")
        for what, value in (("commit", there.commit_hash), ("ETag", there.etag)):
            if not is_plain_name(value):  # they become names in the cache
                got = "none" if value is None else printable(repr(value), 80)
                raise CheckpointError(f"{place} must come with a valid {what}, {self.place} sends {got}")

    def _fetch(self, name: str, there: Any, blob: Path) -> None:
        url = self._hub.hf_hub_url(self.repository, name)
        wanted = Download(url, _most(name), there.size, self._hub.utils.build_hf_headers())
        try:
            with replacing(blob) as part:
                transfer(wanted, part)
                # of a file that the hub redirects to, the tag is the SHA-256 of its contents
                if there.location != url and _SHA256.fullmatch(there.etag) and compute_sha256(part) != there.etag:
                    raise TransferError("other bytes arrived than the hub's SHA-256 says")
        except BaseException:
            for folder in (blob.parent, blob.parent.parent):
                with contextlib.suppress(OSError):  # not empty
                    folder.rmdir()
            raise


def _most(name: str) -> int:
    return LARGEST_INDEX if name.endswith(".json") else LARGEST_FILE


def _is_whole(path: Path, size: int | None) -> bool:
    return path.is_file() and (size is None or path.stat().st_size == size)


def _link(blob: Path, pointer: Path) -> None:
    """Make `pointer` a relative link to `blob`, or a copy where links are not allowed."""
    with replacing(pointer) as temporary:
        temporary.unlink()
        try:
            temporary.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:
            shutil.copyfile(blob, temporary)
