"""Means over users, their bootstrap intervals, and paired comparisons with a verdict in words."""

# Shape letters: U = users measured, M = metrics, W = bootstrap draws.

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recray.evaluation import metrics
from recray.evaluation.per_user import PerUserMetrics
from recray.evaluation.report import Interval

DRAWS = 1000
DRAW_BLOCK = 50
"""Bootstrap draws whose weights are in memory at once."""


def _numerators(
    table: PerUserMetrics, names: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(U, M) numerators and (U, M) denominators, whose ratio of sums is each metric's mean."""
    top, bottom = [], []
    for name in names:
        if name in metrics.RATING:
            top.append(table.values["squared_error" if name == "rmse" else "absolute_error"])
            bottom.append(table.values["ratings"])
        else:
            value = table.values[name]
            top.append(np.nan_to_num(value))
            bottom.append((~np.isnan(value)).astype(np.float64))
    return np.stack(top, axis=1), np.stack(bottom, axis=1)


def _finish(names: list[str], means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take the root where a metric is one; the last axis is the metrics."""
    out = means.copy()
    if "rmse" in names:
        place = names.index("rmse")
        out[..., place] = np.sqrt(out[..., place])
    return out


def _means(table: PerUserMetrics, names: list[str]) -> NDArray[np.float64]:
    top, bottom = _numerators(table, names)
    with np.errstate(invalid="ignore"):
        return _finish(names, top.sum(axis=0) / bottom.sum(axis=0))


def means(table: PerUserMetrics, names: list[str]) -> dict[str, float]:
    """Each metric's mean over users, without an interval."""
    return dict(zip(names, _means(table, names).tolist(), strict=True))


def _draws(tables: list[PerUserMetrics], names: list[str], seed: int) -> list[NDArray[np.float64]]:
    """(W, M) bootstrap means of each table; draw w takes the same users of every table."""
    rng = np.random.default_rng(seed)
    users = len(tables[0].user)
    pairs = [_numerators(table, names) for table in tables]
    out: list[list[NDArray[np.float64]]] = [[] for _ in tables]
    for _ in range(DRAWS // DRAW_BLOCK):
        chosen = rng.integers(0, users, (DRAW_BLOCK, users))
        weight = np.stack([np.bincount(row, minlength=users) for row in chosen]).astype(np.float64)
        for place, (top, bottom) in enumerate(pairs):
            with np.errstate(invalid="ignore"):
                out[place].append(_finish(names, (weight @ top) / (weight @ bottom)))
    return [np.concatenate(rows) for rows in out]


def _interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    if np.isnan(draws).all():
        return np.nan, np.nan
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)


def summarise(table: PerUserMetrics, names: list[str], seed: int = 0) -> dict[str, Interval]:
    """Each metric's mean over users with its 95 % bootstrap interval over users."""
    means, (draws,) = _means(table, names), _draws([table], names, seed)
    out = {}
    for place, name in enumerate(names):
        low, high = _interval(draws[:, place])
        out[name] = Interval(value=float(means[place]), low=low, high=high)
    return out


@dataclass(frozen=True)
class Comparison:
    """One model against another on the same users.

    Args:
        metric: What is compared.
        difference: Mean of the first less mean of the second.
        low: Lower end of the paired 95 % interval.
        high: Upper end.
    """

    metric: str
    difference: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 if the first is better, -1 if worse, 0 if they cannot be told apart."""
        if not (self.low > 0 or self.high < 0):  # nan, where nothing can be measured, as well
            return 0
        better = (self.difference > 0) != (self.metric in metrics.RATING)
        return 1 if better else -1

    def words(self, other: str) -> str:
        """The verdict as a sentence."""
        verdict = {1: "better than", -1: "worse than", 0: "not distinguishable from"}[self.sign]
        return (
            f"{self.metric}: {verdict} {other} "
            f"({self.difference:+.4f}, 95% {self.low:+.4f} to {self.high:+.4f})"
        )


def compare(
    first: PerUserMetrics, second: PerUserMetrics, metric: str, seed: int = 0
) -> Comparison:
    """Paired comparison over the users of both tables.

    Raises:
        ValueError: The tables are not about the same users.
    """
    if not np.array_equal(first.user, second.user):
        raise ValueError("a paired comparison needs the same users in both tables")
    names = [metric]
    draws = _draws([first, second], names, seed)
    low, high = _interval((draws[0] - draws[1])[:, 0])
    difference = float(_means(first, names)[0] - _means(second, names)[0])
    return Comparison(metric, difference, low, high)
