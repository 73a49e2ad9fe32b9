"""One trial: plain training in one process, an epoch at a time. Test is not there for it.

With folds, the training and validation ratings are pooled and cut anew: each fold validates what
the others train, an epoch of all of them is an epoch of the trial, and its metrics are their means.
"""

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from recray import storage
from recray.config import Settings, build_settings
from recray.data.dataset import KIND, Prepared, Ratings
from recray.data.ids import keys_of
from recray.data.split import hash_ids
from recray.errors import RecrayError
from recray.storage import Folder
from recray.training import trainer
from recray.training.checkpoint import Checkpoint, Progress, RunFolder
from recray.training.collectives import Workers
from recray.tuning.store import Goal, SweepFolder
from recray.tuning.trial_queue import Candidate

SEEN = ("train", "valid", "fold_in")
SEALED = "test"
FOLDABLE = ("random", "per-user-random", "per-item-random", "kfold", "given")
"""Splits whose validation ratings are drawn at random, as folds are."""
FOLD_SEED = 0x5EED
"""Folds must not follow the split, whose hashes start from the user's own seed."""


@dataclass(frozen=True)
class Sealed(Prepared):
    """A prepared data set whose test split cannot be read."""

    def load(self, split: str, parts: list[int] | None = None) -> Ratings:
        """The rows of a split, of all parts or some of them.

        Raises:
            ValueError: The split is sealed.
        """
        if split not in SEEN:
            raise ValueError(f"a search does not see the {split} split")
        return super().load(split, parts)


@dataclass(frozen=True)
class SearchData(Sealed):
    """A prepared data set in memory, without its test split.

    Args:
        splits: Name to rows.
    """

    splits: dict[str, Ratings]

    def load(self, split: str, parts: list[int] | None = None) -> Ratings:
        """All rows of a split, read before.

        Raises:
            ValueError: The split is sealed, or only some parts are wanted.
        """
        if parts is not None and len(parts) < self.buckets:
            raise ValueError("a search holds all parts")
        if split not in self.splits:
            raise ValueError(f"a search does not see the {split} split")
        return self.splits[split]

    def fold(self, fold: int, folds: int) -> "SearchData":
        """The same ratings, of which a fold validates and the others train.

        The fold of a rating follows from its raw ids alone. Ratings of users or items that
        training does not know are in no fold.
        """
        pool = Ratings.concatenate([self.splits["train"], self.splits["valid"]])
        pool = pool.where((pool.user < self.users) & (pool.item < self.items))
        raw_user, raw_item = (keys_of(ids.column()) for ids in (self.user_ids, self.item_ids))
        key = hash_ids(FOLD_SEED, raw_user[pool.user], raw_item[pool.item])
        mine = key % np.uint64(folds) == fold
        splits = self.splits | {"train": pool.where(~mine), "valid": pool.where(mine)}
        return SearchData(self.folder, self.manifest, splits)


def open_sealed(path: str) -> Sealed:
    """Open a prepared data set; every file but those of the test split is checked, those are not
    opened.

    Raises:
        RecrayError: It is missing, damaged, or has no validation ratings.
    """
    folder = Folder(path)
    manifest = storage.check_kind(folder, KIND, "recray prepare")
    folder.verify(sealed=SEALED)
    prepared = Sealed(folder, manifest)
    if not manifest["splits"]["valid"]["rows"]:
        raise RecrayError(
            f"{path} has no validation ratings to compare trials by; prepare it with "
            "--set split.valid=0.1"
        )
    return prepared


def load(prepared: Prepared) -> SearchData:
    """Read what trials see."""
    splits = {name: prepared.load(name) for name in SEEN}
    return SearchData(prepared.folder, prepared.manifest, splits)


