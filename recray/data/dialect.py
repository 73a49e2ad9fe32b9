"""How the lines of a ratings file look: delimiter, columns and kinds of ids, told from its head."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from recray.errors import RecrayError

COLUMN_NAMES = {
    "raw_user": ("user", "userid", "user_id", "raw_user", "uid", "customer_id", "session_id"),
    "raw_item": (
        "item",
        "itemid",
        "item_id",
        "movieid",
        "movie_id",
        "movie",
        "raw_item",
        "iid",
        "product_id",
        "track_id",
    ),
    "rating": ("rating", "score", "stars", "value"),
    "timestamp": ("timestamp", "time", "ts", "unix_timestamp", "unixtime"),
}
IDS = ("raw_user", "raw_item")
MOVIELENS_SCALE = (0.5, 5.0)
INTEGER = re.compile(r"^[+-]?[0-9]+(\.0+)?$")

Delimiter = Literal["\t", "::", ",", ";"]
Columns = Mapping[Any, str]
"""Role (user, item, rating, timestamp) to a column's name or place."""
IdKind = Literal["auto", "integer", "text"]


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
    """

    delimiter: Delimiter
    columns: tuple[str, ...]
    header: bool = False
    scale: tuple[float, float] | None = MOVIELENS_SCALE
    text: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()

    @property
    def implicit(self) -> bool:
        """Whether the file has no rating column; every row then counts as 1.0."""
        return "rating" not in self.columns


ML_100K = RatingsFormat("\t", ("raw_user", "raw_item", "rating", "timestamp"))
ML_1M = RatingsFormat("::", ("raw_user", "raw_item", "rating", "timestamp"))
MOVIELENS = {"u.data": ML_100K, "ratings.dat": ML_1M}


def format_of_text(file: str, head: bytes, columns: Columns | None = None) -> RatingsFormat:
    """Recognise the lines of a text file.

    Args:
        file: Its name.
        head: Its first lines.
        columns: Role (user, item, rating, timestamp) to the column's name, or to its place
            counted from 1 in a file without a header.

    Raises:
        RecrayError: No user column or no item column.
    """
    line = head.split(b"\n", 1)[0]
    if columns is None:
        known = MOVIELENS.get(file.rsplit("/", 1)[-1])
        if known is not None:
            return known
        for layout in MOVIELENS.values():
            if re.match(rb"\d+" + (layout.delimiter.encode() + rb"[\d.]+") * 3 + rb"\s*$", line):
                return layout
    text = line.decode("utf-8-sig", errors="replace").strip()
    delimiters: tuple[Delimiter, ...] = ("\t", "::", ";")
    delimiter: Delimiter = next((d for d in delimiters if d in text), ",")
    names = [name.strip().strip('"') for name in text.split(delimiter)]
    if columns is not None and all(place.isdigit() for place in columns.values()):
        return _by_place(file, delimiter, len(names), columns)
    return format_of_names(file, names, columns, delimiter)


def _by_place(file: str, delimiter: Delimiter, fields: int, columns: Columns) -> RatingsFormat:
    roles = [""] * fields
    for role, place in columns.items():
        if not 1 <= int(place) <= fields:
            raise RecrayError(f"--columns {role}={place}: {file} has {fields} columns, from 1")
        roles[int(place) - 1] = _role(role)
    _need_ids(file, roles, [str(n) for n in range(1, fields + 1)])
    return RatingsFormat(delimiter, tuple(roles), header=False, scale=None)


def _role(word: str) -> str:
    return f"raw_{word}" if f"raw_{word}" in IDS else word


def format_of_names(
    file: str,
    names: Sequence[str],
    columns: Columns | None = None,
    delimiter: Delimiter = ",",
) -> RatingsFormat:
    """Recognise columns by their names, in any case.

    Raises:
        RecrayError: No user column or no item column, or a given name is not there.
    """
    lower = [name.lower() for name in names]
    given = {_role(role): name for role, name in (columns or {}).items()}
    for role, name in given.items():
        if name.lower() not in lower:
            raise RecrayError(
                f"--columns {role.removeprefix('raw_')}={name}: {file} has no such column; "
                f"its columns are {', '.join(names)[:200]}"
            )
    places = {lower.index(name.lower()): role for role, name in given.items()}
    taken = set(given)
    for place, name in enumerate(lower):
        role = next((r for r, known in COLUMN_NAMES.items() if name in known), "")
        if role and role not in taken and place not in places:
            places[place] = role
            taken.add(role)
    roles = [places.get(place, "") for place in range(len(names))]
    _need_ids(file, roles, names)
    scale = MOVIELENS_SCALE if "movieid" in lower else None
    return RatingsFormat(delimiter, tuple(roles), header=True, scale=scale, names=tuple(names))


def _need_ids(file: str, roles: Sequence[str], names: Sequence[str]) -> None:
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
        given = [value for value in values if value]
        if 2 * sum(bool(INTEGER.match(value)) for value in given) < len(given):
            text.add(role)
    return frozenset(text)


def first_ids(layout: RatingsFormat, head: bytes) -> dict[str, list[str]]:
    """The ids in a file's first lines, as they stand there."""
    lines = head.decode("utf-8", errors="replace").split("\n")[int(layout.header) :]
    rows = [line.rstrip("\r").split(layout.delimiter) for line in lines if line.strip()]
    return {
        role: [row[place].strip(' "\ufeff') for row in rows if place < len(row)]
        for role in IDS
        for place in [layout.columns.index(role)]
    }
