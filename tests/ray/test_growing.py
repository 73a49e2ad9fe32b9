"""A cluster that begins as a head alone and comes to have nodes when work asks for them."""

import json

import pytest

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
