"""docs/recipes.md is what its command makes of the recipes' heads, in both languages. Without importing a recipe."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("bench_recipes_page", ROOT / "bench" / "recipes_page.py")
recipes_page = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = recipes_page  # where dataclasses look up their annotations
SPEC.loader.exec_module(recipes_page)


def test_the_pages_are_those_of_the_heads():
    for path, text in recipes_page.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: python bench/recipes_page.py"


def test_every_recipe_stands_once():
    names = [path.stem for path in sorted((ROOT / "finetune").glob("[!_]*.py"))]
    for text in recipes_page.pages().values():
        assert [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")] == names


def test_a_head_of_another_form_is_named():
    with pytest.raises(ValueError, match="finetune/x.py: its docstring must begin with"):
        recipes_page.read_head("x", "X: a recipe.\n\nSomebody, 2026.   Trains: nothing.")


def test_a_recipe_without_chinese_words_stands_with_its_own():
    recipe = recipes_page.read_head(
        "x", "X: it | that.\n\nA et al., arXiv 2101.00001.   Trains: none.\nNeeds:\nphotos."
    )
    assert recipe.row() == (
        "| `x` | X: it \\| that | none | photos | A et al., [arXiv 2101.00001](https://arxiv.org/abs/2101.00001) |"
    )
    assert "| Y | none |" in recipe.row({"what": "Y"})
