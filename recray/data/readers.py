"""Ratings files: how their lines look, told from the head of a file, and reading them in chunks.

Workers read ranges of files, so that a large file is shared. A worker holds one chunk at a time.
"""

import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from recray.data import sample
from recray.data.archives import open_gzip, open_parquet, open_zip, reading
from recray.data.ids import ID_LIMIT
from recray.errors import RecrayError
from recray.schema import RAW_RATINGS
from recray.storage import open_input

COLUMN_NAMES = {
    "raw_user": "user userid user_id raw_user uid customer_id session_id".split(),
    "raw_item": (
        "item itemid item_id movieid movie_id movie raw_item iid product_id track_id".split()
    ),
    "rating": "rating score stars value".split(),
    "timestamp": "timestamp time ts unix_timestamp unixtime".split(),
}
"""Role to the names that a header may have for it, in lower case."""
IDS = ("raw_user", "raw_item")
MOVIELENS_SCALE = (0.5, 5.0)
"""Lowest and highest rating of MovieLens, in stars."""
INTEGER = re.compile(r"^[+-]?[0-9]+(\.0+)?$")
CHUNK_BYTES = 16 << 20
"""Bytes of a file that are held at once."""
RANGE_BYTES = 64 << 20
HEAD_BYTES = 64 << 10
"""Bytes from which the columns are recognised."""

Delimiter = Literal["\t", "::", ",", ";"]
DELIMITERS: tuple[Delimiter, ...] = ("\t", "::", ";", ",")
"""In the order in which they are looked for; the comma, which titles hold as well, comes last."""
Columns = Mapping[Any, str]
"""Role (user, item, rating, timestamp) to a column's name or place."""
IdKind = Literal["auto", "integer", "text"]
FileKind = Literal["plain", "gzip", "zip", "parquet", "sample"]


@dataclass(frozen=True)
class RatingsFormat:
    """How the lines of a ratings file look.

    Args:
        delimiter: What stands between two fields.
        columns: The meaning of each field by position, a name of schema.RAW_RATINGS or "" for a
            field that is not used.
        header: Whether the first line names the columns.
        scale: Lowest and highest allowed rating, in stars; None allows every finite number.
        text: Which of raw_user and raw_item hold text; the others hold integers.
        names: The columns' names in the file, as a parquet reader needs them.
    """

    delimiter: Delimiter
    columns: tuple[str, ...]
    header: bool = False
    scale: tuple[float, float] | None = MOVIELENS_SCALE
    text: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()

    @property
    def implicit(self) -> bool:
        """Whether the file has no rating column; every row then counts as 1.0."""
        return "rating" not in self.columns

    @property
    def raw_schema(self) -> pa.Schema:
        """schema.RAW_RATINGS, with ids as string where they are text."""
        return pa.schema(
            [pa.field(f.name, pa.string()) if f.name in self.text else f for f in RAW_RATINGS]
        )

    def limits(self, role: str) -> tuple[float, float]:
        """The lowest and the highest value that a number of this role may have."""
        if role != "rating":
            return 0, ID_LIMIT - 1
        largest = float(np.finfo(np.float32).max)
        return self.scale or (-largest, largest)

    def as_raw(self, table: pa.Table) -> pa.Table:
        """Columns of checked values as raw_schema: 1.0 for missing ratings, null for times."""
        columns = []
        for field in self.raw_schema:
            if field.name in table.column_names:
                columns.append(table[field.name].cast(field.type))
            elif field.name == "rating":
                columns.append(pa.chunked_array([np.ones(len(table), np.float32)]))
            else:
                columns.append(pa.chunked_array([pa.nulls(len(table), field.type)]))
        return pa.table(columns, schema=self.raw_schema)


ML_100K = RatingsFormat("\t", ("raw_user", "raw_item", "rating", "timestamp"))
ML_1M = RatingsFormat("::", ("raw_user", "raw_item", "rating", "timestamp"))
MOVIELENS = {"u.data": ML_100K, "ratings.dat": ML_1M}
"""Name of a file without a header to how its lines look."""


