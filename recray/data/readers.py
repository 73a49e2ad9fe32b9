"""File ranges of ratings files to parsed rows: plain, gzip and parquet files, and members of a zip.

Nothing is ever unpacked to the disk, and no more than one chunk is held.
"""

import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recray import schema
from recray.data import sample
from recray.data.dialect import IDS, RatingsFormat
from recray.data.ids import ID_LENGTH, ID_LIMIT
from recray.data.parse import ParsedRatings, as_raw, check_fields, parse_ratings
from recray.errors import RecrayError
from recray.storage import open_input

CHUNK_BYTES = 16 << 20
CHUNK_ROWS = 1 << 20
MAX_UNPACKED = 4 << 30
MAX_RATIO = 100

FileKind = Literal["plain", "gzip", "zip", "parquet", "sample"]


@dataclass(frozen=True)
class RatingsFile:
    """One file of ratings.

    Args:
        name: Its name as shown to people.
        path: Local path or URI of the file, or of the archive that holds it.
        kind: How it is read.
        layout: How its lines look.
        member: Its name inside a zip archive.
        part: The split that all of its rows belong to, where the source says so; logged: ratings
            that came later, see logged.py.
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


def parsed(file_range: FileRange) -> Iterator[tuple[int, ParsedRatings]]:
    """Parse a file range in bounded chunks; yield each with the byte it begins at.

    A header line is left out and not counted as a line.

    Raises:
        RecrayError: The file is damaged or encrypted, or unpacks to an absurd size.
    """
    if file_range.file.kind == "parquet":
        for rows in _parquet(file_range):
            yield 0, rows
        return
    for begin, content in chunks(file_range):
        yield begin, parse_ratings(content, file_range.file.layout)


# ----------------------------------------------------------------------------------- lines


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
            yield from _from_begin(stream, file.layout)
    elif file.kind == "gzip":
        with reading(file.path), closing(open_gzip(file.path)) as unpacked:
            yield from _from_begin(unpacked, file.layout)
    else:
        with io.BufferedReader(open_input(file.path)) as stream:
            begin = file_range.start
            if begin > 0:  # the byte before tells whether a line begins right here
                stream.seek(begin - 1)
                begin = begin - 1 + len(stream.readline())
            yield from _whole_lines(stream, begin, file_range.stop)


def _from_begin(stream: Any, layout: RatingsFormat) -> Iterator[tuple[int, bytes]]:
    yield from _whole_lines(stream, len(stream.readline()) if layout.header else 0, None)


def _whole_lines(stream: Any, position: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    while stop is None or position < stop:
        wanted = CHUNK_BYTES if stop is None else min(CHUNK_BYTES, stop - position)
        content = stream.read(wanted)
        if not content:
            return
        if not content.endswith(b"\n"):
            content += stream.readline()
        yield position, content
        position += len(content)


# -------------------------------------------------------------------------------- archives


_DAMAGED = (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, zlib.error, lzma.LZMAError)


class reading:
    """Turn what zipfile and gzip raise for damaged or encrypted files into one line."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _DAMAGED):
            raise RecrayError(f"{self.path} is a damaged archive: {error}") from error
        if isinstance(error, RuntimeError) and "encrypted" in str(error):
            raise RecrayError(f"{self.path} is encrypted; give an open archive") from error


@contextmanager
def open_zip(path: str) -> Iterator[zipfile.ZipFile]:
    """Open an archive for reading from inside it; nothing is ever unpacked to the disk.

    Raises:
        RecrayError: It is truncated, no zip at all, or would unpack to an absurd size.
    """
    with closing(open_input(path)) as opened:
        stream: Any = opened
        try:
            archive = zipfile.ZipFile(stream)
        except (zipfile.BadZipFile, NotImplementedError, pa.ArrowInvalid) as error:
            raise RecrayError(f"{path} is a damaged zip archive: {error}") from error
        with archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            _refuse_bomb(path, unpacked, sum(member.compress_size for member in members))
            yield archive


def _refuse_bomb(path: str, unpacked: int, packed: int) -> None:
    if unpacked > MAX_UNPACKED or unpacked > MAX_RATIO * max(packed, 1 << 20):
        raise RecrayError(
            f"{path} would unpack to {unpacked:,} bytes; at most {MAX_UNPACKED:,} "
            f"and {MAX_RATIO} times its size are read"
        )


