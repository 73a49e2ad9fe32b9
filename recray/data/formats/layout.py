"""How the rows of a ratings file look: which column means what, and the parts of files to read."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from recray.data.formats import times
from recray.data.formats.streams import Packing
from recray.data.ids import ID_LIMIT
from recray.errors import RecrayError
from recray.schema import RAW_RATINGS

COLUMN_NAMES = {
    "raw_user": "user userid user_id raw_user uid customer_id session_id".split(),
    "raw_item": (
        "item itemid item_id movieid movie_id movie raw_item iid product_id track_id".split()
    ),
    "rating": "rating score stars value".split(),
    "timestamp": "timestamp time ts unix_timestamp unixtime".split(),
}
"""Role to the names that a header may have for it, in lower case."""
IDS = ("raw_user", "raw_item")
INTEGER = r"(0|[1-9][0-9]{0,17})(\.0*)?"
"""An integer id in the one form that no other id has; pandas adds .0 to a column with gaps."""
EXPONENT = r"[1-9](\.[0-9]+)?e\+[0-9]{2}"
"""A large number as R writes it: 1e+05."""
MISSING = frozenset(["", "nan", "null", "none", "na", "n/a", "<na>", "?", "-", r"\n"])
"""What is written where an id is missing, in lower case."""
Delimiter = Literal["\t", "::", ";", "|", ",", " "]
"""What stands between two fields; " " means any run of blanks and tabs."""
Quoting = Literal["none", "line", "rows"]
"""What quotes around a field mean: none: they are letters like others; line: the field may hold
delimiters; rows: newlines, too. See quotes.py."""
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
Columns = Mapping[Any, str]
"""Role (user, item, rating, timestamp) to a column's name or place."""
IdKind = Literal["auto", "integer", "text"]
FileKind = Literal["text", "json", "json-document", "parquet", "arrow", "orc", "sample"]
"""json is an object in each line, json-document an array of objects, or objects over many lines."""


@dataclass(frozen=True)
class RatingsFormat:
    """How the lines of a ratings file look.

    Args:
        delimiter: What stands between two fields.
        columns: The meaning of each field by position, a name of schema.RAW_RATINGS or "" for a
            field that is not used.
        header: Lines above the first row: notes, and the line that names the columns.
        scale: Lowest and highest allowed rating, in stars; None allows every finite number.
        text: Which of raw_user and raw_item hold text; the others hold integers.
        names: The columns' names in the file, as a parquet reader needs them.
        time: How times are read, a times.TimeFormat.
        constants: Pairs of role and text that hold for all of the file's rows, from the names of
            folders such as `rating=5`.
        quoting: What quotes around a field mean.
        decimal_comma: Whether numbers are written as 3,5.
        likes: Whether ratings are words, such as True or dislike, which become 1 and 0.
    """

    delimiter: Delimiter
    columns: tuple[str, ...]
    header: int = 0
    scale: tuple[float, float] | None = None
    text: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()
    time: times.TimeFormat = "s"
    constants: tuple[tuple[str, str], ...] = ()
    quoting: Quoting = "rows"
    decimal_comma: bool = False
    likes: bool = False

    @property
    def implicit(self) -> bool:
        """Whether the file has no rating column; every row then counts as 1.0."""
        return "rating" not in self.columns and "rating" not in dict(self.constants)

    def constant_fields(self, rows: int) -> dict[str, pa.Array]:
        """Role to (R,) texts, for what the names of folders say of all rows."""
        return {role: pa.repeat(pa.scalar(text), rows) for role, text in self.constants}

    @property
    def raw_schema(self) -> pa.Schema:
        """schema.RAW_RATINGS, with ids as string where they are text."""
        return pa.schema(
            [pa.field(f.name, pa.string()) if f.name in self.text else f for f in RAW_RATINGS]
        )

    def limits(self, role: str) -> tuple[float, float]:
        """The lowest and the highest value that a number of this role may have."""
        if role != "rating":
            return 0, ID_LIMIT - 1
        largest = float(np.finfo(np.float32).max)
        return self.scale or (-largest, largest)

    def as_raw(self, table: pa.Table) -> pa.Table:
        """Columns of checked values as raw_schema: 1.0 for missing ratings, null for times.

        Times may be of any type; those that cannot be read are null as well.
        """
        columns = []
        for field in self.raw_schema:
            if field.name == "timestamp" and field.name in table.column_names:
                columns.append(pa.chunked_array([times.seconds(table[field.name], self.time)]))
            elif field.name in table.column_names:
                columns.append(table[field.name].cast(field.type))
            elif field.name == "rating":
                columns.append(pa.chunked_array([np.ones(len(table), np.float32)]))
            else:
                columns.append(pa.chunked_array([pa.nulls(len(table), field.type)]))
        return pa.table(columns, schema=self.raw_schema)


