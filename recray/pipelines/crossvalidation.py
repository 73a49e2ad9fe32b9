"""The same recipe on several folds or seeds: a table of them, their mean and standard deviation."""

import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recray.config import Settings
from recray.data.dataset import Prepared
from recray.data.ids import id_hash
from recray.data.source import detect_source
from recray.data.split import hash_ids
from recray.errors import RecrayError
from recray.pipelines.stages import Stages
from recray.progress import Log
from recray.runtime.session import LOCAL, session
from recray.storage import Folder
from recray.training.checkpoint import RunFolder


@dataclass(frozen=True)
class Fold:
    """One repetition.

    Args:
        name: Short, as a folder is called.
        settings: The resolved settings of this one.
    """

    name: str
    settings: Settings


def kfold(settings: Settings, folds: int) -> list[Fold]:
    """Each of so many equal parts is the test split once."""
    return [
        Fold(f"fold-{n}", settings.changed(split={"kind": "kfold", "folds": folds, "fold": n}))
        for n in range(folds)
    ]


def given_folds(settings: Settings, names: list[str]) -> list[Fold]:
    """NAME.base trains and NAME.test tests, for each name, such as u1..u5 of ml-100k."""
    return [
        Fold(
            name,
            settings.changed(
                split={
                    "kind": "given",
                    "train_file": f"{name}.base",
                    "test_file": f"{name}.test",
                },
            ),
        )
        for name in names
    ]


def seeds(settings: Settings, count: int) -> list[Fold]:
    """The settings' own split with the seeds 0..count-1, for the split and for training."""
    return [
        Fold(f"seed-{n}", settings.changed(split={"seed": n}, train={"seed": n}))
        for n in range(count)
    ]


def run(
    source: str,
    folds: list[Fold],
    out: str,
    refit: bool = False,
    address: str = LOCAL,
    log: Log = print,
    mirror: str | None = None,
) -> dict[str, Any]:
    """Prepare, train and measure every fold; what is there and matches is not done again.

    Args:
        source: As `recray prepare` takes it.
        folds: The repetitions.
        out: Folder of all their outputs.
        refit: Once validation has chosen the epoch, train on training and validation rows for as
            many, and measure that.
        address: Ray cluster.
        log: Receives what happens, one line at a time.
        mirror: Where a release lies instead.

    Returns:
        {"folds": [{"fold", "metrics", "baselines", "best_epoch", "verdict"}], "mean", "sd",
        "baselines"}

    Raises:
        RecrayError: Test rows of one fold are in another's test split, or what a stage refuses.
    """
    rows: list[dict[str, Any]] = []
    tests: list[NDArray[np.uint64]] = []
    with session(address):
        for fold in folds:
            stages = Stages(Folder(out).child(fold.name), fold.settings, 1, address, log)
            prepared = stages.prepare(detect_source(source, fold.settings, mirror))
            if fold.settings.split.kind in ("given", "kfold"):
                _refuse_overlap(tests, prepared, [f.name for f in folds])
            rows.append({"fold": fold.name, **_measure(stages, prepared, refit)})
            log(f"{fold.name}: " + _words(rows[-1]["metrics"]))
    return summarise(rows)


def _measure(stages: Stages, prepared: Prepared, refit: bool) -> dict[str, Any]:
    """Train on one fold and measure it."""
    folder = stages.train(prepared)
    epoch = RunFolder(folder).best().progress.best_epoch
    if refit:
        folder = stages.refit(prepared, epoch)
    report = stages.export(folder, prepared).metrics
    if not report:
        raise RecrayError(f"{prepared.folder} has no test split: nobody can be evaluated")
    return {
        "metrics": {name: value["value"] for name, value in report["metrics"].items()},
        "baselines": {
            name: {metric: v["value"] for metric, v in metrics.items() if "value" in v}
            for name, metrics in report["baselines"].items()
        },
        "best_epoch": epoch,
        "verdict": report["verdict"],
    }


def _refuse_overlap(tests: list[NDArray[np.uint64]], prepared: Prepared, names: list[str]) -> None:
    """Refuse folds of which one tests on another's test rows; remembers this one's."""
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


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation over folds, of the model and of each baseline."""
    metrics = [row["metrics"] for row in rows]
    several = len(rows) > 1
    return {
        "folds": rows,
        "mean": _mean(metrics),
        "sd": {n: statistics.stdev(m[n] for m in metrics) if several else 0.0 for n in metrics[0]},
        "baselines": {
            name: _mean([row["baselines"][name] for row in rows]) for name in rows[0]["baselines"]
        },
    }


def _mean(tables: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(table[name] for table in tables) for name in tables[0]}


def _words(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
