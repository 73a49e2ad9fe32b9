"""Compare systems on the same users: intervals by bootstrap, p values, Holm's correction.

Users are what is drawn: a user who was measured at several targets is one draw. A mean is a ratio
of sums, see PerUserMetrics.fraction.
"""

# Shape letters: U = users measured, M = metrics, W = bootstrap draws, P = permutations,
# C = comparisons.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from recray.evaluation.metrics import RATING, PerUserMetrics
from recray.evaluation.report import Interval

DRAWS = 1000
"""Bootstrap draws for one interval."""
DRAW_BLOCK = 50
"""Bootstrap draws whose weights are in memory at once."""
PERMUTATIONS = 9_999
"""Permutations for one p value, whose least value is therefore 0.0001."""
BYTES = 128
"""Bytes of coins, each of 8 users, that are drawn at once for every permutation."""
ALPHA = 0.05
"""A p value below is a difference."""

Floats = NDArray[np.float64]


def _fractions(table: PerUserMetrics, names: Sequence[str]) -> tuple[Floats, Floats]:
    """(U, M) numerators and (U, M) denominators; see PerUserMetrics.fraction."""
    top, bottom = zip(*(table.fraction(name) for name in names), strict=True)
    return np.stack(top, axis=1), np.stack(bottom, axis=1)


def _ratios(names: Sequence[str], top: Floats, bottom: Floats) -> Floats:
    """Means of metrics from their sums; the last axis is the metrics. rmse takes the root."""
    with np.errstate(invalid="ignore"):
        means: Floats = top / bottom
        for place, name in enumerate(names):
            if name == "rmse":
                means[..., place] = np.sqrt(means[..., place])
    return means


def means(table: PerUserMetrics, names: Sequence[str]) -> dict[str, float]:
    """Each metric's mean over users, without an interval."""
    top, bottom = _fractions(table, names)
    found = _ratios(names, top.sum(axis=0), bottom.sum(axis=0))
    return dict(zip(names, found.tolist(), strict=True))


def _interval(draws: Floats) -> tuple[float, float]:
    if np.isnan(draws).all():
        return np.nan, np.nan
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """One system against another on the same users.

    Args:
        metric: What is compared.
        difference: Mean of the first less mean of the second.
        low: Lower end of the paired 95 % interval.
        high: Upper end.
        p: The p value, by sign_flip; None where only the interval was asked for.
        p_holm: The same after Holm's correction for the other comparisons beside it.
    """

    metric: str
    difference: float
    low: float
    high: float
    p: float | None = None
    p_holm: float | None = None

    @property
    def sign(self) -> int:
        """1 if the first is better, -1 if worse, 0 if they cannot be told apart.

        The corrected p value decides; the interval where there is none.
        """
        told_apart = self.low > 0 or self.high < 0  # not where nothing can be measured: nan
        if self.p_holm is not None:
            told_apart = self.p_holm < ALPHA
        if not told_apart:
            return 0
        better = (self.difference > 0) != (self.metric in RATING)
        return 1 if better else -1

    @property
    def verdict(self) -> str:
        """The sign in words."""
        return {1: "better than", -1: "worse than", 0: "not distinguishable from"}[self.sign]

    def words(self, other: str) -> str:
        """The verdict as a sentence."""
        corrected = "" if self.p_holm is None else f", p {self.p_holm:.4f} after Holm"
        return (
            f"{self.metric}: {self.verdict} {other} "
            f"({self.difference:+.4f}, 95% {self.low:+.4f} to {self.high:+.4f}{corrected})"
        )


