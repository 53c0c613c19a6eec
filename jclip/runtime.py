"""The only module that imports Jittor: `from jclip.runtime import jt`.

Before the import it passes to Jittor what Jittor would otherwise miss, download or guess (oneDNN, CUDA, Python's
headers); variables set by the user win. The first import on a machine compiles for minutes and may end the process,
so it runs in a child process and is checked. After the import, global state that Jittor changed is restored: TLS
verification, the recursion limit and the stack's, signal handlers, environment variables, `sys.excepthook` and
`sys.exit`, the random states of Python and NumPy, the start method of `multiprocessing`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import importlib.util
import json
import multiprocessing
import os
import platform
import random
import re
import shlex
import signal
import ssl
import subprocess
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from jclip.errors import SetupError
from jclip.machine import core_import, memory_limit, open_mpi, process_times, ranks, toolchain
from jclip.machine import gpu as cuda
from jclip.paths import cache_dir, expanded, plain_path, replacing

toolchain.refuse_unsupported()  # before the names below, which Windows lacks
import resource  # noqa: E402

WITHOUT_ONEDNN = "matrix products and convolutions will be about 100 times slower"
_READY = "jclip: Jittor is ready"
_JITTORS_SIGNALS = (
    signal.SIGINT,
    signal.SIGCHLD,
    signal.SIGQUIT,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGBUS,
    signal.SIGSEGV,
)
_BUILD_VARIABLES = ("cc_path", "cc_flags", "nvcc_path", "nvcc_flags", "use_mkl", "kernel_flags", "debug")


def _start() -> ModuleType:
    """Prepare, build and import Jittor; enable the GPU where there is one."""
    if "jittor" in sys.modules:
        return _adopt(sys.modules["jittor"])
    memory_limit.require_start()
    settings = _settings()
    stamp = _stamp(settings)
    built = _is_built(stamp)
    if not built:
        _build(settings, stamp)
    on_gpu = {**os.environ, **settings}.get("nvcc_path", "unknown") != ""
    unchecked = not on_gpu and (built or _is_built(stamp))
    try:
        with _prepared({**settings, **ranks.variables()}):  # one of several processes joins the others
            module = _import_jittor(Path(settings["HOME"]), unchecked)
        _end_compile_pool()  # Jittor's handlers no longer see the end of a child
    except SystemExit:
        stamp.unlink(missing_ok=True)
        raise SetupError("Jittor rebuilt a part of itself and ended: run the same command again") from None
    except Exception:
        stamp.unlink(missing_ok=True)  # the next start checks all of it
        raise
    if module.has_cuda and os.environ.get("JCLIP_DEVICE", "").lower() != "cpu":
        module.flags.use_cuda = 1
    return module


def _settings() -> dict[str, str]:
    """Return environment variables for Jittor's import. Raises `SetupError` for what can't be worked around."""
    toolchain.jittor_version()
    toolchain.find_compiler()
    toolchain.find_python_include()
    wanted = {
        "HOME": str(plain_path(toolchain.jittor_home())),  # Jittor does not quote it for the shell
        "cache_name": "jclip",  # otherwise the git branch of whatever repository holds the environment
        "FIX_TORCH_ERROR": "0",  # otherwise torch is imported whenever it is installed
        "use_mpi": "0",  # otherwise "1" whenever mpicc is in PATH
        "gdb_path": "",
        "log_silent": "1",
        **_onednn_settings(),
        **cuda.find_cuda().environment,
    }
    return {**{k: v for k, v in wanted.items() if k == "HOME" or k not in os.environ}, **_mpi_settings()}


def _mpi_settings() -> dict[str, str]:
    if not ranks.here().several:
        return {}
    return {"use_mpi": "1", "mpicc_path": str(plain_path(open_mpi.require_mpi().compiler))}


def _onednn_settings() -> dict[str, str]:
    if "use_mkl" in os.environ:
        return {}
    onednn = toolchain.find_onednn()
    if onednn is None:
        warnings.warn(f"oneDNN not found, so {WITHOUT_ONEDNN}: {toolchain.ONEDNN_INSTALL}", stacklevel=2)
        return {"use_mkl": "0"}
    toolchain.offer_onednn(toolchain.jittor_home(), onednn)
    return {}


@contextlib.contextmanager
def _prepared(settings: dict[str, str]) -> Iterator[None]:
    """Set `settings` in the environment for the block; afterwards restore all that Jittor changed."""
    environment = dict(os.environ)
    https_context = ssl._create_default_https_context
    recursion_limit, stack = sys.getrecursionlimit(), resource.getrlimit(resource.RLIMIT_STACK)
    hook, leave = sys.excepthook, sys.exit
    drawn, drawn_by_numpy = random.getstate(), np.random.get_state()
    starts_by = multiprocessing.get_start_method(allow_none=True)
    libc, actions = ctypes.CDLL(None), {}
    for number in _JITTORS_SIGNALS:
        actions[number] = ctypes.create_string_buffer(256)  # a struct sigaction has 152 bytes
        libc.sigaction(number, None, actions[number])
    os.environ.pop("JITTOR_HOME", None)  # HOME says it; Jittor would write the variable to a file, where it sticks
    os.environ.update(settings)
    try:
        yield
    finally:
        ssl._create_default_https_context = https_context
        sys.setrecursionlimit(recursion_limit)
        resource.setrlimit(resource.RLIMIT_STACK, stack)
        sys.excepthook, sys.exit = hook, leave
        random.setstate(drawn)
        np.random.set_state(drawn_by_numpy)
        multiprocessing.set_start_method(starts_by, force=True)
        os.environ.clear()
        os.environ.update(environment)
        for number, action in actions.items():  # as the system knows them: Python does not see faulthandler's
            libc.sigaction(number, action, None)


def _import_jittor(home: Path, unchecked: bool) -> ModuleType:
    """Import Jittor, which compiles or checks its core unless `unchecked`: the core is what its stamp says."""
    import jittor_utils

    for kind in (np.float32, np.float64):
        np.finfo(kind)  # cached: Jittor flushes denormals to zero, of which NumPy would warn each time
    paths = sysconfig.get_paths()  # no python3.x-config is asked: a virtual environment has none
    includes = (plain_path(Path(paths[kind])) for kind in ("include", "platinclude"))
    jittor_utils._py3_include_path = " ".join(f'-I"{path}"' for path in includes)
    jittor_utils._py3_extension_suffix = sysconfig.get_config_var("EXT_SUFFIX")
    with (core_import.unchecked if unchecked else core_import.compiling)(jittor_utils):
        import jittor

    if "use_parallel_op_compiler" not in os.environ:  # its threads tune matrix products on one graph: a data race
        jittor.flags.use_parallel_op_compiler = 0
    jittor.flags.python_path = shlex.quote(str(toolchain.compile_script(home)))
    jittor.flags.jittor_path = str(plain_path(Path(jittor.flags.jittor_path)))
    return jittor


def _end_compile_pool() -> None:
    """End the processes that Jittor starts at every import to check its core's sources, and would keep running."""
    import jittor_utils

    if jittor_utils.pool_size:
        jittor_utils.pool_cleanup()
        atexit.unregister(jittor_utils.pool_cleanup)
        jittor_utils.pool_size = 0  # what is compiled later restarts them


