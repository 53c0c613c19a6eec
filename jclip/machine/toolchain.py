"""Tools for building Jittor: compiler, Python's headers, oneDNN. Imports no Jittor."""

from __future__ import annotations

import ctypes.util
import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from jclip.errors import SetupError
from jclip.paths import cache_dir, expanded, replacing

_ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # how oneDNN is kept from newer instructions
_BELOW_AVX512 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI")
JITTOR_TRIED = "1.3.11.0"
ONEDNN_PACKAGES = ("onednn-cpu-gomp", "onednn-devel-cpu-gomp")
ONEDNN_INSTALL = "pip install " + " ".join(f"{p}==2022.2.1" for p in ONEDNN_PACKAGES)


@dataclass(frozen=True)
class OneDNN:
    """oneDNN 2, whose API Jittor's CPU matmul and convolution use."""

    include: Path
    library: Path
    origin: str


def refuse_unsupported() -> None:
    """Raise `SetupError` on native Windows and with NumPy 2, which Jittor 1.3.11 reads as garbage without an error."""
    if platform.system() == "Windows":
        raise SetupError("native Windows is not supported: run jclip inside WSL2 (docs/setup.md)")
    numpy = importlib.metadata.version("numpy")
    if int(numpy.split(".")[0]) >= 2:
        raise SetupError(f"NumPy {numpy} makes Jittor {JITTOR_TRIED} read garbage: pip install 'numpy<2'")


def jittor_version() -> str:
    """Return the installed Jittor's version. Raises `SetupError` when there is none."""
    try:
        return importlib.metadata.version("jittor")
    except importlib.metadata.PackageNotFoundError:
        raise SetupError(f"Jittor is not installed: pip install jittor=={JITTOR_TRIED}") from None


def find_compiler() -> Path:
    """Return the C++ compiler: the user's `cc_path`, else g++. Raises `SetupError` with the command that installs it."""
    named = os.environ.get("cc_path") or "g++"
    found = shutil.which(named)
    if found is None:
        raise SetupError(f"no C++ compiler ({named} not found): sudo apt install g++")
    return Path(found)


def find_python_include() -> Path:
    """Return the folder of Python.h of the running interpreter. Raises `SetupError` with the command that installs
    it."""
    include = Path(sysconfig.get_paths()["include"])
    if not (include / "Python.h").is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise SetupError(f"Python's headers are missing ({include}/Python.h): sudo apt install python{version}-dev")
    return include


def find_onednn() -> OneDNN | None:
    """Return oneDNN 2 from the two packages, else the system's, else one that Jittor downloaded earlier; None without
    any."""
    return _packaged_onednn() or _system_onednn() or _jittors_onednn()


def _packaged_onednn() -> OneDNN | None:
    try:
        files = [f for p in ONEDNN_PACKAGES for f in importlib.metadata.files(p) or ()]
    except importlib.metadata.PackageNotFoundError:
        return None
    library = next((f.locate() for f in files if f.name == "libdnnl.so.2"), None)
    header = next((f.locate() for f in files if f.name == "dnnl.hpp" and f.parent.name == "include"), None)
    if not library or not header or not Path(library).is_file() or not Path(header).is_file():
        return None
    version = importlib.metadata.version(ONEDNN_PACKAGES[0])
    return OneDNN(
        Path(header).resolve().parent, Path(library).resolve(), f"packages {', '.join(ONEDNN_PACKAGES)} {version}"
    )


def _system_onednn() -> OneDNN | None:
    name = ctypes.util.find_library("dnnl")
    folders = [
        Path("/usr/lib") / f"{platform.machine()}-linux-gnu",
        Path("/usr/lib64"),
        Path("/usr/lib"),
        Path("/usr/local/lib"),
    ]
    library = next((d / name for d in folders if name and (d / name).is_file()), None)
    include = next((d for d in (Path("/usr/include"), Path("/usr/local/include")) if _is_onednn2(d)), None)
    return OneDNN(include, library.resolve(), "the system") if library and include else None


def _is_onednn2(include: Path) -> bool:
    for header in (include / "oneapi/dnnl/dnnl_version.h", include / "dnnl_version.h"):
        if header.is_file() and re.search(r"#define DNNL_VERSION_MAJOR\s+2\b", header.read_text(errors="replace")):
            return (include / "dnnl.hpp").is_file()
    return False


