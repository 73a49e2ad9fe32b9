"""Ratings files of any format, in ranges that workers share and chunks that fit into memory."""

from collections.abc import Iterator
from dataclasses import replace

from recray.data.formats import json_lines, tables, text
from recray.data.formats.content import Content
from recray.data.formats.delimited import parse_ratings
from recray.data.formats.layout import (
    Columns,
    FileRange,
    RatingsFile,
    RatingsFormat,
    format_of_names,
)
from recray.data.formats.values import ParsedRatings

TABLES = ("parquet", "arrow", "orc")
"""Kinds of files of typed columns."""


def format_of(
    name: str, path: str, content: Content, columns: Columns | None
) -> tuple[RatingsFormat, dict[str, list[str]]]:
    """Recognise a file's columns.

    Args:
        name: Its name as shown to people.
        path: Local path or URI of the file, or of the archive that holds it.
        content: What was recognised of it.
        columns: Role (user, item, rating, timestamp) to a column's name or place.

    Returns:
        How its rows look, and raw_user and raw_item to the first ids, as they stand there.

    Raises:
        RecrayError: No user column or no item column.
    """
    if content.kind in TABLES:
        head = tables.head(name, path, content.kind)
        layout = format_of_names(name, head.column_names, columns)
        tables.refuse_nested(name, head, layout)
        return replace(layout, header=False), tables.ids_of_table(head, layout)
    if content.kind in ("json", "json-document"):
        layout = json_lines.format_of_records(name, content, columns)
        return layout, json_lines.first_ids(layout, content)
    layout = text.format_of_text(name, content.head, columns)
    return layout, text.first_ids(layout, content.head)


def file_ranges(file: RatingsFile) -> list[FileRange]:
    """Cut a file into ranges that can be read by themselves."""
    if file.kind in TABLES:
        return tables.row_group_ranges(file)
    return [FileRange(file)] if file.kind == "json-document" else text.line_ranges(file)


def parsed(file_range: FileRange) -> Iterator[tuple[int, ParsedRatings]]:
    """Parse a file range in bounded chunks; yield each with the byte it begins at.

    A header line is left out and not counted as a line.

    Raises:
        RecrayError: The file is damaged or encrypted, or unpacks to an absurd size.
    """
    file = file_range.file
    if file.kind in TABLES:
        yield from ((0, chunk) for chunk in tables.parsed_row_groups(file_range))
    elif file.kind == "json-document":
        yield from ((0, chunk) for chunk in json_lines.parsed_document(file))
    else:
        parse = json_lines.parse_lines if file.kind == "json" else parse_ratings
        for begin, content in text.chunks(file_range):
            yield begin, parse(content, file.layout)
