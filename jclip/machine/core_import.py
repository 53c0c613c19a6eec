"""Make the import of Jittor cheaper: what it compiles, and what it checks again at each start.

At each import Jittor generates its bindings from its sources, reads all of them and starts a pool of processes to
compare them with what its core was made of. Where the facts of all these files (size, time of change) are those noted
when the core was built and tried, none of this is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.machinery
import importlib.util
import os
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from jclip.machine import core_build

_MODULE = "jittor.compiler"
_VARIABLES = (  # beside those in a build's stamp, what changes Jittor's compile commands
    "enable_lto", "use_data_gz", "cuda_debug", "conv_opt", "ASCEND_TOOLKIT_HOME", "ROCM_HOME", "COREX_HOME",
    "OMPI_COMM_WORLD_SIZE", "use_mpi", "DISABLE_MULTIPROCESSING", "mkl_include_path", "mkl_lib_path", "CONDA_PREFIX",
)  # fmt: skip

_ADDED = re.compile(
    r"(namespace jittor {|init_module\(PyModuleDef\* mdef, PyObject\* m\) {)"
    r"(?:extern void pyjt_def_\w+\(PyObject\* m\);|jittor::pyjt_def_\w+\(m\);)+"
)  # of Jittor's MPI


def facts_of(package: Path, libraries: list[str], onednn: Path | None) -> str:
    """Return a hash of the facts that decide whether a built core is up to date.

    `package` is the folder of jittor; the facts are the size and time of change of its sources, of jittor_utils', of
    the `libraries` that were built from them and of oneDNN's, and the environment variables that Jittor reads.
    """
    files = [f for d in ("src", "extern") for f in (package / d).rglob("*") if f.suffix in (".h", ".cc", ".cpp", ".cu")]
    files += [
        *package.glob("*.py"),
        *(package.parent / "jittor_utils").glob("*.py"),
        *(package / "utils").glob("data.gz"),
    ]
    files += [Path(name) for name in libraries] + ([onednn] if onednn else [])
    noted = [f"{k}={v}" for k, v in sorted(os.environ.items()) if k in _VARIABLES or k.startswith("JT")]
    for path in sorted(files):
        found = path.stat()
        noted.append(f"{path} {found.st_size} {found.st_mtime_ns}")
    for path in sorted(_generated(libraries)):  # written anew, and the same, at each import
        noted.append(f"{path} {path.stat().st_size}")
    return hashlib.sha256("\n".join(noted).encode()).hexdigest()


def _generated(libraries: list[str]) -> list[Path]:
    """Return the bindings that Jittor generated, which a process that was killed may have left cut off."""
    found = {Path(name).parent / "gen" / "jit_op_maker.h" for name in libraries}
    found |= {Path(name).with_name(Path(name).name.split(".")[0] + ".h") for name in libraries}
    return [path for path in found if path.is_file()]


@contextlib.contextmanager
def compiling(jittor_utils: types.ModuleType) -> Iterator[None]:
    """Compile Jittor's core by `core_build` in the block, which imports Jittor."""
    home = Path(jittor_utils.cache_path)
    patched = {name: getattr(jittor_utils, name) for name in ("run_cmd", "run_cmds", "try_import_jit_utils_core")}
    if not (home / "data.o").is_file():
        (home / "data.md5").unlink(missing_ok=True)  # noted before its object was complete
    with ThreadPoolExecutor(1) as pool:
        build = _Build(jittor_utils, pool, patched)
        try:
            jittor_utils.run_cmd = build.run_cmd
            jittor_utils.run_cmds = build.run_cmds
            jittor_utils.try_import_jit_utils_core = build.try_import
            yield
        finally:
            for name, function in patched.items():
                setattr(jittor_utils, name, function)
            for module in (m for name, m in sys.modules.items() if name.split(".")[0] == "jittor"):
                if getattr(module, "run_cmd", None) == build.run_cmd:
                    module.run_cmd = patched["run_cmd"]


