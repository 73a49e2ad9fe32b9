"""What `recray benchmark` runs, one module a name; each is compared with others in the same run."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from recray.benchmarks.harness import machine
from recray.errors import RecrayError, unknown_name

NAMES = ("evaluate", "ingest", "quality", "serve", "tune")

Say = Callable[[str], None]


def run(name: str, quick: bool, say: Say, data: str | None = None) -> dict[str, Any]:
    """Run one benchmark.

    Args:
        name: One of NAMES.
        quick: Leave out what takes long; under 3 minutes.
        say: Told what happens, a line each.
        data: Folder of real archives, for those that need them.

    Returns:
        {"figures": {name: number}, "rows": [...], "machine": {...}}

    Raises:
        RecrayError: There is no such benchmark, or it needs no data.
    """
    if name not in NAMES:
        raise unknown_name("benchmark", name, NAMES)
    before = machine()
    module = import_module(f"recray.benchmarks.{name}")
    if data is None:
        result = module.run(quick, say)
    elif "data" in inspect.signature(module.run).parameters:
        result = module.run(quick, say, data)
    else:
        raise RecrayError(f"--data {data}: the benchmark {name} makes its own data")
    return {**result, "machine": before | {"load_after": machine()["load"]}}