@dataclass(frozen=True)
class Bootstrap:
    """Means of systems on the same users, and the same means of drawn users.

    Args:
        names: System to the names of its M metrics.
        means: System to (M,) means.
        draws: System to (W, M) means; draw w takes the same users of every system.
    """

    names: Mapping[str, Sequence[str]]
    means: Mapping[str, Floats]
    draws: Mapping[str, Floats]

    @classmethod
    def of(
        cls,
        tables: Mapping[str, PerUserMetrics],
        names: Mapping[str, Sequence[str]],
        seed: int = 0,
    ) -> Self:
        """Draw users for all systems at once.

        Raises:
            ValueError: The tables are not about the same users.
        """
        first = next(iter(tables.values()))
        if any(not np.array_equal(first.user, table.user) for table in tables.values()):
            raise ValueError("a paired comparison needs the same users in both tables")
        rng = np.random.default_rng(seed)
        pairs = {system: _fractions(table, names[system]) for system, table in tables.items()}
        users = len(next(iter(pairs.values()))[0])
        drawn: dict[str, list[Floats]] = {system: [] for system in tables}
        for _ in range(DRAWS // DRAW_BLOCK):
            chosen = rng.integers(0, users, (DRAW_BLOCK, users))
            weight = np.stack([np.bincount(row, minlength=users) for row in chosen])
            weight_WU = weight.astype(np.float64)
            for system, (top, bottom) in pairs.items():
                drawn[system].append(_ratios(names[system], weight_WU @ top, weight_WU @ bottom))
        found = {
            system: _ratios(names[system], top.sum(axis=0), bottom.sum(axis=0))
            for system, (top, bottom) in pairs.items()
        }
        return cls(names, found, {system: np.concatenate(rows) for system, rows in drawn.items()})

    def mean(self, system: str, metric: str) -> float:
        """The mean of one metric."""
        return float(self.means[system][self.names[system].index(metric)])

    def intervals(self, system: str) -> dict[str, Interval]:
        """Each metric's mean with its 95 % interval.

        The interval holds the mean: where all users have the same value, the draws differ from it
        by rounding, and the ends are moved to it.
        """
        ends = [_interval(column) for column in self.draws[system].T]
        values = self.means[system].tolist()
        return {
            name: Interval(value=value, low=min(low, value), high=max(high, value))
            for name, value, (low, high) in zip(self.names[system], values, ends, strict=True)
        }

    def compare(self, first: str, second: str, metric: str) -> Comparison:
        """Paired comparison of two systems."""
        a, b = (self.names[system].index(metric) for system in (first, second))
        low, high = _interval(self.draws[first][:, a] - self.draws[second][:, b])
        difference = float(self.means[first][a] - self.means[second][b])
        return Comparison(metric, difference, low, high)


def summarise(table: PerUserMetrics, names: list[str], seed: int = 0) -> dict[str, Interval]:
    """Each metric's mean over users with its 95 % bootstrap interval over users."""
    return Bootstrap.of({"": table}, {"": names}, seed).intervals("")


def compare(
    first: PerUserMetrics, second: PerUserMetrics, metric: str, seed: int = 0
) -> Comparison:
    """Paired comparison over the users of both tables.

    Raises:
        ValueError: The tables are not about the same users.
    """
    tables, names = {"first": first, "second": second}, {"first": [metric], "second": [metric]}
    return Bootstrap.of(tables, names, seed).compare("first", "second", metric)


# ------------------------------------------------------------------- p values of several of them


def sign_flip(
    first: PerUserMetrics, others: Sequence[tuple[PerUserMetrics, str]], seed: int = 0
) -> Floats:
    """The p value of the difference between a system and each other one, two-sided.

    In every permutation each user swaps the two systems or not, by a fair coin, which is the same
    for all comparisons; p is the share of permutations, the data themselves among them, whose
    difference of means is at least as far from 0.

    Args:
        first: The system.
        others: C other systems on the same users, each with the metric to compare.
        seed: Of the coins.

    Returns:
        (C,) p values; nan where nobody could be measured.

    Source: Smucker, Allan and Carterette (2007), CIKM, "A comparison of statistical significance
        tests for information retrieval evaluation" (Fisher's randomisation test); counting the
        data among the permutations as Phipson and Smyth (2010), SAGMB 9(1), article 39.
    """
    names = [metric for _, metric in others]
    sums = _fractions(first, names)
    pairs = [_fractions(table, [metric]) for table, metric in others]
    other = [np.concatenate([pair[side] for pair in pairs], axis=1) for side in (0, 1)]
    change = [b - a for a, b in zip(sums, other, strict=True)]
    total, rest = ([part.sum(axis=0) for part in side] for side in (sums, other))
    observed = np.abs(_ratios(names, *total) - _ratios(names, *rest))
    moved = np.split(_swapped(np.concatenate(change, axis=1), seed), 2, axis=1)
    one = _ratios(names, *(whole + part for whole, part in zip(total, moved, strict=True)))
    two = _ratios(names, *(whole - part for whole, part in zip(rest, moved, strict=True)))
    # The same difference, added up in another order, is as far.
    as_far = 1 + (np.abs(one - two) >= observed * (1 - 1e-9)).sum(axis=0)
    return np.asarray(np.where(np.isnan(observed), np.nan, as_far / (PERMUTATIONS + 1)))


def _swapped(change: Floats, seed: int) -> Floats:
    """Sums over the users who swap: (U, M) changes to (P, M)."""
    rng, total = np.random.default_rng(seed), np.zeros((PERMUTATIONS, change.shape[1]))
    moving = change.any(axis=0)  # systems are measured on as many targets, so that is often 0
    change = change[:, moving]
    bit = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float64)
    for first in range(0, len(change), 8 * BYTES):
        part = change[first : first + 8 * BYTES]
        width = -(-len(part) // 8)
        eights = np.zeros((width * 8, change.shape[1]))
        eights[: len(part)] = part
        # A byte is the coins of 8 users; so one look-up gives the sum of those who swap.
        sums = np.einsum("vb,nbm->nvm", bit, eights.reshape(width, 8, -1))
        coins = rng.integers(0, 256, (PERMUTATIONS, width), np.uint8)
        place = np.arange(width) * 256 + coins
        total[:, moving] += sums.reshape(width * 256, -1)[place].sum(axis=1)
    return total


def holm(p: Floats) -> Floats:
    """Correct the p values of several comparisons, so that one false find in all is as rare.

    Args:
        p: (C,) p values; nan where nothing could be compared, which counts as no comparison.

    Returns:
        (C,): the i-th smallest of n times n - i (from i = 0), at most 1, and no less than the one
        before.

    Source: Holm (1979), Scandinavian Journal of Statistics 6(2).
    """
    corrected = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * (len(order) - np.arange(len(order)))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def compare_all(
    drawn: Bootstrap,
    tables: Mapping[str, PerUserMetrics],
    first: str,
    family: Sequence[tuple[str, str]],
) -> list[Comparison]:
    """Compare a system with others, each at a metric, and correct their p values together.

    Args:
        drawn: The bootstrap of all of them.
        tables: Their metrics.
        first: The system.
        family: Other systems, each with the metric to compare.
    """
    if not family:
        return []
    p = sign_flip(tables[first], [(tables[name], metric) for name, metric in family])
    return [
        replace(drawn.compare(first, name, metric), p=float(own), p_holm=float(corrected))
        for (name, metric), own, corrected in zip(family, p, holm(p), strict=True)
    ]
