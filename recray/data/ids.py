"""Raw ids, which users know, integers or text; and dense ids, 0..n-1, which models use."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recray import schema
from recray.data import split
from recray.errors import RecrayError

ID_LIMIT = 10**18
"""Integer ids are below this, so that they fit 64 bits with room for arithmetic."""

ID_LENGTH = 200
"""Text ids have at most so many characters."""

RawId = int | str

TABLE_LIMIT = 1 << 24
"""Keys up to here are looked up in a table, larger ones are searched."""

FitOn = Literal["train", "train+valid", "all"]
FIT_SPLITS: dict[FitOn, tuple[str, ...]] = {
    "train": ("train",),
    "train+valid": ("train", "valid", "fold_in"),
    "all": ("train", "valid", "fold_in", "test"),
}
"""The splits that a fit learns from: rows of users and items that it knows."""


class UserIds(Protocol):
    """Raw and dense ids of users, wherever they are; see IdMap."""

    @property
    def text(self) -> bool:
        """Whether raw ids are text; otherwise they are integers."""

    def __len__(self) -> int: ...

    def encode_one(self, raw: RawId) -> int:
        """Dense id of one raw id, -1 if there is none."""

    def encode_all(self, raw: Sequence[RawId]) -> NDArray[np.integer]:
        """Dense ids of raw ids of either kind, -1 for those that are in no split."""

    def first(self, count: int) -> list[RawId]:
        """The raw ids of the first dense ids."""

    def raw_of(self, dense: NDArray[np.integer]) -> list[RawId]:
        """The raw ids of dense ids."""

    def at_hand(self, raw: Sequence[RawId]) -> list[bool]:
        """Whether each of these users is found without reading a file."""
        return [True] * len(raw)

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


@dataclass(frozen=True)
class IdMap(UserIds):
    """A bijection between raw ids and 0..size-1.

    The ids of the training split come first, then those that the validation split adds, then the
    rest. Of each of the three, items ascend by raw id; users ascend by partition, then by raw id.
    Text ascends by code point.

    Args:
        raw: (size,) raw id of each dense id, int64 or str objects.
        known: How many of them, the first ones, a model knows: by default those of training.
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

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        """Dense ids by ascending raw id."""
        return np.asarray(pc.sort_indices(self.column()).to_numpy().astype(np.int64))

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
        if len(self.raw):
            place = np.searchsorted(self.raw, raw, sorter=self._order)
            near = self._order[np.minimum(place, len(self.raw) - 1)]
            found = self.raw[near] == raw
            dense[found] = near[found]
        return dense

    def encode_one(self, raw: RawId) -> int:
        """Dense id of one raw id, -1 if there is none."""
        if isinstance(raw, str) != self.text:
            return -1
        place = bisect_left(self._order, raw, key=self.raw.__getitem__)
        if place == len(self.raw) or self.raw[self._order[place]] != raw:
            return -1
        return int(self._order[place])

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

    def first(self, count: int) -> list[RawId]:
        """The raw ids of the first dense ids."""
        return self.raw_of(np.arange(min(count, len(self.raw))))

    def raw_of(self, dense: NDArray[np.integer]) -> list[RawId]:
        """The raw ids of dense ids."""
        raw: list[RawId] = self.raw[dense].tolist()
        return raw


def order_of_ids(raw: NDArray[Any], group: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order of dense ids: (N,) places in raw, by (N,) group, then by ascending raw id."""
    order: NDArray[np.int64] = pc.sort_indices(pa.array(raw)).to_numpy().astype(np.int64)
    return np.asarray(order[np.argsort(group[order], kind="stable")])


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


# -------------------------------------------------------------------------------- during ingest

GROUPS = 3


def group_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) group of ids in the order of dense ids, from their (4, N) rows in schema.PARTS.

    0: training knows them; 1: validation adds them; 2: the others.
    """
    return np.where(counts[split.TRAIN] > 0, 0, np.where(counts[split.VALID] > 0, 1, 2))


@dataclass(frozen=True)
class DenseIds:
    """Dense ids by key.

    Args:
        key: (N,) ascending.
        dense: (N,) int32 dense id of each.
        num_train: How many ids training knows, those elsewhere included: the lowest ones.
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
class UserNumbers:
    """Which dense ids the users of each partition have.

    Args:
        first: (P, 3) the lowest dense id of each partition in each group.
        num_train: Users that training knows.
    """

    first: NDArray[np.int64]
    num_train: int

    @classmethod
    def of(cls, groups: NDArray[np.int64]) -> Self:
        """Number the users of all partitions, from the (P, 3) numbers of users in each group."""
        in_order = groups.T.ravel()
        first = np.concatenate([[0], np.cumsum(in_order)[:-1]]).reshape(GROUPS, -1).T
        return cls(first, int(groups[:, 0].sum()))

    def of_partition(
        self, partition: int, key: NDArray[np.int64], raw: NDArray[Any], group: NDArray[np.int64]
    ) -> DenseIds:
        """The dense ids of a partition's users.

        Args:
            partition: Its number.
            key: (N,) ascending.
            raw: (N,) the raw id of each.
            group: (N,) that of group_of.
        """
        order = order_of_ids(raw, group)
        dense, begin = np.empty(len(key), np.int32), 0
        for first, count in zip(
            self.first[partition], np.bincount(group, minlength=GROUPS), strict=True
        ):
            dense[order[begin : begin + count]] = np.arange(first, first + count)
            begin += count
        return DenseIds(key, dense, self.num_train)


@dataclass(frozen=True)
class CountedItems:
    """All items.

    Args:
        ids: Their raw and dense ids.
        counts: (4, N) ratings of each dense id in each of schema.PARTS.
        dense: Dense ids by key.
    """

    ids: IdMap
    counts: NDArray[np.int64]
    dense: DenseIds

    @classmethod
    def join(cls, tables: Iterable[pa.Table], texts: TextIds | None) -> Self:
        """Merge the items that the partitions counted, one after another, and number them.

        Args:
            tables: `raw`, ascending, and a count for each of schema.PARTS.
            texts: The ids that keys stand for, where they are text.
        """
        key, counts = np.zeros(0, np.int64), np.zeros((len(schema.PARTS), 0), np.int64)
        for table in tables:
            own = table["raw"].to_numpy()
            place = np.searchsorted(key, own)
            new = (
                own != key[np.minimum(place, len(key) - 1)] if len(key) else np.ones(len(own), bool)
            )
            if new.any():  # after some partitions nearly all have been seen
                key = np.insert(key, place[new], own[new])
                counts = np.insert(counts, place[new], 0, axis=1)
                place = np.searchsorted(key, own)
            for total, name in zip(counts, schema.PARTS, strict=True):
                total[place] += table[name].to_numpy()
        raw = key if texts is None else texts.of(key)
        group = group_of(counts)
        order = order_of_ids(raw, group)
        dense = np.empty(len(key), np.int32)
        dense[order] = np.arange(len(key), dtype=np.int32)
        num_train = int((group == 0).sum())
        return cls(IdMap(raw[order], num_train), counts[:, order], DenseIds(key, dense, num_train))

    @property
    def groups(self) -> NDArray[np.int64]:
        """(3,) items that training knows, that validation adds, and the others."""
        return np.bincount(group_of(self.counts), minlength=GROUPS)
