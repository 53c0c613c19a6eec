"""Photos are opened in one place, and figures that others published are repeated on photos as they are stored."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent.parent
FILES = sorted(p for room in ("jclip", "finetune", "convert") for p in (ROOT / room).rglob("*.py"))
OPENS_PHOTOS = "jclip/data/photo_file.py"
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def opened(tree: ast.AST) -> list[int]:
    """Lines where Pillow opens a file: `Image.open`, or `open` from it."""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "open"]
    lines = [
        n.lineno for n in calls if isinstance(n.value, ast.Name | ast.Attribute) and "Image" in ast.unparse(n.value)
    ]
    taken = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("PIL.")]
    return lines + [n.lineno for n in taken if any(alias.name == "open" for alias in n.names)]


def test_photos_are_opened_in_one_place():
    texts = {path: path.read_text(encoding="utf-8") for path in FILES}
    trees = {path: ast.parse(text) for path, text in texts.items() if "Image" in text or "PIL" in text}
    places = {str(path.relative_to(ROOT)): tree for path, tree in trees.items()}
    tree = places.pop(OPENS_PHOTOS)
    found = [f"{name}:{line}" for name, other in places.items() for line in opened(other)]
    assert not found, f"opened there, call jclip.data.photo_file.open_photo: {found}"
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "Image.open"]
    assert calls and all("formats" in {k.arg for k in call.keywords} for call in calls)


def test_published_figures_are_repeated_on_photos_as_stored():
    published = re.compile(r"as published|\(published\)|the paper's mean|public board|Expected: ImageNet")
    asked = []
    for path in CONFIGS:
        text = path.read_text(encoding="utf-8")
        head = "\n".join(line for line in text.splitlines() if line.startswith("#"))
        data = (yaml.safe_load(text) or {}).get("data") or {}
        if published.search(head) and "features" not in data:
            asked.append(path)
            assert data.get("upright") is False, f"{path.relative_to(ROOT)} states a published figure: upright: false"
    assert len(asked) >= 18
