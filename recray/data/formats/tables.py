"""Typed columns, as parquet files and frames have them, to ratings and rejected rows."""

import itertools
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recray import schema
from recray.data.formats.columnar import CHUNK_ROWS, column_of, names_of, open_table
from recray.data.formats.layout import IDS, FileKind, FileRange, RatingsFile, RatingsFormat
from recray.data.formats.values import (
    PADDING,
    ParsedRatings,
    check_fields,
    is_in_order,
    rejected_rows,
)
from recray.errors import RecrayError

HEAD_ROWS = 1000
"""Rows from which ids are told to be text or not."""


def head(file: str, path: str, kind: FileKind) -> pa.Table:
    """The first rows of a file, with fields inside a column as columns of their own.

    Args:
        file: Its name as shown to people.
        path: Local path or URI.
        kind: parquet, arrow or orc.

    Raises:
        RecrayError: The file is damaged, or has two columns of one name.
    """
    with open_table(path, kind) as opened:
        names = names_of(opened.schema)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise RecrayError(f"{file} has two columns named {twice}; rename one of them")
        top = opened.schema.names
        read = opened.batches(0, opened.pieces, top, HEAD_ROWS)
        table = pa.Table.from_batches(itertools.islice(read, 1), opened.schema)
    return pa.table({name: column_of(table, name) for name in names})


def row_group_ranges(file: RatingsFile) -> list[FileRange]:
    """Cut a file into its row groups, or what its format has in their place."""
    with open_table(file.path, file.kind) as opened:
        return [FileRange(file, n, n + 1) for n in range(opened.pieces)]


def parsed_row_groups(file_range: FileRange) -> Iterator[ParsedRatings]:
    """Parse row groups in bounded chunks.

    Raises:
        RecrayError: The file is damaged.
    """
    file = file_range.file
    columns = dict(zip(file.layout.columns, file.layout.names, strict=True))
    columns.pop("", None)
    with open_table(file.path, file.kind) as opened:
        stop = opened.pieces if file_range.stop is None else file_range.stop
        for batch in opened.batches(file_range.start, stop, list(columns.values()), CHUNK_ROWS):
            found = {role: column_of(batch, name) for role, name in columns.items()}
            yield parse_table(found | _constants(file.layout, len(batch)), file.layout)


def _constants(layout: RatingsFormat, rows: int) -> dict[str, pa.Array]:
    """What the names of folders say of all rows; numbers as numbers, so that rows stay fast."""
    fields = layout.constant_fields(rows)
    for role, field in fields.items():
        if role not in layout.text:
            with suppress(pa.ArrowInvalid):
                fields[role] = field.cast(pa.float64() if role == "rating" else pa.int64())
    return fields


def parse_table(columns: Mapping[str, pa.Array], layout: RatingsFormat) -> ParsedRatings:
    """Check typed columns by the rules that hold for text.

    Args:
        columns: Role to (R,) values; times of any type.
        layout: The scale, and which ids are text.

    Returns:
        The good rows; a rejected row's line is its number in the columns, its text the values.
    """
    lists = {role: _several(column) for role, column in columns.items() if _is_list(column.type)}
    columns = {role: plain(role, column) for role, column in columns.items()}
    table = pa.table(columns)
    if all(_is_clean(role, table[role], layout) for role in columns):
        nothing = schema.REJECTED.remove(0).empty_table()
        return ParsedRatings(layout.as_raw(table), nothing, len(table), len(table))
    texts = {r: _as_text(r, column, layout) for r, column in columns.items() if r != "timestamp"}
    times = {role: table[role] for role in columns if role == "timestamp"}
    good, reason = check_fields(texts | times, layout)
    for role, several in lists.items():
        reason[several & (reason != "")] = f"{role.removeprefix('raw_')} is a list"
    bad = np.flatnonzero(reason != "")
    shown = pc.binary_join_element_wise(*(t.take(pa.array(bad)) for t in texts.values()), ",")
    rejected = rejected_rows(bad, np.zeros_like(bad), shown, reason[bad])
    return ParsedRatings(good, rejected, len(table), len(table))


def _as_text(role: str, column: pa.Array, layout: RatingsFormat) -> pa.Array:
    text = pc.fill_null(column.cast(pa.string()), "")
    return text if role in layout.text else pc.utf8_trim(text, PADDING)


def _is_clean(role: str, column: pa.ChunkedArray, layout: RatingsFormat) -> bool:
    """Whether every value is in order as it is; other columns are checked as text."""
    if role == "timestamp":
        return True
    kind = column.type
    if role in layout.text:
        return pa.types.is_string(kind) and is_in_order(role, column, layout)
    number = pa.types.is_integer(kind) or (role == "rating" and pa.types.is_floating(kind))
    return number and is_in_order(role, column, layout)


def text_ids(table: pa.Table, layout: RatingsFormat) -> frozenset[str]:
    """Which of raw_user and raw_item are strings."""
    names = dict(zip(layout.columns, layout.names, strict=True))
    columns = {role: column_of(table, names[role]) for role in IDS if role in names}
    kinds = {role: _kind_of_text(column.type) for role, column in columns.items()}
    return frozenset(role for role, is_text in kinds.items() if is_text)


