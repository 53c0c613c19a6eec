"""Which rank a process is, from mpirun's variables, and what becomes of these; how a rank's end is watched. No MPI needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jclip.cli import main
from jclip.errors import ConfigError
from jclip.machine import open_mpi, rank_watch, ranks
from jclip.machine.ranks import Ranks
from jclip.train import several_ranks

ROOT = Path(__file__).parent.parent.parent
AS_RANK_1_OF_4 = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_RANK": "1", "PMIX_SERVER_TMPDIR": "/scratch/of-mpirun",
}  # fmt: skip


def told(code: str, **environment: str) -> dict:
    """What a process prints as JSON that mpirun would have started with these variables."""
    own = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "JCLIP_WORKERS", "CUDA_VISIBLE_DEVICES")}
    command = [sys.executable, "-c", f"import json, os\nfrom jclip.machine import ranks\n{code}"]
    done = subprocess.run(command, cwd=ROOT, env={**own, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_rank_knows_its_place_and_hands_nothing_of_it_on():
    code = """
here = ranks.here()
child = os.popen("env").read()
given = ranks.variables()
from jclip.data.loader import workers
print(json.dumps([here.rank, here.size, here.local_rank, here.local_size, here.several, here.first, "OMPI_COMM" in child,
    "PMIX" in child, given["PMIX_RANK"], ranks.folder(), os.environ["OMP_NUM_THREADS"], workers(),
    os.environ["CUDA_VISIBLE_DEVICES"]]))
"""
    *place, folder, threads, decoding, card = told(
        code, **AS_RANK_1_OF_4, JCLIP_WORKERS="7", CUDA_VISIBLE_DEVICES="3,5"
    )
    assert place == [1, 4, 1, 2, True, False, False, False, "1"]
    assert folder == "/scratch/of-mpirun" and decoding == 3 and card == "5"
    assert int(threads) == max(1, len(os.sched_getaffinity(0)) // 2)


def test_threads_that_the_user_set_stay_and_one_process_changes_nothing():
    code = "print(json.dumps([ranks.here().several, os.environ.get('OMP_NUM_THREADS'), len(ranks.variables())]))"
    assert told(code, **AS_RANK_1_OF_4, OMP_NUM_THREADS="3")[:2] == [True, "3"]
    of_cards = "print(json.dumps(os.environ.get('CUDA_VISIBLE_DEVICES')))"
    assert told(of_cards, **AS_RANK_1_OF_4, CUDA_VISIBLE_DEVICES="") == ""  # none is wanted
    assert told(code) == [False, None, 0]
    assert told(code, **{**AS_RANK_1_OF_4, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}) == [
        False,
        None,
        0,
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_are_all_rows_once_and_never_larger_than_those_of_more(size):
    for count in (0, 1, 2, 3, 4, 7, 8, 30):
        shares = [Ranks(rank, size).share(count) for rank in range(size)]
        rows = [row for share in shares for row in range(share.start, share.stop)]
        assert rows == list(range(count))
        lengths = [share.stop - share.start for share in shares]
        assert max(lengths) - min(lengths) <= 1
        more = [Ranks(rank, size).share(count + 1) for rank in range(size)]
        assert all(a <= b.stop - b.start for a, b in zip(lengths, more, strict=True))
        batches = [Ranks(rank, size).share_of_batches(count, 4) for rank in range(size)]
        assert [row for share in batches for row in range(share.start, share.stop)] == list(range(count))
        assert all(share.start % 4 == 0 or share.start == count for share in batches)


def test_a_process_may_compute_by_itself_for_a_while(monkeypatch):
    monkeypatch.setattr(ranks, "_now", Ranks(1, 2))
    with ranks.alone():
        assert not ranks.here().several and ranks.here().first
    assert ranks.here().several


def test_mpi_is_told_from_other_ones(tmp_path, monkeypatch):
    for name, said in (("ours", "mpicc: Open MPI 5.0.11 (Language: C)"), ("other", "gcc: error: unrecognized option")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mpicc").write_text(f"#!/bin/sh\necho '{said}'\n")
        (tmp_path / name / "mpicc").chmod(0o755)
    monkeypatch.setenv("mpicc_path", str(tmp_path / "ours" / "mpicc"))
    found = open_mpi.find_mpi()
    assert found.version == "5.0.11" and found.starter == tmp_path / "ours" / "mpirun"
    monkeypatch.setenv("mpicc_path", str(tmp_path / "other" / "mpicc"))
    assert open_mpi.find_mpi() is None
    monkeypatch.setattr(ranks, "_now", Ranks(0, 2))
    with pytest.raises(
        open_mpi.SetupError, match=r"2 processes, and Open MPI's compiler mpicc is missing .*jclip\[mpi\]"
    ):
        open_mpi.require_mpi()


def end_of_a_rank(tmp_path: Path, how: str) -> str:
    """What the watching process says when its rank ends in that way."""
    code = f"""
