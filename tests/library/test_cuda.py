"""CUDA toolkits of every shape, made of empty files: which is used as it is, which is repaired, which is off and why."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from jclip.machine import gpu as cuda
from jclip.machine import nccl

LIBRARIES = [f"{lib}.so" for lib in cuda.LIBRARIES]
KERNELS = Path(cuda.__file__).parents[1] / "kernels" / "sources"


def toolkit(root: Path, release: str, headers=cuda.HEADERS, libraries=LIBRARIES, cudnn: str | None = "8.9.7") -> Path:
    """A toolkit whose nvcc prints `release`."""
    for folder in ("bin", "include", "lib64"):
        (root / folder).mkdir(parents=True)
    nvcc = root / "bin" / "nvcc"
    nvcc.write_text(f'#!/bin/sh\necho "Cuda compilation tools, release {release}, V{release}.1" "$@"\n')
    nvcc.chmod(0o755)
    for header in headers:
        (root / "include" / header).write_text("")
    for library in libraries:
        (root / "lib64" / library).write_text("")
    if cudnn:
        lines = zip(("MAJOR", "MINOR", "PATCHLEVEL"), cudnn.split("."), strict=True)
        (root / "include" / "cudnn_version.h").write_text("".join(f"#define CUDNN_{k} {v}\n" for k, v in lines))
    return root


def test_an_old_whole_toolkit_is_used_as_it_is(tmp_path):
    found = cuda.find_toolkit([toolkit(tmp_path / "cuda", "11.8")], extra=[])
    assert (found.version, found.cudnn, found.missing, found.needs_repair) == ((11, 8), "8.9.7", (), False)
    assert cuda.jittor_environment(found) == {
        "nvcc_path": str(tmp_path / "cuda" / "bin" / "nvcc"), "use_cutt": "0", "use_cutlass": "0", "use_nccl": "0",
    }  # fmt: skip


def test_what_is_missing_is_named_with_the_packages_that_bring_it(tmp_path, monkeypatch):
    root = toolkit(tmp_path / "cuda", "13.0", headers=("cuda_runtime.h",), libraries=["libcudart.so.13"], cudnn=None)
    found = cuda.find_toolkit([root], extra=[])
    assert set(found.missing) == {*cuda.HEADERS[1:], *cuda.LIBRARIES[1:]}
    monkeypatch.setattr(cuda, "find_gpus", lambda: ((cuda.Gpu("Toy 9000", "9.0", 2**30),), ""))
    monkeypatch.setattr(cuda, "find_toolkit", lambda: found)
    monkeypatch.delenv("nvcc_path", raising=False)
    state = cuda.find_cuda.__wrapped__()
    assert state.environment == {"nvcc_path": ""} and "CUDA 13.0 at" in state.off and "cudnn.h" in state.off
    assert (
        "nvidia-cudnn-cu13" in state.fix and "nvidia-cublas" in state.fix and "cu13 nvidia-cublas-cu" not in state.fix
    )


def pip_packages(site: Path) -> list[Path]:
    """CUDA 13 as pip brings it: one folder for the toolkit's libraries, one for cuDNN, versioned names only."""
    cu13, cudnn = site / "nvidia" / "cu13", site / "nvidia" / "cudnn"
    for folder, headers, libraries in (
        (cu13, cuda.HEADERS[1:2] + cuda.HEADERS[3:], [f"{lib}.so.13" for lib in cuda.LIBRARIES if "cudnn" not in lib]),
        (cudnn, ("cudnn.h",), ["libcudnn.so.9", "libcudnn_ops.so.9", "libcudnn_cnn.so.9"]),
    ):
        (folder / "include").mkdir(parents=True)
        (folder / "lib").mkdir()
        for header in headers:
            (folder / "include" / header).write_text("")
        for library in libraries:
            (folder / "lib" / library).write_text("")
    (cudnn / "include" / "cudnn_version.h").write_text(
        "#define CUDNN_MAJOR 9\n#define CUDNN_MINOR 20\n#define CUDNN_PATCHLEVEL 0\n"
    )
    return [cu13, cudnn]


