"""A command's parts as tasks of a running Dask cluster (`distributed`): asked, watched, joined."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jclip.errors import ConfigError, DataError, JclipError, notice, printable

ANSWER = "15s"  # that a scheduler has to answer
_LOOK = 5.0  # seconds
RETRIES = 2  # of a part whose worker raised what is no error of the user's


def run(address: str, folder: Path, tasks: Sequence[tuple], work: Callable[..., Any], sizes: Sequence[int]) -> list:
    """What `work(*task)` returns of each task, done by the workers of the scheduler at `address`.

    work: a function that the workers import by name. folder: where they write, which they must share. sizes: photos of
    each task, for the progress bar. A worker that is lost has its parts done by another. Raises `ConfigError` for a
    scheduler that does not answer or has no workers, and workers without this jclip or without the folder, `DataError`
    for a cluster that is lost on the way.
    """
    try:
        import distributed
    except ImportError:
        raise ConfigError("--scheduler needs Dask: pip install 'jclip[cluster]'") from None
    from tqdm import tqdm

    with _client(distributed, address) as client:
        _check_workers(client, address, folder.absolute())
        futures = client.map(_called, [work] * len(tasks), tasks, pure=False, retries=RETRIES)
        size_of, done = dict(zip((f.key for f in futures), sizes, strict=True)), {}
        bar = tqdm(total=sum(sizes) or None, unit="photo", disable=None, leave=False)
        with bar, _noticing_that_none_is_left(client, address):
            for future in _completed(distributed, client, futures, address):
                done[future.key] = future.result()
                future.release()  # else the work is done again where its worker is lost, though all is known
                bar.update(size_of[future.key])
        return [done[future.key] for future in futures]


@contextlib.contextmanager
def _client(distributed: Any, address: str) -> Iterator[Any]:
    """Asked for by name, so that nothing is started here. What goes wrong is raised, and not logged by Dask beside that."""
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # a lost connection is logged with its traceback
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            distributed.comm.get_address_host_port(
                address
            )  # a client of no address would wait half a minute at its end
            client = distributed.Client(address, timeout=ANSWER, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as e:
        raise ConfigError(f"--scheduler {address}: no scheduler answers there: start one (`dask scheduler`) and give "
                          f"its address, such as tcp://host:8786, got {printable(str(e), 120)}") from e  # fmt: skip
    for found in warned:  # a table of several lines, of packages whose versions differ
        notice(f"--scheduler {address}: {one_line(str(found.message))}")
    try:
        yield client
    finally:
        client.close(timeout=5)


@contextlib.contextmanager
def _noticing_that_none_is_left(client: Any, address: str) -> Iterator[None]:
    """Dask waits for workers without a word; here one is said when none is left at two looks."""
    ended = threading.Event()

    def look() -> None:
        none = 0
        while none < 2 and not ended.wait(_LOOK):
            with contextlib.suppress(Exception):  # a scheduler that is gone is seen elsewhere
                none = 0 if client.scheduler_info(n_workers=-1)["workers"] else none + 1
        if none == 2:
            notice(f"--scheduler {address} has no workers any more: waiting for others (`dask worker {address}`)")

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def _completed(distributed: Any, client: Any, futures: Sequence[Any], address: str) -> Iterator[Any]:
    """Futures as they end. Raises what a worker raised, and `DataError` for a cluster that is lost."""
    advice = "the same command goes on with what is done"
    for future in distributed.as_completed(futures, loop=client.loop, raise_errors=False):
        if future.status == "finished":
            yield future
            continue
        error = future.exception() if future.status == "error" else None
        if isinstance(error, JclipError):
            raise error
        if isinstance(error, distributed.KilledWorker):
            raise DataError(f"--scheduler {address}: a part ended {error.allowed_failures + 1} workers (out of memory?), the "
                            f"last {error.last_worker.address}: {advice}")  # fmt: skip
        why = printable(f"{type(error).__name__}: {error}", 200) if error else "the scheduler is gone"
        raise DataError(f"--scheduler {address}: {why}: {advice}") from error


def one_line(warning: str) -> str:
    """A warning of Dask's, its table without frame."""
    kept = [" ".join(line.split()) for line in warning.splitlines() if line.strip() and not line.startswith("+-")]
    return printable(" ".join(kept), 400)


def _called(work: Callable[..., Any], task: tuple) -> Any:
    return work(*task)


def _check_workers(client: Any, address: str, folder: Path) -> None:
    if not client.scheduler_info(n_workers=-1)["workers"]:
        raise ConfigError(f"--scheduler {address} must have workers, got none: start some (`dask worker {address}`)")
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / f"..features.npy.{secrets.token_hex(4)}.part"  # a name that the gallery removes if this is killed
    token.touch()
    try:
        answers = client.run(facts, str(token), on_error="return")
    finally:
        token.unlink(missing_ok=True)
    own = version("jclip")
    for worker, answer in answers.items():
        if isinstance(answer, ImportError) or "No module named 'jclip" in str(answer):  # or Dask's error around it
            raise ConfigError(f"the worker {worker} must have jclip {own}, got none ({printable(str(answer), 120)})")
        if isinstance(answer, BaseException):
            raise ConfigError(f"the worker {worker} does not answer: {printable(str(answer), 120)}")
        theirs, host, sees = answer
        if theirs != own:
            raise ConfigError(f"the worker {worker} on {host} must have jclip {own}, got {theirs}")
        if not sees:
            raise ConfigError(
                f"the worker {worker} on {host} does not see {folder}: give a folder that all hosts share"
            )


def facts(token: str) -> tuple[str, str, bool]:
    """Of a worker: jclip's version, its host's name, and whether it sees a file."""
    return version("jclip"), socket.gethostname(), os.path.exists(token)  # noqa: PTH110
