"""CUDA sources: computed by an emulation of blocks and threads with g++, compiled by nvcc, and run where there is a GPU."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest

from jclip.kernels import cpu, cuda, plain
from jclip.machine import gpu as toolkits
from jclip.runtime import jt
from tests.library.test_kernels import kept_keys, masked_attention_of_torch, needs_onednn, weigh

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
HERE = Path(__file__).parents[1] / "cuda"
SIZES = [(2, 7, 3, 4), (1, 65, 2, 16), (2, 33, 1, 40), (1, 130, 1, 80)]  # B, N, heads, d: all tiles, all three widths


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """attention.cuh as a library: each thread of a block a thread, barriers barriers."""
    library = tmp_path_factory.mktemp("cuda") / "emulated.so"
    command = ["g++", "-O2", "-std=c++14", "-shared", "-fPIC", "-pthread", f"-I{HERE}", f"-I{cuda.SOURCES}"]
    subprocess.run([*command, HERE / "emulated.cpp", "-o", library], check=True)
    return ctypes.CDLL(str(library))


def call(function, arrays, *sizes):
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in arrays]
    whole, real = sizes[:3], sizes[3:]
    function(*pointers, *map(ctypes.c_int64, whole), *map(ctypes.c_double, real))


def attention_of_torch(x, heads, causal):
    B, N, width = x.shape
    q, k, v = x.reshape(B, N, 3, heads, -1).permute(2, 0, 3, 1, 4)
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return y.transpose(1, 2).reshape(B, N, width // 3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("causal", [False, True])
def test_tiled_attention_and_its_gradient_equal_torch(emulated, size, causal, close):
    B, N, H, d = size
    rng = np.random.default_rng(N)
    qkv, grad = (rng.standard_normal((B, N, n * H * d)).astype(np.float32) for n in (3, 1))
    out, logsum, delta = np.zeros_like(grad), np.zeros((B * H, N), np.float32), np.zeros((B * H, N), np.float32)
    grad_qkv = np.zeros_like(qkv)
    call(emulated.forward, [qkv, out, logsum], B, N, 3 * H * d, H, causal)
    call(emulated.backward, [qkv, out, logsum, grad, grad_qkv, delta], B, N, 3 * H * d, H, causal)
    theirs = torch.tensor(qkv, requires_grad=True)
    wanted = attention_of_torch(theirs, H, causal)
    wanted.backward(torch.tensor(grad))
    close(out, wanted.detach(), "kernel", "CUDA attention, emulated, against torch")
    close(grad_qkv, theirs.grad, "kernel", "CUDA attention, emulated: gradient, relative", relative=True)


@needs_onednn
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_masked_attention_and_its_gradient_equal_torch_and_the_cpu(emulated, size, rate, close):
    B, N, H, d = size
    rng = np.random.default_rng(N)
    qkv, grad = (rng.standard_normal((B, N, n * H * d)).astype(np.float32) for n in (3, 1))
    keys, seed = kept_keys(B, N), 4
    out, logsum, delta = np.zeros_like(grad), np.zeros((B * H, N), np.float32), np.zeros((B * H, N), np.float32)
    grad_qkv = np.zeros_like(qkv)
    sizes = (B, N, 3 * H * d, H, rate, seed)
    call(emulated.masked_forward, [qkv, keys, out, logsum], *sizes)
    call(emulated.masked_backward, [qkv, keys, out, logsum, grad, grad_qkv, delta], *sizes)
    if rate:  # which weights are dropped is a matter of the place: the CPU drops the same
        var = jt.array(qkv)
        wanted = cpu.masked_attention(var, jt.array(keys), H, rate, seed)
        gradient = jt.grad((wanted * jt.array(grad)).sum(), var).numpy()
        wanted = wanted.numpy()
    else:
        theirs = torch.tensor(qkv, requires_grad=True)
        wanted = masked_attention_of_torch(theirs, keys, H)
        wanted.backward(torch.tensor(grad))
        wanted, gradient = wanted.detach(), theirs.grad
    close(out, wanted, "kernel", "CUDA masked attention, emulated")
    close(grad_qkv, gradient, "kernel", "CUDA masked attention, emulated: gradient, relative", relative=True)


def test_nvcc_compiles_it_for_all_dtypes(tmp_path):
    """To machine code, but unoptimised (-G): an eighth of the time."""
    toolkit = toolkits.find_toolkit()
    if toolkit is None:
        pytest.skip("no nvcc found")
    flags = ["-std=c++17", "-arch=sm_90", "-G", f"-I{cuda.SOURCES}", "-Werror", "all-warnings"]
    command = [toolkit.nvcc, *flags, "-c", HERE / "instances.cu", "-o", tmp_path / "out.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not jt.flags.use_cuda, reason="no GPU")
@pytest.mark.parametrize("size", [*SIZES, (5, 197, 12, 64)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_on_the_gpu_it_equals_the_plain_formula(size, causal, dtype, close):
    B, N, H, d = size
    x = jt.array(np.random.default_rng(N).standard_normal((B, N, 3 * H * d)).astype(np.float32)).cast(dtype)
    got, wanted = cuda.attention(x, H, causal), plain.attention(x.float32(), H, causal)
    limit = "kernel" if dtype == "float32" else "half_relative"
    close(got.float32().numpy(), wanted.numpy(), limit, f"CUDA attention {dtype}, relative", relative=True)
    pair = [jt.grad(weigh(y.float32()), x).float32().numpy() for y in (got, wanted)]
    close(*pair, limit, f"CUDA attention {dtype}: gradient, relative", relative=True)


@pytest.mark.skipif(not jt.flags.use_cuda, reason="no GPU")
@pytest.mark.parametrize("size", [*SIZES, (5, 197, 12, 64)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_on_the_gpu_masked_attention_equals_the_plain_formula(size, dtype, close):
    B, N, H, d = size
    x = jt.array(np.random.default_rng(N).standard_normal((B, N, 3 * H * d)).astype(np.float32)).cast(dtype)
    keys = jt.array(kept_keys(B, N))
    got, wanted = cuda.masked_attention(x, keys, H), plain.masked_attention(x.float32(), keys, H)
    limit = "kernel" if dtype == "float32" else "half_relative"
    close(got.float32().numpy(), wanted.numpy(), limit, f"CUDA masked attention {dtype}, relative", relative=True)
    pair = [jt.grad(weigh(y.float32()), x).float32().numpy() for y in (got, wanted)]
    close(*pair, limit, f"CUDA masked attention {dtype}: gradient, relative", relative=True)
