"""Measures ranked lists and predicted stars, with baselines and intervals beside them.

Users are measured in fixed blocks, each by the same code wherever it runs; the vectors are put
together in the order of users and reduced once. So the digits do not depend on the worker count.
"""

# Shape letters: U = users measured, M = metrics, W = bootstrap draws.

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from recray import metrics
from recray.bundle import Bundle
from recray.config import EvaluateSettings
from recray.data.prepared import Ratings
from recray.errors import RecrayError, unknown_name
from recray.models.baselines import Popularity
from recray.recommender import NONE, History, Ranker, Recommender, statistics_of_history

USER_BLOCK = 256
DRAWS = 1000
DRAW_BLOCK = 50


@dataclass(frozen=True)
class UserTable:
    """What was measured of each user.

    Args:
        user: (U,) dense ids, ascending.
        values: Name to (U,) float64; nan where the metric does not apply to the user. Squared and
            absolute errors are sums over the user's ratings; "ratings" counts them.
        shown: (items,) int64; how many lists show each item.
    """

    user: NDArray[np.int64]
    values: dict[str, NDArray[np.float64]]
    shown: NDArray[np.int64]

    @classmethod
    def join(cls, parts: Iterable["UserTable"]) -> Self:
        """All users of the parts, in order; parts may come in any order.

        Raises:
            ValueError: There are no parts.
        """
        ordered = sorted(parts, key=lambda part: int(part.user[0]))
        if not ordered:
            raise ValueError("no parts: nobody was measured")
        values = {
            name: np.concatenate([part.values[name] for part in ordered])
            for name in ordered[0].values
        }
        shown = np.sum([part.shown for part in ordered], axis=0)
        return cls(np.concatenate([part.user for part in ordered]), values, shown)


def blocks_of(targets: Ratings) -> list[NDArray[np.int64]]:
    """The users with held-out ratings in fixed blocks, ascending."""
    users = np.unique(targets.user).astype(np.int64)
    return [users[first : first + USER_BLOCK] for first in range(0, len(users), USER_BLOCK)]


def measure(
    ranker: Ranker, targets: Ratings, users: NDArray[np.int64], settings: EvaluateSettings
) -> UserTable:
    """Measure a block of users on their held-out ratings.

    Args:
        ranker: Ranks the whole catalogue, without what its history holds.
        targets: Held-out ratings, sorted by user; those of other users are not looked at.
        users: (U,) int64 ids, ascending, each with held-out ratings.
        settings: Cut-offs, and from how many stars a rating is relevant.

    Returns:
        One row per user. A held-out item that training does not know counts as relevant and is
        never found.
    """
    begin = np.searchsorted(targets.user, users, "left")
    end = np.searchsorted(targets.user, users, "right")
    rows = np.concatenate([np.arange(a, b) for a, b in zip(begin, end, strict=True)])
    place = np.repeat(np.arange(len(users)), end - begin)
    item, rating = targets.item[rows].astype(np.int64), targets.rating[rows]
    relevant = np.ones(len(rows), bool)
    if settings.relevant_from is not None:
        relevant = rating >= settings.relevant_from
    items = ranker.model.items
    longest = min(max(settings.k), items)
    ranked = ranker.rank(users, longest)
    wanted = np.unique(place[relevant] * np.int64(1 << 32) + item[relevant])
    listed = np.arange(len(users))[:, None] * np.int64(1 << 32) + ranked.item
    hits = np.isin(listed, wanted) & (ranked.item != NONE)
    count = np.bincount(place[relevant], minlength=len(users)).astype(np.int64)
    values = {
        f"{name}@{k}": metric(hits, count, min(k, items))
        for k in settings.k
        for name, metric in metrics.RANKING.items()
    }
    if ranker.model.returns == "stars":
        error = ranker.predict(users[place], item).astype(np.float64) - rating
        values["squared_error"] = _sums(place, error**2, len(users))
        values["absolute_error"] = _sums(place, np.abs(error), len(users))
        values["ratings"] = _sums(place, np.ones(len(place)), len(users))
    shown = np.bincount(ranked.item[ranked.item != NONE].ravel(), minlength=items)
    return UserTable(users, values, shown)


def _sums(place: NDArray[np.int64], weights: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    return np.bincount(place, weights, size).astype(np.float64)


def sums_of(table: UserTable | None, names: Iterable[str]) -> dict[str, tuple[float, float]]:
    """(sum, count) of each metric over a worker's users, to be added to those of others; rmse is
    given as the mean of squares.
    """
    sums = {}
    for name in names:
        if table is None:
            sums[name] = (0.0, 0.0)
        elif name in metrics.RATING:
            error = table.values["squared_error" if name == "rmse" else "absolute_error"]
            sums[name] = (float(error.sum()), float(table.values["ratings"].sum()))
        else:
            values = table.values[name]
            sums[name] = (float(np.nansum(values)), float((~np.isnan(values)).sum()))
    return sums


def metric_names(settings: EvaluateSettings, stars: bool) -> list[str]:
    """The metrics that a model can give: ranking at each k, and errors if it predicts stars."""
    names = [f"{name}@{k}" for k in settings.k for name in metrics.RANKING]
    return names + list(metrics.RATING) if stars else names


def check_metric(name: str, settings: EvaluateSettings, stars: bool) -> None:
    """Refuse a validation metric that the model cannot give.

    Raises:
        RecrayError: It is unknown, or rmse or mae of a model that ranks.
    """
    known = metric_names(settings, stars)
    if name not in known:
        if name in metrics.RATING:
            raise RecrayError(f"train.metric={name}: a ranking model does not predict stars")
        raise unknown_name("metric", name, known)


# --------------------------------------------------------------------- means, intervals, verdicts


def _numerators(table: UserTable, names: list[str]) -> tuple[NDArray[Any], NDArray[Any]]:
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


def _means(table: UserTable, names: list[str]) -> NDArray[np.float64]:
    top, bottom = _numerators(table, names)
    with np.errstate(invalid="ignore"):
        return _finish(names, top.sum(axis=0) / bottom.sum(axis=0))


def _draws(tables: list[UserTable], names: list[str], seed: int) -> list[NDArray[np.float64]]:
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
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)


