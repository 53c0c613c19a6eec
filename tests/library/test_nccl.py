"""NCCL's library: where it is looked for, how its calls end, what is said; a stand-in answers, and NCCL itself where it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jclip.errors import ConfigError
from jclip.kernels import device_sums
from jclip.machine import gpu, nccl, rank_watch, toolchain
from jclip.machine.nccl import Nccl, NcclFailed

ROOT = Path(__file__).parent.parent.parent
ANSWERS = """
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <map>
#include <string>
#include "nccl_sum.h"
struct Id { char bytes[128]; };
static char called[200] = "";
static bool is(const char* mode) { return getenv("MODE") && !strcmp(getenv("MODE"), mode); }
extern "C" {
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
int ncclCommGetAsyncError(void* comm, int* status) { *status = is("broken") && comm == called ? 1 : 7; return 0; }
int ncclGroupStart() { return 0; }
int ncclGroupEnd() { if (is("waits")) pause(); return 0; }
int ncclAllReduce(const void* from, void* to, size_t count, int, int, void* comm, void*) {
    memcpy(to, from, 4 * count);
    return comm != called;
}
int cuEventCreate(void** event, unsigned flags) { *event = called; return flags != 2; }
int cuEventRecord(void* event, void* stream) { return event != called || stream; }
int cuEventQuery(void* event) { return event == called && is("not there") ? 600 : 0; }
int cuCtxGetCurrent(void** context) { *context = called + 1; return 0; }
int cuCtxSetCurrent(void* context) { if (context != called + 1) abort(); return 0; }
int sum(const char** names, const double* addresses, int count) {
    std::map<std::string, double> data;
    for (int i = 0; i < count; i++) data[names[i]] = addresses[i];
    float from[] = {1, 2}, to[] = {0, 0};
    const float* in[] = {from};
    float* out[] = {to};
    const int64_t size = 2;
    jclip::nccl_sum(in, out, &size, 1, data);
    return to[1] == 2;
}
}
"""
SUMMING = """
import ctypes, os, sys, time
from jclip.machine import nccl, ranks
ranks._now = ranks.Ranks(2, 3, 0, 1, "node7")
ranks.folder = lambda: sys.argv[1]
library = ctypes.CDLL(nccl.find_library())
if os.environ["MODE"] != "waits":
    load, nccl.ctypes.CDLL = ctypes.CDLL, lambda name: library if name == "libcuda.so.1" else load(name)
else:  # no GPU
    nccl._OF_DRIVER = {}
joined = nccl.Nccl().join("00ff" + "00" * 125 + "07", 2, 3)
given = joined.addresses()
if os.environ["MODE"] != "well":
    joined.end_process_after(0.2)
for _ in range(2):
    names = (ctypes.c_char_p * len(given))(*[name.encode() for name in given])
    assert library.sum(names, (ctypes.c_double * len(given))(*given.values()), len(given)) == 1
joined.end_process_after(0.2)
time.sleep(float(sys.argv[2]))
joined.leave()
print("left", joined._watch.running)
"""


@pytest.mark.parametrize(
    ("mode", "what"),
    [
        ("waits", "a sum over ranks was not there after 0.2 s (JCLIP_NCCL_SECONDS): a rank or the network hangs"),
        ("not there", "a sum over ranks was not there after 0.2 s (JCLIP_NCCL_SECONDS): a rank or the network hangs"),
        ("broken", "a sum over ranks failed: unhandled cuda error"),
        ("well", ""),
        ("reported", ""),
    ],
)
def test_a_sum_that_never_ends_ends_its_process_in_one_line(mode, what, library, tmp_path):
    """Without a GPU that of a stand-in for NCCL; with one, what a stand-in for its driver says; no sum is given up before."""
    marker = tmp_path / "jclip-failed"
    if mode == "reported":  # by another rank of this host
        marker.write_text("")
    environment = {**os.environ, "MODE": "not there" if mode == "reported" else mode, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SUMMING, str(tmp_path), "0.5" if mode == "well" else "600"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    line = f"jclip: rank 2 of 3 on node7: NCCL 2.32.3: {what}: {rank_watch.ADVICE}\n" if what else ""
    assert done.stderr == line
    assert (done.returncode, done.stdout) == ((0, "left 0\n") if mode == "well" else (1, ""))
    assert marker.is_file() == (mode != "well")


def test_how_long_a_sum_may_take_is_a_number(monkeypatch):
    assert nccl.seconds_of_a_sum() == 1800
    monkeypatch.setenv("JCLIP_NCCL_SECONDS", "90")
    assert nccl.seconds_of_a_sum() == 90
    for wrong in ("0", "soon", "-1"):
        monkeypatch.setenv("JCLIP_NCCL_SECONDS", wrong)
        with pytest.raises(ConfigError, match="JCLIP_NCCL_SECONDS must be a number of seconds of at least 1, got"):
            nccl.seconds_of_a_sum()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The stand-in's library."""
    source = tmp_path_factory.mktemp("nccl") / "answers.cpp"
    source.write_text(ANSWERS)
    compiler = toolchain.find_compiler()
    header = f"-I{device_sums.SOURCES}"
    command = [compiler, header, "-x", "c++", "-shared", "-fPIC", source, "-o", source.with_suffix(".so")]
    subprocess.run(command, check=True)
    return source.with_suffix(".so")


@pytest.fixture
def library(compiled, tmp_path, monkeypatch):
    """A folder with the stand-in, named by the user."""
    folder = tmp_path / "of the user"
    folder.mkdir()
    shutil.copyfile(compiled, folder / "libnccl.so.2")
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
        assert len({*addresses.values()}) == len(addresses) == 6 and all(addresses.values())
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
