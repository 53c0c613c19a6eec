"""Captions of a chat model in three stages: groups of classes, sentences about each, a judge. Imports no Jittor.

Replies are stored before they are parsed, and all that follows from them is a pure function of the stored replies: a run that
was stopped resumes where it was, and other rules need no new questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

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
        """Returns the questions about the hard classes of each distinct group that has some.

        Groups with the same hard classes ask the same, no more often than `max_per_set` leaves room for the sentences.
        """
        if not (count := self._config.hard_sentences):
            return []
        parts = [tuple(k for k in own if k in self._hard) for own in [*dict.fromkeys(sets)][: self._config.groups]]
        most = -(-self._rules.max_per_set // count)
        return [
            self._about("hard", part, count, k)
            for part, times in Counter(filter(None, parts)).items()
            for k in range(min(times, most))
        ]

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
            asking = _Asking(stores, server, limits, self._config, progress)
            return self._made(asking, min_per_class)

    def _made(self, asking: _Asking, min_per_class: int) -> Made:
        groups = (groups_of(text, self._labeller) for _, text in asking.replies(self.composition_jobs()))
        sets = [group for found in groups for group in found]
        classes, rounds = range(len(self._lexicon.classnames)), self._config.single_rounds
        candidates = {
            "captions": asking.candidates(self.caption_jobs(sets)),
            "single": asking.candidates(self.single_jobs(classes, range(rounds))),
            "hard": asking.candidates(self.hard_jobs(sets)),
        }
        rules = dict.fromkeys(candidates, self._rules)  # a class alone is a set of which many are wanted
        rules["single"] = replace(self._rules, max_per_set=max(self._rules.max_per_set, min_per_class))
        kept = {part: self._kept(asking, own, rules[part]) for part, own in candidates.items()}
        for more in range(rounds, rounds + self._config.top_up_rounds):
            short = _below(min_per_class, kept.values(), len(classes))
            if not (found := asking.candidates(self.single_jobs(short, range(more, more + 1)))):
                break
            candidates["single"] += found
            kept["single"] = self._kept(asking, candidates["single"], rules["single"])
        made = {part: self._captions(part, own) for part, own in kept.items()}
        hard = made["hard"].only(self._hard) if self._hard else made["hard"]
        dropped = {part: own.dropped for part, own in kept.items()}
        return Made(sets, made["captions"], made["single"], hard, dropped, asking.asked, asking.budget)

    def _kept(self, asking: _Asking, candidates: Sequence[Candidate], rules: Rules) -> Kept:
        """What passes the rules and the judge; a caption that the judge has not been asked about is dropped."""
        kept = filtered(candidates, self._labeller, rules)
        if not self._config.judge:
            return kept
        jobs = self.judge_jobs(candidate.text for candidate in kept.candidates)
        verdicts = {job.key: approves(text) for job, text in asking.replies(jobs)}
        result = Kept(dropped=kept.dropped)
        for job, candidate, labels in zip(jobs, kept.candidates, kept.labels, strict=True):
            if not verdicts.get(job.key):
                result.dropped["rejected by the judge" if job.key in verdicts else "not judged"] += 1
            else:
                result.candidates.append(candidate)
                result.labels.append(labels)
        return result

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


class _Asking:
    """Replies of all stages, stored ones and those that the server gives now; no server: stored ones alone."""

    def __init__(
        self,
        stores: dict[str, RawReplies],
        server: ChatServer | None,
        limits: ServerConfig,
        config: StageConfig,
        progress: Callable[[str], None],
    ):
        self._stores, self._server, self._limits, self._config = stores, server, limits, config
        self._progress = progress
        self.asked = {stage: Asked() for stage in STAGES}
        self.budget = Budget(limits.max_requests, limits.max_tokens)
        for store in stores.values():
            for reply in store.replies.values():
                self.budget.spend(reply)

    def replies(self, jobs: Sequence[Job]) -> list[tuple[Job, str]]:
        """Returns the jobs, of one stage, that have a reply, with it."""
        if not jobs:
            return []
        store = self._stores[jobs[0].stage]
        if self._server is not None:
            self._ask(jobs, store, self._server)
        return [(job, store.replies[job.key].text) for job in jobs if job.key in store.replies]

    def candidates(self, jobs: Sequence[Job]) -> list[Candidate]:
        """Returns the sentences of the replies."""
        return [
            Candidate(text, job.asked, job.key) for job, reply in self.replies(jobs) for text in sentences_of(reply)
        ]

    def _ask(self, jobs: Sequence[Job], store: RawReplies, server: ChatServer) -> None:
        stage, before = jobs[0].stage, self.asked[jobs[0].stage]
        self._progress(
            f"{stage}: {len(jobs)} questions, {sum(job.key in store.replies for job in jobs)} answered before"
        )
        now = ask_all(
            jobs,
            store,
            server,
            self.budget,
            concurrency=self._limits.concurrency,
            top_p=self._config.top_p,
            reply_tokens=self._config.reply_tokens,
        )
        self.asked[stage] = Asked(before.done + now.done, before.failed + now.failed, before.left + now.left)


def _below(least: int, kept: Iterable[Kept], classes: int) -> list[int]:
    """Classes that fewer than `least` captions name, all parts together."""
    counts: Counter[int] = Counter(label for own in kept for present, _ in own.labels for label in present)
    return [label for label in range(classes) if counts[label] < least]
