"""What each part of learning from sentences brings: photos of several things of the embedded world, three seeds.

    python bench/multi_label_table.py [--runs FOLDER] [--out FOLDER] [--seeds 1 2 3] [--threads N] [--table] [--quick]

Scenes of two to four things among a hundred classes; prompts learn from captions alone, whatever is chosen is chosen on
validation scenes, and test scenes are measured once. Written are docs/multi_label_results.csv, a line for each row, seed
and set of photos, and, between their marks, the tables of docs/multi_label_results.md and docs/zh/multi_label_results.md.
Runs and scores lie below --runs under names that say what they are made of: what is there is not made again, so that a
broken command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import multi_label_rows as rows
from csv_page import read, write
from multi_label_page import COLUMNS, written

from jclip.functional import score_ensemble
from jclip.functional.multi_label_metrics import average_precision_per_class, mean_over_classes
from jclip.functional.window_fusion import branch_scores, merged_scores, model_scores

Key = tuple[str, str]  # set and part of photos
Lines = list[dict[str, object]]


def main() -> int:
    """Makes what is missing, then the CSV and the page."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=Path, default=ROOT / "runs" / "multi_label", help="for runs and scores")
    p.add_argument("--out", type=Path, default=ROOT / "docs", help="for multi_label_results.csv and .md")
    p.add_argument("--seeds", nargs="+", type=int, default=rows.SEEDS)
    p.add_argument("--threads", type=int, help="of this process (default: all cores)")
    p.add_argument("--table", action="store_true", help="no runs: only the page, from the CSV")
    p.add_argument("--quick", action="store_true", help="one epoch of few captions, few photos: to try the command")
    args = p.parse_args()
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # Jittor is not imported yet
    file = args.out / "multi_label_results.csv"
    if args.quick and args.out == ROOT / "docs":
        p.error("--quick measures next to nothing: name another --out than docs")
    if args.table and not file.is_file():
        p.error(f"{file} is not there: leave --table out to make it")
    if not args.table:
        write(file, COLUMNS, measured(args.runs, args.seeds, args.quick))
    for language, page in (
        ("en", args.out / "multi_label_results.md"),
        ("zh", args.out / "zh" / "multi_label_results.md"),
    ):
        page.parent.mkdir(parents=True, exist_ok=True)
        before = page.read_text(encoding="utf-8") if page.is_file() else ""
        page.write_text(written(before, read(file), language), encoding="utf-8")
    print(f"written: {file}, multi_label_results.md beside it and in zh/")
    return 0


def measured(folder: Path, seeds: Sequence[int], quick: bool = False) -> Lines:
    """Every line of the CSV."""
    from multi_label_runs import finished_run
    from multi_label_scores import PhotoSets, ScoreFiles

    sets = PhotoSets(quick)
    files, targets = ScoreFiles(folder / "scores", sets), {key: labels.targets for key, labels in sets}
    lines: Lines = []
    for name in rows.WITHOUT_TRAINING:
        lines += without_training(name, files.without_training(name), targets)
    runs = {(n, s): finished_run(folder, "text_as_image", n, s, quick) for s in seeds for n in rows.RUNS}
    windows = files.windows([runs[n, s] for s in seeds for n in rows.IN_WINDOWS])
    for seed in seeds:
        scores = {n: files.of_run(runs[n, seed]) for n in rows.RUNS}
        for base in ("plain", "winner"):
            for kind in ("modulation", "bank"):
                scores[f"{base}+{kind}"] = files.of_run(runs[base, seed], kind)
        whole = {n: Row(n, of, targets, choose_merge) for n, of in scores.items()}
        in_windows = {
            n: {form: windows[runs[n, seed].folder.name, form] for form in rows.FORMS} for n in rows.IN_WINDOWS
        }
        made = [*branches(scores["plain"], targets), *whole.values(), *together(whole, in_windows, targets)]
        lines += [line for row in made for line in row.lines(seed)]
        for name in rows.PHOTOS_KNOWN:
            found = files.of_run(finished_run(folder, "dual_prompt", name, seed, quick))
            lines += Row(name, found, targets, lambda of, y: Choice("", lambda parts: parts["merged"])).lines(seed)
    return lines


class Choice:
    """How parts of scores become one, and what to call it."""

    def __init__(self, title: str, combine):
        self.title, self.combine = title, combine


class Row:
    """Scores of a row of the table: for each set of photos combined as was best on the validation photos that choose."""

    def __init__(
        self, name: str, parts: Mapping[Key, Mapping[str, np.ndarray]], targets: Mapping[Key, np.ndarray], choose
    ):
        self.name, self._targets, self.scores, self._chosen = name, targets, {}, {}
        choices = {on: choose(parts[on, "val"], targets[on, "val"]) for on in {*rows.CHOSEN_ON.values()}}
        for on, choice in choices.items():
            self.scores[on, "val", on] = choice.combine(parts[on, "val"])
        for name, on in rows.CHOSEN_ON.items():
            self.scores[name, "test", on] = choices[on].combine(parts[name, "test"])
            self._chosen[name] = choices[on].title

    def parts(self) -> dict[Key, np.ndarray]:
        """Combined scores by set and part."""
        return {(name, part): scores for (name, part, _), scores in self.scores.items()}

    def lines(self, seed: int) -> Lines:
        """One for each set of photos."""
        found = self.parts()
        return [
            line(
                self.name, seed, name, precision(found[name, "test"], self._targets[name, "test"]),
                precision(found[on, "val"], self._targets[on, "val"]), self._chosen[name],
            )
            for name, on in rows.CHOSEN_ON.items()
        ]  # fmt: skip


