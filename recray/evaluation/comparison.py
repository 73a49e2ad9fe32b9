"""Compare models on the same users: intervals by bootstrap, and the gate before a promotion.

The gate compares a new bundle with the live one on the live one's hold-out, and refuses a worse
one. That is fair only if the new bundle was trained on none of those ratings.
"""

# Shape letters: U = users measured, M = metrics, W = bootstrap draws.

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recray.config import EvaluateSettings
from recray.data.dataset import Prepared, Ratings
from recray.errors import CheckFailed, RecrayError
from recray.evaluation.metrics import RATING, PerUserMetrics, blocks_of, evaluate_block
from recray.evaluation.report import Interval
from recray.inference.bundle import Bundle
from recray.inference.scorer import Scorer

DRAWS = 1000
"""Bootstrap draws for one interval."""
DRAW_BLOCK = 50
"""Bootstrap draws whose weights are in memory at once."""

Floats = NDArray[np.float64]


def _fractions(table: PerUserMetrics, names: list[str]) -> tuple[Floats, Floats]:
    """(U, M) numerators and (U, M) denominators; see PerUserMetrics.fraction."""
    top, bottom = zip(*(table.fraction(name) for name in names), strict=True)
    return np.stack(top, axis=1), np.stack(bottom, axis=1)


def _ratios(names: list[str], top: Floats, bottom: Floats) -> Floats:
    """Means of metrics from their sums; the last axis is the metrics. rmse takes the root."""
    with np.errstate(invalid="ignore"):
        means: Floats = top / bottom
        if "rmse" in names:
            place = names.index("rmse")
            means[..., place] = np.sqrt(means[..., place])
    return means


def _means(table: PerUserMetrics, names: list[str]) -> Floats:
    top, bottom = _fractions(table, names)
    return _ratios(names, top.sum(axis=0), bottom.sum(axis=0))


def means(table: PerUserMetrics, names: list[str]) -> dict[str, float]:
    """Each metric's mean over users, without an interval."""
    return dict(zip(names, _means(table, names).tolist(), strict=True))


def _draws(tables: list[PerUserMetrics], names: list[str], seed: int) -> list[Floats]:
    """(W, M) bootstrap means of each table; draw w takes the same users of every table."""
    rng = np.random.default_rng(seed)
    users = len(tables[0].user)
    pairs = [_fractions(table, names) for table in tables]
    out: list[list[Floats]] = [[] for _ in tables]
    for _ in range(DRAWS // DRAW_BLOCK):
        chosen = rng.integers(0, users, (DRAW_BLOCK, users))
        weight = np.stack([np.bincount(row, minlength=users) for row in chosen]).astype(np.float64)
        for rows, (top, bottom) in zip(out, pairs, strict=True):
            rows.append(_ratios(names, weight @ top, weight @ bottom))
    return [np.concatenate(rows) for rows in out]


def _interval(draws: Floats) -> tuple[float, float]:
    if np.isnan(draws).all():
        return np.nan, np.nan
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)


def summarise(table: PerUserMetrics, names: list[str], seed: int = 0) -> dict[str, Interval]:
    """Each metric's mean over users with its 95 % bootstrap interval over users.

    The interval holds the mean: where all users have the same value, the draws differ from it by
    rounding, and the ends are moved to it.
    """
    (draws,) = _draws([table], names, seed)
    intervals = [_interval(column) for column in draws.T]
    return {
        name: Interval(value=value, low=min(low, value), high=max(high, value))
        for (name, value), (low, high) in zip(means(table, names).items(), intervals, strict=True)
    }


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
        better = (self.difference > 0) != (self.metric in RATING)
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


class NotComparable(RecrayError):
    """A candidate has no hold-out to be compared on; `--force` promotes it all the same."""


def check_not_worse(candidate: Bundle, live: Bundle) -> str:
    """Compare a candidate with the live bundle on the live one's hold-out.

    Returns:
        The verdict in words.

    Raises:
        CheckFailed: The candidate is worse by the paired interval.
        NotComparable: The two cannot be compared.
    """
    comparison = compare_on_holdout(candidate, live, live)
    words = comparison.words(f"the live version {live.version}")
    own, other = (bundle.measured.settings.train.fit_on for bundle in (candidate, live))
    if own != other:  # an older version, or one without a final fit
        words += f"; compared are the new fit on {own} and the live one on {other}"
    if comparison.sign < 0:
        raise CheckFailed(
            f"{candidate.version} is not promoted: {words}; use --force to promote it"
        )
    return words