def _jittors_onednn() -> OneDNN | None:
    for folder in sorted(expanded("~/.cache/jittor/mkl").glob("dnnl*")):
        library = folder / "lib" / "libmkldnn.so"
        if library.is_file() and (folder / "include" / "dnnl.hpp").is_file():
            return OneDNN((folder / "include").resolve(), library.resolve(), f"Jittor's own cache {folder}")
    return None


def jittor_home() -> Path:
    """Return the folder that Jittor uses as its home: the user's `JITTOR_HOME`, else one in jclip's cache.

    A separate home keeps Jittor from writing to `~/.cache/jittor`, and from recompiling for each git branch that
    contains the virtual environment.
    """
    named = os.environ.get("JITTOR_HOME")
    return expanded(named).absolute() if named else cache_dir("jittor")


def compile_script(home: Path) -> Path:
    """Write to `home` the script that Jittor runs in place of its asm_tuner.py; return its path.

    The original starts Python for every operator, compiles it twice, and makes folders in the user's home; this one
    calls the compiler directly, with Jittor's headers precompiled at first use (g++ only, which ignores them where
    flags differ). Jittor's other helper, for linking CUDA code, is passed on.
    """
    text = _COMPILE_SCRIPT.format(python=shlex.quote(sys.executable), header=shlex.quote(str(_header(home))))
    script = home / "compile.sh"
    if not script.is_file() or script.read_text() != text:
        with replacing(script) as temporary:
            temporary.write_text(text)
        script.chmod(0o755)
    return script


_HEADER = """#define JIT 1
#include <assert.h>
#include <algorithm>
#include <cmath>
#include "fused_op.h"
#include "var.h"
#include "ops/op_register.h"
"""
_COMPILE_SCRIPT = """#!/bin/sh
case "$1" in
*asm_tuner.py) compiler=${{2#--cc_path=}}; shift 2 ;;
*) exec {python} "$@" ;;
esac
header={header}
precompile() {{
    for word; do # the operator's own command, without what names its source and its library
        shift
        case $word in
        -l* | -L* | -Wl,* | -shared | *.cc | *.so) ;;
        -o) ;;
        *) set -- "$@" "$word" ;;
        esac
    done
    "$compiler" "$@" -x c++-header "$header" -o "$header.$$" && mv "$header.$$" "$header.gch" || rm -f "$header.$$"
}}
case $compiler in
*g++*)
    [ -e "$header.gch" ] || precompile "$@" >/dev/null 2>&1
    [ ! -e "$header.gch" ] || set -- -include "$header" "$@"
    ;;
esac
exec "$compiler" "$@"
"""


def _header(home: Path) -> Path:
    """Precompile the headers of nearly all operators, in one folder per compiler, Jittor and Python."""
    compiler = find_compiler().resolve()
    made_of = [_HEADER, jittor_version(), sys.version, sys.prefix, str(compiler), str(compiler.stat().st_mtime_ns)]
    key = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:12]
    header = home / "precompiled" / key / "jittor.h"
    if not header.is_file():
        with replacing(header) as temporary:
            temporary.write_text(_HEADER)
    return header


def cpu_flags() -> frozenset[str]:
    """Return the processor's features in Linux's names (avx512bw, avx512_bf16, amx_bf16, …); empty where unknown."""
    try:
        found = re.search(r"^flags\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return frozenset()
    return frozenset(found.group(1).split()) if found else frozenset()


def why_no_avx512() -> str:
    """Why oneDNN computes without AVX-512 here, which bf16 needs; nothing where it has it."""
    for name in _ISA_LIMITS:
        if os.environ.get(name, "").upper() in _BELOW_AVX512:
            return f"{name}={os.environ[name]} switches AVX-512 off"
    return "" if "avx512bw" in cpu_flags() else "this processor has no AVX-512"


def offer_onednn(home: Path, onednn: OneDNN) -> None:
    """Link `onednn` to where Jittor looks for it before it would download one."""
    folder = home / ".cache/jittor/mkl/dnnl_lnx_2.2.0_cpu_gomp"
    links = {
        folder / "include": onednn.include,
        folder / "lib" / "libmkldnn.so": onednn.library,
        folder / "lib" / "libdnnl.so.2": onednn.library,
    }
    for link, target in links.items():
        if link.is_symlink() and link.resolve() == target:
            continue
        if link.exists() and not link.is_symlink():
            continue  # real files of the user: left as they are
        link.parent.mkdir(parents=True, exist_ok=True)
        temporary = link.with_name(f".{link.name}.{os.getpid()}")
        temporary.symlink_to(target)
        temporary.replace(link)
