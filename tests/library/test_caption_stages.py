"""Captions of a chat model in stages: what is asked, stored, taken up after a kill, and made of it. Needs no Jittor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jclip.cli import main
from jclip.data.caption_stages import StageConfig, Stages
from jclip.data.chat_server import ChatServer, NoReply, Reply
from jclip.data.labelled_captions import read_captions
from jclip.data.lexicons import load_lexicon
from jclip.data.nouns import Labeller
from jclip.data.raw_replies import Budget, Job, RawReplies, ask_all, stored_replies
from jclip.data.reply_parsing import Rules
from jclip.errors import ConfigError, DataError
from tests.loopback import Loopback, model_of_captions, said

ROOT = Path(__file__).parent.parent.parent
NAMES = ("dog", "cat", "table", "chair", "lamp", "hot dog")
KEY = "sk-very-secret-2"
FILES = ("sets", "captions", "single", "hard", "all")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("CHAT_KEY", KEY)


@pytest.fixture
def config(tmp_path):
    """A YAML of eight compositions of four names, one question per group, two rounds of single ones."""
    path = tmp_path / "made.yaml"
    path.write_text(
        f"classes: {','.join(NAMES)}\ngenerator: openai\nmin_per_class: 1\nhard: [lamp]\ntemplates: {{single: false}}\n"
        "stages: {calls: 8, names_per_call: 4, calls_per_group: 1, single_rounds: 2, top_up_rounds: 0}\n"
        "rules: {max_share: 1.0}\n"
        "server: {model: m, api_key_env: CHAT_KEY, tries: 1, concurrency: 1, base_url: 'http://127.0.0.1:9/v1'}\n",
        encoding="utf-8",
    )
    return path


def generate(config, out, url: str = "", *more: str) -> int:
    to = [f"server.base_url={url}"] if url else []
    return main(["captions", "generate", str(config), *to, *more, "--out", str(out)])


def contents(folder: Path) -> dict[str, str]:
    return {name: (folder / f"{name}.jsonl").read_text(encoding="utf-8") for name in FILES}


def test_from_names_to_captions(config, tmp_path, capsys):
    out = tmp_path / "out"
    with Loopback(model_of_captions) as loopback:
        assert generate(config, out, loopback.url) == 0
        asked = len(loopback.requests)
        assert generate(config, tmp_path / "again", loopback.url, "server.concurrency=5") == 0
        assert generate(config, out, loopback.url) == 0
        assert len(loopback.requests) == 2 * asked, "what is stored is not asked again"
    assert contents(out) == contents(tmp_path / "again"), "the same captions whatever the order of the replies"
    first = Counter((r["messages"][0]["content"], r["seed"]) for r in loopback.requests[:asked])
    assert max(first.values()) == 1 and sum(prompt.startswith("Here are") for prompt, _ in first) == 8
    captions = read_captions(out / "captions.jsonl", NAMES)
    assert np.array_equal(Labeller(load_lexicon(NAMES)).targets(captions.texts), captions.targets)
    assert all(captions.texts[k].count("floor") == 0 for k in range(len(captions))), "the judge says no to these"
    assert {*captions.sources} == {"llm"} and all(m["asked"] and m["job"] for m in captions.meta)
    sets = [json.loads(line)["names"] for line in (out / "sets.jsonl").read_text().splitlines()]
    assert len(sets) == 16 and {len(names) for names in sets} == {2, 3}
    hard = read_captions(out / "hard.jsonl", NAMES)
    assert (hard.targets[:, 4] == 1).all() and (hard.targets[:, :4] != 0).all(), "outside of the list nothing is absent"
    single = read_captions(out / "single.jsonl", NAMES)
    assert single.counts().min() == 3
    everything = (out / "all.jsonl").read_text(encoding="utf-8")
    assert everything == "".join(contents(out)[part] for part in ("captions", "single", "hard"))
    report = json.loads((out / "report.json").read_text())
    assert report["requests"] == asked and report["tokens"] > 20 * asked
    assert report["dropped"]["captions"]["letters of another script"] == len({*map(tuple, map(sorted, sets))})
    assert report["dropped"]["captions"]["rejected by the judge"] > 0
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    printed = capsys.readouterr()
    assert not any(KEY.encode() in data for data in written) and KEY not in printed.out + printed.err


def test_every_cut_of_the_last_reply_is_taken_up(config, tmp_path):
    out = tmp_path / "out"
    with Loopback(model_of_captions) as loopback:
        generate(config, out, loopback.url)
        asked, expected = len(loopback.requests), contents(out)
        raw = out / "raw" / "single.jsonl"
        whole = raw.read_bytes()
        last = whole.rstrip(b"\n").rfind(b"\n") + 1
        key = json.loads(whole[last:])["key"]
        for end in range(last, len(whole) + 1):
            raw.write_bytes(whole[:end])
            with RawReplies(raw) as store:
                assert (key in store.replies) == (end >= len(whole) - 1) and len(store.replies) >= 11
            assert raw.read_bytes() == (whole if end >= len(whole) - 1 else whole[:last])
        for end in (last, last + 1, len(whole) - 2, len(whole) - 1):
            raw.write_bytes(whole[:end])
            generate(config, out, loopback.url)
            asked += end < len(whole) - 1
            assert len(loopback.requests) == asked and contents(out) == expected
            assert len(raw.read_bytes().splitlines()) == 12


@pytest.mark.parametrize("times", [3, 30])
def test_killed_in_the_middle_it_asks_nothing_twice(config, tmp_path, times):
    """SIGKILL while question number `times` is under way: only that one has no reply yet."""
    children = []

    def answer(prompt, number):
        if number == times:
            children[0].kill()
        return model_of_captions(prompt)

    with Loopback(answer) as loopback:
        command = [
            "captions",
            "generate",
            str(config),
            f"server.base_url={loopback.url}",
            "--out",
            str(tmp_path / "out"),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        children.append(
            subprocess.Popen(
                [sys.executable, "-m", "jclip.cli", *command], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
            )
        )
        assert children[0].wait(300) == -signal.SIGKILL
        stored = {
            json.loads(line)["prompt"]
            for file in (tmp_path / "out" / "raw").iterdir()
            for line in file.read_text().splitlines()
        }
        assert len(loopback.requests) == times + 1
        assert generate(config, tmp_path / "out", loopback.url) == 0
        asked = Counter((r["messages"][0]["content"], r["seed"]) for r in loopback.requests)
        twice = [question for question, count in asked.items() if count > 1]
        assert len(twice) == 1 and twice[0] == (loopback.prompts[times], loopback.requests[times]["seed"])
        assert stored >= set(loopback.prompts[:times])
        assert generate(config, tmp_path / "whole", loopback.url) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_refusals_and_nonsense_are_replies_of_which_nothing_is_made(config, tmp_path):
    def answer(prompt, number):
        if "single" in prompt or prompt.startswith("Write"):
            return said(
                ["I'm sorry, but I can't help with that.", "桌子和椅子", "1. A dog\n2. ", "1. The dog is here now."][
                    number % 4
                ]
            )
        return model_of_captions(prompt)

    with Loopback(answer) as loopback:
        assert generate(config, tmp_path / "out", loopback.url) == 0
    texts = {text for part in ("captions", "single", "hard") for text in _texts(tmp_path / "out" / f"{part}.jsonl")}
    assert texts == {"The dog is here now."}


def _texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_failed_questions_are_asked_in_the_next_run(config, tmp_path, capsys):
    with Loopback(lambda prompt, number: (500, {}, b"") if number % 4 == 1 else model_of_captions(prompt)) as loopback:
        assert generate(config, tmp_path / "out", loopback.url) == 0
    assert (
        "questions got no reply (last: status 500: Internal Server Error (1 tries)): run again"
        in capsys.readouterr().err
    )
    with Loopback(model_of_captions) as loopback:
        assert generate(config, tmp_path / "out", loopback.url) == 0
        assert generate(config, tmp_path / "whole", loopback.url) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_many_failures_in_a_row_stop_the_run(config, tmp_path, capsys):
    with Loopback(lambda prompt, number: (503, {}, b"overloaded")) as loopback:
        assert generate(config, tmp_path / "out", loopback.url, "stages.calls=60") == 2
        assert len(loopback.requests) == 21
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        "jclip captions: the chat server gave no reply 21 times in a row (status 503: overloaded (1 tries))"
    )
    with Loopback(lambda prompt, number: (401, {}, b"who are you?")) as loopback:
        assert generate(config, tmp_path / "out", loopback.url) == 2
        assert len(loopback.requests) == 1
    assert f"jclip captions: {loopback.url} answers with status 401: who are you?" in capsys.readouterr().err


def test_budgets(config, tmp_path, capsys):
    out = tmp_path / "out"
    with Loopback(model_of_captions) as loopback:
        assert generate(config, out, loopback.url, "server.max_requests=5") == 0
        assert len(loopback.requests) == 5
        assert "compositions: 3 questions were not asked, the budget is spent" in capsys.readouterr().err
        assert generate(config, out, loopback.url, "server.max_requests=7", "server.concurrency=4") == 0
        assert len(loopback.requests) == 7, "earlier runs count"
        spent = json.loads((out / "report.json").read_text())["tokens"]
        assert generate(config, out, loopback.url, f"server.max_tokens={spent + 1}") == 0
        assert len(loopback.requests) == 8
        assert generate(config, out, loopback.url) == 0
        assert generate(config, tmp_path / "whole", loopback.url) == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_a_dry_run_asks_and_writes_nothing(config, tmp_path, capsys):
    with Loopback(model_of_captions) as loopback:
        assert generate(config, tmp_path / "out", loopback.url, "--dry-run") == 0
        assert generate(config, tmp_path / "out", loopback.url, "dry_run=true") == 0
        assert loopback.requests == []
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert not (tmp_path / "out").exists()
    counted = {
        row[0]: int(row[1]) for row in rows if row and row[0] in ("compositions", "captions", "single", "hard", "judge")
    }
    assert counted == {"compositions": 8, "captions": 40, "single": 12, "hard": 40, "judge": 40 * 5 + 12 * 10 + 40 * 4}


def test_classes_with_few_captions_are_asked_for_again(config, tmp_path):
    with Loopback(model_of_captions) as loopback:
        generate(config, tmp_path / "out", loopback.url, "min_per_class=500", "stages.top_up_rounds=3")
    single = [prompt for prompt in loopback.prompts if prompt.startswith("Write 10")]
    assert len(single) == (2 + 3) * 6 and {*Counter(single).values()} == {5}


def test_hard_classes_are_asked_for_as_often_as_captions_of_them_may_stay():
    lexicon = load_lexicon(NAMES)
    stages = Stages(lexicon, StageConfig(hard_sentences=4), Rules(max_per_set=6), "m", 0, hard=[3, 4])
    sets = [(0, 3), (1, 3), (2, 3), (0, 3), (3, 4), (0, 1), (2, 3, 4), (0, 4)]
    jobs = stages.hard_jobs(sets)
    assert [(job.asked, job.number) for job in jobs] == [((3,), 0), ((3,), 1), ((3, 4), 0), ((3, 4), 1), ((4,), 0)]
    assert Stages(lexicon, StageConfig(hard_sentences=0), Rules(), "m", 0, hard=[3]).hard_jobs(sets) == []


def test_questions_are_the_same_whatever_the_order_of_the_classes():
    def prompts(names, count):
        jobs = Stages(load_lexicon(names), StageConfig(calls=count), Rules(), "m", 3).composition_jobs()
        return [job.prompt for job in jobs]

    assert prompts(NAMES, 9) == prompts(NAMES[::-1], 9) == prompts(NAMES, 12)[:9]
    assert len({*prompts(NAMES, 9)}) > 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["server.base_url="], "server.base_url and server.model must name a chat server"),
        (["server.api_key_env=NO_SUCH_KEY"], "the environment variable NO_SUCH_KEY must hold the chat server's key"),
        (["server.concurrency=0"], "server.concurrency must be in [1, 64], got 0"),
        (["stages.top_p=0.0"], "stages.top_p must be in (0, 1], got 0.0"),
        (["hard=[lamb]"], "unknown class in hard 'lamb', did you mean 'lamp'?"),
        (["sever.model=x"], "unknown key sever, did you mean 'server'?"),
        (["generator=gpt"], "generator must be one of template, openai, got 'gpt'"),
        (["lexicon=x.yaml"], "a lexicon must be compat, extended or a YAML file, got 'x.yaml'"),
    ],
)
def test_wrong_settings_are_one_line(config, tmp_path, capsys, more, message):
    assert generate(config, tmp_path / "out", "", *more) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_one_process_writes_a_file_of_replies(tmp_path):
    with RawReplies(tmp_path / "raw.jsonl"), pytest.raises(ConfigError, match="is written by another process"):
        RawReplies(tmp_path / "raw.jsonl")
    assert stored_replies(tmp_path / "absent.jsonl") == {}


def test_a_damaged_line_in_the_middle_is_asked_again(tmp_path):
    jobs = [Job("single", "m", f"question {k}", 0, 0.5) for k in range(3)]
    with RawReplies(tmp_path / "raw.jsonl") as store:
        for job in jobs:
            store.add(job, Reply(f"reply to {job.prompt} 猫\u2028x", {"total_tokens": 5}))
    lines = (tmp_path / "raw.jsonl").read_bytes().split(b"\n")
    (tmp_path / "raw.jsonl").write_bytes(b"\n".join([lines[0], lines[1][:30], *lines[2:]]))
    found = stored_replies(tmp_path / "raw.jsonl")
    assert {*found} == {jobs[0].key, jobs[2].key} and found[jobs[0].key].text == "reply to question 0 猫\u2028x"


def test_keys_distinguish_jobs():
    own = Job("single", "m", "x", 0, 0.5)
    others = [
        ("hard", "m", "x", 0, 0.5),
        ("single", "n", "x", 0, 0.5),
        ("single", "m", "y", 0, 0.5),
        ("single", "m", "x", 1, 0.5),
    ]
    keys = {Job(*other).key for other in [*others, ("single", "m", "x", 0, 0.6)]}
    assert len(keys) == 5 and own.key not in keys and own.key == Job("single", "m", "x", 0, 0.5, (3,)).key
    assert own.key == "" or len(own.key) == 40


def test_a_failure_between_replies_does_not_count_as_in_a_row(tmp_path):
    class Server(ChatServer):
        def ask(self, prompt, **settings):
            if int(prompt) % 3:
                raise NoReply("busy")
            return Reply(prompt, {})

    jobs = [Job("single", "m", str(k), 0, 0.5) for k in range(90)]
    with RawReplies(tmp_path / "raw.jsonl") as store:
        found = ask_all(jobs, store, Server("http://x", "m"), Budget(), concurrency=1, top_p=1.0, reply_tokens=1)
        assert (found.done, len(found.failed), found.left) == (30, 60, 0) and len(store.replies) == 30
        with pytest.raises(DataError, match="21 times in a row"):
            ask_all(
                [Job("single", "m", str(3 * k + 1), 0, 0.5) for k in range(30)], store, Server("http://x", "m"), Budget(),
                concurrency=1, top_p=1.0, reply_tokens=1,
            )  # fmt: skip
