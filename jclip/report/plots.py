"""Pictures of results, by matplotlib: accuracy over shots, histograms. No display is needed."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jclip.errors import printable
from jclip.paths import replacing

FONTS = (  # the first that is there; neither Pillow's own nor matplotlib's has Chinese
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
)


def find_font() -> str | None:
    """A font file that has the letters of class names, if one of the usual ones is there."""
    return next((font for font in FONTS if Path(font).is_file()), None)


def plot_shots(
    path: str | os.PathLike, lines: Mapping[str, Mapping[int, tuple[float, float]]], title: str, label: str
) -> None:
    """One line for each name: shots → (mean, standard deviation) of an accuracy, on a logarithmic axis of shots."""
    from matplotlib import colormaps, cycler

    many = len(lines) > 6
    figure, axes = _figure(9.0 if many else 6.4, 4.8)
    shots = sorted({k for points in lines.values() for k in points})
    colors = colormaps["tab10" if len(lines) <= 11 else "tab20"].colors
    axes.set_prop_cycle(cycler(marker=["o", "s"]) * cycler(color=colors))  # squares when the colours are used up
    for name, points in lines.items():
        ks = sorted(points)
        mean, deviation = (np.array([points[k][i] for k in ks]) for i in (0, 1))
        style = {"linestyle": "--", "color": "grey", "marker": ""} if name == "zero-shot" else {"markersize": 4}
        (line,) = axes.plot(ks, 100 * mean, label=_label(name, 60), **style)
        axes.fill_between(ks, 100 * (mean - deviation), 100 * (mean + deviation), alpha=0.15, color=line.get_color())
    axes.set_xscale("log", base=2)
    axes.set_xticks(shots, [str(k) for k in shots])
    axes.set_xlabel("shots")
    axes.set_ylabel(label)
    axes.set_title(_label(title, 100))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, **({"loc": "upper left", "bbox_to_anchor": (1.01, 1)} if many else {}))
    _save(figure, path)


def plot_histograms(path: str | os.PathLike | io.BytesIO, found: Mapping[str, Mapping[str, Mapping]]) -> None:
    """Measurer → source → counts in equal bins on (0, 1] and zeros: a row of pictures for each measurer, fifty bars each."""
    sources = list(dict.fromkeys(source for own in found.values() for source in own))
    figure, axes = _figure(3.2 * max(len(sources), 1) + 0.6, 2.4 * len(found) + 0.4)
    axes.remove()
    grid = figure.subplots(len(found), len(sources), squeeze=False)
    for row, (measurer, own) in zip(grid, found.items(), strict=True):
        for cell, source in zip(row, sources, strict=True):
            if source not in own:
                cell.axis("off")
                continue
            counts = np.array(own[source]["counts"])
            bars = min(50, len(counts))
            shown = [part.sum() for part in np.array_split(counts, bars)]
            cell.bar((np.arange(bars) + 0.5) / bars, shown, width=1 / bars)
            cell.set_xlim(0, 1)
            cell.set_title(f"{_label(source)} by {_label(measurer)}, {own[source]['zeros']} at 0", fontsize=8)
            cell.tick_params(labelsize=7)
    _save(figure, path)


def _label(name: str, most: int = 24) -> str:
    """A name as matplotlib draws it letter by letter: no formula between dollars, no line break, and in a legend even
    where it begins with an underscore."""
    return printable(name[:most].replace("_", " ")).replace("$", r"\$")


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="tight")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure, path: str | os.PathLike | io.BytesIO) -> None:
    """Drawn in memory, where no full disk ends in an error of the encoder's own, and written whole."""
    if isinstance(path, io.BytesIO):
        path.write(_drawn(figure, "png"))
        return
    picture = _drawn(figure, Path(path).suffix[1:] or "png")
    with replacing(path) as temporary:
        temporary.write_bytes(picture)


def _drawn(figure, kind: str) -> bytes:
    import matplotlib
    from matplotlib import font_manager

    families = ["DejaVu Sans"]
    if font := find_font():
        font_manager.fontManager.addfont(font)
        families.insert(0, font_manager.FontProperties(fname=font).get_name())
    drawn = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a machine without Chinese fonts shows boxes
        with matplotlib.rc_context({"font.family": families}):
            figure.savefig(drawn, format=kind)
    return drawn.getvalue()