class _Build:
    """What stands in the place of Jittor's functions while it compiles its core."""

    def __init__(self, jittor_utils: types.ModuleType, pool: ThreadPoolExecutor, original: dict[str, Callable]):
        self.jittor_utils, self.pool, self.original = jittor_utils, pool, original
        self.background: Future | None = None
        self.first_library: tuple[str, Path] | None = None

    def run_cmd(self, cmd: str, *args, **kwargs) -> str:
        """Run a shell command; that which makes data.o, in the background, until the core is linked."""
        target = re.search(r'-o "([^"]+)"\s*$', cmd)
        if target and Path(target.group(1)).name.startswith("jit_utils_core"):
            self.first_library = (cmd, Path(target.group(1)))
        source = re.search(r'"([^"]+/data\.cc)" -c -o "([^"]+/data\.o)"\s*$', cmd)
        if source is None or Path(source.group(2)).parent != Path(self.jittor_utils.cache_path):
            return self.original["run_cmd"](cmd, *args, **kwargs)
        copy, made = Path(source.group(1)).with_name("jclip-data.cc"), Path(source.group(2))
        shutil.copyfile(source.group(1), copy)  # Jittor removes its own
        part = made.with_name("jclip-data.o")
        command = cmd.replace(source.group(1), str(copy)).replace(source.group(2), str(part))

        def compile_data() -> None:
            self.original["run_cmd"](command, *args, **kwargs)
            part.replace(made)
            copy.unlink()

        self.background = self.pool.submit(compile_data)
        return ""

    def run_cmds(self, cmds: list[str], cache_path: str, jittor_path: str, msg: str = "run_cmds") -> None:
        """Compile sources to objects, by `core_build` where that is possible."""
        grouped = core_build.can_group(cmds) and core_build.build(
            cmds, Path(jittor_path), lambda command, target: self.write_key(command, target, cache_path, jittor_path),
            lambda done, total: self.jittor_utils.LOG.log_silent or sys.stdout.write(f"{msg}({done}/{total}) used:\n"),
        )  # fmt: skip
        if not grouped:
            self.original["run_cmds"](cmds, cache_path, jittor_path, msg)
        if self.background:
            self.background.result()

    def try_import(self, *args, **kwargs) -> None:
        """Import Jittor's library that compiles, and note that it need not be compiled again to be checked."""
        self.original["try_import_jit_utils_core"](*args, **kwargs)
        if self.jittor_utils.cc and self.first_library:
            command, target = self.first_library
            self.first_library = None
            package = Path(self.jittor_utils.__file__).parent.parent / "jittor"
            self.write_key(command, target, self.jittor_utils.cache_path, str(package))

    def write_key(self, command: str, target: Path, cache_path: str, jittor_path: str) -> None:
        """Let Jittor note what `target` was made of, by its own function, with a command that does nothing."""
        compiler = re.match(r'\s*("[^"]*"|\S+)', command).group(0)
        nothing = '"true"' + command[len(compiler) :]
        key = core_build.key_of(target)
        key.unlink(missing_ok=True)
        self.jittor_utils.cc.cache_compile(nothing, cache_path, jittor_path)
        noted = key.read_text()
        if not noted.startswith(nothing):
            raise RuntimeError(f"Jittor's key {key} does not begin with its command")
        key.write_text(command + noted[len(nothing) :])


@contextlib.contextmanager
def unchecked(jittor_utils: types.ModuleType) -> Iterator[None]:
    """Import Jittor in the block without its generating and comparing sources: `facts_of` has done that."""
    finder = _Finder()
    versions, cache = jittor_utils.get_version, {}

    def get_version(path: str) -> str:
        if path not in cache:
            cache[path] = versions(path)
        return cache[path]

    sys.meta_path.insert(0, finder)
    jittor_utils.get_version = get_version
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        jittor_utils.get_version = versions
        for module in (m for name, m in sys.modules.items() if name.split(".")[0] == "jittor"):
            for name, (stand_in, original) in finder.replaced.items():
                if getattr(module, name, None) is stand_in:
                    setattr(module, name, original)
            if getattr(module, "get_version", None) is get_version:
                module.get_version = versions


class _Finder:
    """Finds jittor.compiler with some of its functions replaced as soon as they are defined."""

    def __init__(self) -> None:
        self.replaced: dict[str, tuple] = {}  # name: what stands in its place, what it was

    def find_spec(self, name: str, path=None, target=None) -> importlib.machinery.ModuleSpec | None:
        if name != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path, self.replaced)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, replaced: dict[str, tuple]):
        super().__init__(name, path)
        self.replaced = replaced

    def exec_module(self, module: types.ModuleType) -> None:
        exec(self.get_code(module.__name__), module.__dict__, _Names(module.__dict__, self.replaced))


class _Names(dict):
    """A module's names while it runs: what is assigned goes to the module, or a stand-in in its place."""

    def __init__(self, names: dict, replaced: dict[str, tuple]):
        super().__init__()
        self.names, self.replaced = names, replaced
        self.stand_ins = {
            "compile": lambda *args, **kwargs: False,  # as if nothing had changed
            "gen_jit_flags": lambda: None,
            "gen_jit_tests": lambda: None,
            "gen_jit_op_maker": self.generated,
            "pyjt_compiler": types.SimpleNamespace(
                compile=lambda *args: [], compile_single=lambda *args, **kwargs: True
            ),
        }

    def generated(self, headers, export="", extra_flags="") -> str:
        """Return the bindings that stand in the cache, without what Jittor adds to them when it writes them again."""
        home = Path(self.names["cache_path"])
        path = home / "custom_ops" / f"{export}.h" if export else home / "gen" / "jit_op_maker.h"
        return _ADDED.sub(r"\1", path.read_text(encoding="utf8"))

    def __getitem__(self, name: str):
        return self.names[name]

    def __setitem__(self, name: str, value) -> None:
        if name in self.stand_ins:
            self.replaced[name] = (self.stand_ins[name], value)
            value = self.stand_ins[name]
        self.names[name] = value

    def __delitem__(self, name: str) -> None:
        del self.names[name]