def check_folds(folds: int, prepared: Prepared) -> None:
    """Refuse folds that would not stand for the split.

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


class Unsaved(RunFolder):
    """A run that leaves nothing behind: trials are quick, and the winner is trained again."""

    def latest(self, warn: bool = True) -> Checkpoint | None:
        """Nothing was saved."""
        return None

    def save(self, checkpoint: Checkpoint) -> None:
        """Nothing is saved."""


class TrialRun:
    """A trial that is stepped through; writes its own file the moment it ends.

    Args:
        data: What it trains and is validated on.
        sweep: Where its file goes.
        candidate: What is tried.
        goal: What is compared.
        folds: See the head of this file; 0 validates on the validation split.
    """

    def __init__(
        self,
        data: SearchData,
        sweep: SweepFolder,
        candidate: Candidate,
        goal: Goal,
        folds: int = 0,
    ) -> None:
        self.data, self.sweep, self.candidate, self.goal = data, sweep, candidate, goal
        self.folds = folds
        self.history: list[dict[str, Any]] = []
        self._entries: list[dict[str, Any]] = []
        self._runs: list[Iterator[Progress]] = []

    def step(self) -> dict[str, Any]:
        """Train one epoch, or find the trial at its end.

        Returns:
            {"epoch", "value": the best so far, "entry": the epoch's metrics as JSON, "done"}.

        Raises:
            StorageError: Its file cannot be written, which is not the trial's fault.
        """
        torch.set_num_threads(1)
        try:
            done = self._epoch()
        except Exception as error:  # whatever it is, it is this trial's end and nobody else's
            self.sweep.save(self.candidate.ended("failed", self.history, one_line(error)))
            return self._report(done=True)
        if done:
            self.sweep.save(self.candidate.ended("finished", self.history))
        return self._report(done)

    def _epoch(self) -> bool:
        settings = build_settings(self.candidate.settings)
        if not self._runs:
            self._runs = self._begin(settings)
        self._entries.clear()
        states = [next(run) for run in self._runs]
        stopped = states[0].stopped
        if self.folds:
            self.history.append(mean_of(self._entries, self.goal.metric))
            stopped = self._is_over(settings.train.patience)
        else:
            self.history.extend(self._entries)
        return stopped or len(self.history) >= settings.train.epochs

    def _begin(self, settings: Settings) -> list[Iterator[Progress]]:
        """A run, or one a fold, at the state before the first epoch."""
        data = [self.data]
        if self.folds:  # how long all of them run is decided by their mean
            data = [self.data.fold(n, self.folds) for n in range(self.folds)]
            settings = settings.changed(train={"patience": None})
        folder, runs = self.sweep.folder.path, []
        for one in data:
            run = trainer.build_run(settings, one, folder, Workers(), self._entries.append)
            runs.append(replace(run, folder=Unsaved(folder)).epochs())
            next(runs[-1])
        return runs

    def _is_over(self, patience: int | None) -> bool:
        best = self.goal.best(self.history)
        waited = len(self.history) - best[0] if best else 0
        return patience is not None and waited >= patience

    def close(self) -> None:
        """Nothing runs between epochs."""

    def _report(self, done: bool) -> dict[str, Any]:
        return report_of(self.history, self.goal, done)


def report_of(history: list[dict[str, Any]], goal: Goal, done: bool) -> dict[str, Any]:
    """What Tune is told after an epoch: {"epoch", "value": the best so far, "entry": the epoch's
    metrics as JSON, "done"}.
    """
    best = goal.best(history)
    return {
        "epoch": len(history),
        "value": best[1] if best else math.nan,
        "entry": json.dumps(history[-1] if history else {}),
        "done": done,
    }


def mean_of(entries: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """An epoch of several folds: the mean of every metric, the seconds of all, and how far the
    compared metric lies apart, as a sample standard deviation.
    """
    means = {name: statistics.fmean(e[name] for e in entries) for name in entries[0]}
    means |= {"epoch": entries[0]["epoch"], "seconds": sum(e["seconds"] for e in entries)}
    if metric in means:
        means[f"{metric} sd"] = statistics.stdev(e[metric] for e in entries)
    return means


def one_line(error: Exception) -> str:
    """An error as it stands in a trial's row."""
    first = next(iter(str(error).splitlines()), "")
    return first if isinstance(error, RecrayError) else f"{type(error).__name__}: {first}"
