"""Twenty seeded mutations, one at a time, in a copy of the project: which of them does no test notice?

    python tests/mutate.py [--count 20] [--seed 1] [PATH …] [--reached [TESTS …]]

A mutation swaps an operator, a bound or a constant in one place of the modules below PATH. It is killed when a test fails
in the files of `tests` that import its module, or import what imports it, those of recipes where no other does. With
`--reached` the suite then runs once to note which tests compute the places of survivors, in child processes as well, and
those may kill them too. A survivor is a value that no test knows, or a mutation that changes nothing. Nothing is written
to the project itself.
"""

from __future__ import annotations

import argparse
import ast
import copy
import functools
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATHS = ("jclip/functional", "jclip/data", "jclip/report*", "jclip/results*")
SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "argmax": "argmin", "argmin": "argmax",
         "floor": "ceil", "ceil": "floor"}  # fmt: skip
SECONDS = 600  # then a mutant loops for ever, or the machine is busy: it counts neither way
TIMED_OUT, SURVIVED = "TIMED OUT", "SURVIVED"
MOST_TESTS = 300  # by name; of more their files are run
SUITE = ("tests", "--ignore=tests/contract/test_readme.py")  # whose commands set the project up first
COMPILED = ("jclip/kernels",)  # in another folder its operators would be recompiled
NOTING = """import os
seen = set()
def note(number):
    test = os.environ.get("PYTEST_CURRENT_TEST", "")
    if (number, test) not in seen:
        seen.add((number, test))
        with open({notes!r}, "a", encoding="utf-8") as file:
            file.write(f"{{number}}\\t{{test}}\\n")
"""


@dataclass(frozen=True)
class Mutation:
    """One expression of a module and what stands there instead."""

    module: Path  # relative to the project
    start: int  # in bytes of the file
    end: int
    line: int
    before: str
    after: str

    def applied(self, source: bytes) -> bytes:
        return source[: self.start] + self.after.encode() + source[self.end :]

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.before}  →  {self.after}"


def mutations(module: Path) -> list[Mutation]:
    """All that are known for a module, in the order of its text."""
    source = (ROOT / module).read_bytes()
    offsets = [0]
    for line in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    found = []
    for node in _expressions(ast.parse(source)):
        for mutant in _mutants(node):
            start, end = offsets[node.lineno - 1] + node.col_offset, offsets[node.end_lineno - 1] + node.end_col_offset
            text = ast.unparse(mutant)
            after = f"({text})" if isinstance(node, (ast.BinOp, ast.BoolOp, ast.Compare, ast.UnaryOp)) else text
            found.append(Mutation(module, start, end, node.lineno, source[start:end].decode(), after))
    return sorted(found, key=lambda m: (m.start, m.end, m.after))


def _expressions(tree: ast.AST) -> Iterator[ast.expr]:
    """What computes: no annotations, texts of f-strings, docstrings, what stands after `raise`, or `strict=` of a zip."""
    if isinstance(tree, (ast.JoinedStr, ast.Raise)) or (isinstance(tree, ast.keyword) and tree.arg == "strict"):
        return
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.expr):
                yield child
            if isinstance(child, ast.AST):
                yield from _expressions(child)


