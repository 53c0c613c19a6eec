"""float32 on the CPU: small matrix products by oneDNN inside OpenMP loops, nothing transposed or copied.

Each operator is a `jt.Function` of two `jt.code` operators, forward and backward. Sums run in a fixed order, so results
are bit-equal from run to run at one number of threads.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from jclip import toolchain
from jclip.runtime import jt

_SOURCES = Path(__file__).parent / "sources"


def available() -> bool:
    """Whether Jittor was built with oneDNN."""
    return jt.compile_extern.mkl_ops is not None


class _Attention(jt.Function):
    def execute(self, qkv, heads, causal):
        self.qkv, self.options = qkv, {"heads": heads, "causal": int(causal)}
        B, N, width = qkv.shape
        return _code("attention_forward", [(B, N, width // 3)], [qkv], PACKED, self.options)[0]

    def grad(self, gradient):
        inputs = [self.qkv, gradient]
        return _code("attention_backward", [self.qkv.shape], inputs, PACKED, self.options)[0], None, None


class _LayerNorm(jt.Function):
    def execute(self, x, weight, bias, eps):
        self.x, self.weight, self.options = x, weight, {"eps": eps}
        return _code("layer_norm_forward", [x.shape], [x, weight, bias], ROWS, self.options)[0]

    def grad(self, gradient):
        shapes = [self.x.shape, self.weight.shape, self.weight.shape]
        return (*_code("layer_norm_backward", shapes, [self.x, self.weight, gradient], ROWS, self.options), None)


class _BatchNorm(jt.Function):
    def execute(self, x, weight, bias, eps):
        shapes = [x.shape, weight.shape, weight.shape]
        y, mean, variance = _code("batch_norm_forward", shapes, [x, weight, bias], CHANNELS, {"eps": eps})
        self.inputs, self.shapes, self.options = [x, weight, mean, variance], shapes, {"eps": eps}
        return y, mean, variance

    def grad(self, gradient, *_):  # nothing flows back through the statistics, which are not part of any loss
        return (*_code("batch_norm_backward", self.shapes, [*self.inputs, gradient], CHANNELS, self.options), None)


def attention(qkv, heads: int, causal: bool = False):
    """As `kernels.attention`; the backward pass computes the softmax again instead of keeping it."""
    return _Attention.apply(qkv, heads, causal)


def layer_norm(x, weight, bias, eps: float):
    """As `kernels.layer_norm`."""
    return _LayerNorm.apply(x, weight, bias, eps)


def batch_norm(x, weight, bias, eps: float):
    """As `kernels.batch_norm`."""
    return _BatchNorm.apply(x, weight, bias, eps)


# Sizes that the C++ functions take after the arrays.
PACKED = "in0_shape0, in0_shape1, in0_shape2"
ROWS = "in0->num, in1_shape0"
CHANNELS = "in0_shape0, in0_shape1, in0_shape2 * in0_shape3"


def _code(function: str, shapes: list, inputs: list, sizes: str, options: dict) -> list:
    """One `jt.code` operator that calls `function` of the header of its name on the raw arrays: a list of its outputs."""
    header = function.rpartition("_")[0]
    arrays = [f"in{i}_p" for i in range(len(inputs))] + [f"out{i}_p" for i in range(len(shapes))]
    call = f"jclip::{function}({', '.join([*arrays, sizes, *(f'data[{chr(34)}{k}{chr(34)}]' for k in options)])});"
    made = jt.code(
        [tuple(s) for s in shapes],
        [inputs[0].dtype] * len(shapes),
        inputs,
        cpu_header=f'#include "{header}.h"  // {_digest(header)}\n',  # Jittor looks for changes in what it is handed
        cpu_src=call,
        data=options,
    )
    for var in made:
        var.compile_options = _flags()
    return made


@lru_cache
def _digest(header: str) -> str:
    return hashlib.sha256((_SOURCES / f"{header}.h").read_bytes()).hexdigest()[:12]


@lru_cache(maxsize=1)
def _flags() -> dict[str, int]:
    """Where the headers and oneDNN are, in the form in which Jittor hands options to the compiler."""
    onednn = toolchain.without_spaces(toolchain.jittor_home() / ".cache/jittor/mkl/dnnl_lnx_2.2.0_cpu_gomp")
    sources = toolchain.without_spaces(_SOURCES)
    return {f"FLAGS: -I{sources} -I{onednn}/include -L{onednn}/lib -Wl,-rpath,{onednn}/lib -lmkldnn ": 1}
