"""A data set of two tastes, small enough to know every answer, and bundles made from it.

12 people (raw ids 101..112) and 10 films (raw ids 10, 20, ..., 100) are in training. Whoever has an
even dense id likes the films with an even dense id, the others the odd ones: 5 stars or 1. Of the 5
films that each likes, training has 4 and the test has one (user u: film `held_out_film(u)`).

In the test, but not in training: user 8 (dense 13), whom nobody knows; user 7 (dense 12), who has
one rating in valid; and film 5 (dense 10), which user 101 has rated too.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from recray import schema
from recray.bundle import Bundle, write_bundle
from recray.config import build_settings
from recray.data.prepared import KIND, Prepared, Ratings, part_name
from recray.models import build_model
from recray.storage import Folder
from recray.training.checkpoint import Checkpoint, Progress

USERS, ITEMS = 12, 10
RAW_USERS = [*range(101, 101 + USERS), 7, 8]
RAW_ITEMS = [*range(10, 10 * ITEMS + 1, 10), 5]
Rows = list[tuple[int, int, float]]
MakeBundle = Callable[..., Bundle]


def held_out_film(user: int) -> int:
    """Dense id of the film that a training user likes and training does not show."""
    return 2 * (user // 2 % 5) + user % 2


def two_tastes() -> dict[str, Rows]:
    """(user, item, stars) of each split."""
    train, valid, test = [], [(12, 0, 5.0)], [(12, 2, 5.0), (13, 4, 5.0), (0, 10, 5.0)]
    for user in range(USERS):
        liked = [item for item in range(ITEMS) if item % 2 == user % 2]
        train += [(user, item, 5.0) for item in liked if item != held_out_film(user)]
        train += [(user, (user + 1) % ITEMS, 1.0)]
        valid += [(user, (user + 3) % ITEMS, 1.0)]
        test += [(user, held_out_film(user), 5.0)]
    return {"train": sorted(train), "valid": sorted(valid), "test": sorted(test)}


def as_ratings(rows: Rows) -> Ratings:
    """Rows of (user, item, stars) as columns, without times."""
    user, item, stars = zip(*sorted(rows), strict=True)
    times = np.zeros(len(rows), np.int64)
    return Ratings(np.array(user, np.int32), np.array(item, np.int32), np.float32(stars), times)


def write_prepared(path: str, rows: dict[str, Rows]) -> Prepared:
    """The files of a prepared data set with one part per split, as ingest would write them."""
    folder, counts = Folder(path), [[0] * len(RAW_USERS) for _ in schema.SPLITS]
    for place, split in enumerate(schema.SPLITS):
        lines = [(*row, None) for row in rows[split]]
        columns = [pa.array(c, f.type) for c, f in zip(zip(*lines), schema.RATINGS)]  # noqa: B905
        folder.write_table(part_name(split, 0), pa.table(columns, schema=schema.RATINGS))
        for user, *_ in rows[split]:
            counts[place][user] += 1
    dense = list(range(len(RAW_ITEMS)))
    titles, years = [f"Film {raw}" for raw in RAW_ITEMS], [0, *[1990] * ITEMS]
    films = [dense, RAW_ITEMS, titles, years, [["Drama"]] * len(dense), [9] * len(dense)]
    folder.write_table("items.parquet", pa.table(films, schema=schema.ITEMS))
    people = [list(range(len(RAW_USERS))), RAW_USERS, *counts]
    folder.write_table("users.parquet", pa.table(people, schema=schema.USERS))
    folder.write_manifest(
        KIND,
        {
            "dataset": "two-tastes",
            "settings": {"split": {"kind": "per-user-random"}},
            "buckets": 1,
            "counts": {"users": USERS, "items": ITEMS, "unseen_users": 2, "unseen_items": 1},
            "ratings": {"range": [1.0, 5.0]},
            "splits": {s: {"rows": len(rows[s]), "unseen": 3 * (s == "test")} for s in rows},
            "fingerprints": dict.fromkeys(schema.SPLITS, "0" * 64),
        },
    )
    return Prepared.open(path, verify=True)


def planted_checkpoint(settings: Any, liking: float) -> Checkpoint:
    """Weights that predict 3 + liking stars for films of the user's taste, 3 - liking for others."""
    model = build_model(settings, USERS, ITEMS)
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
        model.user_vectors.weight[:, 0] = 1.0 - 2.0 * (torch.arange(USERS) % 2)
        model.item_vectors.weight[:, 0] = liking * (1.0 - 2.0 * (torch.arange(ITEMS) % 2))
        if settings.model.kind == "dot-bias":
            model.mean.fill_(3.0)
    progress = Progress(1, 1, 0.1, [{"epoch": 1, "loss": 0.1, "seconds": 0.0, "rmse": 0.1}])
    return Checkpoint(model.state_dict(), {}, progress)


def write_tiny_bundle(
    out: str,
    prepared: Prepared,
    liking: float = 2.0,
    ranks: bool = False,
    created: str = "2026-01-01T00:00:00",
    measure: Callable[[Bundle], dict[str, Any]] = lambda bundle: {"metrics": {}},
) -> Bundle:
    """A bundle that predicts ratings (or ranks); liking below 0 gives everybody the wrong taste."""
    recipe = {"model": {"kind": "dot-bias", "dim": 1}, "objective": {"kind": "mse"}}
    if ranks:
        recipe = {
            "model": {"kind": "dot", "dim": 1},
            "objective": {"kind": "whole-data"},
            "train": {"optimizer": "alternating"},
        }
    settings = build_settings({"preset": "planted", **recipe})
    checkpoint = planted_checkpoint(settings, liking)
    return write_bundle(out, prepared, checkpoint, settings, created, measure)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The two tastes on disk."""
    return write_prepared(str(tmp_path_factory.mktemp("two") / "prepared"), two_tastes())


@pytest.fixture(scope="session")
def bundle(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A rating model that knows both tastes; tests must not change its files."""
    return write_tiny_bundle(str(tmp_path_factory.mktemp("one") / "bundle"), prepared)


@pytest.fixture
def make_bundle(prepared: Prepared, tmp_path) -> MakeBundle:
    """Write a bundle under a name; keywords as `write_tiny_bundle` has them."""

    def make(name: str, data: Prepared = prepared, **changes: Any) -> Bundle:
        return write_tiny_bundle(str(tmp_path / name), data, **changes)

    return make
