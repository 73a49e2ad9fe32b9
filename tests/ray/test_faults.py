"""What happens when the main job is stopped, killed, or sent to another cluster."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recray.benchmarks.harness import session_of, start_recray
from recray.training.checkpoint import RunFolder
from tests.ray.several_nodes import Nodes, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECRAY = [sys.executable, "-m", "recray"]
LONG = ["--preset", "dot-mse", "--set", "train.epochs=400", "--set", "train.patience=null"]
SHORT = ["--preset", "dot-mse", "--set", "train.epochs=40", "--set", "train.patience=null"]


def recray(*arguments: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*RECRAY, *map(str, arguments)], capture_output=True, text=True, timeout=560, **options
    )


def epochs(run: Path) -> int:
    try:
        return len(json.loads((run / "epochs.json").read_text()))
    except (OSError, ValueError):
        return 0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "prepared"
    done = recray("prepare", "sample", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def unbroken(prepared, tmp_path_factory):
    """The weights of a run that nothing happened to, by workers."""

    @functools.cache
    def weights(workers: int) -> dict:
        whole = tmp_path_factory.mktemp("unbroken") / "run"
        done = recray("train", prepared, *SHORT, "--workers", workers, "--out", whole)
        assert done.returncode == 0, done.stderr
        return RunFolder(str(whole)).best().weights

    return weights


def assert_equal(run: Path, weights: dict) -> None:
    again = RunFolder(str(run)).best().weights
    assert all((weights[name] == again[name]).all() for name in weights)


def test_a_killed_run_resumes_to_the_same_bits(prepared, unbroken, tmp_path):
    # With one worker there is no Ray to die with it: see tests/test_stopping.py.
    options = [prepared, *SHORT, "--workers", 2, "--out"]
    killed = start_recray("train", *options, tmp_path / "killed")
    try:
        wait_for(lambda: epochs(tmp_path / "killed") >= 3, pause=0.05)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
    for pid in session_of(killed.pid):
        os.kill(pid, signal.SIGKILL)
    assert epochs(tmp_path / "killed") < 40, "killed too late to show anything"
    resumed = recray("train", *options, tmp_path / "killed", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_equal(tmp_path / "killed", unbroken(2))


def train_workers(session: int) -> list[int]:
    """Processes of the session that train."""
    return [
        pid
        for pid in session_of(session)
        if b"TrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def cpu_seconds(pid: int) -> float:
    """What a process has computed so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def lose_a_worker(running: subprocess.Popen, run: Path) -> tuple[int, str]:
    """Kill one of two workers after some epochs; the exit code and what was said."""
    wait_for(lambda: epochs(run) >= 3, pause=0.05)
    os.kill(train_workers(running.pid)[-1], signal.SIGKILL)
    _, errors = running.communicate(timeout=560)
    return running.returncode, errors


def test_a_run_goes_on_after_the_death_of_a_worker_to_the_same_bits(prepared, unbroken, tmp_path):
    options = [prepared, *SHORT, "--workers", 2, "--out"]
    code, errors = lose_a_worker(
        start_recray("train", *options, tmp_path / "run"), tmp_path / "run"
    )
    assert code == 0, errors
    assert "died; again after epoch" in errors
    assert_equal(tmp_path / "run", unbroken(2))


def test_a_lost_worker_may_also_end_the_run_which_one_worker_continues(prepared, tmp_path):
    run = tmp_path / "run"
    options = [prepared, *SHORT, "--max-failures", 0, "--out", run]
    code, errors = lose_a_worker(start_recray("train", *options, "--workers", 2), run)
    assert code == 2, errors
    assert errors.splitlines()[-1].startswith("Error: a worker was lost once, --max-failures is 0")
    assert "Traceback" not in errors
    done = recray("train", *options, "--resume")
    assert done.returncode == 0, done.stderr
    assert "with 1 worker instead of 2: the same tables" in done.stderr
    again = recray("train", *options, "--resume")
    assert "was finished before: 40 epochs; nothing was trained" in again.stderr


def test_ctrl_c_exits_with_130_and_leaves_no_process(prepared, tmp_path):
    running = start_recray("train", prepared, *LONG, "--out", tmp_path / "run", "--workers", 2)
    wait_for(lambda: epochs(tmp_path / "run") >= 2)
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "Traceback" not in errors
    wait_for(lambda: not session_of(running.pid), 30)


def test_a_terminated_service_exits_with_143(tmp_path, port):
    short = ["--no-final-fit", "--set", "train.epochs=1"]
    running = start_recray("up", "sample", "--out", tmp_path / "o", "--port", port, *short)
    wait_for(lambda: "serving on" in running.stderr.readline())
    os.kill(running.pid, signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == 143
    wait_for(lambda: not session_of(running.pid), 30)


def test_a_killed_prepare_leaves_nothing_under_its_name(tmp_path):
    out = tmp_path / "prepared"
    running = start_recray("prepare", "sample", "--out", out)
    wait_for(lambda: list(tmp_path.glob(".unfinished-*/.unfinished-spill/*")), pause=0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    for pid in session_of(running.pid):
        os.kill(pid, signal.SIGKILL)
    assert not out.exists()
    assert recray("prepare", "sample", "--out", out).returncode == 0


@pytest.fixture(scope="module")
def nodes():
    """A cluster with two CPUs on each of two nodes."""
    with Nodes(2, cpus=2) as running:
        yield running


def test_the_same_commands_run_on_a_cluster_that_is_there_already(nodes, tmp_path, port):
    environment, address = nodes.environment, ["--address", nodes.address]
    done = recray(
        "up", "sample", "--once", "--json", "--workers", 2, "--port", port,
        "--out", tmp_path / "o", *address, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verified"]
    words = ["train", tmp_path / "o" / "prepared", "--out", tmp_path / "r"]
    refused = recray(*words, "--workers", 6, *address, env=environment)
    assert refused.returncode == 2
    assert "the cluster has 4 CPUs" in refused.stderr
    assert not (tmp_path / "r").exists()
    lost = recray(*words, "--address", "127.0.0.1:1")
    assert (lost.returncode, lost.stderr.count("\n")) == (2, 1)


def test_a_node_that_is_taken_away_with_notice_leaves_a_checkpoint_within_the_epoch(
    nodes, prepared, tmp_path
):
    small = ["--preset", "dot-mse", "--set", "train.epochs=1", "--set", "train.batch_size=8"]
    run = tmp_path / "run"
    running = nodes.start(
        "train", prepared, *small, "--workers", 2, "--out", run, "--address", nodes.address
    )
    wait_for(lambda: len(nodes.nodes_of("RayTrainWorker")) == 1)
    (busy,) = nodes.nodes_of("RayTrainWorker")
    workers = train_workers(nodes.running_on(busy).pid)
    # They are in their epoch then: a start takes some two seconds, and the epoch at least six.
    wait_for(lambda: min(map(cpu_seconds, workers)) > 5)
    nodes.drain(busy)
    wait_for(lambda: list(run.glob("checkpoints/epoch-00000-step-*/manifest.json")), 60)
    printed, _ = running.communicate(timeout=560)
    assert running.returncode == 0, printed
    assert epochs(run) == 1
    assert "a node is taken away: a checkpoint after epoch 0 and" in printed
    assert "instead of" not in printed, "the other node has room for both"
