"""Train a recipe more than once: on several folds or seeds, or again to compare the digits."""

import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, JsonValue

from recray.config import Settings
from recray.data.dataset import Prepared
from recray.data.ids import id_hash
from recray.data.source import detect_source
from recray.data.split import hash_ids
from recray.errors import RecrayError
from recray.evaluation.report import parse_report
from recray.pipelines.stages import Stages
from recray.progress import Log
from recray.reporting.terminal import table
from recray.runtime.session import LOCAL, session
from recray.schema import TIMINGS
from recray.storage import Folder
from recray.training import trainer
from recray.training.checkpoint import RunFolder
from recray.training.export import FOLDERS, Fits, prepared_of

MAX_DIFFERENCES = 20
"""Differences that a reproduction names; the rest is left out."""


@dataclass(frozen=True)
class Fold:
    """One repetition.

    Args:
        name: Short, as a folder is called.
        settings: The resolved settings of this one.
    """

    name: str
    settings: Settings


Metrics = dict[str, float]
"""Metric to its mean over users."""
Changes = dict[str, dict[str, JsonValue]]
"""Settings of a fold that differ from the recipe's, by group."""


class FoldReport(BaseModel):
    """What was measured on one fold."""

    fold: str
    metrics: Metrics
    baselines: dict[str, Metrics]
    best_epoch: int
    verdict: str


class FoldsReport(BaseModel):
    """Every fold, and mean and sample standard deviation over folds."""

    folds: list[FoldReport]
    mean: Metrics
    sd: Metrics
    baselines: dict[str, Metrics]

    def text(self) -> str:
        """A row for each fold or seed, then mean, deviation, and the mean of each baseline."""
        names = list(self.mean)
        rows = [[fold.fold, *(f"{fold.metrics[n]:.4f}" for n in names)] for fold in self.folds]
        for label, values in (("mean", self.mean), ("sd", self.sd), *self.baselines.items()):
            rows.append([label, *(f"{values[n]:.4f}" if n in values else "" for n in names)])
        return table("", ["fold", *names], rows)


def repetitions(
    settings: Settings,
    kfold: int | None = None,
    names: Iterable[str] | None = None,
    seeds: int | None = None,
) -> list[Fold]:
    """Repeat a recipe on several folds or with several seeds.

    Args:
        settings: The recipe.
        kfold: Each of so many equal parts is the test split once.
        names: NAME.base trains and NAME.test tests, such as ml-100k's u1.
        seeds: The recipe's own split with the seeds 0..seeds-1, for the split and for training.
    """
    if kfold is not None:
        changes: dict[str, Changes] = {
            f"fold-{n}": {"split": {"kind": "kfold", "folds": kfold, "fold": n}}
            for n in range(kfold)
        }
    elif names is not None:
        changes = {
            name: {
                "split": {
                    "kind": "given", "train_file": f"{name}.base", "test_file": f"{name}.test",
                }
            }
            for name in names
        }  # fmt: skip
    else:
        changes = {
            f"seed-{n}": {"split": {"seed": n}, "train": {"seed": n}} for n in range(seeds or 1)
        }
    return [Fold(name, settings.changed(**groups)) for name, groups in changes.items()]


