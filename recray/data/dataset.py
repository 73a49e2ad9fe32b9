"""The prepared data set, which ingest writes and every later stage reads, and the ids in it.

Raw ids are those that users know, integers or text. Models use dense ids, 0..n-1.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recray import schema, storage
from recray.data.ids import FIT_SPLITS, FitOn, IdMap
from recray.data.row_order import order_by
from recray.data.split import hash_ids
from recray.errors import RecrayError
from recray.storage import Folder, ManifestEntry

KIND = "prepared data set"

KNOWN = "known"
"""Folder of the ratings that filters kept from all splits."""
USERS = "users"
"""Folder of the lists of users."""


@dataclass(frozen=True)
class Ratings:
    """Ratings as columns, sorted by (user, place), and without places by (user, timestamp, item).

    Args:
        user: (R,) int32 dense ids.
        item: (R,) int32 dense ids.
        rating: (R,) float32 stars.
        timestamp: (R,) int64 seconds; schema.UNKNOWN_TIME where unknown.
        place: (R,) int32 place of the row among the rows of its user in all splits, in order;
            None where the data set keeps none.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    rating: NDArray[np.float32]
    timestamp: NDArray[np.int64]
    place: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """Take the columns of a table of schema.RATINGS, with or without schema.PLACE."""
        user, item, rating = (table[name].to_numpy() for name in ("user", "item", "rating"))
        timestamp = table["timestamp"].combine_chunks().fill_null(schema.UNKNOWN_TIME).to_numpy()
        place = table["place"].to_numpy() if "place" in table.column_names else None
        return cls(user, item, rating, timestamp, place)

    @classmethod
    def concatenate(cls, parts: list["Ratings"]) -> Self:
        """All rows of the parts, sorted by (user, place), or by (user, timestamp, item).

        Rows of equal places, which filters dropped, stay in the order of the parts.
        """
        joined, order = cls.joined(parts)
        return cls(**joined.where(order).columns)

    @classmethod
    def joined(cls, parts: list["Ratings"]) -> tuple["Ratings", NDArray[np.int64]]:
        """All rows of the parts one after another, and the order that sorts them.

        Raises:
            ValueError: Some parts have places, and others do not.
        """
        places = [part.place for part in parts if part.place is not None]
        if places and any(part.place is None and len(part) for part in parts):
            raise ValueError("some of the ratings have a place among those of their user")
        user, item, rating, timestamp = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("user", "item", "rating", "timestamp")
        )
        place = np.concatenate(places) if places else None
        keys = (item, timestamp, user) if place is None else (place, user)
        return Ratings(user, item, rating, timestamp, place), np.lexsort(keys)

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns by their names; without `place` where there is none."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: column for name, column in columns.items() if column is not None}

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "Ratings":
        """The rows that a mask or places choose."""
        return Ratings(**{name: column[chosen] for name, column in self.columns.items()})


def row_order(rows: Ratings) -> NDArray[np.int64]:
    """The places of rows that put each user's in order: by place, or else by time.

    Rows of one time without places are ordered by a hash of their ids, so that no model learns
    the order of ids.
    """
    if rows.place is not None:
        return np.lexsort((rows.place, rows.user))
    tie = hash_ids(0, rows.user.astype(np.int64), rows.item.astype(np.int64))
    return order_by(rows.user, rows.timestamp, tie)


def in_order(rows: Ratings) -> Ratings:
    """Each user's rows in order; see row_order."""
    return rows.where(row_order(rows))