class _Counted(gzip.GzipFile):
    """A gzip file that refuses to grow without bound."""

    def __init__(self, path: str, stream: Any) -> None:
        super().__init__(fileobj=stream, mode="rb")
        self._path, self._packed, self._stream = path, stream.size(), stream

    def read(self, size: int | None = -1) -> bytes:
        """Bytes, as gzip gives them."""
        content = super().read(size)
        _refuse_bomb(self._path, self.tell(), self._packed)
        return content

    def close(self) -> None:
        """Close the file below, too."""
        super().close()
        self._stream.close()


def open_gzip(path: str) -> gzip.GzipFile:
    """Open a gzip file for reading."""
    return _Counted(path, open_input(path))


# --------------------------------------------------------------------------------- parquet


@contextmanager
def open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    """Open a parquet file.

    Raises:
        RecrayError: It is damaged, as its end or what is read inside the block shows.
    """
    with closing(open_input(path)) as stream:
        try:
            yield pq.ParquetFile(stream)
        except (pa.ArrowException, OSError) as error:
            raise RecrayError(f"{path} is a damaged parquet file: {error}") from error


def _parquet(file_range: FileRange) -> Iterator[ParsedRatings]:
    file = file_range.file
    columns = {
        role: name
        for role, name in zip(file.layout.columns, file.layout.names, strict=True)
        if role
    }
    with open_parquet(file.path) as opened:
        stop = opened.num_row_groups if file_range.stop is None else file_range.stop
        groups, names = list(range(file_range.start, stop)), list(columns.values())
        for batch in opened.iter_batches(CHUNK_ROWS, groups, names, use_threads=False):
            yield parse_table({r: batch[name] for r, name in columns.items()}, file.layout)


def parse_table(columns: dict[str, pa.Array], layout: RatingsFormat) -> ParsedRatings:
    """Check typed columns by the rules that hold for text.

    Args:
        columns: Role to (R,) values; times as seconds or as any of Arrow's times.
        layout: The scale, and which ids are text.

    Returns:
        The good rows; a rejected row's line is its number in the columns, its text the values.
    """
    columns = {role: _plain(role, column) for role, column in columns.items()}
    rows = len(next(iter(columns.values())))
    if all(_is_clean(role, column, layout) for role, column in columns.items()):
        table = as_raw(pa.table(columns), layout)
        return ParsedRatings(table, schema.REJECTED.remove(0).empty_table(), rows)
    texts = {
        role: pc.utf8_trim(pc.fill_null(column.cast(pa.string()), ""), ' "\ufeff')
        for role, column in columns.items()
    }
    table, reason = check_fields(texts, layout)
    bad = np.flatnonzero(reason != "")
    shown = pc.binary_join_element_wise(*(t.take(pa.array(bad)) for t in texts.values()), ",")
    rejected = {
        "line": bad,
        "byte": np.zeros(len(bad), np.int64),
        "text": pc.utf8_slice_codeunits(shown, 0, 200),
        "reason": pa.array(reason[bad].tolist(), pa.string()),
    }
    return ParsedRatings(table, pa.table(rejected), rows)


def _plain(role: str, column: pa.Array) -> pa.Array:
    """Numbers or strings: categories decoded, times in seconds."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
    if pa.types.is_temporal(kind):
        return column.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        return column.cast(pa.float64())
    return column


def _is_clean(role: str, column: pa.Array, layout: RatingsFormat) -> bool:
    """Whether every value is in order as it is; whatever else goes the way of text."""
    if column.null_count or role in layout.text:
        return role in layout.text and not column.null_count and _usable_texts(column)
    if role == "rating":
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            return False
        values = column.to_numpy(zero_copy_only=False)
        low, high = layout.scale or (-np.finfo(np.float32).max, np.finfo(np.float32).max)
        return not len(values) or bool(((values >= low) & (values <= high)).all())
    if not pa.types.is_integer(column.type):
        return False
    limits = pc.min_max(column)
    return not len(column) or 0 <= limits["min"].as_py() <= limits["max"].as_py() < ID_LIMIT


def _usable_texts(column: pa.Array) -> bool:
    if not pa.types.is_string(column.type):
        return False
    trimmed = pc.utf8_trim(column, ' "\ufeff')
    length = pc.min_max(pc.utf8_length(column))
    return not len(column) or (
        pc.all(pc.equal(trimmed, column)).as_py()
        and 0 < length["min"].as_py() <= length["max"].as_py() <= ID_LENGTH
    )


def ids_of_table(table: pa.Table, layout: RatingsFormat) -> dict[str, list[str]]:
    """The ids in a table's first rows, as text."""
    names = dict(zip(layout.columns, layout.names, strict=True))
    return {
        role: [
            str(v)
            for v in _plain(role, table[names[role]].combine_chunks()).to_pylist()
            if v is not None
        ]
        for role in IDS
    }
