"""Ratings files of any format, in ranges that workers share and chunks that fit into memory."""

from collections.abc import Iterator

from recray.data.formats import tables, text
from recray.data.formats.delimited import parse_ratings
from recray.data.formats.layout import FileRange, RatingsFile
from recray.data.formats.values import ParsedRatings


def file_ranges(file: RatingsFile) -> list[FileRange]:
    """Cut a file into ranges that can be read by themselves."""
    return tables.row_group_ranges(file) if file.kind == "parquet" else text.line_ranges(file)


def parsed(file_range: FileRange) -> Iterator[tuple[int, ParsedRatings]]:
    """Parse a file range in bounded chunks; yield each with the byte it begins at.

    A header line is left out and not counted as a line.

    Raises:
        RecrayError: The file is damaged or encrypted, or unpacks to an absurd size.
    """
    file = file_range.file
    if file.kind == "parquet":
        yield from ((0, chunk) for chunk in tables.parsed_row_groups(file_range))
        return
    for begin, content in text.chunks(file_range):
        yield begin, parse_ratings(content, file.layout)
