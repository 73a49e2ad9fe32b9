"""Searchers pick the point of the next trial: at random, from a grid, or by Optuna's TPE.

A point is a function of the seed, the number of the trial and the results that the searcher was
told, so that a search that is killed and resumed asks for the same points.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import product
from typing import Any, Literal

import numpy as np

from recray.errors import RecrayError, unknown_name
from recray.tuning.results import Point
from recray.tuning.space import Parameter, SearchSpace

State = Literal["finished", "stopped", "failed"]
STARTUP_TRIALS = 10
"""Random trials before TPE follows the results."""


class Searcher(ABC):
    """Gives the point of each trial, and is told every result."""

    @abstractmethod
    def ask(self, number: int, attempt: int) -> Point | None:
        """The point of trial `number` (1, 2, ...), another one at each attempt; None at the end."""

    def tell(self, point: Point, state: State, values: list[float]) -> None:  # noqa: B027
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

    def tell(self, point: Point, state: State, values: list[float]) -> None:
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


SEARCHERS = ("random", "grid", "tpe")


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
    makers: dict[str, Callable[[], Searcher]] = {
        "random": lambda: RandomSearch(space, seed),
        "grid": lambda: GridSearch(space, default),
        "tpe": lambda: TPESearch(space, seed, lower),
    }
    if name not in makers:
        raise unknown_name("searcher", name, SEARCHERS)
    return makers[name]()
