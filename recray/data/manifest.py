"""The manifest of a prepared data set: settings, counts, and hashes of what each stage may see."""

import hashlib
from collections import Counter

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from recray import schema
from recray.config import Settings, SplitSettings, build_settings
from recray.data.accounting import times_read
from recray.data.dataset import KNOWN, USERS, Prepared
from recray.data.encode import EncodedCounts
from recray.data.ids import FIT_SPLITS, CountedItems, FitOn, IdMap
from recray.data.lists.rows import matches
from recray.data.scan import Scanned
from recray.data.source import Source
from recray.data.tasks import SplitCounts
from recray.errors import RecrayError
from recray.storage import ManifestEntry

Facts = dict[str, JsonValue]
"""A part of the manifest."""
KNOWN_GROUPS: dict[FitOn, int] = {"train": 1, "train+valid": 2, "all": 3}
"""A fit knows the ids of so many groups; see recray.data.ids.group_of."""


def source_facts(source: Source, settings: Settings, scanned: Scanned) -> Facts:
    """What was read, and the settings that it was prepared with."""
    rejected: JsonValue = dict(sorted(scanned.reasons.items()))
    return {
        "dataset": source.name,
        "source": source.identity,
        "settings": _settings_of(settings),
        "timestamps": scanned.timed or scanned.has_log,
        "times": times_read(source.ranges, scanned.unknown_times).model_dump(),
        "implicit": source.implicit,
        "unused": dict(source.unused),
        "rejected": {"rows": sum(scanned.reasons.values()), "reasons": rejected},
        "rows_read": scanned.rows,
    }


def _settings_of(settings: Settings) -> Facts:
    """The settings that a prepared data set depends on."""
    return {g: getattr(settings, g).model_dump(mode="json") for g in ("data", "split")}


def count_facts(
    encoded: list[EncodedCounts],
    users: list[SplitCounts],
    items: CountedItems,
    duplicates: int,
    settings: SplitSettings,
) -> Facts:
    """Counts of users, items and ratings, by split and by fit.

    Args:
        encoded: What the files of each partition hold.
        users: The users of each partition.
        items: All items.
        duplicates: Rows that were merged into others.
        settings: The kind of split.
    """
    levels = sum((part.levels for part in encoded), Counter[float]())
    pairs: list[JsonValue] = [[value, levels[value]] for value in sorted(levels)]
    groups = np.sum([part.groups for part in users], axis=0)
    short = sum(part.short for part in users) if settings.kind == "next" else 0
    return {
        "counts": {
            "users": int(groups[0]),
            "items": items.ids.known,
            "unseen_users": int(groups[1:].sum()),
            "unseen_items": len(items.ids) - items.ids.known,
            "duplicates": duplicates,
            "ratings": sum(part.rows.total() for part in encoded),
            "filtered": sum(part.filtered for part in encoded),
            "short_users": short,
        },
        "splits": _split_facts(encoded, np.sum([part.users for part in users], axis=0), items),
        "fits": {fit_on: _fit(fit_on, encoded, groups, items.groups) for fit_on in FIT_SPLITS},
        "ratings": {
            "range": [min(levels), max(levels)],
            "levels": pairs if len(levels) <= 100 else [],
        },
    }


def _split_facts(
    encoded: list[EncodedCounts], users: NDArray[np.int64], items: CountedItems
) -> Facts:
    """Rows, users and items of each split, and its rows with ids that training lacks."""
    rows = sum((part.rows for part in encoded), Counter[str]())
    splits: Facts = {}
    for place, name in enumerate(schema.PARTS):
        if name in encoded[0].rows:
            unseen = sum(part.unseen[name] for part in encoded)
            splits[name] = {
                "rows": rows[name],
                "users": int(users[place]),
                "items": int((items.counts[place] > 0).sum()),
                "unseen": unseen,
                "unseen_percent": round(100 * unseen / rows[name], 3) if rows[name] else 0.0,
            }
    return splits


def _fit(
    fit_on: FitOn,
    encoded: list[EncodedCounts],
    users: NDArray[np.int64],
    items: NDArray[np.int64],
) -> Facts:
    """How many users and items a fit knows, and the range of its ratings."""
    ranges = [p.ranges[name] for p in encoded for name in FIT_SPLITS[fit_on] if name in p.ranges]
    lows, highs = zip(*ranges, strict=True)
    groups = KNOWN_GROUPS[fit_on]
    return {
        "users": int(users[:groups].sum()),
        "items": int(items[:groups].sum()),
        "range": [min(lows), max(highs)],
    }


def list_facts(
    source: Source, items: CountedItems, encoded: list[EncodedCounts], users: list[SplitCounts]
) -> list[JsonValue]:
    """What was read of the lists beside the ratings, and how much of it is of use."""
    rated = int(sum(part.groups.sum() for part in users))
    listed = sum(part.listed for part in encoded)
    return source.lists.facts(
        items=matches(items.ids.column(), source.movies["raw_item"]), users=(rated, listed)
    )


def fingerprint_facts(
    encoded: list[EncodedCounts], items: IdMap, entries: list[ManifestEntry]
) -> Facts:
    """Hash each split, what filters dropped, the ids of training, and the lists of ids.

    They prove later that what training saw does not depend on the test split.
    """
    users = b"".join(part.ids for part in encoded)
    digests = {entry.name: entry.sha256 for entry in entries}
    prints: Facts = {
        "ids": hashlib.sha256(users + items.content()).hexdigest(),
        "items": digests["items.parquet"],
    }
    for name in (*schema.PARTS, KNOWN, USERS):
        digest = hashlib.sha256()
        for file in sorted(digests):
            if file.startswith(f"{name}/"):
                digest.update(file.encode() + bytes.fromhex(digests[file]))
        prints[name] = digest.hexdigest()
    return prints


def same_settings(prepared: Prepared, source: Source, settings: Settings) -> bool:
    """Whether preparing this source again would give the data set on disk."""
    facts = prepared.manifest
    if "fits" not in facts:  # an earlier version: it did not keep what filters dropped
        return False
    try:  # an earlier version wrote no settings that are new since, and did what they do by default
        before = _settings_of(build_settings(facts["settings"]))
    except RecrayError:
        return False
    return bool(facts["source"] == source.identity and before == _settings_of(settings))
