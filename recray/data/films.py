"""Bytes of the releases' film files to one table: id, title, year, genres."""

import csv
import io
import re

import pyarrow as pa

from recray import schema
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


def _movies(rows: list[tuple[int, str, int, list[str]]], file: str) -> pa.Table:
    if not rows:
        raise RecrayError(f"{file} lists no films")
    rows.sort(key=lambda row: row[0])
    columns = [list(column) for column in zip(*rows, strict=True)]
    return pa.table(columns, schema=schema.MOVIES)


def parse_movies_100k(content: bytes) -> pa.Table:
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
    return _movies(rows, "u.item")


def parse_movies_1m(content: bytes) -> pa.Table:
    """ml-1m's movies.dat: id::title::genre|genre, latin-1 (ml-10m: UTF-8)."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split("::")
        if len(fields) != 3:
            raise RecrayError(f"movies.dat line {number} has {len(fields)} fields; 3 are expected")
        rows.append((int(fields[0]), fields[1].strip(), year_of(fields[1]), _genres(fields[2])))
    return _movies(rows, "movies.dat")


def parse_movies_csv(content: bytes) -> pa.Table:
    """movies.csv: movieId,title,genres with quoted titles, UTF-8."""
    reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    wanted = {"movieId", "title", "genres"}
    if not wanted <= set(reader.fieldnames or ()):
        raise RecrayError(
            f"movies.csv has columns {reader.fieldnames}; {sorted(wanted)} are needed"
        )
    rows = []
    for row in reader:
        title = (row["title"] or "").strip()
        rows.append((int(row["movieId"]), title, year_of(title), _genres(row["genres"] or "")))
    return _movies(rows, "movies.csv")


def _genres(text: str) -> list[str]:
    return [g for g in text.strip().split("|") if g and g != "(no genres listed)"]
