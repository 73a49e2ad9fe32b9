"""Sweeps on Ray Tune: end to end, broken off and resumed, blind to test, with trials that fail."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from recray.config import load_settings
from recray.data import ingest
from recray.data.source import detect_source
from recray.pipelines import search as pipeline
from recray.reporting.plots.search import draw
from recray.training import trainer
from recray.tuning import request, tuner
from recray.tuning.driver import SearchDriver
from recray.tuning.request import TuneRequest
from recray.tuning.space import parse_space
from recray.tuning.store import SweepFolder

SPACE = {"model.dim": {"int": [2, 12]}, "train.l2": {"loguniform": [0.001, 0.1]}}
SMALL = ["model.dim=4", "train.epochs=3", "train.patience=null"]


@pytest.fixture(scope="module")
def prepared(ray_session, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tuning") / "prepared"
    settings = load_settings("ranking")
    ingest.prepare(detect_source("sample", settings), str(folder), settings)
    return folder


def checked(prepared: Path, out: Path, space=SPACE, changes=(), preset="ranking", **options):
    settings = load_settings(preset, None, [*SMALL, *changes])
    usual = {"prepared": str(prepared), "out": str(out), "trials": 6, "concurrent": 2}
    return request.check(TuneRequest(**usual | options), settings, parse_space(space, settings))


def all_cpus_come_back(seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            return True
        time.sleep(0.2)
    return False


def test_a_sweep_ends_with_settings_that_give_its_digits(prepared, tmp_path, monkeypatch):
    logged, updates = [], []
    monkeypatch.chdir(tmp_path)  # a relative --out is the driver's, wherever trials run
    search = checked(prepared, Path("s"), trials=8, seeds=2)
    found = pipeline.tune(search, log=logged.append, on_update=updates.append, draw=draw)
    result = found.model_dump()
    assert all_cpus_come_back()
    assert [row["trial"] for row in result["trials"]] == list(range(8))
    assert {row["status"] for row in result["trials"]} == {"finished", "stopped"}
    assert updates[-1].ended == 8
    rows = pq.read_table(tmp_path / "s" / "results.parquet").to_pylist()
    assert len(rows) == sum(row["epochs"] for row in result["trials"])
    best = next(row for row in result["trials"] if row["trial"] == result["best"])
    again = trainer.run(
        load_settings(None, result["best_config"]), str(prepared), str(tmp_path / "run")
    )
    assert again.best["ndcg@10"] == best["value"]
    assert again.best_epoch == best["best_epoch"]
    test = result["test"]
    assert test["winner"]["each"][0]["valid"] == best["value"], "seed 0 is the trial itself"
    assert len(logged) == 2 * (1 + ("preset" in test))
    assert test["verdict"]
    assert json.loads((tmp_path / "s" / "summary.json").read_text()) == result
    assert not (tmp_path / "s" / ".ray").exists()


def test_a_sweep_that_is_broken_off_keeps_what_had_ended(prepared, tmp_path):
    def stop(event):
        if event.ended == 3 and event.status != "running":
            raise KeyboardInterrupt

    search = checked(prepared, tmp_path / "s", scheduler="none")
    with pytest.raises(KeyboardInterrupt):
        tuner.run(search, stop)
    assert all_cpus_come_back()
    trials = tmp_path / "s" / "trials"
    kept = {path.name: path.stat().st_mtime_ns for path in trials.glob("*.json")}
    assert 3 <= len(kept) < 6
    updates = []
    tuner.run(checked(prepared, tmp_path / "s", scheduler="none", resume=True), updates.append)
    records = SweepFolder(str(tmp_path / "s")).trials()
    assert [record.number for record in records] == list(range(6))
    assert {name: (trials / name).stat().st_mtime_ns for name in kept} == kept
    assert len({update.number for update in updates}) == 6 - len(kept)


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_a_resumed_scheduler_knows_the_trials_of_before(prepared, tmp_path, scheduler):
    good = {"train.l2": {"choice": [0.01, 0.011, 0.012, 0.013]}}
    changes = ["train.epochs=9", "train.l2=0.015"]
    options = {"searcher": "grid", "scheduler": scheduler, "concurrent": 1}
    search = checked(prepared, tmp_path / "s", good, changes, trials=5, **options)
    tuner.run(search)
    path = tmp_path / "s" / "sweep.json"
    facts = json.loads(path.read_text())
    poor = {"train.l2": {"choice": [40.0]}}
    search = checked(
        prepared, tmp_path / "other", poor, changes, searcher="grid", scheduler=scheduler, trials=50
    )
    facts["space"] = search.metadata().space
    path.write_text(json.dumps(facts))
    # The good ones stay as trials 0 to 4; the only new one is judged by them.
    resumed = checked(
        prepared, tmp_path / "s", poor, changes, trials=6, **options | {"resume": True}
    )
    driver = SearchDriver(resumed)
    driver.searcher.points = [None] * 4 + driver.searcher.points
    tuner._fit(driver, 1)
    last = SweepFolder(str(tmp_path / "s")).trials()[-1]
    assert (last.number, last.status) == (5, "stopped")
    assert len(last.history) < 9


def test_mutated_test_ratings_leave_the_best_settings_as_they_are(prepared, tmp_path):
    mutated = tmp_path / "mutated"
    shutil.copytree(prepared, mutated)
    parts = list((mutated / "test").glob("*.parquet"))
    assert parts
    for part in parts:
        part.write_bytes(b"nobody can read this")
    best = []
    for name, folder in (("a", prepared), ("b", mutated)):
        search = checked(
            folder, tmp_path / name, scheduler="none", searcher="tpe", concurrent=1, seeds=0
        )
        assert pipeline.tune(search).test is None
        best.append((tmp_path / name / "best.yaml").read_bytes())
    assert best[0] == best[1]


def test_trials_that_fail_are_rows_and_give_their_cpus_back(prepared, tmp_path):
    space = {"train.lr": {"choice": [0.01, 1e30]}, "model.dim": {"choice": [2, 3]}}
    changes = ["train.optimizer=sgd", "train.lr=0.02"]
    search = checked(
        prepared, tmp_path / "s", space, changes, "dot-mse", searcher="grid", scheduler="median"
    )
    updates = []
    results = tuner.run(search, updates.append)
    status = {result.number: result.status for result in results}
    assert sorted(status.values()).count("failed") == 2
    assert len(status) == 5
    failed = [update for update in updates if update.status == "failed"]
    assert all("train.lr=1e+30" in update.error for update in failed)
    rows = pq.read_table(tmp_path / "s" / "results.parquet").to_pylist()
    assert sum(row["error"] is not None for row in rows) >= 2
    assert all_cpus_come_back()


def is_own(pid: int) -> bool:
    """Whether a process descends from this one: other tests beside it may run trials, too."""
    while pid > 1 and pid != os.getpid():
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return pid == os.getpid()


def trial_processes() -> list[int]:
    """Processes of this test's own Ray that run trials."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(path.name)
            if b"TuneTrial" in (path / "cmdline").read_bytes() and is_own(pid):
                found.append(pid)
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_trial_whose_process_dies_is_lost_and_tried_again(prepared, tmp_path):
    changes = ["train.epochs=40", "model.dim=32"]
    killed = []

    def kill(event):
        if not killed:
            killed.extend(trial_processes())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    options = {"trials": 3, "scheduler": "none", "concurrent": 1}
    results = tuner.run(checked(prepared, tmp_path / "s", SPACE, changes, **options), kill)
    assert killed
    assert [r.status for r in results] == [
        "lost",
        "finished",
        "finished",
    ]
    assert all_cpus_come_back()
    results = tuner.run(checked(prepared, tmp_path / "s", SPACE, changes, resume=True, **options))
    assert {result.status for result in results} == {"finished"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_driver_loses_no_finished_trial(prepared, tmp_path):
    out = tmp_path / "s"
    command = [
        *(sys.executable, "-m", "recray", "tune", str(prepared), "--out", str(out), "--json"),
        *("--trials", "10", "--searcher", "tpe", "--scheduler", "none", "--seeds", "0"),
        *("--set", "train.epochs=20", "--set", "train.patience=null"),
    ]
    killed = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    end = time.monotonic() + 300
    try:
        while len(list(out.glob("trials/*.json"))) < 4:
            assert time.monotonic() < end, "no trial ended"
            assert killed.poll() is None, "it ended by itself"
            time.sleep(0.05)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    for path in Path("/proc").glob("[0-9]*"):  # Ray keeps its daemons in the driver's session
        try:
            if os.getsid(int(path.name)) == killed.pid:
                os.kill(int(path.name), signal.SIGKILL)
        except OSError:
            continue
    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("trials/*.json") if p.name[0] != "."}
    assert 4 <= len(kept) < 10
    again = [*(sys.executable, "-m", "recray", "tune", "--resume", str(out)), "--json"]
    done = subprocess.run(again, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["trial"] for row in result["trials"]] == list(range(10))
    assert {row["status"] for row in result["trials"]} == {"finished"}
    assert {name: (out / "trials" / name).stat().st_mtime_ns for name in kept} == kept
    ran = [line for line in done.stderr.splitlines() if "finished" in line]
    assert len(ran) == 10 - len(kept)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a trial starts six processes
