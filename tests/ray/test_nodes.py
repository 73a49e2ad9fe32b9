"""Jobs on several nodes that were started by hand, under a token."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from recray.inference.recommender import Recommender
from recray.serving.registry import Registry
from recray.training.checkpoint import RunFolder
from tests.ray.several_nodes import Nodes, free_ports, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def nodes():
    with Nodes(2) as running:
        yield running


@pytest.fixture(scope="module")
def released(nodes, tmp_path_factory):
    """A pipeline that ran as a job with a worker on each node: its folder, and what was printed."""
    out = tmp_path_factory.mktemp("released")
    done = nodes.recray(
        "submit", "pipeline", "sample", "--out", out, "--workers", 2, "--follow", "--name",
        "first", "--set", "train.epochs=3", "--no-final-fit", "--address", nodes.dashboard,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done


def test_a_pipeline_as_a_job_leaves_a_promoted_bundle(released):
    out, done = released
    versions = Registry(str(out / "registry")).versions()
    assert [row.current for row in versions] == [True]
    assert "promoted: first version" in done.stdout
    assert json.loads((out / "run" / "run.json").read_text())["workers"] == 2


def test_a_job_run_again_goes_on_with_what_is_there(nodes, released):
    out, _ = released
    words = ["submit", "pipeline", "sample", "--out", out, "--workers", 2, "--follow"]
    words += ["--set", "train.epochs=3", "--no-final-fit", "--address", nodes.dashboard, "--name"]
    taken = nodes.recray(*words, "first")
    assert (taken.returncode, taken.stderr.count("\n")) == (2, 1)
    assert "first is taken by a job that is SUCCEEDED" in taken.stderr
    again = nodes.recray(*words, "second")
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("is there and matches") == 3
    assert "is current already" in again.stdout


def lists_in(folder: Path) -> pd.DataFrame:
    return pq.read_table(sorted(map(str, folder.glob("*.parquet")))).to_pandas()


def test_lists_of_all_users_come_from_both_nodes_and_are_those_of_one(nodes, released, tmp_path):
    out, _ = released
    words = ["recommend", out / "bundle", "--all", "--out", tmp_path / "lists", "--json"]
    done = nodes.recray(*words, "--address", nodes.address)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["users"], result["parts"], result["nodes"]) == (600, 2, 2)
    lists = lists_in(tmp_path / "lists")
    recommender = Recommender.open(str(out / "bundle"))
    for user in lists.user.unique()[::50]:
        own = [item.item for item in recommender.recommend(int(user), 10).items]
        assert lists[lists.user == user]["item"].tolist() == own
    (tmp_path / "lists" / "manifest.json").unlink()
    (tmp_path / "lists" / "part-00001.parquet").unlink()
    plan = {k: result[k] for k in ("model_version", "k", "users", "parts")}
    (tmp_path / "lists" / ".unfinished-plan.json").write_text(json.dumps(plan))
    rest = json.loads(nodes.recray(*words, "--address", nodes.address).stdout)
    assert (rest["parts_before"], rest["parts"]) == (1, 2)
    assert lists_in(tmp_path / "lists").equals(lists)


def test_a_service_has_a_replica_on_each_node(nodes, released):
    out, _ = released
    (port,) = free_ports(1)
    words = ["serve", out / "registry", "--replicas", 2, "--port", port, "--address", nodes.address]
    running = nodes.start(*words)
    try:
        wait_for(lambda: "serving on" in running.stdout.readline())
        wait_for(lambda: len(nodes.nodes_of("ServeReplica")) == 2, 60)  # as the dashboard learns it
        checked = nodes.recray("verify", f"http://127.0.0.1:{port}", out / "bundle", "--users", 50)
        assert checked.returncode == 0, checked.stderr
    finally:
        os.killpg(running.pid, signal.SIGINT)
        running.communicate(timeout=60)


def test_the_door_is_shut_without_the_token(nodes):
    for change, status in (
        ({"RAY_AUTH_TOKEN_PATH": "", "HOME": "/nonexistent"}, "(401)"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "(403)"),
    ):
        begin = time.monotonic()
        refused = nodes.recray("jobs", "list", "--address", nodes.dashboard, **change)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert status in refused.stderr
        assert time.monotonic() - begin < 60
    joined = nodes.recray("doctor", "--address", nodes.address, RAY_AUTH_TOKEN="0" * 64)
    assert (joined.returncode, joined.stderr.count("\n")) == (2, 1), joined.stderr
    assert f"cannot use the Ray cluster at {nodes.address}: it refuses the token" in joined.stderr


def test_a_cluster_of_another_ray_is_refused(nodes):
    other = "import ray; ray.__version__ = '2.9.0'; from recray.cli import main; main('doctor')"
    refused = subprocess.run(
        [sys.executable, "-c", other, "--address", nodes.address],
        env=nodes.environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert "Version mismatch" in refused.stderr


@pytest.fixture
def scripts(tmp_path):
    """A working folder with two jobs of its own."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "seven.py").write_text("print('seven')\nraise SystemExit(7)\n")
    (tmp_path / "jobs" / "slow.py").write_text(
        "import os, time\nprint('SECRET' in os.environ, flush=True)\ntime.sleep(600)\n"
    )
    return ["--working-dir", tmp_path]


