"""A run's figures as a table: zero-shot beside adapted, with what a reader must know of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jclip.choices import SELECTED_ON_TEST
from jclip.errors import ConfigError
from jclip.report import predictions


def report(metrics: Mapping[str, float]) -> str:
    """A table of accuracies, zero-shot beside adapted, then the other figures."""
    parts = [part for part in ("val", "test") if f"{part}_top1" in metrics]
    rows = (
        [
            [name, *(accuracy_of(metrics, f"{prefix}{part}_") for part in parts)]
            for name, prefix in (("zero-shot", "zero_shot_"), ("this run", ""))
            if f"{prefix}{parts[0]}_top1" in metrics
        ]
        if parts
        else []
    )
    shown = {f"{prefix}{part}_{kind}" for prefix in ("zero_shot_", "") for part in ("val", "test")
             for kind in ("top1", "top5", "mean_per_class", "macro_f1", "ece", "nll", "correct", "count")}  # fmt: skip
    rest = [f"{k} {shortly(v)}" for k, v in metrics.items() if k not in shown]
    text = predictions.table(["top-1", *parts], rows) if rows else ""
    return "\n".join(filter(None, [text, ", ".join(rest), *warnings_of(metrics)]))


def accuracies_of_runs(results: Mapping[str, Mapping[str, float]]) -> str:
    """A table of several runs' metrics by name: zero-shot of the first, then each. Raises `ConfigError`."""
    needed = ("top1", "correct", "count")
    parts = [p for p in ("val", "test") if all(f"{p}_{k}" in m for m in results.values() for k in needed)]
    if not parts:
        raise ConfigError(f"runs must share an accuracy on val or test, got none in common: {', '.join(results)}")
    first = next(iter(results.values()))
    named = [("zero-shot", "zero_shot_", first)] if f"zero_shot_{parts[0]}_top1" in first else []
    named += [(predictions.marked(Path(folder).name, metrics), "", metrics) for folder, metrics in results.items()]
    rows = [[name, *(accuracy_of(metrics, f"{prefix}{part}_") for part in parts)] for name, prefix, metrics in named]
    return predictions.table(["top-1", *parts], rows)


def memory_lines(peak: dict[str, int]) -> list[str]:
    """`peak memory 812 MiB, of the GPU 2048 MiB`, as far as it is known."""
    places = {"host": "", "gpu": "of the GPU "}
    peaks = ", ".join(f"{places[place]}{mib} MiB" for place, mib in peak.items())
    return [f"peak memory {peaks}"] if peaks else []


def shortly(value: float) -> str:
    """Four decimals, of a small number (a learning rate) three digits; integers as they are."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.3g}"


def warnings_of(metrics: dict[str, float]) -> list[str]:
    """What a reader of the accuracies must know."""
    warnings = []
    if metrics.get("val_top1", 1.0) < metrics.get("zero_shot_val_top1", 0.0):
        warnings.append("below zero-shot on validation: nothing was gained by adapting")
    return warnings + selected_on_test(metrics)


def selected_on_test(metrics: dict[str, float]) -> list[str]:
    """The line that every output of such a run has."""
    line = "selected on test: for comparing with papers that did so, not a result"
    return [line] if metrics.get(SELECTED_ON_TEST) else []


def accuracy_of(metrics: dict[str, float], prefix: str) -> str:
    """`0.7170 (717 of 1000)`, of the metrics that begin with `prefix`."""
    top1, correct, count = (metrics[f"{prefix}{what}"] for what in ("top1", "correct", "count"))
    return f"{top1:.4f} ({correct} of {count})"
