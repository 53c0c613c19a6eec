"""Who may import whom, as rules over rooms, read from the source: they hold for files that are not written yet."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = sorted(p for room in ("jclip", "finetune", "convert") for p in (ROOT / room).rglob("*.py"))

# From left to right: a room imports from rooms to its left, and from itself without a circle.
ROOMS = [
    "errors", "postponed", "choices", "paths", "readers", "config", "machine", "runtime", "kernels", "functional",
    "prompts", "data", "weights", "model", "features", "train", "report", "app", "commands", "cli",
]  # fmt: skip
LONGEST = 50  # lines of a function: 40 is the aim
LIBRARIES_USERS = ("finetune", "convert")  # right of all rooms, and nobody's left
RUN_MAKERS = (
    "convert.classifier_heads",
    "convert.learned_prompts",
    "convert.grounding_runs",
)  # make recipes' runs, and must know that there are recipes
# Help, configs, lists, weights and results answer without Jittor, whose import compiles for minutes at first.
WITHOUT_JITTOR = (
    "errors",
    "paths",
    "config",
    "machine",
    "readers",
    "prompts",
    "data",
    "weights",
    "report",
    "app",
    "commands",
)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """Its room in jclip, else the package; "jclip" for the library's public face."""
    parts = module.split(".")
    return parts[1] if parts[0] == "jclip" and len(parts) > 1 else parts[0]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(tree_of(path)))


