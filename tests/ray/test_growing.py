"""Clusters whose nodes come while work waits or trains, and go again."""

import json
from pathlib import Path

import pytest

from recray.training.checkpoint import RunFolder
from tests.ray.several_nodes import Nodes, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def head():
    """A head whose nodes come later; the test stands for the autoscaler."""
    with Nodes(0, head_resources={"max_cpus": 2}) as running:
        yield running


def test_work_waits_for_the_nodes_that_it_asks_for(head, tmp_path):
    words = ["pipeline", "sample", "--out", tmp_path / "out", "--workers", 2, "--json"]
    words += ["--no-final-fit", "--set", "train.epochs=2", "--address", head.address]
    refused = head.recray(*words[:-1], head.address, "--workers", 3)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--workers 3: the cluster has 2 CPUs" in refused.stderr

    said = tmp_path / "said"
    with said.open("w") as errors:
        running = head.start(*words, stderr=errors)
    wait_for(lambda: "waits for them" in said.read_text() or running.poll() is not None)
    head.fill(2)
    printed, _ = running.communicate(timeout=560)
    assert running.returncode == 0, said.read_text()
    assert json.loads(printed)["promoted"]
    assert "the cluster has 0 CPUs, asks for 2 and waits for them" in said.read_text()


LONG = ["--preset", "dot-mse", "--set", "train.epochs=4000", "--set", "train.patience=null"]


def workers_and_epochs(run: Path) -> tuple[int, int]:
    try:
        epochs = len(json.loads((run / "epochs.json").read_text()))
        return json.loads((run / "run.json").read_text())["workers"], epochs
    except (OSError, ValueError):
        return 0, 0


def test_a_training_grows_with_the_nodes_and_shrinks_with_them_to_its_minimum(tmp_path):
    prepared, run = tmp_path / "prepared", tmp_path / "run"
    with Nodes(1) as nodes:
        done = nodes.recray("prepare", "sample", "--out", prepared)
        assert done.returncode == 0, done.stderr
        words = [prepared, *LONG, "--workers", "1..2", "--out", run, "--address", nodes.address]
        running = nodes.start("train", *words)

        def trains_with(count: int) -> bool:
            """Whether an epoch has come to its end since there are so many."""
            workers, epochs = workers_and_epochs(run)
            assert running.poll() is None, running.communicate()[0]
            if workers != count:
                before[0] = epochs
            return workers == count and epochs > before[0] + 1

        before = [0]
        wait_for(lambda: trains_with(1))
        nodes.fill(2)
        wait_for(lambda: trains_with(2))
        for left in (1, 0):
            nodes.drain(max(nodes.nodes_of("RayTrainWorker")))
            if left:
                wait_for(lambda: trains_with(1), 60)
        printed, _ = running.communicate(timeout=120)
    assert running.returncode == 2, printed
    *_, last = printed.splitlines()
    assert (
        "Error: --workers 1..2: the nodes that are left have room for 0, the fewest are 1" in last
    )
    assert "Traceback" not in printed
    folder = RunFolder(str(run))
    state, (first, grown, shrunk) = folder.train_state(), folder.metadata().changes
    assert [first.workers, grown.workers, shrunk.workers] == [1, 2, 1]
    assert 0 < grown.epoch < shrunk.epoch < state.epoch + 1
    assert len(state.history) == state.epoch
