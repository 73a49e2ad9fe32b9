"""The users of a bundle: written in partitions, and read, one by one or all of them.

users.json                     DenseRanges, the kind of raw ids, and the model's tables
users/part-*.safetensors       see user_parts
"""

# Shape letters: U = users, R = ratings, D = size of a row.

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from recray import schema
from recray.data.dataset import Prepared, Ratings
from recray.data.ids import IdMap, id_hash
from recray.errors import DamagedFile
from recray.inference.bundle_checks import checked
from recray.inference.checked_tables import refuse_nulls
from recray.inference.user_parts import (
    END,
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
    contents,
    part_file,
    partition_of,
)
from recray.inference.user_parts import FOLDER as PARTS
from recray.inference.users_of_before import read_ids, read_interactions
from recray.storage import Folder, as_recray_error
from recray.storage.tensors import as_bytes, tensors_in

FILE = "users.json"
Count = Annotated[int, Field(ge=0, lt=2**31)]


class UsersFile(BaseModel):
    """Content of users.json.

    Args:
        counts: Users of each partition in each group, as DenseRanges has them.
        text: Whether raw ids are text.
        tables: Names of the model's tables of users, and the size of their rows.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    counts: list[Annotated[list[Count], Field(min_length=3, max_length=3)]]
    text: bool
    tables: dict[str, Annotated[int, Field(ge=1)]]

    @classmethod
    def read(cls, folder: Folder) -> Self:
        """Read that of a bundle.

        Raises:
            DamagedFile: It says something else.
        """
        found = checked(cls, folder.read_json(FILE), f"{folder}/{FILE}")
        if not found.counts or 256 % len(found.counts):
            raise DamagedFile(f"{folder}/{FILE} is damaged: {len(found.counts)} partitions")
        return found

    @property
    def numbering(self) -> DenseRanges:
        """Which dense ids the users of each partition have."""
        return DenseRanges(np.array(self.counts, np.int64))


def write_users(
    folder: Folder,
    prepared: Prepared,
    rows: Ratings,
    part: NDArray[np.int8],
    tables: Mapping[str, Tensor],
) -> None:
    """Write the users of a data set.

    Args:
        folder: Of the bundle.
        prepared: The data set.
        rows: (R,) all interactions, sorted as Ratings are.
        part: (R,) code of schema.INTERACTION_PARTS of each.
        tables: The served fit's tables of users by name, (U or fewer, D).
    """
    raw = prepared.user_ids.column()
    ends = prepared.users, prepared.fit("train+valid").users, len(raw)
    numbering = _numbering(raw, ends, prepared.buckets)
    every = contents(raw, numbering, rows, part, tables)
    for partition, tensors in enumerate(every):
        folder.write_bytes(part_file(partition), safetensors.torch.save(tensors))
    facts = UsersFile(
        counts=numbering.counts.tolist(),
        text=prepared.user_ids.text,
        tables={name: table[:1].numel() for name, table in tables.items()},
    )
    folder.write_json(FILE, facts.model_dump())


def _numbering(raw: pa.Array, ends: tuple[int, int, int], partitions: int) -> DenseRanges:
    """By the data set's partitions; all in one where an earlier version numbered by id alone."""
    where = partition_of(id_hash(raw), partitions)
    groups = zip((0, *ends), ends, strict=False)
    by_partition = all((np.diff(where[begin:end]) >= 0).all() for begin, end in groups)
    return DenseRanges.of(raw, ends, partitions if by_partition else 1)


def open_partition(
    folder: Folder, content: pa.Buffer, facts: UsersFile, partition: int
) -> dict[str, Tensor]:
    """The tensors of a partition, as views of its file's content. Their values are looked at when
    they are used: see check_histories and check_rows.

    Args:
        folder: Of the bundle.
        content: Of the file.
        facts: users.json.
        partition: Its number.

    Raises:
        DamagedFile: They are not those that there must be.
    """
    try:
        tensors = tensors_in(as_bytes(content))
        _check(tensors, facts, sum(facts.counts[partition]))
    except ValueError as error:
        raise DamagedFile(f"{folder}/{part_file(partition)} is damaged: {error}") from error
    return tensors


