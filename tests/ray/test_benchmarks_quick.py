"""`recray benchmark NAME --quick --json` ends well for every name.

Each runs in a process of its own, because a service wants a Ray without another one, and takes the
sizes below in place of those of --quick, so that all together last a few minutes. The figures are
worth nothing then, but every way that is compared is run.
"""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from recray import benchmarks
from recray.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SMALLEST: dict[str, dict[str, Any]] = {
    "evaluate": {"memory_users": 1024, "repetitions": 1},
    "ingest": {
        "compared": (100_000,),
        "kinds": ("csv", "parquet"),
        "repetitions": 1,
        "watched": (100_000,),
    },
    "next": {
        "data": ("sample",),
        "trials": 1,
        "seeds": 1,
        "sequence": ("train.epochs=1", "model.length=50"),
        "workers": 1,
    },
    "quality": {"figures": ("ndcg10_100k_per_item",), "repetitions": 1},
    "scale": {
        "small": 20_000,
        "middle": 40_000,
        "large": (60_000,),
        "repetitions": 1,
        "divided": (20_000, 2_000, 16, 5),
        "largest": (20_000, 2_000, 8, 5),
    },
    "search": {"trials": 2, "source": "sample"},
    "serve": {
        "turns": 1,
        "seconds": 0.5,
        "swap_seconds": 7.0,
        "overload_seconds": 3.0,
        "death_requests": 60,
        "soak_seconds": 12.0,
        "many": (2000, 4000),
        "indexed": 210_000,  # smaller ones have none
    },
    "store": {
        "small": 20_000,
        "large": (100_000,),
        "trained": False,
        "served": (2000, 500, 10, 16),
        "gathered": (100_000,),
        "users": (100_000, 154, 20),
    },
    "train": {
        "batches": (8192,),
        "large": 1 << 16,
        "repetitions": 1,
        "tiny_runs": 1,
        "tiny_runs_of_two": 1,
        "naive": True,
        "tables": ("sample", "ml-1m"),
    },
    "tune": {"trials": 3, "inside_train": 1},
}


def test_every_benchmark_has_its_smallest_size():
    assert set(SMALLEST) == set(benchmarks.NAMES)


@pytest.mark.parametrize("name", benchmarks.NAMES)
def test_the_benchmark_ends_with_exit_0_and_prints_one_object(name, request):
    command = [sys.executable, "-m", __name__, "benchmark", name, "--quick", "--json"]
    if name == "quality":
        command += ["--data", str(request.getfixturevalue("movielens"))]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert {"figures", "rows", "machine"} <= set(result)
    assert result["figures"]
    assert result["rows"]


def main_at_smallest_size() -> None:
    """The command `recray`, with the smallest size in place of that of --quick."""
    name = sys.argv[2]
    module: Any = import_module(f"recray.benchmarks.{name}")
    module.QUICK = module.Sizes(**SMALLEST[name])
    main()


if __name__ == "__main__":
    main_at_smallest_size()
