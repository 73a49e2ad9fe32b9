"""What came in: counts and histograms of a source, read in one pass, or of a prepared data set."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import JsonValue

from recray import schema
from recray.data.accounting import times_read
from recray.data.advice import advice
from recray.data.dataset import Prepared
from recray.data.formats import reading
from recray.data.formats.layout import RatingsFile
from recray.data.formats.values import ParsedRatings
from recray.data.lists.rows import matches
from recray.data.source import Source

QUANTILES = (0, 25, 50, 75, 100)
EXAMPLES = 3
"""Rejected rows that are shown of each reason."""


def describe_source(given: Source) -> dict[str, Any]:
    """Read all ratings once, chunk by chunk, and count; before any filter or split.

    Returns:
        {"dataset", "ratings", "users", "items", "films", "rejected", "times", "levels", "years",
        "per_user", "per_item", "lists", "unused"}; levels and years are [value, ratings] pairs,
        per_user and per_item the minimum, quartiles and maximum of ratings per user and item.
    """
    rejections, levels, years = _Rejections(), Counter[float](), Counter[int]()
    users: Counter[int] = Counter()
    items: Counter[int] = Counter()
    unknown, timed = 0, False
    for file, parsed in reading.parsed_in_order(given.ranges):
        rejections.add(file, parsed)
        for name, total in (("raw_user", users), ("raw_item", items), ("rating", levels)):
            total.update(_counts(parsed.table[name].to_numpy()))
        times = parsed.table["timestamp"].drop_null().to_numpy()
        years.update(_counts(_years(times)))
        unknown, timed = unknown + parsed.unknown_times, timed or bool(times.any())
    return {
        "dataset": given.name,
        "ratings": sum(users.values()),
        "users": len(users),
        "items": len(items),
        "films": len(given.movies),
        "times": times_read(given.ranges, unknown).model_dump(),
        "rejected": rejections.facts(),
        "levels": _pairs(levels),
        "years": _pairs(years) if timed else [],  # 0 in every row stands for no time at all
        "per_user": _quantiles(np.fromiter(users.values(), np.int64)),
        "per_item": _quantiles(np.fromiter(items.values(), np.int64)),
        "lists": _lists(given, users, items),
        "unused": dict(given.unused),
    }


class _Rejections:
    """Rejected rows: counted by reason, and the first ones of each reason with their lines."""

    def __init__(self) -> None:
        self.reasons = Counter[str]()
        self._first: dict[str, list[dict[str, Any]]] = {}
        self._line: dict[str, int] = {}

    def add(self, file: RatingsFile, parsed: ParsedRatings) -> None:
        """Count the rejected rows of the next chunk of a file."""
        begin = self._line.setdefault(file.name, 1 + file.layout.header)
        self._line[file.name] += parsed.lines
        reasons = Counter(parsed.rejected["reason"].to_pylist())
        for reason in reasons:
            shown = self._first.setdefault(reason, [])
            rows = parsed.rejected.filter(pc.equal(parsed.rejected["reason"], reason))
            for row in rows.slice(0, EXAMPLES - len(shown)).to_pylist():
                line = begin + row["line"]
                shown.append({"file": file.name, "line": line, "text": row["text"]})
        self.reasons.update(reasons)

    def facts(self) -> dict[str, Any]:
        """The rejected rows as results.RejectedRows."""
        first = [{**row, "reason": reason} for reason, rows in self._first.items() for row in rows]
        return {
            "rows": sum(self.reasons.values()),
            "reasons": dict(sorted(self.reasons.items())),
            "first": sorted(first, key=lambda row: (row["file"], row["line"])),
            "advice": advice(reason for reason, _ in self.reasons.most_common()),
        }


def _lists(given: Source, users: Counter[Any], items: Counter[Any]) -> list[JsonValue]:
    """What was read of the lists beside the ratings."""
    rated_items = pa.array(list(items), given.movies["raw_item"].type)
    rated_users = pa.array(list(users), given.listed_users["raw_user"].type)
    return given.lists.facts(
        items=matches(rated_items, given.movies["raw_item"]),
        users=matches(rated_users, given.listed_users["raw_user"]),
    )


def _counts(values: NDArray[Any]) -> dict[Any, int]:
    """Distinct values and how often each occurs; few, whatever the number of rows."""
    distinct, count = np.unique(values, return_counts=True)
    return dict(zip(distinct.tolist(), count.tolist(), strict=True))


def _pairs(counts: "Counter[Any]") -> list[list[Any]]:
    return [[value, counts[value]] for value in sorted(counts)]


def _quantiles(counts: NDArray[np.int64]) -> list[float]:
    return [float(v) for v in np.percentile(counts, QUANTILES)] if len(counts) else []


def describe_prepared(prepared: Prepared) -> dict[str, Any]:
    """The same of a prepared data set, after filters, with its splits.

    Returns:
        As describe_source, without films and unused files, and with "splits" and "settings".
    """
    facts = prepared.manifest
    users = prepared.user_table()
    per_user = sum(users[name].to_numpy() for name in ("train", "valid", "test"))
    per_item = prepared.item_table["ratings"].to_numpy()
    years: Counter[int] = Counter()
    for part in range(prepared.buckets):
        for split in ("train", "valid", "test"):
            times = prepared.load(split, [part]).timestamp
            years.update(_counts(_years(times[times != schema.UNKNOWN_TIME])))
    return {
        "dataset": facts["dataset"],
        "ratings": facts["counts"]["ratings"],
        "users": len(users),
        "items": len(per_item),
        "rejected": facts["rejected"],
        **({"times": facts["times"]} if "times" in facts else {}),
        "lists": facts.get("lists", []),
        "levels": facts["ratings"]["levels"],
        "years": _pairs(years),
        "per_user": _quantiles(np.asarray(per_user)),
        "per_item": _quantiles(per_item[per_item > 0]),
        "splits": facts["splits"],
        "settings": facts["settings"],
    }


def _years(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Unix seconds to calendar years, UTC."""
    return times.astype("datetime64[s]").astype("datetime64[Y]").astype(np.int64) + 1970