def summarise(table: UserTable, names: list[str], seed: int = 0) -> dict[str, dict[str, float]]:
    """Each metric's mean over users with its 95 % bootstrap interval over users."""
    means, (draws,) = _means(table, names), _draws([table], names, seed)
    out = {}
    for place, name in enumerate(names):
        low, high = _interval(draws[:, place])
        out[name] = {"value": float(means[place]), "low": low, "high": high}
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
        if self.low <= 0 <= self.high:
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


def compare(first: UserTable, second: UserTable, metric: str, seed: int = 0) -> Comparison:
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


# ----------------------------------------------------------------------------- a whole evaluation


class Evaluator:
    """Measures a bundle and its baselines on held-out ratings.

    Args:
        bundle: An opened bundle.
        settings: Cut-offs and relevance; the bundle's own by default.
        targets: Held-out ratings in the bundle's ids; the bundle's own by default.

    Raises:
        RecrayError: There is nobody to evaluate.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: EvaluateSettings | None = None,
        targets: Ratings | None = None,
    ) -> None:
        self.bundle = bundle
        self.settings = settings or bundle.settings.evaluate
        self.targets = bundle.holdout if targets is None else targets
        self.blocks = blocks_of(self.targets)
        if not self.blocks:
            raise RecrayError("the test split has no ratings: nobody can be evaluated")
        self._check_k()
        ranker = Recommender(bundle).ranker
        self.rankers = {"model": ranker, **baselines(ranker.history, ranker.model)}

    def _check_k(self) -> None:
        largest = max(self.settings.k)
        if largest > self.bundle.item_ids.known:
            raise RecrayError(
                f"evaluate.k={largest} is larger than the catalogue of "
                f"{self.bundle.item_ids.known} items"
            )

    def measure_block(self, block: int) -> dict[str, UserTable]:
        """Model and baselines on one block of users."""
        torch.set_num_threads(1)  # so that sums are added in one order everywhere
        return {
            name: measure(ranker, self.targets, self.blocks[block], self.settings)
            for name, ranker in self.rankers.items()
        }

    def report(self, parts: list[dict[str, UserTable]]) -> dict[str, Any]:
        """Put the blocks together: means, intervals, baselines and the verdict."""
        tables = {name: UserTable.join(part[name] for part in parts) for name in self.rankers}
        stars = self.bundle.model.returns == "stars"
        names = metric_names(self.settings, stars)
        ranking = metric_names(self.settings, stars=False)
        baseline_names = {"popularity": ranking, "bias-only": [*ranking, *metrics.RATING]}
        shown = tables["model"].shown
        config = self.bundle.config
        return {
            "dataset": config["dataset"],
            "preset": self.bundle.settings.preset,
            "model_version": self.bundle.version,
            "users": len(tables["model"].user),
            "split": config["split"]
            | {"rows": {k: v["rows"] for k, v in config["splits"].items()}},
            "metrics": summarise(tables["model"], names),
            "coverage": float((shown > 0).mean()),
            "baselines": {n: summarise(tables[n], m) for n, m in baseline_names.items()},
            "verdict": self._verdict(tables, stars),
            "unseen": config["unseen"],
        }

    def _verdict(self, tables: dict[str, UserTable], stars: bool) -> str:
        ranking = f"ndcg@{self.settings.k[0]}"
        pairs = [(ranking, "popularity")]
        if stars:
            pairs.insert(0, ("rmse", "bias-only"))
        model = tables["model"]
        return "; ".join(compare(model, tables[other], m).words(other) for m, other in pairs)


def baselines(history: History, model: Any) -> dict[str, Ranker]:
    """Popularity and bias-only on the same history."""
    users, items = model.users, model.items
    popularity = Popularity(users, items)
    known = min(users, len(history.begins) - 1)
    popularity.observe(statistics_of_history(history, known, items))
    ranker = Ranker(popularity, None, history)
    return {"popularity": ranker, "bias-only": Ranker(ranker.bias_only, None, history)}


def evaluate(bundle: Bundle, settings: EvaluateSettings | None = None) -> dict[str, Any]:
    """Evaluate a bundle on its own hold-out in this process; see Evaluator.report for the keys."""
    evaluator = Evaluator(bundle, settings)
    return evaluator.report([evaluator.measure_block(b) for b in range(len(evaluator.blocks))])
