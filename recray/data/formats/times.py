"""Turn times of ratings in any writing into Unix seconds UTC; null where unknown.

One rule reads a whole column, and its first values decide it: the unit of numbers by their size,
and whether the day or the month of a date comes first. A time is optional, so one that the rule
cannot read, or that lies outside the years 1700 to 2200, is unknown and costs no rating.
"""

# Shape letter: R = rows.

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

TimeFormat = Literal["s", "ms", "us", "ns", "typed", "iso", "compact", "mdy", "dmy", "unclear"]
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Units of numbers, and how many of them make a second."""
WORDS: Mapping[str, str] = {
    "s": "seconds since 1970",
    "ms": "milliseconds since 1970",
    "us": "microseconds since 1970",
    "ns": "nanoseconds since 1970",
    "typed": "timestamps in the unit of their column",
    "iso": "dates with the year first, UTC where no zone is given",
    "compact": "dates of digits, as 20140513",
    "mdy": "dates with the month first, as 12/31/2014",
    "dmy": "dates with the day first, as 31/12/2014",
    "unclear": "dates whose day and month cannot be told apart, so all are unknown",
}
EARLIEST, END = -8_520_336_000, 7_289_654_400
"""Seconds at which the years 1700 and 2201 begin; times of nanoseconds reach little further."""

Times = tuple[NDArray[np.int64], NDArray[np.bool_]]
"""(R,) seconds, 0 where unknown, and (R,) whether they are known."""

_WHOLE = r"^-?[0-9]{1,18}$"
_LONG = r"^-?[0-9]{19}$"
_NUMBER = r"^[+-]?([0-9]+[.,]?[0-9]*|[.,][0-9]+)([eE][+-]?[0-9]{1,3})?$"
_COMPACT = r"^(1[7-9]|2[0-2])\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(\d{6})?$"
_DATE = (
    r"(?i)^(?P<a>\d{1,4})(?P<sep>[-/. ])(?P<b>\d{1,2})[-/., ]+(?P<c>\d{1,4})"
    r"(?:(?:t|,? +|,)(?P<hour>\d{1,2})(?::(?P<minute>\d{1,2})(?::(?P<second>\d{2})(?:[.,]\d*)?)?)?"
    r"(?: *(?P<half>[ap])\.?m\.?)?)?"
    r" *(?:z|utc|gmt)? *(?P<zone>[+-]\d{2}:?(?:\d{2})?)?$"
)
_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
_NAMED = f"(?P<m>{'|'.join(_MONTHS)})[a-z]*"
_REWRITTEN = (
    (r"^(\d{4})(\d\d)(\d\d)$", r"\1-\2-\3"),
    (r"(?i)^(\d{4})(\d\d)(\d\d)[t ]?(\d\d)(\d\d)(\d\d)", r"\1-\2-\3 \4:\5:\6"),
)
"""Dates of digits alone, written with dashes and colons."""
_RENAMED = (
    (r"(?i)^(mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,? +", ""),
    (rf"(?i)^{_NAMED}\.? +(\d{{1,2}}) +([\d:]+) +(.*?) *(\d{{4}})$", r"\5-\1-\2 \3 \4"),
    (rf"(?i)^{_NAMED}\.?[ -]+(\d{{1,2}})(st|nd|rd|th)?,?[ -]+(\d{{4}})", r"\4-\1-\2"),
    (rf"(?i)^(\d{{1,2}})(st|nd|rd|th)?[ -]+{_NAMED}\.?,?[ -]+(\d{{4}})", r"\4-\3-\1"),
    *((f"(?i)-{name}-", f"-{n}-") for n, name in enumerate(_MONTHS, 1)),
)
"""Dates with the month's name (Tue May 13 18:16:40 +0000 2014, May 13, 2014, 13 May 2014), written
with the year first."""


def format_of(first: Sequence[Sequence[str] | None]) -> TimeFormat:
    """The rule that reads the times of some files, by their first values.

    Args:
        first: For each file the first values, as they stand there; None where the type of the
            column tells the unit.
    """
    text = _tidy(pa.array([value for of_file in first for value in of_file or ()], pa.string()))
    if first and all(of_file is None for of_file in first):
        return "typed"
    number = _matches(text, _NUMBER)
    found = _date_parts(text.filter(pa.array(~number)))
    dates = found.drop_null()
    if not len(dates) or len(dates) < number.sum():
        return _unit_of(text.filter(pa.array(number)))
    year_first = _matches(pc.struct_field(dates, "a"), r"^\d{4}$")
    if 2 * year_first.sum() >= len(dates):
        return "iso"
    return _order_of(dates.filter(pa.array(~year_first)))


def _unit_of(text: pa.Array) -> TimeFormat:
    """The unit in which the middle one of these numbers is a time before 2201."""
    if len(text) and _matches(text, _COMPACT).all():
        return "compact"
    values = np.abs(_as_floats(text))
    values = values[values > 1]  # 0 and -1 often stand for a missing time
    middle = float(np.median(values)) if len(values) else 0.0
    units: tuple[TimeFormat, ...] = ("s", "ms", "us", "ns")
    return next((unit for unit in units if middle / PER_SECOND[unit] < END), "s")


def _order_of(dates: pa.StructArray) -> TimeFormat:
    """Whether the month or the day comes first; more of these dates can be read that way."""
    first, second = (_as_ints(pc.struct_field(dates, name)) for name in ("a", "b"))
    month_first = int(((first <= 12) & (second <= 31)).sum())
    day_first = int(((first <= 31) & (second <= 12)).sum())
    if month_first == day_first:
        dotted = pc.all(pc.equal(pc.struct_field(dates, "sep"), ".")).as_py()
        return "dmy" if dotted else "unclear"  # 05.12.2014 is written where the day comes first
    return "mdy" if month_first > day_first else "dmy"


def seconds(column: pa.ChunkedArray, time_format: str) -> pa.Array:
    """Read a column of times of any type.

    Args:
        column: (R,) texts, numbers, or any of Arrow's dates and timestamps, whose unit is their
            own.
        time_format: The rule, a TimeFormat.

    Returns:
        (R,) int64 Unix seconds from 1700 to 2200, fractions cut off; null where unknown.
    """
    values = pa.concat_arrays(column.chunks) if column.num_chunks else column.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_integer(values.type) and time_format == "s" and _in_range(values):
        return values.cast(pa.int64())
    found, known = _read(values, time_format)
    known = known & (found >= EARLIEST) & (found < END)
    return pa.array(found, mask=None if known.all() else ~known)


def _in_range(values: pa.Array) -> bool:
    ends = pc.min_max(values)
    low, high = ends["min"].as_py(), ends["max"].as_py()
    return low is None or (low >= EARLIEST and high < END)


def _read(values: pa.Array, time_format: str) -> Times:
    kind = values.type
    if pa.types.is_temporal(kind):
        return _of_temporal(values)
    if pa.types.is_integer(kind) and time_format in PER_SECOND:
        whole = _filled(values)
        fits = whole <= np.iinfo(np.int64).max  # as no unsigned number above it does
        return np.where(fits, whole, 0).astype(np.int64) // PER_SECOND[time_format], (
            fits & _valid(values)
        )
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        if time_format in PER_SECOND:
            return _of_floats(_filled(values.cast(pa.float64())), time_format, _valid(values))
        values = _filled(values.cast(pa.float64()))  # such as 20140513.0
        values = pa.array(np.nan_to_num(values, posinf=0, neginf=0).astype(np.int64))
    try:
        text = values.cast(pa.large_string())
    except pa.ArrowException:  # lists, structs, bytes that are no text
        return np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    return _of_texts(_tidy(text), time_format)


def _of_temporal(values: pa.Array) -> Times:
    kind = values.type
    if pa.types.is_date32(kind):
        return _filled(values.cast(pa.int32())).astype(np.int64) * 86_400, _valid(values)
    if pa.types.is_date64(kind):
        values = values.cast(pa.timestamp("ms"))
    elif not pa.types.is_timestamp(kind):  # a time of day or a duration
        return np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    return _filled(values.cast(pa.int64())) // PER_SECOND[values.type.unit], _valid(values)


def _of_floats(values: NDArray[np.float64], unit: str, valid: NDArray[np.bool_]) -> Times:
    whole = np.floor(values / PER_SECOND[unit])
    known = valid & (whole >= EARLIEST) & (whole < END)  # False for nan
    return np.where(known, whole, 0).astype(np.int64), known


# ------------------------------------------------------------------------------------- texts


def _tidy(text: pa.Array) -> pa.Array:
    return pc.utf8_trim(pc.fill_null(text, ""), " \"'\ufeff\t")


def _of_texts(text: pa.Array, time_format: str) -> Times:
    if time_format == "iso":
        quick = _by_arrow(text)
        if quick is not None:
            return _of_temporal(quick)
    found, known = np.zeros(len(text), np.int64), np.zeros(len(text), bool)
    number = _matches(text, _NUMBER)
    if time_format in PER_SECOND and number.any():
        found[number], known[number] = _of_numbers(text.filter(pa.array(number)), time_format)
    date = ~number | (time_format == "compact")
    if date.any():
        found[date], known[date] = _of_dates(text.filter(pa.array(date)), time_format)
    return found, known


def _by_arrow(text: pa.Array) -> pa.Array | None:
    """What Arrow reads by itself, which is fast: all times with an offset, or all without."""
    text = pc.utf8_rtrim(text, " ZUTC")  # Arrow is slow with named zones
    year_first = pc.match_substring_regex(text, "^[0-9]{4}-")
    others = pc.and_not(pc.match_substring_regex(text, "[0-9]"), year_first)
    if pc.any(others).as_py():
        return None
    dated = pc.if_else(year_first, text, None)
    for unit, zone in (("us", None), ("us", "UTC"), ("ns", None), ("ns", "UTC")):
        try:
            return dated.cast(pa.timestamp(unit, zone))
        except pa.ArrowInvalid:
            continue
    return None


def _of_numbers(text: pa.Array, unit: str) -> Times:
    """Digits are read exactly; 1.4e+09 and fractions as floats, then cut down."""
    digits = pc.utf8_ltrim(text, "-")
    fits = _matches(text, _LONG) & _mask(pc.less_equal(digits, str(np.iinfo(np.int64).max)))
    whole = _matches(text, _WHOLE) | fits
    exact = pc.if_else(pa.array(whole), text, "0").cast(pa.int64()).to_numpy()
    found, known = exact // PER_SECOND[unit], whole.copy()
    if not whole.all():
        rest = _as_floats(text.filter(pa.array(~whole)))
        found[~whole], known[~whole] = _of_floats(rest, unit, np.ones(len(rest), bool))
    return found, known


def _date_parts(text: pa.Array) -> pa.StructArray:
    """The parts of dates as texts, "" where one is missing; null for what is no date."""
    for pattern, form in _REWRITTEN:
        text = pc.replace_substring_regex(text, pattern, form)
    if pc.any(pc.match_substring_regex(text, f"(?i){_NAMED}")).as_py():
        for pattern, form in _RENAMED:
            text = pc.replace_substring_regex(text, pattern.replace("?P<m>", ""), form)
    return pc.extract_regex(text, _DATE)


def _of_dates(text: pa.Array, time_format: str) -> Times:
    """Dates of the calendar, with or without a time of day and a zone; UTC without one."""
    parts = _date_parts(text)
    known = _mask(pc.is_valid(parts))
    a, b, c = (_as_ints(pc.struct_field(parts, name)) for name in ("a", "b", "c"))
    year_first = _matches(pc.fill_null(pc.struct_field(parts, "a"), ""), r"^\d{4}$")
    month, day = (b, a) if time_format == "dmy" else (a, b)
    year = np.where(c < 69, c + 2000, np.where(c < 100, c + 1900, c))  # as POSIX has it
    year, month, day = (np.where(year_first, x, y) for x, y in ((a, year), (b, month), (c, day)))
    known &= year_first | (time_format in ("mdy", "dmy"))
    known &= (month >= 1) & (month <= 12) & (year >= 1700) & (year <= 2200)
    first = np.where(known, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    date = first.astype("datetime64[D]") + (day - 1)
    known &= (day >= 1) & (date.astype("datetime64[M]") == first)
    of_day, in_day = _seconds_of_day(parts)
    found = date.astype(np.int64) * 86_400 + of_day - _zone(parts)
    return np.where(known & in_day, found, 0), known & in_day


def _seconds_of_day(parts: pa.StructArray) -> Times:
    names = ("hour", "minute", "second")
    hour, minute, second = (_as_ints(pc.struct_field(parts, name)) for name in names)
    half = pc.utf8_lower(pc.fill_null(pc.struct_field(parts, "half"), ""))
    named = _mask(pc.not_equal(half, ""))
    known = (hour < 24) & (minute < 60) & (second <= 60)  # 60 is a leap second
    known &= ~named | ((hour >= 1) & (hour <= 12))
    afternoon = _mask(pc.equal(half, "p"))
    hour = np.where(named, hour % 12 + 12 * afternoon, hour)
    return hour * 3600 + minute * 60 + second, known


def _zone(parts: pa.StructArray) -> NDArray[np.int64]:
    """Seconds by which each time's clock is ahead of UTC."""
    zone = pc.fill_null(pc.struct_field(parts, "zone"), "")
    sign = np.where(_mask(pc.starts_with(zone, "-")), -1, 1)
    digits = pc.replace_substring_regex(zone, "[^0-9]", "")
    hours, minutes = (pc.utf8_slice_codeunits(digits, at, at + 2) for at in (0, 2))
    return np.asarray(sign * (_as_ints(hours) * 3600 + _as_ints(minutes) * 60))


# --------------------------------------------------------------------------------- small steps


def _mask(booleans: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(booleans.to_numpy(zero_copy_only=False), bool)


def _matches(text: pa.Array, pattern: str) -> NDArray[np.bool_]:
    return _mask(pc.match_substring_regex(text, pattern))


def _valid(values: pa.Array) -> NDArray[np.bool_]:
    return _mask(pc.is_valid(values))


def _filled(values: pa.Array) -> NDArray[Any]:
    """(R,) numbers, 0 for null."""
    return np.asarray(pc.fill_null(values, 0).to_numpy(zero_copy_only=False))


def _as_ints(text: pa.Array) -> NDArray[np.int64]:
    """(R,) of texts of a few digits; 0 where empty or null."""
    filled = pc.if_else(pc.equal(pc.fill_null(text, ""), ""), "0", text)
    return np.asarray(filled.cast(pa.int64()).to_numpy())


def _as_floats(text: pa.Array) -> NDArray[np.float64]:
    """(R,) of texts that match _NUMBER, a decimal comma among them."""
    plain = pc.utf8_ltrim(pc.replace_substring(text, ",", "."), "+")
    return np.asarray(plain.cast(pa.float64()).to_numpy())
