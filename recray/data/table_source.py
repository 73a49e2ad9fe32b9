"""A table in memory as a source: of pandas, pyarrow, polars, or anything that Arrow can read.

Its columns keep their types: they go to a parquet file beside the output, which every node reads in
ranges as any parquet file of the user's. No value passes through text.
"""

import hashlib
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recray import schema
from recray.config import Settings
from recray.data.formats.layout import COLUMN_NAMES, format_of_names
from recray.data.ids import ID_LIMIT
from recray.data.lists.beside import SideLists
from recray.data.lists.items import year_of
from recray.data.source import Source, detect_source
from recray.errors import RecrayError
from recray.storage import UNFINISHED, Folder, is_uri

Table: TypeAlias = Any
"""pandas.DataFrame, pyarrow.Table, RecordBatch or RecordBatchReader, or what gives Arrow data."""
NAME = "table"
"""Its name as a data set."""
FILE = "table.parquet"
ROWS = 1 << 20
"""Rows of a row group, which one task reads, and of a piece that is hashed."""
_BARS = re.compile(r"[|]")


@contextmanager
def table_source(
    ratings: Table, items: Table | None, out: str, settings: Settings
) -> Iterator[Source]:
    """Recognise a table of ratings, which lies in a file beside `out` while the block runs.

    Args:
        ratings: Its columns are recognised as those of a file; other columns are not read.
        items: Titles: item, title, genres and year, the first two needed.
        out: Folder of the data set to be made; every node reaches what lies beside it.
        settings: data.columns and data.ids are used.

    Raises:
        RecrayError: There is no user or item column, or a column holds values of several kinds.
    """
    if settings.split.kind == "given":
        raise RecrayError("split.kind=given needs a folder or archive with two files, not a table")
    used = _used_columns(ratings, settings)
    if not len(used):
        raise RecrayError("the table of ratings is empty: it has no rows")
    folder = _beside(Folder(out))
    try:
        with folder.write_stream(FILE) as stream:
            pq.write_table(used, stream, compression="zstd", row_group_size=ROWS)
        found = detect_source(f"{folder.path}/{FILE}", settings)
        movies = found.movies if items is None else items_of(items, settings, found.text)
        identity = hashlib.sha256()
        for table in (used, movies):
            _digest(table, identity)
        lists = found.lists if items is None else SideLists(movies, found.listed_users)
        yield replace(found, name=NAME, lists=lists, identity=identity.hexdigest())
    finally:
        folder.delete()


def _beside(out: Folder) -> Folder:
    """A folder of its own beside another one; where it is left over, `publish` removes it."""
    parent, _, name = out.path.rstrip("/").rpartition("/")
    prefix = "" if is_uri(out.path) else UNFINISHED
    return Folder(f"{parent}/{prefix}{name}-table-{uuid.uuid4().hex[:8]}")


def _used_columns(ratings: Table, settings: Settings) -> pa.Table:
    """The columns that mean something, by the names that the table gives them."""
    names, columns = _columns(ratings)
    layout = format_of_names("the table", names, settings.data.rating_columns)
    used = [place for place, role in enumerate(layout.columns) if role]
    return pa.table({names[place]: _arrow(names[place], columns[place]) for place in used})


def _columns(given: Table) -> tuple[list[str], list[Any]]:
    """Names and columns of any table; the named levels of a pandas index are columns, too."""
    if isinstance(given, pd.DataFrame):
        if any(name is not None for name in given.index.names):
            given = given.reset_index()
        names = [str(name) for name in given.columns]
        return names, [given.iloc[:, place] for place in range(len(names))]
    table = given.read_all() if isinstance(given, pa.RecordBatchReader) else pa.table(given)
    return table.column_names, table.columns


def _arrow(name: str, column: Any) -> pa.ChunkedArray:
    """A column as Arrow has it, its type kept; NaN of pandas is null.

    Raises:
        RecrayError: Its values are of several kinds, or of one that Arrow has not.
    """
    if isinstance(column, pa.ChunkedArray):
        return column
    try:
        made = pa.Array.from_pandas(column)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        kinds = sorted({type(value).__name__ for value in column.head(ROWS)})
        raise RecrayError(
            f"column {name!r} of the table holds values of the kinds {', '.join(kinds[:5])}; make "
            f"it one kind, such as frame[{name!r}].astype(str)"
        ) from error
    return made if isinstance(made, pa.ChunkedArray) else pa.chunked_array([made])


