"""One trial: plain training in one process, an epoch at a time. Test is not there for it."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from recray import storage
from recray.config import build_settings
from recray.data.prepared import KIND, Prepared, Ratings
from recray.errors import RecrayError
from recray.storage import Folder
from recray.sweep.plan import Candidate
from recray.sweep.records import Goal, SweepFolder
from recray.training import trainer
from recray.training.checkpoint import Checkpoint, Progress, RunFolder
from recray.training.sync import Workers

SEEN = ("train", "valid", "fold_in")
SEALED = "test"


@dataclass(frozen=True)
class SearchData(Prepared):
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


def open_sealed(path: str) -> Prepared:
    """Open a prepared data set; every file but those of the test split is checked, those are not
    opened.

    Raises:
        RecrayError: It is missing, damaged, or has no validation ratings.
    """
    folder = Folder(path)
    manifest = storage.expect_kind(folder, KIND, "recray prepare")
    folder.verify(sealed=SEALED)
    prepared = Prepared(folder, manifest)
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
    """

    def __init__(
        self, data: SearchData, sweep: SweepFolder, candidate: Candidate, goal: Goal
    ) -> None:
        self.data, self.sweep, self.candidate, self.goal = data, sweep, candidate, goal
        self.history: list[dict[str, Any]] = []
        self._states: Iterator[Progress] | None = None

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
            self.sweep.save(self.candidate.ended("failed", self.history, _one_line(error)))
            return self._report(done=True)
        if done:
            self.sweep.save(self.candidate.ended("finished", self.history))
        return self._report(done)

    def _epoch(self) -> bool:
        if self._states is None:
            settings = build_settings(self.candidate.settings)
            run = trainer.build_run(
                settings, self.data, self.sweep.folder.path, Workers(), self._remember
            )
            self._states = replace(run, folder=Unsaved(self.sweep.folder.path)).epochs()
            next(self._states)  # the state before the first epoch
        progress = next(self._states)
        return progress.stopped or progress.epoch >= self.candidate.settings["train"]["epochs"]

    def _remember(self, entry: dict[str, Any]) -> None:
        self.history.append(entry)

    def _report(self, done: bool) -> dict[str, Any]:
        best = self.goal.best(self.history)
        return {
            "epoch": len(self.history),
            "value": best[1] if best else math.nan,
            "entry": json.dumps(self.history[-1] if self.history else {}),
            "done": done,
        }


def _one_line(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return first if isinstance(error, RecrayError) else f"{type(error).__name__}: {first}"
