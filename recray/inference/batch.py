"""RAY DATA: writes the lists of all users, part by part."""

import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recray.errors import RecrayError
from recray.inference.bundle import Bundle
from recray.inference.queries import SOURCES
from recray.inference.recommender import Recommender
from recray.inference.top_k import NONE
from recray.runtime.nodes import require_shared
from recray.runtime.session import LOCAL, session
from recray.runtime.tasks import map_tasks
from recray.storage import UNFINISHED, Folder, check_store, parquet_bytes

KIND = "recommendations"
USER_BLOCK = 256
"""Users ranked at once."""
TARGET_PARTS = 64
LARGEST_PART = 256 * USER_BLOCK
PLAN = f"{UNFINISHED}plan.json"
"""Tells what the parts of a folder without a manifest belong to."""
Content = dict[str, str | int]
"""What the lists of a folder are of: version, length, users and parts."""


@dataclass(frozen=True)
class BatchLists:
    """What recommend_all wrote.

    Args:
        out: Folder of the lists.
        model_version: The bundle's version.
        k: Length of a list.
        users: Number of users, all parts together.
        parts: Number of part files.
        parts_before: How many of them an earlier call had written.
        nodes: Number of nodes that this call ran on.
        seconds: Time of this call.
        users_per_second: Of this call and the parts that it wrote.
    """

    out: str
    model_version: str
    k: int
    users: int
    parts: int
    parts_before: int
    nodes: int
    seconds: float
    users_per_second: float


@functools.lru_cache(maxsize=1)
def _recommender(path: str, _version: str) -> Recommender:
    """Open a bundle once a process; a new version under the same path is opened again."""
    return Recommender.open(path)


def users_per_part(users: int) -> int:
    """How many users a part file holds: a multiple of a block, and about 64 parts where that fits.

    It follows from the data alone, so that a job that is run again finds its parts.
    """
    share = -(-users // TARGET_PARTS)
    return min(max(-(-share // USER_BLOCK) * USER_BLOCK, 2 * USER_BLOCK), LARGEST_PART)


class WrittenPart(NamedTuple):
    """How many users a part holds, and the node that wrote it."""

    users: int
    node: str


@dataclass(frozen=True)
class RecommendPart:
    """Writes the lists of consecutive users as one parquet file.

    Args:
        path: The bundle.
        version: Its version.
        out: Folder of the lists.
        k: Length of a list.
        parts: The parts that are missing.
    """

    path: str
    version: str
    out: Folder
    k: int
    parts: list[int]

    def __call__(self, number: int) -> WrittenPart:
        """Rank the users of the n-th part that is missing."""
        import ray

        recommender = _recommender(self.path, self.version)
        total = len(recommender.users)
        size, part = users_per_part(total), self.parts[number]
        users = np.arange(part * size, min((part + 1) * size, total))
        tables = [
            _table(recommender, block, self.k)
            for block in np.split(users, range(USER_BLOCK, len(users), USER_BLOCK))
        ]
        self.out.replace_bytes(part_name(part), parquet_bytes(pa.concat_tables(tables)))
        return WrittenPart(len(users), ray.get_runtime_context().get_node_id())


def part_name(part: int) -> str:
    """The file of a part."""
    return f"part-{part:05d}.parquet"


def _table(recommender: Recommender, users: NDArray[np.int64], k: int) -> pa.Table:
    ranked = recommender.scorer.rank(users, k)
    row, rank = np.nonzero(ranked.item != NONE)
    sources = pa.array(SOURCES)
    return pa.table(
        {
            "user": recommender.users.raw_of(users[row]),
            "rank": (rank + 1).astype(np.int32),
            "item": recommender.items.raw[ranked.item[row, rank]],
            "score": recommender.scorer.shown_scores(ranked)[row, rank],
            "source": sources.take(pa.array(ranked.source[row])),
        }
    )


def recommend_all(
    bundle: Bundle,
    out: str,
    k: int | None,
    address: str = LOCAL,
    log: Callable[[str], None] = print,
) -> BatchLists:
    """Write the k best unseen items of every user: user, rank, item, score, source, in raw ids.

    Each part appears whole and the manifest is written last, so a job that was broken off is run
    again for the parts that are not there.

    Args:
        bundle: An opened bundle, at a path that the workers can read too.
        out: Folder of the lists, which all nodes share.
        k: Length of a list; None: 10, or all of a smaller catalogue.
        address: Ray cluster.
        log: Receives what happens, one line at a time.

    Raises:
        RecrayError: The folder holds something else, or k is larger than the catalogue.
    """
    k = Recommender(bundle).check_k(k)
    users, version = len(bundle.user_ids), bundle.version
    parts = -(-users // users_per_part(users))
    content: Content = {"model_version": version, "k": k, "users": users, "parts": parts}
    folder = Folder(out)
    present = _reserve(folder, content)
    missing = [part for part in range(parts) if part_name(part) not in present]
    begin = time.perf_counter()
    if present:
        log(f"recommend: {len(present)} of {parts} parts are there")
    written = _write_parts(bundle, folder, k, missing, address) if missing else []
    if not folder.published():
        folder.write_manifest(KIND, dict(content))
        folder.delete(PLAN)
    seconds = time.perf_counter() - begin
    speed = round(sum(part.users for part in written) / seconds, 1)
    nodes, lasted = len({part.node for part in written}), round(seconds, 3)
    return BatchLists(folder.path, version, k, users, parts, len(present), nodes, lasted, speed)


def _write_parts(
    bundle: Bundle, folder: Folder, k: int, parts: list[int], address: str
) -> list[WrittenPart]:
    with session(address):
        require_shared(folder)
        part = RecommendPart(bundle.folder.path, bundle.version, folder, k, parts)
        return map_tasks(part, len(parts))


def _reserve(folder: Folder, content: Content) -> set[str]:
    """Reserve the folder for these lists; return the names of the parts that it holds already.

    Raises:
        RecrayError: It holds something else.
    """
    check_store(folder.path, to_write=True)
    if folder.published() or folder.exists(PLAN):
        before = folder.manifest().facts if folder.published() else folder.read_json(PLAN)
        if any(before.get(name) != value for name, value in content.items()):
            raise RecrayError(
                f"{folder} holds lists of another model, length or data set; give another folder"
            )
        return {name for name in folder.files() if name.startswith("part-")}
    if folder.files():
        raise RecrayError(f"{folder} is not empty and holds no lists; give another folder")
    folder.replace_bytes(PLAN, json.dumps(content).encode())
    return set()
