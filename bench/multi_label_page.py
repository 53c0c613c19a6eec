"""The tables of docs/multi_label_results.md and of its Chinese twin, made of docs/multi_label_results.csv."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from csv_page import with_tables
from multi_label_rows import AIMS, PHOTOS_KNOWN, SEEDS, SETS

COLUMNS = ("row", "seed", "photos", "test_map", "val_map", "chosen")
BEGIN, END = "<!-- written by bench/multi_label_table.py -->", "<!-- end -->"
WORDS = {
    "en": {
        "title": "Several things in one photo, learned from sentences alone",
        "row": "row", "gain": "gain", "reached": "reached", "missed": "missed",
        "untrained": "Without training, against `whole photo`",
        "alone": "`text_as_image`: each part alone, against `plain`",
        "on_winner": "`text_as_image`: each part on top of `winner`, against `winner`",
        "rest": "Windows and ensembles, against `winner`",
        "photos": "`dual_prompt` on 800 labelled scenes, against DualCoOp's own loss",
        "seeds": "Seeds: {} of {}. Aims:",
        "aim": "- {}, `{}`: aim {:g}, {}: {:.1f} ({})",
    },
    "zh": {
        "title": "一张照片里的多个物体，只从句子中学习",
        "row": "行", "gain": "增益", "reached": "达到", "missed": "未达到",
        "untrained": "不训练，与 `whole photo` 相比",
        "alone": "`text_as_image`：单独加入每个部分，与 `plain` 相比",
        "on_winner": "`text_as_image`：在 `winner` 之上加入每个部分，与 `winner` 相比",
        "rest": "窗口与集成，与 `winner` 相比",
        "photos": "`dual_prompt`，800 张带标签的场景，与 DualCoOp 自己的损失相比",
        "seeds": "种子：{} / {}。目标：",
        "aim": "- {}，`{}`：目标 {:g}，{}：{:.1f}（{}）",
    },
}  # fmt: skip
Lines = Sequence[dict[str, str]]


def written(page: str, lines: Lines, language: str = "en") -> str:
    """The page with its tables made anew, everything outside of the marks as it was."""
    return with_tables(page, (BEGIN, END), tables(lines, language), WORDS[language]["title"])


def tables(lines: Lines, language: str = "en") -> str:
    """All tables, and what became of each aim."""
    words, base = WORDS[language], {"untrained": "whole photo", "alone": "plain", "photos": next(iter(PHOTOS_KNOWN))}
    blocks = [
        f"**{words[group]}**\n\n{table(lines, names, base.get(group, 'winner'), words)}"
        for group, names in groups(lines).items()
        if names
    ]
    return "\n\n".join([*blocks, aims(lines, words)])


def groups(lines: Lines) -> dict[str, list[str]]:
    """The rows of each table, in the order of the CSV."""
    names = list(dict.fromkeys(line["row"] for line in lines))
    untrained = {line["row"] for line in lines if not line["seed"]}
    learned = [n for n in names if n not in untrained and n not in PHOTOS_KNOWN]
    single = [n for n in learned if "windows" not in n and "ensemble" not in n]
    on_winner = [n for n in single if n.startswith("winner")]
    return {
        "untrained": [n for n in names if n in untrained],
        "alone": [n for n in single if n not in on_winner or n == "winner"],
        "on_winner": on_winner,
        "rest": [n for n in learned if n not in single or n == "winner"],
        "photos": [n for n in names if n in PHOTOS_KNOWN],
    }


def table(lines: Lines, names: Sequence[str], base: str, words: dict[str, str]) -> str:
    """Test mAP in percent of each row, mean and deviation over seeds, and what it gains on `base`."""
    head = [words["row"], *(x for name in SETS for x in (f"`{name}`", "±", words["gain"]))]
    shown = [head, ["---"] * len(head)]
    for name in names:
        cells = [name]
        for photos in SETS:
            own, other = values(lines, name, photos), values(lines, base, photos)
            gain = statistics.mean(own.values()) - statistics.mean(other.values()) if own and other else None
            spread = f"{100 * statistics.pstdev(own.values()):.1f}" if len(own) > 1 else ""
            mean = f"{100 * statistics.mean(own.values()):.1f}" if own else ""
            cells += [mean, spread, "" if gain is None or name == base else f"{100 * gain:+.1f}"]
        shown.append(cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in shown)


def values(lines: Lines, name: str, photos: str) -> dict[str, float]:
    """Seed → test mAP of a row."""
    return {x["seed"]: float(x["test_map"]) for x in lines if (x["row"], x["photos"]) == (name, photos)}


def aims(lines: Lines, words: dict[str, str]) -> str:
    """A line for each aim: what was reached, by the mean of the seeds and by each."""
    shown = []
    for name, photos, least in AIMS:
        if own := values(lines, name, photos):
            reached = 100 * statistics.mean(own.values())
            each = ", ".join(f"{100 * v:.1f}" for v in own.values())
            verdict = words["reached" if round(reached, 9) >= least else "missed"]
            shown.append(words["aim"].format(name, photos, least, verdict, reached, each))
    seeds = len({line["seed"] for line in lines if line["seed"]})
    return words["seeds"].format(seeds, len(SEEDS)) + "\n\n" + "\n".join(shown)
