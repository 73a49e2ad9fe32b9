"""Ratings files of any format, in ranges that workers share and chunks that fit into memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from recray.config import DataSettings
from recray.data.formats import dialect, json_lines, tables, text, times
from recray.data.formats.content import Content
from recray.data.formats.delimited import parse_ratings
from recray.data.formats.layout import (
    IDS,
    Columns,
    FileRange,
    RatingsFile,
    RatingsFormat,
    format_of_names,
    mostly_text,
    text_roles,
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
        How its rows look, with the ids whose type says that they are text; and raw_user and
        raw_item to the first ids, as they stand there.

    Raises:
        RecrayError: No user column or no item column.
    """
    if content.kind in TABLES:
        head = tables.head(name, path, content.kind)
        layout = format_of_names(name, head.column_names, columns)
        tables.refuse_types(name, head, layout)
        layout = replace(layout, header=0, text=tables.text_ids(head, layout))
        layout = dialect.with_ratings(layout, tables.first_ratings(head, layout))
        return layout, tables.ids_of_table(head, layout)
    if content.kind in ("json", "json-document"):
        layout = json_lines.format_of_records(name, content, columns)
        layout = dialect.with_ratings(layout, json_lines.first_ratings(layout, content))
        return layout, json_lines.first_ids(layout, content)
    layout = dialect.format_of_text(name, content.head, columns)
    return layout, dialect.first_ids(layout, content.head)


def with_one_reading(
    files: Sequence[RatingsFile], first: Sequence[Mapping[str, Sequence[str]]], data: DataSettings
) -> list[RatingsFile]:
    """Files that are read by the same rules: which ids are text, how times are written, the scale.

    Args:
        files: As format_of recognised them.
        first: Of each file, raw_user, raw_item and timestamp to the first values.
        data: The settings.
    """
    ids = {role: [value for one in first for value in one[role]] for role in IDS}
    typed = frozenset[str]().union(*(file.layout.text for file in files))
    text_ids = text_roles(data.ids, ids, typed)
    if data.ids == "auto" and len(text_ids) < len(IDS):
        text_ids |= mostly_text(dialect.later_ids([f for f in files if f.kind == "text"]))
    timed = zip(files, first, strict=True)
    time = times.format_of(
        [one.get("timestamp") for f, one in timed if "timestamp" in f.layout.columns]
    )
    return [
        replace(f, layout=replace(f.layout, text=text_ids, scale=data.scale, time=time))
        for f in files
    ]


def file_ranges(file: RatingsFile) -> list[FileRange]:
    """Cut a file into ranges that can be read by themselves."""
    if file.kind in TABLES:
        return tables.row_group_ranges(file)
    return [FileRange(file)] if file.kind == "json-document" else text.line_ranges(file)


def parsed(file_range: FileRange) -> Iterator[tuple[range, ParsedRatings]]:
    """Parse a file range in bounded chunks; yield each with the bytes of the file that it is.

    A header line is left out and not counted as a line. The first chunk begins at the range's
    entry, or where that was guessed to be, and the last one ends at the entry of the next range.

    Raises:
        RecrayError: The file is damaged or encrypted, or unpacks to an absurd size.
    """
    file = file_range.file
    if file.kind in TABLES:
        yield from ((range(0), chunk) for chunk in tables.parsed_row_groups(file_range))
    elif file.kind == "json-document":
        yield from ((range(0), chunk) for chunk in json_lines.parsed_document(file))
    else:
        parse = json_lines.parse_lines if file.kind == "json" else parse_ratings
        for span, content in text.chunks(file_range):
            yield span, parse(content, file.layout)


def parsed_in_order(ranges: Sequence[FileRange]) -> Iterator[tuple[RatingsFile, ParsedRatings]]:
    """Parse file ranges one after the other, so that the entry of each is known.

    Yields:
        Each chunk with its file.

    Raises:
        RecrayError: As parsed.
    """
    last, end = None, 0
    for file_range in ranges:
        if file_range.file is last and file_range.file.kind not in TABLES:
            file_range = replace(file_range, entry=end)
        for span, chunk in parsed(file_range):
            end = span.stop
            yield file_range.file, chunk
        last = file_range.file
