"""The rows of a list in any format: delimited text, JSON lines or parquet.

A row that cannot be read is counted with its reason, and the rest is used.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel

from recray.data.formats.layout import RatingsFormat, folded
from recray.data.formats.values import PADDING, check_fields
from recray.errors import RecrayError

DELIMITERS = ("\t", "::", ";", "|", ",")
QUOTED_LINES = 50
"""A quoted field that goes on for so many lines was never closed."""
FIRST = 3
"""Rows that are shown of those that could not be used."""
BOM = "\ufeff"

Row = tuple[int, list[str]]
"""The line that a row begins in, from 1, and its fields."""


class RejectedListRow(BaseModel):
    """A row of a list that is left out: its line, or its number in a parquet file, from 1."""

    line: int
    reason: str


class ListReport(BaseModel):
    """What was read of a list.

    Args:
        file: Its name inside the source.
        kind: What it lists.
        rows: Its rows, without header and blank lines.
        used: Rows of which something is known.
        rejected: How many rows each reason left out.
        incomplete: How many used rows lack a value, by reason.
        first: The first rows that were left out.
        problem: Why nothing of it could be read; "" where something was.
        rated: Items (users) that are rated; None before ratings are counted.
        matched: How many of those are listed.
    """

    file: str
    kind: Literal["items", "links", "users"]
    rows: int = 0
    used: int = 0
    rejected: dict[str, int] = {}
    incomplete: dict[str, int] = {}
    first: list[RejectedListRow] = []
    problem: str = ""
    rated: int | None = None
    matched: int | None = None

    def reject(self, line: int, reason: str) -> None:
        """Count a row that is left out."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
        if len(self.first) < FIRST:
            self.first.append(RejectedListRow(line=line, reason=reason))

    def miss(self, reason: str) -> None:
        """Count a row that is used without one of its values."""
        self.incomplete[reason] = self.incomplete.get(reason, 0) + 1

    def with_matches(self, rated: int, matched: int) -> "ListReport":
        """The report with how many of the rated ids are listed."""
        return self.model_copy(update={"rated": rated, "matched": matched})


def matches(rated: pa.Array, listed: pa.Array) -> tuple[int, int]:
    """How many ids are rated, and how many of them are listed."""
    return len(rated), int(pc.sum(pc.is_in(rated, listed)).as_py() or 0)


@dataclass(frozen=True)
class IdRule:
    """How the ids of a list are found and read: as those of the ratings that it lies beside.

    Args:
        names: What their column may be called, the likeliest first.
        text: Whether they are text; otherwise they are integers.
        title: What the user said the column of titles is called.
    """

    names: tuple[str, ...]
    text: bool = False
    title: str | None = None


def column_of(names: Sequence[str], known: Sequence[str]) -> int | None:
    """The column that has the first of the known names that any column has."""
    own = [folded(name) for name in names]
    return next((own.index(folded(name)) for name in known if folded(name) in own), None)


# ------------------------------------------------------------------------------------ reading


