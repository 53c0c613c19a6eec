"""Detect a GPU and a CUDA toolkit that Jittor can use, and work around what Jittor 1.3.11 can't handle.

Jittor expects one folder with nvcc, all headers and all libraries under unversioned names, and CUDA before 13 with
cuDNN before 9. For newer or scattered installations (CUDA 13, cuDNN 9, pip's `nvidia-*` packages), a folder of links
with the expected layout is made in the cache; installed files are not changed. docs/porting.md lists what each piece
fixes.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from jclip.paths import ASSETS, cache_dir, plain_path

HEADERS = ("cuda_runtime.h", "cublas_v2.h", "cudnn.h", "curand.h", "cufft.h", "cusparse.h")
LIBRARIES = ("libcudart", "libcublas", "libcublasLt", "libcudnn", "libcurand", "libcufft", "libcusparse")
_OF_CUDA = tuple(
    dict.fromkeys(name.removesuffix(".h").split("_")[0] for name in HEADERS)
)  # its headers' names begin so
_LAYOUT = "2"  # of the repaired folder: with another number it is made anew
TRIED: tuple[str, ...] = ()  # "CUDA 12.4 on an RTX 4090 (8.9)": where the whole suite has passed
COMPILED = "nvcc 13.0 for 9.0"  # what compiled the sources, without a GPU
_CUDNN_SPLIT = {
    f"libcudnn_{part}_{use}.so": f"libcudnn_{part}" for part in ("ops", "cnn") for use in ("infer", "train")
}


@dataclass(frozen=True)
class Gpu:
    """One GPU as its driver describes it."""

    name: str
    capability: str  # "9.0"
    memory: int  # bytes


@dataclass(frozen=True)
class Toolkit:
    """Locations of CUDA's parts. `missing` lists those that Jittor needs and no folder has."""

    nvcc: Path
    version: tuple[int, int]
    cudnn: str | None
    includes: tuple[Path, ...]
    libraries: tuple[Path, ...]
    missing: tuple[str, ...]

    @property
    def needs_repair(self) -> bool:
        """True for CUDA 13, cuDNN 9, and parts in more than one place."""
        new = self.version >= (13, 0) or int((self.cudnn or "0").split(".")[0]) >= 9
        root = self.nvcc.parent.parent
        whole = all((root / "include" / h).is_file() for h in HEADERS)
        return new or not whole or not all((root / "lib64" / f"{lib}.so").is_file() for lib in LIBRARIES)


@dataclass(frozen=True)
class Cuda:
    """What was detected, and the variables that make Jittor use it. `off` is the reason why it is not used, or empty."""

    gpus: tuple[Gpu, ...] = ()
    toolkit: Toolkit | None = None
    environment: dict[str, str] = field(default_factory=dict)
    off: str = ""
    fix: str = ""


@lru_cache(maxsize=1)
def find_cuda() -> Cuda:
    """Detect the GPU and toolkit of this machine. Honours `JCLIP_DEVICE=cpu` and an `nvcc_path` set by the user."""
    if os.environ.get("JCLIP_DEVICE", "").lower() == "cpu":
        return Cuda(off="JCLIP_DEVICE=cpu", environment={"nvcc_path": ""})
    if "nvcc_path" in os.environ:
        chosen = os.environ["nvcc_path"]
        return Cuda(off="" if chosen else "nvcc_path is set to nothing", gpus=find_gpus()[0])
    gpus, reason = find_gpus()
    if not gpus:
        return Cuda(off=reason, environment={"nvcc_path": ""})
    toolkit = find_toolkit()
    if toolkit is None:
        fix = "install a CUDA toolkit and set CUDA_HOME to it"
        return Cuda(gpus, off="no nvcc found", fix=fix, environment={"nvcc_path": ""})
    if toolkit.missing:
        names = " ".join(_wheel_of(m, toolkit.version[0]) for m in toolkit.missing)
        off = f"CUDA {_dotted(toolkit.version)} at {toolkit.nvcc.parent.parent} lacks {', '.join(toolkit.missing)}"
        return Cuda(gpus, toolkit, {"nvcc_path": ""}, off=off, fix=f"pip install {names}")
    return Cuda(gpus, toolkit, jittor_environment(toolkit))


