"""L-BFGS in float64 NumPy: minimises smooth functions of many variables, without a learning rate.

Liu & Nocedal, 1989; Nocedal & Wright, Numerical Optimization, algorithms 7.4 and 7.5.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jclip.machine import solver_steps

Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]
ARMIJO, CURVATURE = 1e-4, 0.9  # Wolfe's conditions: how much a step decreases the value and flattens the slope
TRIALS = 40  # of the line search
ROUNDING = 64 * np.finfo(np.float64).eps  # values nearer to each other, relatively, are equal
PATIENCE = 10  # steps in a row that leave the value equal: the gradient may still get smaller in them


@dataclass(frozen=True)
class Minimum:
    """Where the search ended, and whether there is nothing left to gain; else iterations or float64 ran out."""

    x: np.ndarray
    value: float
    gradient: float  # the largest entry, without its sign
    iterations: int
    converged: bool


def minimise(
    objective: Objective, start: np.ndarray, *, memory: int = 10, iterations: int = 1000, tolerance: float = 1e-4
) -> Minimum:
    """A local minimum of `objective`, which takes an array (n,) and returns its value and gradient (n,), from `start`.

    Converged: no entry of the gradient is larger than `tolerance`, or steps no longer change the value in float64.
    memory: how many steps the curvature is guessed from. Raises `ValueError` where the objective at `start` is NaN or infinite.
    """
    x = np.array(start, np.float64)
    value, gradient = objective(x)
    if not (np.isfinite(value) and np.isfinite(gradient).all()):
        raise ValueError("the objective must be finite at the start, got NaN or infinity")
    pairs: deque[tuple[np.ndarray, np.ndarray, float]] = deque(maxlen=memory)
    still, cut = 0, solver_steps.SolverSteps(iterations, tolerance)
    for number in range(iterations):
        if np.abs(gradient).max(initial=0) <= tolerance or still == PATIENCE:
            return _ended(x, value, gradient, number, True)
        if cut.ends(np.abs(gradient).max(initial=0)):
            return _ended(x, value, gradient, number, True)
        direction = -_inverse_hessian_times(gradient, pairs)
        found = _line_search(objective, x, value, gradient, direction, _first_step(gradient, pairs))
        if found is None:
            negligible = -(direction @ gradient) <= _rounding(value)
            if negligible or not pairs:
                return _ended(x, value, gradient, number, bool(negligible))
            pairs.clear()  # the curvature misleads: start over with the gradient alone
            continue
        moved, lower, new_gradient = found
        step, change = moved - x, new_gradient - gradient
        if (product := step @ change) > 0:
            pairs.append((step, change, 1 / product))
        still = still + 1 if value - lower <= _rounding(value) else 0
        x, value, gradient = moved, lower, new_gradient
    return _ended(x, value, gradient, iterations, bool(np.abs(gradient).max(initial=0) <= tolerance))


def _ended(x: np.ndarray, value: float, gradient: np.ndarray, number: int, converged: bool) -> Minimum:
    return Minimum(x, float(value), float(np.abs(gradient).max(initial=0)), number, converged)


def _rounding(value: float) -> float:
    return ROUNDING * abs(value)


def _first_step(gradient: np.ndarray, pairs: deque) -> float:
    """Once curvature is known the natural step is 1; before, one of length one at most."""
    return 1.0 if pairs else min(1.0, 1 / float(np.linalg.norm(gradient)))


def _inverse_hessian_times(gradient: np.ndarray, pairs: deque) -> np.ndarray:
    """Algorithm 7.4, the two-loop recursion; `pairs` holds steps s, changes of gradient y and 1 / s·y, oldest first."""
    q, shares = gradient.copy(), []
    for s, y, inverse in reversed(pairs):
        shares.append(inverse * (s @ q))
        q -= shares[-1] * y
    if pairs:
        s, y, inverse = pairs[-1]
        q /= inverse * (y @ y)
    for (s, y, inverse), share in zip(pairs, reversed(shares), strict=True):
        q += (share - inverse * (y @ q)) * s
    return q


def _line_search(
    objective: Objective, x: np.ndarray, value: float, gradient: np.ndarray, direction: np.ndarray, step: float
) -> tuple[np.ndarray, float, np.ndarray] | None:
    """Point, value and gradient at a step along `direction` that fulfils Wolfe's conditions, by doubling and halving.

    None where there is no such step within rounding, as along a direction that leads up.
    """
    slope = direction @ gradient
    if not slope < 0:
        return None
    low, high = 0.0, np.inf
    for _ in range(TRIALS):
        point = x + step * direction
        lower, new_gradient = objective(point)
        if not lower <= value + ARMIJO * step * slope + _rounding(value):  # too far; so is what is no number
            high = step
        elif new_gradient @ direction < CURVATURE * slope:
            low = step
        else:
            return point, lower, new_gradient
        step = (low + high) / 2 if np.isfinite(high) else 2 * step
    return None
