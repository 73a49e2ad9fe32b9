"""Fields of ratings as typed columns, checked column by column, never row by row in Python."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recray.data.formats.layout import EXPONENT, INTEGER, MISSING, RatingsFormat
from recray.data.ids import ID_LENGTH, ID_LIMIT

SHOWN = 200
"""Characters of a rejected line that are kept."""
PADDING = " \ufeff"
"""What may stand around a field: blanks, and the mark at the begin of a file."""
LIKES = {
    "1": ("1", "true", "t", "yes", "y", "like", "liked", "likes", "up", "thumbs up", "thumbs_up"),
    "0": (
        *("0", "false", "f", "no", "n", "dislike", "disliked", "dislikes", "down", "thumbs down"),
        "thumbs_down",
    ),
}
"""Words in lower case that may be ratings, by their value."""

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
        rows: Rows in the chunk, without blank lines: accepted and rejected ones.
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
    """Rejected rows as schema.REJECTED without the file's name."""
    shown = pc.utf8_slice_codeunits(text, 0, SHOWN).cast(pa.string())
    why = pa.array(reason.tolist(), pa.string())
    return pa.table({"line": line, "byte": byte, "text": shown, "reason": why})


def check_fields(fields: Mapping[str, pa.Array], layout: RatingsFormat) -> tuple[pa.Table, Reasons]:
    """Check trimmed texts column by column; a time is never wrong, at worst unknown.

    Args:
        fields: Role to (R,) texts (times: of any type), in the order in which reasons apply.
        layout: The scale, which ids are text, and how numbers are written.

    Returns:
        The good rows as layout.raw_schema, and for each row why it is bad, "" if it is not.
    """
    reason = np.full(len(next(iter(fields.values()))), "", dtype=object)
    columns: dict[str, pa.Array] = {}
    for role, field in fields.items():
        if role == "timestamp":
            columns[role] = field
            continue
        if role in layout.text:
            columns[role], bad, why = _check_text(role, field)
        elif role == "rating":
            columns[role], bad, why = _check_rating(_number(field, layout), layout)
        else:
            columns[role], bad, why = _check_id(role, _number(field, layout))
        newly = bad & (reason == "")
        reason[newly] = why[newly]
    return layout.as_raw(pa.table(columns).filter(pa.array(reason == ""))), reason


def _number(field: pa.Array, layout: RatingsFormat) -> pa.Array:
    """Numbers with a decimal point, and without blanks that stood inside quotes."""
    field = pc.utf8_trim(field, " ")
    return pc.replace_substring(field, ",", ".") if layout.decimal_comma else field


def _matches(field: pa.Array, pattern: str) -> NDArray[np.bool_]:
    return mask_of(pc.match_substring_regex(field, f"^({pattern})$"))


def _check_text(role: str, field: pa.Array) -> Checked:
    word = role.removeprefix("raw_")
    why = np.full(len(field), f"{word} is too long", dtype=object)
    length = pc.utf8_length(field).to_numpy(zero_copy_only=False)
    why[length == 0] = f"{word} is empty"
    return field, (length == 0) | (length > ID_LENGTH), why


def _check_id(role: str, field: pa.Array) -> Checked:
    """Integers in their one form, so that no two ids become one; 7.0 and R's 1e+05 are repaired."""
    word = role.removeprefix("raw_")
    good = _matches(field, INTEGER)
    large = _matches(field, EXPONENT)
    values = pc.if_else(pa.array(large), field, "0").cast(pa.float64()).to_numpy()
    whole = pc.if_else(pa.array(good), pc.replace_substring_regex(field, r"\..*$", ""), "0")
    large &= (values < ID_LIMIT) & (values == np.floor(values))
    ids = np.where(large, np.where(large, values, 0).astype(np.int64), whole.cast(pa.int64()))
    why = np.full(len(field), f"{word} is not a number", dtype=object)
    why[_matches(field, r"-[0-9.]+")] = f"{word} is negative"
    why[_matches(field, r"[0-9]{19,}(\.0*)?")] = f"{word} is too large"
    why[_matches(field, r"0[0-9]+(\.0*)?")] = f"{word} has leading zeros"
    missing = pc.is_in(pc.utf8_lower(field), pa.array(sorted(MISSING), field.type))
    why[mask_of(missing)] = f"{word} is empty"
    return pa.array(ids), ~(good | large), why


_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?"


def _check_rating(field: pa.Array, layout: RatingsFormat) -> Checked:
    if layout.likes:
        lower = pc.utf8_lower(field)
        for value, words in LIKES.items():
            field = pc.if_else(pc.is_in(lower, pa.array(words, field.type)), value, field)
    number = _matches(field, _NUMBER)
    values = pc.if_else(pa.array(number), field, "0").cast(pa.float64())
    low, high = layout.limits("rating")
    outside = number & ~((values.to_numpy() >= low) & (values.to_numpy() <= high))
    why = np.full(len(field), "rating is not a number", dtype=object)
    why[_matches(field, r"(?i)[+-]?(nan|inf|infinity)")] = "rating is not finite"
    why[outside] = "rating outside the scale"
    why[_matches(field, "")] = "rating is empty"
    return values, ~number | outside, why
