"""Fields of ratings as typed columns, checked column by column, never row by row in Python."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recray.data.formats.layout import RatingsFormat
from recray.data.ids import ID_LENGTH, ID_LIMIT

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
        rows: Rows that were read, accepted or rejected: those that are not blank.
    """

    table: pa.Table
    rejected: pa.Table
    lines: int
    rows: int

    @property
    def unknown_times(self) -> int:
        """Accepted rows without a time, or with one that could not be read."""
        return int(self.table["timestamp"].null_count)


def is_in_order(role: str, column: pa.ChunkedArray, layout: RatingsFormat) -> bool:
    """Whether all values of a typed column are there and within the limits of their role."""
    if role == "timestamp":  # whatever is no time is unknown, see times.py
        return True
    if column.null_count or not len(column):
        return not column.null_count
    if role in layout.text:
        length = pc.min_max(pc.utf8_length(column))
        return bool(0 < length["min"].as_py() <= length["max"].as_py() <= ID_LENGTH)
    low, high = layout.limits(role)
    values = column.to_numpy()
    # Written so that NaN fails both comparisons.
    return bool(((values >= low) & (values <= high)).all())


def mask_of(booleans: pa.Array) -> NDArray[np.bool_]:
    """(R,) Arrow booleans without nulls as a numpy mask."""
    return np.asarray(booleans.to_numpy(zero_copy_only=False))


def rejected_rows(
    line: NDArray[np.int64], byte: NDArray[np.int64], text: pa.Array, reason: Reasons
) -> pa.Table:
    """Rejected rows as schema.REJECTED without the file's name; `reason` is that of all rows."""
    shown = pc.utf8_slice_codeunits(text, 0, SHOWN).cast(pa.string())
    why = pa.array(reason[line].tolist(), pa.string())
    return pa.table({"line": line, "byte": byte, "text": shown, "reason": why})


def check_fields(fields: Mapping[str, pa.Array], layout: RatingsFormat) -> tuple[pa.Table, Reasons]:
    """Check trimmed texts column by column; a time is never wrong, at worst unknown.

    Args:
        fields: Role to (R,) texts (times: of any type), in the order in which reasons apply.
        layout: The scale, and which ids are text.

    Returns:
        The good rows as layout.raw_schema, and for each row why it is bad, "" if it is not.
    """
    reason = np.full(len(next(iter(fields.values()))), "", dtype=object)
    columns: dict[str, pa.Array] = {}
    for role, field in fields.items():
        if role == "timestamp":
            columns[role] = field
            continue
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
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"


def _check_number(role: str, field: pa.Array, layout: RatingsFormat) -> Checked:
    word = role.removeprefix("raw_")
    why = np.full(len(field), f"{word} is not a number", dtype=object)

    def matches(pattern: str) -> NDArray[np.bool_]:
        return mask_of(pc.match_substring_regex(field, pattern))

    if role == "rating":
        number = matches(_NUMBER)
        values = pc.if_else(pa.array(number), field, "0").cast(pa.float64())
        low, high = layout.limits(role)
        outside = number & ~((values.to_numpy() >= low) & (values.to_numpy() <= high))
        why[matches(r"(?i)^[+-]?(nan|inf|infinity)$")] = "rating is not finite"
        why[outside] = "rating outside the scale"
        why[matches("^$")] = "rating is empty"
        return values, ~number | outside, why
    # Whole numbers may come as 7.0, as pandas writes a column with gaps.
    integer = matches(_INTEGER)
    why[matches(r"^-[0-9.]+$")] = f"{word} is negative"
    why[matches(r"^[0-9]{19,}(\.0*)?$")] = f"{word} is too large"
    why[matches(r"(?i)^(nan|null|none)?$")] = f"{word} is empty"
    whole = pc.replace_substring_regex(field, r"\..*$", "")
    return pc.if_else(pa.array(integer), whole, "0").cast(pa.int64()), ~integer, why
