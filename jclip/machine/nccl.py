"""NCCL, by which GPUs of several processes sum arrays without their passing through the host. No Jittor.

Its functions are found in its library by name, and nothing is compiled or linked against it: what was installed last is
used as it is. Jittor's own operators for it are not: they link ranks to cards by number and leave NCCL out where a rank
sees one card, as each of jclip's ranks does; they download NCCL where they find none; and what fails ends the process.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import ctypes.util
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from jclip.errors import ConfigError, JclipError, quoted
from jclip.machine import gpu, rank_watch, ranks

NAME = "libnccl"
SECONDS_TO_JOIN = 60.0
SECONDS_TO_SUM = 30.0  # a few numbers
SECONDS_TO_STOP = 5.0  # for the thread that watches sums, which asks NCCL and the driver
SECONDS_OF_A_SUM = 1800.0  # while training: others may read photos, or compile, before they add theirs
_NOT_READY = 600  # CUDA_ERROR_NOT_READY


class NcclFailed(JclipError):
    """NCCL is missing, or a call of it failed; says why."""


_OF_DRIVER = {
    "event_create": "cuEventCreate", "event_record": "cuEventRecord", "event_query": "cuEventQuery",
    "context_get": "cuCtxGetCurrent", "context_set": "cuCtxSetCurrent",
}  # fmt: skip


class _UniqueId(ctypes.Structure):
    _fields_ = (("internal", ctypes.c_char * 128),)


class _Watch(ctypes.Structure):
    """What `kernels/sources/nccl_watch.h` ends a process by, laid out as its NcclWatch."""

    _fields_ = (
        ("limit", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("comm", "async_error", "error_text", *_OF_DRIVER)),
        *((name, ctypes.c_char_p) for name in ("name", "advice", "marker")),
        ("delay", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("running", "stop")),
        ("since", ctypes.c_double),
        ("giving", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("event", "context")),
    )


def seconds_of_a_sum() -> float:
    """How long a sum may take: `JCLIP_NCCL_SECONDS`, else half an hour. Raises `ConfigError`."""
    named = os.environ.get("JCLIP_NCCL_SECONDS", "")
    if named and not (named.isdecimal() and int(named)):
        raise ConfigError(f"JCLIP_NCCL_SECONDS must be a number of seconds of at least 1, got {quoted(named)}")
    return float(named or SECONDS_OF_A_SUM)


def switched_off() -> bool:
    """Whether the user wants none: `JCLIP_NCCL=0`."""
    return os.environ.get("JCLIP_NCCL") == "0"


def find_library() -> Path | None:
    """Return NCCL's library: from the folder that `nccl_lib_path` names, beside CUDA's parts, from pip's packages or the
    system's folders; None without any."""
    if named := os.environ.get("nccl_lib_path"):
        return next(iter(gpu.versions_of(Path(named), NAME)), None)
    if found := gpu.find_part(NAME):
        return found
    known = ctypes.util.find_library("nccl")
    return Path(known) if known else None


def install_hint() -> str:
    """How to get it."""
    toolkit = gpu.find_cuda().toolkit or gpu.find_toolkit()
    return f"pip install nvidia-nccl-cu{toolkit.version[0] if toolkit else 13}"


class Nccl:
    """NCCL's library, loaded. Raises `NcclFailed` where there is none, or another one than it says."""

    def __init__(self) -> None:
        path = find_library()
        if path is None:
            raise NcclFailed(f"NCCL is not installed: {install_hint()}")
        try:
            self.library = ctypes.CDLL(str(path))
            self.library.ncclGetErrorString.restype = ctypes.c_char_p
            self.library.ncclCommInitRank.argtypes = (ctypes.c_void_p, ctypes.c_int, _UniqueId, ctypes.c_int)
            for function in (self.library.ncclCommAbort, self.library.ncclCommDestroy):
                function.argtypes = (ctypes.c_void_p,)
            self.library.ncclCommGetAsyncError.argtypes = (ctypes.c_void_p, ctypes.c_void_p)  # since 2.4
        except (OSError, AttributeError) as e:
            raise NcclFailed(f"NCCL's library {path} can't be used: {e}") from None
        self.path = path
        self.version = self._version()

    def _version(self) -> str:
        number = ctypes.c_int()
        self.require(self.library.ncclGetVersion(ctypes.byref(number)), "ncclGetVersion")
        major = 10_000 if number.value >= 10_000 else 1_000  # the latter before 2.9
        return f"{number.value // major}.{number.value % major // 100}.{number.value % 100}"

    def require(self, status: int, call: str) -> None:
        """Raises `NcclFailed` where `call` returned another status than success."""
        if status:
            said = (self.library.ncclGetErrorString(status) or b"").decode(errors="replace")
            with contextlib.suppress(AttributeError):  # since 2.13
                self.library.ncclGetLastError.restype = ctypes.c_char_p
                last = self.library.ncclGetLastError(None) or b""
                said = ", ".join(filter(None, (said, " ".join(last.decode(errors="replace").split()))))
            raise NcclFailed(f"NCCL {self.version}: {call} failed: {said}")

    def new_id(self) -> str:
        """What one rank makes and all join by, in hexadecimal digits."""
        unique = _UniqueId()
        self.require(self.library.ncclGetUniqueId(ctypes.byref(unique)), "ncclGetUniqueId")
        return bytes(unique).hex()

    def join(self, unique: str, rank: int, size: int) -> Communicator:
        """The connection of this rank, on the card that it computes on, to the others: all ranks call this at one time.

        Raises `NcclFailed`, also where the others are not heard of within `SECONDS_TO_JOIN`.
        """
        made, status = ctypes.c_void_p(), []
        given = _UniqueId.from_buffer_copy(bytes.fromhex(unique))

        def connect() -> None:
            status.append(self.library.ncclCommInitRank(ctypes.byref(made), size, given, rank))

        # Connections are made now rather than at the first sum, where waiting for them could not be ended.
        os.environ.setdefault("NCCL_RUNTIME_CONNECT", "0")
        thread = threading.Thread(target=connect, daemon=True)
        thread.start()
        thread.join(SECONDS_TO_JOIN)
        if not status:
            raise NcclFailed(f"NCCL {self.version}: no connection between the ranks after {SECONDS_TO_JOIN:.0f} s")
        self.require(status[0], "ncclCommInitRank")
        return Communicator(self, made.value)


