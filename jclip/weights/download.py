"""Weight files by name: OpenAI's nine, resumed after a break and checked against their SHA-256, and Hugging Face's hub."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jclip.errors import CheckpointError, UnknownName, did_you_mean, printable
from jclip.paths import ASSETS, cache_dir, compute_sha256, exists, expanded, file_sha256, is_file
from jclip.readers.schema import LARGEST_INDEX, read_weight_map
from jclip.weights import catalogue
from jclip.weights.parameter_shapes import parameter_shapes
from jclip.weights.variants import SHIPPED, VARIANTS, canonical_name, file_stem

OPENAI = "https://openaipublic.azureedge.net/clip/models"
SHA256 = {name: catalogue.sha256_of(f"{file_stem(name)}.pt") for name in VARIANTS}
HUB = "hf-hub:"
HUB_SAYS = ("open_clip_config.json", "config.json", "preprocessor_config.json")
HUB_FILES = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin",
    "model.safetensors.index.json", "pytorch_model.bin.index.json",
)  # fmt: skip
ATTEMPTS = 3  # of a download that goes on; one that never began is not tried again
TIMEOUT = 10  # seconds without a byte
ANSWER = 12  # seconds from a name's look-up to the first answer
LARGEST_FILE = 200 << 30  # bytes of one file of a hub
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
    url = f"{_mirror()}/{expected}/{file_name}"
    part = target.with_suffix(".part")
    with _locked(target.with_suffix(".lock")):
        if target.is_file():
            return target
        _download(url, part, _room(name), f"put {file_name} (SHA-256 {expected}) at {target}")
        if compute_sha256(part) != expected:
            part.unlink()
            raise CheckpointError(
                f"{url} sent other bytes than OpenAI's {file_name}: nothing was kept; try another mirror"
            )
        part.replace(target)
    return target


def _mirror() -> str:
    """The address that holds OpenAI's files. Raises `CheckpointError` for a `JCLIP_MIRROR` that is none."""
    base = (os.environ.get("JCLIP_MIRROR") or OPENAI).rstrip("/")
    if not is_address(base):
        raise CheckpointError(f"JCLIP_MIRROR must be an address that begins with http:// or https://, got {base!r}")
    return base


def is_address(text: str) -> bool:
    """Whether this is a web address with a host and, if any, a valid port."""
    try:
        parts = urllib.parse.urlsplit(text)
        parts.port  # noqa: B018 - raises
        (parts.hostname or "").encode("idna")
    except ValueError:  # UnicodeError is one
        return False
    plain = text.isprintable() and text.isascii() and " " not in text
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname)


def _room(name: str) -> int:
    """The most bytes that a file of this model's weights may have: twice what they take in half precision, and a bit."""
    return 4 * sum(math.prod(shape) for shape in parameter_shapes(VARIANTS[name]).values()) + (64 << 20)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the file that the lock is on is removed at the end."""
    import fcntl

    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists() and os.fstat(lock).st_ino == path.stat().st_ino:
            break
        os.close(lock)  # it was removed while we waited
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def local_path(name_or_path: str | os.PathLike) -> Path:
    """The path that a name may be, `~` expanded. Raises `CheckpointError` for what the system can't look up."""
    path = expanded(name_or_path)
    try:
        path.exists()
    except OSError as e:
        raise CheckpointError(f"can't look for {printable(str(name_or_path), 200)}: {e.strerror}") from e
    return path


def find_weights(name_or_path: str | os.PathLike) -> Path:
    """The file or folder of a path or a known name, the latter shipped, or downloaded when it is absent.

    `hf-hub:owner/name` is a repository of the hub; `architecture/tag`, as open_clip has it, one of the catalogue's.
    Raises `CheckpointError`.
    """
    path = local_path(name_or_path)
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
    describes alone. A hub that does not answer is asked once; what its cache holds is used then. Raises
    `CheckpointError` when it can't be had, naming the files that were looked for.
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
        """The local copy of one file; None where the repository has none of that name, or the hub is silent and none
        is here. Raises `CheckpointError`."""
        from huggingface_hub import errors

        try:
            if not self.silent and not self._exists(name):
                return None
            fetched = self._hub.hf_hub_download(
                self.repository, name, etag_timeout=TIMEOUT, local_files_only=bool(self.silent)
            )
            return Path(fetched)
        except errors.EntryNotFoundError:  # of which a file that is not in the cache is one
            return None
        except CheckpointError:
            raise
        except Exception as e:  # whatever the package, or what it is made of, raises
            raise CheckpointError(f"{HUB}{self.repository}: {self.place} answered {_one_line(e)}") from e

    def _exists(self, name: str) -> bool:
        """Whether the repository has the file, asked once and for a bounded time; a hub that can't be asked is silent
        from then on. Raises `CheckpointError` for one that is too large."""
        from huggingface_hub import errors

        url = self._hub.hf_hub_url(self.repository, name)
        try:
            found = _within(ANSWER, lambda: self._hub.get_hf_file_metadata(url, timeout=TIMEOUT))
        except errors.EntryNotFoundError:
            return False
        except (errors.HfHubHTTPError, errors.HFValidationError):
            raise  # it did answer
        except Exception as e:
            self.silent = _one_line(e)
            return True  # maybe in the cache
        most = LARGEST_INDEX if name.endswith(".json") else LARGEST_FILE
        if found.size is not None and found.size > most:
            raise CheckpointError(f"{HUB}{self.repository}: {name} must be at most {most:,} bytes, got {found.size:,}")
        return True


