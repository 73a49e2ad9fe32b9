"""Lines of delimited fields to Arrow tables, and rejected rows with a reason.

A chunk in which everything is in order takes the fast way, by pyarrow's csv reader. Any other chunk
is split into fields and checked again by patterns, which find the exact rows. So one bad row costs
one chunk some time and nothing else.
"""

import codecs
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from recray import schema
from recray.data.formats.layout import RatingsFormat
from recray.data.formats.quotes import (
    LONG_ROW,
    ROW_BYTES,
    Rows,
    find_rows,
    has_quoted_fields,
    quoted_bytes,
    short_rows,
)
from recray.data.formats.times import PER_SECOND
from recray.data.formats.values import (
    PADDING,
    ParsedRatings,
    Reasons,
    check_fields,
    is_in_order,
    mask_of,
    rejected_rows,
)


def parse_ratings(content: bytes, layout: RatingsFormat) -> ParsedRatings:
    """Parse whole rows (no header among them) into ratings and rejected rows.

    Args:
        content: Lines ended by LF or CR LF; the last end may be missing.
        layout: How the lines look.
    """
    lines = _newlines(content) + (not content.endswith(b"\n") and len(content) > 0)
    table = _parse_clean(content, layout)
    if table is None:
        return _parse_checked(content, layout, lines)
    nothing = schema.REJECTED.remove(0).empty_table()
    return ParsedRatings(table, nothing, lines, len(table))


def _newlines(content: bytes) -> int:
    # Five times as fast as bytes.count, whose loop stops at every newline.
    return int(np.count_nonzero(np.frombuffer(content, np.uint8) == ord("\n")))


# -------------------------------------------------------------------------------- fast way


_CACHED_BYTES = 1 << 17
_DIGITS = b"0123456789.-\r\n"
_PLAIN = bytes(range(32, 127)) + b"\r\n"


def _parse_clean(content: bytes, layout: RatingsFormat) -> pa.Table | None:
    """The table if every single row is in order, else None.

    The fast way takes only chunks of bare numbers, or of ASCII where some column is text. So
    whatever has two readings (stray quotes, padded ids, other alphabets, a lone CR) is decided in
    one place, _parse_checked.
    """
    if layout.decimal_comma or layout.likes or layout.constants:
        return None
    quoted = has_quoted_fields(content, layout.delimiter, layout.quoting)
    types = _types(layout)
    has_text = pa.string() in types.values()
    allowed = (_PLAIN if has_text else _DIGITS) + layout.delimiter.encode() + b'"' * quoted
    if content.translate(None, allowed) or _has_lone_return(content):
        return None
    if has_text and (b"0x" in content or b"0X" in content):  # pyarrow reads it as hexadecimal
        return None
    if not _has_clean_rows(content, layout, quoted, has_text):
        return None
    delimiter: str = layout.delimiter
    if delimiter == "::":  # pyarrow knows only delimiters of one character
        content, delimiter = content.replace(b"::", b"\t"), "\t"
    if len(layout.text) < 2 and _has_odd_number(content, delimiter):
        return None
    return _read_typed(content, delimiter, quoted, layout)


def _has_lone_return(content: bytes) -> bool:
    # Looking for the first one is much faster than counting.
    return b"\r" in content and content.count(b"\r") != content.count(b"\r\n")


def _has_clean_rows(content: bytes, layout: RatingsFormat, quoted: bool, has_text: bool) -> bool:
    """Whether rows and fields have one reading only: no stray quote, run of blanks or long row."""
    if layout.delimiter == " " and re.search(rb"[ \t][ \t\r\n]|(\n|\A)[ \t]|\t", content):
        return False
    if not quoted:
        return not has_text or short_rows(content)
    inside = quoted_bytes(content, layout.delimiter, layout.quoting)
    if inside is None or inside[-1]:
        return False
    rows = find_rows(content, layout.delimiter, layout.quoting)
    return not rows.unclosed and short_rows(rows.masked)  # unclosed: within ROW_BYTES


def _has_odd_number(content: bytes, delimiter: str) -> bool:
    """Whether some field may begin with 0 and a digit, or with -0: 007 would become 7."""
    if content[:2] == b"-0" or (content[:1] == b"0" and content[1:2].isdigit()):
        return True
    letters, marks = np.frombuffer(content, np.uint8), delimiter.encode() + b"\n"
    marks += b'"' if b'"' in content else b""
    has_minus = b"-" in content
    for begin in range(0, len(letters), _CACHED_BYTES):  # twice as fast as all at once
        block = letters[begin : begin + _CACHED_BYTES + 2]
        before, first, second = block[:-2], block[1:-1], block[2:]
        begins = before == marks[0]
        for mark in marks[1:]:
            begins |= before == mark
        odd = first == ord("0")
        odd &= begins
        odd &= second - np.uint8(ord("0")) < 10  # what is below 0 wraps to above 9
        if odd.any():
            return True
        if has_minus and (begins & (first == ord("-")) & (second == ord("0"))).any():
            return True
    return False


def _types(layout: RatingsFormat) -> dict[str, pa.DataType]:
    """Name of each column to the type that it is read as."""
    known = {f.name: f.type for f in layout.raw_schema} | {"rating": pa.float64()}
    if layout.time not in PER_SECOND:
        known["timestamp"] = pa.string()
    names = [role or f"unused{place}" for place, role in enumerate(layout.columns)]
    return {name: known.get(name, pa.string()) for name in names}


