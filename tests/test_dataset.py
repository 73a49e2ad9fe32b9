"""The prepared data set: what each fit knows, and which rows it learns from."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from recray import schema
from recray.data.dataset import Ratings, in_order, part_name, write_part
from recray.inference.interactions import interactions_of
from recray.reporting import frames
from recray.storage import Folder
from tests.conftest import ITEMS, USERS, rows_of_splits


@pytest.mark.parametrize(
    ("fit_on", "splits", "users", "items"),
    [
        ("train", ["train"], USERS, ITEMS),
        ("train+valid", ["train", "valid"], USERS + 1, ITEMS),
        ("all", ["train", "valid", "test"], USERS + 2, ITEMS + 1),
    ],
)
def test_a_fit_learns_every_row_of_its_splits(prepared, fit_on, splits, users, items):
    fit, rows = prepared.fit(fit_on), prepared.load_fit(fit_on)
    assert (fit.users, fit.items) == (users, items)
    expected = sorted((u, i) for split in splits for u, i, *_ in rows_of_splits()[split])
    assert sorted(zip(rows.user.tolist(), rows.item.tolist(), strict=True)) == expected
    assert rows.user.max() == users - 1
    assert rows.item.max() == items - 1


def test_a_fit_of_data_that_an_earlier_version_prepared_knows_those_of_training(prepared):
    del prepared.manifest["fits"]
    assert prepared.fit("train+valid")[:2] == (USERS, ITEMS)
    assert prepared.load_fit("train+valid").user.max() == USERS - 1
    assert prepared.fit("all")[:2] == (USERS + 2, ITEMS + 1)


def test_only_the_fingerprint_of_a_fit_on_all_depends_on_test(prepared):
    before = [prepared.fingerprint_of(fit_on) for fit_on in ("train", "train+valid", "all")]
    prepared.manifest["fingerprints"]["test"] = "other" * 8
    after = [prepared.fingerprint_of(fit_on) for fit_on in ("train", "train+valid", "all")]
    assert [b == a for b, a in zip(before, after, strict=True)] == [True, True, False]


TIMES = np.array([schema.UNKNOWN_TIME, -5, 0])


def test_an_unknown_time_is_null_in_files_and_stands_first_again(tmp_path):
    ids = np.arange(3, dtype=np.int32)
    rows = Ratings(np.zeros(3, np.int32), ids[::-1].copy(), np.ones(3, np.float32), TIMES)
    folder = Folder(str(tmp_path))
    write_part(folder, "train", 0, rows, timed=True)
    table = folder.read_table(part_name("train", 0))
    assert table["timestamp"].to_pylist() == [None, -5, 0]
    again = Ratings.concatenate([Ratings.of(table.slice(1)), Ratings.of(table.slice(0, 1))])
    assert again.timestamp.tolist() == TIMES.tolist()
    assert again.item.tolist() == [2, 1, 0]


def test_rows_are_put_in_order_by_place_and_else_by_time():
    user, item = np.array([1, 0, 0, 0], np.int32), np.array([5, 1, 2, 3], np.int32)
    time, rating = np.array([4, 9, 3, 3]), np.ones(4, np.float32)
    placed = Ratings(user, item, rating, time, np.array([0, 0, 2, 1], np.int32))
    assert in_order(placed).item.tolist() == [1, 3, 2, 5]
    assert in_order(placed.where(np.arange(4)[::-1])).item.tolist() == [1, 3, 2, 5]
    timed = in_order(Ratings(user, item, rating, time))
    assert timed.timestamp.tolist() == [3, 3, 9, 4]
    assert timed.user.tolist() == [0, 0, 0, 1]


def test_the_order_of_one_time_does_not_follow_the_ids():
    n = 1000
    rows = Ratings(np.zeros(n, np.int32), np.arange(n, dtype=np.int32), np.ones(n), np.zeros(n))
    item = in_order(rows).item
    assert sorted(item.tolist()) == list(range(n))
    assert 400 < (np.diff(item) > 0).sum() < 600


def test_rows_with_places_are_joined_by_them_and_not_with_others():
    def rows(user, place):
        of_user, count = np.full(len(place), user, np.int32), len(place)
        item, time = np.array(place[::-1], np.int32), np.array(place[::-1], np.int64)
        return Ratings(of_user, item, np.ones(count), time, np.array(place, np.int32))

    joined = Ratings.concatenate([rows(1, [0, 2]), rows(0, [1]), rows(1, [1, 2]), rows(0, [0])])
    assert joined.user.tolist() == [0, 0, 1, 1, 1, 1]
    assert joined.place.tolist() == [0, 1, 0, 1, 2, 2]
    assert joined.item.tolist() == [0, 1, 2, 2, 0, 1], "of equal places the earlier part's first"
    nothing = Ratings.of(schema.RATINGS.empty_table())
    assert Ratings.concatenate([nothing, rows(0, [0])]).place.tolist() == [0]
    with pytest.raises(ValueError, match="have a place"):
        Ratings.concatenate([rows(0, [0]), dataclasses.replace(rows(0, [1]), place=None)])


def test_a_bundle_and_its_frames_show_no_unknown_time(prepared):
    rows = prepared.load("train")
    times = rows.timestamp.copy()
    times[:3] = TIMES
    changed = Ratings(rows.user, rows.item, rows.rating, times)
    write_part(prepared.folder, "train", 0, changed, timed=True)
    rows, _ = interactions_of(prepared)
    assert rows.timestamp[:3].tolist() == [schema.UNKNOWN_TIME, -5, 0]
    titles = pa.chunked_array([["title"] * 20])
    frame = frames.ratings(changed, prepared.user_ids, prepared.item_ids, titles)
    assert frame["time"].isna().tolist()[:4] == [True, False, False, False]
    assert frame["time"][1].year == 1969
