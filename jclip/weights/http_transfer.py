"""Downloads with limits: the size is known before the first byte is kept, and a server that stalls is given up."""

from __future__ import annotations

import errno
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jclip.errors import printable

ATTEMPTS = 3  # of a download whose connection breaks after it made progress
TIMEOUT = 10  # seconds without a byte
SLOWEST = 10_000  # bytes that must arrive in `TIMEOUT` seconds
ANSWER = 12  # seconds from a name's look-up to the first answer
_BLOCK = 1 << 20


class TransferError(Exception):
    """A download that failed; the message is the cause, on one line. kept: what is there and how to go on, or empty."""

    def __init__(self, cause: str, kept: str = ""):
        super().__init__(cause)
        self.kept = kept


class AnswerError(TransferError):
    """The server answers with an error: it is there, but does not give what was asked for."""


@dataclass(frozen=True)
class Download:
    """What to fetch. most: the limit in bytes. size: the file's bytes where they are known from elsewhere. label: what the
    progress bar calls it."""

    url: str
    most: int
    size: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    label: str = ""


class _WrongAnswer(Exception):
    """A server says or sends what can't be the file."""


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


def one_line(error: BaseException) -> str:
    """The cause of a network error as printable text on one line."""
    cause = getattr(error, "reason", None) or str(error) or type(error).__name__
    return printable(" ".join(str(cause).split()), 200)


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """Return what `call` returns. Raises what it raises, or `TimeoutError` where it takes longer, name look-up included."""
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


def transfer(wanted: Download, part: Path) -> None:
    """Fetch a file into `part`, continuing what an earlier attempt left there.

    A connection that breaks is tried again, at most `ATTEMPTS` times and only while it makes progress; one that stalls
    is not. What can't be the file is deleted. Raises `TransferError` with the cause, `OSError` for a full disk.
    """
    import http.client
    import urllib.error

    cause = ""
    for _ in range(ATTEMPTS):
        before = kept(part)
        try:
            if _fetch_rest(wanted, part):
                return
            cause = "the connection broke off"
        except urllib.error.HTTPError as e:
            if e.code == 416:  # nothing left to fetch, or a part of something else: the checksum decides
                return
            cause = f"the server answered {e.code} {one_line(e)}"
            break
        except _WrongAnswer as e:
            part.unlink(missing_ok=True)
            cause = str(e)
            break
        except (OSError, ValueError, http.client.HTTPException) as e:  # URLError is an OSError
            if getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                part.unlink(missing_ok=True)
                raise
            cause = one_line(e)
            if isinstance(e, TimeoutError):  # a retry would only wait as long again
                break
        if kept(part) <= before:
            break
    if kept(part) == 0:
        part.unlink(missing_ok=True)
    raise TransferError(cause)


def fetch_small(url: str, headers: Mapping[str, str], most: int) -> bytes:
    """Return the body of an answer of at most `most` bytes, whose length need not be announced.

    Raises `AnswerError` for a status other than 200 and a longer body, `TransferError` where the server can't be reached.
    """
    import http.client
    import urllib.error

    body = b""
    try:
        with within(ANSWER, lambda: _ask(url, headers)) as answer:
            pace = _Pace()
            while block := _some(answer):
                body += block
                if len(body) > most:
                    raise AnswerError(f"the answer must be at most {most:,} bytes, the server sends more")
                pace.check(len(block))
    except urllib.error.HTTPError as e:
        raise AnswerError(f"the server answered {e.code} {one_line(e)}") from e
    except _WrongAnswer as e:
        raise AnswerError(str(e)) from e
    except (OSError, ValueError, http.client.HTTPException) as e:
        raise TransferError(one_line(e)) from e
    return body


def kept(part: Path) -> int:
    """Bytes of an unfinished download that are there."""
    return part.stat().st_size if part.is_file() else 0


