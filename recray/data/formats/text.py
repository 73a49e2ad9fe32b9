"""Files of lines: how they look, told from the head of a file, and reading them in chunks.

Workers read ranges of files, so that a large file is shared. A worker holds one chunk at a time.
"""

import io
import itertools
import re
from collections.abc import Iterator
from contextlib import closing

from recray.data import sample
from recray.data.formats.content import HEAD_BYTES
from recray.data.formats.layout import (
    IDS,
    MOVIELENS,
    Columns,
    Delimiter,
    FileRange,
    RatingsFile,
    RatingsFormat,
    check_ids,
    constants_of,
    format_of_names,
    role_of,
)
from recray.data.formats.streams import as_utf8, can_start_anywhere, open_bytes
from recray.errors import RecrayError
from recray.storage import open_input

CHUNK_BYTES = 16 << 20
"""Bytes of a file that are held at once."""
LINE_BYTES = 16 << 20
"""A longer line is refused."""
RANGE_BYTES = 64 << 20

DELIMITERS: tuple[Delimiter, ...] = ("\t", "::", ";", ",")
"""In the order in which they are looked for; the comma, which titles hold as well, comes last."""


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
        roles[int(place) - 1] = role_of(role)
    constants = constants_of(file, roles, {})
    check_ids(file, [*roles, *dict(constants)], [str(n) for n in range(1, fields + 1)])
    return RatingsFormat(delimiter, tuple(roles), False, None, constants=constants)


def first_ids(layout: RatingsFormat, head: bytes) -> dict[str, list[str]]:
    """The ids in a file's first lines, as they stand there, and the times."""
    lines = head.decode("utf-8", errors="replace").split("\n")[int(layout.header) :]
    rows = [line.rstrip("\r").split(layout.delimiter) for line in lines if line.strip()]
    constants = dict(layout.constants)
    ids = {}
    for role in (*IDS, "timestamp"):
        if role in layout.columns:
            place = layout.columns.index(role)
            ids[role] = [row[place].strip(' "\ufeff') for row in rows if place < len(row)]
        elif role in constants:
            ids[role] = [constants[role]]
    return ids


# ----------------------------------------------------------------------------------- lines


def line_ranges(file: RatingsFile) -> list[FileRange]:
    """Cut a file into ranges; only plain files can be read from the middle on."""
    if file.kind == "sample" or not can_start_anywhere(file.member, file.packing, file.encoding):
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
        return
    begin = file_range.start
    with open_bytes(file.path, file.member, file.packing, file.encoding) as stream:
        if begin > 0:  # the byte before tells whether a line begins right here
            stream.seek(begin - 1)
            begin = begin - 1 + len(_rest_of_line(stream, file.name))
        elif file.layout.header:
            begin = len(_rest_of_line(stream, file.name))
        for position, content in _whole_lines(stream, begin, file_range):
            yield position, as_utf8(content, file.encoding)


def _whole_lines(
    stream: io.BufferedReader, position: int, file_range: FileRange
) -> Iterator[tuple[int, bytes]]:
    stop = file_range.stop
    while stop is None or position < stop:
        size = CHUNK_BYTES if stop is None else min(CHUNK_BYTES, stop - position)
        content = stream.read(size)
        if not content:
            return
        if not content.endswith(b"\n"):
            content += _rest_of_line(stream, file_range.file.name)
        yield position, content
        position += len(content)


def _rest_of_line(stream: io.BufferedReader, name: str) -> bytes:
    line = stream.readline(LINE_BYTES)
    if len(line) == LINE_BYTES and not line.endswith(b"\n"):
        raise RecrayError(
            f"{name} has a line of more than {LINE_BYTES >> 20} MiB; is it a table of lines?"
        )
    return line
