"""The recipes on frozen features as their users meet them: accuracy over shots on precomputed features of the real ViT-B/32.

    python bench/results.py [--data ../shared/data/clip_vitb32_features] [--runs runs/results] [--out docs]

Each recipe's config at 1, 2, 4, 8 and 16 shots, drawn by three seeds from the 16-shot pool; settings and epochs are chosen
on min(shots, 4) validation photos per class, never on test. Runs what is not there yet, resumes when interrupted, and writes
results.md with its plot and results.csv with every run, and the same page in Chinese as zh/results.md. `--table` only
rewrites both pages from results.csv.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import finetune  # noqa: F401 (offers its recipes)
from jclip.commands.sweep import METRICS, below_zero_shot, finished, planned, row_of, write_csv
from jclip.commands.sweep import statistics as over_seeds

SHOTS, SEEDS, POOL = (1, 2, 4, 8, 16), (1, 2, 3), 16
WITH_TEXT = {
    "zero-shot": "zero_shot/features_caltech_lvis",
    "Tip-Adapter": "tip_adapter/features_caltech_lvis_search",
    "Tip-Adapter-F": "tip_adapter/features_caltech_lvis_F",
    "APE": "ape/features_caltech_lvis",
    "APE-T": "ape/features_caltech_lvis_T",
    "GDA": "gda/features_caltech_lvis",
    "linear probe": "linear_probe/features_caltech_lvis",
    "linear probe, SGD": "linear_probe/features_caltech_lvis_sgd",
    "LP++": "lp_plus/features_caltech_lvis",
    "ZS-LP": "clap/features_caltech_lvis_zs_lp",
    "CLAP": "clap/features_caltech_lvis",
    "TaskRes": "task_res/features_caltech_lvis",
    "CLIP-Adapter": "clip_adapter/features_caltech_lvis",
    "cross-modal linear": "cross_modal/features_caltech_lvis",
    "cross-modal adapter": "cross_modal/features_caltech_lvis_adapter",
    "WiSE-FT, head": "wise_ft/features_caltech_lvis",
    "ensemble of Tip-Adapter-F, LP++, CLAP": "ensemble/features_caltech_lvis",
}
WITHOUT_TEXT = {name: WITH_TEXT[name] for name in ("GDA", "linear probe", "linear probe, SGD")}
DATA_SETS = {"caltech_lvis": WITH_TEXT, "caltech101": WITHOUT_TEXT, "oxford_pets": WITHOUT_TEXT}
COLUMNS = ("data", "recipe", "shots", "seed", *METRICS, "seconds")
BELOW = "↓"


def main() -> int:
    """Runs, writes, and prints the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "clip_vitb32_features")
    p.add_argument("--runs", default="runs/results", help="where the runs' folders are")
    p.add_argument("--out", type=Path, default=ROOT / "docs")
    p.add_argument("--table", action="store_true", help="no runs: only the pages and the plot, from results.csv")
    args = p.parse_args()
    rows = read(args.out / "results.csv") if args.table else measure(args.data, args.runs, args.out / "results.csv")
    draw(args.out, rows)
    for path, text in pages(args.out, rows).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print(page(rows))
    return 0


def measure(data: Path, runs: str, out: Path) -> list[dict[str, Any]]:
    """Every run's row; all rows so far are in `out` after each."""
    from tqdm import tqdm

    points = [
        (name, label, point)
        for name, recipes in DATA_SETS.items()
        for label, config in recipes.items()
        for point in planned([config, *settings(data / f"{name}.npz")], runs)
    ]
    rows: list[dict[str, Any]] = []
    for name, label, point in tqdm(points, unit="run", disable=None):
        row = row_of(point, finished(point))
        rows.append({k: row[k] for k in COLUMNS[2:]} | {"data": name, "recipe": label})
        write_csv(out, rows, COLUMNS)
    return rows


def settings(features: Path) -> list[str]:
    """What all runs of a data set share."""
    listed = [",".join(map(str, values)) for values in (SHOTS, SEEDS)]
    return [f"data.features={features}", f"data.pool={POOL}", f"data.shots={listed[0]}", f"seed={listed[1]}"]


