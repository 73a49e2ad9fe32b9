"""The tasks of ingest that gather, filter and split: each works on one partition of users.

The ratings of a partition are schema.RAW_RATINGS sorted by user, then item.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recray import schema
from recray.config import DataSettings, SplitSettings
from recray.data import feedback_merge, split
from recray.data.ids import id_hash
from recray.data.scan import ScannedRows
from recray.data.source import Source
from recray.data.spill import Rows, SpillFile, SpillFolder, count_overlap, drop_duplicates
from recray.errors import RecrayError

Counts = dict[str, Any]
"""The result of a task: JSON-ready counts."""


def read_partition(spill: SpillFolder, partition: int) -> Rows:
    """The ratings of a partition."""
    return Rows.of(spill.read(SpillFile.PARTITION, partition))


def write_partition(spill: SpillFolder, partition: int, rows: Rows) -> None:
    """Write or replace the ratings of a partition."""
    spill.write(SpillFile.PARTITION, rows.table(), partition)


@dataclass(frozen=True)
class ItemRules:
    """Which items stay, and into which item others are merged; None where nothing changes."""

    kept: NDArray[np.int64] | None
    merged: tuple[NDArray[np.int64], NDArray[np.int64]] | None

    def apply(self, rows: Rows) -> Rows:
        """Drop the ratings of other items, and rename merged items."""
        if self.kept is not None:
            rows = rows.at(np.isin(rows.item, self.kept))
        if self.merged is not None:
            raw, target = self.merged
            place = np.minimum(np.searchsorted(raw, rows.item), len(raw) - 1)
            item = np.where(raw[place] == rows.item, target[place], rows.item)
            rows = rows._replace(item=item)
        return rows


def item_rules(source: Source, settings: DataSettings) -> ItemRules:
    """Make the rules that the settings ask for.

    Raises:
        RecrayError: They need titles and years, and the source has none.
    """
    items = source.movies
    if (settings.min_year is not None or settings.merge_titles) and not len(items):
        raise RecrayError(
            f"{source.name} has no films' titles, so min_year and merge_titles cannot work"
        )
    kept = merged = None
    key = id_hash(items["raw_item"].combine_chunks())
    if settings.min_year is not None:
        kept = key[items["year"].to_numpy() >= settings.min_year]
    if settings.merge_titles:
        coded = pc.dictionary_encode(items["title"].combine_chunks()).indices.to_numpy()
        # Items are sorted by raw id, so the first one of a title has the lowest id.
        _, first = np.unique(coded, return_index=True)
        order = np.argsort(key)
        merged = (key[order], key[first[coded]][order])
    return ItemRules(kept, merged)


def gather(
    partition: int,
    *,
    spill: SpillFolder,
    scanned: list[ScannedRows],
    partitions: int,
    rules: ItemRules,
    settings: DataSettings,
) -> Counts:
    """Collect the rows of a partition from all scanned files and clean them: the one shuffle.

    Args:
        partition: Its number.
        spill: Where the files are.
        scanned: The files, in the order of the rows in the source.
        partitions: Number of partitions.
        rules: Which items stay.
        settings: Duplicates and the lowest rating.

    Returns:
        Its counts, and its first and last time.
    """
    width = split.SLOTS // partitions
    first, last = partition * width, (partition + 1) * width

    def collect(feedback: bool) -> Rows:
        tables = [
            spill.read(SpillFile.ROWS, *s.number, begin=s.offsets[first], end=s.offsets[last])
            for s in scanned
            if s.feedback == feedback
        ]
        return rules.apply(Rows.of(pa.concat_tables(tables)))

    collected = collect(feedback=False)
    rows = drop_duplicates(collected, settings.duplicates == "mean" or settings.merge_titles)
    duplicates = len(collected.user) - len(rows.user)
    rows = _above_minimum(rows, settings)
    if any(s.feedback for s in scanned):
        rated_later = drop_duplicates(collect(feedback=True), mean=False)
        rows, late = feedback_merge.rerate(rows, _above_minimum(rated_later, settings))
        spill.write(SpillFile.LATE, late.table(), partition)
    write_partition(spill, partition, rows)
    return {"duplicates": duplicates, "overlap": count_overlap(collected), **_extent(rows)}


def _above_minimum(rows: Rows, settings: DataSettings) -> Rows:
    return rows if settings.min_rating is None else rows.at(rows.rating >= settings.min_rating)


def _extent(rows: Rows) -> Counts:
    times = rows.timestamp
    first, last = (int(times.min()), int(times.max())) if len(times) else (None, None)
    return {"rows": len(times), "first": first, "last": last}


def count_items(partition: int, *, spill: SpillFolder) -> Counts:
    """Count the ratings of each item in a partition."""
    item, count = np.unique(read_partition(spill, partition).item, return_counts=True)
    spill.write(SpillFile.ITEM_COUNTS, pa.table({"raw": item, "count": count}), partition)
    return {}


def drop_rare(partition: int, *, spill: SpillFolder, items: NDArray[np.int64], core: int) -> Counts:
    """Drop the ratings of rare items, then users with too few ratings left.

    Args:
        partition: Its number; the partition is rewritten.
        spill: Where it is.
        items: (N,) raw ids that stay, ascending.
        core: Ratings that a user must have.

    Returns:
        Its extent, and how many rows were dropped.
    """
    before = read_partition(spill, partition)
    rows = before.at(np.isin(before.item, items))
    _, place, count = np.unique(rows.user, return_inverse=True, return_counts=True)
    rows = rows.at(count[place] >= core)
    write_partition(spill, partition, rows)
    return {"dropped": len(before.user) - len(rows.user), **_extent(rows)}


def count_times(partition: int, *, spill: SpillFolder, begin: int, end: int, width: int) -> Counts:
    """Count the rows of a partition in equal bins of time.

    Args:
        partition: Its number.
        spill: Where it is.
        begin: Where the first bin begins, in seconds.
        end: Rows from here on are left out, in seconds.
        width: Width of a bin, in seconds.
    """
    times = read_partition(spill, partition).timestamp
    times = times[(times >= begin) & (times < end)]
    return {"counts": np.bincount((times - begin) // width, minlength=split.BINS).tolist()}


def write_item_keys(partition: int, *, spill: SpillFolder, groups: int, seed: int) -> Counts:
    """Write the hashes of a partition's rows by group of items, for a split of whole items.

    Args:
        partition: Its number.
        spill: Where it is.
        groups: Number of groups of items.
        seed: The split's seed.

    Returns:
        Where each group of items begins in the file.
    """
    rows = read_partition(spill, partition)
    group = split.slot_of(rows.item).astype(np.int64) * groups // split.SLOTS
    order = np.argsort(group, kind="stable")
    key = split.hash_ids(seed, rows.user, rows.item)
    columns = {"item": rows.item[order], "key": key[order], "row": order}
    spill.write(SpillFile.ITEM_KEYS, pa.table(columns), partition)
    return {"offsets": [0, *np.cumsum(np.bincount(group, minlength=groups)).tolist()]}


def split_items(
    group: int, *, spill: SpillFolder, offsets: list[list[int]], settings: SplitSettings
) -> Counts:
    """Split whole items, from the keys that all partitions wrote.

    Args:
        group: The group of items.
        spill: Where the keys are.
        offsets: For each partition, where each group of items begins in its keys.
        settings: The fractions.

    Returns:
        Where the rows of each partition begin in the file.
    """
    tables = [
        spill.read(SpillFile.ITEM_KEYS, partition, begin=own[group], end=own[group + 1])
        for partition, own in enumerate(offsets)
    ]
    keys = pa.concat_tables(tables)
    which = split.assign_by_share(keys["item"].to_numpy(), keys["key"].to_numpy(), settings)
    spill.write(SpillFile.ITEM_SPLITS, pa.table({"row": keys["row"], "split": which}), group)
    return {"offsets": [0, *np.cumsum([len(table) for table in tables]).tolist()]}


def split_partition(
    partition: int,
    *,
    spill: SpillFolder,
    settings: SplitSettings,
    timed: bool,
    cuts: tuple[int, int] | None = None,
    item_offsets: list[list[int]] | None = None,
) -> Counts:
    """Decide the split of each row of a partition, and count its ids by split.

    Args:
        partition: Its number.
        spill: Where it is.
        settings: The kind, fractions and seed.
        timed: Whether times are known.
        cuts: For `temporal`: where valid and test begin, in seconds.
        item_offsets: For `per-item-random`: for each group of items, where each partition begins.
    """
    rows = read_partition(spill, partition)
    if item_offsets is not None:
        which = _from_items(spill, partition, item_offsets, len(rows.user))
    elif rows.part is not None:
        which = split.within_given(rows.user, rows.item, rows.part, settings)
    else:
        times = rows.timestamp if timed else None
        which = split.assign(rows.user, rows.item, times, settings, cuts)
    if spill.exists(SpillFile.LATE, partition):
        late = Rows.of(spill.read(SpillFile.LATE, partition))
        rows, which = feedback_merge.append(rows, which, late, split.TRAIN)
        write_partition(spill, partition, rows)
    spill.write(SpillFile.SPLIT, pa.table({"split": which}), partition)
    spill.write(SpillFile.USERS, _counts_by_split(rows.user, which), partition)
    spill.write(SpillFile.ITEMS, _counts_by_split(rows.item, which), partition)
    return {}


def _from_items(
    spill: SpillFolder, partition: int, item_offsets: list[list[int]], rows: int
) -> NDArray[np.int8]:
    which = np.empty(rows, np.int8)
    for group, own in enumerate(item_offsets):
        begin, end = own[partition], own[partition + 1]
        table = spill.read(SpillFile.ITEM_SPLITS, group, begin=begin, end=end)
        which[table["row"].to_numpy()] = table["split"].to_numpy()
    return which


def _counts_by_split(ids: NDArray[np.int64], which: NDArray[np.int8]) -> pa.Table:
    raw, place = np.unique(ids, return_inverse=True)
    cells = len(schema.PARTS) * len(raw)
    cell = which.astype(np.int64) * len(raw) + place
    counts = np.bincount(cell, minlength=cells).reshape(len(schema.PARTS), len(raw))
    return pa.table({"raw": raw} | dict(zip(schema.PARTS, counts, strict=True)))
