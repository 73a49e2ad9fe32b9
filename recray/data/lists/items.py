"""Lists of items, of MovieLens and of anybody: titles, years and genres as schema.movies."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from recray import schema
from recray.data.formats.layout import folded
from recray.data.lists.rows import (
    IdRule,
    ListReport,
    Row,
    checked_ids,
    column_of,
    decode,
    read_rows,
    table_rows,
)
from recray.errors import RecrayError

TITLES = (
    "title name item_title item_name movie_title movie_name book_title product_title product_name "
    "track_name track_title song artist_name game_name movie"
).split()
YEARS = (
    "year release_year year_of_publication publication_year original_publication_year release_date "
    "movie_year publish_year"
).split()
GENRES = "genres genre categories category class tags".split()
"""What columns of a list may be called, the likeliest first; see formats.layout.folded."""
ML_100K_GENRES = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|"
    "Film-Noir|Horror|Musical|Mystery|Romance|Sci-Fi|Thriller|War|Western"
).split("|")
_YEAR = re.compile(r"\((\d{4})\)\s*$")
_ML_100K = re.compile(r"[^|\n]+\|[^\n]*(\|[01]){19}\s*(\n|$)")
_ML_1M = re.compile(r"[^:\n]+::[^\n]*::[^\n]*(\n|$)")
_UNKNOWN = ("", "nan", "none", "null", "na", r"\n")


@dataclass(frozen=True)
class _Item:
    """An item as its list has it: the line it begins in, and texts that are not checked yet."""

    line: int
    raw: str
    title: str
    year: str
    genres: list[str]


def year_of(title: str) -> int:
    """The year in the title's last brackets, 0 if there is none."""
    found = _YEAR.search(title)
    return int(found.group(1)) if found else 0


def parse_year(written: str) -> int | None:
    """A year, also as 1995.0 or in a date; 0 where it is left open, None where it is no year."""
    text = written.strip()
    if text.lower() in _UNKNOWN:
        return 0
    whole = re.fullmatch(r"(\d{1,4})(\.0*)?", text)
    found = whole or re.search(r"(?<!\d)(\d{4})(?!\d)", text)
    return int(found.group(1)) if found else None


def is_item_list(names: Sequence[str], rule: IdRule) -> bool:
    """Whether columns of these names list items: an id and a title."""
    places = _places(names, rule)
    return places["item"] is not None and places["title"] is not None


def parse_items(file: str, content: bytes, rule: IdRule) -> tuple[pa.Table, ListReport]:
    """Read a list of items.

    Args:
        file: Its name.
        content: The unpacked file: as in MovieLens, or with columns of an item and a title, and
            perhaps of a year and genres.
        rule: How its ids are found and read.

    Returns:
        The items that can be read, as schema.movies, by ascending id, and the report.

    Raises:
        RecrayError: Nothing in it can be read; the reason.
    """
    report = ListReport(file=file, kind="items")
    head = content[: 64 << 10].decode("latin-1").lstrip("\r\n")
    if _ML_100K.match(head):
        rows = _rows_100k(content, report)
    elif _ML_1M.match(head) and not is_item_list(head.split("\n", 1)[0].split("::"), rule):
        rows = _rows_1m(content, report)
    else:
        rows = _named(*read_rows(content, report), rule)
    return _item_table(rows, report, rule), report


def parse_table_of_items(name: str, table: pa.Table, rule: IdRule) -> tuple[pa.Table, ListReport]:
    """The same of typed columns; a whole number is written without a point, 7 for 7.0."""
    report = ListReport(file=name, kind="items")
    return _item_table(_named(*table_rows(table, report), rule), report, rule), report


# ------------------------------------------------------------------------------------ formats


def lines_of(text: str, delimiter: str, size: int, report: ListReport) -> list[Row]:
    """The fields of each line that is not blank, where nothing is quoted."""
    rows = []
    # Not splitlines: titles may hold characters that it takes for ends of lines.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            fields = line.rstrip("\r").split(delimiter)
            report.rows += 1
            if len(fields) == size:
                rows.append((number, fields))
            else:
                few = len(fields) < size
                report.reject(number, "missing column" if few else "too many columns")
    return rows


def _rows_100k(content: bytes, report: ListReport) -> list[_Item]:
    """ml-100k's u.item: 24 fields between bars, latin-1, the last 19 are genre flags."""
    rows = []
    for line, fields in lines_of(decode(content), "|", 24, report):
        flags = [g for g, flag in zip(ML_100K_GENRES, fields[5:], strict=True) if flag == "1"]
        year = year_of(fields[1])
        genres = [g for g in flags if g != "unknown"]
        rows.append(_Item(line, fields[0], fields[1], str(year or fields[2][-4:]), genres))
    return rows


def _rows_1m(content: bytes, report: ListReport) -> list[_Item]:
    """ml-1m's movies.dat: id::title::genre|genre, latin-1 (ml-10m: UTF-8)."""
    return [
        _Item(line, item, title, "", _genres(genres, "|"))
        for line, (item, title, genres) in lines_of(decode(content), "::", 3, report)
    ]