def decode(content: bytes) -> str:
    """Bytes as text: UTF-8, UTF-16 with its mark, else Windows' Latin-1.

    A few broken bytes in a UTF-8 file become U+FFFD, so that the other titles stay right.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        replaced = content.decode("utf-8-sig", errors="replace")
    wide = sum(len(found) for found in re.findall(r"[^\x00-\x7f\ufffd]+", replaced))
    if wide > replaced.count("\ufffd"):
        return replaced
    try:
        return content.decode("cp1252")
    except UnicodeDecodeError:  # five bytes mean nothing there
        return content.decode("latin-1")


def read_rows(content: bytes, report: ListReport, width: int = 2) -> tuple[list[str], list[Row]]:
    """The names of the columns, and the rows, each with as many fields as there are names.

    Args:
        content: The unpacked file.
        report: Gets the rows that cannot be read.
        width: A header of text has so many names at least.

    Raises:
        RecrayError: The file is damaged, or is empty.
    """
    if content.startswith(b"PAR1"):
        return _parquet(content, report)
    text = decode(content)
    if _is_json(text):
        return _json(text, report)
    names, delimiter = header_of(text)
    if len(names) < width:
        raise RecrayError("its first line names no columns")
    rows: list[Row] = []
    records = list(_records(text, delimiter, len(names)))[1:]
    names = _with_row_names(names, records)
    for line, fields in records:
        report.rows += 1
        if fields is None:
            report.reject(line, "a quote is never closed")
        elif len(fields) < len(names):
            report.reject(line, "missing column")
        elif any(field.strip() for field in fields[len(names) :]):
            report.reject(line, "too many columns")
        else:
            rows.append((line, fields[: len(names)]))
    return names, rows


def _is_json(text: str) -> bool:
    return text.lstrip(BOM + " \r\n\t")[:1] in ("{", "[")


def header_of(text: str) -> tuple[list[str], str]:
    """The names in the first line, and the delimiter that gives the most of them."""
    line = text.lstrip(BOM + "\r\n").split("\n", 1)[0].rstrip("\r")
    split = {d: _fields(line, d) for d in DELIMITERS}
    best = max(DELIMITERS, key=lambda d: len(split[d]))
    return [name.strip().strip(BOM) for name in split[best]], best


def _fields(line: str, delimiter: str) -> list[str]:
    if delimiter == "::":
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter), [])


def _with_row_names(names: list[str], records: Sequence[tuple[int, list[str] | None]]) -> list[str]:
    """Name the column of row names, for which R writes no name."""
    first = [fields for _, fields in records[:100] if fields is not None]
    longer = [fields for fields in first if len(fields) == len(names) + 1 and fields[-1].strip()]
    return ["", *names] if first and len(longer) == len(first) else names


class _Lines:
    """Lines for csv.reader, which takes them one by one, up to a stop that can be moved."""

    def __init__(self, lines: list[str]) -> None:
        self.lines, self.at, self.stop = lines, 0, 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self.at >= min(self.stop, len(self.lines)):
            raise StopIteration
        self.at += 1
        return self.lines[self.at - 1]


def _records(text: str, delimiter: str, width: int) -> Iterator[tuple[int, list[str] | None]]:
    """The line that each record begins in, and its fields, None where a quote is never closed.

    After such a line reading goes on with the next one, so that it costs one row.
    """
    if "\n" not in text:
        text = text.replace("\r", "\n")
    lines = [f"{line}\n" for line in text.removesuffix("\n").split("\n")]
    if delimiter == "::":
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line.rstrip("\r\n").split(delimiter)
        return
    source = _Lines(lines)
    reader = csv.reader(source, delimiter=delimiter)
    while source.at < len(lines):
        begin = source.at
        source.stop = begin + QUOTED_LINES
        try:
            fields: list[str] | None = next(reader, [])
        except csv.Error:
            fields = None
        several = source.at - begin > 1
        if fields is None or (several and _is_open(fields, width, source)):
            source.at = begin + 1
            reader = csv.reader(source, delimiter=delimiter)
            yield begin + 1, None
        elif any(field.strip() for field in fields):
            yield begin + 1, fields


def _is_open(fields: list[str], width: int, source: _Lines) -> bool:
    """Whether a record of several lines ended because the lines did, not its quotes."""
    at_end = source.at >= min(source.stop, len(source.lines)) and fields[-1].endswith("\n")
    return at_end or len(fields) != width


def _parquet(content: bytes, report: ListReport) -> tuple[list[str], list[Row]]:
    try:
        table = pq.read_table(pa.BufferReader(content), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise RecrayError(f"a damaged parquet file: {error}") from error
    return table_rows(table, report)


def table_rows(table: pa.Table, report: ListReport) -> tuple[list[str], list[Row]]:
    """The rows of typed columns, as they would stand in a csv; see read_rows."""
    report.rows = len(table)
    columns = [[_text_of(value) for value in column.to_pylist()] for column in table.columns]
    rows = zip(*columns, strict=True)
    return table.column_names, [(line, list(row)) for line, row in enumerate(rows, 1)]


def _json(text: str, report: ListReport) -> tuple[list[str], list[Row]]:
    """Objects, one in a line, or all of them in one array."""
    found: list[tuple[int, Any]] = []
    if text.lstrip(BOM + " \r\n\t").startswith("["):
        try:
            found = list(enumerate(json.loads(text.lstrip(BOM)), 1))
        except ValueError as error:
            raise RecrayError(f"damaged JSON: {error}") from error
    else:
        for number, line in enumerate(text.lstrip(BOM).split("\n"), 1):
            if line.strip():
                try:
                    found.append((number, json.loads(line)))
                except ValueError:
                    found.append((number, None))
    report.rows = len(found)
    names = list(dict.fromkeys(name for _, o in found if isinstance(o, dict) for name in o))
    rows: list[Row] = []
    for number, value in found:
        if isinstance(value, dict):
            rows.append((number, [_text_of(value.get(name)) for name in names]))
        else:
            report.reject(number, "no JSON object")
    return names, rows


def _text_of(value: Any) -> str:
    """A typed value as it would stand in a csv; a list of values with bars."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # pandas makes a number of any column of integers with a gap
    if isinstance(value, list | tuple):
        return "|".join(_text_of(v.get("name") if isinstance(v, dict) else v) for v in value)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


# ---------------------------------------------------------------------------------------- ids


def checked_ids(
    raw: Sequence[str], role: str, rule: IdRule
) -> tuple[pa.Array, NDArray[np.object_]]:
    """Ids by the rules that hold for those of the ratings.

    Args:
        raw: (R,) as they stand in the list.
        role: raw_item or raw_user.
        rule: Whether they are text.

    Returns:
        The ids of the good rows, and for each row why it is bad, "" if it is not.
    """
    layout = RatingsFormat(",", (role,), text=frozenset({role} if rule.text else ()))
    column = pc.utf8_trim(pa.array(raw, pa.large_string()), PADDING)
    table, reason = check_fields({role: column}, layout)
    return table[role].combine_chunks(), reason
