"""The last task of ingest: the part files of one partition of users, in dense ids."""

from collections import Counter
from dataclasses import dataclass
from functools import partial

import numpy as np

from recray import schema
from recray.data import split
from recray.data.dataset import Ratings, write_part
from recray.data.filtered import write_known
from recray.data.ids import DenseIds
from recray.data.row_order import order_by
from recray.data.spill import SpillFile, SpillFolder
from recray.data.tasks import read_partition
from recray.storage import Folder


@dataclass(frozen=True)
class EncodedCounts:
    """What the part files of a partition hold.

    Args:
        rows: Split to its ratings.
        unseen: Split to its ratings whose user or item training does not know.
        levels: Rating to how often it occurs in training.
        ranges: Split to its lowest and highest rating, where it has one.
        filtered: Ratings that filters dropped, of users and items that have ids.
    """

    rows: Counter[str]
    unseen: Counter[str]
    levels: Counter[float]
    ranges: dict[str, tuple[float, float]]
    filtered: int

    def add(self, name: str, rows: Ratings, unseen: int) -> None:
        """Count the ratings of a split."""
        self.rows[name], self.unseen[name] = len(rows), unseen
        levels, times_each = np.unique(rows.rating, return_counts=True)
        if len(rows):
            self.ranges[name] = float(levels[0]), float(levels[-1])
        if name == schema.PARTS[split.TRAIN]:
            self.levels.update(dict(zip(levels.tolist(), times_each.tolist(), strict=True)))


def encode(
    partition: int,
    *,
    spill: SpillFolder,
    folder: Folder,
    users: DenseIds,
    items: DenseIds,
    timed: bool,
    splits: list[int],
    filters: bool,
) -> EncodedCounts:
    """Write the part files of a partition, with the ids of the training split.

    Args:
        partition: Its number.
        spill: Where its rows and their splits are.
        folder: The data set's folder.
        users: Dense ids of all users.
        items: Dense ids of all items.
        timed: Whether times are known.
        splits: The splits that are written, as codes of schema.PARTS.
        filters: Whether a filter may have dropped rows, which are written as well.
    """
    rows = read_partition(spill, partition)
    user, item = users.of(rows.user), items.of(rows.item)
    decided = spill.read(SpillFile.SPLIT, partition)
    place = decided["place"].to_numpy() if "place" in decided.column_names else None
    order = order_by(user, rows.timestamp, item) if place is None else order_by(user, place)
    ratings = Ratings(user, item, rows.rating, rows.timestamp, place).where(order)
    which = decided["split"].to_numpy()[order]
    write = partial(write_known, partition, spill=spill, folder=folder, timed=timed, kept=rows)
    ordered = place is not None
    filtered = write(users=users, items=items, ordered=ordered) if filters else 0
    counts = EncodedCounts(Counter(), Counter(), Counter(), {}, filtered)
    for code in splits:
        name, chosen = schema.PARTS[code], ratings.where(which == code)
        write_part(folder, name, partition, chosen, timed)
        cold = (chosen.user >= users.num_train) | (chosen.item >= items.num_train)
        counts.add(name, chosen, int(cold.sum()))
    return counts
