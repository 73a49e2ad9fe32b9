"""Bytes of the releases' user files to one table: id, age, gender, occupation."""

from collections.abc import Callable

import pyarrow as pa

from recray import schema
from recray.errors import RecrayError

# The README of ml-1m names them by number.
ML_1M_OCCUPATIONS = (
    "other|academic/educator|artist|clerical/admin|college/grad student|customer service|"
    "doctor/health care|executive/managerial|farmer|homemaker|K-12 student|lawyer|programmer|"
    "retired|sales/marketing|scientist|self-employed|technician/engineer|tradesman/craftsman|"
    "unemployed|writer"
).split("|")

Person = tuple[int, int, str, str]


def nobody() -> pa.Table:
    """No users."""
    return schema.PEOPLE.empty_table()


def _people(rows: list[Person]) -> pa.Table:
    rows.sort()
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
    return pa.table(columns, schema=schema.PEOPLE)


def parse_100k(content: bytes) -> pa.Table:
    """ml-100k's u.user: id|age|gender|occupation|zip."""
    return _people([_person(fields, fields[3]) for fields in _lines(content, "|", "u.user")])


def parse_1m(content: bytes) -> pa.Table:
    """ml-1m's users.dat: id::gender::age::occupation::zip.

    Age is the youngest of a bracket (1: under 18), the occupation a number.
    """
    rows = []
    for user, gender, age, occupation, _ in _lines(content, "::", "users.dat"):
        rows.append(_person([user, age, gender], ML_1M_OCCUPATIONS[int(occupation)]))
    return _people(rows)


PARSERS: dict[str, Callable[[bytes], pa.Table]] = {"u.user": parse_100k, "users.dat": parse_1m}


def _lines(content: bytes, delimiter: str, file: str) -> list[list[str]]:
    rows = []
    for number, line in enumerate(content.decode("latin-1").split("\n"), 1):
        if line.strip():
            fields = line.rstrip("\r").split(delimiter)
            if len(fields) != 5:
                raise RecrayError(f"{file} line {number} has {len(fields)} fields; 5 are expected")
            rows.append(fields)
    return rows


def _person(fields: list[str], occupation: str) -> Person:
    return int(fields[0]), int(fields[1]), fields[2], occupation
