"""Column names, types and units of every table that stages exchange."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

SPLITS = ("train", "valid", "test")
FOLD_IN = "fold_in"
"""What is known of the users whom `held-out-users` keeps from training, beside the splits."""
PARTS = (*SPLITS, FOLD_IN)
FILTERED = "filtered"
"""Ratings that a filter kept from training: known of a user, in no split."""
INTERACTION_PARTS = (*PARTS, FILTERED)

# Dense ids: 0..n-1 are the n users (items) of the training split; see recray.data.ids.IdMap.
# rating: stars, or 1.0 in implicit data. timestamp: Unix seconds UTC, null where unknown; in
# memory UNKNOWN_TIME.
RATINGS = pa.schema(
    [
        ("user", pa.int32()),
        ("item", pa.int32()),
        ("rating", pa.float32()),
        ("timestamp", pa.int64()),
    ]
)

PLACE = pa.field("place", pa.int32())
"""Beside RATINGS where the order of a user's ratings is part of the data: the place of a rating
among all those of its user, from 0."""

UNKNOWN_TIME = -(2**63)
"""The time of a rating whose time is unknown, in arrays: it stands before all others."""

# What is known of the users of a bundle; `part` is one of INTERACTION_PARTS.
INTERACTIONS = RATINGS.append(pa.field("part", pa.dictionary(pa.int8(), pa.string())))

# As parsed. Raw ids are int64 in all MovieLens releases; own data may have strings instead.
RAW_RATINGS = pa.schema(
    [
        ("raw_user", pa.int64()),
        ("raw_item", pa.int64()),
        ("rating", pa.float32()),
        ("timestamp", pa.int64()),
    ]
)

# What a source says of its films; year 0 means unknown.
MOVIES = pa.schema(
    [
        ("raw_item", pa.int64()),
        ("title", pa.string()),
        ("year", pa.int32()),
        ("genres", pa.list_(pa.string())),
        ("imdb", pa.string()),  # tt0114709; null where unknown, like tmdb
        ("tmdb", pa.int64()),
    ]
)


def movies(text: bool) -> pa.Schema:
    """MOVIES of a source whose item ids are text, or integers."""
    return MOVIES.set(0, pa.field("raw_item", pa.string())) if text else MOVIES


ITEMS = pa.schema([("item", pa.int32()), *MOVIES, ("ratings", pa.int64())])

# What a release says of its users; null where it says nothing.
PEOPLE = pa.schema(
    [
        ("raw_user", pa.int64()),
        ("age", pa.int32()),
        ("gender", pa.string()),
        ("occupation", pa.string()),
    ]
)


def listed_users(text: bool) -> pa.Schema:
    """The schema of a list of users whose ids are text, or integers."""
    return PEOPLE.set(0, pa.field("raw_user", pa.string())) if text else PEOPLE


# Ratings of each user in each split and in fold_in.
USERS = pa.schema(
    [
        ("user", pa.int32()),
        ("raw_user", pa.int64()),
        *((part, pa.int64()) for part in PARTS),
        *list(PEOPLE)[1:],
    ]
)


def id_table(fields: pa.Schema, columns: Mapping[str, Any]) -> pa.Table:
    """A table of ids, ITEMS or USERS, whose second column has the type of the raw ids.

    Args:
        fields: The schema.
        columns: Each column by its name; the second one is an Arrow array.
    """
    raw = fields.field(1)
    fields = fields.set(1, raw.with_type(columns[raw.name].type))
    return pa.table({name: columns[name] for name in fields.names}, schema=fields)


# line counts from 1, byte from 0, both within the file.
REJECTED = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("byte", pa.int64()),
        ("text", pa.string()),
        ("reason", pa.string()),
    ]
)
REJECTED_KEPT = 1000

TIMINGS = ("seconds", "samples_per_s")
"""Keys of an epoch's entry in a training history that say how long it took, not how good it is."""

SCORE_NAMES = {"rating": "stars", "logit": "logits"}
"""What a model's `score_type` is called in answers: HTTP, JSON and reports."""
