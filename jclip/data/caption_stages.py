"""Captions of a chat model in three stages: groups of classes, sentences about each, a judge. Imports no Jittor.

Replies are stored before they are parsed, and all that follows from them is a pure function of the stored replies: a run that
was stopped goes on where it was, and other rules need no new questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from jclip.data.chat_server import ChatServer
from jclip.data.labelled_captions import LabelledCaptions
from jclip.data.lexicons import Lexicon
from jclip.data.nouns import Labeller
from jclip.data.raw_replies import Asked, Budget, Job, RawReplies, ask_all, stored_replies
from jclip.data.reply_parsing import Candidate, Kept, Rules, approves, filtered, groups_of, list_of, sentences_of
from jclip.data.scene_captions import Draws

STAGES = ("compositions", "captions", "single", "hard", "judge")
_COMPOSITIONS = (
    "Here are names of things: {names}.\n"
    "Which of them surely appear together in one everyday scene? List up to 5 groups of at least two of these names, one "
    "group per line, numbered, names separated by commas, nothing else.\n"
    "Good example: 1. bed, lamp, book\n"
    "Bad example: 1. whale, toaster (never seen together)"
)
_CAPTIONS = (
    "Write {count} very simple, distinct and realistic sentences that each describe one photo with {names} in it. Every "
    "sentence must contain all of these words: {names}. Number the sentences, one per line, and write nothing else.\n"
    "Example for a lamp and a desk: 1. A lamp stands on a wooden desk."
)
_JUDGE = (
    "Is this caption a clear, concise and realistic description of a photo, with things that have to do with each other? "
    "Answer True or False, nothing else.\n"
    "Good example, True: A boy reads a newspaper on the stairs.\n"
    "Bad example, False: A ladder and the sea and a lamp that is happy.\n"
    "Caption: {caption}"
)


@dataclass(frozen=True)
class StageConfig:
    """How much is asked. The defaults are those of the published captions.

    calls: stage 1, each with `names_per_call` class names; groups: of classes, asked `calls_per_group` times for
    `sentences`; single_rounds: questions for `single_sentences` about one class; hard_sentences: about a group's hard classes;
    top_up_rounds: more of these for classes below `min_per_class`.
    """

    calls: int = 6000
    names_per_call: int = 10
    groups: int = 25_000
    calls_per_group: int = 4
    sentences: int = 5
    single_rounds: int = 5
    single_sentences: int = 10
    hard_sentences: int = 4
    top_up_rounds: int = 5
    judge: bool = True
    temperature: float = 0.3  # of groups and judge
    caption_temperature: float = 1.0
    top_p: float = 0.95
    reply_tokens: int = 400


@dataclass(frozen=True)
class ServerConfig:
    """The server, and what it may be asked: max_requests and max_tokens for all runs of a folder together, 0: no limit."""

    base_url: str = ""
    model: str = ""
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 60.0
    tries: int = 6
    max_requests: int = 0
    max_tokens: int = 0


@dataclass
class Made:
    """What the stages gave. sets: as labels, repeats kept; asked: what became of each stage's questions."""

    sets: list[tuple[int, ...]]
    captions: LabelledCaptions
    single: LabelledCaptions
    hard: LabelledCaptions
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    asked: dict[str, Asked] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)


Part = Literal["captions", "single", "hard"]


