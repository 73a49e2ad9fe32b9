"""How the lines of a ratings file look, told once from its head.

What stands between fields, whether quotes mean anything, notes and the header above the rows, a
column of row names, a delimiter at the end of each row, 3,5 for 3.5 and words for ratings.
"""

import codecs
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from recray.data.formats import text
from recray.data.formats.delimited import first_rows
from recray.data.formats.layout import (
    IDS,
    MISSING,
    MOVIELENS,
    Columns,
    Delimiter,
    Quoting,
    RatingsFile,
    RatingsFormat,
    check_ids,
    constants_of,
    format_of_names,
    position_of,
    role_of,
    usual_role,
)
from recray.data.formats.quotes import find_rows, quoted_bytes
from recray.data.formats.values import LIKES
from recray.errors import RecrayError

DELIMITERS: tuple[Delimiter, ...] = ("\t", "::", ";", "|", ",", " ")
"""In the order in which they are looked for; blanks, which titles hold as well, come last."""
TRIED_BYTES = 16 << 10
"""Bytes of the head on which delimiters are tried."""
SAMPLES = 16
"""Places behind the heads of files at which ids are looked at."""
STEADY = 0.8
"""Fraction of rows that must have one number of fields for a delimiter to be believed."""
_NAMES_OF_NO_ROLE = frozenset(
    "id name title user reviewer customer buyer member visitor person author item product movie "
    "film book song artist track game asin isbn sku rating stars score review time date".split()
)
"""Words of headers, beside the usual names, that are no ids."""

Fields = list[list[str]]
"""The fields of rows."""


def format_of_text(file: str, head: bytes, columns: Columns | None = None) -> RatingsFormat:
    """Recognise the lines of a text file.

    Args:
        file: Its name.
        head: Its first lines.
        columns: Role (user, item, rating, timestamp) to the column's name, or to its place
            counted from 1, in rows with or without a header.

    Raises:
        RecrayError: No user column or no item column.
    """
    head = head.removeprefix(codecs.BOM_UTF8)
    notes, body = _without_notes(head)
    if columns is None and (known := _movielens(file, body)) is not None:
        return replace(known, header=notes)
    told: dict[str, str] = dict(columns or {})
    by_place = bool(told) and all(place.isdigit() for place in told.values())
    delimiter = _delimiter(body, () if by_place else tuple(told.values()))
    quoting = _quoting(body, delimiter)
    rows = _rows(body, delimiter, quoting)
    if by_place:
        layout = _format_of_places(file, delimiter, rows, told)
    else:
        layout = format_of_names(file, rows[0] if rows else [""], columns, delimiter)
        second = body.partition(b"\n")[2]
        meanings = _as_rows_have_them(layout.columns, rows, second.startswith(b'"'))
        layout = replace(layout, columns=meanings)
    header_lines = _lines_of_first_row(body, delimiter, quoting) if layout.header else 0
    layout = replace(layout, quoting=quoting, header=notes + header_lines)
    return _with_numbers(layout, rows[1:] if header_lines else rows)


def _movielens(file: str, body: bytes) -> RatingsFormat | None:
    """The format of MovieLens's files without a header, by their look or else by their name."""
    line = body.split(b"\n", 1)[0]
    for layout in MOVIELENS.values():
        if re.match(rb"\d+" + (layout.delimiter.encode() + rb"[\d.]+") * 3 + rb"\s*$", line):
            return layout
    named = MOVIELENS.get(file.rsplit("/", 1)[-1])
    if named is None or named.delimiter.encode() not in line:
        return None
    return None if _has_roles(_rows(line, named.delimiter, "none")) else named


# ------------------------------------------------------------------------------------- notes


_NOTE = re.compile(rb"[#%]|(?i:sep=.\s*$)|\s*$")


def _without_notes(head: bytes) -> tuple[int, bytes]:
    """Lines of notes above a table (# or %, Excel's `sep=;`, blank ones), and what follows them.

    numpy and SNAP write the header as a note: then it is taken for the header.
    """
    lines = head.splitlines(keepends=True)
    count = next((n for n, line in enumerate(lines) if not _NOTE.match(line)), len(lines))
    marked = sum(line.startswith((b"#", b"%")) for line in lines[count:])
    if count == len(lines) or 2 * marked > len(lines) - count:  # ids may begin with #
        return 0, head
    rest = b"".join(lines[count:])
    if count:
        last = lines[count - 1].lstrip(b"#% \t")
        if any(_has_roles(_rows(last, d, "none")) for d in DELIMITERS if d.encode() in last):
            return count - 1, last + rest
    return count, rest


def _has_roles(rows: Fields) -> bool:
    return bool(rows) and set(IDS) <= {usual_role(name) for name in rows[0]}


