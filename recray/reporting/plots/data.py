"""Plots of a data set: its ratings by value, user, item, time and genre."""

# Shape letters: L = rating levels, U = users, I = items, R = ratings.

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from recray.reporting.plots import style

MOST_GENRES = 18
MOST_LEVELS = 20


def levels(pairs: Sequence[Sequence[float]]) -> Figure:
    """How often each rating was given.

    Args:
        pairs: (L, 2) stars and number of ratings, ascending by stars.
    """
    figure, axes = style.picture("How often each rating was given", "rating (stars)", "ratings")
    if len(pairs) > MOST_LEVELS:
        stars, counts = np.asarray(pairs).T
        axes.hist(stars, MOST_LEVELS, weights=counts.tolist(), color=style.FIRST, rwidth=0.9)
    else:
        drawn = style.bars(axes, [f"{s:g}" for s, _ in pairs], [count for _, count in pairs])
        total = sum(count for _, count in pairs)
        shares = [_percent(count / total) for _, count in pairs]
        axes.bar_label(drawn, shares, color=style.SOFT, fontsize=9, padding=2)
    _thousands(axes)
    return figure


def activity(counts: NDArray[np.int64], who: str) -> Figure:
    """How many ratings each user, or each film, has; those without any are left out.

    Args:
        counts: (U,) or (I,) ratings of each.
        who: user or film.
    """
    there = counts[counts > 0]
    title = f"How many ratings a {who} has: half have {int(np.median(there)):,} or fewer"
    figure, axes = style.picture(title, f"ratings of the {who} (log scale)", f"{who}s")
    top = max(int(there.max()), int(there.min()) + 1) + 1
    edges = np.unique(np.geomspace(there.min(), top, 25).astype(int)).tolist()
    axes.hist(there, edges, color=style.FIRST, rwidth=0.92)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvline(float(np.median(there)), color=style.SERIES[1], linewidth=1.5)
    _thousands(axes)
    return figure


def over_time(seconds: NDArray[np.int64]) -> Figure | None:
    """Ratings by year, or by month where the years are few.

    Args:
        seconds: (R,) Unix seconds; 0 where unknown.

    Returns:
        None where no rating has a time.
    """
    known = seconds[seconds > 0].astype("datetime64[s]")
    if not len(known):
        return None
    years = int(np.ptp(known.astype("datetime64[Y]").astype(int))) + 1
    unit, word = ("Y", "year") if years > 4 else ("M", "month")
    when, count = np.unique(known.astype(f"datetime64[{unit}]"), return_counts=True)
    figure, axes = style.picture(f"When ratings were given, by {word}", f"{word} (UTC)", "ratings")
    days = 365 if unit == "Y" else 30
    starts = when.astype("datetime64[D]")
    axes.bar(starts, count, width=days * 0.85, align="edge", color=style.FIRST)
    locator = AutoDateLocator(maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    _thousands(axes)
    return figure


def genres(ratings: Mapping[str, int]) -> Figure | None:
    """Ratings of the items of each genre; a item has several.

    Args:
        ratings: Genre to ratings.

    Returns:
        None where no film has a genre.
    """
    chosen = sorted(ratings.items(), key=lambda pair: pair[1])[-MOST_GENRES:]
    if not chosen:
        return None
    more = f" (the {MOST_GENRES} most rated)" if len(ratings) > MOST_GENRES else ""
    title = f"Ratings by genre{more}; a film may have several"
    figure, axes = style.picture(title, "ratings", "")
    axes.barh([name for name, _ in chosen], [count for _, count in chosen], color=style.FIRST)
    axes.tick_params(axis="y", labelsize=8.5)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=style.GRID)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.locator_params(axis="x", nbins=5)
    return figure


def _thousands(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _percent(share: float) -> str:
    return "<1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"