def line(row: str, seed: object, photos: str, test: float, val: object = "", chosen: str = "") -> dict[str, object]:
    """A line of the CSV; mAP as shares."""
    shown = val if val == "" else f"{val:.4f}"
    return dict(zip(COLUMNS, (row, seed, photos, f"{test:.4f}", shown, chosen), strict=True))


def precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """mAP of the classes that some photo shows."""
    return mean_over_classes(average_precision_per_class(scores, targets))


def without_training(name: str, scores: Mapping[Key, Mapping[str, np.ndarray]], targets) -> Lines:
    """Lines of a training-free row, and of its scores normalised by photo and by class."""
    lines = []
    for key, parts in scores.items():
        for note, shown in (
            ("", parts["merged"]),
            (", normalised", score_ensemble.by_image_and_class(parts["merged"])),
        ):
            lines.append(line(f"{name}{note}", "", key[0], precision(shown, targets[key])))
    return lines


def choose_merge(parts: Mapping[str, np.ndarray], targets: np.ndarray) -> Choice:
    """The share r of the global scores."""
    r = score_ensemble.searched_merge(parts["global"], parts["local"], targets)
    return Choice(f"r={r}", lambda of: merged_scores(of["global"], of["local"], r))


def branches(parts: Mapping[Key, Mapping[str, np.ndarray]], targets) -> Iterator[Row]:
    """Global and local scores of the plain run alone, and both merged half and half."""
    for title, r in (("global", 1.0), ("local", 0.0), ("r=0.5", 0.5)):
        fixed = Choice("", lambda of, r=r: merged_scores(of["global"], of["local"], r))
        yield Row(f"plain, {title}", parts, targets, lambda of, y, fixed=fixed: fixed)


def together(
    whole: Mapping[str, Row], windows: Mapping[str, Mapping[str, Mapping[Key, Mapping]]], targets
) -> list[Row]:
    """Rows with windows, of ensembles, and of both."""
    made, best = [], {}
    for name, forms in windows.items():
        made.append(Row(f"{name} + windows as published", forms[rows.PUBLISHED], targets, lambda of, y: published()))
        joined = {key: {(form, k): v for form, of in forms.items() for k, v in of[key].items()} for key in targets}
        best[name] = Row(f"{name} + windows", joined, targets, choose_windows)
    made += best.values()
    members = {n: whole[n].parts() for n in rows.TOGETHER}
    in_windows = {n: best[n].parts() if n in best else members[n] for n in rows.TOGETHER}
    for title, of in (("ensemble", members), ("windows and ensemble", in_windows)):
        parts = {key: {n: scores[key] for n, scores in of.items()} for key in targets}
        made.append(Row(title, parts, targets, choose_ensemble))
    return made


def published() -> Choice:
    """Branches of whole photo + 1.5 windows, added."""
    return Choice("", lambda of: model_scores(*(branch_scores(of[f"whole_{b}"], of[f"windows_{b}"]) for b in BRANCHES)))


BRANCHES = ("global", "local")


def choose_windows(parts: Mapping[tuple[str, str], np.ndarray], targets: np.ndarray) -> Choice:
    """The form of fusion and the weights of windows, or the mean rank of the places and the windows."""
    return best_of([*_window_choices()], parts, targets)


def _window_choices() -> Iterator[Choice]:
    for form in rows.FORMS:
        for a, g, w in itertools.product(rows.WHOLE_WEIGHTS, rows.KAPPAS, rows.LOCAL_KAPPAS):
            yield Choice(
                f"{form}, {a:g} whole + places + {g:g} windows + {w:g} their places",
                lambda of, form=form, a=a, g=g, w=w: (
                    a * of[form, "whole_global"] + of[form, "whole_local"]
                    + g * of[form, "windows_global"] + w * of[form, "windows_local"]
                ),
            )  # fmt: skip
        for names in (("whole_local", "windows_global"), ("whole_local", "windows_global", "windows_local")):
            yield Choice(
                f"{form}, ranks of {', '.join(names)}",
                lambda of, form=form, names=names: score_ensemble.rank_mean({n: of[form, n] for n in names}).scores,
            )


def choose_ensemble(parts: Mapping[str, np.ndarray], targets: np.ndarray) -> Choice:
    """Mean, scaled mean, or mean rank, of all members."""
    weights = [1.0] * len(parts)
    kinds = {
        "mean": score_ensemble.mean,
        "rank": score_ensemble.rank_mean,
        "weighted": lambda of: score_ensemble.weighted(of, weights),
    }
    return best_of([Choice(k, lambda of, f=f: f(of).scores) for k, f in kinds.items()], parts, targets)


def best_of(choices: Sequence[Choice], parts, targets: np.ndarray) -> Choice:
    """The choice with the best mAP, the first of equals."""
    return max(choices, key=lambda choice: precision(choice.combine(parts), targets))


if __name__ == "__main__":
    sys.exit(main())
