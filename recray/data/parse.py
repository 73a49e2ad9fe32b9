"""Bytes of MovieLens-style ratings to Arrow tables, and rejected rows with a reason.

Ratings are checked column by column, never row by row in Python: a chunk in which everything is
in order takes pyarrow's csv reader; any other is split and checked again by patterns, which finds
the exact rows, so that one bad row costs one chunk some time and nothing else.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from recray import schema
from recray.data.ids import ID_LIMIT
from recray.errors import RecrayError

COLUMN_NAMES = {
    "raw_user": ("user", "userid", "user_id", "raw_user", "uid"),
    "raw_item": ("item", "itemid", "item_id", "movieid", "movie_id", "movie", "raw_item", "iid"),
    "rating": ("rating", "score", "stars", "value"),
    "timestamp": ("timestamp", "time", "ts", "unix_timestamp", "unixtime"),
}
MOVIELENS_SCALE = (0.5, 5.0)


@dataclass(frozen=True)
class RatingsFormat:
    """How the lines of a ratings file look.

    Args:
        delimiter: What stands between two fields.
        columns: The meaning of each field by position, a name of schema.RAW_RATINGS or "" for a
            field that is not used.
        header: Whether the first line names the columns.
        scale: Lowest and highest allowed rating, in stars; None allows every finite number.
    """

    delimiter: Literal["\t", "::", ",", ";"]
    columns: tuple[str, ...]
    header: bool = False
    scale: tuple[float, float] | None = MOVIELENS_SCALE

    @property
    def implicit(self) -> bool:
        """Whether the file has no rating column; every row then counts as 1.0."""
        return "rating" not in self.columns


ML_100K = RatingsFormat("\t", ("raw_user", "raw_item", "rating", "timestamp"))
ML_1M = RatingsFormat("::", ("raw_user", "raw_item", "rating", "timestamp"))


def format_of_header(line: bytes, file: str) -> RatingsFormat:
    """Recognise the columns of a csv file by the names in its first line.

    Raises:
        RecrayError: No user column or no item column.
    """
    text = line.decode("utf-8-sig", errors="replace").strip()
    delimiter: Literal["\t", ",", ";"] = "\t" if "\t" in text else ";" if ";" in text else ","
    names = [name.strip().strip('"').lower() for name in text.split(delimiter)]
    roles = []
    for name in names:
        role = next((r for r, known in COLUMN_NAMES.items() if name in known), "")
        roles.append(role if role not in roles else "")
    for role, word in (("raw_user", "user"), ("raw_item", "item")):
        if role not in roles:
            raise RecrayError(
                f"{file} has no {word} column: its columns are {', '.join(names)[:200]}; "
                f"a {word} column is named one of {', '.join(COLUMN_NAMES[role])}"
            )
    own_name = "movieid" not in names
    return RatingsFormat(
        delimiter, tuple(roles), header=True, scale=None if own_name else MOVIELENS_SCALE
    )


@dataclass(frozen=True)
class ParsedRatings:
    """One chunk of a ratings file.

    Args:
        table: Accepted rows, in file order, as schema.RAW_RATINGS.
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


def _parse_clean(content: bytes, layout: RatingsFormat) -> pa.Table | None:
    """The table if every single row is in order, else None.

    Only chunks of bare numbers come this way, so that whatever has two readings (quotes, signs,
    other alphabets, a lone CR) has its one place in _parse_checked.
    """
    allowed = b"0123456789.\r\n" + layout.delimiter.encode()
    if content.translate(None, allowed) or content.count(b"\r") != content.count(b"\r\n"):
        return None
    if layout.delimiter == "::":
        content = content.replace(b"::", b"\t")
    names = [role or f"unused{i}" for i, role in enumerate(layout.columns)]
    types = {f.name: f.type for f in schema.RAW_RATINGS} | {"rating": pa.float64()}
    try:
        table = pacsv.read_csv(
            pa.BufferReader(content),
            pacsv.ReadOptions(use_threads=False, block_size=1 << 24, column_names=names),
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
    for name in ("raw_user", "raw_item", "timestamp"):
        within = name not in table.column_names or _all_between(table[name], 0, ID_LIMIT - 1)
        clean = clean and within
    if clean and not layout.implicit:
        clean = _all_between(table["rating"], *_limits(layout.scale))
    return _as_raw(table) if clean else None


def _limits(scale: tuple[float, float] | None) -> tuple[float, float]:
    largest = float(np.finfo(np.float32).max)
    return scale or (-largest, largest)


def _all_between(column: pa.ChunkedArray, low: float, high: float) -> bool:
    values = column.to_numpy()
    # Written so that NaN fails both comparisons.
    return not len(values) or bool(((values >= low) & (values <= high)).all())


def _as_raw(table: pa.Table) -> pa.Table:
    columns = []
    for field in schema.RAW_RATINGS:
        if field.name in table.column_names:
            columns.append(table[field.name].cast(field.type))
        elif field.name == "rating":
            columns.append(pa.chunked_array([np.ones(len(table), np.float32)]))
        else:
            columns.append(pa.chunked_array([pa.nulls(len(table), field.type)]))
    return pa.table(columns, schema=schema.RAW_RATINGS)


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

    columns: dict[str, pa.Array] = {}
    good = np.ones(len(usable), bool)
    for position, role in enumerate(layout.columns):
        if not role:
            continue
        field = pc.utf8_trim(pc.list_element(fields, position), ' "\ufeff')
        values, bad, why = _check_field(role, field, layout.scale)
        target = reason[usable]
        newly = bad & (target == "")
        target[newly] = why[newly]
        reason[usable] = target
        good &= ~bad
        columns[role] = values
    table = pa.table(columns).filter(pa.array(good)) if columns else pa.table({})
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
    return ParsedRatings(_as_raw(table), rejected, lines)


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


_INTEGER = rf"^[0-9]{{1,{len(str(ID_LIMIT)) - 1}}}$"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"


def _check_field(
    role: str, field: pa.Array, scale: tuple[float, float] | None
) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Values (0 where bad), which rows are bad, and why."""
    word = role.removeprefix("raw_")
    why = np.full(len(field), f"{word} is not a number", dtype=object)

    def matches(pattern: str) -> np.ndarray:
        return pc.match_substring_regex(field, pattern).to_numpy(zero_copy_only=False)

    empty = pc.equal(field, "").to_numpy(zero_copy_only=False)
    if role == "rating":
        number = matches(_NUMBER)
        clean = pc.if_else(pa.array(number), field, "0").cast(pa.float64())
        values = clean.to_numpy()
        low, high = _limits(scale)
        outside = number & ~((values >= low) & (values <= high))
        why[matches(r"(?i)^[+-]?(nan|inf|infinity)$")] = "rating is not finite"
        why[outside] = "rating outside the scale"
        why[empty] = "rating is empty"
        return clean, ~number | outside, why
    integer = matches(_INTEGER)
    why[matches(r"^-[0-9]+$")] = f"{word} is negative"
    why[matches(r"^[0-9]{19,}$")] = f"{word} is too large"
    why[empty] = f"{word} is empty"
    clean = pc.if_else(pa.array(integer), field, "0").cast(pa.int64())
    return clean, ~integer, why