def read(path: Path) -> list[dict[str, Any]]:
    """What `write_csv` wrote."""
    with open(path, encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    numbers = {"shots": int, "seed": int, "seconds": float, **dict.fromkeys(METRICS, float)}
    return [{k: numbers.get(k, str)(v) if v else "" for k, v in row.items()} for row in rows]


def draw(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """results.png: a line per recipe that uses text; the linear probes would leave the others no room."""
    from jclip.report.plots import plot_shots

    shown = [row for row in rows if row["data"] == "caltech_lvis" and not row["recipe"].startswith("linear probe")]
    named = [{**row, "config": row["recipe"]} for row in shown]
    plot_shots(folder / "results.png", over_seeds(named, "test_top1"), "caltech_lvis, mean of 3 seeds", "test top-1, %")


class Words(NamedTuple):
    """What one language has of its own on the page."""

    head: str
    data_sets: dict[str, str]
    columns: tuple[str, ...]
    picture: str


ENGLISH = Words(
    head=f"""# Few shots on frozen features

Written by `python bench/results.py`; every run is a line of `results.csv`. Precomputed features of the real CLIP ViT-B/32;
the configs are those of `configs/*/features_caltech_lvis*.yaml` as they ship, their settings not tuned for a number of
shots. Test top-1 in percent, mean ± standard deviation over three seeds, each of which draws the shots from 16 per class.
Settings and epochs are chosen on min(shots, 4) validation photos per class, never on test.
{BELOW}: below zero-shot on validation at one seed or more.
Seconds: the median of a 16-shot run from the file of features to its metrics, without the start of the process and the
first compilation of operators.

Recipes through the towers, too, from base to new classes as well: [shapes_results.md](shapes_results.md).""",
    data_sets={
        "caltech_lvis": "35 classes of Caltech-101 with their text features, 922 test photos",
        "caltech101": "100 classes, no text, 2,465 test photos",
        "oxford_pets": "37 breeds, no text, 3,669 test photos",
    },
    columns=("recipe", *(f"{k} shot{'s' * (k > 1)}" for k in SHOTS), "seconds"),
    picture="![accuracy over shots](results.png)",
)
CHINESE = Words(
    head=f"""# 冻结特征上的小样本结果

由 `python bench/results.py` 生成；每次运行是 [`results.csv`](../results.csv) 的一行，表中的方法名与该文件一致。
特征由真实的 CLIP ViT-B/32 预先算好；配置就是随项目发布的 `configs/*/features_caltech_lvis*.yaml`，没有针对样本数调参。
数字是测试集 top-1（%），三个种子的平均值 ± 标准差，每个种子从每类 16 张照片中抽取样本。
设置与轮次在每类 min(样本数, 4) 张验证照片上挑选，从不用测试集。
{BELOW}：至少有一个种子，验证集上低于零样本。
秒：16-shot 运行从读特征文件到得出指标的用时，取中位数，不含进程启动和算子的首次编译。

梯度穿过两个塔的方法，以及从基类到新类的结果：[shapes_results.md](shapes_results.md)。""",
    data_sets={
        "caltech_lvis": "Caltech-101 中的 35 类，有文本特征，922 张测试照片",
        "caltech101": "100 类，无文本，2,465 张测试照片",
        "oxford_pets": "37 个品种，无文本，3,669 张测试照片",
    },
    columns=("方法", *(f"{k}-shot" for k in SHOTS), "秒"),
    picture="![准确率随样本数的变化](../results.png)",
)


def pages(folder: Path, rows: Sequence[dict[str, Any]]) -> dict[Path, str]:
    """results.md in both languages: each page's path below `folder`, and its text."""
    return {folder / "results.md": page(rows), folder / "zh" / "results.md": page(rows, CHINESE)}


def page(rows: Sequence[dict[str, Any]], words: Words = ENGLISH) -> str:
    """results.md in one language."""
    tables = [f"## {name}\n\n{words.data_sets[name]}\n\n{table(name, rows, words)}" for name in DATA_SETS]
    return "\n\n".join([words.head, *tables, words.picture]) + "\n"


def table(name: str, rows: Sequence[dict[str, Any]], words: Words = ENGLISH) -> str:
    """The rows of one data set, in Markdown."""
    own = [{**row, "config": row["recipe"]} for row in rows if row["data"] == name]
    shown = [" | ".join(words.columns), " | ".join(["---"] * len(words.columns))]
    for recipe, points in over_seeds(own, "test_top1").items():
        mine = [row for row in own if row["recipe"] == recipe]
        below = {row["shots"] for row in mine if below_zero_shot(row)}
        cells = [
            f"{100 * mean:.2f} ± {100 * deviation:.2f}{' ' + BELOW if k in below else ''}"
            for k, (mean, deviation) in sorted(points.items())
        ]
        seconds = statistics.median(row["seconds"] for row in mine if row["shots"] == SHOTS[-1])
        shown.append(" | ".join([recipe, *cells, f"{seconds:.1f}"]))
    return "\n".join(f"| {line} |" for line in shown)


if __name__ == "__main__":
    sys.exit(main())