def compare_on_holdout(candidate: Bundle, other: Bundle, live: Bundle) -> Comparison:
    """Compare a candidate with another bundle on the live one's hold-out.

    Raises:
        NotComparable: There is no hold-out, or the candidate was trained on some of it or on
            another data set.
    """
    candidate, other, live = candidate.measured, other.measured, live.measured
    datasets = candidate.config["dataset"], live.config["dataset"]
    if datasets[0] != datasets[1]:
        raise NotComparable(
            f"{candidate.version} comes from {datasets[0]}, the live version from {datasets[1]}: "
            "they cannot be compared; use --force to promote it"
        )
    check_holdout_unseen(candidate.version, candidate.interactions.used, candidate, live)
    k = min(10, *(bundle.item_ids.known for bundle in (candidate, other, live)))
    metric = f"ndcg@{k}" if live.settings.ranks or candidate.settings.ranks else "rmse"
    settings = live.settings.evaluate.model_copy(update={"k": (k,)})
    first, second = (_measure(bundle, live, settings) for bundle in (candidate, other))
    return compare(first, second, metric)


def check_holdout_unseen(name: str, ratings: Ratings, ids: Bundle | Prepared, live: Bundle) -> None:
    """Refuse training data that hold ratings of the live version's hold-out.

    Args:
        name: Name of the candidate, for the error.
        ratings: The ratings that it is trained on.
        ids: Its id tables, in whose ids the ratings are.
        live: The live version.

    Raises:
        NotComparable: The data hold some of them, or there is no hold-out.
    """
    if not len(live.holdout):
        raise NotComparable(
            "the live version has no hold-out to compare on; use --force to promote"
        )
    seen = _count_shared(ratings, ids, live)
    if seen:
        raise NotComparable(
            f"{name} knows {seen:,} ratings of the hold-out that it would be compared on; "
            "prepare with the same split settings, or use --force"
        )


def _count_shared(ratings: Ratings, ids: Bundle | Prepared, live: Bundle) -> int:
    """Count the ratings of the live version's hold-out that are among these, by user and item."""
    user = ids.user_ids.encode(live.user_ids.raw[live.holdout.user]).astype(np.int64)
    item = ids.item_ids.encode(live.item_ids.raw[live.holdout.item])
    items = len(ids.item_ids)
    # user * items + item is another number for each pair, so pairs are compared as numbers.
    held_out = (user * items + item)[(user >= 0) & (item >= 0)]
    return int(np.isin(held_out, ratings.user.astype(np.int64) * items + ratings.item).sum())


def _measure(bundle: Bundle, live: Bundle, settings: EvaluateSettings) -> PerUserMetrics:
    """Measure a bundle on the live one's hold-out; the rows are sorted by raw user id."""
    raw_user = live.user_ids.raw[live.holdout.user]
    targets = _reencode(live.holdout, live, bundle)
    order = np.argsort(targets.user, kind="stable")  # `blocks_of` wants the rows of a user together
    targets = targets.where(order)
    scorer = Scorer.for_measurement(bundle, int(targets.user[-1]) + 1)
    table = PerUserMetrics.join(
        evaluate_block(scorer, targets, b, settings) for b in blocks_of(targets)
    )
    # Dense ids differ between the bundles, raw ids do not: they line the two tables up.
    _, first_row = np.unique(targets.user, return_index=True)
    raw = raw_user[order][first_row]
    by_raw = np.argsort(raw)
    return replace(table.where(by_raw), user=raw[by_raw])


def _reencode(ratings: Ratings, source: Bundle, target: Bundle) -> Ratings:
    """Give ratings the dense ids of another bundle; users and items unknown to it get new ids."""
    columns = []
    for ids, raw in (
        (target.user_ids, source.user_ids.raw[ratings.user]),
        (target.item_ids, source.item_ids.raw[ratings.item]),
    ):
        dense: NDArray[np.int32] = ids.encode(raw)
        _, place = np.unique(raw[dense < 0], return_inverse=True)
        dense[dense < 0] = (len(ids) + place).astype(np.int32)
        columns.append(dense)
    return replace(ratings, user=columns[0], item=columns[1])
