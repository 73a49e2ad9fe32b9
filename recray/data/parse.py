"""Chunks of ratings files to Arrow tables, and rejected rows with a reason.

Ratings are checked column by column, never row by row in Python. A chunk in which everything is in
order takes the fast way, by pyarrow's csv reader. Any other chunk is split into fields and checked
again by patterns, which find the exact rows. So one bad row costs one chunk some time and nothing
else.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from recray import schema
from recray.data.archives import open_parquet
from recray.data.ids import ID_LENGTH, ID_LIMIT
from recray.data.readers import IDS, FileRange, RatingsFormat, chunks

CHUNK_ROWS = 1 << 20
"""Rows of a parquet file that are held at once."""
SHOWN = 200
"""Characters of a rejected line that are kept."""
PADDING = ' "\ufeff'
"""What may stand around a field: blanks, quotes, and the mark at the begin of a file."""

Reasons = NDArray[np.object_]
"""(R,) why a row is rejected, "" where it is not."""
Checked = tuple[pa.Array, NDArray[np.bool_], Reasons]
"""Values of a column (any value where a row is bad), which rows are bad, and why."""


@dataclass(frozen=True)
class ParsedRatings:
    """One chunk of a ratings file.

    Args:
        table: Accepted rows, in file order, as schema.RAW_RATINGS, with ids as string where the
            layout has text.
        rejected: Rows of schema.REJECTED without the file's name; line counts from 0 and byte
            from 0 at the chunk's start.
        lines: Lines in the chunk, blank ones included.
    """

    table: pa.Table
    rejected: pa.Table
    lines: int


def parsed(file_range: FileRange) -> Iterator[tuple[int, ParsedRatings]]:
    """Parse a file range in bounded chunks; yield each with the byte it begins at.

    A header line is left out and not counted as a line.

    Raises:
        RecrayError: The file is damaged or encrypted, or unpacks to an absurd size.
    """
    file = file_range.file
    if file.kind != "parquet":
        for begin, content in chunks(file_range):
            yield begin, parse_ratings(content, file.layout)
        return
    columns = dict(zip(file.layout.columns, file.layout.names, strict=True))
    columns.pop("", None)
    with open_parquet(file.path) as opened:
        stop = opened.num_row_groups if file_range.stop is None else file_range.stop
        groups, names = list(range(file_range.start, stop)), list(columns.values())
        for batch in opened.iter_batches(CHUNK_ROWS, groups, names, use_threads=False):
            yield 0, parse_table({role: batch[n] for role, n in columns.items()}, file.layout)


def parse_ratings(content: bytes, layout: RatingsFormat) -> ParsedRatings:
    """Parse whole lines (no header among them) into ratings and rejected rows.

    Args:
        content: Lines ended by LF or CR LF; the last end may be missing.
        layout: How the lines look.
    """
    lines = content.count(b"\n") + (not content.endswith(b"\n") and len(content) > 0)
    table = _parse_clean(content, layout)
    if table is None:
        return _parse_checked(content, layout, lines)
    return ParsedRatings(table, schema.REJECTED.remove(0).empty_table(), lines)


# -------------------------------------------------------------------------------- fast way


_DIGITS = b"0123456789.\r\n"
_PLAIN = bytes(c for c in range(33, 127) if c != ord('"')) + b"\r\n"


def _parse_clean(content: bytes, layout: RatingsFormat) -> pa.Table | None:
    """The table if every single row is in order, else None.

    The fast way takes only chunks of bare numbers, or of plain ASCII where some column is text. So
    whatever has two readings (quotes, blanks, other alphabets, a lone CR) is decided in one place,
    _parse_checked.
    """
    has_text = bool(layout.text) or "" in layout.columns
    allowed = (_PLAIN if has_text else _DIGITS) + layout.delimiter.encode()
    if content.translate(None, allowed) or _has_lone_return(content):
        return None
    if has_text and (b"0x" in content or b"0X" in content):  # pyarrow reads it as hexadecimal
        return None
    delimiter: str = layout.delimiter
    if delimiter == "::":  # pyarrow knows only delimiters of one character
        content, delimiter = content.replace(b"::", b"\t"), "\t"
    names = [role or f"unused{i}" for i, role in enumerate(layout.columns)]
    types = {f.name: f.type for f in layout.raw_schema} | {"rating": pa.float64()}
    try:
        table = pacsv.read_csv(
            pa.BufferReader(content),
            pacsv.ReadOptions(use_threads=False, block_size=1 << 22, column_names=names),
            pacsv.ParseOptions(delimiter=delimiter, quote_char=False),
            pacsv.ConvertOptions(
                column_types={n: types.get(n, pa.string()) for n in names},
                include_columns=[n for n in names if n in types],
                null_values=[],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    if all(_is_in_order(name, table[name], layout) for name in table.column_names):
        return layout.as_raw(table)
    return None


def _has_lone_return(content: bytes) -> bool:
    # Looking for the first one is much faster than counting.
    return b"\r" in content and content.count(b"\r") != content.count(b"\r\n")


def _is_in_order(role: str, column: pa.ChunkedArray, layout: RatingsFormat) -> bool:
    """Whether all values of a typed column are there and within the limits of their role."""
    if column.null_count or not len(column):
        return not column.null_count
    if role in layout.text:
        length = pc.min_max(pc.utf8_length(column))
        return bool(0 < length["min"].as_py() <= length["max"].as_py() <= ID_LENGTH)
    low, high = layout.limits(role)
    values = column.to_numpy()
    # Written so that NaN fails both comparisons.
    return bool(((values >= low) & (values <= high)).all())


# ----------------------------------------------------------------------------- checked way


def _parse_checked(content: bytes, layout: RatingsFormat, lines: int) -> ParsedRatings:
    """Find the bad rows of a chunk: a reason each, the first that applies."""
    ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n")) + 1
    start = np.concatenate([[0], ends]).astype(np.int64)[:lines]
    text, broken = _decode_lines(content, start)
    blank = _mask(pc.equal(pc.utf8_trim_whitespace(text), ""))
    parts = pc.split_pattern(_hide_quoted(text, layout.delimiter), layout.delimiter)
    count = pc.list_value_length(parts).to_numpy(zero_copy_only=False)
    reason = np.full(lines, "", dtype=object)
    for bad, why in (
        (_mask(pc.match_substring(text, "\x00")), "NUL byte"),
        (broken, "not UTF-8"),
        (count < len(layout.columns), "missing column"),
        (count > len(layout.columns), "too many columns"),
    ):
        reason[bad & (reason == "") & ~blank] = why
    usable = np.flatnonzero((reason == "") & ~blank)
    fields = pc.take(parts, pa.array(usable))
    texts = {
        role: pc.utf8_trim(pc.list_element(fields, position), PADDING)
        for position, role in enumerate(layout.columns)
        if role
    }
    table, reason[usable] = check_fields(texts, layout)
    bad_rows = np.flatnonzero(reason != "")
    shown = text.take(pa.array(bad_rows))
    return ParsedRatings(table, _rejected(bad_rows, start[bad_rows], shown, reason), lines)


def _mask(booleans: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(booleans.to_numpy(zero_copy_only=False))


def _decode_lines(content: bytes, start: NDArray[np.int64]) -> tuple[pa.Array, NDArray[np.bool_]]:
    """The lines that begin at these bytes, without their ends, and which ones are not UTF-8."""
    offsets = np.concatenate([start, [len(content)]])
    raw = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(start), [None, pa.py_buffer(offsets), pa.py_buffer(content)]
    )
    try:
        text, broken = raw.cast(pa.large_string()), np.zeros(len(start), bool)
    except pa.ArrowInvalid:  # some line is broken, and Python finds out which
        decoded = [line.decode("utf-8", errors="replace") for line in raw.to_pylist()]
        text = pa.array(decoded, pa.large_string())
        broken = ~_mask(pc.equal(text.cast(pa.large_binary()), raw))
    return pc.utf8_rtrim(text, "\r\n"), broken


def _rejected(
    line: NDArray[np.int64], byte: NDArray[np.int64], text: pa.Array, reason: Reasons
) -> pa.Table:
    """Rejected rows as schema.REJECTED without the file's name; `reason` is that of all rows."""
    shown = pc.utf8_slice_codeunits(text, 0, SHOWN).cast(pa.string())
    why = pa.array(reason[line].tolist(), pa.string())
    return pa.table({"line": line, "byte": byte, "text": shown, "reason": why})