def _kind_of_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind) or _is_list(kind):
        return _kind_of_text(kind.value_type)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def first_ratings(table: pa.Table, layout: RatingsFormat) -> list[str]:
    """The ratings in a table's first rows where they are texts, such as like and dislike."""
    names = dict(zip(layout.columns, layout.names, strict=True))
    if "rating" not in names:
        return [text for role, text in layout.constants if role == "rating"]
    column = plain("rating", column_of(table, names["rating"]))
    return column.drop_null().to_pylist() if pa.types.is_string(column.type) else []


def ids_of_table(table: pa.Table, layout: RatingsFormat) -> dict[str, list[str]]:
    """The ids in a table's first rows, as text, and its times unless their type tells the unit."""
    names = dict(zip(layout.columns, layout.names, strict=True))
    constants = dict(layout.constants)
    first = {}
    for role in (*IDS, "timestamp"):
        if role in names:
            column = plain(role, column_of(table, names[role]))
            if not pa.types.is_temporal(column.type) and not pa.types.is_nested(column.type):
                first[role] = column.cast(pa.string()).drop_null().to_pylist()
        elif role in constants:
            first[role] = [constants[role]]
    return first


# --------------------------------------------------------------------------- types of columns


def refuse_types(file: str, table: pa.Table, layout: RatingsFormat) -> None:
    """Refuse columns that hold more than one value for each row, or no value that can be meant.

    Raises:
        RecrayError: It names the column, its type and what would help.
    """
    for role, name in zip(layout.columns, layout.names, strict=True):
        kind = table[name].type if role else pa.null()
        word = role.removeprefix("raw_")
        if pa.types.is_struct(kind):
            inner = ", ".join(f"{name}.{field.name}" for field in kind)
            raise RecrayError(
                f"{file}: column {name} holds several fields; --columns {word}=NAME takes one of "
                f"{inner[:200]}"
            )
        value = _value_type(kind)
        is_no_id = pa.types.is_struct(value) or pa.types.is_temporal(value)
        if pa.types.is_map(kind) or (is_no_id and role != "timestamp"):
            raise RecrayError(
                f"{file}: column {name} is {kind}, which is no {word}; name another by "
                f"--columns {word}=NAME"
            )


def _value_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values of a column, in lists and categories as well."""
    while pa.types.is_dictionary(kind) or _is_list(kind):
        kind = kind.value_type
    return kind


def plain(role: str, column: pa.Array) -> pa.Array:
    """Numbers or strings: categories decoded, UUIDs as they are written; times of any type."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    kind = column.type
    if pa.types.is_dictionary(kind):
        return plain(role, column.dictionary_decode())
    if pa.types.is_run_end_encoded(kind):
        return plain(role, pc.run_end_decode(column))
    if _is_list(kind):
        values = [
            value[0] if value is not None and len(value) == 1 else None
            for value in column.to_pylist()
        ]
        return plain(role, pa.array(values, kind.value_type))
    if role == "timestamp":
        return column
    if pa.types.is_null(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    ):
        return _text_of_bytes(column)
    if role == "rating":
        number = pa.types.is_boolean(kind) or pa.types.is_decimal(kind) or pa.types.is_float16(kind)
        return (
            column.cast(pa.int8() if pa.types.is_boolean(kind) else pa.float64())
            if number
            else column
        )
    if pa.types.is_decimal(kind):
        return pc.replace_substring_regex(column.cast(pa.string()), r"\.0*$", "")
    if pa.types.is_floating(kind):
        return _text_of_floats(column.cast(pa.float64()))
    return column


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def _several(column: pa.Array) -> NDArray[np.bool_]:
    """(R,) whether a row's list is none of exactly one value."""
    lengths = [1 if value is None else len(value) for value in column.to_pylist()]
    return np.not_equal(np.array(lengths, np.int64), 1)


def _text_of_floats(column: pa.Array) -> pa.Array:
    """7.0 as 7, however large it is; what is no whole number as it is written."""
    whole = pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), float(1 << 63)))
    digits = pc.if_else(whole, column, 0.0).cast(pa.int64()).cast(pa.string())
    return pc.if_else(whole, digits, column.cast(pa.string()))


_PRINTABLE = re.compile(rb"[!-~]*")


def _text_of_bytes(column: pa.Array) -> pa.Array:
    """UTF-8 as it is; 16 bytes that are no text as a UUID, any others as 0x and digits."""
    uuids = pa.types.is_fixed_size_binary(column.type) and column.type.byte_width == 16
    if not uuids:
        try:
            return column.cast(pa.binary()).cast(pa.string())
        except pa.ArrowInvalid:
            pass
    return pa.array([_text_of(value, uuids) for value in column.to_pylist()], pa.string())


def _text_of(value: bytes | None, is_uuid: bool) -> str | None:
    if value is None:
        return None
    if is_uuid:
        return value.decode() if _PRINTABLE.fullmatch(value) else str(uuid.UUID(bytes=value))
    try:
        return value.decode()
    except UnicodeDecodeError:
        return f"0x{value.hex()}"
