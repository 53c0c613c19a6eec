"""What a training logged, as curves: which lines belong into one drawing, and the drawing as SVG inside of a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jclip.report.page_words import Words
from jclip.report.run_record import is_figure
from jclip.report.web_page import clean

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 26  # around the plot
MOST_POINTS, MOST_CURVES, DOTS = 400, 12, 40
COLOURS = 8  # --c1 … of the style; after them lines are dashed
NOT_CURVES = ("epoch", "step", "slot")


@dataclass(frozen=True)
class Curve:
    """Values by epoch, from 1; the points are in order. colour: its number among those of the style, by default its place."""

    name: str
    points: tuple[tuple[int, float], ...]
    colour: int | None = None

    @property
    def last(self) -> tuple[int, float]:
        """Its last epoch, and the value there."""
        return self.points[-1]

    def best(self, lower: bool) -> tuple[int, float]:
        """The epoch of its best value, the first of equal ones, and that value."""
        return min(self.points, key=lambda p: (p[1] if lower else -p[1], p[0]))


@dataclass(frozen=True)
class Drawing:
    """Curves on one axis. kind: `loss`, `rate`, `share`, `rank` or `other`."""

    kind: str
    curves: tuple[Curve, ...]

    @property
    def lower_is_better(self) -> bool:
        """Whether small values are good; a learning rate is neither."""
        return self.kind in ("loss", "rank")


def drawings_of(lines: Sequence[Mapping[str, Any]]) -> list[Drawing]:
    """The drawings of a run's logged lines: losses, then what is measured, then the learning rate."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for number, line in enumerate(lines):
        epoch, slot = line.get("epoch", number), str(line.get("slot", ""))
        for key, value in line.items():
            if key not in NOT_CURVES and is_figure(value):
                found.setdefault((slot, key), []).append((int(epoch) + 1, float(value)))
    several = len({slot for slot, _ in found}) > 1
    groups: dict[str, list[Curve]] = {}
    for (slot, key), points in found.items():
        name = f"{slot}: {key}" if several else key
        groups.setdefault(_kind(key, points), []).append(Curve(name, tuple(sorted(points))))
    order = ("loss", "share", "rank")
    others = [kind for kind in groups if kind not in (*order, "rate")]
    kinds = [kind for kind in (*order, *others, "rate") if kind in groups]
    return [Drawing(kind.partition(":")[0], tuple(groups[kind])) for kind in kinds]


def _kind(key: str, points: Sequence[tuple[int, float]]) -> str:
    if key == "loss" or key.endswith("_loss"):
        return "loss"
    if key == "lr":
        return "rate"
    if "rank" in key:
        return "rank"
    return "share" if all(0 <= value <= 1 for _, value in points) else f"other:{key}"


def chart(words: Words, drawing: Drawing, best_epoch: int = 0, title: str = "") -> str:
    """A drawing with its title and the names of its curves; best_epoch: a line there, where it is above 0."""
    curves = drawing.curves[:MOST_CURVES]
    title = title or words(f"curves.{drawing.kind}") if drawing.kind != "other" else words.of_figure(curves[0].name)
    legend = "".join(_legend(words, n, curve) for n, curve in enumerate(curves))
    left_out = len(drawing.curves) - len(curves)
    more = f"<li>{clean(words('curves.more', count=left_out))}</li>" if left_out > 0 else ""
    return (
        f'<figure class="chart"><figcaption>{clean(title)}</figcaption>{_svg(words, drawing.kind, curves, title, best_epoch)}'
        f'<ul class="legend">{legend}{more}</ul></figure>'
    )


def _legend(words: Words, number: int, curve: Curve) -> str:
    number = number if curve.colour is None else curve.colour
    dash = "dashed" if number >= COLOURS else "solid"
    mark = f'<i style="border-color:var(--c{number % COLOURS + 1});border-top-style:{dash}"></i>'
    return f"<li>{mark}{clean(words.of_figure(curve.name))}</li>"


def _svg(words: Words, kind: str, curves: Sequence[Curve], title: str, best_epoch: int) -> str:
    epochs = [epoch for curve in curves for epoch, _ in curve.points]
    values = [value for curve in curves for _, value in curve.points]
    first, last = min(epochs), max(epochs)
    ticks = _ticks(min(values), max(values))
    if kind == "share":  # none is above 1 or below 0
        ticks = [t for t in ticks if -1e-9 <= t <= 1 + 1e-9]
    low, high = ticks[0], ticks[-1]

    def x(epoch: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((epoch - first) / (last - first) if last > first else 0.5)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low))

    drawn = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{_short(t)}</text>'
        for t in ticks
    ]
    drawn += [
        f'<text x="{x(e):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{e}</text>' for e in _epoch_ticks(first, last)
    ]
    if first < best_epoch < last or (best_epoch in (first, last) and last > first):
        drawn.append(
            f'<line class="best" x1="{x(best_epoch):.1f}" x2="{x(best_epoch):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
            f"<title>{clean(words('curves.best_epoch', epoch=best_epoch))}</title></line>"
        )
    for number, curve in enumerate(curves):
        drawn.append(_line(number, replace(curve, points=_thinned(curve.points)), x, y))
    label = clean(words("curves.label", title=title, first=first, last=last))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(drawn)}</svg>'


def _line(number: int, curve: Curve, x: Any, y: Any) -> str:
    number = number if curve.colour is None else curve.colour
    colour = f"var(--c{number % COLOURS + 1})"
    dash = ' stroke-dasharray="5 3"' if number >= COLOURS else ""
    at = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in curve.points)
    line = f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"{dash}/>'
    if len(curve.points) > DOTS:
        return line
    dots = "".join(
        f'<circle cx="{x(epoch):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"><title>{clean(curve.name)} {epoch}: '
        f"{value:.5g}</title></circle>"
        for epoch, value in curve.points
    )
    return line + dots


def _thinned(points: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """At most `MOST_POINTS`, evenly spaced, the last among them."""
    step = math.ceil(len(points) / MOST_POINTS)
    return tuple(points) if step < 2 else (*points[:-1:step], points[-1])


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that enclose both."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def _epoch_ticks(first: int, last: int) -> list[int]:
    step = max(1, math.ceil((last - first) / 6))
    return list(range(first, last + 1, step))


def _short(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}"
