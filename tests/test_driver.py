"""A sweep without Ray: trial 0, what is kept and what is tried again, the sealed test split."""

import json
import os
import pickle
import shutil
import statistics
import threading

import pyarrow.parquet as pq
import pytest

from recray.config import build_settings, load_settings
from recray.data.dataset import Prepared
from recray.errors import RecrayError, StorageError
from recray.schema import TIMINGS
from recray.storage import UNFINISHED
from recray.training import trainer
from recray.training.checkpoint import RunFolder
from recray.training.loop import build_run
from recray.training.shard import Workers
from recray.tuning import request
from recray.tuning.driver import SearchDriver
from recray.tuning.request import (
    Resources,
    ResumeState,
    TuneRequest,
    ValidatedSearch,
    concurrency,
)
from recray.tuning.space import parse_space
from recray.tuning.store import Metric, SweepFolder, TrialResult
from recray.tuning.trial import TrialRun, load, open_without_test

SPACE = {"train.lr": {"loguniform": [0.001, 0.5]}, "model.dim": {"int": [2, 6]}}
SMALL = ["train.epochs=3", "train.batch_size=8", "model.dim=3", "train.lr=0.01"]


@pytest.fixture
def search(prepared, tmp_path):
    """Check a request on the small data set."""

    def make(space=SPACE, changes=(), preset="dot-mse", **options) -> ValidatedSearch:
        settings = load_settings(preset, None, [*SMALL, *changes])
        usual = {"prepared": prepared.folder.path, "out": str(tmp_path / "sweep"), "trials": 6}
        asked = TuneRequest(**usual | options)
        return request.check(asked, settings, parse_space(space, settings))

    return make


def run(made: ValidatedSearch, ends: int = 99) -> list[int]:
    """Run so many trials one after another; returns the numbers of those that ran."""
    made.sweep.reserve(made.metadata())
    driver, data, ran = SearchDriver(made), load(made.data), []
    while len(ran) < ends and (spec := driver.next("a")) is not None:
        trial = TrialRun(data, made.sweep, spec, made.metric, made.request.folds)
        while not trial.step().done:
            pass
        ran.append(spec.number)
        driver.ended("a")
    results = list(driver.results.values())
    made.sweep.write_results(results, made.metric, made.request.searcher)
    winner = made.metric.winner(results)
    if winner is not None:
        made.sweep.write_best(winner, made.metric)
    return ran


# --------------------------------------------------------------------------------- what is tried


@pytest.mark.parametrize("searcher", ["random", "tpe", "grid"])
def test_trial_0_is_the_preset_itself(search, searcher):
    space = {"train.lr": {"choice": [0.1, 0.2]}, "model.dim": {"int": [2, 3]}}
    made = search(space, searcher=searcher)
    run(made)
    first, *others = made.sweep.trials()
    assert (first.number, first.point) == (0, {"train.lr": 0.01, "model.dim": 3})
    assert first.settings == made.settings.plain()
    assert all(record.point != first.point for record in others)


def test_no_settings_are_tried_twice(search):
    made = search({"model.dim": {"int": [2, 4]}}, trials=9)
    assert len(run(made)) == 3, "there are three different trials, 3 is trial 0"
    dims = [record.settings["model"]["dim"] for record in made.sweep.trials()]
    assert sorted(dims) == [2, 3, 4]


def test_a_grid_is_tried_whole_or_refused(search):
    space = {"model.dim": {"int": [2, 4]}, "train.lr": {"uniform": [0.1, 0.2], "points": 2}}
    with pytest.raises(RecrayError, match="--trials 6: the grid has 7 trials"):
        search(space, searcher="grid")
    assert len(run(search(space, searcher="grid", trials=50))) == 7


def test_a_trial_that_raises_is_a_row_and_the_others_run(search):
    space = {"train.lr": {"choice": [0.1, 1e30]}}
    made = search(space, ["train.optimizer=sgd"], searcher="grid")
    assert len(run(made)) == 3
    failed = [record for record in made.sweep.trials() if record.status == "failed"]
    assert len(failed) == 1
    assert "train.lr=1e+30" in failed[0].error
    table = pq.read_table(os.path.join(made.sweep.folder.path, "results.parquet")).to_pylist()
    assert [row["error"] for row in table if row["status"] == "failed"][-1] == failed[0].error
    assert made.metric.winner(made.sweep.trials()).number != failed[0].number