# --------------------------------------------------------------------------------- delimiters


def _rows(content: bytes, delimiter: Delimiter, quoting: Quoting) -> Fields:
    ended = not content.endswith(b"\n")
    whole = content[: find_rows(content, delimiter, quoting, ended).whole]
    return first_rows(whole, RatingsFormat(delimiter, (), quoting=quoting))


def _delimiter(body: bytes, names: Sequence[str]) -> Delimiter:
    """What stands between fields: what makes the known or told names fields, or steady rows."""
    line = body.split(b"\n", 1)[0]
    tried = body[:TRIED_BYTES]
    tried = tried[: tried.rfind(b"\n") + 1] or tried
    found: dict[Delimiter, Fields] = {}
    for delimiter in DELIMITERS:
        if delimiter.encode() in line or (delimiter == " " and b"\t" in line):
            rows = _rows(tried, delimiter, _quoting(tried, delimiter))
            if rows and len(rows[0]) > 1:
                found[delimiter] = rows
    for delimiter, rows in found.items():
        if names and all(position_of(name, rows[0]) is not None for name in names):
            return delimiter
        if not names and _has_roles(rows):
            return delimiter
    steady = {d: len(rows[0]) for d, rows in found.items() if _is_steady(rows)}
    sure: list[Delimiter] = [d for d in steady if d in ("\t", "::")]
    sure = sure or [d for d in steady if d != " "]
    if sure:
        return max(sure, key=steady.__getitem__)
    return next(iter(steady or found), ",")


def _is_steady(rows: Fields) -> bool:
    (width, count), *_ = Counter(map(len, rows[1:] or rows)).most_common(1)
    return abs(width - len(rows[0])) <= 1 and count >= STEADY * len(rows[1:] or rows)


def _quoting(body: bytes, delimiter: Delimiter) -> Quoting:
    """What quotes mean: letters where most that begin a field do not make it a quoted one.

    Files between tabs quote nothing as a rule, and a name there may begin with a quote. So a field
    of theirs may hold newlines only where the head has quoted fields.
    """
    if delimiter == "::":
        return "none"
    if b'"' in body and quoted_bytes(body, delimiter, "rows") is not None:
        return "rows"
    rows = find_rows(body, delimiter, "rows", ended=not body.endswith(b"\n"))
    opened, quoted = rows.opened
    if opened > 2 * quoted + 1:
        return "none"
    return "line" if delimiter == "\t" and not quoted else "rows"


# ------------------------------------------------------------------------------------ columns


def _format_of_places(
    file: str, delimiter: Delimiter, rows: Fields, columns: Mapping[str, str]
) -> RatingsFormat:
    width = _width(rows[1:] or rows)
    roles = [""] * width
    for role, place in columns.items():
        if not 1 <= int(place) <= width:
            raise RecrayError(f"--columns {role}={place}: {file} has {width} columns, from 1")
        roles[int(place) - 1] = role_of(role)
    constants = constants_of(file, roles, {})
    check_ids(file, [*roles, *dict(constants)], [str(n) for n in range(1, width + 1)])
    header = int(_begins_with_header(roles, rows))
    return RatingsFormat(delimiter, tuple(roles), header=header, constants=constants)


def _width(rows: Fields) -> int:
    """How many fields most rows have."""
    return Counter(map(len, rows)).most_common(1)[0][0] if rows else 0


def _begins_with_header(roles: Sequence[str], rows: Fields) -> bool:
    """Whether the first row names columns although they were told by their places."""
    first, others = rows[0], [row for row in rows[1:] if len(row) >= len(roles)]
    if len(first) + 1 < len(roles) or not others:
        return False
    first = [""] * (len(roles) - len(first)) + first  # R: row names have no name
    for place, role in enumerate(roles):
        if role in ("rating", "timestamp"):
            numbers = sum(_is_number(row[place]) for row in others)
            if 2 * numbers > len(others) and first[place].lower() not in MISSING:
                return not _is_number(first[place])
    told = [place for place, role in enumerate(roles) if role in IDS]
    return any(_names_column(first[p], [row[p] for row in others]) for p in told)


def _names_column(name: str, ids: Sequence[str]) -> bool:
    """Whether a column's first field is its name: a usual one, or a word above ids with digits."""
    if name in ids or any(map(str.isdigit, name)) or not name:
        return False
    words = re.split(r"[\W_]+", name.lower())
    usual = bool(usual_role(name)) or not _NAMES_OF_NO_ROLE.isdisjoint(words)
    return usual or all(any(map(str.isdigit, one)) for one in ids)


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True


