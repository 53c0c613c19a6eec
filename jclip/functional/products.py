"""Products of NumPy matrices by oneDNN where it is installed: half of the time that NumPy's own library takes on AVX-512."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np

from jclip.machine import toolchain

FEW = 8  # rows below which a product waits for memory, whoever computes it
TILE = 1 << 17  # numbers of `right`, 512 KiB, that stay in the cache while each of a few rows meets them


def times_rows(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> np.ndarray:
    """out (Q, n) = left (Q, E) right (n, E)ᵀ; all float32 and contiguous. Sums are in no fixed order."""
    if len(left) < FEW:
        return _row_by_row(left, right, out)
    product = _sgemm()
    if product is None or not right.flags.c_contiguous:
        return np.matmul(left, right.T, out=out)
    (Q, E), n = left.shape, len(right)
    failed = product(
        b"N", b"T", Q, n, E, 1.0, left.ctypes.data, E, right.ctypes.data, E, 0.0, out.ctypes.data, out.strides[0] // 4
    )
    return np.matmul(left, right.T, out=out) if failed else out


def _row_by_row(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The same for a few rows: `right` passes from memory once, and each product is of a matrix and a vector."""
    step = len(right) if len(left) == 1 else max(1, TILE // max(1, right.shape[1]))
    for at in range(0, len(right), step or 1):
        tile = right[at : at + step]
        for row, own in zip(left, out, strict=True):
            np.dot(tile, row, out=own[at : at + step])
    return out


@cache
def _sgemm():
    """oneDNN's `dnnl_sgemm`, row-major; None where there is no library."""
    found = toolchain.find_onednn()
    try:
        product = ctypes.CDLL(str(found.library)).dnnl_sgemm if found else None
    except (OSError, AttributeError):
        return None
    if product is not None:
        size, real, pointer = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
        product.argtypes = [
            ctypes.c_char, ctypes.c_char, size, size, size, real, pointer, size, pointer, size, real, pointer, size,
        ]  # fmt: skip
        product.restype = ctypes.c_int
    return product
