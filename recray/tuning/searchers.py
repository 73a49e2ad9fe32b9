"""What picks the next trial: random points, a grid, or TPE by Optuna. Pure: no Ray, no training.

A point is a function of the seed, the number of the trial and what the searcher was told, so that
a search that is killed and resumed asks for the same points.
"""

import math
from collections.abc import Callable
from itertools import product
from typing import Any, Literal, Protocol

import numpy as np

from recray.errors import RecrayError, unknown_name
from recray.tuning.space import Dimension, Point, Space

State = Literal["finished", "stopped", "failed"]
SEARCHERS = ("random", "grid", "tpe")
STARTUP = 10
"""Random trials before TPE believes in what it has seen."""


class Searcher(Protocol):
    """Gives points, which are functions of the seed, the trial's number and what it was told."""

    def ask(self, number: int, attempt: int) -> Point | None:
        """The point of trial `number` (1, 2, ...), another one at each attempt; None: no more."""

    def tell(self, point: Point, state: State, values: list[float]) -> None:
        """Learn of a trial: the best value so far after each of its epochs."""


class RandomSearch:
    """Points drawn independently of each other and of the results."""

    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.seed = space, seed

    def ask(self, number: int, attempt: int) -> Point | None:
        """The point that follows from seed, number and attempt."""
        rng = np.random.default_rng([self.seed, number, attempt])
        shares = rng.random(len(self.space)).tolist()
        return {d.setting: d.at(share) for d, share in zip(self.space, shares, strict=True)}

    def tell(self, point: Point, state: State, values: list[float]) -> None:
        """Results change nothing."""


class GridSearch:
    """All combinations, the last setting changing fastest."""

    def __init__(self, space: Space, own: Point) -> None:
        every = product(*(d.grid() for d in space))
        points = [dict(zip((d.setting for d in space), values, strict=True)) for values in every]
        self.points = [point for point in points if point != own]

    def ask(self, number: int, attempt: int) -> Point | None:
        """The combination of that number; there is no other."""
        return self.points[number - 1] if number <= len(self.points) and not attempt else None

    def tell(self, point: Point, state: State, values: list[float]) -> None:
        """Results change nothing."""


class Tpe:
    """Optuna's tree-structured Parzen estimator by ask and tell.

    Args:
        space: What is searched.
        seed: With a trial's number, the seed of what that trial draws.
        lower: Whether lower values are better.

    Raises:
        RecrayError: Optuna is not installed.
    """

    def __init__(self, space: Space, seed: int, lower: bool) -> None:
        self.optuna = import_optuna()
        self.space, self.seed = space, seed
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        self.study = self.optuna.create_study(direction="minimize" if lower else "maximize")
        self.distributions = {d.setting: self._distribution(d) for d in space}
        self._asked: dict[int, tuple[Any, Point]] = {}  # they run: Optuna keeps away from them

    def _distribution(self, dimension: Dimension) -> Any:
        kinds = self.optuna.distributions
        low, high = dimension.low, dimension.high
        if dimension.kind == "choice":  # by place, since a value may be a list
            return kinds.CategoricalDistribution(tuple(range(len(dimension.choices))))
        if dimension.kind == "int":
            return kinds.IntDistribution(int(low), int(high), log=dimension.log)
        return kinds.FloatDistribution(low, high, log=dimension.log)

    def ask(self, number: int, attempt: int) -> Point | None:
        """The point that follows from seed, number, attempt and all that was told."""
        self._close(number)
        seed = int(np.random.default_rng([self.seed, number, attempt]).integers(2**31))
        self.study.sampler = self.optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
        trial = self.study.ask(self.distributions)
        drawn, point = trial.params, Point()
        for d in self.space:
            value = drawn[d.setting]
            if d.kind == "choice":
                value = d.choices[value]
            point[d.setting] = d.rounded(value) if d.kind in ("uniform", "loguniform") else value
        self._asked[number] = (trial, point)
        return point

    def _close(self, number: int) -> None:
        """Forget a point that was asked for: it is told, or not used."""
        if number in self._asked:
            trial, _ = self._asked.pop(number)
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)

    def tell(self, point: Point, state: State, values: list[float]) -> None:
        """Add a trial; what lies outside the space, as trial 0 may, is left out."""
        for number in [n for n, (_, asked) in self._asked.items() if asked == point]:
            self._close(number)
        states = self.optuna.trial.TrialState
        finite = [value for value in values if math.isfinite(value)]
        told = {"finished": states.COMPLETE, "stopped": states.PRUNED}.get(state, states.FAIL)
        params = {}
        for d in self.space:
            value = point[d.setting]
            if d.kind == "choice":
                value = d.choices.index(value) if value in d.choices else None
            if _is_inside(d, value):
                params[d.setting] = value
        self.study.add_trial(
            self.optuna.trial.create_trial(
                state=told if finite else states.FAIL,
                value=finite[-1] if finite and told == states.COMPLETE else None,
                params=params,
                distributions={name: self.distributions[name] for name in params},
                intermediate_values=dict(enumerate(finite, 1)),
            )
        )


def _is_inside(dimension: Dimension, value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return dimension.kind == "choice" or dimension.low <= value <= dimension.high


def import_optuna() -> Any:
    """The package behind TPE.

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


def make_searcher(name: str, space: Space, own: Point, seed: int, lower: bool) -> Searcher:
    """The searcher of that name.

    Args:
        name: random, grid or tpe.
        space: What is searched.
        own: The point of trial 0.
        seed: Of all that is drawn.
        lower: Whether lower values are better.

    Raises:
        RecrayError: The name is unknown, or its package is missing.
    """
    makers: dict[str, Callable[[], Searcher]] = {
        "random": lambda: RandomSearch(space, seed),
        "grid": lambda: GridSearch(space, own),
        "tpe": lambda: Tpe(space, seed, lower),
    }
    if name not in makers:
        raise unknown_name("searcher", name, makers)
    return makers[name]()
