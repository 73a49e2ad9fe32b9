"""The maps of ingest after the shuffle: each works on one bucket of users.

A bucket is `bucket-B.arrow` (schema.RAW_RATINGS, sorted by user, then item) and, once decided,
`split-B.arrow` with the split of each of its rows.
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
from recray.data.dataset import part_name
from recray.data.ids import keys_of
from recray.data.scan import Spilled
from recray.data.sorting import order_by
from recray.data.source import Source
from recray.data.spill import (
    Rows,
    drop_duplicates,
    in_several_parts,
    read_arrow,
    write_arrow,
)
from recray.errors import RecrayError
from recray.storage import Folder


def read_bucket(spill: Folder, bucket: int) -> Rows:
    """The rows of a bucket."""
    return Rows.of(read_arrow(spill, f"bucket-{bucket}.arrow"))


def write_bucket(spill: Folder, bucket: int, rows: Rows) -> None:
    """Write or rewrite the rows of a bucket."""
    write_arrow(spill, f"bucket-{bucket}.arrow", rows.table())


@dataclass(frozen=True)
class ItemRules:
    """Which items stay, and what they become; None where nothing changes."""

    kept: NDArray[np.int64] | None
    merged: tuple[NDArray[np.int64], NDArray[np.int64]] | None


def item_rules(given: Source, settings: DataSettings) -> ItemRules:
    """The rules that the settings ask for.

    Raises:
        RecrayError: They need titles and years, and the source has none.
    """
    movies = given.movies
    if (settings.min_year is not None or settings.merge_titles) and not len(movies):
        raise RecrayError(
            f"{given.name} has no films' titles, so min_year and merge_titles cannot work"
        )
    kept = merged = None
    key = keys_of(movies["raw_item"].combine_chunks())
    if settings.min_year is not None:
        kept = key[movies["year"].to_numpy() >= settings.min_year]
    if settings.merge_titles:
        coded = pc.dictionary_encode(movies["title"].combine_chunks()).indices.to_numpy()
        # Films are sorted by raw id, so the first of a title is the one with the lowest.
        _, first = np.unique(coded, return_index=True)
        order = np.argsort(key)
        merged = (key[order], key[first[coded]][order])
    return ItemRules(kept, merged)


@dataclass(frozen=True)
class Gather:
    """Collects the rows of a bucket from all spill files and cleans them: the one shuffle.

    Args:
        spill: Where the files are.
        spilled: The spill files, in the order of the rows in the source.
        buckets: Number of buckets.
        rules: Which items stay.
        settings: Duplicates and the lowest rating.
    """

    spill: Folder
    spilled: list[Spilled]
    buckets: int
    rules: ItemRules
    settings: DataSettings

    def __call__(self, bucket: int) -> dict[str, Any]:
        """Gather one bucket; return its counts and first and last time."""
        width = split.SLOTS // self.buckets
        first, last = bucket * width, (bucket + 1) * width
        gathered = self._gathered([s for s in self.spilled if not s.logged], first, last)
        overlap = in_several_parts(gathered)
        mean = self.settings.duplicates == "mean" or self.settings.merge_titles
        rows = drop_duplicates(gathered, mean)
        duplicates = len(gathered.user) - len(rows.user)
        rows = self._kept(rows)
        later = [s for s in self.spilled if s.logged]
        if later:
            again = self._kept(drop_duplicates(self._gathered(later, first, last), mean=False))
            rows, rest = feedback_merge.rerate(rows, again)
            write_arrow(self.spill, f"logged-{bucket}.arrow", rest.table())
        write_bucket(self.spill, bucket, rows)
        return {"duplicates": duplicates, "overlap": overlap, **_extent(rows)}

    def _gathered(self, spilled: list[Spilled], first: int, last: int) -> Rows:
        parts = [read_arrow(self.spill, s.name, s.begins[first], s.begins[last]) for s in spilled]
        return self._apply_item_rules(Rows.of(pa.concat_tables(parts)))

    def _kept(self, rows: Rows) -> Rows:
        if self.settings.min_rating is None:
            return rows
        return rows.at(rows.rating >= self.settings.min_rating)

    def _apply_item_rules(self, rows: Rows) -> Rows:
        if self.rules.kept is not None:
            rows = rows.at(np.isin(rows.item, self.rules.kept))
        if self.rules.merged is not None:
            raw, target = self.rules.merged
            place = np.minimum(np.searchsorted(raw, rows.item), len(raw) - 1)
            item = np.where(raw[place] == rows.item, target[place], rows.item)
            rows = rows._replace(item=item)
        return rows


def _extent(rows: Rows) -> dict[str, Any]:
    times = rows.timestamp
    has = len(times) > 0
    return {
        "rows": len(times),
        "first": int(times.min()) if has else None,
        "last": int(times.max()) if has else None,
    }


@dataclass(frozen=True)
class CountItems:
    """Counts the ratings of each item in a bucket, into `core-B.arrow`."""

    spill: Folder

    def __call__(self, bucket: int) -> dict[str, Any]:
        """Count the items of one bucket."""
        item, count = np.unique(read_bucket(self.spill, bucket).item, return_counts=True)
        write_arrow(self.spill, f"core-{bucket}.arrow", pa.table({"raw": item, "count": count}))
        return {}


@dataclass(frozen=True)
class DropRare:
    """Drops rare items from a bucket, and users with too few ratings left.

    Args:
        spill: Where the bucket is.
        items: (N,) raw ids that stay, ascending.
        core: Ratings that a user must have.
    """

    spill: Folder
    items: NDArray[np.int64]
    core: int

    def __call__(self, bucket: int) -> dict[str, Any]:
        """Rewrite one bucket; return its extent and how many rows went."""
        before = read_bucket(self.spill, bucket)
        rows = before.at(np.isin(before.item, self.items))
        _, place, count = np.unique(rows.user, return_inverse=True, return_counts=True)
        rows = rows.at(count[place] >= self.core)
        write_bucket(self.spill, bucket, rows)
        return {"dropped": len(before.user) - len(rows.user), **_extent(rows)}


@dataclass(frozen=True)
class CountTimes:
    """Counts the rows of a bucket in equal bins of time.

    Args:
        spill: Where the bucket is.
        begin: Where the first bin begins, in seconds.
        end: Rows from here on are left out, in seconds.
        width: Width of a bin, in seconds.
    """

    spill: Folder
    begin: int
    end: int
    width: int

    def __call__(self, bucket: int) -> dict[str, Any]:
        """Count one bucket."""
        times = read_bucket(self.spill, bucket).timestamp
        times = times[(times >= self.begin) & (times < self.end)]
        counts = np.bincount((times - self.begin) // self.width, minlength=split.BINS)
        return {"counts": counts.tolist()}


@dataclass(frozen=True)
class KeysByItem:
    """Writes the keys of a bucket by item, `keys-B.arrow`, for a split that looks at whole items.

    Args:
        spill: Where the bucket is.
        groups: Number of groups of items.
        seed: The split's seed.
    """

    spill: Folder
    groups: int
    seed: int

    def __call__(self, bucket: int) -> dict[str, Any]:
        """Write the keys of one bucket; return where each group of items begins."""
        rows = read_bucket(self.spill, bucket)
        group = split.slot_of(rows.item).astype(np.int64) * self.groups // split.SLOTS
        order = np.argsort(group, kind="stable")
        key = split.hash_ids(self.seed, rows.user, rows.item)
        columns = {"item": rows.item[order], "key": key[order], "row": order}
        write_arrow(self.spill, f"keys-{bucket}.arrow", pa.table(columns))
        counts = np.bincount(group, minlength=self.groups)
        return {"begins": [0, *np.cumsum(counts).tolist()]}


@dataclass(frozen=True)
class SplitItems:
    """Splits whole items, from the keys of all buckets, into `by-item-G.arrow`.

    Args:
        spill: Where the keys are.
        begins: For each bucket, where each group of items begins in its keys.
        settings: The fractions.
    """

    spill: Folder
    begins: list[list[int]]
    settings: SplitSettings

    def __call__(self, group: int) -> dict[str, Any]:
        """Split one group of items; return where the rows of each bucket begin."""
        parts = [
            read_arrow(self.spill, f"keys-{bucket}.arrow", begins[group], begins[group + 1])
            for bucket, begins in enumerate(self.begins)
        ]
        table = pa.concat_tables(parts)
        which = split.assign_by_share(
            table["item"].to_numpy(), table["key"].to_numpy(), self.settings
        )
        columns = {"row": table["row"], "split": which}
        write_arrow(self.spill, f"by-item-{group}.arrow", pa.table(columns))
        return {"begins": [0, *np.cumsum([len(part) for part in parts]).tolist()]}


@dataclass(frozen=True)
class Split:
    """Decides the split of each row of a bucket, and counts its ids by split.

    Args:
        spill: Where the bucket is.
        settings: The kind, fractions and seed.
        timed: Whether times are known.
        cuts: For `temporal`: where valid and test begin, in seconds.
        by_item: For `per-item-random`: for each group of items, where each bucket begins.
    """

    spill: Folder
    settings: SplitSettings
    timed: bool
    cuts: tuple[int, int] | None = None
    by_item: list[list[int]] | None = None

    def __call__(self, bucket: int) -> dict[str, Any]:
        """Split one bucket."""
        rows = read_bucket(self.spill, bucket)
        if self.by_item is not None:
            which = self._from_items(bucket, len(rows.user))
        elif rows.part is not None:
            which = split.within_given(rows.user, rows.item, rows.part, self.settings)
        else:
            times = rows.timestamp if self.timed else None
            which = split.assign(rows.user, rows.item, times, self.settings, self.cuts)
        if self.spill.exists(f"logged-{bucket}.arrow"):
            later = Rows.of(read_arrow(self.spill, f"logged-{bucket}.arrow"))
            rows, which = feedback_merge.append(rows, which, later, split.TRAIN)
            write_bucket(self.spill, bucket, rows)
        write_arrow(self.spill, f"split-{bucket}.arrow", pa.table({"split": which}))
        for name, ids in (("users", rows.user), ("items", rows.item)):
            write_arrow(self.spill, f"{name}-{bucket}.arrow", _counts_by_split(ids, which))
        return {}

    def _from_items(self, bucket: int, rows: int) -> NDArray[np.int8]:
        which = np.empty(rows, np.int8)
        for group, begins in enumerate(self.by_item or []):
            part = read_arrow(
                self.spill, f"by-item-{group}.arrow", begins[bucket], begins[bucket + 1]
            )
            which[part["row"].to_numpy()] = part["split"].to_numpy()
        return which


def _counts_by_split(ids: NDArray[np.int64], which: NDArray[np.int8]) -> pa.Table:
    raw, place = np.unique(ids, return_inverse=True)
    cells = len(schema.PARTS) * len(raw)
    cell = which.astype(np.int64) * len(raw) + place
    counts = np.bincount(cell, minlength=cells).reshape(len(schema.PARTS), len(raw))
    return pa.table({"raw": raw} | dict(zip(schema.PARTS, counts, strict=True)))


TABLE_LIMIT = 1 << 24
"""Keys up to here are looked up in a table, larger ones searched."""


@dataclass(frozen=True)
class Numbering:
    """Dense ids of keys.

    Args:
        key: (N,) ascending.
        dense: (N,) int32 dense id of each.
        known: How many of them training knows.
    """

    key: NDArray[np.int64]
    dense: NDArray[np.int32]
    known: int

    def of(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """(K,) dense ids of keys that are all there."""
        last = int(self.key[-1]) if len(self.key) else 0
        if last > TABLE_LIMIT:
            return self.dense[np.searchsorted(self.key, keys)]
        table = np.empty(last + 1, np.int32)  # a look-up is a hundred times faster than a search
        table[self.key] = self.dense
        return table[keys]


@dataclass(frozen=True)
class Encode:
    """Writes the part files, with the ids of the training split.

    Args:
        spill: Where the split buckets are.
        folder: The data set's folder.
        users: Numbers all users.
        items: Numbers all items.
        timed: Whether times are known.
        parts: The splits that are written, as codes of schema.PARTS.
    """

    spill: Folder
    folder: Folder
    users: Numbering
    items: Numbering
    timed: bool
    parts: tuple[int, ...]

    def __call__(self, bucket: int) -> dict[str, Any]:
        """Write the part files of one bucket; return their counts."""
        rows = read_bucket(self.spill, bucket)
        user, item = self.users.of(rows.user), self.items.of(rows.item)
        rating, timestamp = rows.rating, rows.timestamp
        which = read_arrow(self.spill, f"split-{bucket}.arrow")["split"].to_numpy()
        order = order_by(user, timestamp, item)
        result: dict[str, Any] = {}
        for code in self.parts:
            name = schema.PARTS[code]
            own = order[which[order] == code]
            times = pa.array(timestamp[own]) if self.timed else pa.nulls(len(own), pa.int64())
            columns = [user[own], item[own], rating[own], times]
            part = pa.table(columns, schema=schema.RATINGS)
            self.folder.write_table(part_name(name, bucket), part, dictionary=["rating"])
            cold = (user[own] >= self.users.known) | (item[own] >= self.items.known)
            result[name] = {"rows": len(own), "unseen": int(cold.sum())}
            if code == split.TRAIN:
                values, counts = np.unique(rating[own], return_counts=True)
                result["levels"] = {float(v): int(c) for v, c in zip(values, counts, strict=True)}
        return result