def _check(tensors: Mapping[str, Tensor], facts: UsersFile, users: int) -> None:
    """Compare types, shapes and ends, so that nothing is looked up outside.

    Raises:
        ValueError: One is wrong.
    """
    raw = {RAW: torch.uint8, RAW_END: torch.int64} if facts.text else {RAW: torch.int64}
    kinds = {**raw, END: torch.int64, ITEM: torch.int32, RATING: torch.float32, PART: torch.int8}
    kinds |= {f"{TABLE}{name}": torch.float32 for name in facts.tables}
    optional = {TIME: torch.int64, PLACE: torch.int32}
    for name, kind in (kinds | {n: k for n, k in optional.items() if n in tensors}).items():
        if name not in tensors or tensors[name].dtype != kind:
            raise ValueError(f"it lacks {name} of {kind}")
    rows = len(tensors[ITEM])
    sizes = {RATING: rows, PART: rows, TIME: rows, PLACE: rows, END: users}
    sizes |= {RAW_END: users} if facts.text else {RAW: users}
    for name, size in sizes.items():
        if name in tensors and tensors[name].shape != (size,):
            raise ValueError(f"{name} has the shape {tuple(tensors[name].shape)}, not ({size},)")
    _check_ends(tensors[END], rows, END)
    if facts.text:
        _check_ends(tensors[RAW_END], len(tensors[RAW]), RAW_END)
    for name, size in facts.tables.items():
        table = tensors[f"{TABLE}{name}"]
        if table.dim() != 2 or table.shape != (users, size):
            raise ValueError(f"{name} has the shape {tuple(table.shape)}, not ({users}, {size})")


def _check_ends(ends: Tensor, last: int, name: str) -> None:
    found = ends.numpy()
    if (np.diff(found, prepend=0) < 0).any() or (found[-1] if len(found) else 0) != last:
        raise ValueError(f"{name} does not ascend to {last}")


@dataclass(frozen=True)
class Everybody:
    """The users of a bundle, all in memory.

    Args:
        user_ids, item_ids: Raw and dense ids; they do not say which of them the model knows.
        rows: (R,) all interactions, sorted as Ratings are.
        part: (R,) int8 code of schema.INTERACTION_PARTS of each.
        tables: The served fit's tables of users by name, (U, D), where they lie here; 0 for users
            unknown to it.
    """

    user_ids: IdMap
    item_ids: IdMap
    rows: Ratings
    part: NDArray[np.int8]
    tables: dict[str, Tensor]

    @classmethod
    def empty(cls, items: pa.Table) -> Self:
        """Nobody at all, beside the items of items.parquet."""
        ids = IdMap(np.zeros(0, np.int64), 0), IdMap.of(items["raw_item"], len(items))
        return cls(*ids, Ratings.of(schema.RATINGS.empty_table()), np.zeros(0, np.int8), {})

    @classmethod
    def read(cls, folder: Folder, items: pa.Table) -> Self:
        """Read all partitions, or the tables of a bundle that an earlier version wrote.

        Args:
            folder: Of the bundle.
            items: items.parquet.

        Raises:
            DamagedFile: A file is missing or damaged.
        """
        if not folder.exists(FILE):
            ids = read_ids(folder, len(items))
            return cls(*ids, *read_interactions(folder, len(ids[0]), len(items)), {})
        facts = UsersFile.read(folder)
        refuse_nulls(items, ["raw_item"], f"{folder}/items.parquet")
        partitions = range(len(facts.counts))
        parts = [
            open_partition(folder, folder.read_buffer(part_file(p)), facts, p) for p in partitions
        ]
        dense = np.concatenate([facts.numbering.users_of(p) for p in partitions])
        order = np.empty(len(dense), np.int64)  # the place in the parts of each dense id
        order[dense] = np.arange(len(dense))
        tables = {
            name: torch.cat([part[f"{TABLE}{name}"] for part in parts])[torch.from_numpy(order)]
            for name in facts.tables
        }
        rows, codes = _rows(parts, order)
        with as_recray_error(f"{folder}/{PARTS} is damaged", DamagedFile):
            check_histories({ITEM: rows.item, RATING: rows.rating, PART: codes}, len(items))
            for name, table in tables.items():
                check_rows(name, table.numpy())
        item_ids = IdMap.of(items["raw_item"], len(items))
        return cls(_ids(parts, order, facts.text), item_ids, rows, codes, tables)


def _ids(parts: list[dict[str, Tensor]], order: Any, text: bool) -> IdMap:
    if not text:
        return IdMap(torch.cat([part[RAW] for part in parts]).numpy()[order], len(order))
    texts: list[str] = []
    for part in parts:
        whole, begin = part[RAW].numpy().tobytes(), 0
        for end in part[RAW_END].tolist():
            texts.append(whole[begin:end].decode())
            begin = end
    return IdMap(np.array(texts, object)[order], len(order))


def _rows(parts: list[dict[str, Tensor]], order: Any) -> tuple[Ratings, NDArray[np.int8]]:
    counts = np.concatenate([np.diff(part[END].numpy(), prepend=0) for part in parts])
    begin = np.cumsum(counts) - counts
    own = counts[order]
    cells = np.arange(own.sum()) + np.repeat(begin[order] - (np.cumsum(own) - own), own)
    columns = {
        name: torch.cat([part[name] for part in parts]).numpy()[cells]
        for name in (ITEM, RATING, TIME, PLACE, PART)
        if all(name in part for part in parts)
    }
    user = np.repeat(np.arange(len(order), dtype=np.int32), own)
    time = columns.get(TIME, np.full(len(user), schema.UNKNOWN_TIME))
    rows = Ratings(user, columns[ITEM], columns[RATING], time, columns.get(PLACE))
    return rows, columns[PART]
