"""A client of OpenAI-compatible chat servers, of the standard library alone. Imports no Jittor.

The key stands in no message and no file, and is sent nowhere but to the server that the config names: redirects are refused.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jclip.errors import ConfigError, DataError, printable, quoted

RETRIED = frozenset((408, 409, 425, 429))  # and all from 500
TRIES = 6
LONGEST_WAIT = 60.0  # seconds between two tries, unless the server asks for more
LONGEST_ASKED = 600.0  # that a server may ask to wait
MOST_BYTES = 1 << 22  # of an answer
SHOWN = 500  # characters of a server's message


class ServerRefused(DataError):
    """The server does not take the request, and would not the next time: a wrong key, an unknown model."""


class NoReply(Exception):
    """No usable reply after all tries; the last reason is the message."""


class _Retry(Exception):
    """Why to ask again, and after how many seconds the server wants it."""

    def __init__(self, why: str, after: float | None = None):
        super().__init__(why)
        self.after = after


@dataclass(frozen=True)
class Reply:
    """What the model said, and the tokens that it cost as far as the server says."""

    text: str
    usage: Mapping[str, int] = field(default_factory=dict)


def key_from(variable: str) -> str:
    """Returns the key that an environment variable holds; "" where no variable is named. Raises `ConfigError`."""
    if not variable:
        return ""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise ConfigError(
            "api_key_env must be the name of an environment variable, such as OPENAI_API_KEY, got something else: "
            "the key itself never stands in a config"
        )
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {variable} must hold the chat server's key, it is not set: export {variable}=…, or set "
            "server.api_key_env to an empty text for a server without keys"
        )
    if not key.isprintable() or not key.isascii():
        raise ConfigError(
            f"the environment variable {variable} must hold a key of plain letters and digits, got others"
        )
    return key


@dataclass
class ChatServer:
    """Asks `{base_url}/chat/completions` until there is a usable reply.

    Asked again are a timeout, a broken connection, 408, 409, 425, 429, 5xx, an empty reply and one that is not JSON, after
    1, 2, 4, … at most 60 seconds, each 20 % more or less, or after what `Retry-After` says.
    """

    base_url: str
    model: str
    key: str = field(default="", repr=False)
    timeout: float = 60.0
    tries: int = TRIES
    wait: Callable[[float], object] | None = None  # for so many seconds; None: until `stopped` is set at most
    draw: Callable[[], float] = random.random
    stopped: threading.Event = field(default_factory=threading.Event, repr=False)  # set by who wants no more replies

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise ConfigError(f"base_url must be an address such as https://host/v1, got {quoted(self.base_url, 80)}")
        self._opener = urllib.request.build_opener(_NoRedirects)

    def ask(self, prompt: str, *, temperature: float, top_p: float, max_tokens: int, seed: int) -> Reply:
        """Returns the model's reply to one message. Raises `NoReply` after all tries, and `ServerRefused`."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_tokens,
            "seed": seed,
        }
        for attempt in range(self.tries):
            try:
                return self._once(json.dumps(body).encode())
            except _Retry as e:
                why = str(e)
                if attempt + 1 < self.tries:
                    (self.wait or self.stopped.wait)(self._pause(attempt, e.after))
            if self.stopped.is_set():
                break
        raise NoReply(f"{why} ({self.tries} tries)")

    def _pause(self, attempt: int, after: float | None) -> float:
        if after is not None:
            return min(after, LONGEST_ASKED)
        return min(LONGEST_WAIT, 2.0**attempt) * (0.8 + 0.4 * self.draw())

    def _once(self, body: bytes) -> Reply:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "jclip"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        address = f"{self.base_url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, data=body, headers=headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return _reply_of(self._read(response))
        except urllib.error.HTTPError as e:
            raise self._refusal(e) from None
        except TimeoutError:
            raise _Retry(f"no answer within {self.timeout:g} s") from None
        except (OSError, http.client.HTTPException) as e:  # URLError is an OSError
            reason = getattr(e, "reason", None) or e
            raise _Retry(f"the connection broke: {self._shown(str(reason) or type(reason).__name__)}") from None

    def _read(self, response: Any) -> bytes:
        """The whole body, which has to arrive within the timeout and to be as long as it says."""
        end, blocks, size = time.monotonic() + self.timeout, [], 0
        while block := response.read1(1 << 16):
            blocks.append(block)
            size += len(block)
            if size > MOST_BYTES:
                raise _Retry(f"the answer is longer than {MOST_BYTES:,} bytes")
            if time.monotonic() > end:
                raise TimeoutError
        announced = response.headers.get("Content-Length", "")
        if announced.isascii() and announced.isdecimal() and size < int(announced):
            raise _Retry(f"the connection broke after {size} of {announced} bytes")
        return b"".join(blocks)

    def _refusal(self, e: urllib.error.HTTPError) -> Exception:
        try:
            said = e.read(MOST_BYTES).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            said = ""
        finally:
            e.close()
        message = self._shown(_message_in(said) or str(e.reason))
        if e.code in RETRIED or e.code >= 500:
            return _Retry(f"status {e.code}: {message}", _seconds(e.headers.get("Retry-After")))
        return ServerRefused(f"{self.base_url} answers with status {e.code}: {message}")

    def _shown(self, text: str) -> str:
        """A server's words for a message, without the key that some repeat."""
        text = text.replace(self.key, "<key>") if self.key else text
        return printable(" ".join(text.split())[:SHOWN], SHOWN)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **more: Any) -> None:
        return None  # the 3xx is then an error as others are


def _reply_of(data: bytes) -> Reply:
    try:
        value = json.loads(data.decode("utf-8"))
        text = value["choices"][0]["message"]["content"]
    except (ValueError, RecursionError):
        raise _Retry("the answer is not JSON") from None
    except (LookupError, TypeError):
        raise _Retry("the answer has no choices[0].message.content") from None
    if not isinstance(text, str) or not text.strip():
        raise _Retry("the reply is empty")
    usage = value.get("usage")
    counted = (
        {k: v for k, v in usage.items() if isinstance(v, int) and 0 <= v < 1 << 40} if isinstance(usage, dict) else {}
    )
    return Reply(text.encode("utf-8", "replace").decode("utf-8"), counted)


def _message_in(said: str) -> str:
    """What an error's body says, its JSON's message where there is one."""
    try:
        error = json.loads(said)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError, RecursionError):
        return said


def _seconds(value: str | None) -> float | None:
    """Seconds of a Retry-After header, a number or a date."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value := value.strip()):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
