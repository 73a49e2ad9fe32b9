"""Bundles of any size, made and not trained: for what does not depend on how good a model is."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from recray import schema
from recray.config import load_settings
from recray.data.dataset import KIND, Prepared, part_name
from recray.inference.bundle import Bundle
from recray.inference.bundle_writer import TrainedModel, write_bundle
from recray.models import build_model
from recray.storage import Folder, publish

GENRES = ("Action", "Comedy", "Drama", "Horror", "Romance", "Thriller")


def make_bundle(
    folder: Path, users: int, items: int, per_user: int, dim: int = 64, seed: int = 0
) -> Bundle:
    """A bundle of the preset `ranking` with random vectors and `per_user` ratings of each user.

    Raw ids are dense ids + 1. The vectors and the rated items follow from the seed.
    """
    prepared = _prepare(folder / "prepared", users, items, per_user)
    settings = load_settings("ranking", None, [f"model.dim={dim}"]).sized(users, items)
    torch.manual_seed(seed)
    model = build_model(settings, users, items)
    history = [{"epoch": 1, "loss": 1.0, "seconds": 0.0}]
    trained = TrainedModel(model.state_dict(), 1, history)
    out, created = str(folder / f"bundle-{seed}"), "2026-01-01T00:00:00+00:00"
    return write_bundle(out, prepared, trained, settings, created, lambda _bundle: {})


def _prepare(out: Path, users: int, items: int, per_user: int) -> Prepared:
    if Folder(str(out)).published():
        return Prepared.open(str(out))
    rows = {"train": _ratings(users, items, per_user), "valid": _none(), "test": _none()}
    with publish(Folder(str(out))) as folder:
        for name, table in rows.items():
            folder.write_table(part_name(name, 0), table)
        folder.write_table("items.parquet", _items(items))
        folder.write_table("users.parquet", _users(users, per_user))
        counts = {"users": users, "items": items, "unseen_users": 0, "unseen_items": 0}
        splits = {
            name: {"rows": len(table), "unseen": 0, "unseen_percent": 0.0}
            for name, table in rows.items()
        }
        facts = {
            "dataset": f"synthetic-{users}x{items}",
            "buckets": 1,
            "counts": counts,
            "splits": splits,
            "ratings": {"range": [0.5, 5.0], "levels": []},
            "settings": {"data": {}, "split": {"kind": "random"}},
            "fingerprints": dict.fromkeys((*schema.PARTS, "ids", "items"), "0" * 64),
        }
        folder.write_manifest(KIND, facts)
    return Prepared.open(str(out))


def _none() -> pa.Table:
    return schema.RATINGS.empty_table()


def _ratings(users: int, items: int, per_user: int) -> pa.Table:
    """Each user has `per_user` different items, spread over the catalogue."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(users, dtype=np.int32), per_user)
    first, step = rng.integers(0, items, users), items // per_user
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


def _users(users: int, per_user: int) -> pa.Table:
    ids, zeros = np.arange(users), np.zeros(users, np.int64)
    counts = [np.full(users, per_user), zeros, zeros, zeros]
    unknown = [pa.nulls(users)] * 3
    return pa.table([ids, ids + 1, *counts, *unknown], schema=schema.USERS)
