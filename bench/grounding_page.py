"""The tables of docs/grounding_results.md and of its Chinese twin, made of docs/grounding_results.csv."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from csv_page import with_tables

COLUMNS = (
    "row", "seed", "part", "count", "acc", "sides", "no_sides", "mean_iou", "present_auroc", "present_acc", "cpu_seconds",
)  # fmt: skip
SEEDS = (1, 2, 3)
UNTRAINED = ("mean box of the best quarter", "rough box", "true boxes, ReCLIP")
FEATURES = "features"  # in the place of a part: what the towers take for all of them
AIMS = (  # row, part, what of it, least
    ("shapes", "test", "acc", 95.0),
    ("shapes", "test", "acc", 97.0),  # with more time than 12 core-minutes
    ("shapes", "test", "sides", 85.0),
    ("shapes", "unseen", "acc", 85.0),
    ("true boxes, ReCLIP", "test", "acc", 85.0),
)
MINUTES = ("shapes", 12.0)  # of one core: six of two
BEGIN, END = "<!-- written by bench/grounding_table.py -->", "<!-- end -->"
WORDS = {
    "en": {
        "title": "Phrases' boxes on the embedded world",
        "found": ("row", "seeds", "Acc@0.5", "±", "no side", "a side", "mean IoU", "pairs never seen", "core-minutes"),
        "there": ("row", "AUROC", "right", "AUROC, pairs never seen", "right, pairs never seen"),
        "is_there": "**Whether the thing is there**",
        "seeds": "Aims:", "reached": "reached", "missed": "missed",
        "acc": "Acc@0.5", "sides": "Acc@0.5 of phrases that name a side", "test": "test scenes", "unseen": "pairs never seen",
        "aim": "- {}, {}, {}: aim {:g}, {}: {:.1f} ({})",
        "minutes": "- {}: aim {:g} core-minutes with features, {}: {:.1f} ({})",
    },
    "zh": {
        "title": "图形小世界上的短语框",
        "found": ("行", "种子", "Acc@0.5", "±", "无方位", "有方位", "平均 IoU", "从未见过的组合", "核·分钟"),
        "there": ("行", "AUROC", "判断正确", "AUROC，从未见过的组合", "判断正确，从未见过的组合"),
        "is_there": "**物体是否在照片里**",
        "seeds": "目标：", "reached": "达到", "missed": "未达到",
        "acc": "Acc@0.5", "sides": "含方位词短语的 Acc@0.5", "test": "测试场景", "unseen": "从未见过的组合",
        "aim": "- {}，{}，{}：目标 {:g}，{}：{:.1f}（{}）",
        "minutes": "- {}：目标 {:g} 核·分钟（含特征计算），{}：{:.1f}（{}）",
    },
}  # fmt: skip
Lines = Sequence[dict[str, str]]


def written(page: str, lines: Lines, language: str = "en") -> str:
    """The page with its tables made anew, everything outside of the marks as it was."""
    return with_tables(page, (BEGIN, END), tables(lines, WORDS[language]), WORDS[language]["title"])


def tables(lines: Lines, words: dict) -> str:
    """Both tables, and what became of each aim."""
    names = list(dict.fromkeys(line["row"] for line in lines if line["part"] != FEATURES))
    names = [name for name in names if values(lines, name, "test", "acc")]
    found = [[name, *_found(lines, name)] for name in names]
    there = [[name, *_there(lines, name)] for name in names if values(lines, name, "test", "present_auroc")]
    blocks = [_table(words["found"], found)]
    if there:
        blocks += [words["is_there"], _table(words["there"], there)]
    return "\n\n".join([*blocks, words["seeds"], "\n".join(aims(lines, words))])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _found(lines: Lines, name: str) -> list[str]:
    own = values(lines, name, "test", "acc")
    spread = f"{100 * statistics.pstdev(own.values()):.1f}" if len(own) > 1 else ""
    shown = [_mean(lines, name, "test", what) for what in ("no_sides", "sides", "mean_iou")]
    spent = minutes(lines, name)
    taken = f"{statistics.mean(spent.values()):.1f}" if spent else ""
    seeds = str(len(own)) if "" not in own else ""
    return [seeds, _mean(lines, name, "test", "acc"), spread, *shown, _mean(lines, name, "unseen", "acc"), taken]


def _there(lines: Lines, name: str) -> list[str]:
    return [_mean(lines, name, part, what) for part in ("test", "unseen") for what in ("present_auroc", "present_acc")]


def _mean(lines: Lines, name: str, part: str, what: str) -> str:
    own = values(lines, name, part, what)
    return f"{100 * statistics.mean(own.values()):.1f}" if own else ""


def values(lines: Lines, name: str, part: str, what: str) -> dict[str, float]:
    """Seed → a figure of a row."""
    return {x["seed"]: float(x[what]) for x in lines if (x["row"], x["part"]) == (name, part) and x[what]}


def minutes(lines: Lines, name: str) -> dict[str, float]:
    """Seed → minutes of one core, features included."""
    features = values(lines, name, FEATURES, "cpu_seconds").get("", 0.0)
    return {seed: (s + features) / 60 for seed, s in values(lines, name, "test", "cpu_seconds").items()}


def aims(lines: Lines, words: dict) -> list[str]:
    """A line for each aim: what was reached, by the mean of the seeds and by each."""
    shown = []
    for name, part, what, least in AIMS:
        if own := {seed: 100 * v for seed, v in values(lines, name, part, what).items()}:
            mean = statistics.mean(own.values())
            verdict = words["reached" if round(mean, 9) >= least else "missed"]
            shown.append(words["aim"].format(name, words[part], words[what], least, verdict, mean, _each(own)))
    name, most = MINUTES
    if own := minutes(lines, name):
        mean = statistics.mean(own.values())
        verdict = words["reached" if mean <= most else "missed"]
        shown.append(words["minutes"].format(name, most, verdict, mean, _each(own)))
    return shown


def _each(values: dict[str, float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values.values())