class _Hash:
    """A file that keeps no more than the hash of what is written."""

    closed = False

    def __init__(self, digest: "hashlib._Hash") -> None:
        self.write = digest.update

    def flush(self) -> None:
        """Nothing waits."""


def _digest(table: pa.Table, digest: "hashlib._Hash") -> None:
    """Add the content of a table to a hash: names, types and values, however it is cut."""
    plain = table.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(pa.PythonFile(_Hash(digest), mode="w"), plain.schema) as writer:
        writer.write_table(plain, max_chunksize=ROWS)


# ------------------------------------------------------------------------------------- items


def items_of(given: Table, settings: Settings, text: frozenset[str]) -> pa.Table:
    """A table of items as schema.movies; rows without an id or a title are left out.

    Args:
        given: item (or as data.columns says) and title, and genres (lists, or text between
            bars) and year where there are any.
        settings: data.columns.item also holds for it, if it has that column.
        text: Which ids of the source are text.

    Raises:
        RecrayError: It has no item or no title column.
    """
    names, columns = _columns(given)
    by_name = {name.lower(): column for name, column in zip(names, columns, strict=True)}
    told = (settings.data.columns or {}).get("item", "").lower()
    item = next((n for n in (told, *COLUMN_NAMES["raw_item"]) if n in by_name), None)
    if item is None or "title" not in by_name:
        raise RecrayError(
            f"the table of items has the columns {', '.join(names)[:200]}; an item column and a "
            "title are needed"
        )
    values = {
        name: _arrow(name, by_name[name]).combine_chunks()
        for name in (item, "title", "genres", "year")
        if name in by_name
    }
    raw = _text(values[item]) if "raw_item" in text else _integers(values[item])
    title = _text(values["title"])
    table = {
        "raw_item": raw,
        "title": title,
        "year": _years(values.get("year"), title),
        "genres": _genres(values.get("genres"), len(title)),
    }
    keep = pc.and_(pc.is_valid(raw), pc.is_valid(title))
    return _one_each(pa.table(table).filter(keep), "raw_item" in text)


def _one_each(table: pa.Table, text: bool) -> pa.Table:
    """The first row of each item by ascending id, as schema.movies."""
    place = pa.array(np.arange(len(table)))
    first = table.select(["raw_item"]).append_column("place", place)
    first = first.group_by("raw_item").aggregate([("place", "min")]).sort_by("raw_item")
    table = table.take(first["place_min"].combine_chunks())
    fields = schema.movies(text)
    for name in ("imdb", "tmdb"):
        table = table.append_column(name, pa.nulls(len(table), fields.field(name).type))
    return table.cast(fields)


def _text(column: pa.Array) -> pa.Array:
    """Text as it is, and numbers as Python writes them: 7 for 7.0 beside a gap."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):
        whole = pc.equal(pc.floor(column), column)
        if pc.all(whole).as_py() is not False:
            column = column.cast(pa.int64())
    return column.cast(pa.string())


def _integers(column: pa.Array) -> pa.Array:
    """Whole numbers 0..ID_LIMIT - 1 as int64, null for all else."""
    values: list[int | None] = []
    for value in column.to_pylist():
        try:
            whole = int(float(value)) if not isinstance(value, int | str) else int(value)
            fits = not isinstance(value, bool) and (isinstance(value, str) or whole == value)
        except (TypeError, ValueError, OverflowError):
            fits, whole = False, -1
        values.append(whole if fits and 0 <= whole < ID_LIMIT else None)
    return pa.array(values, pa.int64())


def _years(column: pa.Array | None, title: pa.Array) -> pa.Array:
    """The year of each item: its column's, else that in its title, else 0."""
    given = [None] * len(title) if column is None else _integers(column).to_pylist()
    return pa.array(
        [year or year_of(text or "") for year, text in zip(given, title.to_pylist(), strict=True)],
        pa.int32(),
    )


def _genres(column: pa.Array | None, rows: int) -> pa.Array:
    """The genres of each item: a list as it is, or text between bars."""
    given: Sequence[Any] = [None] * rows if column is None else column.to_pylist()
    lists = [_BARS.split(text) if isinstance(text, str) else text or [] for text in given]
    kept = [[str(g).strip() for g in names if g and str(g).strip()] for names in lists]
    return pa.array(kept, pa.list_(pa.string()))
