"""A replica's memory where there are many more users than it may hold: item tables and little more.

The users are written partition by partition, so that the benchmark holds no more of them.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.benchmarks.harness import Row, apart, own_memory, trimmed_memory
from recray.benchmarks.synthetic import make_bundle
from recray.data.dataset import Ratings
from recray.data.ids import id_hash
from recray.inference.bundle import KIND, Bundle, version_of
from recray.inference.bundle_users import FILE as USERS
from recray.inference.bundle_users import UsersFile
from recray.inference.user_parts import FOLDER, DenseRanges, contents, part_file, partition_of
from recray.serving.hot_swap import load_and_warm_up
from recray.storage import Folder, publish

MODULE = "recray.benchmarks.many_users"
PARTITIONS, PER_USER, ACTIVE = 256, 5, 1000
"""Of the bundle; ratings of each user; users who ask for a list."""
WARM_UP = (100, 1000, 20)


class ManyUsers(Row):
    """What a replica's process grows by for a bundle and ACTIVE users of it, and their first lists.

    Args:
        users, items: Of the bundle.
        open_s: Until it can answer.
        mb: Of memory that no file backs, after the lists.
        items_mb: The tables of items in it.
        over_items_mb: The rest.
        mapped_mb: Pages of files that were looked at, which the system takes back when it must.
        first_p50_ms, first_p99_ms: A user's first list, which may open a partition.
        again_p50_ms: The same users once more.
    """

    what: str
    users: int
    items: int
    open_s: float
    mb: float
    items_mb: float
    over_items_mb: float
    mapped_mb: float
    first_p50_ms: float
    first_p99_ms: float
    again_p50_ms: float


def many_users(folder: Path, users: int, items: int) -> ManyUsers:
    """Write the bundle, and open it in a fresh process."""
    few = make_bundle(folder / "few", PARTITIONS, items, PER_USER)
    many, small = folder / "many", make_bundle(folder / "warm-up", *WARM_UP)
    _write(few, str(many), users)
    return ManyUsers.model_validate_json(
        apart(MODULE, "", small.folder.path, str(many), str(users), str(items))
    )


def _write(bundle: Bundle, path: str, users: int) -> None:
    """A bundle like that one, with so many users, whose raw ids are 0 to users - 1."""
    raw = np.arange(users)
    where = partition_of(id_hash(pa.array(raw)), PARTITIONS)
    counts = np.zeros((PARTITIONS, 3), np.int64)
    counts[:, 0] = np.bincount(where, minlength=PARTITIONS)
    dim = bundle.model.embeddings()["user_vectors"].embedding_dim
    facts = UsersFile(counts=counts.tolist(), text=False, tables={"user_vectors": dim})
    config = {**bundle.folder.read_json("config.json"), "users": users}
    written = (USERS, "config.json", f"{FOLDER}/")
    with publish(Folder(path)) as folder:
        for entry in bundle.manifest.files:
            if not entry.name.startswith(written):
                folder.write_bytes(entry.name, bundle.folder.read_bytes(entry.name))
        folder.write_json(USERS, facts.model_dump())
        folder.write_json("config.json", config)
        for number, tensors in enumerate(_partitions(where, bundle.item_ids.known, dim)):
            folder.write_bytes(part_file(number), safetensors.torch.save(tensors))
        known = {name: entry.sha256 for name, entry in folder.written.items()}
        version = version_of(folder, known)
        folder.write_manifest(KIND, {**bundle.manifest.facts, "version": version})


def _partitions(where: NDArray[np.int64], items: int, dim: int) -> Iterator[dict[str, Tensor]]:
    order, draw = np.argsort(where, kind="stable"), np.random.default_rng(0)
    for raw in np.split(order, np.cumsum(np.bincount(where, minlength=PARTITIONS))[:-1]):
        first = draw.integers(0, items, (len(raw), 1))
        item = np.sort((first + np.arange(PER_USER) * (items // PER_USER)) % items, axis=1)
        rows = Ratings(
            np.repeat(np.arange(len(raw), dtype=np.int32), PER_USER),
            item.astype(np.int32).ravel(),
            draw.integers(1, 6, item.size).astype(np.float32),
            np.arange(item.size, dtype=np.int64),
        )
        tables = {"user_vectors": torch.from_numpy(draw.normal(0, 0.1, (len(raw), dim))).float()}
        numbering = DenseRanges(np.array([[len(raw), 0, 0]]))
        yield next(contents(pa.array(raw), numbering, rows, np.zeros(len(rows), np.int8), tables))


def _measure(small: str, path: str, users: int, items: int) -> ManyUsers:
    torch.set_num_threads(1)
    load_and_warm_up(small)  # libraries and whatever they make once
    before, mapped = trimmed_memory(), own_memory("RssFile")
    begin = time.perf_counter()
    recommender = load_and_warm_up(path)
    seconds = time.perf_counter() - begin
    active = np.random.default_rng(1).choice(users, ACTIVE, replace=False).tolist()

    def lists() -> NDArray[np.float64]:
        taken = []
        for user in active:
            begin = time.perf_counter()
            recommender.recommend(user, 10)
            taken.append(time.perf_counter() - begin)
        return np.array(taken) * 1000

    first, again = lists(), lists()
    grown, model = trimmed_memory() - before, recommender.bundle.model
    tables = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    return ManyUsers(
        what="many users",
        users=users,
        items=items,
        open_s=seconds,
        mb=grown / 1e6,
        items_mb=tables / 1e6,
        over_items_mb=(grown - tables) / 1e6,
        mapped_mb=(own_memory("RssFile") - mapped) / 1e6,
        first_p50_ms=float(np.median(first)),
        first_p99_ms=float(np.percentile(first, 99)),
        again_p50_ms=float(np.median(again)),
    )


if __name__ == "__main__":
    _, _, small, many, *sizes = sys.argv
    print(_measure(small, many, int(sizes[0]), int(sizes[1])).model_dump_json())
