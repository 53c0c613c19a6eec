"""`jclip captions generate`: captions made of class names, by templates or a chat model, with their labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jclip.config import build, load_values, project_of, require, to_json, to_values
from jclip.data.caption_stages import Made, ServerConfig, StageConfig, Stages
from jclip.data.chat_server import ChatServer, key_from
from jclip.data.labelled_captions import LabelledCaptions, balanced_rows, joined, write_captions
from jclip.data.lexicons import Lexicon, load_lexicon
from jclip.data.nouns import Labeller
from jclip.data.reply_parsing import Rules
from jclip.data.scene_captions import MIN_PER_CLASS, template_captions
from jclip.data.training_sentences import (
    hard_sentences,
    pair_sentences,
    read_sets,
    set_sentences,
    single_sentences,
    subset_sentences,
)
from jclip.errors import ConfigError, UnknownName, notice, say
from jclip.paths import is_file, replacing
from jclip.report.predictions import table

PARTS = ("captions", "single", "hard")
LISTED = ("pairs", "whole_sets", "subsets")  # of `templates`: files of their own, too
Sets = list[tuple[int, ...]]  # labels of classes that are named together


@dataclass(frozen=True)
class Templates:
    """Which sentences that only list names are added to all.jsonl: 89 of each class, pairs, whole sets, parts of sets."""

    single: bool = True
    pairs: bool = False
    sets: bool = False
    subsets: bool = False


@dataclass(frozen=True)
class Config:
    """Captions to generate.

    generator: template (offline) or openai (any server of that interface); count: template captions, 0 for
    `min_per_class` times the number of classes; max_per_class: of all.jsonl, 0 for no limit; hard: names of classes for
    hard.jsonl; partner: the class that hard classes are paired with; sets: a file of classes that are seen together, empty
    for the captions' own.
    """

    classes: str
    lexicon: str = "extended"
    generator: Literal["template", "openai"] = "template"
    seed: int = 0
    count: int = 0
    min_per_class: int = MIN_PER_CLASS
    max_per_class: int = 0
    hard: tuple[str, ...] = ()
    partner: str = ""
    sets: str = ""
    templates: Templates = field(default_factory=Templates)
    stages: StageConfig = field(default_factory=StageConfig)
    rules: Rules = field(default_factory=Rules)
    server: ServerConfig = field(default_factory=ServerConfig)
    dry_run: bool = False

    def __post_init__(self) -> None:
        require(self.count >= 0, "captions", "count", "at least 0", self.count)
        require(self.min_per_class >= 1, "captions", "min_per_class", "at least 1", self.min_per_class)
        require(self.max_per_class >= 0, "captions", "max_per_class", "at least 0", self.max_per_class)
        server, stages = self.server, self.stages
        require(1 <= server.concurrency <= 64, "server", "concurrency", "in [1, 64]", server.concurrency)
        require(1 <= server.tries <= 100, "server", "tries", "in [1, 100]", server.tries)
        require(0 < server.timeout <= 3600, "server", "timeout", "in (0, 3600]", server.timeout)
        for name in ("max_requests", "max_tokens"):
            require(getattr(server, name) >= 0, "server", name, "at least 0", getattr(server, name))
        for name in ("calls", "groups", "calls_per_group", "single_rounds", "hard_sentences", "top_up_rounds"):
            require(getattr(stages, name) >= 0, "stages", name, "at least 0", getattr(stages, name))
        for name in ("names_per_call", "sentences", "single_sentences", "reply_tokens"):
            require(getattr(stages, name) >= 1, "stages", name, "at least 1", getattr(stages, name))
        for name in ("temperature", "caption_temperature"):
            require(0 <= getattr(stages, name) <= 2, "stages", name, "in [0, 2]", getattr(stages, name))
        require(0 < stages.top_p <= 1, "stages", "top_p", "in (0, 1]", stages.top_p)
        require(0 < self.rules.max_share <= 1, "rules", "max_share", "in (0, 1]", self.rules.max_share)
        require(self.rules.max_per_set >= 1, "rules", "max_per_set", "at least 1", self.rules.max_per_set)


def read_config(path: Path, overrides: Sequence[str]) -> Config:
    """The config of a YAML with `key=value` overrides; relative paths are relative to its project. Raises `ConfigError`."""
    values = load_values(path, overrides)
    for key in ("lexicon", "sets"):
        named = values.get(key)
        if isinstance(named, str) and named and not is_file(named) and is_file(project_of(path) / named):
            values[key] = str(project_of(path) / named)
    return build(Config, values, str(path))


def generate(config: str, overrides: Sequence[str], out: str | None, dry_run: bool) -> int:
    """Writes sets.jsonl, captions.jsonl, single.jsonl, hard.jsonl, all.jsonl and report.json to a folder."""
    cfg = read_config(Path(config), overrides)
    folder = Path(out) if out else None
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out must be a folder, got a file: {folder}")
    dry_run = dry_run or cfg.dry_run
    if make(cfg, load_lexicon(cfg.classes, cfg.lexicon), folder, dry_run) is not None:
        say("nothing is written" if dry_run or folder is None else f"written: {folder}")
    return 0


def make(
    cfg: Config, lexicon: Lexicon, folder: Path | None, dry_run: bool = False, given: LabelledCaptions | None = None
) -> dict[str, Any] | None:
    """Makes the captions of a config, writes them to `folder`, and returns the report, which is printed.

    given: captions with labels, in the place of generated ones; then sets are of the classes that they name together. None
    for a dry run that would ask a chat server: printed is what would be asked.
    """
    hard, partner = hard_and_partner(cfg, lexicon)
    known = read_sets(Path(cfg.sets), lexicon) if cfg.sets else None
    if given is None and cfg.generator == "openai":
        made = _asked(cfg, lexicon, hard, folder, dry_run)
        if made is None:
            return None
    else:
        captions = (
            template_captions(lexicon, cfg.seed, cfg.count or None, cfg.min_per_class) if given is None else given
        )
        made = _with_sentences(captions, lexicon, hard, partner, known)
    parts = _parts(cfg, lexicon, made, made.sets if known is None else known)
    everything = joined([*parts.values()])
    if cfg.max_per_class:
        everything = everything.at(balanced_rows(everything.targets, cfg.max_per_class, cfg.seed))
    report = _report(cfg, lexicon, made, everything)
    say(_report_table(report))
    if given is None and (short := report["classes_below_min_per_class"]):
        notice(f"{len(short)} classes are named by fewer than {cfg.min_per_class} captions: {', '.join(short):.400}")
    if not dry_run and folder is not None:
        files = {part: getattr(made, part) for part in PARTS} | {k: v for k, v in parts.items() if k in LISTED}
        _write(folder, lexicon, {**files, "all": everything}, made.sets if known is None else known, report)
    return report


def hard_and_partner(cfg: Config, lexicon: Lexicon) -> tuple[list[int], int | None]:
    """Labels of the hard classes, and of the one that they are paired with. Raises `UnknownName`."""
    partner = _labels([cfg.partner], lexicon, "partner")[0] if cfg.partner else None
    return _labels(cfg.hard, lexicon, "hard"), partner


def _labels(names: Iterable[str], lexicon: Lexicon, key: str) -> list[int]:
    """Raises `UnknownName` for a name that is not a class."""
    labeller = Labeller(lexicon, guarded=False)
    found = []
    for name in names:
        if (label := labeller.label_of(name)) is None:
            raise UnknownName(f"class in {key}", name, lexicon.classnames)
        found.append(label)
    return [*dict.fromkeys(found)]


def _with_sentences(
    captions: LabelledCaptions, lexicon: Lexicon, hard: Sequence[int], partner: int | None, known: Sets | None
) -> Made:
    sets = _sets_of(captions)
    own = hard_sentences(lexicon, hard, sets if known is None else known, partner) if hard else captions.at([])
    return Made(sets, captions, single_sentences(lexicon), own)


def _sets_of(captions: LabelledCaptions) -> Sets:
    """The classes that each caption names, where these are several."""
    named = (tuple(np.flatnonzero(row == 1).tolist()) for row in captions.targets)
    return [own for own in named if len(own) > 1]


def _asked(cfg: Config, lexicon: Lexicon, hard: Sequence[int], folder: Path | None, dry_run: bool) -> Made | None:
    """What the chat server's replies give; None for a dry run, which prints what would be asked."""
    stages = Stages(lexicon, cfg.stages, cfg.rules, cfg.server.model, cfg.seed, hard)
    if dry_run:
        rows = stages.estimate((folder or Path("raw")) / "raw")
        rows.append(("in all", *(sum(row[k] for row in rows) for k in (1, 2, 3))))
        say(
            table(
                ["stage", "questions at most", "tokens of them", "tokens of replies"],
                [[*map(str, row)] for row in rows],
            )
        )
        say("nothing is asked, nothing is written")
        return None
    if not cfg.server.base_url or not cfg.server.model:
        raise ConfigError(
            "server.base_url and server.model must name a chat server and its model, such as base_url: "
            "http://127.0.0.1:8000/v1 (or generator: template, which needs none)"
        )
    server = ChatServer(
        cfg.server.base_url, cfg.server.model, key_from(cfg.server.api_key_env), cfg.server.timeout, cfg.server.tries
    )
    made = stages.run(folder / "raw", server, cfg.server, cfg.min_per_class, notice)
    for stage, asked in made.asked.items():
        if asked.failed:
            notice(
                f"{stage}: {len(asked.failed)} questions got no reply (last: {asked.failed[-1]}): run again to ask them"
            )
        if asked.left:
            notice(f"{stage}: {asked.left} questions were not asked, the budget is spent")
    return made


