"""RAY DATA: evaluation and recommendation for all users, block by block."""

import functools
from typing import Any

import numpy as np
import pyarrow as pa

from recray import cluster
from recray.bundle import Bundle
from recray.config import EvaluateSettings
from recray.evaluation import Evaluator
from recray.measuring import UserTable
from recray.protocol import HONEST, Protocol
from recray.ranking import NONE, SOURCES
from recray.recommender import Recommender
from recray.storage import Folder, publish

USERS_PER_PART = 8192


@functools.lru_cache(maxsize=1)
def _evaluator(
    path: str, _version: str, settings: EvaluateSettings, protocol: Protocol
) -> Evaluator:
    """One evaluator per process; the version keeps a replaced bundle from being served stale."""
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
        joined = {name: UserTable.join(part[name] for part in parts) for name in parts[0]}
        return {"tables": _pack(joined)}


def _pack(tables: dict[str, UserTable]) -> dict[str, Any]:
    return {
        name: {
            "user": table.user.tolist(),
            "values": {k: v.tolist() for k, v in table.values.items()},
            "shown": table.shown.tolist(),
        }
        for name, table in tables.items()
    }


def _unpack(tables: dict[str, Any]) -> dict[str, UserTable]:
    return {
        name: UserTable(
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
    address: str = cluster.LOCAL,
    protocol: Protocol = HONEST,
) -> dict[str, Any]:
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
    if address == cluster.LOCAL:
        cluster.require_local(workers)
    with cluster.session(address):
        cluster.require(workers)
        task = _MeasureBlocks(bundle, evaluator.settings, protocol, workers)
        results = cluster.map_tasks(task, workers)
    return evaluator.report([_unpack(r["tables"]) for r in results if r["tables"] is not None])


# -------------------------------------------------------------------------------- all users


@functools.lru_cache(maxsize=1)
def _recommender(path: str, _version: str) -> Recommender:
    return Recommender.open(path)


class _RecommendPart:
    """The lists of one run of users, written as one parquet file."""

    def __init__(self, bundle: Bundle, out: Folder, k: int) -> None:
        self.path, self.version, self.out, self.k = bundle.folder.path, bundle.version, out, k

    def __call__(self, part: int) -> dict[str, Any]:
        """Rank the users of one part."""
        recommender = _recommender(self.path, self.version)
        first = part * USERS_PER_PART
        users = np.arange(first, min(first + USERS_PER_PART, len(recommender.users)))
        tables = [
            _lists(recommender, block, self.k)
            for block in np.split(users, range(256, len(users), 256))
        ]
        self.out.write_table(f"part-{part:05d}.parquet", pa.concat_tables(tables))
        return {"users": len(users)}


def _lists(recommender: Recommender, users: "np.ndarray[Any, Any]", k: int) -> pa.Table:
    ranked = recommender.ranker.rank(users.astype(np.int64), k)
    row, rank = np.nonzero(ranked.item != NONE)
    sources = pa.array(SOURCES)
    return pa.table(
        {
            "user": recommender.users.raw[users[row]],
            "rank": (rank + 1).astype(np.int32),
            "item": recommender.items.raw[ranked.item[row, rank]],
            "score": ranked.score[row, rank],
            "source": sources.take(pa.array(ranked.source[row])),
        }
    )


def recommend_all(
    bundle: Bundle, out: str, k: int, address: str = cluster.LOCAL, replace: bool = False
) -> dict[str, Any]:
    """Write the k best unseen items of every user: user, rank, item, score, source, in raw ids.

    Raises:
        RecrayError: The folder is taken, or k is larger than the catalogue.
    """
    recommender = Recommender(bundle)
    recommender.check_k(k)
    parts = -(-len(recommender.users) // USERS_PER_PART)
    with cluster.session(address), publish(Folder(out), replace) as folder:
        results = cluster.map_tasks(_RecommendPart(bundle, folder, k), parts)
        users = sum(r["users"] for r in results)
        facts = {"model_version": bundle.version, "k": k, "users": users}
        folder.write_manifest("recommendations", facts)
    return {"out": Folder(out).path, **facts}
