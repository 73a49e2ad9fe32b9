"""The prepared data set, which ingest writes and every later stage reads, and the ids in it.

Raw ids are those that users know, integers or text. Models use dense ids, 0..n-1.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recray import schema, storage
from recray.errors import RecrayError
from recray.storage import Folder

KIND = "prepared data set"

ID_LIMIT = 10**18
"""Integer ids are below this, so that they fit 64 bits with room for arithmetic."""

ID_LENGTH = 200
"""Text ids have at most so many characters."""

RawId = int | str


@dataclass(frozen=True)
class IdMap:
    """A bijection between raw ids and 0..size-1.

    The `known` ids of the training split come first, by ascending raw id; those that only valid
    or test have follow, ascending too. Text ascends by code point.

    Args:
        raw: (size,) raw id of each dense id, int64 or str objects.
        known: How many of them training knows.
    """

    raw: NDArray[Any]
    known: int

    @classmethod
    def of(cls, column: pa.ChunkedArray, known: int) -> Self:
        """Take a column of raw ids in the order of their dense ids."""
        return cls(column.to_numpy(), known)

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def text(self) -> bool:
        """Whether raw ids are text; otherwise they are integers."""
        return self.raw.dtype == object

    def column(self) -> pa.Array:
        """Raw ids as an Arrow array, int64 or string."""
        return pa.array(self.raw, pa.string() if self.text else pa.int64())

    def content(self) -> bytes:
        """The ids of the training split as bytes, for a fingerprint."""
        known = self.raw[: self.known]
        return "\0".join(known).encode() if self.text else bytes(known.tobytes())

    def encode(self, raw: NDArray[Any]) -> NDArray[np.int32]:
        """Dense ids of raw ids, -1 for those that are in no split."""
        dense = np.full(len(raw), -1, np.int32)
        if (np.asarray(raw).dtype == object) != self.text:
            return dense
        for first, part in ((0, self.raw[: self.known]), (self.known, self.raw[self.known :])):
            if len(part):
                place = np.minimum(np.searchsorted(part, raw), len(part) - 1)
                found = part[place] == raw
                dense[found] = (place[found] + first).astype(np.int32)
        return dense

    def encode_one(self, raw: RawId) -> int:
        """Dense id of one raw id, -1 if there is none."""
        if isinstance(raw, str) != self.text:
            return -1
        for first, last in ((0, self.known), (self.known, len(self.raw))):
            place = bisect_left(self.raw, raw, first, last)
            if place < last and self.raw[place] == raw:
                return place
        return -1

    def encode_all(self, raw: Sequence[RawId]) -> NDArray[np.int32]:
        """Dense ids of raw ids of either kind, -1 for those that are in no split."""
        dense = np.full(len(raw), -1, np.int32)
        fits = [
            isinstance(r, str) == self.text and (isinstance(r, str) or 0 <= r < ID_LIMIT)
            for r in raw
        ]
        kind = object if self.text else np.int64
        dense[fits] = self.encode(np.array([r for r, f in zip(raw, fits, strict=True) if f], kind))
        return dense

    def parse(self, written: str) -> RawId:
        """The raw id that somebody wrote, as in an address or an option.

        Raises:
            KeyError: Ids are integers and this is none.
        """
        if self.text:
            return written
        if not (written.isascii() and written.isdigit()) or len(written) >= len(str(ID_LIMIT)):
            raise KeyError(written)
        return int(written)


def train_ids_first(raw: NDArray[Any], in_training: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The order of dense ids: (N,) places in raw, the training split's first, each ascending."""
    order = pc.sort_indices(pa.array(raw)).to_numpy().astype(np.int64)
    return np.concatenate([order[in_training[order]], order[~in_training[order]]])


