"""A cluster that begins as a head alone and comes to have nodes when work asks for them."""

import json
import threading
import time

import pytest

from tests.ray.several_nodes import Nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def head():
    """A head whose nodes come later; the test stands for the autoscaler."""
    with Nodes(0, head_resources={"max_cpus": 2}) as running:
        yield running


def test_work_waits_for_the_nodes_that_it_asks_for(head, tmp_path):
    words = ["pipeline", "sample", "--out", tmp_path / "out", "--workers", 2, "--json"]
    words += ["--set", "train.epochs=2", "--address", head.address]
    refused = head.recray(*words[:-1], head.address, "--workers", 3)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--workers 3: the cluster has 2 CPUs" in refused.stderr

    def come():
        for _ in range(2):
            time.sleep(8)
            head.add()

    threading.Thread(target=come).start()
    done = head.recray(*words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["promoted"]
    assert "the cluster has 0 CPUs, asks for 2 and waits for them" in done.stderr
