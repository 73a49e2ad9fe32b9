"""A sweep in MLflow's file store: every trial once, every epoch a step."""

import sys

import pytest

from recray.errors import RecrayError
from recray.reporting.mlflow import export_sweep as export
from recray.reporting.mlflow import mlflow_name
from recray.tuning.store import Metric, SweepFolder, SweepMetadata, TrialResult


@pytest.fixture
def sweep(tmp_path) -> SweepFolder:
    """Two trials of a sweep that has not come to its end."""
    made = SweepFolder(str(tmp_path / "sweep"))
    metadata = SweepMetadata(
        dataset="tiny", fingerprint="0", settings={"preset": "ranking"},
        space={"train.l2": {"uniform": [0, 1]}},
        searcher="random", scheduler="asha", folds=0, workers=1,
        order={"prepared": "tiny", "trials": 3, "concurrent": None, "seeds": 3, "gpus": 0.0},
    )  # fmt: skip
    made.reserve(metadata)
    made.save(record(0, "finished", 0.1, 0.3))
    made.save(record(1, "failed", 0.2, float("nan"), error="the loss became nan"))
    return made


def record(number: int, status: str, *values: float, error: str = "") -> TrialResult:
    history = [{"epoch": n, "ndcg@10": value} for n, value in enumerate(values, 1)]
    settings = {"preset": "ranking", "model": {}, "objective": {}, "train": {}, "evaluate": {}}
    return TrialResult(number, f"k{number}", {"train.l2": 0.5}, settings, status, history, error)


def client_of(store: str):
    from mlflow.tracking import MlflowClient

    return MlflowClient(store)


def test_a_trial_is_a_run_and_an_epoch_a_step(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    sweep.write_best(sweep.trials()[0], Metric("ndcg@10", lower_is_better=False))
    done = export(sweep.folder.path, str(tmp_path / "mlruns"))
    assert (done.experiment, done.trials, done.added) == ("tiny-ranking", 2, 2)
    client = client_of(done.store)
    experiment = client.get_experiment_by_name("tiny-ranking").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(runs) == {"sweep", "trial 0", "trial 1"}
    assert runs["trial 0"].data.params == {"train.l2": "0.5"}
    assert runs["trial 0"].data.tags["mlflow.parentRunId"] == done.run
    steps = client.get_metric_history(runs["trial 0"].info.run_id, "ndcg_at_10")
    assert sorted((m.step, m.value) for m in steps) == [(1, 0.1), (2, 0.3)]
    assert [run.info.status for _, run in sorted(runs.items())] == [
        "FINISHED",
        "FINISHED",
        "FAILED",
    ]
    assert runs["trial 1"].data.tags["recray.error"] == "the loss became nan"
    assert [f.path for f in client.list_artifacts(done.run)] == ["best.yaml"]


def test_exported_again_it_adds_what_has_ended_since(sweep, tmp_path):
    store = str(tmp_path / "mlruns")
    first = export(sweep.folder.path, store)
    sweep.save(record(2, "stopped", 0.4))
    again = export(sweep.folder.path, store)
    assert (again.run, again.trials, again.added) == (first.run, 3, 1)
    assert export(sweep.folder.path, store).added == 0


def test_another_sweep_is_another_run_of_the_experiment(sweep, tmp_path):
    store = str(tmp_path / "mlruns")
    other = SweepFolder(str(tmp_path / "other"))
    other.reserve(sweep.metadata())
    assert export(other.folder.path, store).run != export(sweep.folder.path, store).run


def test_a_missing_package_is_one_line_with_the_command(sweep, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(RecrayError, match=r"pip install 'recray\[mlflow\]'"):
        export(sweep.folder.path, str(tmp_path / "mlruns"))


def test_a_server_that_does_not_answer_is_one_line(sweep):
    with pytest.raises(
        RecrayError, match=r"MLflow at http://127\.0\.0\.1:9 does not take"
    ) as error:
        export(sweep.folder.path, "http://127.0.0.1:9")
    assert "\n" not in str(error.value)


def test_names_that_mlflow_takes():
    assert mlflow_name("ndcg@10 sd") == "ndcg_at_10 sd"
