"""Users of a bundle in partitions: found, and what they have done, as in memory."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import torch

from recray.data.dataset import Ratings
from recray.data.ids import IdMap, id_hash
from recray.errors import DamagedFile, StorageError
from recray.inference.history import History
from recray.inference.stored_history import StoredHistory
from recray.inference.user_parts import TIME, DenseRanges, contents, partition_of
from recray.inference.user_store import RETRY_SECONDS, UserStore
from recray.schema import UNKNOWN_TIME

TRAINED, ALL, ITEMS, PARTITIONS = 60, 100, 20, 8


def raw_ids(text):
    """Raw ids in the order of dense ids: three groups, by partition, then by raw id."""
    drawn = np.random.default_rng(1).permutation(1000)[:ALL]
    groups = []
    for group in (drawn[:TRAINED], drawn[TRAINED:75], drawn[75:]):
        column = pa.array([f"u{n:04d}" for n in group] if text else group.astype(np.int64))
        where = partition_of(id_hash(column), PARTITIONS)
        order = sorted(range(len(group)), key=lambda n: (where[n], column[n].as_py()))
        groups.append(column.take(pa.array(order)))
    return pa.concat_arrays(groups)


def ratings(timed=True):
    draw = np.random.default_rng(2)
    pairs = np.unique(draw.integers(0, ALL * ITEMS, 900))
    user, item = (pairs // ITEMS).astype(np.int32), (pairs % ITEMS).astype(np.int32)
    time = draw.integers(0, 9, len(pairs)) if timed else np.full(len(pairs), UNKNOWN_TIME)
    order = np.lexsort((item, time, user))
    rating = draw.integers(1, 6, len(pairs)).astype(np.float32)
    return Ratings(user[order], item[order], rating[order], time[order].astype(np.int64))


@pytest.fixture(params=[False, True], ids=["integers", "text"])
def made(request):
    """A store, and what it must give."""
    raw, rows = raw_ids(request.param), ratings()
    part = np.random.default_rng(3).integers(0, 5, len(rows)).astype(np.int8)
    table = torch.randn(TRAINED, 3, generator=torch.Generator().manual_seed(4))
    numbering = DenseRanges.of(raw, (TRAINED, 75, ALL), PARTITIONS)
    written = list(contents(raw, numbering, rows, part, {"user_vectors": table}))
    opened = []

    def open_partition(number):
        opened.append(number)
        return written[number]

    store = UserStore(numbering, TRAINED, ITEMS, request.param, open_partition)
    return store, IdMap(raw.to_numpy(zero_copy_only=False), TRAINED), rows, part, table, opened


def test_ids_are_those_of_the_whole_list(made):
    store, ids, *_ = made
    raw = ids.raw.tolist()
    assert len(store) == ALL
    assert store.encode_all(raw).tolist() == list(range(ALL))
    assert store.raw_of(np.array([99, 0, 75, 60])) == [raw[99], raw[0], raw[75], raw[60]]


def test_the_partition_of_one_who_asks_again_is_remembered(made, monkeypatch):
    store, raw = made[0], made[1].raw.tolist()[7]
    found = store.encode_one(raw)
    monkeypatch.setattr("recray.inference.user_store.id_hash", None)
    assert store.encode_one(raw) == found == 7
    assert store.at_hand([raw]) == [True]


def test_unknown_ids_of_any_kind_are_none(made):
    store, *_ = made
    assert store.encode_all([-1, 10**18, 2**70, 5000, "u5000", "", "7"]).tolist() == [-1] * 7


def test_a_partition_is_opened_once_and_only_when_it_is_needed(made):
    store, ids, *_, opened = made
    assert opened == []
    for _ in range(3):
        store.encode_one(ids.raw[5])
    assert len(opened) == 1
    store.encode_all(ids.raw.tolist())
    assert sorted(opened) == list(range(PARTITIONS))


def test_at_hand_is_what_needs_no_partition_to_be_opened(made):
    store, ids, *_, opened = made
    raw = ids.raw.tolist()
    assert store.at_hand([raw[5], raw[6], 2**70, -1]) == [False, False, True, True]
    assert opened == []
    store.encode_one(raw[5])
    assert store.at_hand([raw[5]]) == [True]


def failing(error):
    """A store whose partitions cannot be opened, and how often it was tried."""
    tries = []

    def open_partition(number):
        tries.append(number)
        raise error

    numbering = DenseRanges.of(raw_ids(text=False), (TRAINED, 75, ALL), PARTITIONS)
    return UserStore(numbering, TRAINED, ITEMS, False, open_partition), tries


def test_a_damaged_partition_is_read_once():
    store, tries = failing(DamagedFile("part 3 is damaged"))
    for _ in range(3):
        with pytest.raises(DamagedFile, match="part 3"):
            store.raw_of(np.array([0]))
    assert len(tries) == 1
    assert store.damaged == tries


def test_a_store_that_does_not_answer_is_left_alone_for_some_seconds(monkeypatch):
    store, tries = failing(StorageError("no answer"))
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for user in (0, 59, 0):  # of two partitions
        with pytest.raises(StorageError, match="no answer"):
            store.raw_of(np.array([user]))
    assert len(tries) == 1
    now[0] += RETRY_SECONDS
    with pytest.raises(StorageError):
        store.raw_of(np.array([0]))
    assert len(tries) == 2
    assert store.damaged == []


def test_two_threads_open_a_partition_once(made):
    store, ids, *_, opened = made
    one, many = ids.raw[5], 8
    begin = threading.Barrier(many)

    def ask():
        begin.wait()
        return store.encode_one(one)

    with ThreadPoolExecutor(many) as threads:
        assert [f.result() for f in [threads.submit(ask) for _ in range(many)]] == [5] * many
    assert len(opened) == 1


def test_rows_of_tables_are_those_of_the_model(made):
    store, _, _, _, table, _ = made
    users = np.array([59, 3, 3, 17, 0])
    assert np.array_equal(store.rows("user_vectors", users), table.numpy()[users])
    assert torch.equal(store.table("user_vectors", 3)(torch.from_numpy(users)), table[users])
    assert store.rows("user_vectors", np.array([4])).tolist() == table[4:5].tolist()
    assert store.table("user_vectors", 3)(torch.zeros(0, dtype=torch.int64)).shape == (0, 3)


@pytest.mark.parametrize("in_order", [False, True])
def test_histories_are_those_of_all_rows(made, in_order):
    store, _, rows, part, *_ = made

    def keep(codes, known):
        return (codes != 4) & ((codes == 0) | ~known)

    chosen = (part != 4) & ((part == 0) | (rows.user >= TRAINED))
    whole = History.of(rows.where(chosen), ALL, ITEMS - 3)
    stored = StoredHistory(store, ITEMS - 3, keep, in_order, timed=True)
    users = np.array([70, 2, 99, 2, 0])
    mine, its = stored.of_users(users), whole.of_users(users)
    assert mine.indptr.tolist() == its.indptr.tolist()
    assert mine.item.tolist() == its.item.tolist() or in_order
    assert stored.counts(users).tolist() == np.diff(its.indptr).tolist()
    for n in range(len(users)):
        one = mine.rows(n, n + 1)
        assert sorted(one.item.tolist()) == sorted(its.rows(n, n + 1).item.tolist())
        assert one.time.tolist() == sorted(one.time.tolist())
    assert stored.of_user(2).rating.tolist() == mine.rows(1, 2).rating.tolist()


def test_a_store_without_times_says_so():
    raw, rows = raw_ids(text=False), ratings(timed=False)
    numbering = DenseRanges.of(raw, (TRAINED, 75, ALL), PARTITIONS)
    written = list(contents(raw, numbering, rows, np.zeros(len(rows), np.int8), {}))
    assert TIME not in written[0]
    store = UserStore(numbering, TRAINED, ITEMS, False, written.__getitem__)
    _, found, _ = store.interactions(np.arange(ALL))
    assert found.item.tolist() == rows.item.tolist()
    assert set(found.timestamp.tolist()) == {UNKNOWN_TIME}