@pytest.fixture
def scattered(tmp_path):
    root = toolkit(tmp_path / "cuda 13", "13.0", headers=("cuda_runtime.h",), libraries=["libcudart.so.13"], cudnn=None)
    for name in ("cub", "thrust", "cuda"):
        (root / "include" / "cccl" / name).mkdir(parents=True)
    return cuda.find_toolkit([root], extra=[*pip_packages(tmp_path / "site"), Path("/usr")])


def test_cuda_13_in_pieces_is_repaired(scattered, monkeypatch, tmp_path):
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path / "cache"))
    assert scattered.missing == () and scattered.needs_repair and scattered.cudnn == "9.20.0"
    environment = cuda.jittor_environment(scattered)
    folder = Path(environment["nvcc_path"]).parent.parent
    assert folder.parent == tmp_path / "cache" / "cuda"
    assert environment["cc_flags"] == f'-include "{folder}/include/jclip_cuda13.h"'
    assert all((folder / "include" / h).is_file() for h in (*cuda.HEADERS, "npp.h", "jclip_cuda13.h"))
    assert all((folder / "include" / d).is_dir() for d in ("cub", "thrust", "cuda", "cccl"))
    assert not (folder / "include" / "math.h").exists()  # the system's, in the place of g++'s
    assert all((folder / "lib64" / f"{lib}.so").exists() for lib in cuda.LIBRARIES)
    for part in ("ops", "cnn"):
        for use in ("infer", "train"):
            assert (folder / "lib64" / f"libcudnn_{part}_{use}.so").resolve().name == f"libcudnn_{part}.so.9"
    assert cuda.jittor_environment(scattered) == environment  # made once


def test_the_repaired_nvcc_asks_for_c17_and_reports_its_version(scattered, monkeypatch, tmp_path):
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path / "cache"))
    nvcc = cuda.jittor_environment(scattered)["nvcc_path"]
    said = subprocess.run([nvcc, "-std=c++14", "-O2", "a b.cu"], capture_output=True, text=True, check=True).stdout
    assert said.strip().endswith("-std=c++17 -O2 a b.cu")
    assert cuda._nvcc_version(Path(nvcc)) == (13, 0)
    old = cuda.find_toolkit([toolkit(tmp_path / "old", "12.4", cudnn="9.1.0")], extra=[])
    assert old.needs_repair  # cuDNN 9, but the compiler's own C++14 is fine
    nvcc = cuda.jittor_environment(old)["nvcc_path"]
    assert "-std=c++14" in subprocess.run([nvcc, "-std=c++14"], capture_output=True, text=True, check=True).stdout