def test_the_status_of_a_job_is_given_on(nodes, scripts):
    done = nodes.recray("submit", "seven", "--follow", "--address", nodes.dashboard, *scripts)
    assert done.returncode == 7
    assert "seven\n" in done.stdout


def test_ctrl_c_leaves_a_job_running_and_stop_ends_it(nodes, scripts):
    nodes.environment["SECRET"] = "x"
    running = nodes.start(
        "submit", "slow", "--follow", "--name", "slow", "--address", nodes.dashboard, *scripts
    )
    lines: list[str] = []
    wait_for(lambda: lines.append(running.stdout.readline()) or lines[-1] == "False\n")
    os.killpg(running.pid, signal.SIGINT)
    rest, _ = running.communicate(timeout=60)
    assert running.returncode == 130, rest
    assert "slow goes on" in rest
    stopped = nodes.recray("jobs", "stop", "slow", "--json", "--address", nodes.dashboard)
    assert json.loads(stopped.stdout)["status"] == "STOPPED"
    listed = nodes.recray("jobs", "list", "--json", "--address", nodes.dashboard)
    found = {job["name"]: job["status"] for job in json.loads(listed.stdout)["jobs"]}
    assert found["slow"] == "STOPPED"
    log = nodes.recray("jobs", "logs", "slow", "--address", nodes.dashboard)
    assert "False" in log.stdout


def test_more_workers_than_the_cluster_has_are_refused(nodes, tmp_path):
    words = ["submit", "train", tmp_path, "--out", tmp_path / "r", "--workers", 3]
    refused = nodes.recray(*words, "--address", nodes.dashboard)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "has 2 CPUs" in refused.stderr


def test_the_doctor_finds_all_well(nodes, tmp_path):
    done = nodes.recray(
        "doctor", "--json", "--storage", tmp_path, "--data", "sample", "--address", nodes.address,
        "--port", free_ports(1)[0],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    checks = {row["check"]: row["level"] for row in json.loads(done.stdout)["checks"]}
    assert set(checks.values()) == {"ok"}
    assert len(checks) == 11


def test_a_disk_that_a_node_does_not_share_is_refused(nodes, released, tmp_path):
    hidden = tmp_path / "own"
    hidden.mkdir()
    apart = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs own "$0" && exec "$@"', str(hidden)]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount: no disk of a node's own here")
    before = nodes.alive()
    third = nodes.add(*apart)
    try:
        wait_for(lambda: nodes.alive() == before + 1)
        refused = nodes.recray(
            "train", released[0] / "prepared", "--out", hidden / "run", "--workers", 2,
            "--address", nodes.address,
        )  # fmt: skip
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "is not shared" in refused.stderr
        found = nodes.recray("doctor", "--storage", hidden, "--address", nodes.address)
        assert found.returncode == 1
        assert "problem  storage" in found.stdout
    finally:
        nodes.kill(third)


# ------------------------------------------------------------------------ a node lost in training

LONG = ["--preset", "dot-mse", "--set", "train.epochs=40", "--set", "train.patience=null"]


def epoch_runner(run: Path) -> int:
    try:
        return len(json.loads((run / "epochs.json").read_text()))
    except (OSError, ValueError):
        return 0


def trained_through_a_loss(nodes: Nodes, prepared: Path, out: Path, spare: int) -> str:
    """What a job of two workers prints when one's node is killed, beside so many spare nodes."""
    nodes.fill(2 + spare)
    running = nodes.start(
        "submit", "train", prepared, "--out", out, "--workers", 2, *LONG, "--follow",
        "--address", nodes.dashboard,
    )  # fmt: skip
    wait_for(lambda: epoch_runner(out) >= 3)
    at_work = nodes.nodes_of("RayTrainWorker")
    assert len(at_work) == 2
    nodes.kill(nodes.running_on(min(at_work)))
    assert epoch_runner(out) < 40, "killed too late to show anything"
    printed, _ = running.communicate(timeout=560)
    assert running.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A prepared data set, and a run on it that nothing happened to."""
    folder = tmp_path_factory.mktemp("unbroken")
    recray = [sys.executable, "-m", "recray"]
    prepared, run = folder / "prepared", folder / "run"
    subprocess.run([*recray, "prepare", "sample", "--out", prepared], check=True, timeout=560)
    words = [*recray, "train", prepared, "--out", run, "--workers", "2", *LONG]
    subprocess.run(words, check=True, timeout=560)
    return prepared, run


def test_a_run_whose_node_dies_ends_with_the_same_bits_on_another(nodes, unbroken, tmp_path):
    prepared, run = unbroken
    # Who begins again depends on what Ray learns first: it may take the loss for one with notice.
    assert "instead of" not in trained_through_a_loss(nodes, prepared, tmp_path / "run", spare=1)
    ours, theirs = (RunFolder(str(path)).best().weights for path in (run, tmp_path / "run"))
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_without_room_for_as_many_a_run_goes_on_with_fewer_workers_and_says_so(
    nodes, unbroken, tmp_path
):
    printed = trained_through_a_loss(nodes, unbroken[0], tmp_path / "run", spare=0)
    assert "goes on with 1 worker instead of 2" in printed
    run = RunFolder(str(tmp_path / "run"))
    assert run.finished
    assert [change.workers for change in run.metadata().changes] == [2, 1]
    assert epoch_runner(tmp_path / "run") == 40
