"""Results of the commands about data as text: releases, what is in a source, what was prepared."""

import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from recray.data.accounting import RowCounts, TimesRead
from recray.data.feedback import LogSummary
from recray.data.formats.times import WORDS
from recray.reporting.terminal import table

if TYPE_CHECKING:
    from recray.data.movielens import Release

DROPPED = {
    "duplicates": "repeated",
    "min_year": "before data.min_year",
    "min_rating": "below data.min_rating",
    "core": "short of data.core",
}
"""Why rows that could be read are in no split."""


def releases(rows: Iterable[tuple["Release", bool]], licence: str) -> str:
    """The MovieLens releases, and whether each is in the cache."""
    body = [
        [
            release.name,
            *(f"{count:,}" for count in (release.ratings, release.users, release.items)),
            f"{release.bytes / 1e6:,.1f} MB" if release.bytes else "?",
            "cached" if cached else "",
        ]
        for release, cached in rows
    ]
    columns = ["release", "ratings", "users", "films", "archive", ""]
    return "\n".join([table("", columns, body), *textwrap.wrap(licence, 90)])


def description(facts: dict[str, Any]) -> str:
    """Counts and histograms of a data set."""
    counts = ", ".join(f"{facts[n]:,} {n}" for n in ("ratings", "users", "items"))
    lines = [f"{facts['dataset']}: {counts}"]
    for name, word in (("per_user", "ratings per user"), ("per_item", "ratings per item")):
        if facts[name]:
            low, q1, median, q3, high = (f"{value:,.0f}" for value in facts[name])
            lines.append(f"{word}: {low} to {high}, half of them {q1} to {q3}, median {median}")
    if facts["levels"]:
        lines += ["", "ratings by stars", *_histogram(facts["levels"])]
    if facts["years"]:
        lines += ["", "ratings by year", *_histogram(facts["years"])]
    if "splits" in facts:
        lines += ["", _splits(facts["splits"])]
    rows, reasons = facts["rejected"]["rows"], _reasons(facts["rejected"]["reasons"])
    lines += ["", f"rejected rows: {rows:,}" + (f" ({reasons})" if reasons else "")]
    if "times" in facts:
        lines += _times(TimesRead.model_validate(facts["times"]))
    lines += [
        f"  {row['file']} line {row['line']:,}: {row['reason']}: {row['text'][:80]!r}"
        for row in facts["rejected"].get("first", [])
    ]
    lines += [f"what would help: {remedy}" for remedy in facts["rejected"].get("advice", [])]
    return "\n".join(
        [*lines, *side_lists(facts.get("lists", ())), *unused(facts.get("unused", {}))]
    )


def side_lists(reports: Iterable[Mapping[str, Any]]) -> list[str]:
    """What was read of each list beside the ratings, in a line."""
    lines = []
    for report in reports:
        if report["problem"]:
            lines.append(f"{report['file']} is not used: {report['problem']}")
            continue
        parts = [f"{report['file']}: {report['used']:,} {report['kind']}"]
        if report["rejected"]:
            first = f"first in line {report['first'][0]['line']:,}"
            parts.append(f"left out: {_reasons(report['rejected'])}, {first}")
        if report["incomplete"]:
            parts.append(f"incomplete: {_reasons(report['incomplete'])}")
        if _lists_few(report):
            parts.append(
                f"it lists only {report['matched']:,} of the {report['rated']:,} that are rated: "
                "are ids written alike in both files?"
            )
        lines.append("; ".join(parts))
    return lines


def remarks(manifest: Mapping[str, Any]) -> list[str]:
    """What a reader should know: rows and files that were not used, and times that are unusual."""
    reports = [
        report
        for report in manifest.get("lists", ())
        if report["used"] < report["rows"] or report["problem"] or _lists_few(report)
    ]
    times, dropped = manifest["times"], manifest["rows"]["dropped"]
    told = dropped or times["unknown"] or times["format"] not in ("s", None)
    lines = row_account(manifest) if told else []
    lines += _short_users(manifest["counts"])
    return [*lines, *side_lists(reports), *unused(manifest.get("unused", {}))]


