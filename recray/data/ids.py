"""Raw ids, which users know, integers or text; and dense ids, 0..n-1, which models use."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, Self

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


@dataclass(frozen=True)
class IdMap:
    """A bijection between raw ids and 0..size-1.

    The ids of the training split come first, by ascending raw id; then, ascending too, those that
    the validation split adds, then the rest. Text ascends by code point.

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
    def _runs(self) -> list[tuple[int, int]]:
        """First and last place of each run of ascending raw ids; there are three at most."""
        edges = np.flatnonzero(self.raw[1:] < self.raw[:-1]) + 1
        return list(pairwise([0, *edges.tolist(), len(self.raw)]))

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
        for first, last in self._runs:
            part = self.raw[first:last]
            if len(part):
                place = np.minimum(np.searchsorted(part, raw), len(part) - 1)
                found = part[place] == raw
                dense[found] = (place[found] + first).astype(np.int32)
        return dense

    def encode_one(self, raw: RawId) -> int:
        """Dense id of one raw id, -1 if there is none."""
        if isinstance(raw, str) != self.text:
            return -1
        for first, last in self._runs:
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
        group = np.where(counts[split.TRAIN] > 0, 0, np.where(counts[split.VALID] > 0, 1, 2))
        order = order_of_ids(raw, group)
        dense = np.empty(len(key), np.int32)
        dense[order] = np.arange(len(key), dtype=np.int32)
        num_train = int((group == 0).sum())
        return cls(IdMap(raw[order], num_train), counts[:, order], DenseIds(key, dense, num_train))

    def known_to(self, fit_on: FitOn) -> int:
        """How many ids a fit knows, which are the first ones."""
        parts = {"train": [split.TRAIN], "train+valid": [split.TRAIN, split.VALID]}
        if fit_on == "all":
            return len(self.ids)
        return int((self.counts[parts[fit_on]].sum(axis=0) > 0).sum())
