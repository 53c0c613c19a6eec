"""Jittor's core compiled in groups: which sources go together, what stands afterwards, when it is made again."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from jclip.machine import core_build, core_import

COMPILER = shutil.which("g++")


class Core:
    """A folder with sources as Jittor has them, and the commands by which it would compile them."""

    def __init__(self, folder: Path):
        self.package, self.cache = folder / "jittor", folder / "cache"
        (self.package / "extern").mkdir(parents=True)
        (self.cache / "obj_files").mkdir(parents=True)
        self.commands: list[str] = []
        self.keys: list[str] = []

    def add(self, name: str, text: str) -> Path:
        source = self.package / "src" / name
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(text)
        if source.suffix == ".cc":
            target = self.cache / "obj_files" / f"{source.name}.o"
            include = f'-I"{self.package / "src"}"'
            self.commands.append(f'"{COMPILER}" "{source}" -std=c++14 -fPIC {include} -O2  -c -o "{target}"')
        return source

    def build(self) -> bool:
        self.keys.clear()
        return core_build.build(self.commands, self.package, self.write_key)

    def write_key(self, command: str, target: Path) -> None:
        core_build.key_of(target).write_text(command)
        self.keys.append(target.name)

    def parsed(self) -> list[core_build.Compilation]:
        return [core_build.parse(c) for c in self.commands]

    def library(self) -> ctypes.CDLL:
        """All objects in one library, in the order of the commands."""
        path = self.cache / f"library{len(list(self.cache.iterdir()))}.so"
        objects = [str(p.target) for p in self.parsed()]
        subprocess.run([COMPILER, "-shared", "-o", path, *objects], check=True)
        return ctypes.CDLL(str(path))


@pytest.fixture
def core(tmp_path):
    core = Core(tmp_path)
    core.add("once.h", "#pragma once\nextern int order[9], count;\n")
    core.add("often.h", "static int often() { return 5; }\n")
    first = '#include "once.h"\nstatic int make_array = 3;\nextern "C" int first() { return make_array; }\n'
    core.add("ops/first_op.cc", first)
    core.add("ops/second_op.cc", first.replace("3", "4").replace("first", "second"))
    core.add("opt/third.cc", '#include "often.h"\nextern "C" int third() { return often(); }\n')
    core.add("opt/fourth.cc", '#include "often.h"\nextern "C" int fourth() { return often() + 1; }\n')
    core.add("ops/fifth_op.cc", '#include "once.h"\nextern "C" int fifth() { return 7; }\n')
    return core


def names(groups) -> list[set[str]]:
    return [{p.source.stem for p in group} for group in groups]


def test_sources_that_share_a_name_or_a_header_without_a_guard_are_compiled_apart(core):
    groups = names(core_build.groups_of(core.parsed(), 10**9))
    assert (
        {"first_op", "fifth_op"} in groups and {"second_op"} in groups and {"third"} in groups and {"fourth"} in groups
    )


def test_nothing_follows_a_sources_macros_and_no_group_exceeds_the_limit(core):
    core.add("ops/macro_op.cc", "#define fifth sixth\n")
    core.add("ops/last_op.cc", 'extern "C" int last() { return 1; }\n')
    groups = core_build.groups_of(core.parsed(), 10**9)
    group = next(g for g in groups if any(p.source.stem == "macro_op" for p in g))
    assert group[-1].source.stem == "macro_op"
    assert all(len(g) == 1 for g in core_build.groups_of(core.parsed(), 1))


def test_what_is_initialised_in_order_keeps_its_order(core):
    for name in ("mem/allocator", "ops/op_register", "executor", "init"):
        core.add(f"{name}.cc", f"int of_{Path(name).name};\n")
    core.add("misc/nano_string.cc", "int of_string;\n")
    groups = core_build.groups_of(core.parsed(), 10**9)
    order = [p.source.stem for g in groups for p in g if p.source.stem in ("allocator", "init", "nano_string")]
    assert order == ["allocator", "init", "nano_string"]
    assert {"op_register"} in names(groups) and {"executor"} in names(groups)


def test_the_library_of_groups_computes_what_its_sources_say(core):
    assert core_build.can_group(core.commands) and core.build()
    library = core.library()
    functions = ("first", "second", "third", "fourth", "fifth")
    assert [library[name]() for name in functions] == [3, 4, 5, 6, 7]
    assert sorted(core.keys) == sorted(p.target.name for p in core.parsed())
    assert not list((core.cache / "obj_files").glob("*.cc"))


def test_objects_are_made_again_when_a_source_a_header_or_a_command_changes(core):
    assert core.build() and core.keys
    assert core.build() and not core.keys
    (core.package / "src" / "often.h").write_text("static int often() { return 50; }\n")
    assert core.build() and core.library().fourth() == 51
    core.commands = [c.replace("-O2", "-DX -O2") for c in core.commands]
    assert core.build() and core.keys
    core.parsed()[0].target.write_bytes(b"cut")
    assert core.build() and core.library().first() == 3
    core_build.key_of(core.parsed()[1].target).unlink()
    assert core.build() and core.keys


def test_a_group_that_does_not_compile_is_compiled_one_by_one(core):
    core.add("ops/sixth_op.cc", 'template <class T> int f(T) { return 8; }\nextern "C" int sixth() { return f(1); }\n')
    core.add(
        "ops/seventh_op.cc", 'template <class T> int f(T) { return 9; }\nextern "C" int seventh() { return f(1); }\n'
    )
    assert {"sixth_op", "seventh_op"} <= next(
        n for n in names(core_build.groups_of(core.parsed(), 10**9)) if "sixth_op" in n
    )
    assert core.build()
    assert core.library().fifth() == 7


def test_a_source_that_does_not_compile_is_left_to_jittor(core):
    core.add("ops/wrong_op.cc", "no c++\n")
    assert not core.build()
    assert "wrong_op.cc.o" not in core.keys and "first_op.cc.o" in core.keys
    assert not (core.cache / "obj_files" / "wrong_op.cc.o").exists()
    assert not core.build()  # nor is it noted as made


def test_jittors_own_objects_are_left_alone(core):
    for p in core.parsed():
        p.target.write_bytes(b"of Jittor")
        core_build.key_of(p.target).write_text("of Jittor")
    assert not core.build()
    assert all(p.target.read_bytes() == b"of Jittor" for p in core.parsed())


def test_jittors_own_tests_are_replaced_by_functions_that_say_so(core):
    core.add("common.h", '#pragma once\n#include <stdexcept>\nstruct F { void operator<<(const char* s) { throw std::runtime_error(s); } };\n#define LOGf F()\n#define JIT_TEST(name) void jit_test_##name()\n')  # fmt: skip  # noqa: E501
    for name in ("one", "two"):
        core.add(f"test/test_{name}.cc", f'#include "common.h"\nnamespace jittor {{ JIT_TEST({name}) {{}} }}\n')
    core.add("ops/calls_op.cc", """
