"""Pictures of a search: importance that knows the answer, scales of axes, PNGs that open."""

import numpy as np
import pytest

from recray.reporting.plots import search
from recray.tuning.results import TrialSummary, TuneResult


def result(trials: list[TrialSummary], space: dict) -> TuneResult:
    best = [t for t in trials if t.value is not None]
    return TuneResult(
        sweep="s", dataset="ml-x", preset="ranking", searcher="random", scheduler="none",
        folds=0, workers=1, metric="ndcg@10", lower_is_better=False, space=space, trials=trials,
        best=max(best, key=lambda t: t.value).trial if best else 0,
        best_config="s/best.yaml", results="s/results.parquet",
    )  # fmt: skip


def trial(number: int, value: float | None, status: str = "finished", **settings) -> TrialSummary:
    return TrialSummary(
        trial=number, status=status, value=value, sd=None, best_epoch=1, epochs=1,
        settings=settings, error="",
    )  # fmt: skip


@pytest.fixture
def planted() -> TuneResult:
    """40 trials whose value follows from a alone, and not in one direction; b is noise."""
    rng = np.random.default_rng(2)
    points = rng.random((40, 2))
    trials = [
        trial(n, -abs(a - 0.5), a=float(a), b=float(b), c="xy"[n % 2])
        for n, (a, b) in enumerate(points)
    ]
    space = {"a": {"uniform": [0, 1]}, "b": {"uniform": [0, 1]}, "c": {"choice": ["x", "y"]}}
    return result(trials, space)


def test_what_decides_the_order_is_what_mattered(planted):
    found = search.importances(planted)
    assert next(iter(found)) == "a"
    effect, chance = found["a"]
    assert effect > 0.7 > chance
    for name in ("b", "c"):
        assert found[name][0] <= found[name][1], "noise stays below what chance would do"


def test_effect_of_groups():
    ranks = np.array([1.0, 2, 3, 4, 5, 6])
    # H = 12 / (6 * 7) * (6**2 / 3 + 15**2 / 3) - 3 * 7 = 27 / 7; eta2 = (H - 2 + 1) / (6 - 2)
    assert search.effect(np.array([0, 0, 0, 1, 1, 1]), ranks) == pytest.approx(20 / 28)
    assert search.effect(np.array([0, 1, 0, 1, 0, 1]), ranks) == 0, "no less than nothing"
    assert search.effect(np.zeros(6, int), ranks) == 0
    assert search.effect(np.arange(6), ranks) == 0
    assert search.effect(np.array([0, 0, 0, 1, 1, 1]), np.full(6, 3.5)) == 0


def test_positions_lie_on_the_scale_of_the_space():
    shares, ticks = search._scale([0.01, 0.001], {"loguniform": [0.001, 0.1]})
    assert shares.tolist() == pytest.approx([0.5, 0])
    assert [label for _, label in ticks][::4] == ["0.001", "0.1"]
    shares, _ = search._scale([2, 20], {"int": [1, 11], "log": False})
    assert shares.tolist() == pytest.approx([1 / 19, 1]), "trial 0 may lie outside"
    shares, ticks = search._scale([[8], "z"], {"choice": [[8], [16]]})
    assert (shares.tolist(), [label for _, label in ticks]) == ([0, 1], ["[8]", "[16]", "z"])
    assert search._scale([3, 3], {})[0].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("lower", [True, False])
def test_all_pictures_open(planted, lower):
    planted.lower_is_better = lower
    planted.trials += [trial(40, None, "failed", a=0.1, b=0.1, c="x"),
                          trial(41, 0.1, "stopped", a=7.0, b=0.1, c="z")]  # fmt: skip
    made = search.render(planted)
    assert set(made) == {"history.png", "parallel.png", "importance.png"}
    assert all(content.startswith(b"\x89PNG") for content in made.values())


def test_few_trials_have_no_importance():
    space = {"a": {"uniform": [0, 1]}}
    one = result([trial(0, 0.5, a=0.5), trial(1, None, "failed", a=0.1)], space)
    assert set(search.render(one)) == {"history.png"}
    two = result([trial(0, 0.5, a=0.5), trial(1, 0.5, a=0.5)], space)
    assert set(search.render(two)) == {"history.png", "parallel.png"}


def test_the_words_say_what_is_shown(planted):
    figure = search.history(planted)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("trial", "validation NDCG@10")
    assert "higher is better" in axes.get_title("left")
    (axes,) = search.history(
        planted.model_copy(update={"metric": "rmse", "lower_is_better": True})
    ).axes
    assert axes.get_ylabel() == "validation RMSE in stars"
    assert "lower is better" in axes.get_title("left")
