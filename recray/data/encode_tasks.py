"""The last tasks of ingest: dense ids, and the part files of each partition."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recray import schema
from recray.data import split
from recray.data.dataset import part_name
from recray.data.ids import IdMap, TextIds, train_ids_first
from recray.data.shuffle_tasks import Counts, read_partition
from recray.data.spill import SpillFile, SpillFolder, order_by
from recray.storage import Folder

TABLE_LIMIT = 1 << 24
"""Keys up to here are looked up in a table, larger ones are searched."""


@dataclass(frozen=True)
class DenseIds:
    """Dense ids by key.

    Args:
        key: (N,) ascending.
        dense: (N,) int32 dense id of each.
        num_train: How many of them training knows.
    """

    key: NDArray[np.int64]
    dense: NDArray[np.int32]
    num_train: int

    def of(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """(K,) dense ids of keys, all of which must be known."""
        last = int(self.key[-1]) if len(self.key) else 0
        if last > TABLE_LIMIT:
            return self.dense[np.searchsorted(self.key, keys)]
        table = np.empty(last + 1, np.int32)  # a look-up is a hundred times faster than a search
        table[self.key] = self.dense
        return table[keys]


@dataclass(frozen=True)
class CountedIds:
    """All users, or all items.

    Args:
        ids: Their raw and dense ids.
        counts: (4, N) ratings of each dense id in each of schema.PARTS.
        dense: Dense ids by key.
    """

    ids: IdMap
    counts: NDArray[np.int64]
    dense: DenseIds

    @classmethod
    def join(cls, tables: list[pa.Table], texts: TextIds | None) -> "CountedIds":
        """Join the ids that the partitions counted, and number them."""
        table = pa.concat_tables(tables)
        key, place = np.unique(table["raw"].to_numpy(), return_inverse=True)
        counts = np.zeros((len(schema.PARTS), len(key)), np.int64)
        for row, name in enumerate(schema.PARTS):
            np.add.at(counts[row], place, table[name].to_numpy())
        raw = key if texts is None else texts.of(key)
        in_training = counts[split.TRAIN] > 0
        order = train_ids_first(raw, in_training)
        dense = np.empty(len(key), np.int32)
        dense[order] = np.arange(len(key), dtype=np.int32)
        num_train = int(in_training.sum())
        return cls(IdMap(raw[order], num_train), counts[:, order], DenseIds(key, dense, num_train))


def encode(
    partition: int,
    *,
    spill: SpillFolder,
    folder: Folder,
    users: DenseIds,
    items: DenseIds,
    timed: bool,
    splits: tuple[int, ...],
) -> Counts:
    """Write the part files of a partition, with the ids of the training split.

    Args:
        partition: Its number.
        spill: Where its rows and their splits are.
        folder: The data set's folder.
        users: Dense ids of all users.
        items: Dense ids of all items.
        timed: Whether times are known.
        splits: The splits that are written, as codes of schema.PARTS.

    Returns:
        Its counts by split, and how often each rating occurs in training.
    """
    rows = read_partition(spill, partition)
    user, item = users.of(rows.user), items.of(rows.item)
    which = spill.read(SpillFile.SPLIT, partition)["split"].to_numpy()
    order = order_by(user, rows.timestamp, item)
    result: Counts = {}
    for code in splits:
        name, chosen = schema.PARTS[code], order[which[order] == code]
        times = pa.array(rows.timestamp[chosen]) if timed else pa.nulls(len(chosen), pa.int64())
        columns = [user[chosen], item[chosen], rows.rating[chosen], times]
        table = pa.table(columns, schema=schema.RATINGS)
        folder.write_table(part_name(name, partition), table, dictionary=["rating"])
        cold = (user[chosen] >= users.num_train) | (item[chosen] >= items.num_train)
        result[name] = {"rows": len(chosen), "unseen": int(cold.sum())}
        if code == split.TRAIN:
            values, counts = np.unique(rows.rating[chosen], return_counts=True)
            result["levels"] = {float(v): int(c) for v, c in zip(values, counts, strict=True)}
    return result


def count_levels(encoded: list[Counts]) -> Counter[float]:
    """How often each rating occurs in training, over all partitions."""
    levels: Counter[float] = Counter()
    for result in encoded:
        levels.update({float(k): v for k, v in result["levels"].items()})
    return levels
