"""A small prepared data set and bundles on disk, made without Ray."""

import functools
import os
import signal
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import settings

from recray import schema
from recray.config import load_settings
from recray.data.dataset import KIND, KNOWN, Prepared, part_name
from recray.data.formats.reading import parsed
from recray.inference.bundle import Bundle
from recray.inference.bundle_writer import TrainedModel, write_bundle
from recray.inference.raw_ratings import RawRating
from recray.models import LinearModel, build_model
from recray.models.history import HistoryModel, RatingsCSR
from recray.storage import Folder, publish

USERS, ITEMS, COLD = 12, 10, 2

# No test fails for the time that it takes: hypothesis would have it that each example is quick.
settings.register_profile("recray", deadline=None)
settings.load_profile("recray")

# What a shell starts in the background ignores Ctrl-C, and so would the commands of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Clients of tests call a service as browsers of its own machine do: it refuses other names.
TestClient.__init__ = functools.partialmethod(TestClient.__init__, base_url="http://127.0.0.1")

# Tables are cut at this width; pytest-xdist sets it, and a shell may.
os.environ.pop("COLUMNS", None)

# Files of tests/ray whose tests share the first Ray when pytest-xdist runs them. All others share
# the second one, which alone runs trials. Both take about as long, and wait more than they compute.
FIRST_RAY = ("tests/ray/test_up.py", "tests/ray/test_swaps_on_ray.py")
# Those that use neither, but start each Ray that they need; in the second row what a file has made
# serves all of its tests.
STARTS = ("benchmarks_quick", "cluster_utils", "growing", "notebooks", "readme")
STARTS_FOR_ALL = ("faults", "nodes", "session")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep the tests of one Ray together on one process, and give out all others one by one."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file, _, _ = nodeid.partition("::")
            name = file.removeprefix("tests/ray/test_").removesuffix(".py")
            if not file.startswith("tests/ray/") or name in STARTS:
                return nodeid
            if name in STARTS_FOR_ALL:
                return file
            return "first ray" if file in FIRST_RAY else "second ray"

    return Scheduling(config, log)


def raw(ids):
    """Raw ids of dense ones: 10 times as large, plus 100."""
    return np.asarray(ids) * 10 + 100


def gave(item, stars=None, time=None):
    """A rating of a dense item by somebody, or the plain item."""
    return RawRating(int(raw(item)), stars, time)


def parts_of(found):
    """The parsed chunks of a recognised source, in order."""
    return [part for file_range in found.ranges for _, part in parsed(file_range)]


def rows_of(found):
    """All its accepted rows, in order."""
    return [tuple(row.values()) for part in parts_of(found) for row in part.table.to_pylist()]


class NextNumber(HistoryModel, LinearModel):
    """After film n comes film n + 1, then n + 2 half as sure; an earlier film counts a quarter."""

    reads_order = True
    reads_times = True

    def __init__(self, users: int, items: int) -> None:
        super().__init__(users, items, "logit")
        step = (torch.arange(items)[None, :] - torch.arange(items)[:, None]) % items
        self.register_buffer("follows", torch.where(step > 0, 0.5 ** (step - 1.0), 0.0))
        self.asked: list[RatingsCSR] = []

    def state_of(self, known: RatingsCSR) -> torch.Tensor:
        self.asked.append(known)
        state = torch.zeros(len(known.indptr) - 1, self.items)
        for user, (item, _) in enumerate(known.each()):
            state[user, item] = 0.25 ** torch.arange(len(item)).flip(0).float()
        return state

    def user_state(self, user: torch.Tensor | slice) -> torch.Tensor:
        return HistoryModel.user_state(self, user)

    def item_rows(self, item: torch.Tensor | slice) -> torch.Tensor:
        return self.follows.T[item]

    def item_offset(self, item: torch.Tensor | slice) -> torch.Tensor:
        return torch.zeros(self.items)[item]


def rows_of_splits() -> dict[str, list[tuple[int, int, float, int]]]:
    """Each user likes the five items of their parity: three train, one valid, one test."""
    rows: dict[str, list[tuple[int, int, float, int]]] = {name: [] for name in schema.SPLITS}
    for user in range(USERS):
        liked = [(user % 2 + 2 * (user + n)) % ITEMS for n in range(5)]
        for n, item in enumerate(liked):
            split = ("train", "train", "train", "valid", "test")[n]
            rows[split].append((user, item, 5.0 - n % 3, 1000 + n))
    rows["test"].append((0, ITEMS, 4.0, 2000))  # an item that training does not know
    rows["valid"].append((USERS, 0, 5.0, 2000))  # a user whom training does not know: fold-in
    rows["test"].append((USERS, 2, 5.0, 2001))
    rows["test"].append((USERS + 1, 4, 5.0, 2001))  # a user without any history
    return rows