@dataclass(frozen=True)
class RatingsFile:
    """One file of ratings.

    Args:
        name: Its name as shown to people.
        path: Local path or URI of the file, or of the archive that holds it.
        kind: How it is read.
        layout: How its lines look.
        member: Its name inside a zip archive.
        part: The split that all of its rows belong to, where the source says so; logged: its
            ratings came after the source, see feedback.py.
    """

    name: str
    path: str
    kind: FileKind
    layout: RatingsFormat
    member: str = ""
    part: Literal["", "train", "test", "logged"] = ""


@dataclass(frozen=True)
class FileRange:
    """A part of a ratings file that one worker reads.

    Args:
        file: The file.
        start: First byte that belongs to the range, or first row group of a parquet file.
        stop: End of the range; None means the file's end.
    """

    file: RatingsFile
    start: int = 0
    stop: int | None = None


# --------------------------------------------------------------------------------- columns


def format_of_text(file: str, head: bytes, columns: Columns | None = None) -> RatingsFormat:
    """Recognise the lines of a text file.

    Args:
        file: Its name.
        head: Its first lines.
        columns: Role (user, item, rating, timestamp) to the column's name, or to its place
            counted from 1 in a file without a header.

    Raises:
        RecrayError: No user column or no item column.
    """
    line = head.split(b"\n", 1)[0]
    if columns is None:
        known = MOVIELENS.get(file.rsplit("/", 1)[-1])
        if known is not None:
            return known
        for layout in MOVIELENS.values():
            if re.match(rb"\d+" + (layout.delimiter.encode() + rb"[\d.]+") * 3 + rb"\s*$", line):
                return layout
    text = line.decode("utf-8-sig", errors="replace").strip()
    delimiter: Delimiter = next((d for d in DELIMITERS if d in text), ",")
    names = [name.strip().strip('"') for name in text.split(delimiter)]
    if columns is not None and all(place.isdigit() for place in columns.values()):
        return _format_of_places(file, delimiter, len(names), columns)
    return format_of_names(file, names, columns, delimiter)


def _format_of_places(
    file: str, delimiter: Delimiter, fields: int, columns: Columns
) -> RatingsFormat:
    roles = [""] * fields
    for role, place in columns.items():
        if not 1 <= int(place) <= fields:
            raise RecrayError(f"--columns {role}={place}: {file} has {fields} columns, from 1")
        roles[int(place) - 1] = _role(role)
    _check_ids(file, roles, [str(n) for n in range(1, fields + 1)])
    return RatingsFormat(delimiter, tuple(roles), header=False, scale=None)


def _role(word: str) -> str:
    return f"raw_{word}" if f"raw_{word}" in IDS else word


def format_of_names(
    file: str,
    names: Sequence[str],
    columns: Columns | None = None,
    delimiter: Delimiter = ",",
) -> RatingsFormat:
    """Recognise columns by their names, in any case.

    Raises:
        RecrayError: No user column or no item column, or a name in `columns` is not there.
    """
    lower = [name.lower() for name in names]
    chosen = {_role(role): name for role, name in (columns or {}).items()}
    for role, name in chosen.items():
        if name.lower() not in lower:
            raise RecrayError(
                f"--columns {role.removeprefix('raw_')}={name}: {file} has no such column; "
                f"its columns are {', '.join(names)[:200]}"
            )
    places = {lower.index(name.lower()): role for role, name in chosen.items()}
    taken = set(chosen)
    for place, name in enumerate(lower):
        role = next((r for r, known in COLUMN_NAMES.items() if name in known), "")
        if role and role not in taken and place not in places:
            places[place] = role
            taken.add(role)
    roles = [places.get(place, "") for place in range(len(names))]
    _check_ids(file, roles, names)
    scale = MOVIELENS_SCALE if "movieid" in lower else None
    return RatingsFormat(delimiter, tuple(roles), header=True, scale=scale, names=tuple(names))


