"""docs/recipes.md and docs/zh/recipes.md: the recipes' table, made from the heads of the files in finetune/.

    python bench/recipes_page.py

A head is a docstring: "Name: what it does.", then a paragraph "Paper.   Trains: ….   Needs: ….". The Chinese page takes
docs/zh/recipes.tsv (recipe, what it does, trains, needs) and, for a recipe that has no line there, the head itself.
"""

from __future__ import annotations

import argparse
import ast
import csv
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
HEAD = re.compile(r"(?P<paper>.*?)\.?\s*Trains:\s*(?P<trains>.*?)\.?\s*Needs:\s*(?P<needs>.*?)\.?", re.DOTALL)
FORM = "`Name: what it does.` and `Paper. Trains: …. Needs: ….`"
ARXIV = re.compile(r"\barXiv (\d{4}\.\d{5})")

ENGLISH = """# Recipes

Written by `python bench/recipes_page.py` from the heads of the files in `finetune/`. A recipe is one file there, and one
YAML per published setting in `configs/`; `jclip recipes` lists them with their configs. How one is run:
[experiments.md](experiments.md); what each reaches: [results.md](results.md), [shapes_results.md](shapes_results.md).

Letters: C classes, S support photos, D a tower's width, E a feature's, M learned words, n vectors in each of J blocks,
Q chosen channels, r a rank.

| recipe | what it does | trains | needs | paper |
|---|---|---|---|---|
"""
CHINESE = """# 方法

由 `python bench/recipes_page.py` 根据 `finetune/` 中各文件的开头生成。一种方法是那里的一个文件，
加上 `configs/` 里每个已发表设置的一个 YAML；`jclip recipes` 列出各方法及其配置。
怎样运行：[experiments.md](experiments.md)；准确率：[results.md](results.md)、
[shapes_results.md](shapes_results.md)。

字母：C 类别数，S 支持照片数，D 塔的宽度，E 特征的宽度，M 学到的词数，J 个块中每块 n 个向量，
Q 选出的通道数，r 秩。

| 方法 | 做什么 | 训练什么 | 需要什么 | 论文 |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Recipe:
    """What the head of a recipe's file says."""

    name: str
    what: str
    trains: str
    needs: str
    paper: str

    def row(self, translated: dict[str, str] | None = None) -> str:
        """A line of the table, with other words where there are some."""
        words = {"what": self.what, "trains": self.trains, "needs": self.needs, **(translated or {})}
        cells = [f"`{self.name}`", words["what"], words["trains"], words["needs"], linked(self.paper)]
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def main() -> int:
    """Writes both pages."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(f"written: {path.relative_to(ROOT)}")
    return 0


def pages() -> dict[Path, str]:
    """Each page's path and text."""
    recipes, words = read_recipes(ROOT / "finetune"), read_words(DOCS / "zh" / "recipes.tsv")
    return {
        DOCS / "recipes.md": ENGLISH + "".join(f"{recipe.row()}\n" for recipe in recipes),
        DOCS / "zh" / "recipes.md": CHINESE + "".join(f"{recipe.row(words.get(recipe.name))}\n" for recipe in recipes),
    }


def read_recipes(folder: Path) -> list[Recipe]:
    """The recipes in `folder` by name, without importing any."""
    files = sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))
    return [
        read_head(path.stem, ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "") for path in files
    ]


def read_head(name: str, head: str) -> Recipe:
    """A recipe from its file's docstring. Raises `ValueError` for a head of another form."""
    first, _, rest = head.partition("\n\n")
    found = HEAD.fullmatch(rest.partition("\n\n")[0].strip())
    if ":" not in first or not found:
        raise ValueError(f"finetune/{name}.py: its docstring must begin with {FORM}")
    trains, needs, paper = (" ".join(found[key].split()) for key in ("trains", "needs", "paper"))
    return Recipe(name, " ".join(first.split()).rstrip("."), trains, needs, paper)


def read_words(path: Path) -> dict[str, dict[str, str]]:
    """recipe → its cells in another language, the empty ones left out."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return {row["recipe"]: {key: row[key] for key in ("what", "trains", "needs") if row[key]} for row in rows}


def linked(paper: str) -> str:
    """The paper's line, arXiv's numbers as links."""
    return ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", paper)


if __name__ == "__main__":
    sys.exit(main())
