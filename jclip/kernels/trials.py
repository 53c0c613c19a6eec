"""What `jclip doctor` tries on the device: one operator each, computed and compared with NumPy."""

from __future__ import annotations

import numpy as np

from jclip.kernels import attention
from jclip.runtime import jt


def try_product() -> float:
    """Largest error of a matrix product."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((37, 64), dtype=np.float32) / 8, rng.standard_normal((64, 53), dtype=np.float32)
    return float(np.abs(jt.matmul(jt.array(a), jt.array(b)).numpy() - a @ b).max())


def try_convolution() -> float:
    """Largest error of a 3 x 3 convolution and of its gradient by the kernel."""
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((2, 3, 9, 8), dtype=np.float32) / 5, rng.standard_normal((4, 3, 3, 3), dtype=np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))  # (2, 3, 7, 6, 3, 3)
    kernel = jt.array(w)
    y = jt.nn.conv2d(jt.array(x), kernel)
    wanted = np.einsum("bchwij,kcij->bkhw", windows, w)
    gradient = jt.grad((y * y).sum() / 2, kernel).numpy() / 10
    wanted_gradient = np.einsum("bchwij,bkhw->kcij", windows, wanted) / 10
    return float(max(np.abs(y.numpy() - wanted).max(), np.abs(gradient - wanted_gradient).max()))


def try_attention() -> float:
    """Largest error of causal attention with three heads."""
    qkv = np.random.default_rng(2).standard_normal((2, 5, 3 * 12), dtype=np.float32)
    q, k, v = qkv.astype(np.float64).reshape(2, 5, 3, 3, 4).transpose(2, 0, 3, 1, 4)
    scores = np.where(np.tri(5, dtype=bool), q @ k.swapaxes(2, 3) / 2, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    wanted = (weights / weights.sum(axis=-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(2, 5, 12)
    return float(np.abs(attention(jt.array(qkv), 3, causal=True).numpy() - wanted).max())


TRIALS = {"matrix product": try_product, "convolution": try_convolution, "attention": try_attention}
