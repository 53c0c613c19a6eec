"""Open MPI: where it is, and how it is started. No Jittor."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from jclip.errors import SetupError
from jclip.machine import ranks

INSTALL = "pip install 'jclip[mpi]'"
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@dataclass(frozen=True)
class OpenMPI:
    """mpicc, which Jittor's operators between ranks are compiled with, the mpirun beside it, and the version of both."""

    compiler: Path
    starter: Path
    version: str


def find_mpi() -> OpenMPI | None:
    """Return Open MPI: that of the user's `mpicc_path`, else of the mpirun that started this process, of PATH, or the one
    installed beside Python; None without any."""
    for compiler in _candidates():
        if compiler and (version := _version_of(compiler)):
            return OpenMPI(compiler, compiler.with_name("mpirun"), version)
    return None


def require_mpi() -> OpenMPI:
    """`find_mpi`. Raises `SetupError` where there is none."""
    found = find_mpi()
    if found is None:
        raise SetupError(
            f"mpirun started {ranks.here().size} processes, and Open MPI's compiler mpicc is missing "
            f"(looked for by mpicc_path, beside mpirun, in PATH and beside {sys.executable}): {INSTALL}"
        )
    return found


def _candidates() -> list[Path | None]:
    named, library = os.environ.get("mpicc_path"), ranks.variables().get("OMPI_LIBDIR_LOC")
    if named:
        return [_program(named)]
    own = Path(library).parent / "bin" if library else None
    return [
        _program("mpicc", own) if own else None,
        _program("mpicc"),
        _program("mpicc", Path(sys.executable).parent),
        _program("mpicc", Path(sys.prefix) / "bin"),
    ]


def _program(name: str, folder: Path | None = None) -> Path | None:
    found = shutil.which(name, path=str(folder) if folder else None)
    return Path(found).absolute() if found else None


def _version_of(compiler: Path) -> str:
    """The version of Open MPI whose compiler this is; nothing of another MPI's."""
    try:
        asked = subprocess.run(
            [compiler, "--showme:version"], capture_output=True, text=True, check=False, timeout=60,
            env=ranks.without(dict(os.environ)),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"Open MPI (\S+)", asked.stdout + asked.stderr)
    return found.group(1) if found else ""


def start_ranks(
    mpi: OpenMPI, size: int, command: list[str], environment: dict[str, str]
) -> subprocess.CompletedProcess:
    """Run `command` in `size` processes of this machine, and return what they printed."""
    allowed = AS_ROOT if os.geteuid() == 0 else {}
    given = {**ranks.without(environment), **allowed}
    started = [str(mpi.starter), "-np", str(size), "--bind-to", "none", "--map-by", ":OVERSUBSCRIBE", *command]
    return subprocess.run(
        started, capture_output=True, text=True, errors="replace", env=given, check=False, timeout=600
    )
