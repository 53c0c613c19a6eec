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
        return _code("attention", "attention_forward", (B, N, width // 3), [qkv], self.options)

    def grad(self, gradient):
        grad_qkv = _code("attention", "attention_backward", self.qkv.shape, [self.qkv, gradient], self.options)
        return grad_qkv, None, None


class _LayerNorm(jt.Function):
    def execute(self, x, weight, bias, eps):
        self.x, self.weight, self.options = x, weight, {"eps": eps}
        return _code("layer_norm", "layer_norm_forward", x.shape, [x, weight, bias], self.options)

    def grad(self, gradient):
        shapes = [self.x.shape, self.weight.shape, self.weight.shape]
        inputs = [self.x, self.weight, gradient]
        return (*_code("layer_norm", "layer_norm_backward", shapes, inputs, self.options), None)


def attention(qkv, heads: int, causal: bool = False):
    """As `kernels.attention`; the backward pass computes the softmax again instead of keeping it."""
    return _Attention.apply(qkv, heads, causal)


def layer_norm(x, weight, bias, eps: float):
    """As `kernels.layer_norm`."""
    return _LayerNorm.apply(x, weight, bias, eps)


def _code(header: str, function: str, shape, inputs: list, options: dict):
    """One `jt.code` operator that calls `function` of `sources/<header>.h` on the raw arrays."""
    several = isinstance(shape, list)
    names = [f"in{i}_p" for i in range(len(inputs))]
    names += [f"out{i}_p" for i in range(len(shape) if several else 1)]
    rows = "in0->num" if header == "layer_norm" else "in0_shape0, in0_shape1, in0_shape2"
    sizes = f"{rows}, in1_shape0" if header == "layer_norm" else rows
    source = f"jclip::{function}({', '.join(names)}, {sizes}, {', '.join(f'data[{k!r}]' for k in options)});"
    settings = {
        "cpu_header": f'#include "{header}.h"  // {_digest(header)}\n',  # Jittor looks for changes in what it is handed
        "cpu_src": source.replace("'", '"'),
        "data": options,
    }
    if several:
        made = jt.code([tuple(s) for s in shape], [inputs[0].dtype] * len(shape), inputs, **settings)
    else:
        made = jt.code(tuple(shape), inputs[0].dtype, inputs, **settings)
    for var in made if several else [made]:
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