def _fetch_rest(wanted: Download, part: Path) -> bool:
    """Use one connection; return whether the whole file has arrived."""
    from tqdm import tqdm

    have = kept(part)
    headers = {**wanted.headers, **({"Range": f"bytes={have}-"} if have else {})}
    with within(ANSWER, lambda: _ask(wanted.url, headers)) as answer:
        if answer.status != 206:
            have = 0  # the server starts from the beginning
        total = _announced(answer.headers, have, wanted)
        with (
            open(part, "r+b" if have else "wb") as f,
            tqdm(
                desc=wanted.label or part.stem, initial=have, total=total, unit="B", unit_scale=True, disable=None
            ) as bar,
        ):
            f.seek(have)
            pace = _Pace()
            while block := _some(answer):
                if f.tell() + len(block) > total:
                    raise _WrongAnswer(f"the file must have the {total:,} bytes announced, the server sends more")
                f.write(block)
                bar.update(len(block))
                pace.check(len(block))
        return part.stat().st_size >= total


def _announced(headers: Any, have: int, wanted: Download) -> int:
    """Bytes of the whole file, of which `have` are there. Raises `_WrongAnswer` where they are unknown or too many."""
    if (coding := headers.get("Content-Encoding", "identity").strip().lower()) != "identity":
        raise _WrongAnswer(f"the file must be sent as it is, got Content-Encoding {printable(coding, 40)!r}")
    length = headers.get("Content-Length")
    if length is not None and not re.fullmatch(r"[0-9]{1,18}", length.strip(), re.ASCII):
        raise _WrongAnswer(f"Content-Length must be a number of bytes, got {printable(length, 40)!r}")
    if length is None and wanted.size is None:
        raise _WrongAnswer("the server must announce the file's size (Content-Length), got none")
    total = wanted.size if length is None else have + int(length)
    if wanted.size is not None and total != wanted.size:
        raise _WrongAnswer(f"the file must have {wanted.size:,} bytes, the server announces {total:,}")
    if total > wanted.most:
        raise _WrongAnswer(f"the file must be at most {wanted.most:,} bytes, the server announces {total:,}")
    return total


def _some(answer: Any) -> bytes:
    """The bytes that have arrived, waited for at most `TIMEOUT` seconds; empty at the end."""
    try:
        return answer.read1(_BLOCK)
    except TimeoutError:
        raise TimeoutError(f"the server stalled: no byte within {TIMEOUT} s") from None


class _Pace:
    """Finds servers that keep a connection open with a trickle of bytes."""

    def __init__(self):
        self._since, self._bytes = time.monotonic(), 0

    def check(self, count: int) -> None:
        """Count bytes that arrived. Raises `TimeoutError` where fewer than `SLOWEST` came in `TIMEOUT` seconds."""
        self._bytes += count
        now = time.monotonic()
        if now - self._since < TIMEOUT:
            return
        if self._bytes < SLOWEST:
            raise TimeoutError(f"the server stalled: {self._bytes:,} bytes within {TIMEOUT} s")
        self._since, self._bytes = now, 0


def _ask(url: str, headers: Mapping[str, str]) -> Any:
    """The answer to a request, redirected at most ten times, to web addresses only, and without the token elsewhere."""
    import urllib.request

    class WebOnly(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, request, answer, code, message, found, address):
            if not is_address(address):
                raise _WrongAnswer(f"the server redirects to {printable(address, 100)!r}, which is not a web address")
            onward = super().redirect_request(request, answer, code, message, found, address)
            if onward is not None and _origin(address) != _origin(request.full_url):
                for secret in ("Authorization", "Cookie"):
                    onward.remove_header(secret)
            return onward

    request = urllib.request.Request(url, headers=dict(headers))
    return urllib.request.build_opener(WebOnly).open(request, timeout=TIMEOUT)


def _origin(address: str) -> tuple[str, str | None, int | None]:
    parts = urllib.parse.urlsplit(address)
    return parts.scheme, parts.hostname, parts.port