def _adopt(module: ModuleType) -> ModuleType:
    """Handle a Jittor that was imported before jclip: one warning lists what could not be prepared."""
    ssl._create_default_https_context = ssl.create_default_context
    lost = [
        "its cache and compiler settings",
        "torch was imported with it if installed",
        "signal handlers are Jittor's",
    ]
    if module.compile_extern.mkl_ops is None:
        lost.insert(0, f"oneDNN is missing, so {WITHOUT_ONEDNN}")
    if cuda.find_cuda().gpus and not module.has_cuda:
        lost.insert(0, "CUDA is off although there is a GPU")
    warnings.warn(
        f"Jittor was imported before jclip, which therefore could not prepare it ({'; '.join(lost)}): import jclip first",
        stacklevel=2,
    )
    return module


def _stamp(settings: dict[str, str]) -> Path:
    """Return the file that marks a build as complete and tested, named by a hash of all that the build depends on."""
    compiler = toolchain.find_compiler().resolve()
    spec = importlib.util.find_spec("jittor")
    depends = [
        toolchain.jittor_version(),
        spec.origin,
        sys.version,
        sys.prefix,
        str(compiler),
        str(compiler.stat().st_mtime_ns),
        platform.node(),
        platform.release(),
        _cpu_model(),
        *(f"{k}={v}" for k, v in sorted(settings.items()) if k != "log_silent"),
        *(f"{k}={os.environ.get(k)}" for k in _BUILD_VARIABLES),
    ]
    key = hashlib.sha256("\n".join(map(str, depends)).encode()).hexdigest()[:16]
    return cache_dir("jittor", "built") / f"{key}.json"


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return found.group(1) if found else ""
    return ""


def _facts(libraries: list[str]) -> str:
    """Return a hash of what a build's files are now: Jittor's sources, the libraries made of them, oneDNN."""
    package = Path(importlib.util.find_spec("jittor").origin).parent
    onednn = toolchain.find_onednn()
    return core_import.facts_of(package, libraries, onednn and onednn.library)