def test_trials_on_workers_of_their_own_give_the_digits_of_a_run(prepared, tmp_path):
    changes = ["train.epochs=9", "train.l2=0.01"]
    poor = {"train.l2": {"choice": [20.0]}}
    options = {"trials": 2, "searcher": "grid", "concurrent": 1, "workers": 2, "seeds": 0}
    search = checked(prepared, tmp_path / "s", poor, changes, **options)
    result = pipeline.tune(search).model_dump()
    assert all_cpus_come_back()
    rows = result["trials"]
    assert [row["status"] for row in rows] == ["finished", "stopped"]
    run = trainer.run(search.settings, str(prepared), str(tmp_path / "run"), workers=2)
    assert rows[0]["value"] == run.best["ndcg@10"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_a_trial_raises_on_its_workers_is_a_row(prepared, tmp_path):
    space = {"train.lr": {"choice": [1e30]}}
    changes = ["train.optimizer=sgd", "train.lr=0.02"]
    options = {"searcher": "grid", "trials": 2, "workers": 2, "concurrent": 1}
    search = checked(prepared, tmp_path / "s", space, changes, "dot-mse", **options)
    results = tuner.run(search)
    assert [result.status for result in results] == ["finished", "failed"]
    assert "train.lr=1e+30" in results[1].error
    assert all_cpus_come_back()


NODES = """
import json, sys
import os
from recray.runtime.ray_switches import (RAY_SWITCHES)
os.environ |= RAY_SWITCHES | {"RAY_AUTH_MODE": "token"}
from ray.cluster_utils import Cluster
from recray.config import load_settings
from recray.tuning import request, tuner
from recray.tuning.request import TuneRequest
from recray.tuning.space import parse_space

prepared, out = sys.argv[1:]
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = nodes.add_node(num_cpus=2)
settings = load_settings("ranking", None, ["model.dim=8", "train.epochs=60", "train.patience=null"])
space = parse_space({"train.l2": {"loguniform": [0.001, 0.1]}}, settings)

def run(resume, on_event=None):
    asked = TuneRequest(prepared, out, 8, 3 if not resume else None, scheduler="none",
                        resume=resume, address=nodes.address)
    results = tuner.run(request.check(asked, settings, space), on_event)
    return {r.key: r.status for r in results}

def kill(event):
    if event.ended == 2 and second in nodes.worker_nodes:
        nodes.remove_node(second, allow_graceful=False)

before, after = run(False, kill), run(True)
nodes.shutdown()
print(json.dumps([before, after]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_node_loses_no_finished_trial(prepared, tmp_path):
    command = [sys.executable, "-c", NODES, str(prepared), str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert len(before) == len(after) == 8
    lost = {key for key, status in before.items() if status == "lost"}
    assert 1 <= len(lost) <= 6
    assert set(before.values()) == {"finished", "lost"}
    assert set(after.values()) == {"finished"}
    assert before.keys() - lost <= after.keys()
