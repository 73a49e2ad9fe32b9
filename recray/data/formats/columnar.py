"""Open parquet, Arrow (Feather) and ORC files, wherever they are stored, and read them in pieces.

A file is called damaged only where its bytes are; what its columns hold is another matter, see
tables.py.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recray.data.formats.layout import FileKind
from recray.errors import RecrayError
from recray.storage import open_input

CHUNK_ROWS = 1 << 20
"""Rows of a file that are held at once, where its format can be read so."""


class TableFile(Protocol):
    """An open file of typed columns.

    Args:
        schema: Its columns.
        pieces: Row groups, batches or stripes that can be read by themselves.
    """

    schema: pa.Schema
    pieces: int

    def batches(
        self, start: int, stop: int, names: Sequence[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Columns of the pieces start..stop-1, where it can be so many rows at a time."""


@contextmanager
def open_table(path: str, kind: FileKind) -> Iterator[TableFile]:
    """Open a file of typed columns.

    Raises:
        RecrayError: It is damaged, as its end or what is read inside the block shows.
    """
    kinds: dict[str, Any] = {"parquet": _Parquet, "arrow": _Arrow, "orc": _Orc}
    with closing(open_input(path)) as stream:
        with _reading(path, kind):
            opened = kinds[kind](stream)
        yield _Checked(opened, path, kind)


class _Checked:
    """A file whose reader's complaints become one line."""

    def __init__(self, file: TableFile, path: str, kind: FileKind) -> None:
        self.schema, self.pieces = file.schema, file.pieces
        self._file, self._path, self._kind = file, path, kind

    def batches(
        self, start: int, stop: int, names: Sequence[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        batches = self._file.batches(start, stop, names, rows)
        while True:
            with _reading(self._path, self._kind):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


@contextmanager
def _reading(path: str, kind: FileKind) -> Iterator[None]:
    try:
        yield
    except pa.ArrowNotImplementedError as error:
        raise RecrayError(f"{path}: this {kind} file cannot be read: {error}") from error
    except (pa.ArrowException, OSError) as error:
        raise RecrayError(f"{path} is a damaged {kind} file: {error}") from error


class _Parquet:
    def __init__(self, stream: Any) -> None:
        self._file = pq.ParquetFile(stream, page_checksum_verification=True)
        self.schema, self.pieces = self._file.schema_arrow, self._file.num_row_groups

    def batches(
        self, start: int, stop: int, names: Sequence[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        pieces = list(range(start, stop))
        yield from self._file.iter_batches(rows, pieces, list(names), use_threads=False)


class _Arrow:
    """Arrow's file format, which Feather is as well, and its stream format."""

    def __init__(self, stream: Any) -> None:
        self._is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        self._file = pa.ipc.open_file(stream) if self._is_file else pa.ipc.open_stream(stream)
        self.schema = self._file.schema
        self.pieces = self._file.num_record_batches if self._is_file else 1

    def batches(
        self, start: int, stop: int, names: Sequence[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        top = [name for name in self.schema.names if name in names or _holds(name, names)]
        read = map(self._file.get_batch, range(start, stop)) if self._is_file else self._file
        for batch in read:
            chosen = batch.select(top)
            yield from (chosen.slice(row, rows) for row in range(0, len(chosen), rows))


class _Orc:
    def __init__(self, stream: Any) -> None:
        from pyarrow import orc  # not in every build of pyarrow

        self._file = orc.ORCFile(stream)
        self.schema, self.pieces = self._file.schema, self._file.nstripes

    def batches(
        self, start: int, stop: int, names: Sequence[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        for stripe in range(start, stop):
            batch = self._file.read_stripe(stripe, list(names))
            yield from (batch.slice(row, rows) for row in range(0, len(batch), rows))


# ------------------------------------------------------------------------------ nested columns


def _holds(struct: str, names: Sequence[str]) -> bool:
    return any(name.startswith(f"{struct}.") for name in names)


def names_of(schema: pa.Schema) -> list[str]:
    """The columns' names; fields inside a column stand as `column.field`."""
    names = []
    for field in schema:
        names.append(field.name)
        if pa.types.is_struct(field.type):
            inner = names_of(pa.schema(list(field.type)))
            names.extend(f"{field.name}.{name}" for name in inner)
    return names


def column_of(table: Any, name: str) -> pa.Array:
    """A column of a table or batch by a name of `names_of`, as one array."""
    if name in table.schema.names:
        column = table.column(name)
    else:
        top = next(n for n in table.schema.names if name.startswith(f"{n}."))
        column = pc.struct_field(table.column(top), name.removeprefix(f"{top}.").split("."))
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