def _one_line(error: BaseException) -> str:
    cause = getattr(error, "reason", None) or str(error) or type(error).__name__
    return printable(" ".join(str(cause).split()), 200)


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call` returns or raises; `TimeoutError` where it takes longer, name look-up included."""
    ends: list[tuple[Any, BaseException | None]] = []

    def work() -> None:
        try:
            ends.append((call(), None))
        except BaseException as e:
            ends.append((None, e))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not ends:
        raise TimeoutError(f"no answer within {seconds} s")
    value, error = ends[0]
    if error is not None:
        raise error
    return value


def _download(url: str, part: Path, most: int, by_hand: str) -> None:
    """Fetches `url` into `part`, of at most `most` bytes, going on where an earlier attempt broke off."""
    import http.client
    import urllib.error

    cause = ""
    for _ in range(ATTEMPTS):
        before = _size(part)
        try:
            if _fetch_rest(url, part, most):
                return
            cause = "the connection broke off"
        except urllib.error.HTTPError as e:
            if e.code == 416:  # nothing left to fetch, or a part of something else: the checksum will tell
                return
            cause = f"the server answered {e.code} {_one_line(e)}"
            break
        except _WrongAnswer as e:
            part.unlink(missing_ok=True)
            cause = str(e)
            break
        except (OSError, ValueError, http.client.HTTPException) as e:  # URLError is an OSError
            if getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                part.unlink(missing_ok=True)
                raise
            cause = _one_line(e)
        if _size(part) <= before:
            break
    if (kept := _size(part)) == 0:
        part.unlink(missing_ok=True)
    again = f"{kept} bytes are kept, run again to go on; " if kept else ""
    raise CheckpointError(f"can't download {url}: {cause} ({again}offline, {by_hand})")


def _ask(url: str, headers: dict[str, str]) -> Any:
    """The answer to a request, redirected at most ten times and to web addresses only."""
    import urllib.request

    class WebOnly(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, request, answer, code, message, found, address):
            if not is_address(address):
                raise _WrongAnswer(f"the server redirects to {printable(address, 100)!r}, which is no web address")
            return super().redirect_request(request, answer, code, message, found, address)

    request = urllib.request.Request(url, headers=headers)
    return urllib.request.build_opener(WebOnly).open(request, timeout=TIMEOUT)


class _WrongAnswer(Exception):
    """A server says or sends what can't be the file."""


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _fetch_rest(url: str, part: Path, most: int) -> bool:
    """One connection's worth. True when the whole file has arrived."""
    from tqdm import tqdm

    have = _size(part)
    with _within(ANSWER, lambda: _ask(url, {"Range": f"bytes={have}-"} if have else {})) as answer:
        if answer.status != 206:
            have = 0  # the server starts from the beginning
        length = answer.headers.get("Content-Length")
        if length is not None and not re.fullmatch(r"[0-9]{1,18}", length.strip(), re.ASCII):
            raise _WrongAnswer(f"Content-Length must be a number of bytes, got {printable(length, 40)!r}")
        total = have + int(length or 0)
        if total > most:
            raise _WrongAnswer(f"the file must be at most {most:,} bytes, the server announces {total:,}")
        with (
            open(part, "r+b" if have else "wb") as f,
            tqdm(desc=part.stem, initial=have, total=total or None, unit="B", unit_scale=True, disable=None) as bar,
        ):
            f.seek(have)
            while block := answer.read(_BLOCK):
                if f.tell() + len(block) > most:
                    raise _WrongAnswer(f"the file must be at most {most:,} bytes, the server sends more")
                f.write(block)
                bar.update(len(block))
        return part.stat().st_size >= total
