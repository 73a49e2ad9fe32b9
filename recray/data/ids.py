"""Raw ids as users know them, integers or text, and the dense ids that models use."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recray.errors import RecrayError

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
    def build(cls, raw: NDArray[Any], in_training: NDArray[np.bool_]) -> Self:
        """Number distinct raw ids.

        Args:
            raw: (N,) distinct raw ids in any order.
            in_training: (N,) whether the training split has the id.
        """
        return cls(raw[train_ids_first(raw, in_training)], int(in_training.sum()))

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