def _as_rows_have_them(columns: tuple[str, ...], rows: Fields, quoted: bool) -> tuple[str, ...]:
    """The columns of rows that have one field more, or one less, than the header has names.

    R writes no name above row names, which are quoted or count the rows; some programs end each
    row, or the header, by a delimiter.
    """
    width = _width(rows[1:])
    usual = [row for row in rows[1:] if len(row) == width]
    if width == len(columns) + 1:
        if not any(row[-1] for row in usual):
            return (*columns, "")
        return ("", *columns) if _have_names(usual, quoted, columns) else columns
    if width == len(columns) - 1 and width and not rows[0][-1]:
        return columns[:-1]
    return columns


def _have_names(rows: Fields, quoted: bool, columns: Sequence[str]) -> bool:
    """Whether the first field of rows is their name, rather than the last one a field too many.

    Only what differs in all rows is a name. Sorted ids do as well, so the ratings and times must
    be some when read one place further on.
    """
    names = [row[0] for row in rows]
    numbers = [int(name) for name in names if name.isdecimal()]
    counted = len(numbers) == len(names) and numbers == sorted(set(numbers))
    if not counted and not (quoted and len(set(names)) == len(names)):
        return False
    ratings, times = (
        [row[columns.index(role) + 1] for row in rows] if role in columns else []
        for role in ("rating", "timestamp")
    )
    ratings = [value for value in ratings if value.lower() not in MISSING | _WORDS]
    times = [value for value in times if value.lower() not in MISSING]
    return all(_is_number(value) and not _NO_RATING.fullmatch(value) for value in ratings) and all(
        any(map(str.isdigit, value)) for value in times
    )


def _lines_of_first_row(body: bytes, delimiter: Delimiter, quoting: Quoting) -> int:
    masked = find_rows(body, delimiter, quoting, ended=not body.endswith(b"\n")).masked
    end = masked.find(b"\n") + 1 or len(body)
    return body.count(b"\n", 0, end) or 1


# ------------------------------------------------------------------------------------ numbers


_NO_RATING = re.compile(r"[0-9]{9,}|0[0-9]+")
"""Numbers that are times or ids, not ratings."""
_WORDS = frozenset(word for words in LIKES.values() for word in words)
_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+")
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+")


def _with_numbers(layout: RatingsFormat, rows: Fields) -> RatingsFormat:
    if "rating" not in layout.columns:
        return with_ratings(layout, [dict(layout.constants).get("rating", "")])
    place = layout.columns.index("rating")
    return with_ratings(layout, [row[place] for row in rows if len(row) == len(layout.columns)])


def with_ratings(layout: RatingsFormat, ratings: Sequence[str]) -> RatingsFormat:
    """Add how ratings are written: 3,5 or like and dislike.

    Args:
        layout: How the other columns look.
        ratings: The first of them, as they stand in the file.
    """
    given = [value for value in ratings if value.lower() not in MISSING]
    commas = any(_COMMA.fullmatch(v) and not _THOUSANDS.fullmatch(v) for v in given)
    likes = all(value.lower() in _WORDS for value in given)
    return replace(
        layout,
        decimal_comma=commas and not any("." in value for value in given),
        likes=likes and not all(map(_is_number, given)),
    )


# ---------------------------------------------------------------------------------------- ids


def first_ids(layout: RatingsFormat, head: bytes) -> dict[str, list[str]]:
    """The ids in a file's first lines, as they stand there, and the times."""
    lines = head.removeprefix(codecs.BOM_UTF8).split(b"\n", layout.header)
    rows = _rows(lines[-1], layout.delimiter, layout.quoting) if len(lines) > layout.header else []
    return _values(layout, rows)


def _values(layout: RatingsFormat, rows: Fields) -> dict[str, list[str]]:
    rows = [row for row in rows if len(row) == len(layout.columns)]
    if "rating" in layout.columns:  # in a damaged row, ids may be anything
        rating = layout.columns.index("rating")
        rows = [row for row in rows if layout.likes or _is_number(row[rating])]
    roles = [role for role in (*IDS, "timestamp") if role in layout.columns]
    places = {role: layout.columns.index(role) for role in roles}
    values = {role: [row[place] for row in rows] for role, place in places.items()}
    return values | {role: [text] for role, text in layout.constants if role not in values}


def later_ids(files: Sequence[RatingsFile]) -> dict[str, list[str]]:
    """Ids from places all over the files that can be read from anywhere, their ends among them."""
    found: dict[str, list[str]] = {role: [] for role in IDS}
    for file in files:
        for lines in text.samples(file, max(1, SAMPLES // len(files))):
            rows = _rows(lines, file.layout.delimiter, file.layout.quoting)
            values = _values(file.layout, rows)
            for role in IDS:
                found[role] += values[role]
    return found