class Fit(NamedTuple):
    """What a model knows.

    Args:
        users: It knows the first ones, in the order of dense ids.
        items: The same of items.
        rating_range: Lowest and highest rating that it learns from.
        splits: Whose rows it learns from.
    """

    users: int
    items: int
    rating_range: tuple[float, float]
    splits: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """A prepared data set on disk.

    Args:
        folder: Where it lies.
        manifest: Its manifest.
    """

    folder: Folder
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Folder, verify: bool = False) -> Self:
        """Open a folder that `recray prepare` finished.

        Args:
            path: Local path or URI; the folder of an opened one, for the very files of that.
            verify: Compare every file with its sha256.

        Raises:
            RecrayError: It is missing, unfinished, of another kind, or changed since.
        """
        given = Folder(path) if isinstance(path, str) else path
        folder, manifest = storage.current_of(given, KIND, "recray prepare")
        if verify:
            folder.compare(manifest)
        return cls(folder, manifest.model_dump())

    @property
    def users(self) -> int:
        """Users of the training split."""
        return int(self.manifest["counts"]["users"])

    @property
    def items(self) -> int:
        """Items of the training split."""
        return int(self.manifest["counts"]["items"])

    def fit(self, fit_on: FitOn) -> "Fit":
        """What a model knows that is trained on these splits."""
        counts = self.manifest["counts"]
        # Data sets that an earlier version wrote do not order ids by what validation adds.
        more = self.manifest.get("fits", {}).get(fit_on, {})
        every = fit_on == "all"
        return Fit(
            more.get("users", self.users + every * counts["unseen_users"]),
            more.get("items", self.items + every * counts["unseen_items"]),
            tuple(more.get("range", self.rating_range)),
            tuple(name for name in FIT_SPLITS[fit_on] if name in self.manifest["splits"]),
        )

    def load_fit(self, fit_on: FitOn, parts: list[int] | None = None) -> Ratings:
        """The rows that a fit learns from, of all parts or some of them."""
        fit = self.fit(fit_on)
        rows = [self.load(split, parts) for split in fit.splits]
        if fit_on == "train":
            return rows[0]
        return Ratings.concatenate(
            [r.where((r.user < fit.users) & (r.item < fit.items)) for r in rows]
        )

    @property
    def buckets(self) -> int:
        """Number of parts of each split; every row of a user is in one part."""
        return int(self.manifest["buckets"])

    @property
    def rating_range(self) -> tuple[float, float]:
        """Lowest and highest training rating."""
        low, high = self.manifest["ratings"]["range"]
        return float(low), float(high)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that training may see: train, valid, what is known of held-out users,
        and the ids.
        """
        return self.fingerprint_of("train")

    def fingerprint_of(self, fit_on: FitOn) -> str:
        """The same of a fit, which may see the test split as well."""
        prints = self.manifest["fingerprints"]
        names = ["train", "valid", "fold_in", "ids", *(["test"] if fit_on == "all" else [])]
        return "-".join(prints[name][:16] for name in names)

    @cached_property
    def user_ids(self) -> IdMap:
        """Raw and dense user ids."""
        return IdMap.of(self.user_table(["raw_user"])["raw_user"], self.users)

    def user_table(self, columns: list[str] | None = None) -> pa.Table:
        """The users by their dense ids, as schema.USERS.

        Args:
            columns: Those that are read; None for all.
        """
        if not any(entry["name"].startswith(f"{USERS}/") for entry in self.manifest["files"]):
            return self.folder.read_table("users.parquet", columns)  # an earlier version wrote it
        names = [part_name(USERS, number) for number in range(self.buckets)]
        read = None if columns is None else ["user", *columns]
        tables = [self.folder.read_table(name, read) for name in names]
        table = pa.concat_tables(tables).sort_by("user")
        return table if columns is None else table.select(columns)

    @cached_property
    def item_ids(self) -> IdMap:
        """Raw and dense item ids."""
        return IdMap.of(self.item_table["raw_item"], self.items)

    @cached_property
    def item_table(self) -> pa.Table:
        """items.parquet as schema.ITEMS."""
        return self.folder.read_table("items.parquet")

    def load(self, split: str, parts: list[int] | None = None) -> Ratings:
        """The rows of a split, of all parts or some of them.

        Args:
            split: train, valid, test or fold_in; the last is empty unless users are held out.
            parts: Numbers of the parts; None loads all.
        """
        if split not in self.manifest["splits"]:
            return Ratings.of(schema.RATINGS.empty_table())
        numbers = range(self.buckets) if parts is None else parts
        tables = [self.folder.read_table(part_name(split, number)) for number in numbers]
        return Ratings.concatenate([Ratings.of(table) for table in tables])

    def load_known(self) -> Ratings:
        """The ratings that filters kept from all splits, of users and items that have ids."""
        if not self.manifest["counts"].get("filtered"):
            return Ratings.of(schema.RATINGS.empty_table())
        numbers = range(self.buckets)
        tables = [self.folder.read_table(part_name(KNOWN, number)) for number in numbers]
        return Ratings.concatenate([Ratings.of(table) for table in tables])

    def rows_of_parts(self, split: str) -> list[int]:
        """Rows of each part of a split, from the ends of the files alone.

        Raises:
            RecrayError: A file is missing or damaged.
        """
        counts = []
        for number in range(self.buckets):
            path = self.folder.at(part_name(split, number))
            try:
                with storage.open_input(path) as file:
                    counts.append(pq.read_metadata(file).num_rows)
            except pa.ArrowInvalid as error:
                raise RecrayError(f"{path} is damaged: {error}") from error
        return counts


def write_part(
    folder: Folder, split: str, bucket: int, rows: Ratings, timed: bool
) -> ManifestEntry:
    """Write the rows of one bucket of users in one split; without times where none are known."""
    times = time_column(rows.timestamp) if timed else pa.nulls(len(rows), pa.int64())
    columns = [rows.user, rows.item, rows.rating, times]
    table = pa.table(columns, schema=schema.RATINGS)
    if rows.place is not None:
        table = table.append_column(schema.PLACE, [rows.place])
    return folder.write_table(part_name(split, bucket), table, dictionary=["rating"])


def time_column(timestamp: NDArray[np.int64]) -> pa.Array:
    """(R,) times as a column of a file, null where unknown."""
    unknown = timestamp == schema.UNKNOWN_TIME
    return pa.array(timestamp, mask=unknown if unknown.any() else None)


def part_name(split: str, bucket: int) -> str:
    """The file of one bucket of users in one split."""
    return f"{split}/part-{bucket:05d}.parquet"


def refuse_equal_ratings(prepared: Prepared) -> None:
    """Refuse rating objectives where there is nothing to predict.

    Raises:
        RecrayError: All training ratings are the same.
    """
    low, high = prepared.rating_range
    if low == high:
        raise RecrayError(
            f"all training ratings are {low:g}: a rating objective has nothing to learn; "
            "use --preset ranking"
        )
