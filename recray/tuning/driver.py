"""What the driver knows of the trials that run, and whom it tells."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from recray.tuning.store import Record
from recray.tuning.trial_queue import Candidate, Plan


@dataclass(frozen=True)
class Event:
    """Something that happened to a trial.

    Args:
        number: The trial.
        status: running, or how it ended.
        epochs: Epochs done.
        value: Its best value so far, nan without any.
        error: Why it failed.
        ended: Trials that have ended.
        trials: Trials in all.
        best: (trial, value) of the best trial so far.
    """

    number: int
    status: str
    epochs: int
    value: float
    error: str
    ended: int
    trials: int
    best: tuple[int, float] | None


OnEvent = Callable[[Event], None]


class Desk:
    """What the driver knows of the trials that Tune runs."""

    def __init__(self, plan: Plan, trials: int, on_event: OnEvent | None) -> None:
        self.plan, self.trials, self.on_event = plan, trials, on_event
        self.running: dict[str, tuple[Candidate, list[dict[str, Any]]]] = {}
        self.failure: BaseException | None = None
        self.best: tuple[int, float] | None = None
        for record in plan.records.values():
            self._compare(record)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher when it starts; who is told may hold what nobody can pickle."""
        return {**self.__dict__, "on_event": None}

    def next(self, trial_id: str) -> Candidate | None:
        """The candidate that Tune's trial of that id runs."""
        if self.failure is not None:
            return None
        before = set(self.plan.records)
        candidate = self.plan.next()
        for key in self.plan.records.keys() - before:  # refused before they ran
            self._say_ended(self.plan.records[key])
        if candidate is not None:
            self.running[trial_id] = (candidate, [])
        return candidate

    def reported(self, trial_id: str, result: dict[str, Any]) -> None:
        """Remember a report."""
        candidate, history = self.running[trial_id]
        entry = json.loads(result["entry"])
        if entry and len(history) < entry["epoch"]:
            history.append(entry)
            value = self.plan.goal.so_far(history)[-1]
            self._tell(candidate.number, "running", len(history), value)

    def ended(self, trial_id: str, result: dict[str, Any] | None) -> None:
        """The trial has written its file, was stopped by the scheduler, or its process died."""
        if result is not None and "entry" in result:
            self.reported(trial_id, result)
        candidate, history = self.running.pop(trial_id)
        record = self.plan.sweep.find(candidate.key)
        if record is None:
            lost = result is None
            words = "its process ended before the trial did" if lost else ""
            record = candidate.ended("lost" if lost else "stopped", history, words)
        self.plan.ended(record)
        self._say_ended(record)

    def _say_ended(self, record: Record) -> None:
        self._compare(record)
        best = self.plan.goal.best(record.history)
        value = best[1] if best else float("nan")
        self._tell(record.number, record.status, len(record.history), value, record.error)

    def _compare(self, record: Record) -> None:
        found = self.plan.goal.best(record.history)
        if found is not None and self.plan.goal.better(
            found[1], self.best[1] if self.best else None
        ):
            self.best = (record.number, found[1])

    def _tell(self, number: int, status: str, epochs: int, value: float, error: str = "") -> None:
        if self.on_event is not None:
            ended = len(self.plan.records)
            self.on_event(
                Event(number, status, epochs, value, error, ended, self.trials, self.best)
            )
