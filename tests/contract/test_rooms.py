"""Who may import whom, read from the source: it holds for files that are not written yet."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = sorted(p for room in ("jclip", "finetune", "convert") for p in (ROOT / room).rglob("*.py"))

# Importing these must not import Jittor: help, configs, tokenizer, metrics and results answer at once.
WITHOUT_JITTOR = [
    "convert.cli", "convert.source", "finetune", "finetune.__main__", "finetune._finished", "finetune._sweep",
    "finetune._challenge", "finetune._fusion", "finetune._submission",
    "jclip", "jclip.architecture", "jclip.cached", "jclip.catalogue",
    "jclip.checkpoint", "jclip.choices", "jclip.class_sets", "jclip.cli", "jclip.config", "jclip.cuda",
    "jclip.data.captions", "jclip.data.class_names", "jclip.data.loader", "jclip.data.photo_file",
    "jclip.data.photo_hashes", "jclip.data.shapes",
    "jclip.data.splits", "jclip.data.world",
    "jclip.doctor", "jclip.download", "jclip.errors", "jclip.evaluation", "jclip.families", "jclip.features",
    "jclip.functional.metrics", "jclip.functional.positions", "jclip.functional.prompt_scores", "jclip.grammar",
    "jclip.heads", "jclip.hold_out", "jclip.member", "jclip.mixing", "jclip.mixture", "jclip.models_command",
    "jclip.paths", "jclip.preprocess", "jclip.prompts", "jclip.readers", "jclip.recorded", "jclip.results", "jclip.run",
    "jclip.schema", "jclip.sheet", "jclip.sheet_html", "jclip.source", "jclip.tiles", "jclip.tokenizer", "jclip.toolchain",
    "jclip.towers", "jclip.variants", "jclip.views",
    "jclip.warmup", "jclip.zero_shot",
]  # fmt: skip

# From the bottom up; a module imports only from rows below its own, or beside it where said.
FLOORS = [
    {"jclip.errors"},
    {"jclip.arguments", "jclip.choices", "jclip.paths", "jclip.grammar", "jclip.postponed"},
    {"jclip.schema"},
    {"jclip.variants"},
    {"jclip.report", "jclip.spreadsheet", "jclip.strict_yaml", "jclip.data.photo_file"},
    {
        "jclip.config",
        "jclip.preprocess",
        "jclip.tokenizer",
        "jclip.cuda",
        "jclip.toolchain",
        "jclip.readers",
        "jclip.catalogue",
    },
    {"jclip.cached", "jclip.families", "jclip.views"},
    {"jclip.architecture"},
    {
        "jclip.runtime",
        "jclip.functional",
        "jclip.checkpoint",
        "jclip.data",
        "jclip.prompts",
        "jclip.class_sets",
        "jclip.run",
        "jclip.towers",
    },
    {
        "jclip.recorded",
        "jclip.kernels",
        "jclip.mixing",
        "jclip.download",
        "jclip.results",
        "jclip.evaluation",
        "jclip.optim",
    },
    {"jclip.layers", "jclip.tiles", "jclip.functional.losses", "jclip.parts"},
    {
        "jclip.vit",
        "jclip.resnet",
        "jclip.eva",
        "jclip.text",
        "jclip.sheet_html",
        "jclip.source",
        "jclip.models_command",
        "jclip.doctor",
        "jclip.trials",
        "jclip.loop",
    },
    {"jclip.clip", "jclip.heads", "jclip.last_block", "jclip.member", "jclip.sheet", "jclip.sorting"},
    {"jclip.streaming"},
    {"jclip.features"},
    {"jclip.adapt", "jclip.mixture", "jclip.prototypes"},
    {"jclip.context", "jclip.lora", "jclip.tuning"},
    {"jclip.deep_prompts"},
    {"jclip.zero_shot", "jclip.warmup", "jclip.hold_out", "finetune", "convert"},
    {"jclip.cli"},
]


def imports(path: Path, top_level: bool = False) -> list[tuple[int, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level else ast.walk(tree)
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def floor(module: str) -> int | None:
    fitting = [
        (len(room), number)
        for number, rooms in enumerate(FLOORS)
        for room in rooms
        if module == room or module.startswith(f"{room}.")
    ]
    return max(fitting)[1] if fitting else None  # of the longest name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path):
    own = module_of(path)
    for line, name in imports(path):
        place, head = f"{path.relative_to(ROOT)}:{line} imports {name}", name.split(".")[0]
        assert head != "jittor" or own == "jclip.runtime", f"{place}: only jclip/runtime.py does"
        assert head not in ("torch", "torchvision") or own.split(".")[0] == "convert", f"{place}: only convert/ may"
        assert head != "convert" or own.split(".")[0] == "convert", f"{place}: nobody imports the customs office"
        assert head != "finetune" or own.split(".")[0] == "finetune", f"{place}: the library knows no recipe"
        recipes = [n for n in (own, name) if n.startswith("finetune.") and not n.startswith("finetune._")]
        if len(recipes) == 2:
            raise AssertionError(f"{place}: a recipe never imports a recipe")
        if own.startswith("jclip.data") and name.startswith(
            ("jclip.clip", "jclip.vit", "jclip.resnet", "jclip.source")
        ):
            raise AssertionError(f"{place}: data never imports a model")
    for line, name in imports(path, top_level=True):
        here, there = floor(own), floor(name)
        if name.startswith("jclip.") and own != "jclip":
            assert here is not None, f"{own} has no floor in tests/contract/test_rooms.py"
            same_room = FLOORS[here] & {r for r in FLOORS[here] if name.startswith(r)} and here == there
            assert there is not None and (there < here or same_room), (
                f"{path.relative_to(ROOT)}:{line} imports {name}: not below"
            )


def test_what_must_answer_at_once_imports_no_jittor():
    code = f"import importlib, sys\nfor m in {WITHOUT_JITTOR!r}:\n    importlib.import_module(m)\n"
    code += "bad = {'jittor', 'jittor_utils', 'torch', 'transformers'} & set(sys.modules)\nassert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_recipes_top_level_imports_no_jittor():
    import finetune

    code = f"import finetune, sys\nfor n in {finetune.names()!r}:\n    finetune.load(n)\nassert 'jittor' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_manners(path):
    """No star imports, no swallowed errors, no transformer outside the library, every public function told about."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"{place}: star import"
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            raise AssertionError(f"{place}: bare except")
        if isinstance(node, ast.Assert):
            raise AssertionError(f"{place}: assert is no check of what users give")
        if isinstance(node, ast.ClassDef) and path.parts[-2] != "jclip":
            assert node.name not in ("Transformer", "Attention", "Block", "CLIP"), f"{place}: a copy of the model"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            described = ast.get_docstring(node) or node.name in ("Config", "main")
            assert described, f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has no docstring"
    assert ast.get_docstring(tree) or not tree.body, f"{path.relative_to(ROOT)} has no docstring"