def test_a_bug_in_a_trial_is_a_row_too(search, monkeypatch):
    made = search(trials=2)
    monkeypatch.setattr("recray.tuning.trial.build_run", lambda *_: {}["bug"])
    run(made)
    assert [record.error for record in made.sweep.trials()] == ["KeyError: 'bug'"] * 2


def test_a_full_disk_is_not_the_fault_of_a_trial(search, monkeypatch):
    made = search(trials=2)

    def full(*_):
        raise StorageError("no space left")

    monkeypatch.setattr(SweepFolder, "save", full)
    with pytest.raises(StorageError):
        run(made)


def test_values_that_do_not_go_together_are_a_row(search):
    space = {"objective.kind": {"choice": ["mse", "ials"]}}
    made = search(space, searcher="grid")
    assert run(made) == [0]
    assert "ials needs alternating" in made.sweep.trials()[1].error


# ------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("searcher", ["random", "tpe", "grid"])
def test_a_resumed_sweep_ends_like_an_unbroken_one(search, tmp_path, searcher):
    space = {"train.lr": {"loguniform": [0.001, 0.5]}, "model.dim": {"int": [2, 3]}}
    whole = search(space, searcher=searcher, trials=7, out=str(tmp_path / "whole"))
    run(whole)
    broken = search(space, searcher=searcher, trials=7)
    assert run(broken, ends=3) == [0, 1, 2]
    resumed = search(space, searcher=searcher, trials=7, resume=True)
    assert run(resumed) == [3, 4, 5, 6], "what had ended is not run again"
    points = [[record.point for record in s.sweep.trials()] for s in (whole, resumed)]
    assert points[0] == points[1]
    best = [(tmp_path / name / "best.yaml").read_bytes() for name in ("whole", "sweep")]
    assert best[0] == best[1]


def test_the_searcher_is_told_of_what_had_ended(search):
    run(search(searcher="tpe"), ends=3)
    made = search(searcher="tpe", resume=True)
    study = SearchDriver(made).searcher.study
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    values = [made.metric.best(r.history)[1] for r in made.sweep.trials()]
    assert [trial.value for trial in study.trials] == values


def test_a_sweep_may_be_made_longer(search):
    run(search())
    assert run(search(trials=8, resume=True)) == [6, 7]
    assert run(search(trials=8, resume=True)) == []


def test_what_a_kill_leaves_of_a_file_is_not_read(search):
    made = search()
    run(made, ends=2)
    left = made.sweep.trials_folder.path + f"/{UNFINISHED}abcd-efgh.json"
    with open(left, "w") as stream:
        stream.write('{"num')
    assert [record.number for record in made.sweep.trials()] == [0, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "give --resume"),
        ({"resume": True, "searcher": "tpe"}, r"searcher random \(now tpe\)"),
        ({"resume": True, "scheduler": "none"}, r"scheduler asha \(now none\)"),
        ({"resume": True, "preset": "dot-bias-bce"}, r"preset dot-mse \(now dot-bias-bce\)"),
        ({"resume": True, "changes": ["train.l2=0.5"]}, r"train\.l2=0\.1 \(now 0\.5\)"),
        (
            {"resume": True, "space": {"train.lr": {"uniform": [0.1, 1]}}},
            "another space",
        ),
    ],
)
def test_another_sweep_is_not_continued(search, change, words):
    run(search(), ends=1)
    with pytest.raises(RecrayError, match=words):
        search(**change)


def test_a_sweep_of_other_data_is_not_continued(search, prepared):
    run(search(), ends=1)
    manifest = prepared.folder.read_json("manifest.json")
    manifest["fingerprints"]["train"] = "other"
    prepared.folder.write_json("manifest.json", manifest)
    with pytest.raises(RecrayError, match="data that have changed"):
        search(resume=True)