CALLS_OF_NCCL = """
#include <map>
#include <string>
#include "nccl_sum.h"
void sums(const float* const* in, float* const* out, const int64_t* sizes, std::map<std::string, double> data) {
    jclip::nccl_sum(in, out, sizes, 2, data);
}
#if __has_include(<nccl.h>)
#include <nccl.h>
static_assert(jclip::NCCL_FLOAT32 == ncclFloat32 && jclip::NCCL_SUM == ncclSum && ncclSuccess == 0, "numbers");
static_assert(sizeof(ncclUniqueId) == 128 && sizeof(ncclResult_t) == sizeof(int), "sizes");
static_assert(sizeof(ncclDataType_t) == sizeof(int) && sizeof(ncclRedOp_t) == sizeof(int), "sizes");
static_assert(sizeof(ncclComm_t) == sizeof(void*) && sizeof(cudaStream_t) == sizeof(void*), "sizes");
ncclResult_t (*all_reduce)(const void*, void*, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t) = ncclAllReduce;
ncclResult_t (*join)(ncclComm_t*, int, ncclUniqueId, int) = ncclCommInitRank;
ncclResult_t (*start)() = ncclGroupStart;
ncclResult_t (*end)() = ncclGroupEnd;
ncclResult_t (*error)(ncclComm_t, ncclResult_t*) = ncclCommGetAsyncError;
static_assert(jclip::NCCL_IN_PROGRESS == ncclInProgress, "numbers");
#endif
#include <cuda.h>
static_assert(jclip::CUDA_NOT_READY == CUDA_ERROR_NOT_READY, "numbers");
static_assert(jclip::CUDA_EVENT_WITHOUT_TIMES == CU_EVENT_DISABLE_TIMING, "numbers");
CUresult (*create)(CUevent*, unsigned) = cuEventCreate;
CUresult (*record)(CUevent, CUstream) = cuEventRecord;
CUresult (*query)(CUevent) = cuEventQuery;
CUresult (*current)(CUcontext*) = cuCtxGetCurrent;
CUresult (*make_current)(CUcontext) = cuCtxSetCurrent;
"""


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on this machine")
def test_the_real_nvcc_is_found_behind_its_wrapper_and_compiles_what_jittor_names(monkeypatch, tmp_path):
    """The forced header under the real compiler: device properties and cub names that CUDA 13 dropped; what calls NCCL, by
    the names and signatures of its own header where that is installed.

    Compiled for the device alone (-ptx), which reads the host's code as well: a third of the time.
    """
    root = cuda._real_root(Path(shutil.which("nvcc")))
    assert (root / "include" / "cuda_runtime.h").is_file()
    found = cuda.find_toolkit([root], extra=[])
    if found.version < (13, 0):
        pytest.skip(f"CUDA {found.version} needs no repair")
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path))
    folder = cuda.repaired_folder(found)
    source = tmp_path / "x.cu"
    source.write_text(
        "#include <cub/cub.cuh>\n#include <npp.h>\n"
        "int mode(cudaDeviceProp p) { return p.computeMode + p.clockRate + (NPP_MAX_32S > 0); }\n"
        "__global__ void k(float* x) { x[0] = cub::Max()(x[0], x[1]) + *cub::CountingInputIterator<int>(3); }\n"
        + CALLS_OF_NCCL
    )
    library = nccl.find_library()
    header = folder / "include" / "jclip_cuda13.h"
    command = [
        folder / "bin" / "nvcc",
        "-std=c++14",
        "-DHAS_CUDA",
        "-include",
        header,
        "-I",
        folder / "include",
        f"-I{KERNELS}",
        *([f"-I{library.resolve().parents[1] / 'include'}"] if library else []),
        "-arch=sm_90",
    ]
    done = subprocess.run([*command, "-ptx", source, "-o", tmp_path / "x.ptx"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "environment, off",
    [
        ({"JCLIP_DEVICE": "cpu"}, "JCLIP_DEVICE=cpu"),
        ({"nvcc_path": ""}, "nvcc_path is set to nothing"),
        ({"nvcc_path": "/x/nvcc"}, ""),
    ],
)
def test_the_users_choice_wins(environment, off, monkeypatch):
    monkeypatch.delenv("nvcc_path", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = cuda.find_cuda.__wrapped__()
    assert found.off == off and set(found.environment) <= {"nvcc_path"}
    assert "nvcc_path" not in environment or found.environment == {}


def test_no_driver_is_a_reason(monkeypatch):
    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", absent)
    monkeypatch.delenv("nvcc_path", raising=False)
    monkeypatch.delenv("JCLIP_DEVICE", raising=False)
    found = cuda.find_cuda.__wrapped__()
    assert found.off == "no NVIDIA driver (libcuda.so.1 not found)" and found.environment == {"nvcc_path": ""}
    monkeypatch.setattr(cuda, "find_gpus", lambda: ((cuda.Gpu("Toy", "8.0", 1),), ""))
    monkeypatch.setattr(cuda, "find_toolkit", lambda: None)
    assert "no nvcc found" in cuda.find_cuda.__wrapped__().off


class Driver:
    """Answers as libcuda does."""

    def __init__(self, start=0, cards=1):
        self.start, self.cards = start, cards

    def cuInit(self, _):
        return self.start

    def cuDeviceGetCount(self, count):
        count._obj.value = self.cards

    def cuDeviceGet(self, device, index):
        device._obj.value = index

    def cuDeviceGetName(self, name, size, device):
        name.value = b"NVIDIA Toy"

    def cuDeviceGetAttribute(self, value, which, device):
        value._obj.value = {75: 9, 76: 0}[which]

    def cuDeviceTotalMem_v2(self, memory, device):
        memory._obj.value = 2**37


def test_what_the_driver_tells(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver(cards=2))
    assert cuda.find_gpus() == ((cuda.Gpu("NVIDIA Toy", "9.0", 2**37),) * 2, "")
    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver(cards=0))
    assert cuda.find_gpus() == ((), "the NVIDIA driver shows no GPU")
    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver(start=999))
    assert "cuInit failed" in cuda.find_gpus()[1]
