"""Plots of a run: the ratings that it trained on, its epochs, and what its lists measured."""

# Shape letters: L = rating levels, U = users, I = items, R = ratings.

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from recray import schema
from recray.evaluation.report import EvaluationReport, Interval, Segment
from recray.reporting.plots import style

MOST_GENRES = 18
MOST_LEVELS = 20
ERRORS = ("rmse", "mae")
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


def loss(entries: Entries, objective: str) -> Figure:
    """The loss on training rows, and on validation rows where the validation metric is the same.

    Args:
        entries: The history of a run.
        objective: objective.kind.
    """
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


# ---------------------------------------------------------------------------- the evaluation


def beside(report: EvaluationReport, errors: bool) -> Figure | None:
    """Every metric with its 95 % interval, of the model and of each baseline.

    Args:
        report: An evaluation.
        errors: The errors in stars; otherwise the metrics of lists, which lie in 0..1.

    Returns:
        None where there are none of them.
    """
    names = [name for name in report.metrics if (name in ERRORS) == errors]
    if not names:
        return None
    title, unit = "Lists on the test split, with 95 % intervals: higher is better", "0 to 1"
    if errors:
        title, unit = "Error on the test split, with 95 % intervals: lower is better", "stars"
    systems = {"model": report.metrics} | {n: b.metrics for n, b in report.baselines.items()}
    systems = {system: means for system, means in systems.items() if means.keys() & set(names)}
    height = 1.6 + 0.12 * len(names) * len(systems)
    figure, axes = style.picture(title, unit, "", (style.WIDE, max(height, 2.4)))
    step = 0.75 / len(systems)
    for place, (system, means) in enumerate(systems.items()):
        _means(axes, names, means, step * (place + 0.5) - 0.375, system)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=style.GRID)
    if not errors:
        axes.set_xlim(left=0)
    style.legend_above(axes, len(systems))
    return figure


def _means(
    axes: Axes, names: list[str], means: Mapping[str, Interval], offset: float, system: str
) -> None:
    """Draw the means of one system, each `offset` below the line of its metric."""
    measured = [(row, means[name]) for row, name in enumerate(names) if name in means]
    x = [mean.value for _, mean in measured]
    low, high = ([getattr(m, end) for _, m in measured] for end in ("low", "high"))
    spread = [np.subtract(x, low), np.subtract(high, x)]
    y = [row + offset for row, _ in measured]
    style.intervals(axes, x, y, style.color_of(system), fmt="o", xerr=spread, label=system)


def by_history(report: EvaluationReport) -> Figure | None:
    """NDCG of groups of users, by how many of their ratings are known.

    Returns:
        None where the evaluation has no groups.
    """
    groups = report.slices.users
    metric = next((name for name in report.metrics if name.startswith("ndcg")), None)
    if not groups or metric is None:
        return None
    words = metric.replace("ndcg", "NDCG")
    names = [f"{name}\n{group.users:,} users" for name, group in groups.items()]
    title = f"Who is served: {words} by how many ratings of a user are known"
    return _groups(title, "known ratings of the user", f"{words} (0 to 1)", names, groups, metric)


def by_popularity(report: EvaluationReport) -> Figure | None:
    """Recall of groups of items, by how many ratings they have.

    Returns:
        None where the evaluation has no groups.
    """
    groups = report.slices.items
    metric = next((n for group in groups.values() for n in group.systems.get("model", {})), None)
    if metric is None:
        return None
    words = {"head": "50 and more", "middle": "5 to 49", "tail": "under 5"}
    names = [f"{words.get(n, n)}\n{g.ratings:,} held out" for n, g in groups.items()]
    title = (
        f"Which films are found: {metric.replace('recall', 'Recall')} by how often films are rated"
    )
    y = f"{metric.replace('recall', 'Recall')} (0 to 1)"
    return _groups(title, "known ratings of the film", y, names, groups, metric)


def _groups(
    title: str, x: str, y: str, names: list[str], groups: Mapping[str, Segment], metric: str
) -> Figure:
    figure, axes = style.picture(title, x, y)
    systems = list(next(iter(groups.values())).systems)
    series = {s: [group.systems[s].get(metric) for group in groups.values()] for s in systems}
    style.grouped(axes, names, series, [style.color_of(s) for s in systems])
    style.legend_above(axes, len(systems))
    return figure


def catalogue(report: EvaluationReport) -> Figure | None:
    """Coverage, novelty and Gini of all lists, of the model and of each baseline.

    Returns:
        None where the protocol chooses what can be shown.
    """
    model = report.catalogue
    if not model:
        return None
    kinds = {
        "coverage": "share of all films\nin some list",
        "novelty": "novelty (bits)",
        "gini": "Gini: 0 even,\n1 one film only",
    }
    chosen = {kind: next(n for n in model if n.startswith(kind)) for kind in kinds}
    k = chosen["gini"].partition("@")[2]
    systems = {"model": model} | {n: b.catalogue or {} for n, b in report.baselines.items()}
    title = f"What all lists of {k} show: how much of the catalogue, how little known, how unevenly"
    size = (style.WIDE, 1.9 + 0.28 * len(systems))
    figure, row = style.row_of(title, list(kinds.values()), size)
    for axes, (kind, name) in zip(row, chosen.items(), strict=True):
        values = [facts.get(name) or 0.0 for facts in systems.values()]
        colors = [style.color_of(system) for system in systems]
        drawn = axes.barh(list(systems), values, color=colors)
        words = [f"{v:.1f}" if kind == "novelty" else f"{v:.2f}" for v in values]
        axes.bar_label(drawn, words, padding=2, color=style.SOFT, fontsize=9)
        axes.set_xlim(0, max(*values, 1e-9) * 1.35)
        axes.grid(False)
        axes.locator_params(axis="x", nbins=3)
        axes.xaxis.set_major_formatter("{x:g}")
    row[0].invert_yaxis()
    return figure
