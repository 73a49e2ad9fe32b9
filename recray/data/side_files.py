"""The lists beside the ratings of a source: items, links and users. Each may be missing."""

import csv
import io
import re
from collections.abc import Callable, Sequence

import pyarrow as pa

from recray import schema
from recray.data.readers import COLUMN_NAMES, RatingsFile
from recray.errors import RecrayError

Item = tuple[int | str, str, int, list[str]]
"""Raw id, title, year (0 where unknown) and genres."""
_YEAR = re.compile(r"\((\d{4})\)\s*$")
ML_100K_GENRES = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|"
    "Film-Noir|Horror|Musical|Mystery|Romance|Sci-Fi|Thriller|War|Western"
).split("|")
# The README of ml-1m names them by number.
ML_1M_OCCUPATIONS = (
    "other|academic/educator|artist|clerical/admin|college/grad student|customer service|"
    "doctor/health care|executive/managerial|farmer|homemaker|K-12 student|lawyer|programmer|"
    "retired|sales/marketing|scientist|self-employed|technician/engineer|tradesman/craftsman|"
    "unemployed|writer"
).split("|")

Read = Callable[[str], bytes | None]
"""Reads a file by its name inside the source; None if there is no such file."""


def items_beside(file: RatingsFile, read: Read, text: bool) -> pa.Table:
    """Read the list of items beside a ratings file, as schema.MOVIES.

    Args:
        file: The ratings.
        read: Reads the files of the source.
        text: Whether item ids are text.

    Raises:
        RecrayError: A list of items cannot be read.
    """
    stem = _stem(file)
    for name, parser in ITEM_PARSERS.items():
        content = read(stem + name)
        if content is None:
            continue
        movies = _parse(name, file, lambda: parser(content, text))  # noqa: B023 - called here
        links = read(f"{stem}links.csv") if name == "movies.csv" and not text else None
        if links is None:
            return movies
        return _parse("links.csv", file, lambda: add_links(movies, links))  # noqa: B023
    return no_items(text)


def users_beside(file: RatingsFile, read: Read) -> pa.Table:
    """Read the list of users beside a ratings file, with age, gender and occupation.

    Raises:
        RecrayError: The list of users cannot be read.
    """
    for name, parser in USER_PARSERS.items():
        if (content := read(_stem(file) + name)) is not None:
            return _parse(name, file, lambda: parser(content))  # noqa: B023 - called here
    return no_users()


def _stem(file: RatingsFile) -> str:
    return file.name[: file.name.rfind("/") + 1]


def _parse(name: str, file: RatingsFile, parse: Callable[[], pa.Table]) -> pa.Table:
    try:
        return parse()
    except (RecrayError, ValueError, IndexError, TypeError, OverflowError, csv.Error) as error:
        raise RecrayError(f"{name} beside {file.path} cannot be read: {error}") from error


# ------------------------------------------------------------------------------------- items


def year_of(title: str) -> int:
    """The year in the title's last brackets, 0 if there is none."""
    found = _YEAR.search(title)
    return int(found.group(1)) if found else 0


def _schema(text: bool) -> pa.Schema:
    return schema.MOVIES.set(0, pa.field("raw_item", pa.string() if text else pa.int64()))


def no_items(text: bool = False) -> pa.Table:
    """An empty list of items whose ids are text or integers."""
    return _schema(text).empty_table()


def _item_table(rows: Sequence[Item], file: str, text: bool) -> pa.Table:
    if not rows:
        raise RecrayError(f"{file} lists no films")
    in_order = sorted(rows, key=lambda row: row[0])
    columns = [pa.array(column) for column in zip(*in_order, strict=True)]
    unknown = [pa.nulls(len(rows), kind) for kind in (pa.string(), pa.int64())]
    fields = _schema(text)
    return pa.table(
        [c.cast(f.type) for c, f in zip([*columns, *unknown], fields, strict=True)], schema=fields
    )


def add_links(items: pa.Table, content: bytes) -> pa.Table:
    """Add the ids of links.csv (movieId, imdbId, tmdbId): tt0114709 and 862."""
    reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    needed = {"movieId", "imdbId", "tmdbId"}
    if not needed <= set(reader.fieldnames or ()):
        raise RecrayError(f"links.csv has columns {reader.fieldnames}; {sorted(needed)} are needed")
    imdb, tmdb = {}, {}
    for row in reader:
        item = int(row["movieId"])
        imdb[item] = f"tt{int(row['imdbId']):07d}" if row["imdbId"] else None
        tmdb[item] = int(row["tmdbId"]) if row["tmdbId"] else None
    raw = items["raw_item"].to_pylist()
    items = items.drop_columns(["imdb", "tmdb"])
    items = items.append_column("imdb", pa.array([imdb.get(i) for i in raw], pa.string()))
    return items.append_column("tmdb", pa.array([tmdb.get(i) for i in raw], pa.int64()))