def test_a_resumed_sweep_needs_nothing_but_its_folder(search, tmp_path, prepared):
    made = search(searcher="tpe", trials=4, seeds=1, concurrent=2, folds=2)
    run(made, ends=2)
    before = ResumeState(str(tmp_path / "sweep"))
    assert before.options() == {
        "prepared": prepared.folder.path, "trials": 4, "concurrent": 2, "seeds": 1, "gpus": 0.0,
        "searcher": "tpe", "scheduler": "asha", "folds": 2, "workers": 1,
    }  # fmt: skip
    settings = before.settings(None, None, ())
    space = before.space(settings, None)
    asked = TuneRequest(out=str(tmp_path / "sweep"), resume=True, **before.options())
    again = request.check(asked, settings, space)
    assert again.metadata() == made.metadata()
    assert run(again) == [2, 3]


@pytest.mark.parametrize(
    ("preset", "overrides", "words"),
    [
        ("ranking", (), "preset dot-mse (now ranking)"),
        (None, ("train.l2=0.5",), "train.l2=0.1 (now 0.5)"),
        (None, ("train.metric=mae",), "train.metric='auto' (now 'mae')"),
    ],
)
def test_a_resumed_sweep_of_other_settings_is_refused(search, tmp_path, preset, overrides, words):
    run(search(), ends=1)
    before = ResumeState(str(tmp_path / "sweep"))
    asked = TuneRequest(out=str(tmp_path / "sweep"), resume=True, **before.options())
    settings = before.settings(preset, None, overrides)
    space = before.space(settings, None)
    with pytest.raises(RecrayError) as error:
        request.check(asked, settings, space)
    assert words in str(error.value)


def test_a_resumed_sweep_may_be_longer_and_remembers_it(search, tmp_path):
    run(search(trials=2))
    assert run(search(trials=3, resume=True)) == [2]
    assert ResumeState(str(tmp_path / "sweep")).options()["trials"] == 3


# --------------------------------------------------------------------------------------- folds


def test_folds_validate_every_rating_once_and_never_what_they_train(prepared):
    data = load(open_without_test(prepared.folder.path))
    train, valid = data.load("train"), data.load("valid")
    wanted = {*_pairs(train), *_pairs(valid.where(valid.user < prepared.users))}
    seen: list[tuple[int, int]] = []
    for fold in range(3):
        part = data.fold(fold, 3)
        train, valid = (_pairs(part.load(name)) for name in ("train", "valid"))
        assert set(train) | set(valid) == wanted
        assert not set(train) & set(valid)
        assert valid
        seen += valid
    assert sorted(seen) == sorted(wanted)


def _pairs(ratings) -> list[tuple[int, int]]:
    return list(zip(ratings.user.tolist(), ratings.item.tolist(), strict=True))


def test_a_trial_on_folds_is_the_mean_of_them(search, tmp_path):
    made = search(trials=1, folds=3, changes=["train.patience=1"])
    run(made)
    (record,) = made.sweep.trials()
    data = load(made.data)
    settings = build_settings(record.settings).changed(train={"patience": None})
    each = [validation(settings, data.fold(n, 3), str(tmp_path / str(n))) for n in range(3)]
    for epoch, entry in enumerate(record.history):
        values = [history[epoch]["rmse"] for history in each]
        assert entry["rmse"] == statistics.fmean(values)
        assert entry["rmse sd"] == statistics.stdev(values)
    assert made.metric.best(record.history)[0] in (len(record.history) - 1, 3)


def test_folds_do_not_stand_for_a_split_by_time(search, prepared):
    manifest = prepared.folder.read_json("manifest.json")
    manifest["settings"]["split"]["kind"] = "temporal"
    prepared.folder.write_json("manifest.json", manifest)
    with pytest.raises(RecrayError, match=r"--kfold 3: folds are drawn at random, .* temporal"):
        search(folds=3)


def test_a_folder_of_something_else_is_left_alone(search, prepared):
    with pytest.raises(RecrayError, match="holds no sweep"):
        search(out=prepared.folder.path, resume=True)


