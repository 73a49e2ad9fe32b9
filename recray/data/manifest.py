"""The manifest of a prepared data set: settings, counts, and hashes of what each stage may see."""

import hashlib
from collections import Counter

from pydantic import JsonValue

from recray import schema
from recray.config import Settings, build_settings
from recray.data.accounting import times_read
from recray.data.dataset import KNOWN, Prepared
from recray.data.encode import EncodedCounts
from recray.data.ids import FIT_SPLITS, CountedIds, FitOn, IdMap
from recray.data.scan import Scanned
from recray.data.source import Source
from recray.errors import RecrayError
from recray.storage import Folder

Facts = dict[str, JsonValue]
"""A part of the manifest."""


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
    users: CountedIds,
    items: CountedIds,
    duplicates: int,
    short_users: int,
) -> Facts:
    """Counts of users, items and ratings, by split and by fit.

    Args:
        encoded: What the part files hold.
        users: All users.
        items: All items.
        duplicates: Rows that were merged into others.
        short_users: Users with too few ratings for a target of split.kind=next.
    """
    levels = sum((part.levels for part in encoded), Counter[float]())
    pairs: list[JsonValue] = [[value, levels[value]] for value in sorted(levels)]
    return {
        "counts": {
            "users": users.ids.known,
            "items": items.ids.known,
            "unseen_users": len(users.ids) - users.ids.known,
            "unseen_items": len(items.ids) - items.ids.known,
            "duplicates": duplicates,
            "ratings": sum(part.rows.total() for part in encoded),
            "filtered": sum(part.filtered for part in encoded),
            "short_users": short_users,
        },
        "splits": _split_facts(encoded, users, items),
        "fits": {fit_on: _fit(fit_on, encoded, users, items) for fit_on in FIT_SPLITS},
        "ratings": {
            "range": [min(levels), max(levels)],
            "levels": pairs if len(levels) <= 100 else [],
        },
    }


def _split_facts(encoded: list[EncodedCounts], users: CountedIds, items: CountedIds) -> Facts:
    """Rows, users and items of each split, and its rows with ids that training lacks."""
    rows = sum((part.rows for part in encoded), Counter[str]())
    splits: Facts = {}
    for place, name in enumerate(schema.PARTS):
        if name in encoded[0].rows:
            unseen = sum(part.unseen[name] for part in encoded)
            splits[name] = {
                "rows": rows[name],
                "users": int((users.counts[place] > 0).sum()),
                "items": int((items.counts[place] > 0).sum()),
                "unseen": unseen,
                "unseen_percent": round(100 * unseen / rows[name], 3) if rows[name] else 0.0,
            }
    return splits


def _fit(
    fit_on: FitOn, encoded: list[EncodedCounts], users: CountedIds, items: CountedIds
) -> Facts:
    """How many users and items a fit knows, and the range of its ratings."""
    ranges = [p.ranges[name] for p in encoded for name in FIT_SPLITS[fit_on] if name in p.ranges]
    lows, highs = zip(*ranges, strict=True)
    return {
        "users": users.known_to(fit_on),
        "items": items.known_to(fit_on),
        "range": [min(lows), max(highs)],
    }


def fingerprint_facts(folder: Folder, users: IdMap, items: IdMap) -> Facts:
    """Hash each split, what filters dropped, the ids of training, and the lists of ids.

    They prove later that what training saw does not depend on the test split.
    """
    prints: Facts = {
        "ids": hashlib.sha256(users.content() + items.content()).hexdigest(),
        "items": hashlib.sha256(folder.read_bytes("items.parquet")).hexdigest(),
        "users": hashlib.sha256(folder.read_bytes("users.parquet")).hexdigest(),
    }
    for name in (*schema.PARTS, KNOWN):
        digest = hashlib.sha256()
        for file in folder.files():
            if file.startswith(f"{name}/"):
                digest.update(file.encode() + hashlib.sha256(folder.read_bytes(file)).digest())
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