def _mutants(node: ast.expr) -> Iterator[ast.expr]:
    def changed(**fields) -> ast.expr:
        mutant = copy.deepcopy(node)
        for name, value in fields.items():
            setattr(mutant, name, value)
        return mutant

    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
        yield changed(op=SWAPS[type(node.op)]())
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield changed(ops=[SWAPS[type(node.ops[0])](), *node.ops[1:]])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.operand
    elif isinstance(node, ast.Name) and node.id in NAMES and isinstance(node.ctx, ast.Load):
        yield changed(id=NAMES[node.id])
    elif isinstance(node, ast.Attribute) and node.attr in NAMES and isinstance(node.ctx, ast.Load):
        yield changed(attr=NAMES[node.attr])
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield changed(value=not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield changed(value=node.value + 1)
    elif isinstance(node, ast.Constant) and node.value == "stable":
        yield changed(value="quicksort")


def modules_below(patterns: list[str]) -> list[Path]:
    found = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    files = [file for path in found for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    return [file.relative_to(ROOT) for file in dict.fromkeys(files)]


def tests_of(module: Path) -> list[str]:
    """Test files that import the module, or else what imports it; recipes' last, shortest first: most mutants die early."""
    asked, seen = {_name(module)}, set()
    while asked:
        files = [file for file in (ROOT / "tests").rglob("test_*.py") if asked & _imports(file)]
        if files := [file for file in files if file.parent.name != "recipes"] or files:
            return [str(file.relative_to(ROOT)) for file in sorted(files, key=lambda f: (f.stat().st_size, f))]
        seen |= asked
        asked = {_name(file.relative_to(ROOT)) for file in _sources() if asked & _imports(file)} - seen
    return []


def _sources() -> list[Path]:
    return [file for room in ("jclip", "finetune", "convert") for file in sorted((ROOT / room).rglob("*.py"))]


def _name(module: Path) -> str:
    return ".".join(module.with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def _imports(file: Path) -> frozenset[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def drawn_from(modules: list[Path], count: int, seed: int) -> list[Mutation]:
    """Up to `count`, from one module after the other, so that a long one does not get them all."""
    rng, waiting = random.Random(seed), [mutations(module) for module in modules]
    for of_module in waiting:
        rng.shuffle(of_module)
    rng.shuffle(waiting)
    turns = [m for turn in itertools.zip_longest(*waiting) for m in turn if m is not None]
    return turns[:count]


def copied(folder: Path, linked: Sequence[str] = ()) -> Path:
    """The project without its history and results, with the real data beside it. linked: folders that stay the real ones."""
    project = folder / "jclip"
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "results", "__pycache__", ".*_cache", "*.egg-info")
    shutil.copytree(ROOT, project, ignore=ignored, symlinks=True)
    for name in linked:
        shutil.rmtree(project / name)
        (project / name).symlink_to(ROOT / name)
    if (ROOT.parent / "shared").is_dir():
        (folder / "shared").symlink_to(ROOT.parent / "shared")
    return project


def computed_by(project: Path, drawn: Sequence[Mutation], tests: Sequence[str]) -> list[list[str]]:
    """For each mutation the tests that compute its place, found by running all of `tests` once in the copy.

    Of what is computed while a fixture is made it is the fixture's whole file, and none of what is while a module is
    imported, whose files have run before.
    """
    notes = project / "reached.txt"
    (project / "reached.py").write_text(NOTING.format(notes=str(notes)), encoding="utf-8")
    notes.touch()
    for module, places in _by_module(drawn).items():
        (project / module).write_bytes(noted((ROOT / module).read_bytes(), places))
    pytest_in(project, tests)
    for module in _by_module(drawn):
        (project / module).write_bytes((ROOT / module).read_bytes())
    found: list[dict[str, None]] = [{} for _ in drawn]
    for line in notes.read_text(encoding="utf-8").splitlines():
        number, _, test = line.partition("\t")
        name, _, phase = test.rpartition(" ")
        if name:
            found[int(number)][name if phase == "(call)" else name.partition("::")[0]] = None
    return [list(tests if len(tests) <= MOST_TESTS else _files(tests)) for tests in found]


def _files(tests: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(test.partition("::")[0] for test in tests))


def _by_module(drawn: Sequence[Mutation]) -> dict[Path, dict[int, Mutation]]:
    places: dict[Path, dict[int, Mutation]] = {}
    for number, mutation in enumerate(drawn):
        places.setdefault(mutation.module, {})[number] = mutation
    return places


def noted(source: bytes, places: Mapping[int, Mutation]) -> bytes:
    """The module with a note of its number around each place: (note, place)[1], nested ones within the outer."""
    marks = []
    for number, m in places.items():
        marks.append((m.start, 1, -m.end, f'(__import__("reached").note({number}), '))
        marks.append((m.end, 0, -m.start, ")[1]"))
    for position, *_, text in sorted(marks, reverse=True):
        source = source[:position] + text.encode() + source[position:]
    return source


def failure(project: Path, tests: Sequence[str]) -> str:
    """The first test that fails in the copy as it is, "" if none does."""
    if not tests:
        return ""
    try:
        done = pytest_in(project, ["-x", *tests], timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    if done.returncode == 0:
        return ""
    if found := re.search(r"^(?:FAILED|ERROR) (tests/[^\s\[]+)", done.stdout, re.MULTILINE):
        return found[1]
    raise SystemExit(f"pytest could not run: {done.stdout}{done.stderr}")


def pytest_in(
    project: Path, arguments: Sequence[str], timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """pytest on the copy."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=timeout)


def killer(project: Path, mutation: Mutation, tests: Sequence[str]) -> str:
    """The test that fails by the mutation alone, "" if none does."""
    file, source = project / mutation.module, (ROOT / mutation.module).read_bytes()
    file.write_bytes(mutation.applied(source))
    found = failure(project, tests)
    file.write_bytes(source)
    if found.startswith("tests") and failure(project, [found]):
        raise SystemExit(f"{found} fails without a mutation as well")
    return found


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser("python tests/mutate.py", description=__doc__.splitlines()[0])
    p.add_argument("paths", nargs="*", default=PATHS, metavar="PATH", help=f"modules, folders (default: {PATHS})")
    p.add_argument("--count", type=int, default=20, help="how many mutations are drawn (default: 20)")
    p.add_argument("--seed", type=int, default=1, help="of the draw (default: 1)")
    p.add_argument(
        "--reached", nargs="*", metavar="TESTS", help="then look for tests that compute what survived (in: all)"
    )
    args = p.parse_args(argv)
    drawn = drawn_from(modules_below(list(args.paths)), args.count, args.seed)
    if not drawn:
        raise SystemExit(f"{' '.join(args.paths)}: nothing to mutate")
    linked = [folder for folder in COMPILED if not any(m.module.is_relative_to(folder) for m in drawn)]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        project = copied(Path(folder), linked)
        fates = tried(project, drawn, [tests_of(m.module) for m in drawn])
        survivors = [m for m, fate in fates.items() if fate == SURVIVED]
        if args.reached is not None and survivors:
            fates |= tried(project, survivors, computed_by(project, survivors, args.reached or SUITE))
    counts = Counter(fate if fate in (SURVIVED, TIMED_OUT) else "killed" for fate in fates.values())
    ended = counts["killed"] + counts[SURVIVED]
    print(f"killed {counts['killed']} of {ended} (seed {args.seed}), {counts[TIMED_OUT]} timed out")
    return 0


def tried(project: Path, drawn: Sequence[Mutation], tests: Sequence[Sequence[str]]) -> dict[Mutation, str]:
    """What became of each mutation, printed as it is known."""
    fates = {}
    for mutation, own in zip(drawn, tests, strict=True):
        found = killer(project, mutation, own)
        fates[mutation] = found if found == TIMED_OUT else f"killed by {found}" if found else SURVIVED
        print(f"{fates[mutation]}  {mutation}", flush=True)
    return fates


if __name__ == "__main__":
    raise SystemExit(main())
