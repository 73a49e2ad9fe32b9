"""The lists beside the ratings of a source, items, links and users, and features made of them."""

# Shape letters: I = items, F = features.

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recray import schema
from recray.data.formats.layout import COLUMN_NAMES
from recray.errors import RecrayError

Item = tuple[int | str, str, int, list[str]]
"""Raw id, title, year (0 where unknown) and genres."""
User = tuple[int, int, str, str]
"""Raw id, age, gender and occupation."""
_YEAR = re.compile(r"\((\d{4})\)\s*$")
ML_100K_GENRES = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|"
    "Film-Noir|Horror|Musical|Mystery|Romance|Sci-Fi|Thriller|War|Western"
).split("|")
ML_1M_OCCUPATIONS = (
    "other|academic/educator|artist|clerical/admin|college/grad student|customer service|"
    "doctor/health care|executive/managerial|farmer|homemaker|K-12 student|lawyer|programmer|"
    "retired|sales/marketing|scientist|self-employed|technician/engineer|tradesman/craftsman|"
    "unemployed|writer"
).split("|")
"""By their numbers in users.dat, as the README of ml-1m lists them."""


def _lines(text: str, delimiter: str, size: int, file: str) -> Iterator[list[str]]:
    """The fields of each line that is not blank."""
    # Not splitlines: titles may hold characters that it takes for ends of lines.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            fields = line.rstrip("\r").split(delimiter)
            if len(fields) != size:
                raise RecrayError(
                    f"{file} line {number} has {len(fields)} fields; {size} are expected"
                )
            yield fields


def _csv(content: bytes) -> "csv.DictReader[str]":
    return csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))


# ------------------------------------------------------------------------------------- items


def year_of(title: str) -> int:
    """The year in the title's last brackets, 0 if there is none."""
    found = _YEAR.search(title)
    return int(found.group(1)) if found else 0


def _genres(text: str) -> list[str]:
    return [g for g in text.strip().split("|") if g and g != "(no genres listed)"]


def _item_table(rows: Sequence[Item], file: str, text: bool) -> pa.Table:
    """Items by ascending id, as schema.movies; their links are not known yet."""
    if not rows:
        raise RecrayError(f"{file} lists no films")
    in_order = sorted(rows, key=lambda row: row[0])
    columns = [pa.array(column) for column in zip(*in_order, strict=True)]
    columns += [pa.nulls(len(rows))] * 2
    fields = schema.movies(text)
    return pa.table([c.cast(f.type) for c, f in zip(columns, fields, strict=True)], schema=fields)


def add_links(items: pa.Table, content: bytes) -> pa.Table:
    """Add the ids of links.csv (movieId, imdbId, tmdbId): tt0114709 and 862."""
    reader = _csv(content)
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
    rows: list[Item] = []
    for fields in _lines(content.decode("latin-1"), "|", 24, "u.item"):
        flags = [g for g, flag in zip(ML_100K_GENRES, fields[5:], strict=True) if flag == "1"]
        year = year_of(fields[1]) or int(fields[2][-4:] or 0)
        rows.append((int(fields[0]), fields[1].strip(), year, [g for g in flags if g != "unknown"]))
    return _item_table(rows, "u.item", text)


def parse_items_1m(content: bytes, text: bool = False) -> pa.Table:
    """ml-1m's movies.dat: id::title::genre|genre, latin-1 (ml-10m: UTF-8)."""
    try:
        decoded = content.decode("utf-8")
    except UnicodeDecodeError:
        decoded = content.decode("latin-1")
    rows: list[Item] = [
        (int(item), title.strip(), year_of(title), _genres(genres))
        for item, title, genres in _lines(decoded, "::", 3, "movies.dat")
    ]
    return _item_table(rows, "movies.dat", text)


def parse_items_csv(content: bytes, text: bool = False) -> pa.Table:
    """movies.csv or items.csv: an item column, title, and genres between bars if there are any.

    UTF-8, quoted titles. A column `year` goes before the year in the title.
    """
    reader = _csv(content)
    named = {name.strip().lower(): name for name in reader.fieldnames or ()}
    item = next((named[n] for n in COLUMN_NAMES["raw_item"] if n in named), None)
    if item is None or "title" not in named:
        raise RecrayError(
            f"the list of films has columns {reader.fieldnames}; an item column and a title are "
            "needed"
        )
    rows: list[Item] = []
    for row in reader:
        low = {key: (row[name] or "").strip() for key, name in named.items()}
        year = int(low["year"]) if low.get("year") else year_of(low["title"])
        raw = (row[item] or "").strip()
        rows.append((raw if text else int(raw), low["title"], year, _genres(low.get("genres", ""))))
    return _item_table(rows, "the list of films", text)


ITEM_PARSERS: dict[str, Callable[[bytes, bool], pa.Table]] = {
    "u.item": parse_items_100k,
    "movies.dat": parse_items_1m,
    "movies.csv": parse_items_csv,
    "items.csv": parse_items_csv,
}
"""File name to the function that reads it, given whether ids are text."""


# ------------------------------------------------------------------------------------- users


def _user_table(rows: list[User]) -> pa.Table:
    columns = [list(column) for column in zip(*sorted(rows), strict=True)] or [[], [], [], []]
    return pa.table(columns, schema=schema.PEOPLE)


def parse_users_100k(content: bytes) -> pa.Table:
    """ml-100k's u.user: id|age|gender|occupation|zip."""
    lines = _lines(content.decode("latin-1"), "|", 5, "u.user")
    rows = [(int(user), int(age), gender, job) for user, age, gender, job, _ in lines]
    return _user_table(rows)


def parse_users_1m(content: bytes) -> pa.Table:
    """ml-1m's users.dat: id::gender::age::occupation::zip.

    Age is the youngest of a bracket (1: under 18), the occupation a number.
    """
    lines = _lines(content.decode("latin-1"), "::", 5, "users.dat")
    rows = [
        (int(user), int(age), gender, ML_1M_OCCUPATIONS[int(job)])
        for user, gender, age, job, _ in lines
    ]
    return _user_table(rows)


USER_PARSERS: dict[str, Callable[[bytes], pa.Table]] = {
    "u.user": parse_users_100k,
    "users.dat": parse_users_1m,
}


# ---------------------------------------------------------------------------------- features


def _features_of(table: pa.Table) -> list[list[str]]:
    """The names of each item's features."""
    return [
        [f"genre:{genre}" for genre in genres] + ([f"decade:{year // 10 * 10}"] if year else [])
        for genres, year in zip(table["genres"].to_pylist(), table["year"].to_pylist(), strict=True)
    ]


def feature_names(table: pa.Table) -> list[str]:
    """The features that occur, sorted: genre:Drama, decade:1990.

    Args:
        table: schema.ITEMS.
    """
    return sorted({name for names in _features_of(table) for name in names})


def feature_matrix(table: pa.Table, names: Sequence[str]) -> NDArray[np.float32]:
    """(I, F) weights: 1 / sqrt(n) for each of an item's n features, so that rows have length 1.

    Args:
        table: schema.ITEMS.
        names: The features; others are left out.
    """
    place = {name: number for number, name in enumerate(names)}
    matrix = np.zeros((len(table), len(names)), np.float32)
    for row, own in enumerate(_features_of(table)):
        known = [place[name] for name in own if name in place]
        matrix[row, known] = len(known) ** -0.5 if known else 0.0
    return matrix