def run(
    source: str,
    folds: list[Fold],
    out: str,
    refit: bool = False,
    address: str = LOCAL,
    log: Log = print,
    mirror: str | None = None,
) -> FoldsReport:
    """Prepare, train and measure every fold; a stage that is done and matches is skipped.

    Args:
        source: As `recray prepare` takes it.
        folds: The repetitions.
        out: Folder of all their outputs.
        refit: Once validation has chosen the epoch, train on training and validation rows for as
            many, and measure that.
        address: Ray cluster.
        log: Receives what happens, one line at a time.
        mirror: Where a release lies instead.

    Raises:
        RecrayError: Test rows of one fold are in another's test split, or what a stage refuses.
    """
    reports: list[FoldReport] = []
    tests: list[NDArray[np.uint64]] = []
    with session(address):
        for fold in folds:
            folder = Folder(out).child(fold.name)
            fits: Fits = "measured" if refit else "none"
            stages = Stages(folder, fold.settings, 1, address, log, fits=fits)
            prepared = stages.prepare(detect_source(source, fold.settings, mirror))
            if fold.settings.split.kind in ("given", "kfold"):
                _refuse_overlap(tests, prepared, [f.name for f in folds])
            reports.append(_measure(fold.name, stages, prepared))
            metrics = reports[-1].metrics.items()
            log(f"{fold.name}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics))
    return summarise(reports)


def _measure(name: str, stages: Stages, prepared: Prepared) -> FoldReport:
    """Train on one fold and measure it."""
    folder = stages.train(prepared)
    epoch = RunFolder(folder).train_state().best_epoch
    report = parse_report(stages.export(folder, prepared).metrics)
    if report is None:
        raise RecrayError(f"{prepared.folder} has no test split: nobody can be evaluated")
    return FoldReport(
        fold=name,
        metrics={metric: interval.value for metric, interval in report.metrics.items()},
        baselines={
            baseline: {metric: interval.value for metric, interval in own.metrics.items()}
            for baseline, own in report.baselines.items()
        },
        best_epoch=epoch,
        verdict=report.verdict,
    )


def _refuse_overlap(tests: list[NDArray[np.uint64]], prepared: Prepared, names: list[str]) -> None:
    """Refuse a fold that tests on another's test rows; append this one's to `tests`."""
    test = prepared.load("test")
    columns = [
        id_hash(ids.column())[dense]
        for ids, dense in ((prepared.user_ids, test.user), (prepared.item_ids, test.item))
    ]
    key = np.unique(hash_ids(0, *columns))
    for place, before in enumerate(tests):
        shared = len(np.intersect1d(before, key, assume_unique=True))
        if shared:
            raise RecrayError(
                f"folds overlap: {shared:,} test ratings of {names[len(tests)]} are test ratings "
                f"of {names[place]} too"
            )
    tests.append(key)


def summarise(folds: list[FoldReport]) -> FoldsReport:
    """Mean and sample standard deviation over folds, of the model and of each baseline."""
    metrics = [fold.metrics for fold in folds]
    deviation = statistics.stdev if len(folds) > 1 else lambda _values: 0.0
    return FoldsReport(
        folds=folds,
        mean=_mean(metrics),
        sd={name: deviation([m[name] for m in metrics]) for name in metrics[0]},
        baselines={
            name: _mean([fold.baselines[name] for fold in folds]) for name in folds[0].baselines
        },
    )


def _mean(tables: list[Metrics]) -> Metrics:
    return {name: statistics.fmean(table[name] for table in tables) for name in tables[0]}


# ------------------------------------------------------------------ the same digits again


class Reproduction(BaseModel):
    """Whether a run gave the same digits again, and the first differences."""

    run: str
    agrees: bool
    epochs: int
    differences: list[str]


def reproduce(run_path: str, address: str = LOCAL) -> Reproduction:
    """Train a run again, elsewhere, and compare every epoch's digits and the best weights.

    Its fits for measurement and release, where it has been exported, are trained again too.

    Args:
        run_path: A finished run.
        address: Ray cluster.

    Raises:
        RecrayError: There is no finished run, or its data set is gone or has changed.
    """
    run = RunFolder(run_path)
    metadata = run.metadata()
    if not run.finished:
        raise RecrayError(f"{run_path} is not finished; continue it with `recray train --resume`")
    if metadata.changes:
        words = ", ".join(f"{c.workers} from epoch {c.epoch + 1}" for c in metadata.changes)
        raise RecrayError(
            f"{run_path} was continued with another number of workers ({words}); "
            "its digits cannot be had again"
        )
    prepared_of(run_path)
    differences = _again(run, address)
    for name in FOLDERS.values():
        fit = RunFolder(run.folder.child(name).path)
        if fit.finished:
            differences += [f"{name}: {words}" for words in _again(fit, address)]
    return Reproduction(
        run=run.folder.path,
        agrees=not differences,
        epochs=run.train_state().epoch,
        differences=differences[:MAX_DIFFERENCES],
    )


def _again(run: RunFolder, address: str) -> list[str]:
    """Train a run again, and name what differs."""
    now = run.metadata()
    with tempfile.TemporaryDirectory(prefix="recray-reproduce-") as folder:
        again = RunFolder(f"{folder}/run")
        trainer.run(now.settings, now.prepared, again.folder.path, now.workers, address=address)
        return _differences(run, again)


def _differences(before: RunFolder, after: RunFolder) -> list[str]:
    """Name every digit that two runs do not have in common."""
    histories = [folder.history() for folder in (before, after)]
    if len(histories[0]) != len(histories[1]):
        return [f"{len(histories[0])} epochs before, {len(histories[1])} now"]
    found = [
        f"epoch {old['epoch']}: {name} {old[name]!r} before, {new.get(name)!r} now"
        for old, new in zip(*histories, strict=True)
        for name in old
        if name not in TIMINGS and old[name] != new.get(name)
    ]
    old, new = before.best().weights, after.best().weights
    return found + [f"weights of {name} differ" for name in old if not old[name].equal(new[name])]
