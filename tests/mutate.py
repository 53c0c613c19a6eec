"""Twenty seeded mutations, one at a time, in a copy of the project: which of them does no test notice?

    python tests/mutate.py [--count 20] [--seed 1] [PATH …]

A mutation swaps an operator, a bound or a constant in one place of the modules below PATH. It is killed when a test fails
in the files of `tests` that import its module, those of recipes where no other does (`--all`: in the whole suite), and
survives otherwise. A survivor is a value that no test knows, or a mutation that changes nothing. Nothing is written to
the project itself.
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
from collections.abc import Iterator
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
TIMED_OUT = "TIMED OUT"


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
    """What computes: no annotations, texts of f-strings, docstrings, or what stands behind `raise`."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list") or isinstance(tree, (ast.JoinedStr, ast.Raise)):
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
    elif isinstance(node, ast.Name) and node.id in NAMES:
        yield changed(id=NAMES[node.id])
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
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


def copied(folder: Path) -> Path:
    """The project without its history and results, with the real data beside it."""
    project = folder / "jclip"
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "results", "__pycache__", ".*_cache", "*.egg-info")
    shutil.copytree(ROOT, project, ignore=ignored, symlinks=True)
    if (ROOT.parent / "shared").is_dir():
        (folder / "shared").symlink_to(ROOT.parent / "shared")
    return project


def failure(project: Path, tests: list[str]) -> str:
    """The first test that fails in the copy as it is, "" if none does."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    if done.returncode == 0:
        return ""
    if found := re.search(r"^(?:FAILED|ERROR) (tests/[^\s\[]+)", done.stdout, re.MULTILINE):
        return found[1]
    raise SystemExit(f"pytest could not run: {done.stdout}{done.stderr}")


def killer(project: Path, mutation: Mutation, tests: list[str]) -> str:
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
    p.add_argument("--all", action="store_true", help="run the whole suite against each, not what imports the module")
    args = p.parse_args(argv)
    drawn, counts = drawn_from(modules_below(list(args.paths)), args.count, args.seed), Counter()
    if not drawn:
        raise SystemExit(f"{' '.join(args.paths)}: nothing to mutate")
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        project = copied(Path(folder))
        for mutation in drawn:
            found = killer(project, mutation, ["tests"] if args.all else tests_of(mutation.module))
            counts[TIMED_OUT if found == TIMED_OUT else "killed" if found else "survived"] += 1
            told = found if found == TIMED_OUT else f"killed by {found}" if found else "SURVIVED"
            print(f"{told}  {mutation}", flush=True)
    ended = counts["killed"] + counts["survived"]
    print(f"killed {counts['killed']} of {ended} (seed {args.seed}), {counts[TIMED_OUT]} timed out")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