import os, signal, sys, time
from jclip.machine import rank_watch
line = rank_watch.watch_over("rank 3 of 5 on there", {str(tmp_path)!r})
time.sleep(0.3)
{how}
"""
    running = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    return running.communicate(timeout=300)[1]  # until the watching process has ended, too


@pytest.mark.parametrize(
    ("how", "speaks"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", True),
        ("os._exit(0)", True),
        ("os.write(line, rank_watch.DONE)", False),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", False),  # as mpirun ends the others
        ("rank_watch.fails_first(FOLDER); os.kill(os.getpid(), signal.SIGKILL)", False),  # another one has reported
    ],
    ids=["killed", "left", "done", "told", "second"],
)
def test_who_dies_without_a_word_is_named_once(how, speaks, tmp_path):
    said = end_of_a_rank(tmp_path, how.replace("FOLDER", repr(str(tmp_path))))
    wanted = "jclip: rank 3 of 5 on there died without a word (killed, crashed, or out of memory): all ranks end; "
    wanted += "the same command"
    assert said.startswith(wanted) if speaks else said == ""
    assert said.count("\n") == int(speaks)


def test_the_first_failure_of_a_host_is_one(tmp_path):
    assert rank_watch.fails_first(str(tmp_path)) and not rank_watch.fails_first(str(tmp_path))
    assert rank_watch.fails_first(str(tmp_path / "absent"))


def test_what_no_command_does_is_said_by_one_rank(monkeypatch, capsys):
    for rank, code, lines in ((0, 2, 1), (1, 0, 0)):
        monkeypatch.setattr(ranks, "_now", Ranks(rank, 2))
        assert main(["nonsense"]) == code and capsys.readouterr().err.count("\n") == lines


def test_ranks_compare_the_sources_of_operators_and_of_recipes(tmp_path):
    for name in ("lora.py", "own.yaml"):
        (tmp_path / name).write_text("x")
    known = several_ranks.versions(tmp_path)
    assert several_ranks.versions(tmp_path) == known
    (tmp_path / "own.yaml").write_text("y")  # no source: settings are compared by themselves
    assert several_ranks.versions(tmp_path) == known
    for name in ("lora.py", "sources/attention.h", "more.cuh"):
        before = several_ranks.versions(tmp_path)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("y")
        after = several_ranks.versions(tmp_path)
        assert {key for key in before if after[key] != before[key]} == {"sources of recipes"}
    assert several_ranks.versions(tmp_path / "absent")["sources of jclip"] == known["sources of jclip"]


def test_a_last_batch_leaves_no_rank_without_a_row(monkeypatch):
    monkeypatch.setattr(ranks, "_now", Ranks(0, 3))
    several_ranks.require_rows_for_all(12, 4)
    several_ranks.require_rows_for_all(11, 4)
    with pytest.raises(
        ConfigError, match=r"a row for each of 3 ranks where batch norms move, got 2 \(10 in batches of 4\)"
    ):
        several_ranks.require_rows_for_all(10, 4)
