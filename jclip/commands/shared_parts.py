"""The one door for work that is cut into numbered parts: by this process, a share of them, other processes, or a cluster.

A command names its `Job`; what is finished lies in files, so that afterwards it goes on as if it had done all itself.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from jclip.commands import cluster, side_processes
from jclip.commands.arguments import nonempty, whole
from jclip.data.shares import WHOLE, Share, share
from jclip.errors import ConfigError, counted, say
from jclip.features import cached
from jclip.machine import process_times

OPTIONS = ("--shard", "--processes", "--scheduler")
_in_its_folder = threading.Lock()


class Job(Protocol):
    """A command's work in parts. A part depends on its number alone, never on who does it."""

    @property
    def folder(self) -> Path:
        """Where finished parts lie, which all who take part must see."""

    @property
    def key(self) -> str:
        """Names what parts are made of: photos, weights, options."""

    @property
    def sizes(self) -> Sequence[int]:
        """Photos or rows of each part, 0 where it is not known before."""

    def done(self) -> int:
        """How many photos or rows are done, by what lies in the folder."""

    def missing(self) -> Sequence[int]:
        """Numbers of the parts that are not finished."""

    def finish(self, own: Share) -> int:
        """Finishes the parts of a share that are not; returns how many photos or rows that took."""


@dataclass(frozen=True)
class Helped:
    """What others did: photos or rows, and in how many seconds. ends: whether all parts are finished, so that the command can
    go on to what it makes of them."""

    encoded: int = 0
    seconds: float = 0.0
    ends: bool = True


def add_options(p: argparse.ArgumentParser) -> None:
    """Adds the ways to share a command's work."""
    p.add_argument(
        "--shard", type=share, metavar="I/N",
        help="do share I of N alone, such as 2/8: the others run elsewhere with the same options, the last one ends the work",
    )  # fmt: skip
    p.add_argument(
        "--processes", type=whole(1, 1024), default=1, metavar="N",
        help="share the photos among N processes on this machine (default: 1)",
    )  # fmt: skip
    p.add_argument(
        "--scheduler", type=nonempty, metavar="ADDRESS",
        help="share the photos among the workers of a running Dask cluster, such as tcp://host:8786; needs 'jclip[cluster]'",
    )  # fmt: skip
    p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)


def given_ways(args: argparse.Namespace) -> list[str]:
    """The options of sharing that are given. Raises `ConfigError` for several."""
    values = (args.shard, args.processes > 1, args.scheduler)
    given = [option for option, value in zip(OPTIONS, values, strict=True) if value]
    if len(given) > 1 and not args.worker:
        raise ConfigError(f"{' and '.join(given)} must not be given together: each is a way to share the photos")
    return given


def helped(command: str, module: str, argv: Sequence[str], args: argparse.Namespace, job: Job) -> Helped:
    """Has the parts finished as the options say, and says what is missing where only a share was asked for.

    command: its name. module: the name of its module, which has `parser()` and `job_of(args)`, by which workers have the
    same job.
    """
    given_ways(args)
    begun = time.monotonic()
    if args.worker or args.shard:
        return _own_share(args, job, begun)
    encoded = 0
    if args.processes > 1 and job.missing():
        order = [command, *argv, "--worker"]
        said = side_processes.run(order, min(args.processes, len(job.sizes)), (sum(job.sizes), job.done))
        encoded = sum(json.loads(line)["encoded"] for line in said)
    elif args.scheduler and job.missing():
        order = json.dumps([module, [*argv], os.getcwd(), [cached.build_name(), job.key]])  # noqa: PTH109
        tasks = [(order, number, len(job.sizes)) for number in job.missing()]
        encoded = sum(cluster.run(args.scheduler, job.folder, tasks, finish_part, [job.sizes[t[1]] for t in tasks]))
    return Helped(encoded, time.monotonic() - begun)


def _own_share(args: argparse.Namespace, job: Job, begun: float) -> Helped:
    own = args.shard or WHOLE
    if args.worker:
        process_times.end_with_parent()
    encoded = job.finish(replace(own, ends=not args.worker))
    found = Helped(encoded, time.monotonic() - begun)
    if args.worker:
        say(json.dumps({"encoded": encoded}))
        return replace(found, ends=False)
    missing, parts = job.missing(), counted(len(job.sizes), "part")
    if missing and not own.of_numbers(len(job.sizes)):
        say(f"shard {own} has nothing to do: the photos are {parts}, of other shards")
    elif missing:
        say(
            f"shard {own}: {len(job.sizes) - len(missing)} of {parts} are finished in {job.folder}, those of "
            f"{own.names_of(missing)} are not; the shard that finishes the last one ends the work"
        )
    return replace(found, ends=not missing)


def finish_part(order: str, number: int, parts: int) -> int:
    """One part of a command's work, done by a worker of a cluster; returns how many photos or rows that took."""
    module, argv, folder, made_of = json.loads(order)
    with _in_its_folder, _in_folder(folder):
        job = _job(module, tuple(argv))
        _check_same(job, *made_of)
        return job.finish(Share(number + 1, parts, ends=False))


def _check_same(job: Job, build: str, key: str) -> None:
    """Raises `ConfigError` for a worker that would make other parts than who asks."""
    if cached.build_name() != build:
        raise ConfigError(
            f"the worker on {socket.gethostname()} must have the same jclip and packages (Jittor, NumPy, Pillow) and the same "
            "JCLIP_KERNELS, got others"
        )
    if job.key != key:
        raise ConfigError(
            f"the worker on {socket.gethostname()} must see the same photos and weights, got others: its folders must be shared"
        )


@functools.lru_cache(maxsize=1)
def _job(module: str, argv: tuple[str, ...]) -> Job:
    """A worker does many parts, and reads lists and weights once."""
    command = importlib.import_module(module)
    parser: Callable[[], argparse.ArgumentParser] = command.parser
    return command.job_of(parser().parse_args(argv))


@contextlib.contextmanager
def _in_folder(folder: str) -> Iterator[None]:
    before = os.getcwd()  # noqa: PTH109
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