@pytest.fixture
def prepared(tmp_path) -> Prepared:
    """The data set of rows_of_splits in one bucket."""
    with publish(Folder(str(tmp_path / "prepared"))) as folder:
        splits, filtered = {}, 0
        for name, rows in rows_of_splits().items():
            ordered = sorted(rows, key=lambda r: (r[0], r[3], r[1]))
            columns = [list(c) for c in zip(*ordered, strict=True)]
            folder.write_table(part_name(name, 0), pa.table(columns, schema=schema.RATINGS))
            if name == KNOWN:  # what filters dropped; in no split
                filtered = len(rows)
                continue
            unseen = sum(r[0] >= USERS or r[1] >= ITEMS for r in rows)
            splits[name] = {"rows": len(rows), "unseen": unseen, "unseen_percent": 0.0}
        items = np.arange(ITEMS + 1)
        columns = {
            "item": items,
            "raw_item": raw(items),
            "title": [f"Film {i} ({1990 + i})" for i in items],
            "year": 1990 + items,
            "genres": [["Drama"] if i % 2 else ["Comedy", "War"] for i in items],
            "imdb": [f"tt{i:07d}" for i in items],
            "tmdb": items,
            "ratings": np.ones(ITEMS + 1),
        }
        folder.write_table("items.parquet", pa.table(columns, schema=schema.ITEMS))
        users = np.arange(USERS + COLD)
        zeros = np.zeros(len(users), np.int64)
        unknown = [pa.nulls(len(users))] * 3
        columns = [users, raw(users), zeros, zeros, zeros, zeros, *unknown]
        folder.write_table("users.parquet", pa.table(columns, schema=schema.USERS))
        facts = {
            "dataset": "tiny",
            "buckets": 1,
            "counts": {
                "users": USERS,
                "items": ITEMS,
                "unseen_users": 2,
                "unseen_items": 1,
                "filtered": filtered,
            },
            "splits": splits,
            "fits": {
                "train": {"users": USERS, "items": ITEMS, "range": [1.0, 5.0]},
                "train+valid": {"users": USERS + 1, "items": ITEMS, "range": [1.0, 5.0]},
                "all": {"users": USERS + 2, "items": ITEMS + 1, "range": [1.0, 5.0]},
            },
            "ratings": {"range": [1.0, 5.0], "levels": []},
            "settings": {"data": {}, "split": {"kind": "per-user-random", "seed": 0}},
            "fingerprints": {name: name * 8 for name in (*schema.PARTS, "ids", "items")},
        }
        folder.write_manifest(KIND, facts)
    return Prepared.open(str(tmp_path / "prepared"))


@pytest.fixture
def make_bundle(prepared, tmp_path):
    """Write a bundle whose model knows the two tastes; with flip it believes the opposite.

    A model without plain vectors is left as it is made. The final fit, if it has one, believes the
    opposite of what is measured.
    """

    def make(
        name: str = "bundle",
        preset: str = "ranking",
        flip: bool = False,
        changes: Sequence[str] = (),
        final: bool = False,
    ) -> Bundle:
        settings = load_settings(preset, None, ["model.dim=2", *changes]).sized(1000, 1500)
        model = build_model(settings, *prepared.fit(settings.train.fit_on)[:2])
        if hasattr(model, "user_vectors") and hasattr(model, "item_vectors"):
            _teach(model, flip)
        history = [{"epoch": 1, "loss": 1.0, "rmse": 0.9, "seconds": 0.1}]
        trained = TrainedModel(model.state_dict(), 1, history)
        created = "2026-01-01T00:00:00+00:00"
        out = str(tmp_path / name)
        also = None
        if final:
            on_all = settings.changed(train={"fit_on": "all"})
            again = build_model(on_all, USERS + COLD, ITEMS + 1)
            _teach(again, not flip)
            also = TrainedModel(again.state_dict(), 1, history), on_all
        return write_bundle(
            out, prepared, trained, settings, created, lambda _bundle: {}, final=also
        )

    return make


@torch.no_grad()
def _teach(model, flip: bool) -> None:
    for table in (model.user_vectors, model.item_vectors):
        size = len(table.weight)
        table.weight[:] = torch.nn.functional.one_hot(torch.arange(size) % 2, 2).float()
    model.item_vectors.weight *= torch.linspace(1.0, 1.1, model.items)[:, None]
    if flip:
        model.user_vectors.weight[:] = model.user_vectors.weight.flip(1)


# ------------------------------------------------------------------------------------- stores


@pytest.fixture
def s3(monkeypatch):
    """A client of an empty bucket `data`; stores of recray find it by the environment."""
    from tests.s3_store import s3_store  # a server, which most tests need not load

    with s3_store(monkeypatch) as client:
        yield client


@pytest.fixture
def proxy(s3, monkeypatch):
    """What stands before that store; stores of recray find it by the environment."""
    from recray.benchmarks.counting_proxy import Proxy

    host, _, port = s3.meta.endpoint_url.removeprefix("http://").partition(":")
    with Proxy((host, int(port))).running() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running
