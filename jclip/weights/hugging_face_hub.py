"""Files of Hugging Face's hub. `huggingface_hub` supplies metadata and the cache's location; downloads have limits."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from jclip.errors import CheckpointError, printable
from jclip.paths import compute_sha256, replacing
from jclip.readers.schema import LARGEST_DESCRIPTION, is_plain_name, parse
from jclip.weights import http_transfer
from jclip.weights.http_transfer import Download, TransferError, fetch_small, is_address, one_line, within
from jclip.weights.hub_files import link, most
from jclip.weights.resumed_files import WrongBytes, fetch_whole

_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


class HuggingFaceHub:
    """One repository, see `jclip.weights.hub_files.Hub`; HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and HF_TOKEN are
    honoured."""

    variables = "HF_ENDPOINT to the address of a mirror, such as https://hf-mirror.com"

    def __init__(self, name: str, repository: str):
        try:
            import huggingface_hub.constants
            import huggingface_hub.utils  # the package alone loads neither
        except ImportError:
            raise CheckpointError(f"{name} needs huggingface_hub: pip install 'jclip[hub]'") from None
        self.name, self._hub, self._repository, self.silent = name, huggingface_hub, repository, ""
        self.place = os.environ.get("HF_ENDPOINT") or huggingface_hub.constants.ENDPOINT
        if not is_address(self.place):
            raise CheckpointError(
                f"HF_ENDPOINT must be an address that begins with http:// or https://, got {self.place!r}"
            )

    def names(self) -> list[str]:
        """Return the names of the repository's files outside of folders; none where the hub does not list them."""
        try:
            url = f"{self.place.rstrip('/')}/api/models/{self._repository}"
            found = parse(fetch_small(url, self._hub.utils.build_hf_headers(), LARGEST_DESCRIPTION), url)
        except (TransferError, CheckpointError):
            return []
        listed = found.get("siblings")
        files = [one.get("rfilename") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        return [name for name in files if is_plain_name(name)]

    def file(self, name: str) -> Path | None:
        """Return the local copy of one file; None where the repository has none of that name, or the hub is silent and
        none is here. Raises `CheckpointError`."""
        from huggingface_hub import errors

        try:
            there = None if self.silent else self._look_up(name)
            if there is None:  # this asks no hub
                return Path(self._hub.hf_hub_download(self._repository, name, local_files_only=True))
            return self._in_cache(name, there)
        except errors.EntryNotFoundError:  # of which a file that is not in the cache is one
            return None
        except CheckpointError:
            raise
        except TransferError as e:
            again = f" ({e.kept})" if e.kept else ""
            raise CheckpointError(f"{self.name}: can't download {name} from {self.place}: {e}{again}") from e
        except Exception as e:  # whatever the package, or what it is made of, raises
            raise CheckpointError(f"{self.name}: {self.place} answered {one_line(e)}") from e

    def _look_up(self, name: str) -> Any:
        """Size, commit, tag and address of a file, asked once and for a bounded time; None of a hub that can't be asked,
        which is silent from then on. Raises `EntryNotFoundError`, or what else the package makes of an answer."""
        from huggingface_hub import errors

        url = self._hub.hf_hub_url(self._repository, name)
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
        folder = Path(self._hub.constants.HF_HUB_CACHE) / f"models--{self._repository.replace('/', '--')}"
        blob, pointer = folder / "blobs" / there.etag, folder / "snapshots" / there.commit_hash / name
        if not _is_whole(pointer, there.size):
            if not _is_whole(blob, there.size):
                self._fetch(name, there, blob)
            pointer.parent.mkdir(parents=True, exist_ok=True)
            link(blob, pointer)
        newest = folder / "refs" / "main"
        if not newest.is_file() or newest.read_text(encoding="utf-8") != there.commit_hash:
            with replacing(newest) as temporary:
                temporary.write_text(there.commit_hash, encoding="utf-8")
        return pointer

    def _check(self, name: str, there: Any) -> None:
        """Raises `CheckpointError` for a file that is too large, or whose commit or tag can't name a file."""
        place, limit = f"{self.name}: {name}", most(name)
        if there.size is not None and there.size > limit:
            raise CheckpointError(f"{place} must be at most {limit:,} bytes, got {there.size:,}")
        for what, value in (("commit", there.commit_hash), ("ETag", there.etag)):
            if not is_plain_name(value):  # they become names in the cache
                got = "none" if value is None else printable(repr(value), 80)
                raise CheckpointError(f"{place} must come with a valid {what}, {self.place} sends {got}")

    def _fetch(self, name: str, there: Any, blob: Path) -> None:
        url = self._hub.hf_hub_url(self._repository, name)
        wanted = Download(url, most(name), there.size, self._hub.utils.build_hf_headers(), name)
        stored = there.location != url  # of a file that the hub redirects to, the tag is the SHA-256 of its contents

        def agrees(path: Path) -> bool:
            return _is_whole(path, there.size) and _has_tag(path, there.etag, stored)

        try:
            fetch_whole(wanted, blob, blob.with_name(f"{blob.name}.incomplete"), agrees)
        except WrongBytes as e:
            raise TransferError(f"{e} the hub's {'SHA-256' if stored else 'tag'} says") from e
        finally:
            for folder in (blob.parent, blob.parent.parent):
                with contextlib.suppress(OSError):  # not empty
                    folder.rmdir()


def _has_tag(path: Path, tag: str, stored: bool) -> bool:
    """Return whether a file's contents have the hash that the tag is: of a stored file its SHA-256, of another git's
    hash of a blob or, as proxies have it, the SHA-1 of the contents. A tag that is no hash says nothing."""
    if stored:
        return not _SHA256.fullmatch(tag) or compute_sha256(path) == tag
    if not _SHA1.fullmatch(tag):
        return True
    data = path.read_bytes()
    header = f"blob {len(data)}\0".encode()
    return tag in (hashlib.sha1(header + data).hexdigest(), hashlib.sha1(data).hexdigest())


def _is_whole(path: Path, size: int | None) -> bool:
    return path.is_file() and (size is None or path.stat().st_size == size)
