"""MLPs whose hidden width no block of an 8-bit product divides, made a little wider: zeros in, zeros out.

The 4304 of SigLIP's SO400M become 4352: products of whole blocks are more than twice as fast as those row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from jclip.runtime import jt

STEP = 64  # rows of the smallest block, and columns that a block's product reads at once
PARTS = (
    ("mlp.fc1", "mlp.fc2"),
    ("mlp.c_fc", "mlp.c_proj"),
)  # the two maps of an MLP with nothing but an activation between


def padded(weights: Mapping[str, jt.Var]) -> dict[str, jt.Var]:
    """Parameters by name, with each MLP's hidden width, from `STEP` on, a multiple of it; what is computed is the same."""
    made = dict(weights)
    for first, second in _pairs(weights):
        more = -weights[f"{first}.weight"].shape[0] % STEP
        if not more or weights[f"{first}.weight"].shape[0] < STEP:
            continue
        made[f"{first}.weight"] = _wider(weights[f"{first}.weight"], 0, more)
        made[f"{first}.bias"] = _wider(weights[f"{first}.bias"], 0, more)
        made[f"{second}.weight"] = _wider(weights[f"{second}.weight"], 1, more)
    return made


def _pairs(weights: Mapping[str, jt.Var]) -> Iterator[tuple[str, str]]:
    for name in weights:
        for first, second in PARTS:
            if name.endswith(f"{first}.weight"):
                start = name.removesuffix(f"{first}.weight")
                yield f"{start}{first}", f"{start}{second}"


def _wider(array: jt.Var, axis: int, more: int) -> jt.Var:
    shape = list(array.shape)
    shape[axis] = more
    return jt.concat([array, jt.zeros(shape, array.dtype)], dim=axis)


def cut(array: jt.Var, shape: tuple[int, ...]) -> jt.Var:
    """The inverse of `padded` for one parameter: what is beyond `shape` is taken away."""
    return array if tuple(array.shape) == shape else array[tuple(slice(0, size) for size in shape)]
