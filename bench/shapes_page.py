"""docs/shapes_results.md, its Chinese twin in docs/zh and the plot, made of docs/shapes_results.csv."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shapes_rows import MODELS, SEEDS, SHOTS, STYLES

from jclip.commands.sweep import BASE_TO_NEW, HALVES, METRICS, below_zero_shot
from jclip.commands.sweep import statistics as over_seeds

BELOW = "↓"
Lines = Sequence[dict[str, Any]]


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of the CSV, numbers as numbers."""
    with open(path, encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    numbers = {"shots": int, "seed": int, "seconds": float, **dict.fromkeys((*METRICS, *BASE_TO_NEW), float)}
    return [{k: numbers.get(k, str)(v) if v else "" for k, v in row.items()} for row in rows]


class Words(NamedTuple):
    """What one language has of its own on the page."""

    head: str
    shots: tuple[str, ...]
    halves: tuple[str, ...]
    picture: str


ENGLISH = Words(
    head=f"""# Every recipe on styles that the models never saw

Written by `python bench/shapes_results.py`; every run is a line of `shapes_results.csv`. The two models that ship were
trained on four drawing styles of [the embedded world](training.md#the-world-of-shapes); here they meet those that they
did not, 100 classes, 1,000 test photos (the ResNet `inverted` alone: it classifies 98 % of `sketch` before it learns
anything). They are toys, and so are these figures: they show that each recipe works, not which of them is better.
Test top-1 in percent, mean ± population's standard deviation over {len(SEEDS)} seeds, each of which draws shots and starts.
Settings were chosen once for each model and style, on the validation photos of seed 1 at 16 shots
(`bench/shapes_rows.py`, `shapes_settings.json`), epochs on min(shots, 4) validation photos per class, never on test; photos
are seen plainly. {BELOW}: below zero-shot on validation at one seed or more. Seconds: the median of a 16-shot run.""",
    shots=("recipe", *(f"{k} shot{'s' * (k > 1)}" for k in SHOTS), "seconds"),
    halves=(f"base to new, {SHOTS[-1]} shots", "base", "new", "H"),
    picture="![accuracy over shots, shapes-tiny-vit on inverted](shapes_results.png)",
)
CHINESE = Words(
    head=f"""# 所有方法在模型从未见过的画风上

由 `python bench/shapes_results.py` 生成；每次运行是 [`shapes_results.csv`](../shapes_results.csv) 的一行，
表中的方法名与该文件一致。
随包发布的两个模型在[图形小世界](training.md#图形小世界)的四种画风上训练；这里用的是它们没见过的画风，100 类，
1,000 张测试照片（ResNet 只用 `inverted`：`sketch` 不学习就已经能分对 98 %）。模型是玩具，数字也只是玩具上的数字：
说明每种方法都能工作，不能说明哪种更好。数字是测试集 top-1（%），{len(SEEDS)} 个种子的平均值 ± 总体标准差，
每个种子既决定抽哪些样本，也决定初始化。
设置对每个模型、每种画风只选一次，在种子 1、16-shot 的验证照片上挑选（`bench/shapes_rows.py`、`shapes_settings.json`），
轮次在每类 min(样本数, 4) 张验证照片上挑选，从不用测试集；照片不做增强。
{BELOW}：至少有一个种子，验证集上低于零样本。秒：一次 16-shot 运行用时的中位数。""",
    shots=("方法", *(f"{k}-shot" for k in SHOTS), "秒"),
    halves=(f"从基类到新类，{SHOTS[-1]}-shot", "基类", "新类", "H"),
    picture="![准确率随样本数的变化，shapes-tiny-vit 在 inverted 上](../shapes_results.png)",
)


def pages(folder: Path, lines: Lines) -> dict[Path, str]:
    """shapes_results.md in both languages: each page's path below `folder`, and its text."""
    name = "shapes_results.md"
    return {folder / name: page(lines), folder / "zh" / name: page(lines, CHINESE)}


def page(lines: Lines, words: Words = ENGLISH) -> str:
    """shapes_results.md in one language."""
    parts = [words.head]
    for model in MODELS:
        for style in STYLES:
            own = [line for line in lines if (line["model"], line["style"]) == (model, style)]
            tables = [over_shots(own, words), from_base_to_new(own, words)]
            parts += [f"## {model}, `shapes:{style}`", *tables] if own else []
    return "\n\n".join(filter(None, [*parts, words.picture])) + "\n"


def over_shots(lines: Lines, words: Words) -> str:
    """A row for each recipe, a column for each number of shots."""
    own = [{**line, "config": line["recipe"]} for line in lines if line["subset"] == "all"]
    shown = [[*words.shots]]
    for recipe, points in over_seeds(own, "test_top1").items():
        mine = [line for line in own if line["recipe"] == recipe]
        below = {line["shots"] for line in mine if below_zero_shot(line)}
        cells = [f"{_percent(points[k])}{f' {BELOW}' * (k in below)}" if k in points else "" for k in SHOTS]
        seconds = [line["seconds"] for line in mine if line["shots"] == SHOTS[-1]]
        shown.append([recipe, *cells, f"{statistics.median(seconds):.1f}" if seconds else ""])
    return _table(shown) if len(shown) > 1 else ""


def from_base_to_new(lines: Lines, words: Words) -> str:
    """Recipes that classify by text: 16 shots of the first 50 classes, measured on these and on the other 50."""
    own = [{**line, "config": line["recipe"]} for line in lines if line["subset"] == "base"]
    if not own:
        return ""
    before = [{**line, "config": "zero-shot"} for line in own]
    tables = [[over_seeds(before, f"zero_shot_{half}") for half in HALVES], [over_seeds(own, half) for half in HALVES]]
    shown = [[*words.halves]]
    for columns in tables:
        shown += [[name, *(_percent(of[name][SHOTS[-1]]) for of in columns)] for name in columns[0]]
    return _table(shown)


def _percent(point: tuple[float, float]) -> str:
    return f"{100 * point[0]:.2f} ± {100 * point[1]:.2f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, f"|{' --- |' * len(rows[0])}", *rest])


def draw(folder: Path, lines: Lines) -> None:
    """shapes_results.png: the ViT on the style that it was trained on least."""
    from jclip.report.plots import plot_shots

    shown = [
        {**line, "config": line["recipe"]}
        for line in lines
        if (line["model"], line["style"], line["subset"]) == (MODELS[0], STYLES[0], "all")
    ]
    if shown:
        title = f"{MODELS[0]}, shapes:{STYLES[0]}, mean of {len(SEEDS)} seeds"
        plot_shots(folder / "shapes_results.png", over_seeds(shown, "test_top1"), title, "test top-1, %")