def _parts(cfg: Config, lexicon: Lexicon, made: Made, sets: Sets) -> dict[str, LabelledCaptions]:
    """All captions by part, in the order of the training list."""
    parts = {"captions": made.captions}
    if cfg.generator == "openai" or cfg.templates.single:
        singles = [made.single] if cfg.generator == "openai" else []
        parts["singles"] = joined([*singles, *([single_sentences(lexicon)] if cfg.templates.single else [])])
    if cfg.templates.pairs:
        parts["pairs"] = pair_sentences(lexicon)
    if cfg.templates.sets:
        parts["whole_sets"] = set_sentences(lexicon, sets)
    if cfg.templates.subsets:
        parts["subsets"] = subset_sentences(lexicon, sets, cfg.seed)
    return {**parts, "hard": made.hard}


def _report(cfg: Config, lexicon: Lexicon, made: Made, everything: LabelledCaptions) -> dict[str, Any]:
    counts = joined([made.captions, *([made.single, made.hard] if cfg.generator == "openai" else [])]).counts()
    names = lexicon.classnames
    return {
        "config": to_values(cfg),
        "captions": {part: len(getattr(made, part)) for part in PARTS}
        | {"all": len(everything), "sets": len(made.sets)},
        "requests": made.budget.requests,
        "tokens": made.budget.tokens,
        "asked": {
            stage: {"asked_now": own.done, "failed": len(own.failed), "over_budget": own.left}
            for stage, own in made.asked.items()
        },
        "dropped": {part: dict(own) for part, own in made.dropped.items()},
        "captions_per_class": dict(zip(names, counts.tolist(), strict=True)),
        "classes_below_min_per_class": [
            name for name, count in zip(names, counts, strict=True) if count < _wanted(cfg, len(names))
        ],
    }


