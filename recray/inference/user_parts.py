"""Users of a bundle by partition: raw ids, rows of the model's tables, and what each has done.

users/part-00000.safetensors   one row for each user of the partition, in the order of dense ids;
                               a process maps the file and reads the users that it is asked for

Dense ids are those of ids.IdMap: three groups, each by partition, then by raw id. So a user is
found by the hash of the raw id, and then among the sorted ids of each group.
"""

# Shape letters: U = users, P = partitions, R = ratings, B = bytes, D = size of a row.

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray import schema
from recray.data.dataset import Ratings
from recray.data.ids import id_hash
from recray.data.split import SLOTS, slot_of
from recray.models.base import refuse_outside

FOLDER = "users"
RAW, RAW_END = "raw", "raw.end"
"""(U,) int64 raw ids; of text (B,) uint8, all after one another, and (U,) int64 ends."""
END = "end"
"""(U,) int64 ends of the histories, which begin one where the other ends."""
ITEM, RATING, TIME, PLACE, PART = "item", "rating", "time", "place", "part"
"""(R,) int32, float32, int64 (unless no time is known), int32 (if the data set has it), and int8
codes of schema.INTERACTION_PARTS.
"""
HISTORY = (ITEM, RATING, TIME, PLACE, PART)
TABLE = "table."
"""What the names of the model's tables begin with: (U, D) float32, 0 for users unknown to it."""
Ids = NDArray[np.int64]


def part_file(partition: int) -> str:
    """The file of a partition."""
    return f"{FOLDER}/part-{partition:05d}.safetensors"


@dataclass(frozen=True)
class DenseRanges:
    """Which dense ids the users of each partition have.

    Args:
        counts: (P, 3) users of each partition in each group: those that training knows, those that
            validation adds, and the others.
    """

    counts: Ids

    @classmethod
    def of(cls, raw: pa.Array, ends: tuple[int, int, int], partitions: int) -> Self:
        """Number users whose (U,) raw ids are in the order of their dense ids.

        Args:
            raw: int64 or string.
            ends: Dense ids at which the three groups end.
            partitions: How many there are; one for users that are not in the order of partitions.
        """
        counts = np.zeros((partitions, len(ends)), np.int64)
        where = partition_of(id_hash(raw), partitions)
        for group, (begin, end) in enumerate(zip((0, *ends), ends, strict=False)):
            counts[:, group] = np.bincount(where[begin:end], minlength=partitions)
        return cls(counts)

    @property
    def partitions(self) -> int:
        """How many there are."""
        return len(self.counts)

    @property
    def users(self) -> int:
        """All users."""
        return int(self.counts.sum())

    @property
    def first(self) -> Ids:
        """(P, 3) the first dense id of each partition in each group."""
        in_order = self.counts.T.ravel()
        return (np.cumsum(in_order) - in_order).reshape(self.counts.T.shape).T

    def users_of(self, partition: int) -> Ids:
        """The dense ids of a partition, in the order of its rows."""
        runs = zip(self.first[partition], self.counts[partition], strict=True)
        return np.concatenate([np.arange(first, first + count) for first, count in runs])


def partition_of(key: Ids, partitions: int) -> Ids:
    """The partition of each user by the key of the raw id; see ids.id_hash."""
    return slot_of(key).astype(np.int64) // (SLOTS // partitions)


def check_histories(columns: Mapping[str, NDArray[Any]], items: int) -> None:
    """Refuse interactions with items without an id, of unknown parts, or with odd ratings.

    Raises:
        ValueError: One is wrong.
    """
    refuse_outside(ITEM, columns[ITEM], items)
    refuse_outside(PART, columns[PART], len(schema.INTERACTION_PARTS))
    check_rows(RATING, columns[RATING])


def check_rows(name: str, values: NDArray[np.float32]) -> None:
    """Refuse values that are not finite numbers.

    Raises:
        ValueError: One is not.
    """
    if values.size and not np.isfinite([values.min(), values.max()]).all():
        raise ValueError(f"{name} has values that are not finite numbers")


def contents(
    raw: pa.Array,
    numbering: DenseRanges,
    rows: Ratings,
    part: NDArray[np.int8],
    tables: Mapping[str, Tensor],
) -> Iterator[dict[str, Tensor]]:
    """The tensors of each partition.

    Args:
        raw: (U,) raw ids by dense id.
        numbering: Of these.
        rows: (R,) ratings, sorted as Ratings are.
        part: (R,) int8 code of schema.INTERACTION_PARTS of each.
        tables: Rows of the model by name, of the first users: (U or fewer, D).
    """
    ends = np.searchsorted(rows.user, np.arange(numbering.users + 1, dtype=rows.user.dtype))
    columns: dict[str, NDArray[Any]] = {ITEM: rows.item, RATING: rows.rating, PART: part}
    if (rows.timestamp != schema.UNKNOWN_TIME).any():
        columns[TIME] = rows.timestamp
    if rows.place is not None:
        columns[PLACE] = rows.place
    for partition in range(numbering.partitions):
        users = numbering.users_of(partition)
        counts = ends[users + 1] - ends[users]
        end = np.cumsum(counts)
        cells = np.arange(counts.sum()) + np.repeat(ends[users] - (end - counts), counts)
        arrays: dict[str, NDArray[Any]] = {n: column[cells] for n, column in columns.items()}
        found = {**_raw(raw.take(pa.array(users))), END: torch.from_numpy(end)}
        found |= {name: torch.from_numpy(array) for name, array in arrays.items()}
        for name, table in tables.items():
            own = torch.zeros(len(users), *table.shape[1:])
            known = users[users < len(table)]
            own[: len(known)] = table[torch.from_numpy(known)]
            found[f"{TABLE}{name}"] = own
        yield found


def _raw(column: pa.Array) -> dict[str, Tensor]:
    if not pa.types.is_string(column.type):
        return {RAW: torch.from_numpy(column.to_numpy().copy())}
    texts = [text.encode() for text in column.to_pylist()]
    end = np.cumsum([len(text) for text in texts], dtype=np.int64)
    joined = np.frombuffer(b"".join(texts), np.uint8).copy()
    return {RAW: torch.from_numpy(joined), RAW_END: torch.from_numpy(end)}
