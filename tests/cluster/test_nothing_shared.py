"""A cluster whose nodes share nothing but a store: all stages, and nodes that die."""

import io
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recray.benchmarks.counting_proxy import Proxy, Traffic
from recray.data.dataset import Prepared
from recray.data.ingest import SPILL
from tests.cluster.isolated import IsolatedNodes, Network, why_not
from tests.ray.several_nodes import Nodes, wait_for
from tests.s3_store import s3_store

USERS, ITEMS, ROWS, RANGES = 600, 200, 24_000, 12


def ratings(seed: int = 0) -> bytes:
    """A parquet file that is read in RANGES ranges; no pair of user and item comes twice."""
    rng = np.random.default_rng(seed)
    pairs = np.random.default_rng(0).choice(USERS * ITEMS, ROWS, replace=False)
    rng.shuffle(pairs)
    user, item = pairs // ITEMS, pairs % ITEMS
    columns = {"user": user + 1000, "item": item, "rating": 1.0 + (user * item) % 5}
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=ROWS // RANGES)
    return out.getvalue()


@pytest.fixture(scope="module")
def store():
    """A proxy before a store, at an address that isolated nodes reach, and their network."""
    if reason := why_not():
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch, s3_store(patch) as client, Network() as network:
        host, _, port = client.meta.endpoint_url.removeprefix("http://").partition(":")
        client.put_object(Bucket="data", Key="ratings.parquet", Body=ratings())
        client.put_object(Bucket="data", Key="shuffled.parquet", Body=ratings(seed=1))
        with Proxy((host, int(port))).running(host=network.gateway) as proxy:
            patch.setenv("AWS_ENDPOINT_URL", proxy.url)
            yield proxy, network


@pytest.fixture(scope="module")
def nodes(store):
    """Two nodes of one CPU beside a head without any."""
    proxy, network = store
    with IsolatedNodes(network, 2, AWS_ENDPOINT_URL=proxy.url) as running:
        yield running


def well(nodes: IsolatedNodes, *words: object) -> str:
    """Run a command on the head that ends well; what it printed."""
    running = nodes.start(*words, "--address", nodes.address)
    printed, _ = running.communicate(timeout=900)
    assert running.returncode == 0, printed
    return printed


def test_a_node_writes_where_no_other_sees_it(nodes):
    for number in range(3):
        words = f"touch /tmp/mark /dev/shm/mark; ls /tmp | grep -c mark-; echo > /tmp/mark-{number}"
        printed, _ = nodes.run_on(number, "sh", "-c", words).communicate(timeout=60)
        assert printed.split() == ["0"]
    printed, _ = nodes.run_on(1, "sh", "-c", "touch /etc/mark /home/mark").communicate(timeout=60)
    assert printed.count("Read-only file system") == 2


def test_every_stage_runs_on_nodes_that_share_only_a_store(nodes):
    out = "s3://data/stages"
    well(nodes, "prepare", "s3://data/ratings.parquet", "--out", f"{out}/p")
    short = ["--preset", "dot-mse", "--set", "train.epochs=2"]
    well(nodes, "train", f"{out}/p", *short, "--workers", 2, "--out", f"{out}/run")
    words = ["--trials", 2, "--scheduler", "none", "--out", f"{out}/sweep"]
    well(nodes, "tune", f"{out}/p", *short, *words)
    well(nodes, "export", f"{out}/run", "--out", f"{out}/bundle")
    well(nodes, "evaluate", f"{out}/bundle", "--workers", 2)
    words = ["--all", "--out", f"{out}/lists", "--json"]
    printed = well(nodes, "recommend", f"{out}/bundle", *words)
    lists = json.loads(printed[printed.index("{") :])
    assert (lists["users"], lists["nodes"]) == (USERS, 2)
    local = nodes.start("prepare", "sample", "--out", "/tmp/p", "--address", nodes.address)
    assert "/tmp/p is not shared" in local.communicate(timeout=300)[0]


@pytest.fixture(scope="module")
def undisturbed(nodes):
    """The files of a data set that nothing happened to."""
    well(nodes, "prepare", "s3://data/ratings.parquet", "--out", "s3://data/calm")
    return Prepared.open("s3://data/calm", verify=True).manifest["files"]


STAGES = {
    "scan": f"{SPILL}/rows-",
    "gather": f"{SPILL}/partition-",
    "encode": "train/part-",
}


def written(traffic: Traffic, out: str, stage: str) -> int:
    """How many files of a stage were put into the generation that is being written."""
    start = re.compile(rf"{out}/generation-\w+/{re.escape(STAGES[stage])}")
    return sum(r.kind == "PUT" and bool(start.match(r.key)) for r in traffic.requests)


@pytest.mark.parametrize("stage", STAGES)
def test_a_node_that_dies_costs_no_byte(nodes, store, undisturbed, stage):
    nodes.fill(2)
    proxy, _ = store
    out = f"data/dies-{stage}"
    proxy.delay_s = 0.3  # so that the stage lasts when the first of its files is there
    with proxy.watch() as traffic:
        words = ["s3://data/ratings.parquet", "--out", f"s3://{out}", "--address", nodes.address]
        running = nodes.start("prepare", *words)
        wait_for(lambda: written(traffic, out, stage), pause=0.02)
        nodes.kill(nodes.running[-1])
        before = written(traffic, out, stage)
        proxy.delay_s = 0.0
        printed, _ = running.communicate(timeout=900)
        assert running.returncode == 0, printed
        after = written(traffic, out, stage)
    assert before < 8 <= after, "it was killed too late to show anything"
    assert Prepared.open(f"s3://{out}", verify=True).manifest["files"] == undisturbed


def test_bytes_depend_neither_on_workers_nor_on_the_order_of_rows(nodes, undisturbed, tmp_path):
    """Four CPUs of this machine, four nodes or one, and rows in another order; on a disk and in a
    store.
    """
    for source in ("ratings", "shuffled"):
        out = tmp_path / source
        running = Nodes.start(nodes, "prepare", f"s3://data/{source}.parquet", "--out", out)
        printed, _ = running.communicate(timeout=900)
        assert running.returncode == 0, printed
        assert Prepared.open(str(out)).manifest["files"] == undisturbed
    nodes.fill(4)
    well(nodes, "prepare", "s3://data/shuffled.parquet", "--out", "s3://data/four")
    assert Prepared.open("s3://data/four", verify=True).manifest["files"] == undisturbed
    for node in [one for one in nodes.running[1:] if one.poll() is None][1:]:
        nodes.kill(node)
    wait_for(lambda: nodes.alive() == 2)
    well(nodes, "prepare", "s3://data/shuffled.parquet", "--out", "s3://data/one")
    assert Prepared.open("s3://data/one").manifest["files"] == undisturbed
