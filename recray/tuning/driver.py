"""Which trial is next: the driver of a search, and the searchers that pick points for it.

Ray Tune asks the driver for trials and hands it reports; `next`, `reported` and `ended` are all
that Tune knows of it. The files of the sweep are the driver's memory: a trial that has a file is
never run again.

A searcher's point is a function of the seed, the number of the trial and the results that it was
told, so that a search that is killed and resumed asks for the same points.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from recray.errors import RecrayError, unknown_name
from recray.tuning.results import Entry, Point, Status
from recray.tuning.space import Parameter, SearchSpace, apply
from recray.tuning.store import TrialResult, TrialSpec, hash_key, settings_key

if TYPE_CHECKING:
    from recray.tuning.request import ValidatedSearch

SEARCHERS = ("random", "grid", "tpe")
STARTUP_TRIALS = 10
"""Random trials before TPE follows the results."""
ATTEMPTS = 100
"""How often a searcher is asked for a trial whose settings have not been tried."""


# ------------------------------------------------------------------------------------ searchers


class Searcher(ABC):
    """Gives the point of each trial, and is told every result."""

    @abstractmethod
    def ask(self, number: int, attempt: int) -> Point | None:
        """The point of trial `number` (1, 2, ...), another one at each attempt; None at the end."""

    def tell(self, point: Point, state: Status, values: list[float]) -> None:  # noqa: B027
        """Learn how a trial ended, and the best value so far after each of its epochs.

        A searcher whose points do not depend on results ignores them.
        """


class RandomSearch(Searcher):
    """Points drawn independently of each other and of the results."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space, self.seed = space, seed

    def ask(self, number: int, attempt: int) -> Point | None:
        """The point that follows from seed, number and attempt."""
        rng = np.random.default_rng([self.seed, number, attempt])
        draws = rng.random(len(self.space)).tolist()
        return {p.setting: p.sample(u) for p, u in zip(self.space, draws, strict=True)}


class GridSearch(Searcher):
    """All combinations but that of trial 0; the last setting changes fastest."""

    def __init__(self, space: SearchSpace, default: Point) -> None:
        names = [parameter.setting for parameter in space]
        combinations = product(*(parameter.grid() for parameter in space))
        points = [dict(zip(names, values, strict=True)) for values in combinations]
        self.points = [point for point in points if point != default]

    def ask(self, number: int, attempt: int) -> Point | None:
        """The combination of that number; a second attempt has no other."""
        return self.points[number - 1] if number <= len(self.points) and not attempt else None


class TPESearch(Searcher):
    """Optuna's tree-structured Parzen estimator, used through its ask-and-tell interface.

    Args:
        space: What is searched.
        seed: Together with a trial's number, the seed of that trial's point.
        lower: Whether lower values are better.

    Raises:
        RecrayError: Optuna is not installed.
    """

    def __init__(self, space: SearchSpace, seed: int, lower: bool) -> None:
        self.optuna = import_optuna()
        self.space, self.seed = space, seed
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        self.study = self.optuna.create_study(direction="minimize" if lower else "maximize")
        self.distributions = {p.setting: self._distribution(p) for p in space}
        # Trials that run: Optuna avoids their neighbourhood as long as they are open in the study.
        self._asked: dict[int, tuple[Any, Point]] = {}

    def _distribution(self, parameter: Parameter) -> Any:
        kinds = self.optuna.distributions
        low, high = parameter.low, parameter.high
        if parameter.kind == "choice":
            # Optuna takes the index of a choice, since it refuses values that are lists.
            return kinds.CategoricalDistribution(tuple(range(len(parameter.choices))))
        if parameter.kind == "int":
            return kinds.IntDistribution(int(low), int(high), log=parameter.log)
        return kinds.FloatDistribution(low, high, log=parameter.log)

    def ask(self, number: int, attempt: int) -> Point | None:
        """The point that follows from seed, number, attempt and the results so far."""
        self._close(number)
        seed = int(np.random.default_rng([self.seed, number, attempt]).integers(2**31))
        self.study.sampler = self.optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=STARTUP_TRIALS
        )
        trial = self.study.ask(self.distributions)
        point: Point = {}
        for p in self.space:
            value = trial.params[p.setting]
            if p.kind == "choice":
                value = p.choices[value]
            point[p.setting] = p.rounded(value) if p.kind in ("uniform", "loguniform") else value
        self._asked[number] = (trial, point)
        return point

    def _close(self, number: int) -> None:
        """Close the trial of a point that has been told or is not used."""
        if number in self._asked:
            trial, _ = self._asked.pop(number)
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)

    def tell(self, point: Point, state: Status, values: list[float]) -> None:
        """Add the result; values outside the space, which trial 0 may have, are left out."""
        for number in [n for n, (_, asked) in self._asked.items() if asked == point]:
            self._close(number)
        states = self.optuna.trial.TrialState
        finite = [value for value in values if math.isfinite(value)]
        outcome = {"finished": states.COMPLETE, "stopped": states.PRUNED}.get(state, states.FAIL)
        params: dict[str, float] = {}
        for p in self.space:
            value = point[p.setting]
            if p.kind == "choice":
                if value in p.choices:
                    params[p.setting] = p.choices.index(value)
            elif isinstance(value, (int, float)) and p.low <= value <= p.high:
                params[p.setting] = value
        self.study.add_trial(
            self.optuna.trial.create_trial(
                state=outcome if finite else states.FAIL,
                value=finite[-1] if finite and outcome == states.COMPLETE else None,
                params=params,
                distributions={name: self.distributions[name] for name in params},
                intermediate_values=dict(enumerate(finite, 1)),
            )
        )


def import_optuna() -> Any:
    """Import the package behind TPE.

    Raises:
        RecrayError: It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise RecrayError(
            "--searcher tpe needs the package optuna: pip install 'recray[tune]', "
            "or use --searcher random"
        ) from error
    return optuna


def make_searcher(
    name: str, space: SearchSpace, default: Point, seed: int, lower: bool
) -> Searcher:
    """Build the searcher of that name.

    Args:
        name: One of SEARCHERS.
        space: What is searched.
        default: The point of trial 0.
        seed: The seed of all random numbers.
        lower: Whether lower values are better.

    Raises:
        RecrayError: The name is unknown, or the searcher's package is missing.
    """
    if name == "random":
        return RandomSearch(space, seed)
    if name == "grid":
        return GridSearch(space, default)
    if name == "tpe":
        return TPESearch(space, seed, lower)
    raise unknown_name("searcher", name, SEARCHERS)


# ------------------------------------------------------------------------------------- the driver


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

    def __init__(self, search: "ValidatedSearch", on_update: OnUpdate | None = None) -> None:
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