def _lists_few(report: Mapping[str, Any]) -> bool:
    """Whether a list has less than half of what is rated."""
    return bool(report["rated"] and 2 * report["matched"] < report["rated"])


def unused(files: Mapping[str, str]) -> list[str]:
    """The files of a source that are not used, and why; at most ten."""
    lines = [f"{name} is not used: {why}"[:300] for name, why in files.items()]
    return lines[:10] + ([f"{len(lines) - 10:,} more files are not used"] if lines[10:] else [])


def _histogram(pairs: list[list[Any]], width: int = 50) -> list[str]:
    """A bar for each value; at most 30, neighbours put together."""
    step = -(-len(pairs) // 30)
    groups = [pairs[first : first + step] for first in range(0, len(pairs), step)]
    counts = [sum(count for _, count in group) for group in groups]
    most = max(counts, default=1)
    return [
        f"{group[0][0]:>8g}  {count:>12,}  {'#' * max(1, round(width * count / most))}"
        for group, count in zip(groups, counts, strict=True)
    ]


def _splits(splits: Mapping[str, Mapping[str, float]], title: str = "") -> str:
    rows = [
        [
            name,
            *(f"{s[column]:,}" for column in ("rows", "users", "items", "unseen")),
            f"{s['unseen_percent']:.2f} %",
        ]
        for name, s in splits.items()
    ]
    columns = ["split", "ratings", "users", "items", "with unseen ids", "share"]
    return table(title, columns, rows)


def prepared(manifest: dict[str, Any]) -> str:
    """What a prepared data set holds."""
    counts = manifest["counts"]
    title = f"{manifest['dataset']}: {counts['users']:,} users, {counts['items']:,} items"
    lines = [_splits(manifest["splits"], title)]
    if manifest["rejected"]["rows"]:
        lines.append(
            f"rejected: {_reasons(manifest['rejected']['reasons'])} (see rejected.parquet)"
        )
    lines += row_account(manifest)
    if counts.get("filtered"):
        lines.append(f"dropped by filters, and never recommended: {counts['filtered']:,}")
    lines += _short_users(counts)
    lines += [*side_lists(manifest.get("lists", ())), *unused(manifest.get("unused", {}))]
    return "\n".join(lines)


def _short_users(counts: Mapping[str, int]) -> list[str]:
    """How many users have too few ratings for a target of split.kind=next; nothing where none."""
    short = counts.get("short_users", 0)
    return [f"users with one or two ratings, who have no target: {short:,}"] if short else []


def row_account(manifest: Mapping[str, Any]) -> list[str]:
    """What became of every row that was read, and how times were read."""
    rows = RowCounts.model_validate(manifest["rows"])
    dropped = "".join(f" + {n:,} {DROPPED.get(why, why)}" for why, n in rows.dropped.items())
    balance = f"rows: {rows.read:,} read = {rows.kept:,} kept{dropped}"
    return [balance, *_times(TimesRead.model_validate(manifest["times"]))]


def _times(times: TimesRead) -> list[str]:
    """How times were read, and how many are unknown; nothing where there are none."""
    if times.format is None:
        return []
    unknown = f"; {times.unknown:,} are missing or cannot be read" if times.unknown else ""
    return [f"times: read as {WORDS[times.format]}{unknown}"]


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {why}" for why, count in counts.items())


def ratings_log(path: str, added: LogSummary) -> str:
    """What a ratings log gave, and what of it could not be used, in a line."""
    parts = [f"{path}: {added.ratings:,} ratings of {added.users:,} users"]
    if added.damaged_parts:
        parts.append(f"{len(added.damaged_parts)} damaged parts left out")
    if added.unknown_items:
        parts.append(f"{added.unknown_items:,} of items that the source does not have left out")
    return "; ".join(parts)
