"""Does Ray Data's default shuffle end when a node is lost while it reduces?

Plain Ray, nothing of recray: a head without CPUs and two nodes of two CPUs. One of the nodes is
killed when the first reduced blocks are there. What is to be shown: Ray resubmits what made the
lost objects, but the reduce tasks that still run wait for these objects inside the task and hold
every CPU. So the tasks that would make them again are never placed.

    python docs/lost_node_in_shuffle.py                           # the default strategy
    python docs/lost_node_in_shuffle.py sort_shuffle_pull_based

It depends on the moment: the hang was seen with Ray 2.60 on rows of ratings (docs/architecture.md).
This script has not shown it yet. With small shards it ended well, 53 s after its begin; with these
it was stopped 25 s after Ray began to recover, which says nothing. It prints which of both happens.
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

ROWS, PARTITIONS, FIRST = 8_000_000, 32, 3
"""The node is killed when FIRST of PARTITIONS have been reduced."""
PATIENCE_S = 180


def main(strategy: str | None) -> None:
    """Shuffle, lose a node in the middle, and say how that ends."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=2, object_store_memory=500 << 20) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    if strategy:
        context.shuffle_strategy = strategy
    print(f"ray {ray.__version__}, {context.shuffle_strategy}", flush=True)
    marks = Path(tempfile.mkdtemp())

    def reduced(batch):
        (marks / str(time.time_ns())).touch()
        return {"rows": [len(batch["key"])]}

    def lose() -> None:
        while len(list(marks.iterdir())) < FIRST:
            time.sleep(0.02)
        cluster.remove_node(nodes[1], allow_graceful=False)
        print(f"node killed after {len(list(marks.iterdir()))} of {PARTITIONS}", flush=True)
        time.sleep(PATIENCE_S)
        print(f"HANGS: {len(list(marks.iterdir()))} of {PARTITIONS} after {PATIENCE_S} s more")
        cluster.shutdown()
        os._exit(1)

    threading.Thread(target=lose, daemon=True).start()
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
    begin = time.monotonic()
    try:
        rows = data.map_batches(reduced, batch_size=None).sum("rows")
        print(f"ended in {time.monotonic() - begin:.0f} s with {rows} of {ROWS} rows")
    except Exception as error:
        print(
            f"failed after {time.monotonic() - begin:.0f} s: {type(error).__name__}: {error}"[:600]
        )
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
