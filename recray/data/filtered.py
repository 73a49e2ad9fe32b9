"""What the filters of ingest keep and drop: what is dropped stays known, and no split has it.

The product never lists what a user has rated, not even a rating that no model may learn from.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recray import schema
from recray.config import DataSettings
from recray.data.dataset import KNOWN, Ratings, write_part
from recray.data.ids import DenseIds, id_hash
from recray.data.row_order import order_by, run_starts
from recray.data.source import Source
from recray.data.spill import Rows, SpillFile, SpillFolder, merge_duplicates
from recray.errors import RecrayError
from recray.storage import Folder, ManifestEntry


@dataclass(frozen=True)
class ItemRules:
    """Which items stay, and into which item others are merged; None where nothing changes.

    Args:
        kept: Keys of the items that stay.
        merged: Keys of all items, ascending, and the key that each one gets.
    """

    kept: NDArray[np.int64] | None
    merged: tuple[NDArray[np.int64], NDArray[np.int64]] | None

    def apply(self, rows: Rows) -> tuple[Rows, Rows]:
        """Rename merged items; return the ratings of items that stay, and those of the others."""
        stays = None if self.kept is None else np.isin(rows.item, self.kept)
        if self.merged is not None:
            raw, target = self.merged
            place = np.minimum(np.searchsorted(raw, rows.item), len(raw) - 1)
            rows = rows._replace(item=np.where(raw[place] == rows.item, target[place], rows.item))
        return (rows, rows.at(slice(0))) if stays is None else (rows.at(stays), rows.at(~stays))


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
        titles = pc.dictionary_encode(items["title"].combine_chunks()).indices
        # An item without a title is merged with none: it gets a number of its own.
        own = pa.array(np.arange(len(items), dtype=np.int32) + np.int32(len(items)))
        coded = pc.coalesce(titles, own).to_numpy()
        # Items are sorted by raw id, so the first one of a title has the lowest id.
        _, first = np.unique(coded, return_index=True)
        order = np.argsort(key)
        merged = (key[order], key[first[coded]][order])
    return ItemRules(kept, merged)


def above_minimum(rows: Rows, settings: DataSettings) -> tuple[Rows, Rows]:
    """The rows that are rated high enough, and the others."""
    if settings.min_rating is None:
        return rows, rows.at(slice(0))
    stays = rows.rating >= settings.min_rating
    return rows.at(stays), rows.at(~stays)


def drop_low(
    rows: Rows,
    others: Rows,
    *,
    settings: DataSettings,
    dropped: Counter[str],
    filtered: list[Rows],
) -> Rows:
    """The rows that are rated high enough; the rest of them and the others stay known.

    Args:
        rows: Rows of items that stay, each pair once.
        others: Rows of items that do not, because of their year.
        settings: The lowest rating.
        dropped: What was dropped is counted here, by the filter.
        filtered: What was dropped is added here.
    """
    high, low = above_minimum(rows, settings)
    filtered += [others, low]
    dropped.update(min_year=len(others.user), min_rating=len(low.user))
    return high


def write_filtered(spill: SpillFolder, partition: int, dropped: Sequence[Rows]) -> None:
    """Keep rows that filters drop from a partition, beside those of earlier versions."""
    parts = [rows for rows in dropped if len(rows.user)]
    if parts:
        spill.write(SpillFile.FILTERED, Rows.join(parts).table(), partition, spill.version)


def _read_filtered(spill: SpillFolder, partition: int) -> Rows:
    """The rows that filters have dropped from a partition, in the order in which they did."""
    numbers = [(partition, version) for version in range(spill.version + 1)]
    there = [number for number in numbers if spill.exists(SpillFile.FILTERED, *number)]
    parts = [Rows.of(spill.read(SpillFile.FILTERED, *number)) for number in there]
    return Rows.join(parts) if parts else Rows.of(schema.RAW_RATINGS.empty_table())


def write_known(
    partition: int,
    *,
    spill: SpillFolder,
    folder: Folder,
    kept: Rows,
    users: DenseIds,
    items: DenseIds,
    timed: bool,
    ordered: bool = False,
) -> tuple[int, ManifestEntry]:
    """Write the ratings of a partition that filters dropped and that may matter to a list.

    Those are of users and items that have ids, and of no pair that was kept. A pair that was
    dropped several times has its latest rating, whatever data.duplicates is.

    Args:
        partition: Its number.
        spill: Where the dropped rows are.
        folder: The data set's folder.
        kept: The rows that are in splits, sorted by user, then item.
        users: Dense ids of the partition's users.
        items: Dense ids of all items.
        timed: Whether times are known.
        ordered: Whether rows have places; these have that of the last kept row before them, or -1.

    Returns:
        How many they are, and the file.
    """
    rows = _read_filtered(spill, partition)
    if len(rows.user):
        rows = rows.at(np.isin(rows.user, users.key) & np.isin(rows.item, items.key))
        rows = _without(merge_duplicates(rows, "last"), kept)
    user, item = users.of(rows.user), items.of(rows.item)
    place = _places_among(kept, rows) if ordered else None
    order = order_by(user, rows.timestamp, item if rows.line is None else rows.line)
    known = Ratings(user, item, rows.rating, rows.timestamp, place).where(order)
    return len(known), write_part(folder, KNOWN, partition, known, timed)


def _places_among(kept: Rows, dropped: Rows) -> NDArray[np.int32]:
    """For each dropped row the kept rows of its user that do not come after it, less one.

    So no place of a kept row depends on what was dropped.
    """
    both = Rows.join([kept, dropped])
    is_kept = np.arange(len(both.user)) < len(kept.user)
    tie = (~is_kept).astype(np.int64) if both.line is None else both.line
    order = order_by(both.user, both.timestamp, tie)
    if not len(order):
        return np.zeros(0, np.int32)
    before = is_kept[order].cumsum()
    begins = run_starts(both.user[order])
    of_others = (before - is_kept[order])[begins]  # kept rows of the users before this one
    place = np.empty(len(order), np.int32)
    place[order] = before - np.repeat(of_others, np.diff(begins, append=len(order))) - 1
    return place[len(kept.user) :]


def _without(rows: Rows, others: Rows) -> Rows:
    """The rows whose pair of user and item is not among the others."""
    _, item = np.unique(np.concatenate([rows.item, others.item]), return_inverse=True)
    _, user = np.unique(np.concatenate([rows.user, others.user]), return_inverse=True)
    pair = user.astype(np.int64) * (int(item.max(initial=0)) + 1) + item
    return rows.at(~np.isin(pair[: len(rows.user)], pair[len(rows.user) :]))
