"""The driver of a search: it owns the trials, from the numbers that wait to the results.

Ray Tune asks the driver for trials and hands it reports; `next`, `reported` and `ended` are all
that Tune knows of it. The files of the sweep are the driver's memory: a trial that has a file is
never run again.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

from recray.errors import RecrayError
from recray.tuning.request import ValidatedSearch
from recray.tuning.results import Entry, Point, TrialResult, TrialSpec
from recray.tuning.searchers import GridSearch
from recray.tuning.space import apply
from recray.tuning.store import hash_key, settings_key

ATTEMPTS = 100
"""How often a searcher is asked for a trial whose settings have not been tried."""


@dataclass(frozen=True)
class TrialUpdate:
    """Something that happened to a trial.

    Args:
        number: The trial.
        status: `running`, or how it ended.
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


OnUpdate = Callable[[TrialUpdate], None]


class SearchDriver:
    """Gives each trial once, collects its reports and keeps its result.

    Args:
        search: What is searched; the results in its folder are taken over.
        on_update: Called with each report and each end.

    Attributes:
        waiting: Numbers of the trials that have not been given yet.
        running: Tune's id of a trial to the trial and its history.
        results: Key to result of every trial that has ended.
        failure: What ended the search too early.
        best: (trial, value) of the best trial so far.
    """

    def __init__(self, search: ValidatedSearch, on_update: OnUpdate | None = None) -> None:
        self.search, self.on_update = search, on_update
        self.searcher = search.searcher()
        self.results: dict[str, TrialResult] = {}
        self.running: dict[str, tuple[TrialSpec, list[Entry]]] = {}
        self.failure: BaseException | None = None
        self.best: tuple[int, float] | None = None
        for result in search.sweep.trials():
            self._learn(result)
        used = {result.number for result in self.results.values()}
        self.waiting = [n for n in range(search.request.trials) if n not in used]
        self._keys = set(self.results)  # of every trial that was given or has ended

    def __getstate__(self) -> object:
        """Leave `on_update` out: Tune pickles its searcher, and a callback may hold a terminal."""
        return {**self.__dict__, "on_update": None}

    def next(self, trial_id: str) -> TrialSpec | None:
        """The trial that Tune's trial of that id runs; None when there is nothing new to try."""
        while self.waiting and self.failure is None:
            spec = self._propose(self.waiting.pop(0))
            if isinstance(spec, TrialResult):  # it was refused before it ran
                self._finish(spec)
            elif spec is not None:
                self.running[trial_id] = (spec, [])
                return spec
            elif not isinstance(self.searcher, GridSearch):
                self.waiting = []  # only the next combination of a grid may be a new one
        return None

    def _propose(self, number: int) -> TrialSpec | None:
        """A trial whose settings are new, or its failure where they cannot be trained."""
        for attempt in range(ATTEMPTS):
            default = self.search.default_point
            point = self.searcher.ask(number, attempt) if number else default
            if point is None:
                return None
            spec = self._configure(number, point)
            if spec.key not in self._keys:
                self._keys.add(spec.key)
                return spec
        return None

    def _configure(self, number: int, point: Point) -> TrialSpec:
        settings = self.search.settings
        try:
            settings = apply(settings, point)
            settings = self.search.resolve(settings)
        except RecrayError as error:
            # The values may not make settings at all, so the trial is known by its point.
            refused = TrialSpec(number, hash_key(point), point, settings.plain())
            return refused.ended("failed", error=str(error))
        return TrialSpec(number, settings_key(settings), point, settings.plain())

    def reported(self, trial_id: str, entry: str) -> None:
        """Keep the report of an epoch, which is JSON text; Tune may hand in the last one twice."""
        spec, history = self.running[trial_id]
        report: Entry = json.loads(entry)
        if report and len(history) < report["epoch"]:
            history.append(report)
            value = self.search.metric.best_so_far(history)[-1]
            self._update(spec.number, "running", len(history), value)

    def ended(self, trial_id: str, died: bool = False) -> None:
        """Keep the result of a trial that wrote its file, was stopped, or whose process died."""
        spec, history = self.running.pop(trial_id)
        result = self.search.sweep.find(spec.key)
        if result is None:
            error = "its process ended before the trial did" if died else ""
            result = spec.ended("lost" if died else "stopped", history, error)
        self._finish(result)

    def _finish(self, result: TrialResult) -> None:
        if result.status != "lost" and self.search.sweep.find(result.key) is None:
            self.search.sweep.save(result)
        self._learn(result)
        best = self.search.metric.best(result.history)
        value = best[1] if best else float("nan")
        self._update(result.number, result.status, len(result.history), value, result.error)

    def _learn(self, result: TrialResult) -> None:
        """Remember a result, tell it to the searcher and compare it with the best one."""
        metric = self.search.metric
        self.results[result.key] = result
        status = "failed" if result.status == "lost" else result.status
        self.searcher.tell(result.point, status, metric.best_so_far(result.history))
        found = metric.best(result.history)
        if found is not None and metric.better(found[1], self.best[1] if self.best else None):
            self.best = (result.number, found[1])

    def _update(self, number: int, status: str, epochs: int, value: float, error: str = "") -> None:
        if self.on_update is not None:
            ended, trials = len(self.results), self.search.request.trials
            self.on_update(
                TrialUpdate(number, status, epochs, value, error, ended, trials, self.best)
            )
