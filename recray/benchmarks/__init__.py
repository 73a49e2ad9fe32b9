"""What `recray benchmark` runs, one module a name; each is compared with others in the same run."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from recray.benchmarks.harness import machine
from recray.errors import unknown_name

NAMES = ("evaluate", "ingest")

Say = Callable[[str], None]


def run(name: str, quick: bool, say: Say) -> dict[str, Any]:
    """Run one benchmark.

    Args:
        name: One of NAMES.
        quick: Leave out what takes long; under 3 minutes.
        say: Told what happens, a line each.

    Returns:
        {"figures": {name: number}, "rows": [...], "machine": {...}}

    Raises:
        RecrayError: There is no such benchmark.
    """
    if name not in NAMES:
        raise unknown_name("benchmark", name, NAMES)
    before = machine()
    result = import_module(f"recray.benchmarks.{name}").run(quick, say)
    return {**result, "machine": before | {"load_after": machine()["load"]}}