def _read_typed(
    content: bytes, delimiter: str, quoted: bool, layout: RatingsFormat
) -> pa.Table | None:
    types, roles = _types(layout), set(layout.columns)
    try:
        table = pacsv.read_csv(
            pa.BufferReader(content),
            pacsv.ReadOptions(use_threads=False, block_size=1 << 22, column_names=list(types)),
            pacsv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
            ),
            pacsv.ConvertOptions(
                column_types=types,
                include_columns=[name for name in types if name in roles],
                null_values=[""],  # which only a time may be, see is_in_order
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    padded = (pc.not_equal(pc.utf8_trim(table[n], PADDING), table[n]) for n in layout.text)
    if any(pc.any(is_padded).as_py() for is_padded in padded):
        return None
    if all(is_in_order(name, table[name], layout) for name in table.column_names):
        return layout.as_raw(table)
    return None


# ----------------------------------------------------------------------------- checked way


@dataclass(frozen=True)
class _Fields:
    """The rows of a content, split into fields.

    Args:
        start: (R,) byte at which each row begins.
        text: (R,) the rows, without their ends, quoted delimiters and newlines replaced.
        parts: (R,) the fields of each.
        rows: What was replaced, and more.
        broken: (R,) which rows are not UTF-8.
    """

    start: NDArray[np.int64]
    text: pa.Array
    parts: pa.Array
    rows: Rows
    broken: NDArray[np.bool_]

    def column(self, place: int, index: pa.Array) -> pa.Array:
        """The texts of a column in some rows, blanks around and quotes undone."""
        field = pc.list_element(pc.take(self.parts, index), place)
        field = pc.utf8_trim(field, PADDING)
        quoted = pc.match_substring_regex(field, '^"([^"]|"")*"$')
        if not self.rows.quoted or not pc.any(quoted).as_py():
            return field
        inner = pc.replace_substring(pc.utf8_slice_codeunits(field, 1, -1), '""', '"')
        return pc.if_else(quoted, self.unmasked(inner), field)

    def unmasked(self, text: pa.Array) -> pa.Array:
        """Texts with what stood in quotes."""
        for stand_in, replaced in self.rows.stand_ins.items():
            text = pc.replace_substring(text, stand_in.decode(), replaced.decode())
        return text


def _split(content: bytes, layout: RatingsFormat) -> _Fields:
    rows = find_rows(content, layout.delimiter, layout.quoting)
    masked = rows.masked
    if masked.startswith(codecs.BOM_UTF8):  # the mark at the begin of a file, before any quote
        masked = b"   " + masked[3:]
    ends = np.flatnonzero(np.frombuffer(masked, np.uint8) == ord("\n")) + 1
    start = np.concatenate([[0], ends]).astype(np.int64)
    if not len(masked) or masked.endswith(b"\n"):
        start = start[:-1]
    text, broken = _decode_lines(masked, start)
    if layout.delimiter == " ":
        trimmed = pc.utf8_trim(text, " \t")
        parts = pc.split_pattern_regex(trimmed, "[ \t]+")
    else:
        parts = pc.split_pattern(text, layout.delimiter)
    return _Fields(start, text, parts, rows, broken)


def _parse_checked(content: bytes, layout: RatingsFormat, lines: int) -> ParsedRatings:
    """Find the bad rows of a chunk: a reason each, the first that applies."""
    fields = _split(content, layout)
    blank = mask_of(pc.equal(pc.utf8_trim_whitespace(fields.text), ""))
    reason = _reasons(fields, len(content), len(layout.columns))
    reason[blank] = ""
    usable = np.flatnonzero((reason == "") & ~blank)
    texts = {
        role: fields.column(place, pa.array(usable))
        for place, role in enumerate(layout.columns)
        if role
    }
    texts |= layout.constant_fields(len(usable))
    table, reason[usable] = check_fields(texts, layout)
    bad = np.flatnonzero(reason != "")
    shown = fields.unmasked(fields.text.take(pa.array(bad)))
    start = fields.start[bad]
    newlines = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n"))
    line = np.searchsorted(newlines, start)
    rejected = rejected_rows(line, start, shown, reason[bad])
    return ParsedRatings(table, rejected, lines, int((~blank).sum()))


def _reasons(fields: _Fields, size: int, columns: int) -> Reasons:
    """(R,) why a row cannot be split into the fields that it should have."""
    reason = np.full(len(fields.start), "", dtype=object)
    count = pc.list_value_length(fields.parts).to_numpy(zero_copy_only=False)
    for bad, why in (
        (np.diff(fields.start, append=size) > ROW_BYTES, LONG_ROW),
        (mask_of(pc.match_substring(fields.text, "\x00")), "NUL byte"),
        (fields.broken, "not UTF-8"),
        (np.isin(fields.start, list(fields.rows.unclosed)), "quote is not closed"),
        (count < columns, "missing column"),
        (count > columns, "too many columns"),
    ):
        reason[bad & (reason == "")] = why
    return reason


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


# ---------------------------------------------------------------------------------- head


def first_rows(content: bytes, layout: RatingsFormat) -> list[list[str]]:
    """The fields of the rows of a small content that are not blank, as texts."""
    fields = _split(content, layout)
    counts = pc.list_value_length(fields.parts).to_pylist()
    width = max(counts, default=0)
    columns = [
        iter(
            fields.column(
                place, pa.array([n for n, count in enumerate(counts) if count > place], pa.int64())
            ).to_pylist()
        )
        for place in range(width)
    ]
    filled = mask_of(pc.not_equal(pc.utf8_trim_whitespace(fields.text), ""))
    rows = [[next(column) for column in columns[:count]] for count in counts]
    return [row for row, is_filled in zip(rows, filled, strict=True) if is_filled]