def _wanted(cfg: Config, classes: int) -> int:
    """Captions that each class has to be in: fewer where `count` leaves no room for `min_per_class`."""
    return (
        min(cfg.min_per_class, cfg.count // classes) if cfg.count and cfg.generator == "template" else cfg.min_per_class
    )


def _report_table(report: dict[str, Any]) -> str:
    rows = [[part, str(count)] for part, count in report["captions"].items()]
    dropped = [[part, why, str(n)] for part, own in report["dropped"].items() for why, n in sorted(own.items())]
    counts = report["captions_per_class"]
    least = sorted(counts, key=lambda name: counts[name])
    shown = ", ".join(f"{name} {counts[name]}" for name in least[:3])
    lines = [table(["part", "lines"], rows), ""]
    if dropped:
        lines += [table(["part", "dropped because", "captions"], dropped), ""]
    if report["requests"]:
        lines += [f"replies: {report['requests']}, tokens: {report['tokens']}"]
    return "\n".join([*lines, f"captions per class: {counts[least[-1]]} at most ({least[-1]}), at least {shown}"])


def _write(
    folder: Path, lexicon: Lexicon, files: Mapping[str, LabelledCaptions], sets: Sets, report: dict[str, Any]
) -> None:
    """The report is written last."""
    names = lexicon.classnames
    lines = (to_json({"names": [names[label] for label in own]}) for own in sets)
    with replacing(folder / "sets.jsonl") as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for part, captions in files.items():
        write_captions(folder / f"{part}.jsonl", captions)
    with replacing(folder / "report.json") as temporary:
        temporary.write_text(f"{to_json(report, indent=1)}\n", encoding="utf-8")
