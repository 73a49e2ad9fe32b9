"""Lists of users, of MovieLens and of anybody: age, gender and occupation."""

import re
from collections.abc import Sequence

import pyarrow as pa

from recray import schema
from recray.data.lists.items import lines_of
from recray.data.lists.rows import IdRule, ListReport, checked_ids, column_of, decode, read_rows
from recray.errors import RecrayError

AGES, GENDERS = ["age"], ["gender", "sex"]
OCCUPATIONS = ["occupation", "job", "profession"]
ML_1M_OCCUPATIONS = (
    "other|academic/educator|artist|clerical/admin|college/grad student|customer service|"
    "doctor/health care|executive/managerial|farmer|homemaker|K-12 student|lawyer|programmer|"
    "retired|sales/marketing|scientist|self-employed|technician/engineer|tradesman/craftsman|"
    "unemployed|writer"
).split("|")
"""By their numbers in users.dat, as the README of ml-1m lists them."""
_ML_100K = re.compile(r"\d+\|\d+\|\w+\|[^|\n]+\|[^|\n]*(\n|$)")
_ML_1M = re.compile(r"\d+::\w+::\d+::\d+::[^\n]*(\n|$)")

User = tuple[int, str, str, str, str]
"""The line it begins in, and as texts raw id, age, gender and occupation."""


def is_user_list(names: Sequence[str], rule: IdRule) -> bool:
    """Whether columns of these names list users: an id and something about them."""
    known = (column_of(names, wanted) for wanted in (AGES, GENDERS, OCCUPATIONS))
    return column_of(names, rule.names) is not None and any(p is not None for p in known)


def parse_users(file: str, content: bytes, rule: IdRule) -> tuple[pa.Table, ListReport]:
    """Read a list of users.

    Returns:
        The users that can be read, as schema.listed_users, by ascending id, and the report.

    Raises:
        RecrayError: Nothing in it can be read; the reason.
    """
    report = ListReport(file=file, kind="users")
    head = content[: 64 << 10].decode("latin-1").lstrip("\r\n")
    if _ML_100K.match(head):
        lines = lines_of(decode(content), "|", 5, report)
        rows = [(line, user, age, gender, job) for line, (user, age, gender, job, _) in lines]
    elif _ML_1M.match(head):
        # Age is the youngest of a bracket (1: under 18), the occupation a number.
        lines = lines_of(decode(content), "::", 5, report)
        rows = [
            (line, user, age, gender, _occupation(job))
            for line, (user, gender, age, job, _) in lines
        ]
    else:
        rows = _named(content, report, rule)
    return _user_table(rows, report, rule), report


def _occupation(number: str) -> str:
    known = number.isdecimal() and int(number) < len(ML_1M_OCCUPATIONS)
    return ML_1M_OCCUPATIONS[int(number)] if known else number


def _named(content: bytes, report: ListReport, rule: IdRule) -> list[User]:
    names, rows = read_rows(content, report)
    if not is_user_list(names, rule):
        raise RecrayError(
            f"it has no user column, or none of age, gender and occupation, among its columns "
            f"{', '.join(names)[:200]}"
        )
    places = [column_of(names, wanted) for wanted in (rule.names, AGES, GENDERS, OCCUPATIONS)]
    users = []
    for line, fields in rows:
        user, age, gender, job = ("" if p is None else fields[p].strip() for p in places)
        users.append((line, user, age, gender, job))
    return users


def _user_table(rows: Sequence[User], report: ListReport, rule: IdRule) -> pa.Table:
    fields = schema.listed_users(rule.text)
    if not rows:
        return fields.empty_table()
    ids, reason = checked_ids([row[1] for row in rows], "raw_user", rule)
    good = []
    for row, why in zip(rows, reason.tolist(), strict=True):
        if why:
            report.reject(row[0], why)
        else:
            good.append(row)
    first: dict[int | str, User] = {}
    for raw, row in zip(ids.to_pylist(), good, strict=True):
        if raw in first:
            report.reject(row[0], "user is listed before")
        else:
            first[raw] = row
    in_order = sorted(first)
    users = [first[raw] for raw in in_order]
    columns = [
        in_order,
        [_age(age, report) for _, _, age, _, _ in users],
        [gender or None for _, _, _, gender, _ in users],
        [job or None for _, _, _, _, job in users],
    ]
    report.used = len(users)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, fields, strict=True)],
        schema=fields,
    )


def _age(written: str, report: ListReport) -> int | None:
    found = re.fullmatch(r"(\d{1,3})(\.0*)?", written)
    if found:
        return int(found.group(1))
    if written.lower() not in ("", "nan", "none", "null", "na"):
        report.miss("age cannot be read")
    return None
