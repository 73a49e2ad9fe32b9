"""What `recray tune` reads from its command line, and the tables it shows."""

import io

import pytest
from rich.console import Console as Terminal

from recray.cli.tune import folders, live_table, short_names, summary
from recray.errors import RecrayError
from recray.tuning.driver import TrialUpdate
from recray.tuning.results import TuneResult


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    """The width of tables does not follow from where the tests run."""
    monkeypatch.delenv("COLUMNS", raising=False)


SETTINGS = {
    "model.dim": 64,
    "model.mlp_dim": 16,
    "model.dropout": 0.2345,
    "train.lr": 0.01234,
    "train.weight_decay": 4.567,
}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (("p", "s", None), ("p", "s")),
        (("p", "s", ""), ("p", "s")),  # recray tune p --out s --resume
        ((None, "s", "p"), ("p", "s")),  # recray tune --out s --resume p
        ((None, None, "s"), (None, "s")),  # recray tune --resume s
        (("p", None, "s"), ("p", "s")),  # recray tune p --resume s
        ((None, "s", ""), (None, "s")),  # recray tune --out s --resume
        (("p", "s", "s"), ("p", "s")),
    ],
)
def test_where_the_sweep_is_and_what_it_searches_on(given, wanted):
    assert folders(*given) == wanted


@pytest.mark.parametrize("given", [("p", "s", "t"), (None, None, None), (None, "s", None)])
def test_without_a_place_it_is_refused(given):
    with pytest.raises(RecrayError):
        folders(*given)


def result(**changes) -> TuneResult:
    rows = [
        {"trial": n, "status": "stopped", "value": 0.1 + n / 100, "sd": None, "best_epoch": 12,
         "epochs": 60, "settings": SETTINGS, "error": ""}
        for n in range(3)
    ]  # fmt: skip
    rows[1] |= {"status": "failed", "value": None, "best_epoch": None, "error": "the loss is nan"}
    values = {
        "sweep": "s", "space": {}, "results": "s/results.parquet",
        "dataset": "ml-100k", "preset": "neumf", "metric": "ndcg@10", "lower_is_better": False,
        "searcher": "tpe", "scheduler": "asha", "folds": 0, "workers": 1, "trials": rows,
        "best": 2, "best_config": "s/best.yaml", "pictures": ["s/pictures/history.png"],
        "test": None,
    }  # fmt: skip
    return TuneResult.model_validate(values | changes)


def test_the_end_fits_80_columns_and_tells_of_failures_below():
    lines = summary(result()).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[3:6]] == ["2", "0", "1"], "best first"
    assert "trial 1: the loss is nan" in lines
    assert "pictures: s/pictures" in lines


def test_the_best_is_the_lowest_where_lower_is_better():
    lines = summary(result(lower_is_better=True, best=0)).splitlines()
    assert [line.split()[0] for line in lines[3:6]] == ["0", "2", "1"]


def test_folds_and_workers_are_named_where_there_are_any():
    rows = result().trials
    rows[2].sd = 0.01
    text = summary(result(trials=rows, folds=5, workers=2))
    assert "validation ndcg@10 over 5 folds" in text
    assert "0.1200 +- 0.0100" in text
    assert "recray train --config s/best.yaml --workers 2" in text


def test_names_are_short_where_that_leaves_them_apart():
    assert short_names(["train.l2", "model.dim"]) == ["l2", "dim"]
    assert short_names(["train.x", "model.x", "model.y"]) == ["train.x", "model.x", "y"]


def test_the_live_table_is_cut_at_the_width_of_the_terminal():
    long = "the loss became nan in epoch 1; " * 5
    updates = [
        TrialUpdate(0, "finished", 3, 0.2, "", 1, 9, (0, 0.2)),
        TrialUpdate(1, "failed", 1, float("nan"), long, 2, 9, (0, 0.2)),
        TrialUpdate(2, "running", 1, 0.1, "", 2, 9, (0, 0.2)),
    ]
    table = live_table(updates, updates[-1], "ndcg@10")
    terminal = Terminal(file=io.StringIO(), width=80)
    lines = ["".join(s.text for s in line) for line in terminal.render_lines(table)]
    assert lines[0].rstrip() == "2 of 9 trials, best ndcg@10 0.2000 (trial 0)"
    assert len(lines) == 6
    assert [line.split()[0] for line in lines[3:]] == ["0", "2", "1"]
