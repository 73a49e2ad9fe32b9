"""What came in: counts and histograms of a source, read in one pass, or of a prepared data set."""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recray import schema
from recray.data.accounting import times_read
from recray.data.dataset import Prepared
from recray.data.formats import reading
from recray.data.source import Source

QUANTILES = (0, 25, 50, 75, 100)


def describe_source(given: Source) -> dict[str, Any]:
    """Read all ratings once, chunk by chunk, and count; before any filter or split.

    Returns:
        {"dataset", "ratings", "users", "items", "films", "rejected", "times", "levels", "years",
        "per_user", "per_item"}; levels and years are [value, ratings] pairs, per_user and per_item
        the minimum, quartiles and maximum of ratings per user and item.
    """
    reasons, levels, years = Counter[str](), Counter[float](), Counter[int]()
    users: Counter[int] = Counter()
    items: Counter[int] = Counter()
    unknown, timed = 0, False
    for file_range in given.ranges:
        for _, parsed in reading.parsed(file_range):
            reasons.update(parsed.rejected["reason"].to_pylist())
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
        "rejected": {"rows": sum(reasons.values()), "reasons": dict(sorted(reasons.items()))},
        "times": times_read(given.ranges, unknown).model_dump(),
        "levels": _pairs(levels),
        "years": _pairs(years) if timed else [],  # 0 in every row stands for no time at all
        "per_user": _quantiles(np.fromiter(users.values(), np.int64)),
        "per_item": _quantiles(np.fromiter(items.values(), np.int64)),
    }


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
        As describe_source, without films, and with "splits" and "settings".
    """
    facts = prepared.manifest
    users = prepared.folder.read_table("users.parquet")
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
