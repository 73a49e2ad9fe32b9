"""Looks users up in the partitions of a bundle, each of which is opened when it is first used."""

# Shape letters: U = users, P = partitions, R = ratings, D = size of a row.

import math
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recray import schema
from recray.data.dataset import Ratings
from recray.data.ids import ID_LIMIT, RawId, UserIds, id_hash
from recray.errors import DamagedFile, StorageError
from recray.inference.top_k import NONE, Ids
from recray.inference.user_parts import (
    END,
    HISTORY,
    ITEM,
    PART,
    PLACE,
    RATING,
    RAW,
    RAW_END,
    TABLE,
    TIME,
    DenseRanges,
    check_histories,
    check_rows,
    partition_of,
)
from recray.storage import as_recray_error

PLACES_KEPT = 10_000
"""Users of whom is remembered in which partition they are: some 200 bytes each."""
RETRY_SECONDS = 5.0
"""Pause after which a store is asked again that did not answer."""


class _Partition:
    """The tensors of a partition as arrays, which are views of its file.

    Args:
        tensors: By name; see user_parts.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.arrays: dict[str, NDArray[Any]] = {n: t.numpy() for n, t in tensors.items()}
        self._text_end = self.arrays.get(RAW_END)

    def raw(self, row: int) -> RawId:
        """The raw id of a row."""
        found: RawId = self._key(row) if self._text_end is None else self._key(row).decode()
        return found

    def _key(self, row: int) -> Any:
        """What raw ids are ordered by: integers, or UTF-8, which is ordered as its text is."""
        if self._text_end is None:
            return int(self.arrays[RAW][row])
        begin = self._text_end[row - 1] if row else 0
        return self.arrays[RAW][begin : self._text_end[row]].tobytes()

    def place(self, raw: RawId, begin: int, end: int) -> int:
        """The row of a raw id among those begin..end-1, which ascend; NONE if it is not there."""
        key = raw.encode() if isinstance(raw, str) else raw
        at = bisect_left(range(begin, end), key, key=self._key) + begin
        return at if at < end and self._key(at) == key else NONE

    def history(self, row: int) -> dict[str, NDArray[Any]]:
        """What a user has done: the columns of Ratings, and PART."""
        end = self.arrays[END]
        cells = slice(end[row - 1] if row else 0, end[row])
        return {name: self.arrays[name][cells] for name in HISTORY if name in self.arrays}


class _Partitions:
    """The partitions, each opened when it is first used, by one thread while others wait for it.

    Args:
        count: How many there are.
        open_partition: Gives the tensors of one.
    """

    def __init__(self, count: int, open_partition: Callable[[int], Mapping[str, Tensor]]) -> None:
        self._open = open_partition
        self._opened: dict[int, _Partition] = {}
        self._locks = [threading.Lock() for _ in range(count)]
        self._damage: dict[int, str] = {}
        self._silence, self._silent_until = "", -math.inf

    @property
    def damaged(self) -> list[int]:
        """Those whose file turned out to be damaged."""
        return sorted(self._damage)

    def is_open(self, number: int) -> bool:
        """Whether it has been opened."""
        return number in self._opened

    def __getitem__(self, number: int) -> _Partition:
        """Open it, or give the one that is open.

        Raises:
            DamagedFile: Its file is damaged; it is not read again.
            StorageError: The store does not answer, now or some seconds ago.
        """
        found = self._opened.get(number)
        if found is not None:
            return found
        with self._locks[number]:
            found = self._opened.get(number)
            if found is None:
                found = self._opened[number] = self._first(number)
            return found

    def _first(self, number: int) -> _Partition:
        if number in self._damage:
            raise DamagedFile(self._damage[number])
        if time.monotonic() < self._silent_until:  # threads that wait for the store serve nobody
            raise StorageError(self._silence)
        try:
            return _Partition(self._open(number))
        except DamagedFile as error:
            self._damage[number] = str(error)
            raise
        except StorageError as error:
            self._silence = str(error)
            self._silent_until = time.monotonic() + RETRY_SECONDS
            raise


class UserStore(UserIds):
    """The users of a bundle by dense and raw ids, with their rows and what they have done.

    Args:
        numbering: Which dense ids the users of each partition have.
        known: How many users, the first ones, the model knows.
        items: Items that have an id.
        text: Whether raw ids are text; otherwise they are integers.
        open_partition: Gives the tensors of a partition; called when it is first used.
    """

    def __init__(
        self,
        numbering: DenseRanges,
        known: int,
        items: int,
        text: bool,
        open_partition: Callable[[int], Mapping[str, Tensor]],
    ) -> None:
        self.numbering, self.known, self._items, self._text = numbering, known, items, text
        self._partitions = _Partitions(numbering.partitions, open_partition)
        self._first = numbering.first
        self._starts = np.cumsum(numbering.counts, axis=1) - numbering.counts
        self._flat = self._first.T.ravel()
        # For one user, as most requests have, Python's lists are several times faster.
        self._flat_list, self._start_list = self._flat.tolist(), self._starts.tolist()
        # Who asks for a list asks twice here, and soon again; of one id a hash by Arrow takes long.
        self._partition_of_one = lru_cache(PLACES_KEPT, typed=True)(
            lambda raw: self._find_partitions([raw])[0]
        )

    @property
    def text(self) -> bool:
        """Whether raw ids are text; otherwise they are integers."""
        return self._text

    def __len__(self) -> int:
        return self.numbering.users

    @property
    def damaged(self) -> list[int]:
        """Partitions whose file turned out to be damaged."""
        return self._partitions.damaged

    # ------------------------------------------------------------------------------------- ids

    def encode_one(self, raw: RawId) -> int:
        """Dense id of one raw id, NONE if there is none."""
        return int(self.encode_all([raw])[0])

    def encode_all(self, raw: Sequence[RawId]) -> Ids:
        """(U,) dense ids of raw ids of either kind, NONE for those that there are not."""
        pairs = zip(raw, self._partition_of(raw), strict=True)
        return np.array([NONE if p == NONE else self._dense(r, p) for r, p in pairs], np.int64)

    def at_hand(self, raw: Sequence[RawId]) -> list[bool]:
        """Whether each of these users is found without opening a partition."""
        return [p == NONE or self._partitions.is_open(p) for p in self._partition_of(raw)]

    def _partition_of(self, raw: Sequence[RawId]) -> list[int]:
        """(U,) the partition that would hold each raw id; NONE if it can be no id."""
        if len(raw) == 1:
            return [self._partition_of_one(raw[0])]
        return self._find_partitions(raw)

    def _find_partitions(self, raw: Sequence[RawId]) -> list[int]:
        found = [NONE] * len(raw)
        fits = [
            n
            for n, r in enumerate(raw)
            if isinstance(r, str) == self.text and (isinstance(r, str) or 0 <= r < ID_LIMIT)
        ]
        column = pa.array([raw[n] for n in fits], pa.string() if self.text else pa.int64())
        where = partition_of(id_hash(column), self.numbering.partitions)
        for n, partition in zip(fits, where.tolist(), strict=True):
            found[n] = partition
        return found

    def _dense(self, raw: RawId, partition: int) -> int:
        counts = self.numbering.counts[partition].tolist()
        for group, count in enumerate(counts):
            if count:
                begin = int(self._starts[partition, group])
                at = self._partitions[partition].place(raw, begin, begin + count)
                if at != NONE:
                    return int(self._first[partition, group]) + at - begin
        return NONE

    def first(self, count: int) -> list[RawId]:
        """The raw ids of the first dense ids."""
        return self.raw_of(np.arange(min(count, len(self))))

    def raw_of(self, dense: NDArray[np.integer]) -> list[RawId]:
        """The raw ids of (U,) dense ids."""
        partition, row = self._places(dense.astype(np.int64))
        found = zip(partition.tolist(), row.tolist(), strict=True)
        return [self._partitions[p].raw(r) for p, r in found]

    def _places(self, users: Ids) -> tuple[Ids, Ids]:
        """(U,) partition of each user, and (U,) row in it."""
        run = np.searchsorted(self._flat, users, side="right") - 1
        group, partition = np.divmod(run, self.numbering.partitions)
        return partition, users - self._flat[run] + self._starts[partition, group]

    def _place(self, user: int) -> tuple[_Partition, int]:
        """The partition of one user, and the row in it."""
        run = bisect_right(self._flat_list, user) - 1
        group, partition = divmod(run, self.numbering.partitions)
        row = user - self._flat_list[run] + self._start_list[partition][group]
        return self._partitions[partition], row

    # -------------------------------------------------------------------------- rows, histories

    def rows(self, table: str, users: Ids) -> NDArray[np.float32]:
        """(U, D) rows of a table of the model, of one user or more."""
        if len(users) == 1:
            here, place = self._place(int(users[0]))
            found = here.arrays[f"{TABLE}{table}"][[place]]  # a copy: the file may not be written
            with as_recray_error(f"a partition of users is damaged: {table}", DamagedFile):
                check_rows(table, found)
            return found
        partition, row = self._places(users)
        parts = [(p, np.flatnonzero(partition == p)) for p in np.unique(partition).tolist()]
        each = [(at, self._partitions[p].arrays[f"{TABLE}{table}"][row[at]]) for p, at in parts]
        with as_recray_error(f"a partition of users is damaged: {table}", DamagedFile):
            for _, values in each:
                check_rows(table, values)
        if len(each) == 1:
            return each[0][1]
        out = np.empty((len(users), each[0][1].shape[1]), np.float32)
        for at, values in each:
            out[at] = values
        return out

    def interactions(self, users: Ids) -> tuple[Ids, Ratings, NDArray[np.int8]]:
        """What (U,) users have done.

        Returns:
            (U + 1,) where the rows of each begin and end; (R,) rows, in their order, whose `user`
            is the place in `users`; and (R,) int8 code of schema.INTERACTION_PARTS of each.
        """
        if len(users) == 1:
            here, row = self._place(int(users[0]))
            joined = here.history(row)
            counts = np.array([len(joined[ITEM])])
        else:
            places = zip(*map(np.ndarray.tolist, self._places(users)), strict=True)
            each = [self._partitions[p].history(row) for p, row in places]
            counts = np.array([len(one[ITEM]) for one in each], np.int64)
            names = [name for name in HISTORY if each and all(name in one for one in each)]
            joined = {name: np.concatenate([one[name] for one in each]) for name in names}
        if joined:
            with as_recray_error("a partition of users is damaged", DamagedFile):
                check_histories(joined, self._items)
        ends = np.concatenate([[0], counts.cumsum()])
        return ends, _ratings(joined, counts), joined.get(PART, np.zeros(0, np.int8))

    def table(self, name: str, size: int) -> "StoredRows":
        """A table of the model with rows of that size, which are looked up here."""
        return StoredRows(self, name, size)


def _ratings(columns: Mapping[str, NDArray[Any]], counts: Ids) -> Ratings:
    user = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    time = columns.get(TIME, np.full(len(user), schema.UNKNOWN_TIME))
    item = columns.get(ITEM, np.zeros(0, np.int32))
    rating = columns.get(RATING, np.zeros(0, np.float32))
    return Ratings(user, item, rating, time, columns.get(PLACE))


class StoredRows(nn.Module):
    """Stands in a model for an embedding table of users.

    Args:
        store: Where the rows are.
        name: The table's name.
        embedding_dim: Size of a row.
    """

    def __init__(self, store: UserStore, name: str, embedding_dim: int) -> None:
        super().__init__()
        self._store, self._name, self.embedding_dim = store, name, embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        """(U,) int64 dense ids to (U, D) rows."""
        if not len(ids):
            return torch.zeros(0, self.embedding_dim)
        return torch.from_numpy(np.ascontiguousarray(self._store.rows(self._name, ids.numpy())))
