"""What is still to be tried: each settings once, and what has ended never again."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from recray.config import Settings
from recray.errors import RecrayError
from recray.tuning.searchers import GridSearch, Searcher
from recray.tuning.space import Point, Space, apply, own_point
from recray.tuning.store import Goal, Record, Status, SweepFolder, key_of

ATTEMPTS = 100


@dataclass(frozen=True)
class Candidate:
    """A trial that is about to run; its fields are those of a Record."""

    number: int
    key: str
    point: Point
    settings: dict[str, Any]

    def ended(
        self, status: Status, history: list[dict[str, Any]] | None = None, error: str = ""
    ) -> Record:
        """The record of its end."""
        return Record(
            self.number, self.key, self.point, self.settings, status, history or [], error
        )


class Plan:
    """Gives the trials that have not ended, each settings once; trial 0 is the settings' own.

    Args:
        sweep: Where ended trials are found.
        searcher: Picks points; told at once of every trial that has ended.
        settings: What the search starts from.
        space: What is searched.
        goal: What is compared.
        trials: How many in all.
        resolve: From settings to those a trial runs with; a RecrayError is that trial's failure.
    """

    def __init__(
        self,
        sweep: SweepFolder,
        searcher: Searcher,
        settings: Settings,
        space: Space,
        goal: Goal,
        trials: int,
        resolve: Callable[[Settings], Settings],
    ) -> None:
        self.sweep, self.searcher, self.settings = sweep, searcher, settings
        self.space, self.goal, self.resolve = space, goal, resolve
        self.records = {record.key: record for record in sweep.records()}
        for record in self.records.values():
            self._tell(record)
        used = {record.number for record in self.records.values()}
        self.waiting = [number for number in range(trials) if number not in used]
        self.given: set[str] = set(self.records)

    def next(self) -> Candidate | None:
        """The next trial to run; None when all have been given, or nothing new can be found."""
        while self.waiting:
            number = self.waiting.pop(0)
            made = self._candidate(number)
            if made is None:
                if not isinstance(self.searcher, GridSearch):  # there, the next number may be new
                    self.waiting = []
            elif isinstance(made, Record):
                self.ended(made)
            else:
                return made
        return None

    def _candidate(self, number: int) -> Candidate | Record | None:
        for attempt in range(ATTEMPTS):
            point = self.searcher.ask(number, attempt) if number else self._own()
            if point is None:
                return None
            changed = self.settings
            try:
                changed = apply(self.settings, point)
                changed = self.resolve(changed)
                error = ""
            except RecrayError as problem:
                error = str(problem)
            values = changed.plain()
            key = key_of(changed)
            if error:  # may not be settings at all: known by the point
                key = hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:12]
            if key not in self.given:
                self.given.add(key)
                made = Candidate(number, key, point, values)
                return made.ended("failed", error=error) if error else made
        return None

    def _own(self) -> Point:
        return own_point(self.space, self.settings)

    def ended(self, record: Record) -> None:
        """Keep the end of a trial, and tell the searcher."""
        if record.status != "lost" and self.sweep.find(record.key) is None:
            self.sweep.save(record)
        self.records[record.key] = record
        self._tell(record)

    def _tell(self, record: Record) -> None:
        state = "failed" if record.status == "lost" else record.status
        self.searcher.tell(record.point, state, self.goal.so_far(record.history))