@cache
def imports(path: Path, top_level: bool = False) -> list[tuple[int, str]]:
    """(line, full name) of what a file imports: anywhere, or when it is imported itself; by string as well.

    What is loaded at its first use (`jclip.postponed`) is not imported with the file: a module from a room's face, `jt`.
    """
    found = []
    for node in tree_of(path).body if top_level else nodes_of(path):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [JITTOR.get(name, name) for name in (f"{node.module}.{alias.name}" for alias in node.names)]
            postponed = [n in JITTOR.values() or (n in MODULES and has_face(n.rpartition(".")[0])) for n in names]
            found += [(node.lineno, n) for n, later in zip(names, postponed, strict=True) if not (top_level and later)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = re.fullmatch(r"(?:jclip|finetune|convert)(?:\.\w+)+", node.value)
            found += [(node.lineno, node.value)] if named else []
    return found


def imports_at_top(path: Path) -> list[tuple[int, str]]:
    """As `imports`, of statements at the file's top level alone, what is loaded later among them."""
    lines = {node.lineno for node in tree_of(path).body if isinstance(node, ast.Import | ast.ImportFrom)}
    return [(line, name) for line, name in imports(path) if line in lines]


MODULES = {module_of(path): path for path in FILES}
JITTOR = {"jclip.postponed.jt": "jclip.runtime", "jclip.runtime": "jclip.runtime", "jclip.kernels": "jclip.kernels"}


@cache
def has_face(package: str) -> bool:
    """Whether `from package import module` gives a handle."""
    return "from jclip.postponed import face" in MODULES[package].read_text(encoding="utf-8")


def own_imports(path: Path, top_level: bool = False) -> list[str]:
    """Modules of ours that a file imports, itself not among them."""
    names = (name for _, name in imports(path, top_level))
    found = {name if name in MODULES else name.rpartition(".")[0] for name in names}
    return sorted(name for name in found if name in MODULES and name != module_of(path))


@pytest.fixture(scope="module", autouse=True)
def forget():
    """A million nodes are not kept for the tests of other files."""
    yield
    for kept in (tree_of, nodes_of, imports):
        kept.cache_clear()


def test_a_room_imports_from_its_left():
    for path in FILES:
        imports_from_its_left(path)


def imports_from_its_left(path: Path) -> None:
    own = module_of(path)
    room = room_of(own)
    for line, name in imports(path):
        if own == "jclip.postponed" and name == "jclip.runtime":
            continue  # its `jt`, whose uses `imports` finds
        place, head = f"{path.relative_to(ROOT)}:{line} imports {name}", name.split(".")[0]
        assert head != "jittor" or own == "jclip.runtime", f"{place}: only jclip/runtime.py may"
        assert head not in ("torch", "torchvision") or room == "convert", f"{place}: only convert/ may"
        of_users = head == room or own == "jclip.cli" or (own in RUN_MAKERS and name == "finetune")
        assert head not in LIBRARIES_USERS or of_users, f"{place}: the library knows none"
        if head == "jclip" and room in ROOMS and name.count(".") and room_of(name) != room:
            there = room_of(name)
            assert there in ROOMS, f"{place}: {there} is no room of tests/contract/test_rooms.py"
            assert own == "jclip.cli" or ROOMS.index(there) < ROOMS.index(room), f"{place}: not to the left of {room}"
        recipes = [n for n in (own, name) if n.startswith("finetune.") and n != "finetune.__main__"]
        assert len(recipes) < 2, f"{place}: a recipe never imports a recipe"


def test_files_of_a_room_have_no_circle():
    above: list[str] = []
    done: set[str] = set()

    def visit(module: str) -> None:
        assert module not in above, f"a circle: {' → '.join([*above[above.index(module) :], module])}"
        if module in done:
            return
        above.append(module)
        for other in own_imports(MODULES[module]):
            if room_of(other) == room_of(module) and other.rpartition(".")[0] != other:
                visit(other)
        done.add(above.pop())

    for module in MODULES:
        if module.startswith("jclip.") and module != "jclip.cli":
            visit(module)


def test_what_must_answer_at_once_imports_no_jittor():
    @cache
    def reaches_jittor(module: str) -> tuple[str, ...]:
        """The way from a module to Jittor along what is imported with it, empty where there is none."""
        if module == "jclip.runtime":
            return (module,)
        ways = (reaches_jittor(other) for other in own_imports(MODULES[module], top_level=True))
        return next(((module, *way) for way in ways if way), ())

    for module in MODULES:
        if room_of(module) in (*WITHOUT_JITTOR, "jclip", "cli", *LIBRARIES_USERS):
            way = reaches_jittor(module)
            assert not way, f"importing {module} imports Jittor: {' → '.join(way)}"


# Where an import inside a function stays: its package has no face, or it is looked up by those who ask for the name.
INSIDE = ("convert/cli.py", "convert/check.py", "finetune/__init__.py", "jclip/commands/doctor.py")


def test_our_imports_stand_at_the_top():
    found = {}
    for path in FILES:
        ours = {(line, name) for line, name in imports(path) if name.split(".")[0] in ("jclip", *LIBRARIES_USERS)}
        by_string = {(n.lineno, n.value) for n in nodes_of(path) if isinstance(n, ast.Constant)}
        found[str(path.relative_to(ROOT))] = sorted(ours - by_string - {*imports_at_top(path)})
    assert not (inside := {name: lines for name, lines in found.items() if lines and name not in INSIDE}), inside


def test_nothing_of_it_loads_jittor_or_torch():
    """The same by importing all of it: handles and whatever stands in a class or a default are seen as they are."""
    wanted = [m for m in MODULES if room_of(m) in (*WITHOUT_JITTOR, "jclip", "cli", *LIBRARIES_USERS)]
    code = """if True:
        import importlib, sys
        for name in sys.argv[1:]:
            importlib.import_module(name)
            loaded = {"jittor", "torch", "jclip.runtime"} & {*sys.modules}
            assert not loaded, (name, loaded)
        """
    names = [m for m in wanted if not m.endswith("__main__")]
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_modules_name_stands_once():
    names = Counter(m.rpartition(".")[2] for m in MODULES if m.startswith("jclip.") and MODULES[m].stem != "__init__")
    assert not (twice := [name for name, count in names.items() if count > 1]), twice


def test_the_map_names_every_room():
    the_map = (ROOT / "jclip" / "README.md").read_text(encoding="utf-8")
    rooms = [p.name for p in sorted((ROOT / "jclip").iterdir()) if (p / "__init__.py").is_file()]
    assert [r for r in rooms if f"`{r}/`" not in the_map] == []
    named = set(re.findall(r"`((?:jclip|finetune|convert|configs|tests)/[\w/.]+?)`", the_map))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("room", [r for r in ROOMS if (ROOT / "jclip" / r / "__init__.py").is_file()])
def test_a_rooms_face_names_what_is_there(room):
    import importlib

    face = importlib.import_module(f"jclip.{room}")
    assert face.__doc__
    for name in getattr(face, "__all__", ()):
        assert getattr(face, name) is not None
        assert f"jclip.{room}.{name}" not in MODULES, "once that module is loaded, the name is the module's"


def test_manners():
    """No star imports, no swallowed errors, no transformer outside the library, every public function documented, none
    longer than a screen."""
    for path in FILES:
        has_manners(path)
        for node in nodes_of(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = lines_of(node)
                assert lines <= LONGEST, f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {lines} lines"


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its docstring left out."""
    described = function.body[0] if ast.get_docstring(function) else None
    return function.end_lineno - function.lineno + 1 - (described.end_lineno - described.lineno + 1 if described else 0)


def has_manners(path: Path) -> None:
    tree = tree_of(path)
    for node in nodes_of(path):
        if not isinstance(node, ast.ImportFrom | ast.ExceptHandler | ast.Assert | ast.ClassDef):
            continue
        place = f"{path.relative_to(ROOT)}:{node.lineno}"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"{place}: star import"
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            raise AssertionError(f"{place}: bare except")
        if isinstance(node, ast.Assert):
            raise AssertionError(f"{place}: assert is no check of what users give")
        if isinstance(node, ast.ClassDef) and path.relative_to(ROOT).parts[0] != "jclip":
            assert node.name not in ("Transformer", "Attention", "Block", "CLIP"), f"{place}: a copy of the model"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            described = ast.get_docstring(node) or node.name in ("Config", "main")
            assert described, f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has no docstring"
    assert ast.get_docstring(tree) or not tree.body, f"{path.relative_to(ROOT)} has no docstring"
