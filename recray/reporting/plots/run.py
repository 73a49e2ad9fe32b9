"""Plots of a run: the ratings that it trained on, and its epochs."""

# Shape letters: L = rating levels, U = users, I = items, R = ratings.

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from recray import schema
from recray.reporting.plots import style

MOST_GENRES = 18
MOST_LEVELS = 20
LOSS_WORDS = {
    "mse": "squared error (stars²)",
    "bce": "cross-entropy (nats)",
    "classes": "cross-entropy (nats)",
    "item-softmax": "cross-entropy (nats)",
    "logistic": "cross-entropy (nats)",
    "bpr": "cross-entropy (nats)",
    "unobserved-class": "cross-entropy (nats)",
    "ials": "loss a rating (no unit)",
    "bpmf": "squared error (stars²)",
}
THOUSANDS = "{x:,.0f}"
"""Format of the numbers of an axis."""

Entries = Sequence[Mapping[str, float]]
"""One entry an epoch: epoch, loss, seconds, and validation metrics."""


# -------------------------------------------------------------------------------- the data


def rating_counts(pairs: Sequence[Sequence[float]]) -> Figure:
    """How often each rating was given.

    Args:
        pairs: (L, 2) stars and number of ratings, ascending by stars.
    """
    figure, axes = style.picture("How often each rating was given", "rating (stars)", "ratings")
    if len(pairs) > MOST_LEVELS:
        stars, counts = np.asarray(pairs).T
        axes.hist(stars, MOST_LEVELS, weights=counts.tolist(), color=style.FIRST, rwidth=0.9)
    else:
        counted = [count for _, count in pairs]
        drawn = axes.bar(range(len(pairs)), counted, color=style.FIRST, width=0.75)
        axes.set_xticks(range(len(pairs)), [f"{stars:g}" for stars, _ in pairs])
        shares = [_percent(count / sum(counted)) for count in counted]
        axes.bar_label(drawn, shares, color=style.SOFT, fontsize=9, padding=2)
    axes.yaxis.set_major_formatter(THOUSANDS)
    return figure


def activity(counts: NDArray[np.int64], who: str) -> Figure:
    """How many ratings each user, or each film, has; those without any are left out.

    Args:
        counts: (U,) or (I,) ratings of each.
        who: user or film.
    """
    rated = counts[counts > 0]
    title = f"How many ratings a {who} has: half have {int(np.median(rated)):,} or fewer"
    figure, axes = style.picture(title, f"ratings of the {who} (log scale)", f"{who}s")
    top = max(int(rated.max()), int(rated.min()) + 1) + 1
    edges = np.unique(np.geomspace(rated.min(), top, 25).astype(int)).tolist()
    axes.hist(rated, edges, color=style.FIRST, rwidth=0.92)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvline(float(np.median(rated)), color=style.SERIES[1], linewidth=1.5)
    axes.yaxis.set_major_formatter(THOUSANDS)
    return figure


def over_time(seconds: NDArray[np.int64]) -> Figure | None:
    """Ratings by year, or by month where the years are few.

    Args:
        seconds: (R,) Unix seconds; schema.UNKNOWN_TIME where unknown.

    Returns:
        None where no rating has a time.
    """
    known = seconds[seconds != schema.UNKNOWN_TIME].astype("datetime64[s]")
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
    axes.yaxis.set_major_formatter(THOUSANDS)
    return figure


def genres(ratings: Mapping[str, int]) -> Figure | None:
    """Ratings of the items of each genre; an item may have several.

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
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.locator_params(axis="x", nbins=5)
    return figure


def _percent(share: float) -> str:
    return "<1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


# ------------------------------------------------------------------------------- the epochs


def loss(entries: Entries, objective: str) -> Figure | None:
    """The loss on training rows, and on validation rows where the validation metric is the same.

    Args:
        entries: The history of a run.
        objective: objective.kind.

    Returns:
        None where nothing was minimised: a model in closed form.
    """
    if any("loss" not in entry for entry in entries):
        return None
    epochs = [entry["epoch"] for entry in entries]
    valid = objective in ("mse", "bpmf") and all("rmse" in entry for entry in entries)
    rows = "training and validation ratings" if valid else "the training ratings"
    words = LOSS_WORDS.get(objective, "loss")
    figure, axes = style.picture(f"Loss on {rows}, by epoch", "epoch", words)
    _line(axes, epochs, [entry["loss"] for entry in entries], style.FIRST, "training")
    if valid:
        squared = [entry["rmse"] ** 2 for entry in entries]
        _line(axes, epochs, squared, style.SERIES[1], "validation")
        style.legend(axes)
    style.epochs(axes, entries[-1]["epoch"])
    return figure


def metric(entries: Entries, name: str, best_epoch: int) -> Figure | None:
    """A validation metric by epoch, with the epoch that was chosen.

    Args:
        entries: The history of a run.
        name: The metric.
        best_epoch: The chosen epoch.

    Returns:
        None where nothing was validated.
    """
    measured = [entry for entry in entries if entry.get(name) is not None]
    if not measured:
        return None
    unit = " (stars)" if name in ("rmse", "mae") else " (0 to 1)"
    title = f"{name.upper()} on the validation split: epoch {best_epoch} was chosen"
    figure, axes = style.picture(title, "epoch", f"{name.upper()}{unit}")
    epochs = [entry["epoch"] for entry in measured]
    _line(axes, epochs, [entry[name] for entry in measured], style.FIRST, name)
    chosen = [entry[name] for entry in measured if entry["epoch"] == best_epoch]
    axes.plot([best_epoch] * len(chosen), chosen, "o", color=style.SERIES[1], markersize=8)
    style.epochs(axes, entries[-1]["epoch"])
    return figure


def speed(entries: Entries, rows: int) -> Figure:
    """Training ratings a second in each epoch, validation included.

    Args:
        entries: The history of a run.
        rows: Training ratings.
    """
    rates = [rows / max(entry["seconds"], 1e-4) for entry in entries]
    title = f"Ratings a second, validation included: {np.median(rates):,.0f} in the median epoch"
    figure, axes = style.picture(title, "epoch", "training ratings a second")
    axes.bar([entry["epoch"] for entry in entries], rates, color=style.FIRST)
    axes.yaxis.set_major_formatter(THOUSANDS)
    style.epochs(axes, entries[-1]["epoch"])
    return figure


def _line(axes: Axes, epochs: list[float], values: list[float], color: str, label: str) -> None:
    marker = "o" if len(epochs) <= 30 else ""
    axes.plot(epochs, values, marker=marker, markersize=4, color=color, label=label)