def jittor_environment(toolkit: Toolkit) -> dict[str, str]:
    """Return variables for Jittor's import: the toolkit itself where Jittor can use it, else a repaired folder."""
    downloads_off = {"use_cutt": "0", "use_cutlass": "0", "use_nccl": "0"}
    if not toolkit.needs_repair:
        root = plain_path(toolkit.nvcc.parent.parent)
        return {"nvcc_path": str(root / "bin" / "nvcc"), **downloads_off}
    folder = plain_path(repaired_folder(toolkit))
    return {
        "nvcc_path": str(folder / "bin" / "nvcc"),
        "cc_flags": f'-include "{folder / "include" / "jclip_cuda13.h"}"',
        **downloads_off,
    }


def find_gpus() -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs that the driver shows (CUDA_VISIBLE_DEVICES applies), and the reason when there are none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return (), "no NVIDIA driver (libcuda.so.1 not found)"
    if driver.cuInit(0) != 0:
        return (), "the NVIDIA driver does not start (cuInit failed; does `nvidia-smi` work?)"
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    if count.value == 0:
        return (), "the NVIDIA driver shows no GPU"
    return tuple(_describe_gpu(driver, i) for i in range(count.value)), ""


def _describe_gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    major, minor = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, 256, device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return Gpu(name.value.decode(), f"{major.value}.{minor.value}", memory.value)


def find_toolkit(roots: Iterable[Path] | None = None, extra: Iterable[Path] | None = None) -> Toolkit | None:
    """Return the first usable nvcc among `roots` (default: CUDA_HOME, PATH, the usual places), with parts from its
    own folder and from `extra` (default: pip's nvidia packages and the system's folders)."""
    for root in _toolkit_roots() if roots is None else roots:
        nvcc = root / "bin" / "nvcc"
        if not nvcc.is_file():
            continue
        places = [root, root / "targets" / "x86_64-linux", *(_extra_places() if extra is None else extra)]
        includes = tuple(p / "include" for p in places if (p / "include").is_dir())
        libraries = tuple(
            d for p in places for d in (p / "lib64", p / "lib", p / "lib" / "x86_64-linux-gnu") if d.is_dir()
        )
        lacks = [h for h in HEADERS if not any((d / h).is_file() for d in includes)]
        lacks += [lib for lib in LIBRARIES if not any(versions_of(d, lib) for d in libraries)]
        return Toolkit(nvcc, _nvcc_version(nvcc), _cudnn_version(includes), includes, libraries, tuple(lacks))
    return None


def _toolkit_roots() -> list[Path]:
    named = [Path(os.environ[v]) for v in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(v)]
    on_path = shutil.which("nvcc")
    found = [_real_root(Path(on_path))] if on_path else []
    usual = [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True), Path("/opt/cuda")]
    return [*named, *found, *usual]


def _real_root(nvcc: Path) -> Path:
    """Return the toolkit of an nvcc, as nvcc itself reports it: the one in PATH may be a wrapper script."""
    asked = subprocess.run(
        [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
    )
    top = re.search(r"^#\$ TOP=(.+)$", asked.stderr, re.MULTILINE)
    return Path(top.group(1)).resolve() if top else nvcc.resolve().parent.parent


def _extra_places() -> list[Path]:
    """Return folders of pip's nvidia packages (CUDA 13's share one, cuDNN has its own), then the system's."""
    packages = [Path(sysconfig.get_paths()[k]) / "nvidia" for k in ("purelib", "platlib")]
    return [d for p in dict.fromkeys(packages) if p.is_dir() for d in sorted(p.iterdir())] + [Path("/usr")]


def _nvcc_version(nvcc: Path) -> tuple[int, int]:
    printed = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+)\.(\d+)", printed)
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def _cudnn_version(includes: Iterable[Path]) -> str | None:
    for header in (d / "cudnn_version.h" for d in includes):
        if header.is_file():
            numbers = re.findall(r"#define CUDNN_(?:MAJOR|MINOR|PATCHLEVEL) (\d+)", header.read_text())
            return ".".join(numbers[:3])
    return None


def find_part(library: str) -> Path | None:
    """Return a library, such as "libnccl", of the toolkit, pip's packages or the system's folders; None without it."""
    toolkit = find_cuda().toolkit or find_toolkit()
    folders = toolkit.libraries if toolkit else ()
    return next((file for folder in folders for file in versions_of(folder, library)), None)