class Communicator:
    """A rank's connection to all others."""

    def __init__(self, nccl: Nccl, handle: int):
        self.nccl, self.handle = nccl, handle
        self.status = ctypes.c_int()  # of the last sums
        self._watch = self._watched()
        atexit.register(self.leave)

    def addresses(self) -> dict[str, int]:
        """What an operator needs to call NCCL: of its functions, of the connection and of the status that it leaves."""
        functions = {"start": "ncclGroupStart", "sum": "ncclAllReduce", "end": "ncclGroupEnd"}
        found = {key: getattr(self.nccl.library, name) for key, name in functions.items()}
        pointers = {key: _address(function) for key, function in found.items()}
        own = {"status": ctypes.addressof(self.status), "watch": ctypes.addressof(self._watch)}
        return {**pointers, "comm": self.handle, **own}

    def end_process_after(self, seconds: float) -> None:
        """From now on a sum that fails in the network, or takes longer than so many seconds, ends this process, with a line
        that names its rank and host: it would wait for ever, and the others with it."""
        self._watch.limit = seconds

    def _watched(self) -> _Watch:
        here, library = ranks.here(), self.nccl.library
        functions = {"async_error": library.ncclCommGetAsyncError, "error_text": library.ncclGetErrorString}
        texts = {
            "name": f"jclip: {here}: NCCL {self.nccl.version}",
            "advice": rank_watch.ADVICE,
            "marker": rank_watch.marker(ranks.folder()),
        }
        watch = _Watch(comm=self.handle, delay=rank_watch.delay(here.rank))
        for field, function in functions.items():
            setattr(watch, field, _address(function))
        for field, text in texts.items():
            setattr(watch, field, text.encode())
        with contextlib.suppress(OSError, AttributeError):  # no GPU: a stand-in for NCCL sums at once
            driver = ctypes.CDLL("libcuda.so.1")
            found = {field: getattr(driver, name) for field, name in _OF_DRIVER.items()}
            for field, function in found.items():
                setattr(watch, field, _address(function))
        return watch

    def check(self) -> None:
        """Raises `NcclFailed` where the last sums could not be begun."""
        self.nccl.require(self.status.value, "ncclAllReduce")

    def leave(self) -> None:
        """Close the connection: all ranks do it, after their last sum."""
        self._close(self.nccl.library.ncclCommDestroy)

    def abort(self) -> None:
        """Close the connection without the others; a sum that waits for them ends."""
        self._close(self.nccl.library.ncclCommAbort)

    def _close(self, how: Callable[[int], int]) -> None:
        if self.handle:
            atexit.unregister(self.leave)
            handle, self.handle = self.handle, 0
            self._watch.stop, end = 1, time.monotonic() + SECONDS_TO_STOP
            while self._watch.running and time.monotonic() < end:
                time.sleep(0.01)
            how(handle)


def _address(function: Callable) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value


def wait_for_card() -> None:
    """Return when the card has done all that it was given. Raises `NcclFailed` after `SECONDS_TO_SUM`."""
    driver, end = ctypes.CDLL("libcuda.so.1"), time.monotonic() + SECONDS_TO_SUM
    while (status := driver.cuStreamQuery(None)) == _NOT_READY:
        if time.monotonic() > end:
            raise NcclFailed(f"a sum over ranks was not there after {SECONDS_TO_SUM:.0f} s")
        time.sleep(0.002)
    if status:
        raise NcclFailed(f"the driver returned error {status} after a sum over ranks")


def card() -> str:
    """The first card that this process sees, by its host's start and its place there; "" without one."""
    driver, device, place = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.create_string_buffer(32)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return ""
    driver.cuDeviceGetPCIBusId(place, 32, device)
    host = Path("/proc/sys/kernel/random/boot_id")
    return f"{host.read_text().strip() if host.is_file() else os.uname().nodename} {place.value.decode()}"
