"""The tables of docs/curriculum_results.md and of its Chinese twin, made of docs/curriculum_results.csv."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from csv_page import with_tables

COLUMNS = ("mode", "seed", "source", "measurer", "threshold", "rows", "clean", "corrupted", "val", "test", "chosen")
BEGIN, END = "<!-- written by bench/curriculum_table.py -->", "<!-- end -->"
CLEAN, CORRUPTED = 0.9, 0.3  # aims: at least, at most
WORDS = {
    "en": {
        "title": "Choosing among machine-made labels",
        "ssa": "**One source, 30 % of its rows corrupted: learning from all, and from those that SSA keeps**",
        "ssa_head": ["seed", "rows", "kept", "threshold", "clean kept", "corrupted kept", "test, all", "test, SSA", "gain"],
        "mean": "mean",
        "msa": "**Three sources, seed {}**",
        "msa_head": ["learned from", "rows", "val", "test"],
        "all": "{}, all rows", "msa_row": "MSA: {}",
        "road": "**The whole road**",
        "road_head": ["mode", "seed", "source", "measurer", "threshold", "rows", "clean", "corrupted", "val", "test", "chosen"],
        "kept_aim": "- SSA keeps at least 90 % of the clean and at most 30 % of the corrupted rows: {}",
        "gain_aim": "- SSA gains over no selection at each seed, on test: {}",
        "msa_aim": "- MSA is at least as good as the best single source, on test: {}",
        "reached": "reached", "missed": "missed", "of": "{} ({} of {})", "and": ", ",
    },
    "zh": {
        "title": "在机器生成的标签中做选择",
        "ssa": "**单一来源，30 % 的行被破坏：用全部行学习，与用 SSA 保留的行学习**",
        "ssa_head": ["种子", "行", "保留", "阈值", "保留的干净行", "保留的被破坏行", "测试，全部行", "测试，SSA", "增益"],
        "mean": "平均",
        "msa": "**三个来源，种子 {}**",
        "msa_head": ["学习的行", "行", "验证", "测试"],
        "all": "{}，全部行", "msa_row": "MSA：{}",
        "road": "**全部过程**",
        "road_head": ["模式", "种子", "来源", "测量者", "阈值", "行", "干净", "被破坏", "验证", "测试", "选中"],
        "kept_aim": "- SSA 至少保留 90 % 的干净行，至多保留 30 % 的被破坏行：{}",
        "gain_aim": "- 每个种子上，SSA 在测试集上优于不做选择：{}",
        "msa_aim": "- MSA 在测试集上不低于最好的单一来源：{}",
        "reached": "达到", "missed": "未达到", "of": "{}（{} / {}）", "and": "，",
    },
}  # fmt: skip
Lines = Sequence[dict[str, str]]
Pair = tuple[dict[str, str], dict[str, str]]


def written(page: str, lines: Lines, language: str = "en") -> str:
    """The page with its tables made anew, everything outside of the marks as it was."""
    return with_tables(page, (BEGIN, END), tables(lines, language), WORDS[language]["title"])


def tables(lines: Lines, language: str = "en") -> str:
    """SSA by seed, MSA beside its sources, what became of each aim, the whole road."""
    words = WORDS[language]
    pairs = ssa_pairs(lines)
    blocks = [f"{words['ssa']}\n\n{ssa_table(pairs, words)}"] if pairs else []
    seeds = sorted({line["seed"] for line in lines if line["mode"] == "msa"}, key=int)
    blocks += [f"{words['msa'].format(seed)}\n\n{msa_table(lines, seed, words)}" for seed in seeds]
    blocks.append("\n".join(verdicts(pairs, [msa_tests(lines, seed) for seed in seeds], words)))
    road = [[line[name] for name in COLUMNS] for line in lines]
    blocks.append(f"{words['road']}\n\n{markdown(words['road_head'], road)}")
    return "\n\n".join(blocks)


def ssa_pairs(lines: Lines) -> list[Pair]:
    """Of each seed the line of all rows and the one that SSA chose, which is the same where it chose all."""
    found = []
    for seed in sorted({line["seed"] for line in lines if line["mode"] == "ssa"}, key=int):
        own = [line for line in lines if line["mode"] == "ssa" and line["seed"] == seed]
        whole = next(line for line in own if not line["measurer"])
        found.append((whole, next((line for line in own if line["chosen"] == "1"), whole)))
    return found


def ssa_table(pairs: Sequence[Pair], words: dict) -> str:
    """A line per seed, and the mean."""
    rows = []
    for whole, kept in pairs:
        gain = float(kept["test"]) - float(whole["test"])
        shares = [f"{100 * float(kept[k]):.1f} %" for k in ("clean", "corrupted")]
        named = [kept["seed"], whole["rows"], kept["rows"], kept["threshold"] or "–"]
        rows.append(
            [*named, *shares, *(f"{100 * float(line['test']):.1f}" for line in (whole, kept)), f"{100 * gain:+.1f}"]
        )
    means = [statistics.mean(float(line["test"]) for line in column) for column in zip(*pairs, strict=True)]
    rows.append([words["mean"], *[""] * 5, *(f"{100 * m:.1f}" for m in means), f"{100 * (means[1] - means[0]):+.1f}"])
    return markdown(words["ssa_head"], rows)


def msa_table(lines: Lines, seed: str, words: dict) -> str:
    """Each source alone, then what MSA chose."""
    own = [line for line in lines if line["mode"] == "msa" and line["seed"] == seed]
    rows = [
        [words["all"].format(line["source"]), line["rows"], *(f"{100 * float(line[k]):.1f}" for k in ("val", "test"))]
        for line in own
        if not line["measurer"]
    ]
    chosen = [line for line in own if line["chosen"] == "1"]
    if chosen:
        steps = words["and"].join(f"{line['source']} > {line['threshold']} ({line['measurer']})" for line in chosen)
        last = chosen[-1]
        rows.append(
            [words["msa_row"].format(steps), last["rows"], *(f"{100 * float(last[k]):.1f}" for k in ("val", "test"))]
        )
    return markdown(words["msa_head"], rows)


def msa_tests(lines: Lines, seed: str) -> tuple[float, float]:
    """The best single source's accuracy on test, and MSA's."""
    own = [line for line in lines if line["mode"] == "msa" and line["seed"] == seed]
    single = max((float(line["test"]) for line in own if not line["measurer"]), default=0.0)
    return single, next((float(line["test"]) for line in reversed(own) if line["chosen"] == "1"), 0.0)


def verdicts(
    pairs: Sequence[tuple[dict[str, str], dict[str, str]]], msa: Sequence[tuple[float, float]], words: dict
) -> list[str]:
    """A line per aim: reached or missed, and at how many seeds."""
    kept = [float(k["clean"]) >= CLEAN and float(k["corrupted"]) <= CORRUPTED for _, k in pairs]
    gained = [float(k["test"]) > float(w["test"]) for w, k in pairs]
    found = [("kept_aim", kept), ("gain_aim", gained), ("msa_aim", [own >= single for single, own in msa])]
    return [words[aim].format(_verdict(holds, words)) for aim, holds in found if holds]


def _verdict(holds: Sequence[bool], words: dict) -> str:
    return words["of"].format(words["reached" if all(holds) else "missed"], sum(holds), len(holds))


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
