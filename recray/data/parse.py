"""Bytes of MovieLens-style ratings to Arrow tables, and rejected rows with a reason.

Ratings are checked column by column, never row by row in Python: a chunk in which everything is
in order takes pyarrow's csv reader; any other is split and checked again by patterns, which finds
the exact rows, so that one bad row costs one chunk some time and nothing else.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from recray import schema
from recray.data.dialect import IDS, RatingsFormat
from recray.data.ids import ID_LENGTH, ID_LIMIT


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


def parse_ratings(content: bytes, layout: RatingsFormat) -> ParsedRatings:
    """Parse whole lines (no header among them) into ratings and rejected rows.

    Args:
        content: Lines ended by LF or CR LF; the last end may be missing.
        layout: How the lines look.
    """
    lines = content.count(b"\n") + (not content.endswith(b"\n") and len(content) > 0)
    table = _parse_clean(content, layout)
    if table is not None:
        return ParsedRatings(table, _no_rejected(), lines)
    return _parse_checked(content, layout, lines)


def _no_rejected() -> pa.Table:
    return schema.REJECTED.remove(0).empty_table()


def _lone_returns(content: bytes) -> bool:
    # Looking for the first one is much faster than counting.
    return b"\r" in content and content.count(b"\r") != content.count(b"\r\n")


_DIGITS = b"0123456789.\r\n"
_PLAIN = bytes(c for c in range(33, 127) if c != ord('"')) + b"\r\n"


def _parse_clean(content: bytes, layout: RatingsFormat) -> pa.Table | None:
    """The table if every single row is in order, else None.

    Only chunks of bare numbers come this way, or of plain ASCII where some column is text, so that
    whatever has two readings (quotes, blanks, other alphabets, a lone CR) has its one place in
    _parse_checked.
    """
    wordy = bool(layout.text) or "" in layout.columns
    allowed = (_PLAIN if wordy else _DIGITS) + layout.delimiter.encode()
    if content.translate(None, allowed) or _lone_returns(content):
        return None
    if wordy and (b"0x" in content or b"0X" in content):  # pyarrow reads it as hexadecimal
        return None
    if layout.delimiter == "::":
        content = content.replace(b"::", b"\t")
    names = [role or f"unused{i}" for i, role in enumerate(layout.columns)]
    types = {f.name: f.type for f in schema.RAW_RATINGS} | {"rating": pa.float64()}
    types |= dict.fromkeys(layout.text, pa.string())
    try:
        table = pacsv.read_csv(
            pa.BufferReader(content),
            pacsv.ReadOptions(use_threads=False, block_size=1 << 22, column_names=names),
            pacsv.ParseOptions(
                delimiter="\t" if layout.delimiter == "::" else layout.delimiter, quote_char=False
            ),
            pacsv.ConvertOptions(
                column_types={n: types.get(n, pa.string()) for n in names},
                include_columns=[n for n in names if n in types],
                null_values=[],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    clean = all(table[name].null_count == 0 for name in table.column_names)
    for name in (*IDS, "timestamp"):
        if clean and name in layout.text:
            length = pc.min_max(pc.binary_length(table[name]))
            clean = (
                not len(table) or 0 < length["min"].as_py() <= length["max"].as_py() <= ID_LENGTH
            )
        elif clean and name in table.column_names:
            clean = _all_between(table[name], 0, ID_LIMIT - 1)
    if clean and not layout.implicit:
        clean = _all_between(table["rating"], *_limits(layout.scale))
    return as_raw(table, layout) if clean else None


def _limits(scale: tuple[float, float] | None) -> tuple[float, float]:
    largest = float(np.finfo(np.float32).max)
    return scale or (-largest, largest)


def _all_between(column: pa.ChunkedArray, low: float, high: float) -> bool:
    values = column.to_numpy()
    # Written so that NaN fails both comparisons.
    return not len(values) or bool(((values >= low) & (values <= high)).all())


def raw_schema(text: frozenset[str]) -> pa.Schema:
    """schema.RAW_RATINGS, with ids as string where they are text."""
    return pa.schema(
        [pa.field(f.name, pa.string()) if f.name in text else f for f in schema.RAW_RATINGS]
    )


def as_raw(table: pa.Table, layout: RatingsFormat) -> pa.Table:
    """Columns of checked values as raw_schema: 1.0 for missing ratings, null for times."""
    wanted = raw_schema(layout.text)
    columns = []
    for field in wanted:
        if field.name in table.column_names:
            columns.append(table[field.name].cast(field.type))
        elif field.name == "rating":
            columns.append(pa.chunked_array([np.ones(len(table), np.float32)]))
        else:
            columns.append(pa.chunked_array([pa.nulls(len(table), field.type)]))
    return pa.table(columns, schema=wanted)


def _parse_checked(content: bytes, layout: RatingsFormat, lines: int) -> ParsedRatings:
    """Find the bad rows of a chunk: a reason each, the first that applies."""
    start = np.flatnonzero(np.frombuffer(content, np.uint8) == 10) + 1
    start = np.concatenate([[0], start]).astype(np.int64)[:lines]
    offsets = np.concatenate([start, [len(content)]])
    raw = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), lines, [None, pa.py_buffer(offsets), pa.py_buffer(content)]
    )
    try:
        text = raw.cast(pa.large_string())
        broken_text = np.zeros(lines, bool)
    except pa.ArrowInvalid:
        broken_text = np.array([not _is_utf8(line) for line in raw.to_pylist()])
        decoded = [line.decode("utf-8", errors="replace") for line in raw.to_pylist()]
        text = pa.array(decoded, pa.large_string())
    text = pc.utf8_rtrim(text, "\r\n")
    blank = pc.equal(pc.utf8_trim_whitespace(text), "").to_numpy(zero_copy_only=False)

    reason = np.full(lines, "", dtype=object)

    def reject(bad: np.ndarray, why: str) -> None:
        reason[bad & (reason == "") & ~blank] = why

    nul = pc.match_substring(text, "\x00").to_numpy(zero_copy_only=False)
    reject(nul, "NUL byte")
    reject(broken_text, "not UTF-8")
    parts = pc.split_pattern(_hide_quoted(text, layout.delimiter), layout.delimiter)
    count = pc.list_value_length(parts).to_numpy(zero_copy_only=False)
    reject(count < len(layout.columns), "missing column")
    reject(count > len(layout.columns), "too many columns")
    usable = np.flatnonzero((reason == "") & ~blank)
    fields = pc.take(parts, pa.array(usable))

    table, why = check_fields(
        {
            role: pc.utf8_trim(pc.list_element(fields, position), ' "\ufeff')
            for position, role in enumerate(layout.columns)
            if role
        },
        layout,
    )
    reason[usable] = why
    bad_rows = np.flatnonzero(reason != "")
    rejected = pa.table(
        {
            "line": bad_rows,
            "byte": start[bad_rows],
            "text": pc.utf8_slice_codeunits(text, 0, 200)
            .take(pa.array(bad_rows))
            .cast(pa.string()),
            "reason": pa.array(reason[bad_rows].tolist(), pa.string()),
        }
    )
    return ParsedRatings(table, rejected, lines)


def check_fields(
    fields: dict[str, pa.Array], layout: RatingsFormat
) -> tuple[pa.Table, NDArray[np.object_]]:
    """Check trimmed texts column by column.

    Args:
        fields: Role to (R,) texts, in the order in which reasons apply.
        layout: The scale, and which ids are text.

    Returns:
        The good rows as raw_schema, and for each row why it is bad, "" if it is not.
    """
    reason = np.full(len(next(iter(fields.values()))), "", dtype=object)
    columns: dict[str, pa.Array] = {}
    for role, field in fields.items():
        values, bad, why = (
            _check_text(role, field) if role in layout.text else _check_field(role, field, layout)
        )
        newly = bad & (reason == "")
        reason[newly] = why[newly]
        columns[role] = values
    return as_raw(pa.table(columns).filter(pa.array(reason == "")), layout), reason


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _hide_quoted(text: pa.Array, delimiter: str) -> pa.Array:
    """Replace delimiters inside quoted fields by a space; such a field is never a number."""
    if delimiter == "::":  # ml-1m has no quoting
        return text
    pattern = f'"[^"]*{delimiter}[^"]*"'
    quoted = pc.match_substring_regex(text, pattern)
    if not pc.any(quoted).as_py():
        return text
    lines = text.filter(quoted).to_pylist()
    hidden = [
        " ".join(p.replace(delimiter, " ") if i % 2 else p for i, p in enumerate(line.split('"')))
        for line in lines
    ]
    return pc.replace_with_mask(text, quoted, pa.array(hidden, text.type))


_WHOLE = rf"(-0+|[0-9]{{1,{len(str(ID_LIMIT)) - 1}}})"
_INTEGER = rf"^{_WHOLE}(\.0*)?$"
_SECONDS = rf"^{_WHOLE}(\.[0-9]*)?$"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"

_Checked = tuple[pa.Array, NDArray[np.bool_], NDArray[np.object_]]


def _check_text(role: str, field: pa.Array) -> _Checked:
    """TextIds as ids, which rows are bad, and why."""
    word = role.removeprefix("raw_")
    why = np.full(len(field), f"{word} is too long", dtype=object)
    length = pc.utf8_length(field).to_numpy(zero_copy_only=False)
    why[length == 0] = f"{word} is empty"
    return field, (length == 0) | (length > ID_LENGTH), why


def _check_field(role: str, field: pa.Array, layout: RatingsFormat) -> _Checked:
    """Values (0 where bad), which rows are bad, and why."""
    word = role.removeprefix("raw_")
    why = np.full(len(field), f"{word} is not a number", dtype=object)

    def matches(pattern: str) -> NDArray[np.bool_]:
        return pc.match_substring_regex(field, pattern).to_numpy(zero_copy_only=False)

    empty = pc.equal(field, "").to_numpy(zero_copy_only=False)
    if role == "rating":
        number = matches(_NUMBER)
        clean = pc.if_else(pa.array(number), field, "0").cast(pa.float64())
        values = clean.to_numpy()
        low, high = _limits(layout.scale)
        outside = number & ~((values >= low) & (values <= high))
        why[matches(r"(?i)^[+-]?(nan|inf|infinity)$")] = "rating is not finite"
        why[outside] = "rating outside the scale"
        why[empty] = "rating is empty"
        return clean, ~number | outside, why
    # Whole numbers may come as 7.0, as pandas writes a column with gaps; times lose a fraction.
    integer = matches(_SECONDS if role == "timestamp" else _INTEGER)
    why[matches(r"^-[0-9.]+$")] = f"{word} is negative"
    why[matches(r"^[0-9]{19,}(\.0*)?$")] = f"{word} is too large"
    why[matches(r"(?i)^(nan|null|none)?$")] = f"{word} is empty"
    whole = pc.replace_substring_regex(field, r"\..*$", "")
    return pc.if_else(pa.array(integer), whole, "0").cast(pa.int64()), ~integer, why
