"""Lines of delimited fields to Arrow tables, and rejected rows with a reason.

A chunk in which everything is in order takes the fast way, by pyarrow's csv reader. Any other chunk
is split into fields and checked again by patterns, which find the exact rows. So one bad row costs
one chunk some time and nothing else.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from recray import schema
from recray.data.formats.layout import RatingsFormat
from recray.data.formats.times import PER_SECOND
from recray.data.formats.values import (
    PADDING,
    ParsedRatings,
    check_fields,
    is_in_order,
    mask_of,
    rejected_rows,
)


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
    return ParsedRatings(table, schema.REJECTED.remove(0).empty_table(), lines, len(table))


# -------------------------------------------------------------------------------- fast way


_DIGITS = b"0123456789.-\r\n"
_PLAIN = bytes(c for c in range(33, 127) if c != ord('"')) + b"\r\n"


def _parse_clean(content: bytes, layout: RatingsFormat) -> pa.Table | None:
    """The table if every single row is in order, else None.

    The fast way takes only chunks of bare numbers, or of plain ASCII where some column is text. So
    whatever has two readings (quotes, blanks, other alphabets, a lone CR) is decided in one place,
    _parse_checked.
    """
    if layout.constants:
        return None
    types = {f.name: f.type for f in layout.raw_schema} | {"rating": pa.float64()}
    if layout.time not in PER_SECOND:
        types["timestamp"] = pa.string()
    names = [role or f"unused{i}" for i, role in enumerate(layout.columns)]
    has_text = any(types.get(name, pa.string()) == pa.string() for name in names)
    allowed = (_PLAIN if has_text else _DIGITS) + layout.delimiter.encode()
    if not layout.text and layout.time not in PER_SECOND:
        allowed += b" "  # between a day and its time; pyarrow trims those around numbers, as we do
    if content.translate(None, allowed) or _has_lone_return(content):
        return None
    if has_text and (b"0x" in content or b"0X" in content):  # pyarrow reads it as hexadecimal
        return None
    delimiter: str = layout.delimiter
    if delimiter == "::":  # pyarrow knows only delimiters of one character
        content, delimiter = content.replace(b"::", b"\t"), "\t"
    try:
        table = pacsv.read_csv(
            pa.BufferReader(content),
            pacsv.ReadOptions(use_threads=False, block_size=1 << 22, column_names=names),
            pacsv.ParseOptions(delimiter=delimiter, quote_char=False),
            pacsv.ConvertOptions(
                column_types={n: types.get(n, pa.string()) for n in names},
                include_columns=[n for n in names if n in types],
                null_values=[""],  # which only a time may be, see is_in_order
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    if all(is_in_order(name, table[name], layout) for name in table.column_names):
        return layout.as_raw(table)
    return None


def _has_lone_return(content: bytes) -> bool:
    # Looking for the first one is much faster than counting.
    return b"\r" in content and content.count(b"\r") != content.count(b"\r\n")


# ----------------------------------------------------------------------------- checked way


def _parse_checked(content: bytes, layout: RatingsFormat, lines: int) -> ParsedRatings:
    """Find the bad rows of a chunk: a reason each, the first that applies."""
    ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n")) + 1
    start = np.concatenate([[0], ends]).astype(np.int64)[:lines]
    text, broken = _decode_lines(content, start)
    blank = mask_of(pc.equal(pc.utf8_trim_whitespace(text), ""))
    parts = pc.split_pattern(_hide_quoted(text, layout.delimiter), layout.delimiter)
    count = pc.list_value_length(parts).to_numpy(zero_copy_only=False)
    reason = np.full(lines, "", dtype=object)
    for bad, why in (
        (mask_of(pc.match_substring(text, "\x00")), "NUL byte"),
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
    texts |= layout.constant_fields(len(usable))
    table, reason[usable] = check_fields(texts, layout)
    bad_rows = np.flatnonzero(reason != "")
    shown = text.take(pa.array(bad_rows))
    rejected = rejected_rows(bad_rows, start[bad_rows], shown, reason)
    return ParsedRatings(table, rejected, lines, int(lines - blank.sum()))


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
        broken = ~mask_of(pc.equal(text.cast(pa.large_binary()), raw))
    return pc.utf8_rtrim(text, "\r\n"), broken


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