namespace jittor { void jit_test_one(); void jit_test_two(); }
extern "C" int calls() { int n = 0; try { jittor::jit_test_one(); } catch (...) { n++; }
    try { jittor::jit_test_two(); } catch (...) { n++; } return n; }
""")  # fmt: skip
    assert core.build() and core.library().calls() == 2


def test_what_is_not_the_cpus_compiler_is_left_to_jittor(core, monkeypatch):
    assert core_build.can_group(core.commands)
    changes = [
        ("g++", "clang"),
        ("-O2", "-O2 -DHAS_CUDA"),
        (" -c ", " "),
        ("first_op.cc", "first_op.cu"),
        ("-O2", "-Os"),
    ]
    for old, new in changes:
        assert not core_build.can_group([c.replace(old, new) for c in core.commands]), (old, new)
    assert not core_build.can_group([core.commands[0], core.commands[1].replace("-O2", "-DX -O2")])
    assert not core_build.can_group(core.commands[:1])
    monkeypatch.setenv("JT_SYNC", "1")
    assert not core_build.can_group(core.commands)


def test_every_fact_of_a_build_counts(tmp_path, monkeypatch):
    package = tmp_path / "jittor"
    for name in (
        "jittor/src/var.h",
        "jittor/compiler.py",
        "jittor/utils/data.gz",
        "jittor_utils/lock.py",
        "core.so",
        "dnnl",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    libraries, onednn = [str(tmp_path / "core.so")], tmp_path / "dnnl"
    seen = {core_import.facts_of(package, libraries, onednn)}
    assert core_import.facts_of(package, libraries, onednn) in seen
    for path in sorted(p for p in tmp_path.rglob("*") if p.is_file()):
        path.write_text("xy")
        found = core_import.facts_of(package, libraries, onednn)
        assert found not in seen, path
        seen.add(found)
        os.utime(path, ns=(5, 5))
        found = core_import.facts_of(package, libraries, onednn)
        assert found not in seen, path
        seen.add(found)
    for name in ("JT_SYNC", "enable_lto"):
        monkeypatch.setenv(name, "1")
        found = core_import.facts_of(package, libraries, onednn)
        assert found not in seen, name
        seen.add(found)
    bindings = tmp_path / "gen" / "jit_op_maker.h"
    bindings.parent.mkdir()
    for text in ("whole", "cut", ""):
        bindings.write_text(text)
        found = core_import.facts_of(package, libraries, onednn)
        assert found not in seen, text
        seen.add(found)
    (tmp_path / "core.so").unlink()
    with pytest.raises(OSError):
        core_import.facts_of(package, libraries, onednn)


def test_jittors_key_is_noted_under_its_own_command(tmp_path):
    def cache_compile(command: str, cache: str, jittor: str) -> None:
        core_build.key_of(target).write_text(f"{command}\n# source: 123\n")

    target = tmp_path / "a.o"
    jittor_utils = types.SimpleNamespace(cc=types.SimpleNamespace(cache_compile=cache_compile))
    build = core_import._Build(jittor_utils, None, {})
    for command in ('"/a b/g++" "x.cc" -c -o "a.o"', "/usr/bin/g++ x.cc -c -o a.o"):
        build.write_key(command, target, "", "")
        assert core_build.key_of(target).read_text() == f"{command}\n# source: 123\n"


def test_what_stood_in_for_jittors_functions_is_gone_after_the_import():
    code = """
import sys
from jclip.runtime import jt
from jittor import compile_extern, compiler
import jittor_utils
for module in (compiler, compile_extern):
    for name in ("compile", "gen_jit_op_maker", "run_cmd", "get_version"):
        if hasattr(module, name):
            print(name, getattr(module, name).__module__)
print(type(compiler.pyjt_compiler).__name__, any(type(f).__module__.startswith("jclip") for f in sys.meta_path))
print(jittor_utils.run_cmds.__module__, jittor_utils.try_import_jit_utils_core.__module__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-2:] == ["module False", "jittor_utils jittor_utils"]
    assert all(line.split()[1] in ("jittor.compiler", "jittor_utils") for line in lines[:-2]) and len(lines) > 5
