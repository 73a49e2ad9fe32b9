"""Held-out ratings: what the model predicts for them or where it places them, and their plots."""

# Shape letters: R = held-out ratings, U = users, I = items.

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from recray.data.dataset import Ratings
from recray.inference.recommender import Recommender
from recray.inference.top_k import NONE
from recray.reporting.plots import style

MOST_USERS = 2000
BLOCK = 256
"""Users whose lists are ranked at once."""
Stars = NDArray[np.float32]
MOST_LEVELS = 12


@dataclass(frozen=True)
class HeldOut:
    """Held-out ratings beside what the model says of them.

    Args:
        users: How many users they are of.
        all_users: How many there are.
        actual: (R,) stars.
        predicted: (R,) stars; None where the model ranks.
        rank: (P,) places, from 1, among the films that the user has not rated.
        placed: (P,) stars of those.
    """

    users: int
    all_users: int
    actual: NDArray[np.float32]
    predicted: NDArray[np.float32] | None
    rank: NDArray[np.int64]
    placed: NDArray[np.float32]


def measure(recommender: Recommender) -> HeldOut:
    """Predict and place the held-out ratings of at most MOST_USERS users, evenly chosen."""
    held = recommender.bundle.holdout
    everybody = np.unique(held.user).astype(np.int64)
    chosen = everybody[:: max(1, -(-len(everybody) // MOST_USERS))]
    sample = held.where(np.isin(held.user, chosen))
    user, item = sample.user.astype(np.int64), sample.item.astype(np.int64)
    stars = recommender.bundle.model.score_type == "rating"
    predicted = recommender.measuring_scorer.predict(user, item) if stars else None
    rank = np.concatenate([
        _places(recommender, chosen[first : first + BLOCK], sample)
        for first in range(0, len(chosen), BLOCK)
    ])  # fmt: skip
    placed = rank != NONE
    return HeldOut(
        len(chosen), len(everybody), sample.rating, predicted, rank[placed], sample.rating[placed]
    )


def _places(recommender: Recommender, users: NDArray[np.int64], held: Ratings) -> NDArray[np.int64]:
    """Places of the held-out films of a block of users; NONE for those that no list can have."""
    items = recommender.measuring_scorer.model.items
    rows = np.isin(held.user, users)
    row, item = np.searchsorted(users, held.user[rows]), held.item[rows]
    order = recommender.measuring_scorer.rank(users, items).item
    place = np.full((len(users), items + 1), NONE, np.int64)
    at = np.broadcast_to(np.arange(1, order.shape[1] + 1), order.shape)
    np.put_along_axis(place, np.where(order == NONE, items, order), at, axis=1)
    place[:, items] = NONE
    found: NDArray[np.int64] = place[row, np.minimum(item, items)]
    return found


def typical_users(recommender: Recommender) -> list[int]:
    """Dense ids of three users with held-out ratings: of whom few, some and many ratings are known
    (the quarters of all such users, by number, then by id); nobody is picked by the result.
    """
    held = np.unique(recommender.bundle.holdout.user)
    before = recommender.bundle.interactions.before_test
    counts = np.bincount(before.user, minlength=len(recommender.users))
    ordered = held[np.lexsort((held, counts[held]))]
    places = [len(ordered) * quarter // 4 for quarter in (1, 2, 3)]
    return list(dict.fromkeys(int(ordered[place]) for place in places)) if len(ordered) else []


def _levels(actual: Stars) -> NDArray[np.float64]:
    """The levels of the ratings; whole stars where there are too many."""
    found = np.unique(actual.astype(np.float64))
    return found if len(found) <= MOST_LEVELS else np.unique(np.round(found))


def _nearest(actual: Stars, levels: NDArray[np.float64]) -> NDArray[np.int64]:
    nearest: NDArray[np.int64] = np.abs(actual[:, None] - levels[None, :]).argmin(axis=1)
    return nearest


# -------------------------------------------------------------------------------- stars


def distributions(predicted: Stars, actual: Stars) -> Figure:
    """Histograms of predicted and of actual ratings: (R,) and (R,) ratings."""
    title = "How predicted and actual ratings are spread: predictions keep to the middle"
    if predicted.std() >= actual.std():
        title = "How predicted and actual ratings are spread"
    figure, axes = style.picture(title, "rating (stars)", "share of held-out ratings")
    levels = _levels(actual)
    step = float(np.diff(levels).min()) if len(levels) > 1 else 1.0
    edges = np.arange(levels[0] - step / 2, levels[-1] + step, step)
    series = {"actual": _shares(actual, edges), "predicted": _shares(predicted, edges)}
    names = [f"{low + step / 2:g}" for low in edges[:-1]]
    style.grouped(axes, names, series, [style.SERIES[1], style.FIRST])
    axes.yaxis.set_major_formatter(style.percent())
    style.legend(axes)
    return figure


def _shares(values: Stars, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.clip(values, edges[0], edges[-1] - 1e-6)
    return np.histogram(inside, edges)[0] / len(values)


def predicted_against_actual(predicted: Stars, actual: Stars) -> Figure:
    """For each actual rating, where the predictions lie: (R,) and (R,) ratings."""
    figure, axes = style.picture(
        "Predicted against actual ratings: each column adds to 100 %, lines are the means",
        "actual rating (stars)",
        "predicted rating (stars)",
    )
    levels = _levels(actual)
    place = _nearest(actual, levels)
    edges = np.linspace(levels[0], levels[-1], 19)
    for column in range(len(levels)):
        column_predictions = predicted[place == column]
        if not len(column_predictions):
            continue
        share = np.histogram(np.clip(column_predictions, edges[0], edges[-1]), edges)[0]
        share = share / len(column_predictions)
        for low, high, part in zip(edges[:-1], edges[1:], share.tolist(), strict=True):
            box = Rectangle((column - 0.46, low), 0.92, high - low, linewidth=0)
            box.set(facecolor=style.FIRST, alpha=min(part * 3, 1.0))
            axes.add_patch(box)
        mean = float(column_predictions.mean())
        axes.plot([column - 0.46, column + 0.46], [mean, mean], color=style.SERIES[1], linewidth=2)
    axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    axes.set_xlim(-0.6, len(levels) - 0.4)
    axes.set_ylim(edges[0], edges[-1])
    return figure


def calibration(predicted: Stars, actual: Stars) -> Figure:
    """Mean actual rating of ten groups of equal size by prediction: (R,) and (R,) ratings."""
    figure, axes = style.picture(
        "Calibration: what ratings were where the model expected so many stars",
        "predicted rating (stars), mean of a tenth of the ratings",
        "mean actual rating (stars)",
    )
    groups = np.array_split(np.argsort(predicted, kind="stable"), min(10, len(predicted)))
    x = np.array([predicted[rows].mean() for rows in groups])
    y = np.array([actual[rows].mean() for rows in groups])
    error = np.array([1.96 * actual[rows].std() / max(len(rows), 1) ** 0.5 for rows in groups])
    ends = [min(x.min(), (y - error).min()) - 0.1, max(x.max(), (y + error).max()) + 0.1]
    axes.plot(ends, ends, color=style.SOFT, linestyle="--", label="perfect")
    style.intervals(axes, x, y, yerr=error, fmt="o-", label="model, 95 % interval")
    style.legend(axes)
    return figure


def error_by_level(predicted: Stars, actual: Stars) -> Figure:
    """Mean absolute error and bias at each actual rating: (R,) and (R,) ratings."""
    figure, axes = style.picture(
        "Error by rating: rare ratings are pulled to the mean",
        "actual rating (stars)",
        "stars",
    )
    levels = _levels(actual)
    place = _nearest(actual, levels)
    off = predicted.astype(np.float64) - actual
    groups = [off[place == n] for n in range(len(levels))]
    series = {
        "mean absolute error": [float(np.abs(rows).mean()) for rows in groups],
        "bias (predicted less actual)": [float(rows.mean()) for rows in groups],
    }
    names = [f"{level:g}" for level in levels]
    style.grouped(axes, names, series, [style.FIRST, style.SERIES[1]])
    axes.axhline(0, color=style.SOFT, linewidth=0.8)
    style.legend(axes)
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
    figure, axes = style.picture(title, "place in the user's list", "share of held-out films")
    edges = np.unique(np.append(np.geomspace(1, items, 9).astype(int)[:-1], items + 1))
    found = np.histogram(rank, edges)[0] / len(rank)
    chance = np.diff(edges) / items
    names = [f"{a:,}" if b - a == 1 else f"{a:,}-{b - 1:,}" for a, b in zip(edges, edges[1:])]  # noqa: B905, RUF007
    series = {"model": found, "by chance": chance}
    style.grouped(axes, names, series, [style.FIRST, style.SOFT])
    axes.tick_params(axis="x", rotation=30)
    axes.yaxis.set_major_formatter(style.percent())
    style.legend(axes)
    return figure


def found_by_place(rank: NDArray[np.int64], users: int, length: int = 50) -> Figure:
    """How often the film at each place was held out: what a score's place is worth.

    Args:
        rank: (R,) places from 1.
        users: Users with held-out films.
        length: Places to show.
    """
    title = "Calibration of the order: how often the film at a place was indeed held out"
    figure, axes = style.picture(title, "place in the list", "share of users who rated it")
    share = np.bincount(rank[rank <= length], minlength=length + 1)[1:] / users
    axes.plot(range(1, length + 1), share, "o", markersize=3, color=style.FIRST)
    width = 5
    means = [share[n : n + width].mean() for n in range(0, length, width)]
    middles = [n + (width + 1) / 2 for n in range(0, length, width)]
    axes.plot(middles, means, color=style.SERIES[1], label=f"mean of {width} places")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(style.percent())
    style.legend(axes)
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
    figure, axes = style.picture(
        "Places of held-out films by the stars they got: median and middle half",
        "actual rating (stars)",
        "place in the list (log scale)",
    )
    groups = [rank[place == n] for n in range(len(levels))]
    low, middle, high = (np.array([np.quantile(g, q) for g in groups]) for q in (0.25, 0.5, 0.75))
    spread = np.stack([middle - low, high - middle])
    style.intervals(axes, range(len(levels)), middle, yerr=spread, fmt="o", capsize=3, size=7)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.invert_yaxis()
    axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    axes.set_xlim(-0.6, len(levels) - 0.4)
    return figure
