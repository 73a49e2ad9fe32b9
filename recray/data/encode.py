"""The last task of ingest: the files of one partition of users, in dense ids."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recray import schema
from recray.data import split
from recray.data.dataset import USERS, Ratings, part_name, write_part
from recray.data.filtered import write_known
from recray.data.ids import DenseIds, IdMap, TextIds, UserNumbers, group_of
from recray.data.lists.rows import matches
from recray.data.row_order import order_by
from recray.data.spill import TEXTS, Rows, SpillFile, SpillFolder
from recray.data.tasks import counts_by_split, read_partition
from recray.storage import Folder, ManifestEntry


@dataclass(frozen=True)
class DatasetIds:
    """What all partitions need to encode theirs.

    Args:
        items: Dense ids of all items.
        users: Which dense ids the users of each partition have.
        listed: What the source says of its users, as schema.listed_users.
        texts: For each file range that has texts of users: its number, and where the slice of each
            slot begins in its spill file. None where ids of users are integers.
    """

    items: DenseIds
    users: UserNumbers
    listed: pa.Table
    texts: list[tuple[int, list[int]]] | None


@dataclass
class EncodedCounts:
    """What the files of a partition hold.

    Args:
        listed: Users that the source says something of.
        ids: A hash of the users that training knows.
        rows: Split to its ratings.
        unseen: Split to its ratings whose user or item training does not know.
        levels: Rating to how often it occurs in training.
        ranges: Split to its lowest and highest rating, where it has one.
        filtered: Ratings that filters dropped, of users and items that have ids.
        entries: The files.
    """

    listed: int
    ids: bytes
    rows: Counter[str] = field(default_factory=Counter)
    unseen: Counter[str] = field(default_factory=Counter)
    levels: Counter[float] = field(default_factory=Counter)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    filtered: int = 0
    entries: list[ManifestEntry] = field(default_factory=list)

    @classmethod
    def of(cls, users: pa.Table, num_train: int, listed: pa.Table) -> Self:
        """Count the users of a partition, as schema.USERS."""
        _, matched = matches(users["raw_user"], listed["raw_user"])
        known = int((users["user"].to_numpy() < num_train).sum())
        content = IdMap.of(users["raw_user"], known).content()
        return cls(matched, hashlib.sha256(content).digest())

    def add(self, name: str, rows: Ratings, num_users: int, num_items: int) -> None:
        """Count the ratings of a split, where training knows so many users and items."""
        unseen = (rows.user >= num_users) | (rows.item >= num_items)
        self.rows[name], self.unseen[name] = len(rows), int(unseen.sum())
        levels, times_each = np.unique(rows.rating, return_counts=True)
        if len(rows):
            self.ranges[name] = float(levels[0]), float(levels[-1])
        if name == schema.PARTS[split.TRAIN]:
            self.levels.update(dict(zip(levels.tolist(), times_each.tolist(), strict=True)))


def encode(
    partition: int,
    *,
    ids: DatasetIds,
    spill: SpillFolder,
    folder: Folder,
    timed: bool,
    splits: list[int],
    filters: bool,
) -> EncodedCounts:
    """Write the files of a partition: its ratings in each split, and its users.

    Args:
        partition: Its number.
        ids: The ids.
        spill: Where its rows and their splits are.
        folder: The data set's folder.
        timed: Whether times are known.
        splits: The splits that are written, as codes of schema.PARTS.
        filters: Whether a filter may have dropped rows, which are written as well.
    """
    rows = read_partition(spill, partition)
    decided = spill.read(SpillFile.SPLIT, partition)
    users, table = _users(partition, rows.user, decided["split"].to_numpy(), ids, spill)
    ratings, which = _in_order(rows, decided, users, ids.items)
    counts = EncodedCounts.of(table, users.num_train, ids.listed)
    counts.entries.append(folder.write_table(part_name(USERS, partition), table))
    if filters:
        write = partial(write_known, partition, spill=spill, folder=folder, timed=timed, kept=rows)
        ordered = ratings.place is not None
        counts.filtered, entry = write(users=users, items=ids.items, ordered=ordered)
        counts.entries.append(entry)
    for code in splits:
        name, chosen = schema.PARTS[code], ratings.where(which == code)
        counts.entries.append(write_part(folder, name, partition, chosen, timed))
        counts.add(name, chosen, users.num_train, ids.items.num_train)
    return counts


def _in_order(
    rows: Rows, decided: pa.Table, users: DenseIds, items: DenseIds
) -> tuple[Ratings, NDArray[np.int8]]:
    """The rows of a partition in dense ids, sorted as Ratings are, and the split of each."""
    user, item = users.of(rows.user), items.of(rows.item)
    place = decided["place"].to_numpy() if "place" in decided.column_names else None
    order = order_by(user, rows.timestamp, item) if place is None else order_by(user, place)
    ratings = Ratings(user, item, rows.rating, rows.timestamp, place).where(order)
    return ratings, decided["split"].to_numpy()[order]


def _users(
    partition: int,
    user: NDArray[np.int64],
    which: NDArray[np.int8],
    ids: DatasetIds,
    spill: SpillFolder,
) -> tuple[DenseIds, pa.Table]:
    """The dense ids of a partition's users, and the list of them by these ids."""
    key, counts = counts_by_split(user, which)
    texts = _texts(partition, len(ids.users.first), ids, spill)
    raw = key if texts is None else texts.of(key)
    users = ids.users.of_partition(partition, key, raw, group_of(counts))
    order = np.argsort(users.dense)
    column = pa.array(raw[order], pa.int64() if texts is None else pa.string())
    listed = ids.listed
    rows = pc.index_in(column, listed["raw_user"].combine_chunks())
    columns = {name: listed[name].take(rows) for name in listed.column_names[1:]} | {
        "user": users.dense[order],
        "raw_user": column,
        **dict(zip(schema.PARTS, counts[:, order], strict=True)),
    }
    return users, schema.id_table(schema.USERS, columns)


def _texts(partition: int, partitions: int, ids: DatasetIds, spill: SpillFolder) -> TextIds | None:
    """The texts behind the keys of a partition's users; None where ids are integers."""
    if ids.texts is None:
        return None
    tables = [TEXTS.empty_table()]
    for number, offsets in ids.texts:
        begin, end = split.bytes_of(partition, partitions, offsets)
        tables.append(spill.read_slices(SpillFile.USER_TEXTS, TEXTS, begin, end, number))
    return TextIds.join(tables)
