"""What the benchmark of quality shares: archives, trained bundles, and users pooled over seeds."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recray.benchmarks.harness import Figures, Row
from recray.config import EvaluateSettings, load_settings
from recray.errors import RecrayError
from recray.evaluation.comparison import Comparison, compare
from recray.evaluation.evaluator import Evaluator
from recray.evaluation.metrics import PerUserMetrics
from recray.evaluation.protocol import NextKind, Protocol
from recray.inference.bundle import Bundle
from recray.pipelines import repetition
from recray.progress import Log

DIGITS = 6
RANDOM_80 = ("split.kind=random", "split.test=0.2", "split.valid=0.1")


@dataclass(frozen=True)
class Lab:
    """Where experiments find their data and leave their bundles, and how many they repeat.

    Args:
        data: Folder of archives named after their releases; None downloads them.
        out: Folder of all that is trained.
        repetitions: The most seeds of a figure.
        quick: Whether to leave out what takes long.
        log: Receives what happens, one line at a time.
    """

    data: str | None
    out: str
    repetitions: int
    quick: bool
    log: Log

    def archive(self, name: str) -> str:
        """The archive of a release."""
        return archive(name, self.data)

    def bundles(
        self,
        name: str,
        release: str,
        preset: str,
        settings: Sequence[str],
        refit: bool = True,
        most: int | None = None,
    ) -> list[Bundle]:
        """Train a recipe with each seed, and open the measured bundles.

        Args:
            name: Folder of this recipe.
            release: The data set.
            preset: The recipe.
            settings: What differs from it.
            refit: Whether validation rows train, too, once they have chosen the epoch.
            most: The most seeds, if fewer than the lab's.
        """
        resolved = load_settings(preset, None, settings)
        folds = repetition.repetitions(resolved, seeds=min(most or 99, self.repetitions))
        out = f"{self.out}/{name}"
        repetition.run(self.archive(release), folds, out, refit, log=lambda _line: None)
        self.log(f"{release} {preset}: trained {name}, {len(folds)} seeds")
        return [Bundle.open(f"{out}/{fold.name}/bundle").measured for fold in folds]


Experiment = Callable[[Lab], tuple[Figures, Sequence[Row]]]
"""Measures one group of figures."""


def archive(name: str, folder: str | None) -> str:
    """The archive of a release: NAME.zip in the folder, or the first NAME-*.zip.

    Raises:
        RecrayError: There is none in the folder.
    """
    if folder is None:
        return name
    found = [Path(folder) / f"{name}.zip", *sorted(Path(folder).glob(f"{name}-*.zip"))]
    there = [path for path in found if path.is_file()]
    if not there:
        raise RecrayError(f"--data {folder}: no {name}.zip there")
    return str(there[0])


def tables_of(
    bundle: Bundle,
    relevant_from: float | None = None,
    baselines: tuple[str, ...] = ("popularity",),
    order: NextKind | None = None,
) -> dict[str, PerUserMetrics]:
    """Model and baselines on the test rows: name to the metrics at 10 of each raw user id."""
    settings = EvaluateSettings(k=(10,), relevant_from=relevant_from)
    evaluator = Evaluator(bundle, settings, protocol=Protocol(baselines=baselines, next=order))
    parts = [evaluator.measure_block(block) for block in range(len(evaluator.blocks))]
    joined = {name: PerUserMetrics.join(part[name] for part in parts) for name in parts[0]}
    return {
        name: PerUserMetrics(bundle.user_ids.raw[table.user], table.values, table.shown)
        for name, table in joined.items()
    }


def pooled(tables: Sequence[PerUserMetrics], metric: str) -> PerUserMetrics:
    """One row for each user of several seeds: the mean of the metric over those that measured it.

    A user who is in the test split of two seeds is no second witness, so seeds are averaged before
    an interval over users is taken. `user` numbers the raw ids in ascending order.
    """
    raw, place = np.unique(np.concatenate([table.user for table in tables]), return_inverse=True)
    value = np.concatenate([table.values[metric] for table in tables])
    known = ~np.isnan(value)
    total = np.bincount(place[known], value[known], len(raw))
    count = np.bincount(place[known], minlength=len(raw))
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    nothing: NDArray[np.int64] = np.zeros((1, 1), np.int64)
    return PerUserMetrics(np.arange(len(raw)), {metric: mean}, nothing)


def mean_of(tables: Iterable[PerUserMetrics], metric: str) -> float:
    """The mean over seeds of the mean over users."""
    return rounded(np.mean([np.nanmean(table.values[metric]) for table in tables]))


def paired(
    first: Sequence[PerUserMetrics], second: Sequence[PerUserMetrics], metric: str
) -> Comparison:
    """Compare two models on the same users, each averaged over its seeds."""
    return compare(pooled(first, metric), pooled(second, metric), metric)


def difference_figures(name: str, comparison: Comparison) -> Figures:
    """NAME, NAME_low and NAME_high: a paired difference and its 95 % interval."""
    ends = {"": comparison.difference, "_low": comparison.low, "_high": comparison.high}
    return {f"{name}{end}": rounded(value) for end, value in ends.items()}


def rounded(value: Any) -> float:
    """A figure with all digits that mean something."""
    return round(float(value), DIGITS)


def recray_command(*arguments: str) -> list[str]:
    """A command line of this recray, for a process of its own."""
    return [sys.executable, "-m", "recray", *arguments]