_MOVIELENS_COLUMNS = ("raw_user", "raw_item", "rating", "timestamp")
ML_100K = RatingsFormat("\t", _MOVIELENS_COLUMNS, quoting="none")
ML_1M = RatingsFormat("::", _MOVIELENS_COLUMNS, quoting="none")
MOVIELENS = {"u.data": ML_100K, "ratings.dat": ML_1M}
"""Name of a file without a header to how its lines look."""


@dataclass(frozen=True)
class RatingsFile:
    """One file of ratings.

    Args:
        name: Its name as shown to people.
        path: Local path or URI of the file, or of the archive that holds it.
        kind: How it is read.
        layout: How its lines look.
        member: Its name inside a zip archive.
        part: The split that all of its rows belong to, where the source says so; logged: its
            ratings came after the source, see feedback.py.
        packing: How it is packed.
        encoding: How its letters are written.
    """

    name: str
    path: str
    kind: FileKind
    layout: RatingsFormat
    member: str = ""
    part: Literal["", "train", "test", "logged"] = ""
    packing: Packing = ""
    encoding: str = "utf-8"


@dataclass(frozen=True)
class FileRange:
    """A part of a ratings file that one worker reads.

    Args:
        file: The file.
        start: First byte that belongs to the range, or first row group of a parquet file.
        stop: End of the range; None means the file's end.
        entry: Byte at which the first row of the range begins, where that is known. Otherwise it
            is guessed to be the first line that begins in the range; see text.chunks.
    """

    file: RatingsFile
    start: int = 0
    stop: int | None = None
    entry: int | None = None


def role_of(word: str) -> str:
    """The column of schema.RAW_RATINGS that a word of the settings means: raw_user for user."""
    return f"raw_{word}" if f"raw_{word}" in IDS else word


_TYPE = re.compile(r":(token|token_seq|float|float_seq)$")


def folded(name: str) -> str:
    """A column's name without case, blanks, dashes, underscores and the type behind a colon.

    `User-ID`, `user id` and RecBole's `user_id:token` are the same name.
    """
    return re.sub(r"[\s_.-]", "", _TYPE.sub("", name.strip().lower()))


_ROLES = {folded(name): role for role, names in COLUMN_NAMES.items() for name in names}


def usual_role(name: str) -> str:
    """The column of schema.RAW_RATINGS that a header's name means, "" if it is not a usual one."""
    return _ROLES.get(folded(name), "")


def position_of(name: str, names: Sequence[str]) -> int | None:
    """Where a header has a name that the user gave: exactly so, in another case, or folded."""
    for form in (str, str.lower, folded):
        shown = [form(one) for one in names]
        if form(name) in shown:
            return shown.index(form(name))
    return None