def _check_ids(file: str, roles: Sequence[str], names: Sequence[str]) -> None:
    for role in IDS:
        if role not in roles:
            word = role.removeprefix("raw_")
            raise RecrayError(
                f"{file} has no {word} column: its columns are {', '.join(names)[:200]}; a {word} "
                f"column is named one of {', '.join(COLUMN_NAMES[role])}, or told by "
                f"--columns {word}=NAME (in a file without a header by its place, from 1)"
            )


def text_roles(kind: IdKind, first: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """Which ids are text: by the setting, or where most of the first ones are no integers.

    Args:
        kind: data.ids.
        first: raw_user and raw_item to the first ids of the source.
    """
    if kind != "auto":
        return frozenset(IDS if kind == "text" else ())
    text = set()
    for role, values in first.items():
        filled = [value for value in values if value]
        if 2 * sum(bool(INTEGER.match(value)) for value in filled) < len(filled):
            text.add(role)
    return frozenset(text)


def first_ids(layout: RatingsFormat, head: bytes) -> dict[str, list[str]]:
    """The ids in a file's first lines, as they stand there."""
    lines = head.decode("utf-8", errors="replace").split("\n")[int(layout.header) :]
    rows = [line.rstrip("\r").split(layout.delimiter) for line in lines if line.strip()]
    return {
        role: [row[place].strip(' "\ufeff') for row in rows if place < len(row)]
        for role in IDS
        for place in [layout.columns.index(role)]
    }


# ----------------------------------------------------------------------------------- lines


def file_ranges(file: RatingsFile) -> list[FileRange]:
    """Cut a file into ranges; only plain and parquet files can be read from the middle on."""
    if file.kind == "parquet":
        with open_parquet(file.path) as opened:
            return [FileRange(file, n, n + 1) for n in range(opened.num_row_groups)]
    if file.kind != "plain":
        return [FileRange(file)]
    with closing(open_input(file.path)) as stream:
        size = stream.size()
        begin = 0
        if file.layout.header:
            head = stream.read(min(size, HEAD_BYTES))
            begin = head.index(b"\n") + 1 if b"\n" in head else size
    edges = [*range(begin, size, RANGE_BYTES), size]
    return [FileRange(file, a, b) for a, b in itertools.pairwise(edges)]


def chunks(file_range: FileRange) -> Iterator[tuple[int, bytes]]:
    """Yield whole lines of the file range in bounded chunks, with the byte each begins at.

    A header line is left out. A line belongs to the range in which it begins.

    Raises:
        RecrayError: The file is damaged.
    """
    file = file_range.file
    if file.kind == "sample":
        content = sample.files()[file.name]
        begin = content.index(b"\n") + 1
        yield begin, content[begin:]
    elif file.kind == "zip":
        with (
            open_zip(file.path) as archive,
            reading(file.path),
            archive.open(file.member) as stream,
        ):
            yield from _lines_from_begin(stream, file.layout)
    elif file.kind == "gzip":
        with reading(file.path), closing(open_gzip(file.path)) as unpacked:
            yield from _lines_from_begin(unpacked, file.layout)
    else:
        with io.BufferedReader(open_input(file.path)) as stream:
            begin = file_range.start
            if begin > 0:  # the byte before tells whether a line begins right here
                stream.seek(begin - 1)
                begin = begin - 1 + len(stream.readline())
            yield from _whole_lines(stream, begin, file_range.stop)


def _lines_from_begin(stream: Any, layout: RatingsFormat) -> Iterator[tuple[int, bytes]]:
    yield from _whole_lines(stream, len(stream.readline()) if layout.header else 0, None)


def _whole_lines(stream: Any, position: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    while stop is None or position < stop:
        size = CHUNK_BYTES if stop is None else min(CHUNK_BYTES, stop - position)
        content = stream.read(size)
        if not content:
            return
        if not content.endswith(b"\n"):
            content += stream.readline()
        yield position, content
        position += len(content)
