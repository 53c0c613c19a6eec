"""Replies of a chat server, on disk before anything is made of them; no job is asked twice. Imports no Jittor."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jclip.config import to_json
from jclip.data.chat_server import ChatServer, NoReply, Reply
from jclip.errors import ConfigError, DataError

MOST_FAILURES = 20  # in a row


@dataclass(frozen=True)
class Job:
    """One question. number: which of several equal questions it is; asked: labels of the classes that it is about."""

    stage: str
    model: str
    prompt: str
    number: int
    temperature: float
    asked: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """SHA-1 of stage, model, prompt, number and temperature: what makes two jobs the same."""
        parts = to_json([self.stage, self.model, self.prompt, self.number, self.temperature])
        return hashlib.sha1(parts.encode(), usedforsecurity=False).hexdigest()

    @property
    def seed(self) -> int:
        """The seed that the server is given."""
        return int(self.key[:7], 16)


class RawReplies:
    """A file of replies, `{key, prompt, reply, usage, time}` a line, that one process at a time adds to.

    A line that a kill has torn is cut off when the file is opened, and its job is asked again; a whole line is never lost.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab")  # noqa: SIM115 - open as long as this object
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ConfigError(f"{path} is written by another process: wait for it, or choose another --out") from None
        self._lock = threading.Lock()
        self.replies: dict[str, Reply] = {}
        self._take_up()

    def __enter__(self) -> RawReplies:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, job: Job, reply: Reply) -> None:
        """Appends a reply; when this returns it is on disk. May be called from several threads."""
        value = {
            "key": job.key,
            "prompt": job.prompt,
            "reply": reply.text,
            "usage": dict(reply.usage),
            "time": time.time(),
        }
        line = to_json(value).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self.replies[job.key] = reply

    def _take_up(self) -> None:
        """Reads what is there, completes a whole last line that lacks its end, and cuts off a torn one."""
        data = self.path.read_bytes()
        self.replies = _replies_in(data)
        whole = data.rfind(b"\n") + 1
        if _reply_in(data[whole:]):
            self._file.write(b"\n")
            self._file.flush()
        elif whole < len(data):
            self._file.truncate(whole)


def stored_replies(path: Path) -> dict[str, Reply]:
    """Returns the replies in a file by the keys of their jobs, none where there is no file; changes nothing."""
    return _replies_in(path.read_bytes()) if path.is_file() else {}


def _replies_in(data: bytes) -> dict[str, Reply]:
    """The replies by key, of equal keys the first; a line that is none is as if it were not there."""
    return dict(reversed([*filter(None, map(_reply_in, data.split(b"\n")))]))


def _reply_in(line: bytes) -> tuple[str, Reply] | None:
    try:
        value: dict[str, Any] = json.loads(line)
        key, text, usage = value["key"], value["reply"], value["usage"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    usable = isinstance(key, str) and isinstance(text, str) and isinstance(usage, dict)
    return (key, Reply(text, usage)) if usable else None


@dataclass
class Budget:
    """How much may be asked and said in all, earlier runs of the folder included; 0 is no limit."""

    max_requests: int = 0
    max_tokens: int = 0
    requests: int = 0
    tokens: int = 0

    def spend(self, reply: Reply) -> None:
        """Counts one reply."""
        self.requests += 1
        self.tokens += tokens_of_reply(reply)

    def is_spent(self, under_way: int = 0) -> bool:
        """Whether nothing more may be asked, with that many questions under way."""
        return bool(
            (self.max_requests and self.requests + under_way >= self.max_requests)
            or (self.max_tokens and self.tokens >= self.max_tokens)
        )


def tokens_of_reply(reply: Reply) -> int:
    """Returns the tokens of a question and its reply, as the server counted, 0 where it did not."""
    own = reply.usage
    return int(own.get("total_tokens", own.get("prompt_tokens", 0) + own.get("completion_tokens", 0)))


@dataclass
class Asked:
    """What became of the jobs of a stage. left: not asked, because the budget was spent."""

    done: int = 0
    failed: list[str] = field(default_factory=list)
    left: int = 0


def ask_all(
    jobs: Sequence[Job],
    store: RawReplies,
    server: ChatServer,
    budget: Budget,
    *,
    concurrency: int,
    top_p: float,
    reply_tokens: int,
) -> Asked:
    """Asks the jobs that have no reply yet, `concurrency` at a time, and stores each reply as it comes.

    A job without a reply after all tries counts as failed. Raises `ServerRefused`, and `DataError` after more than 20 failures
    in a row; what was stored stays.
    """
    found, in_a_row = Asked(), 0
    open_jobs = iter(_not_asked(jobs, store))
    server.stopped.clear()

    def ask(job: Job) -> Reply:
        reply = server.ask(job.prompt, temperature=job.temperature, top_p=top_p, max_tokens=reply_tokens, seed=job.seed)
        store.add(job, reply)
        return reply

    with ThreadPoolExecutor(concurrency, thread_name_prefix="chat") as pool:
        under_way: set[Future] = set()
        try:
            while True:
                while (
                    len(under_way) < concurrency
                    and not budget.is_spent(len(under_way))
                    and (job := next(open_jobs, None)) is not None
                ):
                    under_way.add(pool.submit(ask, job))
                if not under_way:
                    break
                ready, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in ready:
                    in_a_row = 0 if _has_reply(future, found, budget) else in_a_row + 1
                if in_a_row > MOST_FAILURES:
                    raise _given_up(in_a_row, found, store)
        finally:
            server.stopped.set()
    found.left = sum(1 for _ in open_jobs)
    return found


def _given_up(in_a_row: int, found: Asked, store: RawReplies) -> DataError:
    return DataError(
        f"the chat server gave no reply {in_a_row} times in a row ({found.failed[-1]}): the same command goes "
        f"on from {len(store.replies)} replies in {store.path}"
    )


def _has_reply(future: Future, found: Asked, budget: Budget) -> bool:
    """Counts what became of one job, and says whether there is a reply."""
    try:
        budget.spend(future.result())
    except NoReply as e:
        found.failed.append(str(e))
        return False
    found.done += 1
    return True


def _not_asked(jobs: Iterable[Job], store: RawReplies) -> list[Job]:
    """The jobs without a reply, each once."""
    return [*{job.key: job for job in jobs if job.key not in store.replies}.values()]
