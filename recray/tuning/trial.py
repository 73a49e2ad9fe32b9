"""One trial: training in one process, an epoch at a time, on data without a test split.

With folds, the training and validation ratings are pooled and cut anew. Each fold validates a model
that is trained on the others. An epoch of the trial is an epoch of all folds, and its metrics are
the means over them.
"""

import json
import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from recray import storage
from recray.config import Settings, build_settings
from recray.data.dataset import KIND, Prepared, Ratings
from recray.data.ids import id_hash
from recray.data.split import hash_ids
from recray.errors import RecrayError
from recray.storage import Folder
from recray.training.checkpoint import Checkpoint, TrainState
from recray.training.loop import build_run
from recray.training.own_users import OwnUsers
from recray.training.shard import Workers
from recray.tuning.results import Entry, Status
from recray.tuning.store import Metric, SweepFolder, TrialSpec

SPLITS = ("train", "valid", "fold_in")
"""The splits that a search may read."""
TEST = "test"
FOLDABLE = ("random", "per-user-random", "per-item-random", "kfold", "given")
"""Kinds of splits whose validation ratings are drawn at random, as folds are."""
FOLD_SEED = 0x5EED
"""Salt of the fold hashes. Unlike the split's own seed, so that folds do not follow the split."""


@dataclass(frozen=True)
class NoTestDataset(Prepared):
    """A data set whose test split cannot be read."""

    def load(self, split: str, parts: list[int] | None = None) -> Ratings:
        """The rows of a split, of all parts or some of them.

        Raises:
            ValueError: A search may not read the split.
        """
        if split not in SPLITS:
            raise ValueError(f"a search does not see the {split} split")
        return super().load(split, parts)


@dataclass(frozen=True)
class TrialDataset(NoTestDataset):
    """A data set in memory, without its test split.

    Args:
        splits: Name to the rows of each part.
    """

    splits: dict[str, list[Ratings]]

    def load(self, split: str, parts: list[int] | None = None) -> Ratings:
        """The rows of a split, of all parts or some of them.

        Raises:
            ValueError: A search may not read the split.
        """
        if split not in self.splits:
            raise ValueError(f"a search does not see the {split} split")
        every = self.splits[split]
        chosen = every if parts is None else [every[part] for part in parts]
        return chosen[0] if len(chosen) == 1 else Ratings.concatenate(chosen)

    def fold(self, fold: int, folds: int) -> "TrialDataset":
        """The same ratings, split anew: one fold validates, the others train.

        The fold of a rating follows from its raw ids alone. Ratings of users or items that are not
        in the training split are in no fold.
        """
        raw_user, raw_item = (id_hash(ids.column()) for ids in (self.user_ids, self.item_ids))
        train, valid = list[Ratings](), list[Ratings]()
        for rows in zip(self.splits["train"], self.splits["valid"], strict=True):
            pool = Ratings.concatenate(list(rows))
            pool = pool.where((pool.user < self.users) & (pool.item < self.items))
            key = hash_ids(FOLD_SEED, raw_user[pool.user], raw_item[pool.item])
            validates = key % np.uint64(folds) == fold
            train.append(pool.where(~validates))
            valid.append(pool.where(validates))
        splits = self.splits | {"train": train, "valid": valid}
        return TrialDataset(self.folder, self.manifest, splits)


def open_without_test(path: str) -> NoTestDataset:
    """Open a prepared data set and check every file but those of the test split.

    Raises:
        RecrayError: It is missing, damaged, or has no validation ratings.
    """
    folder, manifest = storage.current_of(Folder(path), KIND, "recray prepare")
    folder.compare(manifest, sealed=TEST)
    prepared = NoTestDataset(folder, manifest.model_dump())
    if not prepared.manifest["splits"]["valid"]["rows"]:
        raise RecrayError(
            f"{path} has no validation ratings to compare trials by; prepare it with "
            "--set split.valid=0.1"
        )
    return prepared


def load(prepared: Prepared) -> TrialDataset:
    """Read the splits that a search may read."""
    parts = range(prepared.buckets)
    splits = {name: [prepared.load(name, [part]) for part in parts] for name in SPLITS}
    return TrialDataset(prepared.folder, prepared.manifest, splits)


def check_folds(folds: int, prepared: Prepared) -> None:
    """Refuse folds that would not represent the validation split.

    Raises:
        RecrayError: There is one fold only, or validation is not drawn at random.
    """
    if not folds:
        return
    kind = prepared.manifest["settings"]["split"]["kind"]
    if folds < 2:
        raise RecrayError(f"--kfold {folds}: give 2 or more, or 0 for the validation split")
    if kind not in FOLDABLE:
        raise RecrayError(
            f"--kfold {folds}: folds are drawn at random, and this data set is split by {kind}; "
            f"it goes with {', '.join(FOLDABLE)}"
        )