def _hide_quoted(text: pa.Array, delimiter: str) -> pa.Array:
    """Replace delimiters inside quoted fields by a space; such a field is never a number."""
    if delimiter == "::":  # ml-1m has no quoting
        return text
    quoted = pc.match_substring_regex(text, f'"[^"]*{delimiter}[^"]*"')
    if not pc.any(quoted).as_py():
        return text
    hidden = [
        " ".join(p.replace(delimiter, " ") if i % 2 else p for i, p in enumerate(line.split('"')))
        for line in text.filter(quoted).to_pylist()
    ]
    return pc.replace_with_mask(text, quoted, pa.array(hidden, text.type))


def check_fields(fields: Mapping[str, pa.Array], layout: RatingsFormat) -> tuple[pa.Table, Reasons]:
    """Check trimmed texts column by column.

    Args:
        fields: Role to (R,) texts, in the order in which reasons apply.
        layout: The scale, and which ids are text.

    Returns:
        The good rows as layout.raw_schema, and for each row why it is bad, "" if it is not.
    """
    reason = np.full(len(next(iter(fields.values()))), "", dtype=object)
    columns: dict[str, pa.Array] = {}
    for role, field in fields.items():
        check = _check_text if role in layout.text else _check_number
        columns[role], bad, why = check(role, field, layout)
        newly = bad & (reason == "")
        reason[newly] = why[newly]
    return layout.as_raw(pa.table(columns).filter(pa.array(reason == ""))), reason


