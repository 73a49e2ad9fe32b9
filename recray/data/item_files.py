"""Bytes of film files to one table: id, title, year, genres, and where else the film is found."""

import csv
import io
import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from recray import schema
from recray.data.dialect import COLUMN_NAMES
from recray.errors import RecrayError

_YEAR = re.compile(r"\((\d{4})\)\s*$")
ML_100K_GENRES = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|"
    "Film-Noir|Horror|Musical|Mystery|Romance|Sci-Fi|Thriller|War|Western"
).split("|")


def year_of(title: str) -> int:
    """The year in the title's last brackets, 0 if there is none."""
    found = _YEAR.search(title)
    return int(found.group(1)) if found else 0


def _schema(text: bool) -> pa.Schema:
    return schema.MOVIES.set(0, pa.field("raw_item", pa.string() if text else pa.int64()))


def no_movies(text: bool = False) -> pa.Table:
    """No films; ids are text or integers."""
    return _schema(text).empty_table()


def _movies(rows: list[tuple[Any, str, int, list[str]]], file: str, text: bool) -> pa.Table:
    if not rows:
        raise RecrayError(f"{file} lists no films")
    rows.sort(key=lambda row: row[0])
    columns = [pa.array(column) for column in zip(*rows, strict=True)]
    unknown = [pa.nulls(len(rows), kind) for kind in (pa.string(), pa.int64())]
    wanted = _schema(text)
    return pa.table(
        [c.cast(f.type) for c, f in zip([*columns, *unknown], wanted, strict=True)], schema=wanted
    )


def add_links(movies: pa.Table, content: bytes) -> pa.Table:
    """Add the ids of links.csv (movieId, imdbId, tmdbId): tt0114709 and 862."""
    reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    wanted = {"movieId", "imdbId", "tmdbId"}
    if not wanted <= set(reader.fieldnames or ()):
        raise RecrayError(f"links.csv has columns {reader.fieldnames}; {sorted(wanted)} are needed")
    imdb, tmdb = {}, {}
    for row in reader:
        film = int(row["movieId"])
        imdb[film] = f"tt{int(row['imdbId']):07d}" if row["imdbId"] else None
        tmdb[film] = int(row["tmdbId"]) if row["tmdbId"] else None
    films = movies["raw_item"].to_pylist()
    movies = movies.drop_columns(["imdb", "tmdb"])
    movies = movies.append_column("imdb", pa.array([imdb.get(f) for f in films], pa.string()))
    return movies.append_column("tmdb", pa.array([tmdb.get(f) for f in films], pa.int64()))


def parse_movies_100k(content: bytes, text: bool = False) -> pa.Table:
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
    return _movies(rows, "u.item", text)


def parse_movies_1m(content: bytes, text: bool = False) -> pa.Table:
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
    return _movies(rows, "movies.dat", text)


def parse_movies_csv(content: bytes, text: bool = False) -> pa.Table:
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
    return _movies(rows, "the list of films", text)


def _genres(text: str) -> list[str]:
    return [g for g in text.strip().split("|") if g and g != "(no genres listed)"]


PARSERS: dict[str, Callable[[bytes, bool], pa.Table]] = {
    "u.item": parse_movies_100k,
    "movies.dat": parse_movies_1m,
    "movies.csv": parse_movies_csv,
    "items.csv": parse_movies_csv,
}