def _named(names: list[str], rows: list[Row], rule: IdRule) -> list[_Item]:
    """Rows under a header: an item column, a title, and a year and genres if there are any."""
    places = _places(names, rule)
    item, title = places["item"], places["title"]
    if item is None or title is None:
        missing = "item column" if item is None else "title"
        raise RecrayError(
            f"it has no {missing} among its columns {', '.join(names)[:200]}; tell it by "
            f"--columns {'item' if item is None else 'title'}=NAME"
        )
    year, genres = places["year"], places["genres"]
    texts = [] if genres is None else [fields[genres] for _, fields in rows]
    separator = next((s for s in "|;," if any(s in text for text in texts)), "|")
    if genres is not None and names[genres].endswith(":token_seq"):  # RecBole's kind of a list
        separator = " "
    return [
        _Item(
            line,
            fields[item],
            fields[title],
            "" if year is None else fields[year],
            [] if genres is None else _genres(fields[genres], separator),
        )
        for line, fields in rows
    ]


def _places(names: Sequence[str], rule: IdRule) -> dict[str, int | None]:
    """The columns of item, title, year and genres."""
    title = column_of(names, [rule.title] if rule.title else TITLES)
    item = column_of(names, rule.names)
    if item is None or item == title:  # `id` alone may be the id of anything
        item = column_of(names, ["id"])
    if item is not None and item == title:
        title = column_of(names, [name for name in TITLES if folded(name) != folded(names[item])])
    return {
        "item": item,
        "title": title,
        "year": column_of(names, YEARS),
        "genres": column_of(names, GENRES),
    }


def _genres(text: str, separator: str) -> list[str]:
    """Names between separators, also in the brackets and quotes of a list."""
    parts = (part.strip().strip("[]'\"").strip() for part in text.strip().split(separator))
    return [g for g in parts if g and g != "(no genres listed)"]


# -------------------------------------------------------------------------------------- table


def _item_table(rows: Sequence[_Item], report: ListReport, rule: IdRule) -> pa.Table:
    """Items by ascending id, as schema.movies; their links are not known yet."""
    fields = schema.movies(rule.text)
    if not rows:
        return fields.empty_table()
    ids, reason = checked_ids([row.raw for row in rows], "raw_item", rule)
    good = []
    for row, why in zip(rows, reason.tolist(), strict=True):
        if why:
            report.reject(row.line, why)
        else:
            good.append(row)
    first: dict[int | str, _Item] = {}
    for raw, row in zip(ids.to_pylist(), good, strict=True):
        if raw in first:
            report.reject(row.line, "item is listed before")
        else:
            first[raw] = row
    in_order = sorted(first)
    items = [first[raw] for raw in in_order]
    titles = [item.title.strip() or None for item in items]
    columns = [
        in_order,
        titles,
        [_checked_year(item, report) for item in items],
        [item.genres for item in items],
        [None] * len(items),
        [None] * len(items),
    ]
    report.used = len(items)
    for _ in range(titles.count(None)):
        report.miss("title is empty")
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, fields, strict=True)],
        schema=fields,
    )


def _checked_year(item: _Item, report: ListReport) -> int:
    year = parse_year(item.year)
    if year is None:
        report.miss("year cannot be read")
    return year or year_of(item.title)


# -------------------------------------------------------------------------------------- links


def add_links(items: pa.Table, file: str, content: bytes) -> tuple[pa.Table, ListReport]:
    """Add the ids of links.csv (movieId, imdbId, tmdbId): tt0114709 and 862.

    Raises:
        RecrayError: Nothing in it can be read; the reason.
    """
    report = ListReport(file=file, kind="links")
    names, rows = read_rows(content, report)
    wanted = ("movieId", "imdbId", "tmdbId")
    places = [column_of(names, [name]) for name in wanted]
    if None in places:
        raise RecrayError(
            f"it has columns {', '.join(names)[:200]}; {', '.join(wanted)} are needed"
        )
    imdb, tmdb = {}, {}
    for line, fields in rows:
        found = [re.fullmatch(r"(\d*)(\.0*)?", fields[p].strip()) for p in places if p is not None]
        if not all(found) or not found[0] or not found[0].group(1):
            report.reject(line, "an id is not a number")
            continue
        item, of_imdb, of_tmdb = (one.group(1) for one in found if one)
        imdb[int(item)] = f"tt{int(of_imdb):07d}" if of_imdb else None
        tmdb[int(item)] = int(of_tmdb) if of_tmdb else None
        report.used += 1
    raw = items["raw_item"].to_pylist()
    items = items.drop_columns(["imdb", "tmdb"])
    items = items.append_column("imdb", pa.array([imdb.get(i) for i in raw], pa.string()))
    return items.append_column("tmdb", pa.array([tmdb.get(i) for i in raw], pa.int64())), report
