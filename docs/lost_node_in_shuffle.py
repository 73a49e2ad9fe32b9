"""Does work in Ray end when a node is lost whose objects other tasks wait for?

Plain Ray, nothing of recray: a head without CPUs and two nodes of one CPU (CPUS), one of which is
killed. With Ray 2.60.0 a task that waits in `ray.get` for an object that was lost with its node
keeps its CPU, while one that waits for an object that is still to be made gives it back. Where such
tasks hold all CPUs that are left, the tasks that would make the objects again are never placed. The
reducers of Ray Data's default shuffle wait so.

    python docs/lost_node_in_shuffle.py task                      # one task that waits: HANGS
    python docs/lost_node_in_shuffle.py                           # the default shuffle: HANGS
    python docs/lost_node_in_shuffle.py sort_shuffle_pull_based   # the one before: ends
    CPUS=2 python docs/lost_node_in_shuffle.py task               # a CPU is free: ends

With two CPUs a node it depends on the moment whether the reducers that wait hold both of them.
"""

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import ray
import ray.data
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_tasks

CPUS = int(os.environ.get("CPUS", "1"))
ROWS, PARTITIONS, FIRST = 4_000_000, 32, 3
"""The node is killed when FIRST of PARTITIONS have been reduced."""
PATIENCE_S = 90


def lose(cluster: Cluster, node: object) -> None:
    """Kill a node, and end this process if all is not over PATIENCE_S later."""

    def give_up() -> None:
        time.sleep(PATIENCE_S)
        tasks = [one for one in list_tasks(address=cluster.address) if one.state != "FINISHED"]
        states = sorted(f"{one.name} {one.state}, attempt {one.attempt_number}" for one in tasks)
        print(f"HANGS, {PATIENCE_S} s after the node was killed:", *states, sep="\n  ", flush=True)
        for one in cluster.list_all_nodes():
            one.kill_all_processes(check_alive=False, allow_graceful=False)
        os._exit(1)

    cluster.remove_node(node, allow_graceful=False)
    print("node killed", flush=True)
    threading.Thread(target=give_up, daemon=True).start()


def wait_alone(cluster: Cluster, nodes: list[object]) -> None:
    """Lose an object that a task asks for later, which runs on the other node."""

    @ray.remote
    def make() -> bytes:
        return bytes(1_000_000)

    @ray.remote
    def use(refs: list[ray.ObjectRef], mark: str) -> int:
        while not Path(mark).exists():
            time.sleep(0.05)
        return len(ray.get(refs[0]))

    kept, lost = (NodeAffinitySchedulingStrategy(node.node_id, soft=True) for node in nodes)
    ref, mark = make.options(scheduling_strategy=lost).remote(), Path(tempfile.mkdtemp()) / "mark"
    ray.wait([ref], fetch_local=False)
    running = use.options(scheduling_strategy=kept).remote([ref], str(mark))
    while not [one for one in list_tasks(address=cluster.address) if one.state == "RUNNING"]:
        time.sleep(0.2)
    lose(cluster, nodes[1])
    mark.touch()
    print(f"ended with {ray.get(running)} bytes")


def shuffle(cluster: Cluster, nodes: list[object], strategy: str | None) -> None:
    """Lose a node while Ray Data reduces."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    if strategy:
        context.shuffle_strategy = strategy
    print(context.shuffle_strategy, flush=True)
    marks = Path(tempfile.mkdtemp())

    def reduced(batch):
        (marks / str(time.time_ns())).touch()
        return {"rows": [len(batch["key"])]}

    def watch() -> None:
        while len(list(marks.iterdir())) < FIRST:
            time.sleep(0.02)
        lose(cluster, nodes[1])

    threading.Thread(target=watch, daemon=True).start()
    data = ray.data.range(ROWS, override_num_blocks=16).map_batches(
        # Random bytes: shards of less than 100 kB would lie with the driver, and not be lost.
        lambda batch: {
            "key": batch["id"] % PARTITIONS,
            "x": np.random.random((len(batch["id"]), 2)),
        }
    )
    if strategy and strategy.startswith("sort"):
        data = data.sort("key", boundaries=list(range(1, PARTITIONS)))
    else:
        data = data.repartition(PARTITIONS, keys=["key"])
    rows = data.map_batches(reduced, batch_size=None).sum("rows")
    print(f"ended with {rows} of {ROWS} rows")


def main(words: list[str]) -> None:
    """Lose a node in the way that is asked for, and say how that ends."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=CPUS, object_store_memory=500 << 20) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    print(f"ray {ray.__version__}, two nodes of {CPUS} CPUs", flush=True)
    begin = time.monotonic()
    if words == ["task"]:
        wait_alone(cluster, nodes)
    else:
        shuffle(cluster, nodes, *(words or [None]))
    print(f"after {time.monotonic() - begin:.0f} s")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