def _is_built(stamp: Path) -> bool:
    """Return whether a build is noted, and nothing of what it was made of or consists of has changed since."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        noted = json.loads(stamp.read_text())
        return bool(noted["libraries"]) and noted["facts"] == _facts(noted["libraries"])
    return False


def _build(settings: dict[str, str], stamp: Path) -> None:
    """Import Jittor in child processes until one succeeds and computes correctly, then write `stamp`.

    Raises `SetupError` with the cause when it can't be built.
    """
    import fcntl

    log = cache_dir("jittor") / f"build-{platform.node()}.log"  # hosts that share the cache build each its own
    with open(log.with_suffix(".lock"), "w") as lock:
        if not _lock_at_once(lock):
            _say("jclip: another process is compiling Jittor's core, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_built(stamp):
            return
        _say(
            f"jclip: first start {_where()}: preparing Jittor for this machine (it compiles for one to two minutes, once)"
        )
        begun = time.monotonic()
        for _ in range(4):  # Jittor may end its process with exit code 0 between two stages of its build
            libraries = _build_in_child(settings, log)
            if libraries:
                with replacing(stamp) as path:
                    path.write_text(json.dumps({"libraries": libraries, "facts": _facts(libraries)}))
                _say(f"jclip: Jittor is ready after {time.monotonic() - begun:.0f} s")
                return
        raise SetupError(
            f"Jittor's core did not come up: the build is logged in {log} (`jclip doctor` lists what is missing)"
        )


def _say(text: str) -> None:
    stream = sys.__stderr__ if _first_of_another_host() else sys.stderr
    stream.write(text + "\n")
    stream.flush()


def _where() -> str:
    return f"of {ranks.here()}" if _first_of_another_host() else "here"


def _first_of_another_host() -> bool:
    """Whether this is the rank that says what its host is busy with, for which rank 0 waits on another."""
    here = ranks.here()
    return here.local_rank == 0 and not here.first


def _lock_at_once(lock) -> bool:
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _build_in_child(settings: dict[str, str], log: Path) -> list[str]:
    """Run one import in a child process, with log and progress. Return the libraries it compiled, or nothing."""
    package_root = str(Path(__file__).resolve().parent.parent)
    search_path = os.pathsep.join(p for p in (package_root, os.environ.get("PYTHONPATH")) if p)
    child = subprocess.Popen(
        [sys.executable, "-m", "jclip.runtime"],
        env={**os.environ, **settings, "PYTHONPATH": search_path, "log_silent": "0", "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    tail: list[str] = []
    with open(log, "w", errors="replace") as f:
        for line in child.stdout:  # universal newlines: Jittor's progress ends in carriage returns
            f.write(line)
            tail = [*tail[-30:], line.rstrip()]
            _show_progress(line)
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    if child.wait() != 0:
        raise SetupError(f"Jittor's core did not compile: {_cause(tail)} (full log: {log})")
    ready = next((line for line in reversed(tail) if line.startswith(_READY)), None)
    return json.loads(ready.removeprefix(_READY)) if ready else []


def _show_progress(line: str) -> None:
    step = re.search(r"\((\d+)/(\d+)\) used", line)
    if step and sys.stderr.isatty():
        sys.stderr.write(f"\r\033[Kjclip: compiling, {step.group(1)} of {step.group(2)} files")
        sys.stderr.flush()


def _cause(tail: list[str]) -> str:
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in tail]
    errors = [line for line in plain if re.search(r"error|Error|not found|No such file", line)]
    return (errors or plain or ["no output"])[-1][:300]


def _try_out() -> None:
    """Run in the child: import, compute, print the compiled libraries on the last line."""
    with _prepared({}):
        module = _import_jittor(expanded("~"), unchecked=False)
    product = (module.array([[1.0, 2.0], [3.0, 4.0]]) @ module.array([[1.0], [10.0]])).numpy()
    if product.ravel().tolist() != [21.0, 43.0]:
        raise SystemExit(f"Error: Jittor computes wrongly: {product.ravel().tolist()} instead of [21.0, 43.0]")
    files = (getattr(m, "__file__", None) or "" for m in list(sys.modules.values()))
    libraries = sorted(f for f in files if f.endswith(".so") and f.startswith(sys.modules["jittor_utils"].cache_path))
    sys.stdout.write(f"\n{_READY}{json.dumps(libraries)}\n")
    sys.stdout.flush()


def give_back() -> None:
    """Return the memory that Jittor and malloc keep for later to the system."""
    jt.sync_all()
    jt.gc()
    process_times.give_back()


if __name__ == "__main__":
    _try_out()
else:
    jt = _start()