def id_hash(column: pa.Array) -> NDArray[np.int64]:
    """What stands for raw ids between the maps of ingest: integers themselves, a hash of text.

    Keys are below ID_LIMIT, and the same on every machine.
    """
    if not pa.types.is_string(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    import pandas as pd

    coded = column.dictionary_encode()  # each distinct text is hashed once
    texts = coded.dictionary.to_numpy(zero_copy_only=False).astype(object)
    hashed = pd.util.hash_array(texts, categorize=False) if len(texts) else np.zeros(0, np.uint64)
    key = (hashed % np.uint64(ID_LIMIT)).astype(np.int64)
    return np.asarray(key[coded.indices.to_numpy()])


@dataclass(frozen=True)
class TextIds:
    """The texts behind keys.

    Args:
        key: (N,) ascending.
        text: (N,) the text of each.
    """

    key: NDArray[np.int64]
    text: NDArray[np.object_]

    @classmethod
    def join(cls, tables: list[pa.Table]) -> Self:
        """Put tables of key and text together, each pair once.

        Raises:
            RecrayError: Two texts have one key.
        """
        table = pa.concat_tables(tables).group_by(["key", "text"]).aggregate([]).sort_by("key")
        key = table["key"].to_numpy()
        same = np.flatnonzero(key[1:] == key[:-1])
        if len(same):
            pair = table["text"].take(pa.array([same[0], same[0] + 1])).to_pylist()
            raise RecrayError(f"the ids {pair[0]!r} and {pair[1]!r} have one hash; rename one")
        return cls(key, table["text"].to_numpy())

    def of(self, keys: NDArray[np.int64]) -> NDArray[np.object_]:
        """(K,) texts of keys that are all there."""
        return self.text[np.searchsorted(self.key, keys)]


# -------------------------------------------------------------------------------- data set


@dataclass(frozen=True)
class Ratings:
    """Ratings as columns, sorted by (user, timestamp, item).

    Args:
        user: (R,) int32 dense ids.
        item: (R,) int32 dense ids.
        rating: (R,) float32 stars.
        timestamp: (R,) int64 seconds; 0 where unknown.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    rating: NDArray[np.float32]
    timestamp: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """Take the columns of a table of schema.RATINGS."""
        user, item, rating = (table[name].to_numpy() for name in ("user", "item", "rating"))
        timestamp = table["timestamp"].combine_chunks().fill_null(0).to_numpy()
        return cls(user, item, rating, timestamp)

    @classmethod
    def concatenate(cls, parts: list["Ratings"]) -> Self:
        """All rows of the parts, sorted by (user, timestamp, item)."""
        columns = [
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("user", "item", "rating", "timestamp")
        ]
        order = np.lexsort((columns[1], columns[3], columns[0]))
        return cls(*(column[order] for column in columns))

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "Ratings":
        """The rows that a mask or places choose."""
        return Ratings(
            self.user[chosen], self.item[chosen], self.rating[chosen], self.timestamp[chosen]
        )


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
    def open(cls, path: str, verify: bool = False) -> Self:
        """Open a folder that `recray prepare` finished.

        Args:
            path: Local path or URI.
            verify: Compare every file with its sha256.

        Raises:
            RecrayError: It is missing, unfinished, of another kind, or changed since.
        """
        folder = Folder(path)
        manifest = storage.check_kind(folder, KIND, "recray prepare").model_dump()
        if verify:
            folder.verify()
        return cls(folder, manifest)

    @property
    def users(self) -> int:
        """Users of the training split."""
        return int(self.manifest["counts"]["users"])

    @property
    def items(self) -> int:
        """Items of the training split."""
        return int(self.manifest["counts"]["items"])

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
        prints = self.manifest["fingerprints"]
        return "-".join(prints[name][:16] for name in ("train", "valid", "fold_in", "ids"))

    @cached_property
    def user_ids(self) -> IdMap:
        """Raw and dense user ids."""
        table = self.folder.read_table("users.parquet", ["raw_user"])
        return IdMap.of(table["raw_user"], self.users)

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

    def rows_of_parts(self, split: str) -> list[int]:
        """Rows of each part of a split, from the ends of the files alone.

        Raises:
            RecrayError: A file is missing or damaged.
        """
        counts = []
        for number in range(self.buckets):
            path = f"{self.folder.path}/{part_name(split, number)}"
            try:
                with storage.open_input(path) as file:
                    counts.append(pq.read_metadata(file).num_rows)
            except pa.ArrowInvalid as error:
                raise RecrayError(f"{path} is damaged: {error}") from error
        return counts


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
