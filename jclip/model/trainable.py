"""Which parameters of a model are trained, and which decay."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from jclip.errors import ConfigError
from jclip.kernels import int8
from jclip.runtime import jt


def trainable(model, patterns: Iterable[str] = ("*",)) -> dict[str, jt.Var]:
    """Parameters whose names match one of `patterns`, by name; all others are frozen.

    Sets both kinds, whatever they were: Jittor's `model.eval()` freezes everything without saying so. Running statistics
    are never trained. Raises `ConfigError` for a pattern that matches nothing.
    """
    check_in_memory(model)
    patterns = list(patterns)
    chosen, matched = {}, set()
    for name, var in model.state_dict().items():
        hits = [p for p in patterns if fnmatchcase(name, p)]
        matched.update(hits)
        if hits and "running_" not in name:
            chosen[name] = var.start_grad()
        else:
            var.stop_grad()
    for pattern in patterns:
        if pattern not in matched:
            raise ConfigError(f"no parameter's name matches {pattern!r}")
    return chosen


def check_in_memory(model) -> None:
    """Raises `ConfigError` for a model or source of one that no gradient can pass: weights gone when it would, or rounded
    to integers."""
    if getattr(model, "dtype", "") == "int8":
        raise ConfigError(int8.NO_TRAINING)
    if getattr(model, "streamed", False):
        raise ConfigError("a model whose blocks stay on disk can't be trained: it needs memory for all weights")


def no_weight_decay(name: str, var) -> bool:
    """OpenAI's and open_clip's rule: biases, norms and the logit scale, and whatever has one dimension, do not decay."""
    return var.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
