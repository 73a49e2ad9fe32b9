"""RAY DATA: the evaluation of all users, block by block, on several workers."""

import functools
from typing import Any

import numpy as np

from recray.config import EvaluateSettings
from recray.evaluation.evaluator import Evaluator
from recray.evaluation.per_user import PerUserMetrics
from recray.evaluation.protocol import FULL_RANKING, Protocol
from recray.evaluation.report import EvaluationReport
from recray.inference.bundle import Bundle
from recray.runtime.nodes import wait_for_capacity
from recray.runtime.session import LOCAL, require_local, session
from recray.runtime.tasks import map_tasks


@functools.lru_cache(maxsize=1)
def _evaluator(
    path: str, _version: str, settings: EvaluateSettings, protocol: Protocol
) -> Evaluator:
    """One evaluator a process; the version is a key, so that a replaced bundle is opened anew."""
    return Evaluator(Bundle.open(path), settings, None, protocol)


class _MeasureBlocks:
    """Every n-th block of users, for one worker."""

    def __init__(
        self, bundle: Bundle, settings: EvaluateSettings, protocol: Protocol, workers: int
    ) -> None:
        self.what = bundle.folder.path, bundle.version, settings, protocol
        self.workers = workers

    def __call__(self, worker: int) -> dict[str, Any]:
        """Measure the blocks of one worker; JSON keeps every digit of a float."""
        evaluator = _evaluator(*self.what)
        own = range(worker, len(evaluator.blocks), self.workers)
        parts = [evaluator.measure_block(block) for block in own]
        if not parts:
            return {"tables": None}
        joined = {name: PerUserMetrics.join(part[name] for part in parts) for name in parts[0]}
        return {"tables": _pack(joined)}


def _pack(tables: dict[str, PerUserMetrics]) -> dict[str, Any]:
    return {
        name: {
            "user": table.user.tolist(),
            "values": {k: v.tolist() for k, v in table.values.items()},
            "shown": table.shown.tolist(),
        }
        for name, table in tables.items()
    }


def _unpack(tables: dict[str, Any]) -> dict[str, PerUserMetrics]:
    return {
        name: PerUserMetrics(
            np.array(table["user"], np.int64),
            {k: np.array(v, np.float64) for k, v in table["values"].items()},
            np.array(table["shown"], np.int64),
        )
        for name, table in tables.items()
    }


def evaluate(
    bundle: Bundle,
    settings: EvaluateSettings | None = None,
    workers: int = 1,
    address: str = LOCAL,
    protocol: Protocol = FULL_RANKING,
) -> EvaluationReport:
    """Evaluate a bundle on its hold-out with several workers; the digits are those of one.

    Args:
        bundle: An opened bundle, at a path that the workers can read too.
        settings: Cut-offs and relevance; the bundle's own by default.
        workers: Ray Data tasks that share the blocks of users.
        address: Ray cluster.
        protocol: What is measured, and beside what.

    Raises:
        RecrayError: More workers than the cluster can place, or nobody to evaluate.
    """
    evaluator = Evaluator(bundle, settings, None, protocol)
    if address == LOCAL:
        require_local(workers)
    with session(address):
        wait_for_capacity(workers)
        task = _MeasureBlocks(bundle, evaluator.settings, protocol, workers)
        results = map_tasks(task, workers)
    return evaluator.report([_unpack(r["tables"]) for r in results if r["tables"] is not None])