def parse_items_100k(content: bytes, text: bool = False) -> pa.Table:
    """ml-100k's u.item: 24 fields between bars, latin-1, the last 19 are genre flags."""
    rows = []
    for number, line in enumerate(content.decode("latin-1").split("\n"), 1):
        fields = line.rstrip("\r").split("|")
        if not line.strip():
            continue
        if len(fields) != 24:
            raise RecrayError(f"u.item line {number} has {len(fields)} fields; 24 are expected")
        flags = [g for g, flag in zip(ML_100K_GENRES, fields[5:], strict=True) if flag == "1"]
        year = year_of(fields[1]) or int(fields[2][-4:] or 0)
        rows.append((int(fields[0]), fields[1].strip(), year, [g for g in flags if g != "unknown"]))
    return _item_table(rows, "u.item", text)


def parse_items_1m(content: bytes, text: bool = False) -> pa.Table:
    """ml-1m's movies.dat: id::title::genre|genre, latin-1 (ml-10m: UTF-8)."""
    try:
        written = content.decode("utf-8")
    except UnicodeDecodeError:
        written = content.decode("latin-1")
    rows = []
    for number, line in enumerate(written.split("\n"), 1):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split("::")
        if len(fields) != 3:
            raise RecrayError(f"movies.dat line {number} has {len(fields)} fields; 3 are expected")
        rows.append((int(fields[0]), fields[1].strip(), year_of(fields[1]), _genres(fields[2])))
    return _item_table(rows, "movies.dat", text)


def parse_items_csv(content: bytes, text: bool = False) -> pa.Table:
    """movies.csv or items.csv: an item column, title, and genres between bars if there are any.

    UTF-8, quoted titles. A column `year` goes before the year in the title.
    """
    reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    named = {name.strip().lower(): name for name in reader.fieldnames or ()}
    item = next((named[n] for n in COLUMN_NAMES["raw_item"] if n in named), None)
    if item is None or "title" not in named:
        raise RecrayError(
            f"the list of films has columns {reader.fieldnames}; an item column and a title are "
            "needed"
        )
    rows = []
    for row in reader:
        low = {key: (row[name] or "").strip() for key, name in named.items()}
        year = int(low["year"]) if low.get("year") else year_of(low["title"])
        raw = (row[item] or "").strip()
        rows.append((raw if text else int(raw), low["title"], year, _genres(low.get("genres", ""))))
    return _item_table(rows, "the list of films", text)


def _genres(text: str) -> list[str]:
    return [g for g in text.strip().split("|") if g and g != "(no genres listed)"]


ITEM_PARSERS: dict[str, Callable[[bytes, bool], pa.Table]] = {
    "u.item": parse_items_100k,
    "movies.dat": parse_items_1m,
    "movies.csv": parse_items_csv,
    "items.csv": parse_items_csv,
}


# ------------------------------------------------------------------------------------- users

User = tuple[int, int, str, str]


def no_users() -> pa.Table:
    """An empty list of users."""
    return schema.PEOPLE.empty_table()


def _user_table(rows: list[User]) -> pa.Table:
    rows.sort()
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
    return pa.table(columns, schema=schema.PEOPLE)


def parse_users_100k(content: bytes) -> pa.Table:
    """ml-100k's u.user: id|age|gender|occupation|zip."""
    return _user_table([_user(fields, fields[3]) for fields in _lines(content, "|", "u.user")])


def parse_users_1m(content: bytes) -> pa.Table:
    """ml-1m's users.dat: id::gender::age::occupation::zip.

    Age is the youngest of a bracket (1: under 18), the occupation a number.
    """
    rows = []
    for user, gender, age, occupation, _ in _lines(content, "::", "users.dat"):
        rows.append(_user([user, age, gender], ML_1M_OCCUPATIONS[int(occupation)]))
    return _user_table(rows)


USER_PARSERS: dict[str, Callable[[bytes], pa.Table]] = {
    "u.user": parse_users_100k,
    "users.dat": parse_users_1m,
}


def _lines(content: bytes, delimiter: str, file: str) -> list[list[str]]:
    rows = []
    for number, line in enumerate(content.decode("latin-1").split("\n"), 1):
        if line.strip():
            fields = line.rstrip("\r").split(delimiter)
            if len(fields) != 5:
                raise RecrayError(f"{file} line {number} has {len(fields)} fields; 5 are expected")
            rows.append(fields)
    return rows


def _user(fields: list[str], occupation: str) -> User:
    return int(fields[0]), int(fields[1]), fields[2], occupation