def versions_of(folder: Path, library: str) -> list[Path]:
    """Return files `library.so*` in `folder`, the unversioned first, then the highest version."""
    return sorted(
        folder.glob(f"{library}.so*"), key=lambda p: (p.suffix != ".so", [-int(n) for n in re.findall(r"\d+", p.name)])
    )


def _wheel_of(missing: str, major: int) -> str:
    name = missing.removeprefix("lib").removesuffix(".h").removesuffix("_v2").removesuffix("Lt")
    name = {"cudart": "cuda-runtime", "cuda_runtime": "cuda-runtime"}.get(name, name)
    return f"nvidia-{name}-cu{major}" if name == "cudnn" or major < 13 else f"nvidia-{name}"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def repaired_folder(toolkit: Toolkit) -> Path:
    """Make a folder of links (`bin/nvcc`, `include`, `lib64`) in the cache, in the layout that Jittor expects."""
    made_from = [_LAYOUT, str(toolkit.nvcc), _dotted(toolkit.version), *map(str, toolkit.includes + toolkit.libraries)]
    key = hashlib.sha256("\n".join(made_from).encode()).hexdigest()[:12]
    folder = cache_dir("cuda") / f"cuda{_dotted(toolkit.version)}-{key}"
    if not (folder / "bin" / "nvcc").is_file():
        building = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(building, ignore_errors=True)
        _fill(building, toolkit)
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    return folder


def _fill(folder: Path, toolkit: Toolkit) -> None:
    (folder / "bin").mkdir(parents=True)
    script = folder / "bin" / "nvcc"
    script.write_text(_nvcc_script(toolkit))
    script.chmod(0o755)
    include, lib64 = folder / "include", folder / "lib64"
    for source in toolkit.includes:
        _link_missing(include, (f for f in source.iterdir() if not _is_systems(source) or f.name.startswith(_OF_CUDA)))
        if (source / "cccl").is_dir():  # CUDA 13 moved cub, thrust and libcu++ one folder down
            _link_missing(include, (source / "cccl").iterdir())
    for name in ("npp.h", "jclip_cuda13.h"):
        if not (include / name).exists():
            shutil.copy(ASSETS / "cuda13" / name, include / name)
    for source in toolkit.libraries:
        if _is_systems(source):  # of which only CUDA's files are meant
            _link_missing(lib64, (f for lib in LIBRARIES for f in source.glob(f"{lib}*.so*")))
        else:
            _link_missing(lib64, source.glob("*.so*"))
    _link_unversioned(lib64)


def _is_systems(folder: Path) -> bool:
    """Whether this is the system's own: its math.h, found before g++'s, would take functions from C++'s programs."""
    return folder.parts[:2] == ("/", "usr") and folder.parts[2] != "local"


def _link_missing(folder: Path, sources: Iterable[Path]) -> None:
    folder.mkdir(exist_ok=True)
    for source in sources:
        link = folder / source.name
        if not link.is_symlink() and not link.exists():
            link.symlink_to(source.resolve())


def _link_unversioned(lib64: Path) -> None:
    """Link `libx.so` to each `libx.so.N`, and cuDNN 9's two libraries under the four names of cuDNN 8."""
    for library in {f.name.split(".so")[0] for f in lib64.iterdir()}:
        if not (lib64 / f"{library}.so").exists():
            (lib64 / f"{library}.so").symlink_to(versions_of(lib64, library)[0].name)
    for old, new in _CUDNN_SPLIT.items():
        if not (lib64 / old).exists() and (lib64 / f"{new}.so").exists():
            (lib64 / old).symlink_to(f"{new}.so")


def _nvcc_script(toolkit: Toolkit) -> str:
    """Return a wrapper of nvcc: CUDA 13's headers need C++17 where Jittor asks for C++14."""
    nvcc = shlex.quote(str(toolkit.nvcc))
    if toolkit.version < (13, 0):
        return f'#!/bin/sh\nexec {nvcc} "$@"\n'
    return f"""#!/bin/bash
# Jittor asks for C++14; the cub and thrust of CUDA 13 want C++17.
case " $* " in *" --version "*) exec {nvcc} "$@" ;; esac
kept=()
for flag in "$@"; do [ "$flag" = -std=c++14 ] || kept+=("$flag"); done
exec {nvcc} -std=c++17 "${{kept[@]}}"
"""
