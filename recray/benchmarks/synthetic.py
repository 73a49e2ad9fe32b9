"""Prepared sets and bundles of any size: for what does not depend on how good a model is."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray import schema
from recray.config import load_settings
from recray.data.dataset import KIND, USERS, Prepared, part_name
from recray.inference.bundle import Bundle
from recray.inference.bundle_writer import TrainedModel, write_bundle
from recray.models import build_model
from recray.storage import Folder, publish

GENRES = ("Action", "Comedy", "Drama", "Horror", "Romance", "Thriller")


def make_bundle(
    folder: Path,
    users: int,
    items: int,
    per_user: int,
    dim: int = 64,
    seed: int = 0,
    vectors: Tensor | None = None,
) -> Bundle:
    """A bundle of the preset `ranking` with random vectors and `per_user` ratings of each user.

    Raw ids are dense ids + 1. The vectors and the rated items follow from the seed; those of users
    may be given, (users, dim).
    """
    prepared = make_prepared(folder / "prepared", users, items, per_user)
    settings = load_settings("ranking", None, [f"model.dim={dim}"]).sized(users, items)
    torch.manual_seed(seed)
    model = build_model(settings, users, items)
    weights = model.state_dict()
    if vectors is not None:
        weights["user_vectors.weight"] = vectors
    history = [{"epoch": 1, "loss": 1.0, "seconds": 0.0}]
    trained = TrainedModel(weights, 1, history)
    out, created = str(folder / f"bundle-{seed}"), "2026-01-01T00:00:00+00:00"
    return write_bundle(out, prepared, trained, settings, created, lambda _bundle: {})


def make_prepared(out: Path, users: int, items: int, per_user: int, parts: int = 1) -> Prepared:
    """Write a prepared set whose users each rate `per_user` different items; one that is there
    already is taken.

    Args:
        out: Its folder.
        users: Number of users; user u is in part u modulo `parts`.
        items: Number of items, which are all rated about equally often.
        per_user: Ratings of a user, all to train on.
        parts: Number of parts.
    """
    if Folder(str(out)).published():
        return Prepared.open(str(out))
    with publish(Folder(str(out))) as folder:
        for part in range(parts):
            own = np.arange(part, users, parts, dtype=np.int32)
            folder.write_table(part_name(USERS, part), _users(own, per_user))
            folder.write_table(part_name("train", part), _ratings(own, items, per_user, part))
            for split in ("valid", "test"):
                folder.write_table(part_name(split, part), schema.RATINGS.empty_table())
        folder.write_table("items.parquet", _items(items))
        folder.write_manifest(KIND, _facts(users, items, users * per_user, parts))
    return Prepared.open(str(out))


def _facts(users: int, items: int, ratings: int, parts: int) -> dict[str, object]:
    rows = {"train": ratings, "valid": 0, "test": 0}
    return {
        "dataset": f"synthetic-{users}x{items}",
        "buckets": parts,
        "counts": {"users": users, "items": items, "unseen_users": 0, "unseen_items": 0},
        "splits": {k: {"rows": n, "unseen": 0, "unseen_percent": 0.0} for k, n in rows.items()},
        "ratings": {"range": [0.5, 5.0], "levels": []},
        "settings": {"data": {}, "split": {"kind": "random"}},
        "fingerprints": dict.fromkeys((*schema.PARTS, "ids", "items"), "0" * 64),
    }


def _ratings(own: NDArray[np.int32], items: int, per_user: int, seed: int) -> pa.Table:
    """Each user has `per_user` different items, spread over the catalogue."""
    rng = np.random.default_rng(seed)
    user = np.repeat(own, per_user)
    first, step = rng.integers(0, items, len(own)), items // per_user
    place = np.arange(per_user) * step
    item = np.sort((first[:, None] + place) % items, axis=1).astype(np.int32).ravel()
    rating = rng.integers(1, 11, len(user)).astype(np.float32) / 2
    return pa.table([user, item, rating, np.ones(len(user), np.int64)], schema=schema.RATINGS)


def _items(items: int) -> pa.Table:
    ids = np.arange(items)
    columns = [
        ids,
        ids + 1,
        [f"A Film of Some Length {item} (1999)" for item in ids.tolist()],
        np.full(items, 1999),
        [[GENRES[item % 6], GENRES[(item + 1) % 6]] for item in ids.tolist()],
        pa.nulls(items, pa.string()),
        pa.nulls(items, pa.int64()),
        np.ones(items),
    ]
    return pa.table(columns, schema=schema.ITEMS)


def _users(own: NDArray[np.int32], per_user: int) -> pa.Table:
    zeros = np.zeros(len(own), np.int64)
    counts = [np.full(len(own), per_user), zeros, zeros, zeros]
    unknown = [pa.nulls(len(own))] * 3
    return pa.table([own, own.astype(np.int64) + 1, *counts, *unknown], schema=schema.USERS)