# ------------------------------------------------------------------------------ refused at once


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trials": 0}, "--trials 0: give 1 or more"),
        ({"searcher": "tpa"}, "did you mean 'tpe'"),
        ({"scheduler": "ash"}, "did you mean 'asha'"),
        ({"changes": ["train.metric=rsme"]}, "did you mean 'rmse'"),
        ({"changes": ["train.metric=ndcg@7"]}, "did you mean 'ndcg@10'"),
        ({"concurrent": 9999}, "--concurrent 9999: at most"),
        ({"workers": 2}, "--workers-per-trial 2: the data set has 1 parts"),
        ({"gpus": 0.5}, "a trial takes 1 CPU, 0.5 GPU: the cluster has no GPU"),
        ({"gpus": 1.5}, "--gpus-per-trial 1.5: give 0, a fraction up to 1, or whole GPUs"),
        ({"gpus": -1}, "--gpus-per-trial -1"),
        ({"folds": 1}, "--kfold 1: give 2 or more"),
        ({"prepared": "/nowhere"}, "no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(search, tmp_path, monkeypatch, change, words):
    monkeypatch.setattr(request, "local_gpus", lambda: 0)
    with pytest.raises(RecrayError) as error:
        search(**change)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "sweep").exists()


def test_data_without_validation_rows_are_refused(search, prepared):
    manifest = prepared.folder.read_json("manifest.json")
    manifest["splits"]["valid"]["rows"] = 0
    prepared.folder.write_json("manifest.json", manifest)
    with pytest.raises(RecrayError, match=r"split\.valid=0\.1"):
        search()


def test_as_many_trials_at_once_as_fit():
    small, room = Resources(1, memory=3e9), Resources(8, memory=10e9)
    assert concurrency(None, Resources(8), Resources(1)) == 8
    assert concurrency(None, room, small) == 3
    assert concurrency(2, room, small) == 2
    assert concurrency(None, Resources(8), Resources(3)) == 2, "of three workers each"
    with pytest.raises(RecrayError, match="at most 3 trials fit"):
        concurrency(4, room, small)
    with pytest.raises(RecrayError, match=r"a trial takes 1 CPU, 3\.0 GB: the cluster has 8 CPUs"):
        concurrency(None, Resources(8, memory=2e9), small)
    with pytest.raises(RecrayError, match="0 CPUs"):
        concurrency(1, Resources(0), Resources(1))


@pytest.mark.parametrize(
    ("gpus", "share", "fit"), [(1, 0.5, 2), (2, 0.4, 4), (1, 0.1, 8), (4, 2, 2), (3, 2, 1)]
)
def test_a_share_of_a_gpu_lies_on_one_gpu(gpus, share, fit):
    assert concurrency(None, Resources(8, gpus), Resources(1, share)) == fit


def test_a_trial_that_wants_a_gpu_where_there_is_none_is_refused():
    with pytest.raises(RecrayError, match=r"takes 1 CPU, 0\.5 GPU: the cluster has no GPU"):
        concurrency(None, Resources(8), Resources(1, 0.5))


# --------------------------------------------------------------------------------------- sealed


def test_the_test_split_is_not_opened(search, prepared, tmp_path):
    run(search())
    best = (tmp_path / "sweep" / "best.yaml").read_bytes()
    shutil.rmtree(os.path.join(prepared.folder.path, "test"))
    other = search(out=str(tmp_path / "other"))
    run(other)
    assert (tmp_path / "other" / "best.yaml").read_bytes() == best
    with pytest.raises(ValueError, match="does not see the test split"):
        load(other.data).load("test")


def test_a_damaged_training_file_is_still_found(search, prepared):
    path = os.path.join(prepared.folder.path, "train", "part-00000.parquet")
    with open(path, "ab") as stream:
        stream.write(b"x")
    with pytest.raises(RecrayError, match=r"part-00000\.parquet is damaged"):
        search()


# ------------------------------------------------------------------------------------ what is best


