"""Plots of held-out ratings beside what the model predicts, or where it places them when it
ranks.
"""

# Shape letters: R = held-out ratings, U = users, I = items.

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from recray.reporting.plots import style as canvas

Stars = NDArray[np.float32]
MOST_LEVELS = 12


def _levels(actual: Stars) -> NDArray[np.float64]:
    """The levels of the ratings; whole stars where there are too many."""
    found = np.unique(actual.astype(np.float64))
    return found if len(found) <= MOST_LEVELS else np.unique(np.round(found))


def _nearest(actual: Stars, levels: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.abs(actual[:, None] - levels[None, :]).argmin(axis=1)


# -------------------------------------------------------------------------------- stars


def distributions(predicted: Stars, actual: Stars) -> Figure:
    """Histograms of predicted and of actual ratings: (R,) and (R,) ratings."""
    title = "How predicted and actual ratings are spread: predictions keep to the middle"
    if predicted.std() >= actual.std():
        title = "How predicted and actual ratings are spread"
    figure, axes = canvas.picture(title, "rating (stars)", "share of held-out ratings")
    levels = _levels(actual)
    step = float(np.diff(levels).min()) if len(levels) > 1 else 1.0
    edges = np.arange(levels[0] - step / 2, levels[-1] + step, step)
    shares = {name: _shares(v, edges) for name, v in (("actual", actual), ("predicted", predicted))}
    series = {name: list(values) for name, values in shares.items()}
    names = [f"{low + step / 2:g}" for low in edges[:-1]]
    canvas.grouped(axes, names, dict(series), [canvas.SERIES[1], canvas.FIRST])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    canvas.legend(axes)
    return figure


def _shares(values: Stars, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.clip(values, edges[0], edges[-1] - 1e-6)
    return np.histogram(inside, edges)[0] / len(values)


def against(predicted: Stars, actual: Stars) -> Figure:
    """For each actual rating, where the predictions lie: (R,) and (R,) ratings."""
    figure, axes = canvas.picture(
        "Predicted against actual ratings: each column adds to 100 %, lines are the means",
        "actual rating (stars)",
        "predicted rating (stars)",
    )
    levels = _levels(actual)
    place = _nearest(actual, levels)
    edges = np.linspace(levels[0], levels[-1], 19)
    for column in range(len(levels)):
        own = predicted[place == column]
        if not len(own):
            continue
        share = np.histogram(np.clip(own, edges[0], edges[-1]), edges)[0] / len(own)
        for low, high, part in zip(edges[:-1], edges[1:], share.tolist(), strict=True):
            box = Rectangle((column - 0.46, low), 0.92, high - low, linewidth=0)
            box.set(facecolor=canvas.FIRST, alpha=min(part * 3, 1.0))
            axes.add_patch(box)
        mean = float(own.mean())
        axes.plot([column - 0.46, column + 0.46], [mean, mean], color=canvas.SERIES[1], linewidth=2)
    axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    axes.set_xlim(-0.6, len(levels) - 0.4)
    axes.set_ylim(edges[0], edges[-1])
    return figure


def calibration(predicted: Stars, actual: Stars) -> Figure:
    """Mean actual rating of ten groups of equal size by prediction: (R,) and (R,) ratings."""
    figure, axes = canvas.picture(
        "Calibration: what ratings were where the model expected so many stars",
        "predicted rating (stars), mean of a tenth of the ratings",
        "mean actual rating (stars)",
    )
    groups = np.array_split(np.argsort(predicted, kind="stable"), min(10, len(predicted)))
    x = np.array([predicted[own].mean() for own in groups])
    y = np.array([actual[own].mean() for own in groups])
    error = np.array([1.96 * actual[own].std() / max(len(own), 1) ** 0.5 for own in groups])
    ends = [min(x.min(), (y - error).min()) - 0.1, max(x.max(), (y + error).max()) + 0.1]
    axes.plot(ends, ends, color=canvas.SOFT, linestyle="--", label="perfect")
    style: dict[str, Any] = {"color": canvas.FIRST, "ecolor": canvas.FIRST, "capsize": 2}
    axes.errorbar(x, y, error, fmt="o-", markersize=5, label="model, 95 % interval", **style)
    canvas.legend(axes)
    return figure


def error_by_level(predicted: Stars, actual: Stars) -> Figure:
    """Mean absolute error and bias at each actual rating: (R,) and (R,) ratings."""
    figure, axes = canvas.picture(
        "Error by rating: rare ratings are pulled to the mean",
        "actual rating (stars)",
        "stars",
    )
    levels = _levels(actual)
    place = _nearest(actual, levels)
    off = predicted.astype(np.float64) - actual
    groups = [off[place == n] for n in range(len(levels))]
    series = {
        "mean absolute error": [float(np.abs(own).mean()) for own in groups],
        "bias (predicted less actual)": [float(own.mean()) for own in groups],
    }
    names = [f"{level:g}" for level in levels]
    canvas.grouped(axes, names, dict(series), [canvas.FIRST, canvas.SERIES[1]])
    axes.axhline(0, color=canvas.SOFT, linewidth=0.8)
    canvas.legend(axes)
    return figure


# -------------------------------------------------------------------------------- places


def places(rank: NDArray[np.int64], items: int) -> Figure:
    """Where held-out items stand in their users' lists.

    Args:
        rank: (R,) places from 1 among all films that the user has not rated.
        items: Length of the longest list.
    """
    half = int(np.median(rank))
    title = f"Places of held-out films: half are among the first {half:,} of {items:,}"
    figure, axes = canvas.picture(title, "place in the user's list", "share of held-out films")
    edges = np.unique(np.append(np.geomspace(1, items, 9).astype(int)[:-1], items + 1))
    found = np.histogram(rank, edges)[0] / len(rank)
    chance = np.diff(edges) / items
    names = [f"{a:,}" if b - a == 1 else f"{a:,}-{b - 1:,}" for a, b in zip(edges, edges[1:])]  # noqa: B905, RUF007
    series = {"model": list(found), "by chance": list(chance)}
    canvas.grouped(axes, names, dict(series), [canvas.FIRST, canvas.SOFT])
    axes.tick_params(axis="x", rotation=30)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    canvas.legend(axes)
    return figure


def found_by_place(rank: NDArray[np.int64], users: int, length: int = 50) -> Figure:
    """How often the film at each place was held out: what a score's place is worth.

    Args:
        rank: (R,) places from 1.
        users: Users with held-out films.
        length: Places to show.
    """
    title = "Calibration of the order: how often the film at a place was indeed held out"
    figure, axes = canvas.picture(title, "place in the list", "share of users who rated it")
    share = np.bincount(rank[rank <= length], minlength=length + 1)[1:] / users
    axes.plot(range(1, length + 1), share, "o", markersize=3, color=canvas.FIRST)
    width = 5
    means = [share[n : n + width].mean() for n in range(0, length, width)]
    middles = [n + (width + 1) / 2 for n in range(0, length, width)]
    axes.plot(middles, means, color=canvas.SERIES[1], label=f"mean of {width} places")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    canvas.legend(axes)
    return figure


def place_by_level(rank: NDArray[np.int64], actual: Stars) -> Figure | None:
    """Median place of held-out items by their rating, with the middle half.

    Args:
        rank: (R,) places from 1.
        actual: (R,) stars.

    Returns:
        None where all ratings are the same.
    """
    levels = _levels(actual)
    if len(levels) < 2:
        return None
    place = _nearest(actual, levels)
    figure, axes = canvas.picture(
        "Places of held-out films by the stars they got: median and middle half",
        "actual rating (stars)",
        "place in the list (log scale)",
    )
    groups = [rank[place == n] for n in range(len(levels))]
    low, middle, high = (np.array([np.quantile(g, q) for g in groups]) for q in (0.25, 0.5, 0.75))
    spread = np.stack([middle - low, high - middle])
    style: dict[str, Any] = {
        "color": canvas.FIRST,
        "ecolor": canvas.FIRST,
        "capsize": 3,
        "markersize": 7,
    }
    axes.errorbar(range(len(levels)), middle, spread, fmt="o", **style)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.invert_yaxis()
    axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    axes.set_xlim(-0.6, len(levels) - 0.4)
    return figure
