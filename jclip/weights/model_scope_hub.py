"""Files of ModelScope's hub, by its HTTP interface: one list of names, sizes and SHA-256, then one request a file.

Files lie where ModelScope's own package looks for them; those that it fetched before are used, in its older layouts too.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jclip.errors import CheckpointError, ConfigError, quoted
from jclip.paths import compute_sha256, expanded, file_sha256
from jclip.readers.schema import (
    LARGEST_INDEX,
    NOTHING,
    TEXT,
    Condition,
    either,
    is_plain_name,
    obey,
    parse,
    shown,
    whole,
)
from jclip.weights.http_transfer import AnswerError, Download, TransferError, fetch_small, is_address
from jclip.weights.hub_files import HUB_FILES, link, most
from jclip.weights.resumed_files import WrongBytes, fetch_whole

ENDPOINT = "https://modelscope.cn"
REVISION = "master"
_SHA256 = Condition("64 hexadecimal digits", lambda v: isinstance(v, str) and bool(re.fullmatch(r"[0-9a-f]{64}|", v)))
_ENTRY = {"Path": TEXT, "Size": whole(0, 1 << 48), "Sha256": either(_SHA256, NOTHING), "Type": either(TEXT, NOTHING)}


@dataclass(frozen=True)
class _Listed:
    """One file of the list."""

    size: int
    sha256: str  # empty where the list has none


class ModelScopeHub:
    """One repository, see `jclip.weights.hub_files.Hub`; MODELSCOPE_ENDPOINT (or the older MODELSCOPE_DOMAIN),
    MODELSCOPE_CACHE and MODELSCOPE_API_TOKEN are honoured."""

    variables = "MODELSCOPE_ENDPOINT to another address, such as https://www.modelscope.ai"

    def __init__(self, name: str, repository: str):
        self.name, self._repository, self.silent = name, repository, ""
        self.place, self._headers = _endpoint(), _headers()
        root = expanded(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").absolute()
        owner, _, own = repository.partition("/")
        plain = own.replace(".", "___")
        self._folder = root / "models" / f"{owner}--{own}" / "snapshots" / REVISION
        self._older = [
            root.joinpath(*above, owner, n)
            for above in (("hub", "models"), ("hub",), ("models",), ())
            for n in dict.fromkeys((plain, own))
        ]

    def names(self) -> list[str]:
        """Return the names of the repository's files outside of folders."""
        return [*self._listed]

    def file(self, name: str) -> Path | None:
        """Return the local copy of one file; None where the repository has none of that name, or the hub is silent and
        none is here. Raises `CheckpointError`."""
        listed = self._listed
        if self.silent:
            return next((path for path in (self._here / name,) if path.is_file()), None)
        if name not in listed:
            return None
        target, there = self._folder / name, listed[name]
        if not _is_it(target, there):
            self._bring(name, target, there)
        return target

    @cached_property
    def _here(self) -> Path:
        """The folder that holds weights already, in the newest layout that has any."""
        known = (self._folder, *self._older)
        return next((at for at in known if any((at / name).is_file() for name in HUB_FILES)), self._folder)

    @cached_property
    def _listed(self) -> dict[str, _Listed]:
        """Files by name, asked once; none of a hub that can't be asked, which is silent from then on. Raises
        `CheckpointError` for an answer that is no list."""
        url = f"{self._address}/files?Revision={REVISION}&Recursive=False"
        try:
            said = parse(fetch_small(url, self._headers, LARGEST_INDEX), f"{self.name}: the list of files")
        except AnswerError as e:
            raise CheckpointError(f"{self.name}: {self.place}: {e}") from e
        except TransferError as e:
            self.silent = str(e)
            return {}
        try:
            return dict(_entries(said))
        except ConfigError as e:
            raise CheckpointError(f"{self.name}: {self.place} sends no list of files: {e}") from e

    @property
    def _address(self) -> str:
        return f"{self.place}/api/v1/models/{self._repository}/repo"

    def _bring(self, name: str, target: Path, there: _Listed) -> None:
        """Put a file at `target`: linked where another layout has it, else downloaded."""
        if there.size > most(name):
            raise CheckpointError(f"{self.name}: {name} must be at most {most(name):,} bytes, got {there.size:,}")
        found = next((at / name for at in self._older if there.sha256 and _is_it(at / name, there)), None)
        if found:
            link(found, target)
            return
        url = f"{self._address}?Revision={REVISION}&FilePath={quote(name)}"
        part = target.with_name(f"{name}.{there.sha256[:8] or there.size}.part")
        wanted = Download(url, most(name), there.size, self._headers, name)
        try:
            fetch_whole(wanted, target, part, lambda path: _agrees(path, there))
        except WrongBytes as e:
            raise CheckpointError(
                f"{self.name}: {name} from {self.place}: {e} its SHA-256 says: nothing was kept"
            ) from e
        except TransferError as e:
            again = f" ({e.kept})" if e.kept else ""
            raise CheckpointError(f"{self.name}: can't download {name} from {self.place}: {e}{again}") from e
        finally:
            for folder in (target.parent, *target.parent.parents[:2]):
                with contextlib.suppress(OSError):  # not empty
                    folder.rmdir()


def _endpoint() -> str:
    """Return the hub's address. Raises `CheckpointError` for an invalid one."""
    variable = "MODELSCOPE_ENDPOINT"
    place = os.environ.get(variable)
    if not place and (domain := os.environ.get("MODELSCOPE_DOMAIN")):
        variable, place = "MODELSCOPE_DOMAIN", domain if "://" in domain else f"https://{domain}"
    place = (place or ENDPOINT).rstrip("/")
    if not is_address(place):
        raise CheckpointError(f"{variable} must be an address that begins with http:// or https://, got {place!r}")
    return place


def _headers() -> dict[str, str]:
    """Return what every request says: newer services read the header, older ones the cookie. Raises `CheckpointError`."""
    token = os.environ.get("MODELSCOPE_API_TOKEN", "").strip()
    if not (token.isascii() and token.isprintable()) or set(token) & set(" ;,"):
        raise CheckpointError("MODELSCOPE_API_TOKEN must be one word of ASCII characters, got others")
    agent = {"User-Agent": "jclip"}
    return agent | ({"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {})


def _entries(said: Mapping[str, Any]) -> Iterator[tuple[str, _Listed]]:
    """Yield the files outside of folders. Raises `ConfigError`."""
    data = said.get("Data")
    listed = data.get("Files") if isinstance(data, dict) else data
    if not isinstance(listed, list):
        reason = said.get("Message")
        why = f" (it says {quoted(reason, 120)})" if isinstance(reason, str) and reason else ""
        raise ConfigError(f"Data.Files must be a list, got {shown(listed)}{why}")
    for entry in listed:
        obey(entry, _ENTRY, "a file of it", ("Path",))
        if entry.get("Type") == "tree" or not is_plain_name(entry["Path"]):
            continue
        obey(entry, _ENTRY, entry["Path"], ("Size",))
        yield entry["Path"], _Listed(entry["Size"], entry.get("Sha256") or "")


def _is_it(path: Path, there: _Listed) -> bool:
    """Return whether a file that was fetched before is the listed one; its hash is remembered as long as it stays."""
    if not path.is_file() or path.stat().st_size != there.size:
        return False
    return not there.sha256 or file_sha256(path) == there.sha256


def _agrees(path: Path, there: _Listed) -> bool:
    return path.stat().st_size == there.size and there.sha256 in ("", compute_sha256(path))
