"""`jclip doctor`: what this machine offers, what is missing, and the command that mends it.

Exit code 0 only when a matrix product, a convolution with its gradient and an attention block ran and were right.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from jclip import cuda, toolchain
from jclip.errors import JclipError, SetupError
from jclip.paths import cache_dir

TOLERANCE = 1e-4  # of values of order one in float32, on any device (TF32 off)


def main(argv: list[str]) -> int:
    """Prints the findings, then computes. Returns 0 when everything was right, else 1."""
    argparse.ArgumentParser("jclip doctor", description=__doc__).parse_args(argv)
    for name, finding in findings():
        print(f"{name:<16} {finding}", flush=True)
    try:
        with_what = _device()
    except JclipError as e:
        print(f"{'Jittor':<16} does not start: {e}")
        return 1
    right = [_tell(name, trial, with_what) for name, trial in TRIALS.items()]
    print("everything ran and was right" if all(right) else "something is wrong: see above")
    return 0 if all(right) else 1


def findings() -> Iterator[tuple[str, str]]:
    """Name and finding of each thing that jclip needs or uses; what is missing comes with its mend."""
    yield "jclip", f"{_version('jclip')}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "Jittor", _jittor()
    yield "NumPy", _told(lambda: (toolchain.refuse_unsupported(), version("numpy"))[1])
    yield "compiler", _told(lambda: _compiler(toolchain.find_compiler()))
    yield "Python headers", _told(lambda: str(toolchain.find_python_include()))
    yield "oneDNN", _onednn()
    yield from _cuda()
    yield "torch", f"{_version('torch')} (reference for the tests only; jclip itself never imports it)"
    yield "threads", f"{os.environ.get('OMP_NUM_THREADS') or len(os.sched_getaffinity(0))} (OMP_NUM_THREADS sets them)"
    yield "cache", _told(_cache)


def _told(finding: Callable[[], str]) -> str:
    try:
        return finding()
    except SetupError as e:
        return f"MISSING: {e}"


def _version(package: str) -> str:
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
    if not found.gpus:
        return
    if found.off:
        yield "CUDA", f"off: {found.off}" + (f"; mend: {found.mend}" if found.mend else "")
    elif found.toolkit:
        kit, repaired = found.toolkit, " (repaired in the cache)" if found.toolkit.needs_repair else ""
        yield "CUDA", f"{kit.version[0]}.{kit.version[1]} at {kit.nvcc.parent.parent}{repaired}"
        yield "cuDNN", kit.cudnn or "MISSING"
    else:
        yield "CUDA", f"as nvcc_path={os.environ.get('nvcc_path')} says"


def _cache() -> str:
    root = cache_dir()
    size = sum(f.stat().st_size for f in root.rglob("*") if f.is_file() and not f.is_symlink())
    return f"{root} ({size / 2**20:.0f} MiB; JCLIP_CACHE moves it, removing it is safe)"


def _device() -> str:
    from jclip.runtime import jt

    return "GPU" if jt.flags.use_cuda else "CPU"


def _tell(name: str, trial: Callable[[], float], device: str) -> bool:
    try:
        error = trial()
    except Exception as e:  # whatever a kernel raises, the doctor tells it
        print(f"{name:<16} FAILED on the {device}: {' '.join(str(e).split())[:300]}")
        return False
    right = bool(error < TOLERANCE)
    print(f"{name:<16} {'right' if right else 'WRONG'} on the {device} (largest error {error:.1e})", flush=True)
    return right


def try_product() -> float:
    """Largest error of a matrix product."""
    from jclip.runtime import jt

    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((37, 64), dtype=np.float32) / 8, rng.standard_normal((64, 53), dtype=np.float32)
    return float(np.abs(jt.matmul(jt.array(a), jt.array(b)).numpy() - a @ b).max())


def try_convolution() -> float:
    """Largest error of a 3 x 3 convolution and of its gradient by the kernel."""
    from jclip.runtime import jt

    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((2, 3, 9, 8), dtype=np.float32) / 5, rng.standard_normal((4, 3, 3, 3), dtype=np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))  # (2, 3, 7, 6, 3, 3)
    kernel = jt.array(w)
    y = jt.nn.conv2d(jt.array(x), kernel)
    wanted = np.einsum("bchwij,kcij->bkhw", windows, w)
    gradient = jt.grad((y * y).sum() / 2, kernel).numpy() / 10
    wanted_gradient = np.einsum("bchwij,bkhw->kcij", windows, wanted) / 10
    return float(max(np.abs(y.numpy() - wanted).max(), np.abs(gradient - wanted_gradient).max()))


def try_attention() -> float:
    """Largest error of causal attention with three heads."""
    from jclip.kernels import attention
    from jclip.runtime import jt

    qkv = np.random.default_rng(2).standard_normal((2, 5, 3 * 12), dtype=np.float32)
    q, k, v = qkv.astype(np.float64).reshape(2, 5, 3, 3, 4).transpose(2, 0, 3, 1, 4)
    scores = np.where(np.tri(5, dtype=bool), q @ k.swapaxes(2, 3) / 2, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    wanted = (weights / weights.sum(axis=-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(2, 5, 12)
    return float(np.abs(attention(jt.array(qkv), 3, causal=True).numpy() - wanted).max())


TRIALS = {"matrix product": try_product, "convolution": try_convolution, "attention": try_attention}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
