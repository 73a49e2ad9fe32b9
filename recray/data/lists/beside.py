"""Read the lists beside ratings: titles of items, and what is known of users.

Nothing in a list can stop a run: what cannot be read is counted and named in a report.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import JsonValue

from recray import schema
from recray.data.lists.items import add_links, parse_items
from recray.data.lists.rows import IdRule, ListReport, checked_ids
from recray.data.lists.users import parse_users
from recray.errors import RecrayError

USUAL_ITEMS = ("u.item", "movies.dat", "movies.csv", "items.csv")
USUAL_USERS = ("u.user", "users.dat")
TRIED = 5
"""Lists that are read whole to see whether they fit the ratings."""
FITS = 0.5
"""A list of no usual name, beside a file that was given alone, has so many of the ids."""

Read = Callable[[str], bytes]
"""Reads an unpacked file by its name."""
Parse = Callable[[str, bytes, IdRule], tuple[pa.Table, ListReport]]
UNREADABLE: tuple[type[Exception], ...] = (
    *(RecrayError, OSError, ValueError, LookupError, TypeError, ArithmeticError),
    *(csv.Error, pa.ArrowException),
)
"""What reading a file of unknown content may raise."""


@dataclass(frozen=True)
class Candidates:
    """Files that may list items, or users, of ratings.

    Args:
        names: The files, the likeliest first.
        rule: How the ids are found and read.
        rated: Ids of the first ratings, as they stand there.
        guessed: Whether the user gave the ratings alone, so that a list of no usual name may
            belong to something else.
    """

    names: Sequence[str]
    rule: IdRule
    rated: Sequence[str]
    guessed: bool = False


@dataclass(frozen=True)
class SideLists:
    """What is known of items and users beside their ratings.

    Args:
        movies: The items, as schema.movies; empty if there is no list.
        users: The users, as schema.listed_users; empty if there is no list.
        reports: What was read of each list.
    """

    movies: pa.Table
    users: pa.Table
    reports: tuple[ListReport, ...] = ()

    def facts(self, items: tuple[int, int], users: tuple[int, int]) -> list[JsonValue]:
        """The reports, with how many items and users are rated, and how many of these are listed.

        Args:
            items: As `matches` counts them.
            users: The same.
        """
        found = {"items": items, "users": users}
        reports = (
            report.with_matches(*found[report.kind]) if report.kind in found else report
            for report in self.reports
        )
        return [report.model_dump() for report in reports]


def read_lists(items: Candidates, users: Candidates, links: str | None, read: Read) -> SideLists:
    """Read the list of items and the list of users that fit the ratings best.

    Args:
        items: Files that may list items.
        users: Files that may list users.
        links: The file of MovieLens's links, if there is one.
        read: Reads an unpacked file.
    """
    movies, report = _best(items, "items", USUAL_ITEMS, parse_items, read)
    reports = [] if report is None else [report]
    if links and report and report.used and not items.rule.text:
        try:
            movies, report = add_links(movies, links, read(links))
        except UNREADABLE as error:
            report = _failed(links, "links", error)
        reports.append(report)
    people, report = _best(users, "users", USUAL_USERS, parse_users, read)
    reports += [] if report is None else [report]
    movies = schema.movies(items.rule.text).empty_table() if movies is None else movies
    people = schema.listed_users(users.rule.text).empty_table() if people is None else people
    return SideLists(movies, people, tuple(reports))


def _best(
    candidates: Candidates,
    kind: Literal["items", "users"],
    usual: Sequence[str],
    parse: Parse,
    read: Read,
) -> tuple[pa.Table | None, ListReport | None]:
    """The list of a usual name, else the one that has the most of the rated ids.

    Returns:
        None and the report of the first that failed, where none can be read.
    """
    best: tuple[pa.Table | None, ListReport | None] = (None, None)
    best_share = -1.0
    for name in candidates.names[:TRIED]:
        try:
            table, report = parse(name, read(name), candidates.rule)
        except UNREADABLE as error:
            table, report = None, _failed(name, kind, error)
        if table is None or not report.used:
            best = best if best[1] else (None, report)
            continue
        share = _share(candidates, table)
        is_usual = name.rsplit("/", 1)[-1] in usual
        if share > best_share and (is_usual or not candidates.guessed or share >= FITS):
            best, best_share = (table, report), share
        if is_usual:
            break
    return best


def _failed(name: str, kind: Literal["items", "users", "links"], error: Exception) -> ListReport:
    words = " ".join(str(error).split())[:300] or type(error).__name__
    return ListReport(file=name, kind=kind, problem=words)


def _share(candidates: Candidates, table: pa.Table) -> float:
    """The share of the rated ids that a list has."""
    rated, _ = checked_ids(candidates.rated, table.column_names[0], candidates.rule)
    known = pc.is_in(pc.unique(rated), table.column(0).combine_chunks())
    return float(pc.mean(known.cast(pa.int8())).as_py() or 0)
