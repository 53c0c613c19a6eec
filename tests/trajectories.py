"""Trainings against torch that hold on any processor: each step from equal weights, and the free run within what
rounding does to torch itself.

Rounding differs from one processor to the next, and a free run adds it up; how far it carries is no constant but a fact of
the very steps, which torch's float32 measures against its float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from tests.tolerances import tolerance

Arrays = Mapping[str, np.ndarray]
ROUNDING = 1e-6  # relative, of weights: what sums of float32 may differ by from one processor to the next
DRAWS = 6


class _Single(TorchFunctionMode):
    """In it what asks torch for float64 gets float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = torch.Tensor.float if func is torch.Tensor.double else func
        args = [torch.float32 if a is torch.float64 else a for a in args]
        made = func(*args, **(kwargs or {}))
        if func is torch.tensor and made.dtype == torch.float64:
            return made.detach().float().requires_grad_(made.requires_grad)
        return made


def in_both_precisions(reference: Callable[[], Arrays]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """What a torch training written for float64 ends with, and how far each array ends from that in float32."""
    exact = {k: np.asarray(v, np.float64) for k, v in reference().items()}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with _Single():
            rounded = {k: np.asarray(v) for k, v in reference().items()}
    finally:
        torch.set_default_dtype(before)
    assert np.dtype(np.float32) in {v.dtype for v in rounded.values()}, "the reference ran in float64 again"
    return exact, {k: float(np.abs(v - rounded[k]).max(initial=0.0)) for k, v in exact.items()}


def without_key_bias(name: str, array: np.ndarray) -> np.ndarray:
    """Softmax does not see key biases: their gradient is rounding noise, which Adam divides by its own size."""
    if name.endswith("k_proj.bias"):
        return array[:0]
    if name.endswith("in_proj_bias"):
        q, _, v = np.split(array, 3)
        return np.concatenate([q, v])
    return array


def steps_from_equal_weights(
    steps: int,
    ours,
    gradients: Callable[[int], tuple],
    reference: torch.optim.Optimizer,
    p: Mapping[str, torch.Tensor],
    loss_of: Callable[[Mapping[str, torch.Tensor], int], torch.Tensor],
    after: Callable[[], None],
    close,
    label: str,
) -> None:
    """Before each step torch gets the weights that ours has reached: then loss and gradients must agree, and the weights
    after both optimisers took the step along the same gradients.

    ours: the optimiser. gradients: step → our loss and gradients, in the order of `ours.params`. reference: torch's
    optimiser of `p`. loss_of: parameters, step → torch's loss. after: what follows a step of ours and of torch's.
    """
    for number in range(steps):
        with torch.no_grad():
            for k, v in ours.params.items():
                p[k].copy_(torch.tensor(v.numpy().reshape(p[k].shape)))
        loss, given = gradients(number)
        given = {k: torch.tensor(g.numpy().reshape(p[k].shape)) for k, g in zip(ours.params, given, strict=True)}
        reference.zero_grad()
        wanted = loss_of(p, number)
        wanted.backward()
        drift = _drift_of_gradients(p, number, loss_of, given)
        close(loss.numpy().ravel(), [wanted.item()], "trajectory_loss", f"{label}: losses at equal weights")
        for k, g in given.items():
            pair = (without_key_bias(k, a.numpy()) for a in (g, p[k].grad))
            row = f"{label}: gradients at equal weights, relative"
            close(*pair, "gradient_relative", row, relative=True, drift=drift[k])
            p[k].grad.copy_(g)
        ours.apply(given_to_jittor(ours, given))
        reference.step()
        after()
        for k, v in ours.params.items():
            close(v.numpy().reshape(p[k].shape), p[k].detach(), "optimiser", f"{label}: one step along equal gradients")


def _drift_of_gradients(p, number: int, loss_of, given: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """How far rounding carries torch's gradients at `p`, relative to the largest entry of each as `close` counts.

    Rounding as float32 does it, and a few draws of that size in float64: a ReLU whose input is nearly zero is on for one
    processor and off for another, and the gradients of all before it jump, where the loss does not. Each is computed only
    where `given` gradients are further away than the tolerance and what the ones before it explain.
    """
    exact = {k: v.grad for k, v in p.items() if v.grad is not None}
    away, drift = _distance({k: exact[k] for k in given}, given), dict.fromkeys(exact, 0.0)
    rounded = _rounded(p, number, loss_of)
    while any(away[k] > max(tolerance("gradient_relative"), tolerance("drift") * drift[k]) for k in away):
        if (moved := next(rounded, None)) is None:
            break
        found = _distance(exact, {k: moved[k].grad for k in exact})
        drift = {k: max(drift[k], found[k]) for k in drift}
    return drift


def _rounded(p, number: int, loss_of) -> Iterator[Mapping[str, torch.Tensor]]:
    """Parameters with gradients, computed in float32, then in float64 from weights that noise has moved."""
    single = {k: v.detach().float().requires_grad_(v.requires_grad) for k, v in p.items()}
    with _Single():
        loss_of(single, number).backward()
    yield single
    for seed in range(DRAWS):
        draw = torch.Generator().manual_seed(seed)
        noise = {k: ROUNDING * torch.randn(v.shape, generator=draw, dtype=v.dtype) for k, v in p.items()}
        moved = {k: (v.detach() * (1 + noise[k])).requires_grad_(v.requires_grad) for k, v in p.items()}
        loss_of(moved, number).backward()
        yield moved


def _distance(exact: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The largest difference of each gradient from the exact one, relative to the largest entry of that."""
    found = {}
    for k, gradient in exact.items():
        a, b = (without_key_bias(k, x.numpy()) for x in (gradient, others[k]))
        found[k] = float(np.abs(a - b).max(initial=0.0)) / max(float(np.abs(a).max(initial=0.0)), 1e-4)
    return found


def given_to_jittor(ours, given: Mapping[str, torch.Tensor]) -> list:
    """The gradients as Jittor's variables, in the shapes of the parameters."""
    from jclip.runtime import jt

    return [jt.array(given[k].numpy().reshape(v.shape)) for k, v in ours.params.items()]
