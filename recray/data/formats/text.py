"""Files of lines in ranges that workers share, and in chunks of whole rows that fit into memory.

A field in quotes may hold newlines, so whether a line in the middle of a file begins a row depends
on all that stands before it. A range is therefore read on a guess, that the first line which begins
in it begins a row, and says where its last row ends: there the first row of the next range begins.
Where a guess was wrong, that range is read once more from its true begin; see scan.scan_ranges.
"""

import io
import itertools
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from recray.data import sample
from recray.data.formats.content import HEAD_BYTES
from recray.data.formats.layout import FileRange, RatingsFile, RatingsFormat
from recray.data.formats.quotes import ROW_BYTES, Rows, end_of_rows, find_rows
from recray.data.formats.streams import as_utf8, can_start_anywhere, open_bytes
from recray.storage import open_input

CHUNK_BYTES = 16 << 20
"""Bytes of a file that are held at once."""
RANGE_BYTES = 64 << 20
SAMPLE_BYTES = 16 << 10
STEP_BYTES = 64 << 10
"""Bytes that are read at a time to find the end of a row."""


def _can_be_cut(file: RatingsFile) -> bool:
    return file.kind != "sample" and can_start_anywhere(file.member, file.packing, file.encoding)


def line_ranges(file: RatingsFile) -> list[FileRange]:
    """Cut a file into ranges; only plain files can be read from the middle on."""
    if not _can_be_cut(file):
        return [FileRange(file)]
    with io.BufferedReader(open_input(file.path)) as stream:
        begin = _after_lines(stream, file.layout.header)
        size = stream.seek(0, io.SEEK_END)
    edges = [*range(begin, size, RANGE_BYTES), size]
    ranges = [FileRange(file, a, b) for a, b in itertools.pairwise(edges)]
    return [replace(ranges[0], entry=begin), *ranges[1:]] if ranges else []


def _after_lines(stream: Any, count: int) -> int:
    """Read lines; return the bytes that they have."""
    position = 0
    for _ in range(count):
        while line := stream.readline(STEP_BYTES):
            position += len(line)
            if line.endswith(b"\n"):
                break
    return position


def samples(file: RatingsFile, count: int) -> Iterator[bytes]:
    """Whole lines from places behind the head of a file that can be read from anywhere.

    The first of them may be the rest of a row.
    """
    if not _can_be_cut(file):
        return
    with closing(open_input(file.path)) as stream:
        size = stream.size() - SAMPLE_BYTES
        for n in range(1, count + 1) if size > HEAD_BYTES else ():
            stream.seek(HEAD_BYTES + (size - HEAD_BYTES) * n // count)
            content = bytes(stream.read(SAMPLE_BYTES))
            content = content[content.find(b"\n") + 1 : content.rfind(b"\n") + 1]
            yield as_utf8(content, file.encoding)


def chunks(file_range: FileRange) -> Iterator[tuple[range, bytes]]:
    """Yield the rows of a file range in bounded chunks, with the bytes that each is.

    A header is left out. A row belongs to the range in which it begins. The last chunk ends where
    the next row of the file begins; a range in which no row begins gives one empty chunk. Of a row
    that is longer than ROW_BYTES little more comes.

    Raises:
        RecrayError: The file is damaged.
    """
    file = file_range.file
    if file.kind == "sample":
        content = sample.files()[file.name]
        begin = content.index(b"\n") + 1
        yield range(begin, len(content)), content[begin:]
        return
    with open_bytes(file.path, file.member, file.packing, file.encoding) as stream:
        if file_range.entry is not None:
            entry = stream.seek(file_range.entry)
        elif file_range.start:
            entry = stream.seek(_first_line(stream, file_range))
        else:
            entry = _after_lines(stream, file.layout.header)
        for span, content in _rows(stream, entry, file_range):
            yield span, as_utf8(content, file.encoding)


def _first_line(stream: Any, file_range: FileRange) -> int:
    """Where the first line of a range begins; its end if there is none."""
    position = file_range.start - 1  # this byte tells whether a line begins right at the start
    stream.seek(position)
    while file_range.stop is None or position < file_range.stop:
        line = stream.readline(STEP_BYTES)
        position += len(line)
        if not line or line.endswith(b"\n"):
            return position
    return position


def _rows(stream: Any, entry: int, file_range: FileRange) -> Iterator[tuple[range, bytes]]:
    reader = _RowReader(stream, file_range.file.layout)
    position, stop = entry, file_range.stop
    if stop is not None and position >= stop:
        yield range(position, position), b""
    while stop is None or position < stop:
        block = CHUNK_BYTES if stop is None else min(CHUNK_BYTES, stop - position)
        content, size = reader.take(block)
        if not size:
            if position == entry:
                yield range(position, position), b""
            return
        yield range(position, position + size), content
        position += size


class _RowReader:
    """Takes whole rows from a stream that stands where one begins."""

    def __init__(self, stream: Any, layout: RatingsFormat) -> None:
        self._stream, self._layout = stream, layout
        self._buffer, self._ended = b"", False

    def take(self, block: int) -> tuple[bytes, int]:
        """The rows that begin in the next bytes, and how many bytes of the stream they are.

        Args:
            block: How many bytes.
        """
        self._read(block + STEP_BYTES - len(self._buffer))
        while True:
            rows = self._find()
            end = end_of_rows(self._buffer, block, rows)
            if end or self._ended:
                return self._cut(end or len(self._buffer))
            if len(self._buffer) >= block + ROW_BYTES:
                return self._cut(rows.whole) if rows.whole else self._long_row()
            self._read(STEP_BYTES)

    def _find(self) -> Rows:
        layout = self._layout
        return find_rows(self._buffer, layout.delimiter, layout.quoting, self._ended)

    def _read(self, size: int) -> None:
        if size > 0 and not self._ended:
            content = self._stream.read(size)
            self._ended = len(content) < size
            self._buffer += content

    def _cut(self, size: int) -> tuple[bytes, int]:
        content, self._buffer = self._buffer[:size], self._buffer[size:]
        return content, size

    def _long_row(self) -> tuple[bytes, int]:
        """The begin of a row that is too long; the rest of its line is passed over."""
        content, size = self._buffer[: ROW_BYTES + 1], len(self._buffer)
        self._buffer = b""
        while line := self._stream.readline(STEP_BYTES):
            size += len(line)
            if line.endswith(b"\n"):
                break
        return content, size
