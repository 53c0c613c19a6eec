"""NCCL's library: where it is looked for, how its calls end, what is said; a stand-in answers, and NCCL itself where it is."""

from __future__ import annotations

import subprocess

import pytest

from jclip.kernels import device_sums
from jclip.machine import gpu, nccl, toolchain
from jclip.machine.nccl import Nccl, NcclFailed

ANSWERS = """
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef struct { char bytes[128]; } Id;
static char called[200] = "";
const char* calls() { return called; }
int ncclGetVersion(int* number) { *number = atoi(getenv("NUMBER")); return 0; }
int ncclGetUniqueId(Id* id) { memset(id, 0, sizeof *id); id->bytes[1] = -1; id->bytes[127] = 7; return 0; }
const char* ncclGetErrorString(int status) { return status == 1 ? "unhandled cuda error" : "another"; }
const char* ncclGetLastError(void* comm) { return "Cuda failure\\n 'no driver'"; }
int ncclCommInitRank(void** comm, int size, Id id, int rank) {
    if (getenv("NOBODY")) sleep(1);
    *comm = called;
    return size == 3 && rank == 2 && id.bytes[0] == 0 && id.bytes[1] == -1 && id.bytes[127] == 7 ? 0 : 1;
}
int ncclCommDestroy(void* comm) { strcat(called, comm == called ? "destroyed " : "?"); return 0; }
int ncclCommAbort(void* comm) { strcat(called, comm == called ? "aborted " : "?"); return 0; }
int ncclGroupStart() { return 0; }
int ncclGroupEnd() { return 0; }
int ncclAllReduce() { return 0; }
"""


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A folder with the stand-in, named by the user."""
    source, folder = tmp_path / "answers.c", tmp_path / "of the user"
    source.write_text(ANSWERS)
    folder.mkdir()
    compiler = toolchain.find_compiler()
    command = [compiler, "-x", "c", "-shared", "-fPIC", source, "-o", folder / "libnccl.so.2"]
    subprocess.run(command, check=True)
    monkeypatch.setenv("nccl_lib_path", str(folder))
    monkeypatch.setenv("NUMBER", "23203")
    return folder


def test_what_a_rank_says_to_the_library_and_how_it_leaves(library, monkeypatch):
    versions = {"2804": "2.8.4", "20903": "2.9.3", "23203": "2.32.3"}
    for number, version in versions.items():
        monkeypatch.setenv("NUMBER", number)
        assert Nccl().version == version
    loaded = Nccl()
    loaded.library.calls.restype = nccl.ctypes.c_char_p
    unique = loaded.new_id()
    assert unique == "00ff" + "00" * 125 + "07"
    for leave, said in (("leave", b"destroyed "), ("abort", b"destroyed aborted ")):
        joined = loaded.join(unique, 2, 3)
        addresses = joined.addresses()
        assert len({*addresses.values()}) == len(addresses) == 5 and all(addresses.values())
        joined.check()
        getattr(joined, leave)()
        joined.leave()  # once is enough
        assert loaded.library.calls() == said
    joined = loaded.join(unique, 2, 3)
    joined.status.value = 5
    with pytest.raises(NcclFailed, match="NCCL 2.32.3: ncclAllReduce failed: another, Cuda failure 'no driver'"):
        joined.check()
    joined.leave()
    with pytest.raises(NcclFailed, match="ncclCommInitRank failed: unhandled cuda error, Cuda failure 'no driver'"):
        loaded.join(unique, 1, 3)
    monkeypatch.setenv("NOBODY", "comes")
    monkeypatch.setattr(nccl, "SECONDS_TO_JOIN", 0.05)
    with pytest.raises(NcclFailed, match="no connection between the ranks after 0 s"):
        loaded.join(unique, 2, 3)


def test_it_is_looked_for_where_the_user_says_then_beside_cuda(library, monkeypatch, tmp_path):
    assert nccl.find_library() == library / "libnccl.so.2"
    (library / "libnccl.so.2").write_text("no library")
    with pytest.raises(NcclFailed, match=r"NCCL's library .*/of the user/libnccl.so.2 can't be used: "):
        Nccl()
    monkeypatch.setenv("nccl_lib_path", str(tmp_path))
    assert nccl.find_library() is None
    monkeypatch.delenv("nccl_lib_path")
    of_pip, nvcc = tmp_path / "site" / "nvidia" / "nccl" / "lib", tmp_path / "cuda" / "bin" / "nvcc"
    of_pip.mkdir(parents=True)
    kit = gpu.Toolkit(nvcc, (12, 4), "9.1.0", (), (tmp_path, of_pip), ())
    monkeypatch.setattr(gpu, "find_cuda", lambda: gpu.Cuda(toolkit=kit))
    monkeypatch.setattr(nccl.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(NcclFailed, match="NCCL is not installed: pip install nvidia-nccl-cu12"):
        Nccl()
    for name in ("libnccl.so.2", "libnccl_device.bc", "libnccl-net.so"):
        (of_pip / name).write_text("")
    assert nccl.find_library() == of_pip / "libnccl.so.2"


class Driver:
    """Answers as libcuda does."""

    def __init__(self, *states):
        self.states = [*states]

    def cuStreamQuery(self, stream):
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def cuInit(self, _):
        return self.states[0]

    def cuDeviceGet(self, device, index):
        return index

    def cuDeviceGetPCIBusId(self, place, size, device):
        place.value = b"0000:41:00.0"


def test_a_sum_that_does_not_end_and_which_card_it_is_on(monkeypatch):
    monkeypatch.setattr(nccl.ctypes, "CDLL", lambda name: Driver(600, 600, 0))
    nccl.wait_for_card()
    monkeypatch.setattr(nccl, "SECONDS_TO_SUM", 0.01)
    monkeypatch.setattr(nccl.ctypes, "CDLL", lambda name: Driver(600))
    with pytest.raises(NcclFailed, match="a sum over ranks was not there after 0 s"):
        nccl.wait_for_card()
    monkeypatch.setattr(nccl.ctypes, "CDLL", lambda name: Driver(700))
    with pytest.raises(NcclFailed, match="the driver returned error 700"):
        nccl.wait_for_card()
    assert nccl.card() == ""
    monkeypatch.setattr(nccl.ctypes, "CDLL", lambda name: Driver(0))
    assert nccl.card().endswith(" 0000:41:00.0") and len(nccl.card()) > 20


def test_what_keeps_ranks_from_joining():
    def rank(card="a 1", version="2.32.3", why=""):
        return {"card": card, "version": version, "why": why, "id": ""}

    obstacle = device_sums._obstacle
    assert obstacle([rank(), rank("a 2"), rank("b 1")]) == ""
    assert obstacle([rank(), rank("b 1"), rank()]) == "ranks 0 and 2 share one GPU, NCCL wants one for each"
    assert obstacle([rank(), rank("b 1", "2.19.3")]) == "rank 1 has NCCL 2.19.3, rank 0 has 2.32.3"
    assert obstacle([rank(), rank("a 2", why="no GPU")]) == "rank 1: no GPU"
    assert obstacle([rank(why="no GPU"), rank(why="no GPU")]) == "no GPU"


@pytest.mark.skipif(nccl.find_library() is None, reason="no NCCL on this machine")
def test_the_real_library_answers_as_it_is_asked():
    loaded = Nccl()
    assert loaded.version.startswith("2.") and loaded.new_id() != loaded.new_id() and len(loaded.new_id()) == 256
    with pytest.raises(NcclFailed, match="ncclCommInitRank failed: "):
        loaded.join(loaded.new_id(), 2, 2)  # there is no third of two
