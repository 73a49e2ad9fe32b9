"""Two raylets in one process tree, by Ray's own test cluster: where workers are changes no bit."""

import json
import os
import subprocess
import sys

import pytest

from recray.training.checkpoint import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SETTINGS = ["--preset", "dot-mse", "--set", "train.epochs=3"]
SCRIPT = """
import json, sys
from ray.cluster_utils import Cluster
from recray.config import load_settings
from recray.runtime.nodes import alive_nodes
from recray.runtime.session import session
from recray.training import trainer

prepared, out = sys.argv[1:]
made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
made.add_node(num_cpus=1)
try:
    with session(made.address):
        settings = load_settings("dot-mse", None, ["train.epochs=3"])
        summary = trainer.run(settings, prepared, out, workers=2, address=made.address)
        print(json.dumps({"nodes": len(alive_nodes()), "epochs": summary.epochs}))
finally:
    made.shutdown()
"""


def test_workers_on_two_nodes_reach_the_bits_of_two_on_one(tmp_path):
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    token.chmod(0o600)
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}

    def run(*words) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            env=environment, capture_output=True, text=True, timeout=560,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    prepared, one, two = (tmp_path / name for name in ("prepared", "one", "two"))
    run("-m", "recray", "prepare", "sample", "--out", prepared)
    run("-m", "recray", "train", prepared, "--out", one, "--workers", 2, *SETTINGS)
    told = json.loads(run("-c", SCRIPT, prepared, two).splitlines()[-1])
    assert told == {"nodes": 2, "epochs": 3}
    ours, theirs = (RunFolder(str(path)).best().weights for path in (one, two))
    assert all((ours[name] == theirs[name]).all() for name in ours)
