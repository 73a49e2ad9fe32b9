"""RAY DATA: the lists of all users, part by part."""

import functools
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from recray.errors import RecrayError
from recray.inference.bundle import Bundle
from recray.inference.recommender import Recommender
from recray.inference.scorer import NONE, SOURCES
from recray.runtime.nodes import require_shared, this_node
from recray.runtime.session import LOCAL, session
from recray.runtime.tasks import map_tasks
from recray.storage import UNFINISHED, Folder, parquet_bytes

KIND = "recommendations"
BLOCK = 256
"""Users ranked at once."""
PLAN = f"{UNFINISHED}plan.json"
"""What the parts of a folder without a manifest belong to."""


@functools.lru_cache(maxsize=1)
def _recommender(path: str, _version: str) -> Recommender:
    return Recommender.open(path)


def users_per_part(users: int) -> int:
    """How many users a part file holds: a multiple of a block, and about 64 parts where that fits.

    It follows from the data alone, so that a job that is run again finds its parts.
    """
    share = -(-users // 64)
    return min(max(-(-share // BLOCK) * BLOCK, 2 * BLOCK), 256 * BLOCK)


class _RecommendPart:
    """The lists of one run of users, written as one parquet file."""

    def __init__(self, bundle: Bundle, out: Folder, k: int, parts: list[int]) -> None:
        self.path, self.version, self.out, self.k = bundle.folder.path, bundle.version, out, k
        self.parts = parts

    def __call__(self, number: int) -> dict[str, Any]:
        """Rank the users of the n-th part that is wanted."""
        recommender = _recommender(self.path, self.version)
        total = len(recommender.users)
        size, part = users_per_part(total), self.parts[number]
        users = np.arange(part * size, min((part + 1) * size, total))
        tables = [
            _lists(recommender, block, self.k)
            for block in np.split(users, range(BLOCK, len(users), BLOCK))
        ]
        self.out.replace_bytes(part_name(part), parquet_bytes(pa.concat_tables(tables)))
        return {"users": len(users), "node": this_node()}


def part_name(part: int) -> str:
    """The file of a part."""
    return f"part-{part:05d}.parquet"


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
    bundle: Bundle,
    out: str,
    k: int,
    address: str = LOCAL,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write the k best unseen items of every user: user, rank, item, score, source, in raw ids.

    Each part appears whole and the manifest is written last, so a job that was broken off is run
    again for the parts that are not there.

    Args:
        bundle: An opened bundle, at a path that the workers can read too.
        out: Folder of the lists, which all nodes share.
        k: Length of a list.
        address: Ray cluster.
        log: Receives what happens, one line at a time.

    Returns:
        {"out", "model_version", "k", "users", "parts", "parts_before", "nodes", "seconds",
        "users_per_second"}; the last two are of this call and its own parts.

    Raises:
        RecrayError: The folder holds something else, or k is larger than the catalogue.
    """
    recommender = Recommender(bundle)
    recommender.check_k(k)
    users = len(recommender.users)
    parts = -(-users // users_per_part(users))
    facts = {"model_version": bundle.version, "k": k, "users": users, "parts": parts}
    folder = Folder(out)
    there = _claim(folder, facts)
    wanted = [part for part in range(parts) if part_name(part) not in there]
    begin = time.perf_counter()
    results: list[dict[str, Any]] = []
    if there:
        log(f"recommend: {len(there)} of {parts} parts are there")
    if wanted:
        with session(address):
            require_shared(folder)
            task = _RecommendPart(bundle, folder, k, wanted)
            results = map_tasks(task, len(wanted))
    if not folder.published():
        folder.write_manifest(KIND, facts)
        folder.delete_file(PLAN)
    seconds = time.perf_counter() - begin
    return {
        "out": folder.path,
        **facts,
        "parts_before": len(there),
        "nodes": len({result["node"] for result in results}),
        "seconds": round(seconds, 3),
        "users_per_second": round(sum(result["users"] for result in results) / seconds, 1),
    }


def _claim(folder: Folder, facts: dict[str, Any]) -> set[str]:
    """Make the folder that of these lists; return the parts that it holds already.

    Raises:
        RecrayError: It holds something else.
    """
    if folder.published() or folder.exists(PLAN):
        before = folder.manifest() if folder.published() else folder.read_json(PLAN)
        if any(before.get(name) != value for name, value in facts.items()):
            raise RecrayError(
                f"{folder} holds lists of another model, length or data set; give another folder"
            )
        return {name for name in folder.files() if name.startswith("part-")}
    if folder.files():
        raise RecrayError(f"{folder} is not empty and holds no lists; give another folder")
    folder.replace_bytes(PLAN, json.dumps(facts).encode())
    return set()
