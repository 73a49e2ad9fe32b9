"""What all pictures share: paper, colours, titles, and how a figure becomes SVG or PNG.

Colours are those of light paper. `svg` writes them as CSS variables, so that one drawing is read
on light and on dark paper.
"""

import io
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

INK, SOFT, GRID, PAPER = "#1c2128", "#626a73", "#dfe3e8", "#fefefe"
SERIES = ("#2f6fde", "#d9730d", "#0e8a66", "#9a4fd0", "#8a6d3b")
"""Colours that people who see few colours can tell apart, too."""
FIRST = SERIES[0]
DARK = {
    INK: "#e6e9ee",
    SOFT: "#a2abb7",
    GRID: "#333a44",
    PAPER: "#171b21",
    SERIES[0]: "#6ea2ff",
    SERIES[1]: "#f0a04b",
    SERIES[2]: "#45c49a",
    SERIES[3]: "#c48bf2",
    SERIES[4]: "#c9a86a",
}
"""Each colour's counterpart on dark paper."""

COLORS = {
    "model": 0,
    "popularity": 1,
    "item-knn": 2,
    "ease": 3,
    "markov": 3,
    "bias-only": 4,
    "recent-popular": 4,
}
"""System to its place in SERIES; those that never stand side by side by default share one."""

WIDE, HIGH = 5.2, 3.5
"""Inches, 72 units each: one picture is as wide as a phone, two side by side fill a page."""
TITLE_LETTERS = 50


def picture(
    title: str, x: str, y: str, size: tuple[float, float] = (WIDE, HIGH)
) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes.

    Args:
        title: What the picture shows.
        x: What the horizontal axis counts, with its unit.
        y: The same of the vertical one.
        size: Width and height in inches.
    """
    figure, (axes,) = row_of(title, [x], size)
    axes.set_ylabel(y, color=SOFT, fontsize=10)
    return figure, axes


def row_of(title: str, x: Sequence[str], size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """An empty figure with several axes side by side that share the vertical one.

    Axes have a quiet grid and no box.
    """
    figure = Figure(figsize=size, layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    words = textwrap.fill(title, round(TITLE_LETTERS * size[0] / WIDE))
    figure.suptitle(words, x=0.01, ha="left", fontsize=11.5, fontweight="bold", color=INK)
    row = list(figure.subplots(1, len(x), sharey=True, squeeze=False)[0])
    for axes, label in zip(row, x, strict=True):
        axes.set_xlabel(label, color=SOFT, fontsize=10)
        axes.set_facecolor("none")
        axes.tick_params(colors=SOFT, labelsize=9.5, length=3)
        axes.grid(True, axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(GRID)
    return figure, row


def grouped(
    axes: Axes,
    names: Sequence[str],
    series: Mapping[str, Iterable[float | None]],
    colors: Sequence[str],
) -> None:
    """For each name a group of bars, one of each series; nothing where there is no value."""
    width = 0.8 / max(len(series), 1)
    for place, (label, values) in enumerate(series.items()):
        left = [n - 0.4 + width * (place + 0.5) for n in range(len(names))]
        heights = [value or 0.0 for value in values]
        axes.bar(left, heights, width * 0.92, color=colors[place], label=label)
    axes.set_xticks(range(len(names)), names)


def epochs(axes: Axes, last: float) -> None:
    """The horizontal axis counts epochs from 1: ticks at whole numbers only."""
    axes.set_xlim(0.4, last + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def intervals(
    axes: Axes, x: Any, y: Any, color: str = FIRST, capsize: int = 2, size: int = 5, **bars: Any
) -> None:
    """Points with a bar for the interval of each, given as `xerr` or `yerr`.

    A length below 0, which matplotlib refuses, is one of rounding where all values are the same.
    """
    bars |= {name: np.maximum(bars[name], 0.0) for name in ("xerr", "yerr") if name in bars}
    axes.errorbar(x, y, color=color, ecolor=color, capsize=capsize, markersize=size, **bars)


def percent() -> PercentFormatter:
    """Shares of 1 as whole percents."""
    return PercentFormatter(1, decimals=0, symbol=" %")


def legend(axes: Axes, **where: Any) -> None:
    """Name the series, without a frame."""
    box = axes.legend(frameon=False, fontsize=9.5, **where)
    for text in box.get_texts():
        text.set_color(INK)


def legend_above(axes: Axes, columns: int) -> None:
    """Name the series above the axes, where they hide nothing."""
    legend(
        axes, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns,
        handlelength=1.2, columnspacing=1.2, borderaxespad=0.1,
    )  # fmt: skip


def color_of(system: str) -> str:
    """The colour of a model or baseline, the same in every picture."""
    return SERIES[COLORS[system]] if system in COLORS else SOFT


def png(figure: Figure, dpi: int = 160) -> bytes:
    """The figure as PNG, on light paper."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


def svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an `<svg>` element that takes its colours from the page.

    Args:
        figure: A figure.
        name: Unique on the page; part of every id inside.
        label: What is read aloud in place of the picture.
    """
    out = io.StringIO()
    # Text stays text, which is small, can be searched, and has the font of the page.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    text = re.sub(r"font: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font: \1system-ui, sans-serif", text)
    text = re.sub(r"#[0-9a-f]{6}\b", _variable, text)
    return re.sub(
        r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>",
        rf'<svg \1 role="img" aria-label="{label}" xmlns:xlink="http://www.w3.org/1999/xlink">',
        text,
        count=1,
    )


def _variable(found: "re.Match[str]") -> str:
    color = {"#000000": INK, "#ffffff": PAPER}.get(found[0], found[0])
    return f"var(--{_css_name(color)})" if color in DARK else color


def _css_name(color: str) -> str:
    return f"c{color[1:]}"


def css(dark: bool) -> str:
    """The colours as CSS variables."""
    pairs = ((light, DARK[light] if dark else light) for light in DARK)
    return " ".join(f"--{_css_name(name)}: {value};" for name, value in pairs)
