"""What picks trials: the same again after a kill, and TPE where the good values are."""

import sys

import pytest

from recray.errors import RecrayError
from recray.tuning.driver import GridSearch, RandomSearch, TPESearch, import_optuna, make_searcher
from recray.tuning.space import Parameter

SPACE = (
    Parameter("train.lr", "loguniform", 0.001, 1.0, log=True),
    Parameter("model.dim", "int", 1.0, 64.0),
    Parameter("model.layers", "choice", choices=([8], [16, 8])),
)
OWN = {"train.lr": 5.0, "model.dim": 8, "model.layers": [99]}


def loss(point) -> float:
    """Best at lr 0.9, whatever the rest."""
    return (point["train.lr"] - 0.9) ** 2


def told(searcher, count: int, first: int = 1) -> list[float]:
    """Ask and tell so many trials; returns their lr."""
    asked = []
    for number in range(first, first + count):
        point = searcher.ask(number, 0)
        searcher.tell(point, "finished", [loss(point)])
        asked.append(point["train.lr"])
    return asked


def test_a_random_point_follows_from_seed_number_and_attempt():
    points = [RandomSearch(SPACE, 3).ask(number, 0) for number in range(1, 6)]
    assert points == [RandomSearch(SPACE, 3).ask(number, 0) for number in range(1, 6)]
    assert points[0] != points[1]
    assert points[0] != RandomSearch(SPACE, 4).ask(1, 0)
    assert points[0] != RandomSearch(SPACE, 3).ask(1, 1)


def test_a_grid_gives_every_combination_once_and_not_trial_0():
    space = (Parameter("a", "int", 1.0, 2.0), Parameter("b", "choice", choices=("x", "y", "z")))
    grid = GridSearch(space, {"a": 2, "b": "x"})
    points = [grid.ask(number, 0) for number in range(1, 7)]
    assert points.pop() is None
    assert [(p["a"], p["b"]) for p in points] == [(1, "x"), (1, "y"), (1, "z"), (2, "y"), (2, "z")]


def test_tpe_asks_where_it_was_told_of_good_values():
    asked = told(TPESearch(SPACE, 0, lower=True), 60)[40:]
    drawn = told(RandomSearch(SPACE, 0), 60)[40:]
    assert sum(lr > 0.5 for lr in drawn) < 5, "a tenth of the scale is above 0.5"
    assert sum(lr > 0.5 for lr in asked) > 8


def test_tpe_turns_round_where_higher_is_better():
    asked = told(TPESearch(SPACE, 0, lower=False), 60)[40:]
    assert sum(lr > 0.5 for lr in asked) < 4


def test_tpe_that_is_told_the_same_asks_the_same():
    first, again = TPESearch(SPACE, 0, lower=True), TPESearch(SPACE, 0, lower=True)
    told(first, 15)
    for trial in first.study.get_trials(deepcopy=False):
        if trial.state.name == "COMPLETE":
            params = {**trial.params}
            params["model.layers"] = SPACE[2].choices[params["model.layers"]]
            again.tell(params, "finished", [trial.value])
    assert again.ask(16, 0) == first.ask(16, 0)
    assert again.ask(16, 1) != again.ask(16, 0)


def test_tpe_takes_what_lies_outside_its_space_and_what_failed():
    searcher = TPESearch(SPACE, 0, lower=True)
    searcher.tell(OWN, "finished", [1.0])
    searcher.tell(OWN, "stopped", [2.0, 1.5])
    searcher.tell(OWN, "failed", [])
    searcher.tell(OWN, "finished", [float("nan")])
    states = [trial.state.name for trial in searcher.study.trials]
    assert states == ["COMPLETE", "PRUNED", "FAIL", "FAIL"]
    assert searcher.study.trials[0].params == {"model.dim": 8}


def test_a_missing_package_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RecrayError, match=r"pip install 'recray\[tune\]'"):
        import_optuna()


def test_an_unknown_searcher_names_the_nearest():
    with pytest.raises(RecrayError, match="did you mean 'random'"):
        make_searcher("randm", SPACE, OWN, 0, lower=True)


def test_values_that_are_the_same_when_rounded_are_in_a_grid_once():
    space = (Parameter("a", "int", 1.0, 16.0, log=True, points=8),)
    assert space[0].grid() == [1, 2, 3, 5, 7, 11, 16]
