"""Compile Jittor's core in fewer seconds: related sources in one compilation, and cheap flags for what runs rarely.

Jittor compiles 150 small sources one by one, each of which reads the same headers, at -O2. Here sources are put
together, as many as have no name in common, and what only runs when an operator is compiled is optimised less. Every
object has the name that Jittor gives it and the key by which Jittor knows that it is up to date, so Jittor itself
continues with them. Where anything does not fit (another compiler, a GPU, a group that does not compile) the sources
are compiled as Jittor does it.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jclip.machine import available
from jclip.paths import replacing

EMPTY = "jclip-empty.o"
_FIRST = ("op_register.cc",)  # what is initialised in this order when the library is loaded, in a group of its own
_EARLY = ("op_utils.cc", "init.cc", "event_queue.cc", "sfrl_allocator.cc", "allocator.cc", "nano_string.cc")
_LAST = ("profiler.cc", "executor.cc")
_LEVELS = (  # of optimisation, by path: the first that fits. Bindings at -O1 take calls as fast as at -O2.
    (r"/gen/|/src/(opt|test|profiler)/|/ops/mkl_test|/cpu_cnn_inference", "-O1"),
    (r"/src/(op_compiler|parallel_compiler|memory_profiler|misc/miniz|mem/mem_info|pybind/py_var_tracer)\.cc$", "-O1"),
)
_ANY_ORDER = (1, 3)  # of the stages below
_BYTES_PER_WORKER = 1 << 30
_GROUPS_PER_WORKER = 6
_SMALLEST_GROUP = 60_000  # bytes of source
_ALONE = ("cpu_atomic.cc", "lock.cc", "op_utils.cc")  # their lock and init are other things than other sources'
_VARIABLE = re.compile(r"(?:extern int |DECLARE_FLAG\(int, *|SETTER\(int, *)use_cuda\b")  # to the others a constant
_OWN_NAMES = re.compile(
    r"^(?:static|inline|const|constexpr)\b[^=(;{]*[ *&](\w+) *[=(;{]"  # static auto make_array = …
    r"|^(?:struct|class|enum|union) (?:class )?(\w+)[^;]*$"
    r"|^(?:std::)?(?:unordered_)?(?:map|set|vector)\b.*[ &](\w+) *[=(;{]",
    re.MULTILINE,
)
_INCLUDED = re.compile(r'^ *# *include "([^"]+)"', re.MULTILINE)
_MACRO = re.compile(r"^ *# *define +\w+", re.MULTILINE)


@dataclass(frozen=True)
class Compilation:
    """One source to one object, as Jittor would do it."""

    command: str
    compiler: str
    source: Path
    flags: tuple[str, ...]
    target: Path

    @property
    def level(self) -> str:
        """The optimisation that this source gets."""
        return next((level for path, level in _LEVELS if re.search(path, str(self.source))), "-O2")


@functools.cache
def parse(command: str) -> Compilation | None:
    """Return what a command of Jittor compiles; None for a command of another form."""
    words = shlex.split(command)
    if len(words) < 5 or words.count("-o") != 1 or "-c" not in words or "-O2" not in words:
        return None
    at = words.index("-o")
    flags = [w for i, w in enumerate(words[2:], 2) if i not in (at, at + 1) and w not in ("-c", "-O2")]
    return Compilation(command, words[0], Path(words[1]), tuple(flags), Path(words[at + 1]))


def can_group(commands: Sequence[str]) -> bool:
    """Return whether these commands are g++'s, for the CPU, and no variable of Jittor's adds definitions to them."""
    if not all(" -c -o " in c for c in commands) or any("HAS_CUDA" in c for c in commands[:1]):
        return False
    parsed = [parse(c) for c in commands]
    return (
        len(parsed) > 1
        and all(p is not None and "g++" in Path(p.compiler).name and p.source.suffix in (".cc", ".cpp") for p in parsed)
        and len({(p.compiler, p.flags) for p in parsed}) == 1
        and len({p.target for p in parsed}) == len(parsed)
        and not any(name.startswith("JT") for name in os.environ)
    )


def build(
    commands: Sequence[str],
    jittor: Path,
    write_key: Callable[[str, Path], None],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> bool:
    """Make the objects of `commands`, unless those that stand are made of the same sources by the same commands.

    `write_key(command, target)` notes for Jittor that an object is up to date. Returns whether all of them stand; what
    does not is left for Jittor to compile and to report.
    """
    todo = [parse(c) for c in commands]
    folder = todo[0].target.parent
    names = "\n".join(sorted(p.target.name for p in todo))
    record = folder / f"jclip-{hashlib.sha256(names.encode()).hexdigest()[:8]}.json"
    if not record.is_file() and not (folder / EMPTY).is_file() and all(key_of(p.target).is_file() for p in todo):
        return False  # Jittor's own objects, each of one source
    digest = digest_of(todo, jittor)
    if _is_made(record, digest, todo):
        return True
    record.unlink(missing_ok=True)
    for p in todo:
        p.target.unlink(missing_ok=True)
        key_of(p.target).unlink(missing_ok=True)
    _compile_all(todo, folder, progress)
    made = [p for p in todo if p.target.is_file()]
    for p in made:
        write_key(p.command, p.target)
    if len(made) < len(todo):
        return False
    with replacing(record) as temporary:
        temporary.write_text(json.dumps({"digest": digest, "sizes": _sizes(todo)}))
    return True


def key_of(target: Path) -> Path:
    """Return the file in which Jittor notes what an object or a library is made of."""
    return target.with_name(target.name + ".key")


def digest_of(todo: Sequence[Compilation], jittor: Path) -> str:
    """Return a hash of the commands and of all that they may read of Jittor's, and of what it generated."""
    digest = hashlib.sha256()
    folders = {jittor / "src", jittor / "extern", *(p.source.parent for p in todo)}
    found = {f for d in folders for f in d.rglob("*") if f.suffix in (".h", ".hpp", ".cc", ".cpp")}
    for text in sorted(p.command for p in todo):
        digest.update(text.encode() + b"\n")
    for path in sorted(found):
        content = path.read_bytes()
        digest.update(f"{path} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _is_made(record: Path, digest: str, todo: Sequence[Compilation]) -> bool:
    try:
        noted = json.loads(record.read_text())
        return noted == {"digest": digest, "sizes": _sizes(todo)} and all(key_of(p.target).is_file() for p in todo)
    except (OSError, ValueError):
        return False


def _sizes(todo: Iterable[Compilation]) -> dict[str, int]:
    return {p.target.name: p.target.stat().st_size for p in todo}


def workers() -> int:
    """Return how many compilers to run at once: one per processor that this process may use, with 1 GiB each."""
    memory = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), available.group_limit())
    return max(1, min(len(os.sched_getaffinity(0)), int(memory // _BYTES_PER_WORKER)))


def groups_of(todo: Sequence[Compilation], limit: float) -> list[list[Compilation]]:
    """Put compilations into groups of one stage of initialisation, one level of optimisation and no name twice.

    The order is that of `todo`, in each group, and among groups but for the stage in which it does not matter.
    """
    groups: list[_Group] = []
    for p in todo:
        kind, names = (_stage(p), p.level, bool(_VARIABLE.search(_text(p.source)))), declared_names(p.source)
        alone = p.source.name in _ALONE
        open_groups = [] if alone else groups if kind[0] in _ANY_ORDER else groups[-1:]
        fitting = (g for g in open_groups if g.kind == kind and not g.closed and not g.names & names)
        group = next((g for g in fitting if g.size + _size(p) <= limit), None)
        if group is None:
            group = _Group(kind)
            groups.append(group)
        group.members.append(p)
        group.names |= names
        group.size += _size(p)
        group.closed = alone or bool(_MACRO.search(_text(p.source)))
    return [g.members for g in groups]


@dataclass
class _Group:
    kind: tuple[int, str, bool]  # stage, level, whether use_cuda is a variable
    members: list[Compilation] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    size: int = 0
    closed: bool = False  # nothing may come after macros of its last member


def _size(p: Compilation) -> int:
    return p.source.stat().st_size + 6000  # the constant: what an empty source would cost in a group


def _stage(p: Compilation) -> int:
    name = p.source.name
    if name in _FIRST:
        return 0
    if p.source.parent.name == "gen":
        return 1
    return 2 if name in _EARLY else 4 if name in _LAST else 3


def declared_names(source: Path) -> set[str]:
    """Return what two sources in one compilation must not both declare: names, and headers that can't be read twice."""
    text = _text(source)
    names = {name for found in _OWN_NAMES.findall(text) for name in found if name}
    root = next((d for d in source.parents if d.name == "src"), source.parent)
    headers = ((root / name, name) for name in _INCLUDED.findall(text))
    return names | {name for path, name in headers if path.is_file() and "#pragma once" not in _text(path)}


@functools.cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _compile_all(todo: Sequence[Compilation], folder: Path, progress: Callable[[int, int], None]) -> None:
    count = workers()
    empty = folder / EMPTY
    _run(todo[0], empty, "-x", "c++", os.devnull)
    tests = [p for p in todo if p.source.parent.name == "test"]
    rest = [p for p in todo if p not in tests]
    limit = max(_SMALLEST_GROUP, sum(map(_size, rest)) / (_GROUPS_PER_WORKER * count))
    groups = sorted(groups_of(rest, limit), key=_expected_work, reverse=True)  # the longest first
    done = 0
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        running = {pool.submit(compile_group, group, empty): len(group) for group in groups}
        if tests:
            running[pool.submit(leave_out_tests, tests, empty)] = len(tests)
        for future in concurrent.futures.as_completed(running):
            future.result()
            done += running[future]
            progress(done, len(todo))


def _expected_work(group: Sequence[Compilation]) -> float:
    return sum(map(_size, group)) * {"-O1": 2.0, "-O2": 3.0}[group[0].level]


def compile_group(group: Sequence[Compilation], empty: Path) -> None:
    """Compile a group to the object of its first member, and give the others an empty one; one by one if it fails."""
    first = group[0]
    if len(group) > 1:
        joined = first.target.with_name(f"jclip-{first.source.stem}.cc")
        joined.write_text("".join(f'#include "{p.source}"\n' for p in group))
        made = _run(first, first.target, str(joined))
        joined.unlink()
        if made and all(_give(empty, p.target) for p in group[1:]):
            return
    for p in group:
        _run(p, p.target, str(p.source))


def leave_out_tests(tests: Sequence[Compilation], empty: Path) -> None:
    """Put a function that only says so in the place of each of Jittor's own tests (`jittor_core.tests`)."""
    names = sorted({name for p in tests for name in re.findall(r"JIT_TEST\((.*?)\)", _text(p.source))})
    first, source = tests[0], tests[0].target.with_name("jclip-tests.cc")
    functions = "".join(f'void jit_test_{name}() {{ LOGf << "not compiled"; }}\n' for name in names)
    source.write_text(f'#include "common.h"\nnamespace jittor {{\n{functions}}}\n')
    made = _run(first, first.target, str(source))
    source.unlink()
    if not made or not all(_give(empty, p.target) for p in tests[1:]):
        compile_group(tests, empty)


def _give(empty: Path, target: Path) -> bool:
    try:
        shutil.copyfile(empty, target)
    except OSError:
        return False
    return True


def _run(p: Compilation, target: Path, *source: str) -> bool:
    command = [p.compiler, *source, *p.flags, p.level, "-c", "-o", str(target)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    if done.returncode:
        target.unlink(missing_ok=True)
    return done.returncode == 0
