"""Tables of a bundle that somebody else wrote, compared with its ids before they take memory.

A parquet file of 6 MB can hold 400 million rows, and one text can stand in a million of them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recray import schema
from recray.data.dataset import Ratings
from recray.errors import DamagedFile
from recray.models.base import refuse_outside
from recray.storage import Folder, as_recray_error

EXPANSION, SMALL_BYTES = 100, 64 << 20
"""A table may need so many times the bytes of its file in memory, and so many in any case. Real
ones need 3 to 20 times."""
METADATA_ENTRIES = 100_000
"""Columns, row groups and the like that the footer of a parquet file may list."""


def read_table(folder: Folder, name: str, columns: Mapping[str, tuple[Any, ...]]) -> pa.Table:
    """Read a table whose file must not need far more memory than it has bytes.

    Args:
        folder: The bundle.
        name: The file.
        columns: The types that each of the needed columns may have. Others are read as they are.

    Raises:
        DamagedFile: It is not parquet, lacks a column or has one of another type, or is a few bytes
            that claim to be many rows.
    """
    content, path = folder.read_buffer(name), f"{folder}/{name}"
    most = max(SMALL_BYTES, EXPANSION * content.size)
    with as_recray_error(f"{path} is damaged", DamagedFile):
        file = pq.ParquetFile(
            pa.BufferReader(content), thrift_container_size_limit=METADATA_ENTRIES
        )
        _check_types(file.schema_arrow, columns)
        if (claimed := _claimed_bytes(file.metadata)) > most:
            raise ValueError(
                f"{content.size:,} bytes claim to be {file.metadata.num_rows:,} rows of "
                f"{claimed:,} bytes"
            )
        return _plain(file, content, most)


def read_items(folder: Folder) -> pa.Table:
    """items.parquet of a bundle, titles as large_string.

    Raises:
        DamagedFile: See read_table.
    """
    table = read_table(folder, "items.parquet", ITEMS)
    place = table.schema.get_field_index("title")
    return _compact(table.set_column(place, "title", table["title"].cast(pa.large_string())))


def _compact(table: pa.Table) -> pa.Table:
    """The table in one piece of memory that is as large as it must be: a million items take 105 MB,
    and 200 as parquet is read.
    """
    sizes = pa.MockOutputStream()
    _write_batch(table, sizes)
    piece = pa.allocate_buffer(sizes.size())
    _write_batch(table, pa.FixedSizeBufferWriter(piece))
    return pa.ipc.open_stream(piece).read_all()


def _write_batch(table: pa.Table, sink: pa.NativeFile) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def _check_types(found: pa.Schema, wanted: Mapping[str, tuple[Any, ...]]) -> None:
    for name, kinds in wanted.items():
        place = found.get_field_index(name)
        if place < 0:
            raise ValueError(f"it has no column {name}")
        if found.field(place).type not in kinds:
            raise ValueError(f"column {name} is {found.field(place).type}, not {kinds[0]}")


def _claimed_bytes(metadata: pq.FileMetaData) -> int:
    """Bytes of the columns in memory, texts by their places alone."""
    total: int = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        total += sum(8 * group.column(c).num_values for c in range(group.num_columns))
    return max(total, 8 * int(metadata.num_rows))


def _plain(file: pq.ParquetFile, content: pa.Buffer, most: int) -> pa.Table:
    """Read texts by their distinct values, and repeat these only where that stays in bounds."""
    leaves = [file.schema.column(n) for n in range(len(file.schema))]
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    table = pq.read_table(pa.BufferReader(content), use_threads=False, read_dictionary=texts)
    if sum(map(_text_bytes, table.columns)) > most:
        raise ValueError(f"{content.size:,} bytes repeat texts to more than {most:,} bytes")
    return table.cast(file.schema_arrow)


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Bytes of all texts of a column when each row has its own copy."""
    total = 0
    for chunk in column.chunks:
        values = chunk.flatten() if pa.types.is_list(chunk.type) else chunk
        if pa.types.is_dictionary(values.type) and len(values.dictionary):
            sizes = pc.binary_length(values.dictionary).to_numpy(zero_copy_only=False)
            rows = np.bincount(values.indices.drop_null().to_numpy(), minlength=len(sizes))
            total += int(np.nan_to_num(sizes).astype(np.float64) @ rows)
    return total


NUMBERS = {field.name: (field.type,) for field in schema.RATINGS}
"""Columns of interactions, and their types."""
PART = {"part": (schema.INTERACTIONS.field("part").type, pa.string())}
IDS = {"kind": (pa.string(),), "raw": (pa.int64(),), "text": (pa.string(),)}
ITEMS = {
    "raw_item": (pa.int64(), pa.string()),
    "title": (pa.string(),),
    "year": (pa.int32(),),
    "genres": (pa.list_(pa.string()),),
    "imdb": (pa.string(),),
    "tmdb": (pa.int64(),),
}


def refuse_nulls(table: pa.Table, names: Iterable[str], path: str) -> None:
    """Refuse a table that lacks a value in one of the columns.

    Raises:
        DamagedFile: It lacks one.
    """
    for name in names:
        if table[name].null_count:
            raise DamagedFile(f"{path} is damaged: column {name} lacks values")


def check_known(known: tuple[int, int], there: tuple[int, int], path: str) -> None:
    """Compare the users and items that a model is said to know with those that have an id.

    Raises:
        DamagedFile: It is said to know more.
    """
    for kind, count, ids in zip(("users", "items"), known, there, strict=True):
        if count > ids:
            raise DamagedFile(f"{path}/config.json says {count:,} {kind}, {ids:,} have an id")


def check_rows(rows: Ratings, users: int, items: int, path: str) -> None:
    """Compare interactions with the ids that there are.

    Raises:
        DamagedFile: A user or item has no id, a rating is no finite number, or the rows are not
            sorted by user.
    """
    with as_recray_error(f"{path} is damaged", DamagedFile):
        for name, ids, known in (("user", rows.user, users), ("item", rows.item, items)):
            refuse_outside(f"column {name}", ids, known)
        if not np.isfinite(rows.rating).all():
            raise ValueError("column rating has values that are not finite numbers")
        if (rows.user[1:] < rows.user[:-1]).any():
            raise ValueError("the rows are not sorted by user")
