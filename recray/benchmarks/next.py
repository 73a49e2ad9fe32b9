"""What next: models of order and time on the last rating of each user, beside simple baselines.

The protocol of the published figures: users and items with five ratings and more, repeated until
all have them; the last rating of each user, in the order of the file, is test, the one before it
validates. Models are trained without both, settings are chosen on validation, and the whole
catalogue without the history, which is all but the last rating, is ranked once. With a cut only
users with ratings after the 0.9 quantile of time are measured, on what was known before it.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from recray.benchmarks.experiments import Lab, mean_of, paired, pooled, rounded
from recray.benchmarks.harness import Figures, Measurement, Row
from recray.benchmarks.next_models import BESIDE, CUT, PROTOCOL, Models, Trained
from recray.benchmarks.next_served import fold_in_200
from recray.errors import unknown_name
from recray.evaluation.comparison import summarise
from recray.evaluation.metrics import PerUserMetrics
from recray.progress import Log
from recray.runtime.session import session

NDCG, HITS = "ndcg@10", "hitrate@10"
FLOORS = {
    "markov_1m_part": 0.1657, "markov_100k": 0.1045, "markov_small": 0.0762,
    "sequence_1m_part": 0.18,
}  # fmt: skip
"""NDCG@10 of a Markov chain, counted by an independent script on these splits; and the bar of
attention.
"""
AIMS = {
    "markov_1m_part": 0.169, "markov_100k": 0.113, "markov_small": 0.082,
    "ridge_1m_part": 0.172, "sequence_1m_part": 0.19,
}  # fmt: skip
CURVE_POINTS = 12
Tables = list[PerUserMetrics]
"""A model's metrics of each user, one table for each seed."""


class Ranked(Row):
    """A model on the test ratings, and its paired difference to another one on the same users."""

    figure: str
    data: str
    model: str
    users: int
    ndcg10: float
    low: float
    high: float
    hitrate10: float
    against: str = ""
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    minutes: float | None = None
    floor: float | None = None
    aim: float | None = None


class CurvePoint(Row):
    """How good a run of `sequence` was on validation after so many minutes."""

    figure: str
    data: str
    model: str
    epoch: int
    minutes: float
    valid_ndcg10: float


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        data: Names of data sets; on the first all models are measured, on the others markov.
        trials: Settings of a closed form that are compared on validation.
        seeds: Trainings of `sequence`.
        sequence: Settings that differ from the preset's.
        workers: Processes that train `sequence`, a core each.
    """

    data: tuple[str, ...]
    trials: int
    seeds: int
    sequence: tuple[str, ...] = ()
    workers: int = 2

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of what is measured."""
        main = self.data[0]
        return (
            *(f"markov_{data}_ndcg10" for data in self.data),
            f"ridge_{main}_ndcg10",
            f"sequence_{main}_ndcg10",
            "sequence_train_min",
            f"next_cut_{main}_ndcg10",
            f"markov_cut_{main}_ndcg10",
            "fold_in_200_p95_ms",
            "closed_two_workers_equal",
        )


FULL = Sizes(("1m_part", "100k", "small"), 40, 3)
QUICK = Sizes(("sample",), 4, 1, ("train.epochs=2",), 1)
ON_REQUEST = ("sequence_without_time_ndcg10", "sequence_two_workers_difference")
"""Figures that are measured only when asked for by name: each trains for a quarter of an hour."""


def run(sizes: Sizes, log: Log, data: str | None = None, only: str | None = None) -> Measurement:
    """Train, choose on validation, and open each test split once.

    Args:
        sizes: How much is measured.
        log: Receives what happens, one line at a time.
        data: Folder of archives named after their releases; None downloads them.
        only: One figure; None for all.

    Raises:
        RecrayError: There is no such figure, or an archive is missing.
    """
    known = (*sizes.figures, *ON_REQUEST)
    if only is not None and only not in known:
        raise unknown_name("row", only, known)
    wanted = set(sizes.figures if only is None else (only,))
    with tempfile.TemporaryDirectory(prefix="recray-next-") as out:
        bench = Bench(sizes, Lab(data, out, sizes.seeds, len(sizes.data) == 1, log))
        with session():
            for figures, measure in bench.experiments().items():
                if wanted & set(figures):
                    measure()
        if "fold_in_200_p95_ms" in wanted:  # outside, since the service starts a Ray of its own
            bench.serve()
    return Measurement(bench.figures, bench.rows)