def record(number: int, status: str, *values: float) -> TrialResult:
    history = [{"epoch": n, "rmse": value} for n, value in enumerate(values, 1)]
    return TrialResult(number, f"k{number}", {}, {}, status, history)


def test_the_winner_ran_to_its_end():
    metric, nan = Metric("rmse", lower_is_better=True), float("nan")
    trials = [
        record(0, "finished", 0.9, 0.8, 0.85),
        record(1, "stopped", 0.5),
        record(2, "finished", 0.9, 0.8),
        record(3, "finished", nan),
        record(4, "failed", 0.1),
    ]
    assert metric.winner(trials).number == 0, "the first of equals"
    assert metric.winner(trials[1:2]).number == 1
    assert metric.winner(trials[3:]) is None
    assert Metric("rmse", lower_is_better=False).winner(trials).number == 0
    assert metric.best(trials[0].history) == (2, 0.8)
    assert metric.best_so_far(trials[0].history) == [0.9, 0.8, 0.8]


def validation(settings, prepared: Prepared, folder: str) -> list[dict]:
    reports: list[dict] = []
    build_run(settings, prepared, RunFolder(folder), Workers(), reports.append).fit()
    return [{k: v for k, v in entry.items() if k not in TIMINGS} for entry in reports]


@pytest.mark.parametrize("stopped", [False, True])
def test_training_the_best_settings_gives_the_same_digits(search, tmp_path, prepared, stopped):
    made = search(changes=["train.patience=1"])
    run(made)
    winner = made.metric.winner(made.sweep.trials())
    if stopped:
        history = winner.history[:2]
        winner = TrialResult(**vars(winner) | {"status": "stopped", "history": history})
        made.sweep.write_best(winner, made.metric)
    path = str(tmp_path / "sweep" / "best.yaml")
    settings = trainer.adapt_to_dataset(load_settings(None, path), prepared)
    wanted = [{k: v for k, v in e.items() if k not in TIMINGS} for e in winner.history]
    assert validation(settings, prepared, str(tmp_path / "run")) == wanted


def test_results_have_a_row_a_report(search, tmp_path):
    made = search(trials=3)
    run(made)
    rows = pq.read_table(tmp_path / "sweep" / "results.parquet").to_pylist()
    assert [(row["trial"], row["epoch"]) for row in rows] == [
        (trial, epoch) for trial in range(3) for epoch in (1, 2, 3)
    ]
    assert {row["source"] for row in rows if row["trial"]} == {"random"}
    assert {"rmse", "loss", "best", "train.lr", "model.dim", "status"} <= rows[0].keys()


# ----------------------------------------------------------------------------------- the driver


def test_a_trial_whose_process_died_is_tried_again(search):
    made = search(trials=2)
    updates = []
    driver = SearchDriver(made, updates.append)
    lost = driver.next("a")
    driver.ended("a", died=True)
    assert (updates[-1].status, updates[-1].ended) == ("lost", 1)
    assert made.sweep.trials() == []
    assert SearchDriver(made).next("a") == lost


def test_who_is_told_need_not_pickle(search):
    lock = threading.Lock()
    driver = SearchDriver(search(), lambda _update: lock.acquire())
    assert pickle.loads(pickle.dumps(driver)).on_update is None
    assert driver.on_update is not None


def test_a_stopped_trial_keeps_its_reports(search):
    made = search(trials=2)
    updates = []
    driver = SearchDriver(made, updates.append)
    driver.next("a")
    for epoch, value in ((1, 0.9), (2, 0.8)):
        driver.reported("a", json.dumps({"epoch": epoch, "rmse": value}))
    driver.ended("a")
    (kept,) = made.sweep.trials()
    assert (kept.status, [e["rmse"] for e in kept.history]) == ("stopped", [0.9, 0.8])
    assert [u.status for u in updates] == ["running", "running", "stopped"]
    assert updates[-1].best == (0, 0.8)


def test_trials_see_what_the_data_set_holds(prepared):
    data = load(open_without_test(prepared.folder.path))
    for split in ("train", "valid"):
        assert (data.load(split).item == prepared.load(split).item).all()