def format_of_names(
    file: str,
    names: Sequence[str],
    columns: Columns | None = None,
    delimiter: Delimiter = ",",
) -> RatingsFormat:
    """Recognise columns by their names, however they are spelt.

    Raises:
        RecrayError: No user column or no item column, or a name in `columns` is not there.
    """
    folders = list(folder_values(file))
    places: dict[int, str] = {}
    for role, name in (columns or {}).items():
        place = position_of(name, names)
        if place is None and position_of(name, folders) is None:
            raise RecrayError(
                f"--columns {role}={name}: {file} has no such column; "
                f"its columns are {', '.join(names)[:200]}"
            )
        if place is not None:
            places[place] = role_of(role)
    chosen = {role_of(role): name for role, name in (columns or {}).items()}
    taken = set(chosen)
    for place, name in enumerate(names):
        role = usual_role(name)
        if role and role not in taken and place not in places:
            places[place] = role
            taken.add(role)
    roles = [places.get(place, "") for place in range(len(names))]
    constants = constants_of(file, roles, chosen)
    check_ids(file, [*roles, *dict(constants)], [*names, *folders])
    return RatingsFormat(delimiter, tuple(roles), header=1, names=tuple(names), constants=constants)


def folder_values(file: str) -> dict[str, str]:
    """What the names of folders say, as Hive writes them: {"rating": "5"} of `rating=5/a.csv`.

    Args:
        file: A file's name inside its source, with folders.

    Returns:
        Column in lower case to value, "" for Hive's word for nothing.
    """
    pairs = [unquote(part).split("=", 1) for part in file.split("/")[:-1] if "=" in part]
    return {name.lower(): "" if value == _HIVE_NULL else value for name, value in pairs}


def constants_of(
    file: str, roles: Sequence[str], chosen: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """Role to what the names of folders say of it, for roles that the file itself has not.

    Args:
        file: Its name inside its source, with folders.
        roles: The meaning of each column of the file.
        chosen: Role to the column's name, as told by --columns.
    """
    found: dict[str, str] = {}
    for name, value in folder_values(file).items():
        told = next((role for role, word in chosen.items() if position_of(word, [name]) == 0), "")
        role = told or usual_role(name)
        if role and role not in roles:
            found.setdefault(role, value)
    return tuple(found.items())


def check_ids(file: str, roles: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a file without users or items.

    Args:
        file: Its name.
        roles: The meaning of each column.
        names: Their names, or places.

    Raises:
        RecrayError: No user column or no item column.
    """
    for role in IDS:
        if role not in roles:
            word = role.removeprefix("raw_")
            raise RecrayError(
                f"{file} has no {word} column: its columns are {', '.join(names)[:200]}; {word} "
                f"columns are named {', '.join(COLUMN_NAMES[role])}, or told by "
                f"--columns {word}=NAME (in a file without a header by its place, from 1)"
            )


def text_roles(
    kind: IdKind,
    first: Mapping[str, Sequence[str]],
    typed: frozenset[str] = frozenset(),
) -> frozenset[str]:
    """Which ids are text: by the setting, or where a single one of the first is no plain integer.

    So no two ids become one, and none is changed: 007 and 7, -7 and an ISBN make all ids text.

    Args:
        kind: data.ids.
        first: raw_user and raw_item to the first ids of the source.
        typed: Those that a table's own types say are text.
    """
    if kind != "auto":
        return frozenset(IDS if kind == "text" else ())
    return typed | {role for role, ids in first.items() if not all(map(_is_integer, ids))}


def mostly_text(later: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """Which ids are text by what stands behind the first ones, where 1 % may be damaged rows."""
    return frozenset(
        role
        for role, ids in later.items()
        if 100 * sum(not _is_integer(value) for value in ids) > len(ids)
    )


_INTEGER_ID = re.compile(INTEGER)
_EXPONENT_ID = re.compile(EXPONENT)


def _is_integer(value: str) -> bool:
    if _INTEGER_ID.fullmatch(value) or value.lower() in MISSING:
        return True
    return bool(_EXPONENT_ID.fullmatch(value)) and float(value).is_integer()