@dataclass
class Bench:
    """The experiments, which share what they have prepared and trained.

    Args:
        sizes: How much is measured.
        lab: Where archives lie, and where everything is written.
        figures: What has been measured so far.
        rows: Its table.
    """

    sizes: Sizes
    lab: Lab
    figures: Figures = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.models = Models(self.lab, self.sizes.trials)

    @property
    def main(self) -> str:
        """The data set on which all models are measured."""
        return self.sizes.data[0]

    def experiments(self) -> dict[tuple[str, ...], Callable[[], None]]:
        """Each by the names of its figures."""
        main = self.main
        return {
            **{
                (f"markov_{data}_ndcg10",): partial(self.markov, data, PROTOCOL, "markov")
                for data in self.sizes.data
            },
            (f"ridge_{main}_ndcg10",): self.ridge,
            (f"sequence_{main}_ndcg10", "sequence_train_min"): self.sequence,
            (f"next_cut_{main}_ndcg10", f"markov_cut_{main}_ndcg10"): self.cut,
            ("closed_two_workers_equal",): self.two_workers,
            ON_REQUEST[:1]: self.without_time,
            ON_REQUEST[1:]: self.sequence_of_two_workers,
        }

    # -------------------------------------------------------------------------- experiments

    def markov(self, data: str, protocol: tuple[str, ...], name: str) -> None:
        """A counted chain with the best settings of validation, beside every baseline."""
        made = self.models.tuned("markov", data, protocol)
        for other in BESIDE:
            self._row("", data, other, [made.tables[other]])
        best = max(BESIDE[:-1], key=lambda other: mean_of([made.tables[other]], NDCG))
        against = best, [made.tables[best]]
        self._row(f"{name}_{data}", data, f"markov: {made.chosen}", [made.model], against)

    def ridge(self) -> None:
        """The ridge regression with the best settings of validation, beside the chain's."""
        made = self.models.tuned("next-ridge", self.main, PROTOCOL)
        words = f"next-ridge: {made.chosen}"
        self._row(f"ridge_{self.main}", self.main, words, [made.model], self._markov(PROTOCOL))

    def sequence(self) -> None:
        """Attention with several seeds, its curve over minutes, and how long it trains."""
        made = [self._sequence(seed, self.sizes.workers) for seed in range(self.sizes.seeds)]
        minutes = sum(own.minutes for own in made) / len(made)
        tables = [own.model for own in made]
        words = f"sequence, {len(made)} seed{'s' * (len(made) > 1)}"
        figure, against = f"sequence_{self.main}", self._markov(PROTOCOL)
        self._row(figure, self.main, words, tables, against, minutes)
        self.figures["sequence_train_min"] = round(minutes, 2)
        for seed, own in enumerate(made):
            self.rows += _curve(own, self.main, seed)

    def without_time(self) -> None:
        """Attention that knows the order alone, beside the same seed that knows the times."""
        made, other = self._sequence(0, self.sizes.workers, "model.time=false"), self._sequence(0)
        against = "sequence", [other.model]
        figure, words = "sequence_without_time", "sequence, time=false"
        self._row(figure, self.main, words, [made.model], against, made.minutes)

    def sequence_of_two_workers(self) -> None:
        """The same seed with two workers and with one: not the same digits, but as good."""
        two, one = (self._sequence(0, workers) for workers in (2, 1))
        difference = paired([two.model], [one.model], NDCG)
        against = "1 worker", [one.model]
        self._row("sequence_two_workers", self.main, "2 workers", [two.model], against, two.minutes)
        self.figures[ON_REQUEST[1]] = rounded(difference.difference)

    def cut(self) -> None:
        """The preset `next` after a global cut, beside the chain with the best settings."""
        self.markov(self.main, CUT, "markov_cut")
        names = ["markov", "next-ridge", " ".join(("sequence", *self.sizes.sequence))]
        changes = (f"train.choose_from={json.dumps(names)}",)
        made = self.models.trained("next", self.main, CUT, changes, self.sizes.workers)
        words = f"next: {made.bundle.settings.preset} taken"
        self._row(f"next_cut_{self.main}", self.main, words, [made.model], self._markov(CUT))
        for gain in made.gains:
            self.lab.log(f"next_cut_{self.main}: {gain}")

    def two_workers(self) -> None:
        """Whether the closed forms have the same digits with one worker and with two."""
        equal = True
        for preset in ("markov", "next-ridge"):
            one, two = (
                self.models.weights(preset, self.main, PROTOCOL, workers) for workers in (1, 2)
            )
            equal &= all(value.equal(two[name]) for name, value in one.items())
        self.figures["closed_two_workers_equal"] = int(equal)

    def serve(self) -> None:
        """Fold in histories of 200 ratings over HTTP; how well it is trained does not matter."""
        made = self.models.trained("sequence", self.main, PROTOCOL, ("train.epochs=1",), 1)
        rows = fold_in_200(made.bundle, self.main)
        self.rows += rows
        served = next(row for row in rows if row.profile == "production")
        self.figures["fold_in_200_p95_ms"] = round(served.p95_ms, 2)

    # ------------------------------------------------------------------------------ the table

    def _sequence(self, seed: int, workers: int = 0, *more: str) -> Trained:
        changes = (*self.sizes.sequence, f"train.seed={seed}", *more)
        workers = workers or self.sizes.workers
        return self.models.trained("sequence", self.main, PROTOCOL, changes, workers)

    def _markov(self, protocol: tuple[str, ...]) -> tuple[str, Tables]:
        return "markov, chosen", [self.models.tuned("markov", self.main, protocol).model]

    def _row(
        self,
        name: str,
        data: str,
        model: str,
        tables: Tables,
        against: tuple[str, Tables] | None = None,
        minutes: float | None = None,
    ) -> None:
        """Add a row, and its figure where it has one."""
        every = pooled(tables, NDCG)
        interval = summarise(every, [NDCG])[NDCG]
        row = Ranked(
            figure=f"{name}_ndcg10" if name else "",
            data=data,
            model=model,
            users=len(every.user),
            ndcg10=mean_of(tables, NDCG),
            low=rounded(interval.low),
            high=rounded(interval.high),
            hitrate10=mean_of(tables, HITS),
            minutes=None if minutes is None else round(minutes, 2),
            floor=FLOORS.get(name),
            aim=AIMS.get(name),
        )
        if against is not None:
            found = paired(tables, against[1], NDCG)
            row.against, row.difference = against[0], rounded(found.difference)
            row.difference_low, row.difference_high = rounded(found.low), rounded(found.high)
        self.rows.append(row)
        if name:
            self.figures[row.figure] = row.ndcg10
            self.lab.log(f"{row.figure} {row.ndcg10:.4f}, {model}")


def _curve(made: Trained, data: str, seed: int) -> list[CurvePoint]:
    """At most CURVE_POINTS of the epochs of a run, evenly chosen, the last among them."""
    epochs, spent, points = made.epochs, 0.0, []
    step = -(-len(epochs) // CURVE_POINTS)
    for number, entry in enumerate(epochs, 1):
        spent += entry["seconds"] / 60
        if (len(epochs) - number) % step == 0:
            points.append(
                CurvePoint(
                    figure=f"sequence_{data}_ndcg10",
                    data=data,
                    model=f"sequence, seed {seed}",
                    epoch=int(entry["epoch"]),
                    minutes=round(spent, 2),
                    valid_ndcg10=rounded(entry[NDCG]),
                )
            )
    return points