class NoCheckpoints:
    """A run without checkpoints: trials are short, and the winner is trained again."""

    def restore(
        self, users: OwnUsers, tables: Collection[str], workers: Workers
    ) -> Checkpoint | None:
        """There is no checkpoint."""
        return None

    def save(self, checkpoint: Checkpoint, workers: Workers) -> None:
        """Save nothing."""


@dataclass(frozen=True)
class TrialReport:
    """What Ray Tune is told after an epoch.

    Args:
        epoch: Epochs done.
        value: The best value so far, nan without any.
        entry: The metrics of the epoch as JSON, since Tune would flatten a dict.
        done: Whether the trial has ended.
    """

    epoch: int
    value: float
    entry: str
    done: bool


class Trial(ABC):
    """A trial that is trained step by step; it writes its own file the moment it ends.

    Args:
        sweep: The folder for its file.
        spec: The trial.
        metric: What trials are compared by.
    """

    def __init__(self, sweep: SweepFolder, spec: TrialSpec, metric: Metric) -> None:
        self.sweep, self.spec, self.metric = sweep, spec, metric
        self.history: list[Entry] = []

    @abstractmethod
    def step(self) -> TrialReport:
        """Train one epoch."""

    def close(self) -> None:  # noqa: B027
        """Leave; some trials have processes that run between epochs."""

    def report(self, status: Status | None = None, error: str = "") -> TrialReport:
        """Report the last epoch; with a status the trial has ended, and its file is written."""
        if status is not None:
            self.sweep.save(self.spec.ended(status, self.history, error))
        best = self.metric.best(self.history)
        entry = json.dumps(self.history[-1] if self.history else {})
        value = best[1] if best else math.nan
        return TrialReport(len(self.history), value, entry, done=status is not None)


class TrialRun(Trial):
    """A trial in this process.

    Args:
        data: The ratings to train and validate on.
        sweep: The folder for its file.
        spec: The trial.
        metric: What trials are compared by.
        folds: See the head of this file; with 0 the validation split validates.
    """

    def __init__(
        self,
        data: TrialDataset,
        sweep: SweepFolder,
        spec: TrialSpec,
        metric: Metric,
        folds: int = 0,
    ) -> None:
        super().__init__(sweep, spec, metric)
        self.data, self.folds = data, folds
        self._entries: list[Entry] = []  # of the current epoch, one per run
        self._runs: list[Iterator[TrainState]] = []

    def step(self) -> TrialReport:
        """Train one epoch.

        Raises:
            StorageError: Its file cannot be written, which is not the trial's fault.
        """
        torch.set_num_threads(1)
        try:
            done = self._train_epoch()
        except Exception as error:  # any error ends this trial and no other
            return self.report("failed", error_summary(error))
        return self.report("finished" if done else None)

    def _train_epoch(self) -> bool:
        """Train one epoch of every run; returns whether the trial is over."""
        settings = build_settings(self.spec.settings)
        if not self._runs:
            self._runs = self._start_runs(settings)
        self._entries.clear()
        states = [next(run) for run in self._runs]
        stopped = states[0].stopped
        if self.folds:
            self.history.append(mean_over_folds(self._entries, self.metric.name))
            stopped = self._out_of_patience(settings.train.patience)
        else:
            self.history.extend(self._entries)
        return stopped or len(self.history) >= settings.train.epochs

    def _start_runs(self, settings: Settings) -> list[Iterator[TrainState]]:
        """Start one run, or one per fold, and bring each to the state before its first epoch."""
        data = [self.data]
        if self.folds:
            data = [self.data.fold(n, self.folds) for n in range(self.folds)]
            # The mean over folds decides when to stop; a fold that stopped alone would leave it.
            settings = settings.changed(train={"patience": None})
        runs = []
        for ratings in data:
            run = build_run(settings, ratings, NoCheckpoints(), Workers(), self._entries.append)
            runs.append(run.epochs())
            next(runs[-1])
        return runs

    def _out_of_patience(self, patience: int | None) -> bool:
        best = self.metric.best(self.history)
        epochs_since_best = len(self.history) - best[0] if best else 0
        return patience is not None and epochs_since_best >= patience


def mean_over_folds(entries: list[Entry], metric: str) -> Entry:
    """One epoch of several folds: means of the metrics, the sum of the seconds, and `METRIC sd`,
    the sample standard deviation of the compared metric.
    """
    means = {name: statistics.fmean(e[name] for e in entries) for name in entries[0]}
    means |= {"epoch": entries[0]["epoch"], "seconds": sum(e["seconds"] for e in entries)}
    if metric in means:
        means[f"{metric} sd"] = statistics.stdev(e[metric] for e in entries)
    return means


def error_summary(error: Exception) -> str:
    """The first line of an error, with its class where it is not one of recray's."""
    first = next(iter(str(error).splitlines()), "")
    return first if isinstance(error, RecrayError) else f"{type(error).__name__}: {first}"