class Stages:
    """The stages of one folder. `server` None asks nothing and takes what is stored."""

    def __init__(
        self, lexicon: Lexicon, config: StageConfig, rules: Rules, model: str, seed: int, hard: Sequence[int] = ()
    ):
        self._lexicon, self._config, self._rules = lexicon, config, rules
        self._model, self._seed, self._hard = model, seed, frozenset(hard)
        self._labeller = Labeller(lexicon)

    def composition_jobs(self) -> list[Job]:
        """Returns the questions of stage 1: names drawn from the sorted classes, the same on every machine."""
        names, draws, config = sorted(self._lexicon.classnames), Draws(self._seed), self._config
        drawn = [draws.sample(names, min(config.names_per_call, len(names))) for _ in range(config.calls)]
        return [self._job("compositions", _COMPOSITIONS.format(names=", ".join(own)), k) for k, own in enumerate(drawn)]

    def caption_jobs(self, sets: Sequence[tuple[int, ...]]) -> list[Job]:
        """Returns the questions about each distinct group, the first `groups` of them."""
        groups = [*dict.fromkeys(sets)][: self._config.groups]
        return [
            self._about("captions", group, self._config.sentences, k)
            for group in groups
            for k in range(self._config.calls_per_group)
        ]

    def single_jobs(self, labels: Iterable[int], rounds: range) -> list[Job]:
        """Returns the questions about single classes in these rounds."""
        count = self._config.single_sentences
        return [self._about("single", (label,), count, k) for k in rounds for label in labels]

    def hard_jobs(self, sets: Sequence[tuple[int, ...]]) -> list[Job]:
        """Returns the questions about the hard classes of each distinct group that has some."""
        parts = [tuple(k for k in own if k in self._hard) for own in [*dict.fromkeys(sets)][: self._config.groups]]
        return [self._about("hard", part, self._config.hard_sentences, 0) for part in dict.fromkeys(parts) if part]

    def judge_jobs(self, texts: Iterable[str]) -> list[Job]:
        """Returns the questions about captions."""
        return [self._job("judge", _JUDGE.format(caption=text), 0) for text in texts]

    def _about(self, stage: str, labels: tuple[int, ...], count: int, number: int) -> Job:
        prompt = _CAPTIONS.format(count=count, names=list_of([self._lexicon.classnames[label] for label in labels]))
        return self._job(stage, prompt, number, labels, self._config.caption_temperature)

    def _job(self, stage: str, prompt: str, number: int, asked: tuple[int, ...] = (), heat: float | None = None) -> Job:
        return Job(stage, self._model, prompt, number, self._config.temperature if heat is None else heat, asked)

    def run(
        self,
        folder: Path,
        server: ChatServer | None,
        limits: ServerConfig,
        min_per_class: int,
        progress: Callable[[str], None] = lambda line: None,
    ) -> Made:
        """Asks what is not stored yet below `folder`, and returns what all stored replies give. Raises as `ask_all`."""
        with ExitStack() as stack:
            stores = {stage: stack.enter_context(RawReplies(folder / f"{stage}.jsonl")) for stage in STAGES}
            budget = Budget(limits.max_requests, limits.max_tokens)
            for store in stores.values():
                for reply in store.replies.values():
                    budget.spend(reply)
            asked: dict[str, Asked] = {stage: Asked() for stage in STAGES}

            def answered(jobs: Sequence[Job]) -> Sequence[Job]:
                if jobs and server is not None:
                    stage = jobs[0].stage
                    progress(f"{stage}: {len(jobs)} questions")
                    more = ask_all(
                        jobs, stores[stage], server, budget, concurrency=limits.concurrency, top_p=self._config.top_p,
                        reply_tokens=self._config.reply_tokens,
                    )  # fmt: skip
                    had = asked[stage]
                    asked[stage] = Asked(had.done + more.done, had.failed + more.failed, had.left + more.left)
                return [job for job in jobs if job.key in stores[jobs[0].stage].replies]

            def said(jobs: Sequence[Job]) -> list[Candidate]:
                return [
                    Candidate(text, job.asked, job.key)
                    for job in answered(jobs)
                    for text in sentences_of(stores[job.stage].replies[job.key].text)
                ]

            made = self._made(answered, said, stores, min_per_class)
            made.asked, made.budget = asked, budget
            return made

    def _made(
        self,
        answered: Callable[[Sequence[Job]], Sequence[Job]],
        said: Callable[[Sequence[Job]], list[Candidate]],
        stores: dict[str, RawReplies],
        min_per_class: int,
    ) -> Made:
        groups = stores["compositions"].replies
        sets = [g for job in answered(self.composition_jobs()) for g in groups_of(groups[job.key].text, self._labeller)]
        classes, config = range(len(self._lexicon.classnames)), self._config
        candidates = {
            "captions": said(self.caption_jobs(sets)),
            "single": said(self.single_jobs(classes, range(config.single_rounds))),
            "hard": said(self.hard_jobs(sets)),
        }
        judge = self._judge(answered, stores) if config.judge else (lambda kept: kept)
        kept = {part: judge(filtered(own, self._labeller, self._rules)) for part, own in candidates.items()}
        for number in range(config.top_up_rounds):
            short = _below(min_per_class, kept.values(), len(classes))
            more = said(
                self.single_jobs(short, range(config.single_rounds + number, config.single_rounds + number + 1))
            )
            if not more:
                break
            candidates["single"] += more
            kept["single"] = judge(filtered(candidates["single"], self._labeller, self._rules))
        made = {part: self._captions(part, own) for part, own in kept.items()}
        hard = made["hard"].only(self._hard) if self._hard else made["hard"]
        return Made(sets, made["captions"], made["single"], hard, {part: own.dropped for part, own in kept.items()})

    def _judge(
        self, answered: Callable[[Sequence[Job]], Sequence[Job]], stores: dict[str, RawReplies]
    ) -> Callable[[Kept], Kept]:
        """Keeps what the judge approves; a caption that it was not asked about yet is dropped as not judged."""

        def judged(kept: Kept) -> Kept:
            jobs = self.judge_jobs(candidate.text for candidate in kept.candidates)
            replies = stores["judge"].replies
            done = {job.key for job in answered(jobs)}
            result = Kept(dropped=Counter(kept.dropped))
            for job, candidate, labels in zip(jobs, kept.candidates, kept.labels, strict=True):
                if job.key not in done:
                    result.dropped["not judged"] += 1
                elif not approves(replies[job.key].text):
                    result.dropped["rejected by the judge"] += 1
                else:
                    result.candidates.append(candidate)
                    result.labels.append(labels)
            return result

        return judged

    def _captions(self, part: str, kept: Kept) -> LabelledCaptions:
        names = self._lexicon.classnames
        targets = np.zeros((len(kept.candidates), len(names)), np.int8)
        for row, (present, unknown) in zip(targets, kept.labels, strict=True):
            row[[*unknown]], row[[*present]] = -1, 1
        count = len(kept.candidates)
        return LabelledCaptions(
            names,
            tuple(candidate.text for candidate in kept.candidates),
            targets,
            np.ones(count, np.float32),
            tuple(f"{part}-{number}" for number in range(1, count + 1)),
            (("llm" if part == "captions" else part),) * count,
            tuple({"asked": [names[k] for k in c.asked], "job": c.key} for c in kept.candidates),
        )

    def estimate(self, folder: Path) -> list[tuple[str, int, int, int]]:
        """Returns (stage, questions, tokens of them, tokens of the replies) as far as they can be known; asks nothing.

        Groups that are not known yet are taken as the most that stage 1 may give; a token as four letters.
        """
        config, stored = self._config, stored_replies(folder / "compositions.jsonl")
        compositions = self.composition_jobs()
        known = [stored[job.key] for job in compositions if job.key in stored]
        sets = [group for reply in known for group in groups_of(reply.text, self._labeller)]
        unknown = 0 if len(known) == len(compositions) else 5 * (len(compositions) - len(known))
        groups = min(config.groups, len({*sets}) + unknown)
        guess = (0, 1) if len(self._lexicon.classnames) > 1 else (0,)
        about = self._about("captions", guess, config.sentences, 0)
        single = self.single_jobs(range(len(self._lexicon.classnames)), range(config.single_rounds))
        calls = {
            "captions": groups * config.calls_per_group,
            "single": len(single),
            "hard": groups if self._hard else 0,
        }
        written = {"captions": config.sentences, "single": config.single_sentences, "hard": config.hard_sentences}
        sentences = sum(calls[part] * written[part] for part in calls)
        size = len(about.prompt) // 4
        rows = [
            ("compositions", len(compositions), sum(len(j.prompt) for j in compositions) // 4, 60 * len(compositions))
        ]
        rows += [(part, calls[part], calls[part] * size, calls[part] * written[part] * 15) for part in calls]
        if config.judge:
            rows.append(("judge", sentences, sentences * (len(_JUDGE) // 4 + 15), sentences * 2))
        return rows


def _below(least: int, kept: Iterable[Kept], classes: int) -> list[int]:
    """Classes that fewer than `least` captions name, all parts together."""
    counts: Counter[int] = Counter(label for own in kept for present, _ in own.labels for label in present)
    return [label for label in range(classes) if counts[label] < least]
