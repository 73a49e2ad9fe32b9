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
MOVIELENS_SCALE = (0.5, 5.0)
"""Lowest and highest rating of MovieLens, in stars."""
INTEGER = re.compile(r"^[+-]?[0-9]+(\.0+)?$")
Delimiter = Literal["\t", "::", ",", ";"]
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
        header: Whether the first line names the columns.
        scale: Lowest and highest allowed rating, in stars; None allows every finite number.
        text: Which of raw_user and raw_item hold text; the others hold integers.
        names: The columns' names in the file, as a parquet reader needs them.
        time: How times are read, a times.TimeFormat.
        constants: Pairs of role and text that hold for all of the file's rows, from the names of
            folders such as `rating=5`.
    """

    delimiter: Delimiter
    columns: tuple[str, ...]
    header: bool = False
    scale: tuple[float, float] | None = MOVIELENS_SCALE
    text: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()
    time: times.TimeFormat = "s"
    constants: tuple[tuple[str, str], ...] = ()

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


ML_100K = RatingsFormat("\t", ("raw_user", "raw_item", "rating", "timestamp"))
ML_1M = RatingsFormat("::", ("raw_user", "raw_item", "rating", "timestamp"))
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
    """

    file: RatingsFile
    start: int = 0
    stop: int | None = None


def role_of(word: str) -> str:
    """The column of schema.RAW_RATINGS that a word of the settings means: raw_user for user."""
    return f"raw_{word}" if f"raw_{word}" in IDS else word


def format_of_names(
    file: str,
    names: Sequence[str],
    columns: Columns | None = None,
    delimiter: Delimiter = ",",
) -> RatingsFormat:
    """Recognise columns by their names, in any case.

    Raises:
        RecrayError: No user column or no item column, or a name in `columns` is not there.
    """
    lower = [name.lower() for name in names]
    folders = folder_values(file)
    chosen = {role_of(role): name for role, name in (columns or {}).items()}
    for role, name in chosen.items():
        if name.lower() not in lower and name.lower() not in folders:
            raise RecrayError(
                f"--columns {role.removeprefix('raw_')}={name}: {file} has no such column; "
                f"its columns are {', '.join(names)[:200]}"
            )
    places = {lower.index(n.lower()): role for role, n in chosen.items() if n.lower() in lower}
    taken = set(chosen)
    for place, name in enumerate(lower):
        role = next((r for r, known in COLUMN_NAMES.items() if name in known), "")
        if role and role not in taken and place not in places:
            places[place] = role
            taken.add(role)
    roles = [places.get(place, "") for place in range(len(names))]
    constants = constants_of(file, roles, chosen)
    check_ids(file, [*roles, *dict(constants)], [*names, *folders])
    scale = MOVIELENS_SCALE if "movieid" in lower else None
    return RatingsFormat(
        delimiter, tuple(roles), True, scale, names=tuple(names), constants=constants
    )


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
        told = next((role for role, word in chosen.items() if word.lower() == name), "")
        role = told or next((r for r, known in COLUMN_NAMES.items() if name in known), "")
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
                f"{file} has no {word} column: its columns are {', '.join(names)[:200]}; a {word} "
                f"column is named one of {', '.join(COLUMN_NAMES[role])}, or told by "
                f"--columns {word}=NAME (in a file without a header by its place, from 1)"
            )


def text_roles(kind: IdKind, first: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """Which ids are text: by the setting, or where most of the first ones are no integers.

    Args:
        kind: data.ids.
        first: raw_user and raw_item to the first ids of the source.
    """
    if kind != "auto":
        return frozenset(IDS if kind == "text" else ())
    text = set()
    for role, values in first.items():
        filled = [value for value in values if value]
        if 2 * sum(bool(INTEGER.match(value)) for value in filled) < len(filled):
            text.add(role)
    return frozenset(text)