def _check_text(role: str, field: pa.Array, _layout: RatingsFormat) -> Checked:
    word = role.removeprefix("raw_")
    why = np.full(len(field), f"{word} is too long", dtype=object)
    length = pc.utf8_length(field).to_numpy(zero_copy_only=False)
    why[length == 0] = f"{word} is empty"
    return field, (length == 0) | (length > ID_LENGTH), why


_WHOLE = rf"(-0+|[0-9]{{1,{len(str(ID_LIMIT)) - 1}}})"
_INTEGER = rf"^{_WHOLE}(\.0*)?$"
_SECONDS = rf"^{_WHOLE}(\.[0-9]*)?$"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"


def _check_number(role: str, field: pa.Array, layout: RatingsFormat) -> Checked:
    word = role.removeprefix("raw_")
    why = np.full(len(field), f"{word} is not a number", dtype=object)

    def matches(pattern: str) -> NDArray[np.bool_]:
        return _mask(pc.match_substring_regex(field, pattern))

    if role == "rating":
        number = matches(_NUMBER)
        values = pc.if_else(pa.array(number), field, "0").cast(pa.float64())
        low, high = layout.limits(role)
        outside = number & ~((values.to_numpy() >= low) & (values.to_numpy() <= high))
        why[matches(r"(?i)^[+-]?(nan|inf|infinity)$")] = "rating is not finite"
        why[outside] = "rating outside the scale"
        why[matches("^$")] = "rating is empty"
        return values, ~number | outside, why
    # Whole numbers may come as 7.0, as pandas writes a column with gaps; times lose a fraction.
    integer = matches(_SECONDS if role == "timestamp" else _INTEGER)
    why[matches(r"^-[0-9.]+$")] = f"{word} is negative"
    why[matches(r"^[0-9]{19,}(\.0*)?$")] = f"{word} is too large"
    why[matches(r"(?i)^(nan|null|none)?$")] = f"{word} is empty"
    whole = pc.replace_substring_regex(field, r"\..*$", "")
    return pc.if_else(pa.array(integer), whole, "0").cast(pa.int64()), ~integer, why


# ---------------------------------------------------------------------------------- tables


def parse_table(columns: Mapping[str, pa.Array], layout: RatingsFormat) -> ParsedRatings:
    """Check typed columns by the rules that hold for text.

    Args:
        columns: Role to (R,) values; times as seconds or as any of Arrow's times.
        layout: The scale, and which ids are text.

    Returns:
        The good rows; a rejected row's line is its number in the columns, its text the values.
    """
    columns = {role: _plain(column) for role, column in columns.items()}
    table = pa.table(columns)
    if all(_is_clean(role, table[role], layout) for role in columns):
        nothing = schema.REJECTED.remove(0).empty_table()
        return ParsedRatings(layout.as_raw(table), nothing, len(table))
    texts = {
        role: pc.utf8_trim(pc.fill_null(column.cast(pa.string()), ""), PADDING)
        for role, column in columns.items()
    }
    good, reason = check_fields(texts, layout)
    bad = np.flatnonzero(reason != "")
    shown = pc.binary_join_element_wise(*(t.take(pa.array(bad)) for t in texts.values()), ",")
    return ParsedRatings(good, _rejected(bad, np.zeros_like(bad), shown, reason), len(table))


def _plain(column: pa.Array) -> pa.Array:
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


def _is_clean(role: str, column: pa.ChunkedArray, layout: RatingsFormat) -> bool:
    """Whether every value is in order as it is; other columns are checked as text."""
    kind = column.type
    if role in layout.text:
        if not pa.types.is_string(kind):
            return False
        padded = pc.not_equal(pc.utf8_trim(column, PADDING), column)
        return not pc.any(padded).as_py() and _is_in_order(role, column, layout)
    number = pa.types.is_integer(kind) or (role == "rating" and pa.types.is_floating(kind))
    return number and _is_in_order(role, column, layout)


def ids_of_table(table: pa.Table, layout: RatingsFormat) -> dict[str, list[str]]:
    """The ids in a table's first rows, as text."""
    names = dict(zip(layout.columns, layout.names, strict=True))
    ids = {role: _plain(table[names[role]].combine_chunks()).to_pylist() for role in IDS}
    return {role: [str(v) for v in values if v is not None] for role, values in ids.items()}
