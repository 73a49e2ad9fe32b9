"""Slices of spill files, and repeated ratings of a pair: the parts of ingest without a cluster."""

from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recray.config import Duplicates
from recray.data import spill as spill_files
from recray.data.spill import Rows, SpillFile, SpillFolder, merge_duplicates
from recray.schema import UNKNOWN_TIME
from recray.storage import Folder, range_reader

HOW = get_args(Duplicates)


def merge(rows, how):
    user, item, rating, time = zip(*rows, strict=True) if rows else ((), (), (), ())
    given = Rows(
        np.array(user, np.int64),
        np.array(item, np.int64),
        np.array(rating, np.float32),
        np.array(time, np.int64),
    )
    columns = merge_duplicates(given, how)[:4]
    assert [c.dtype for c in columns] == [np.int64, np.int64, np.float32, np.int64]
    return list(zip(*(c.tolist() for c in columns), strict=True))


TWICE = [(2, 7, 1.0, 90), (1, 9, 3.0, 5), (2, 7, 4.0, 80), (1, 8, 2.0, 6), (2, 7, 2.5, 85)]


def test_the_latest_rating_stays_wherever_it_stood():
    assert merge(TWICE, "last") == [(1, 8, 2.0, 6), (1, 9, 3.0, 5), (2, 7, 1.0, 90)]


def test_a_mean_keeps_the_latest_time():
    assert merge(TWICE, "mean") == [(1, 8, 2.0, 6), (1, 9, 3.0, 5), (2, 7, 2.5, 90)]


def test_of_several_at_one_time_the_last_in_the_file_stays():
    rows = [(1, 1, 5.0, 0), (1, 1, 3.0, 0), (1, 1, 4.0, 0)]
    assert merge(rows, "last") == [(1, 1, 4.0, 0)]
    assert merge(rows[::-1], "last") == [(1, 1, 5.0, 0)]


def test_a_rating_of_unknown_time_is_older_than_every_other():
    rows = [(1, 1, 5.0, -100), (1, 1, 3.0, UNKNOWN_TIME)]
    assert merge(rows, "last") == [(1, 1, 5.0, -100)]
    assert merge(rows, "mean") == [(1, 1, 4.0, -100)]


@pytest.mark.parametrize(
    ("how", "rating"), [("last", 2.5), ("mean", 2.5), ("sum", 7.5), ("count", 3.0), ("max", 4.0)]
)
def test_repeats_become_one_rating(how, rating):
    rows = [(2, 7, 1.0, 80), (2, 7, 4.0, 85), (1, 9, 3.0, 5), (2, 7, 2.5, 90)]
    single = 1.0 if how == "count" else 3.0
    assert merge(rows, how) == [(1, 9, single, 5), (2, 7, rating, 90)]


@pytest.mark.parametrize("how", HOW)
def test_no_rows_stay_no_rows(how):
    assert merge([], how) == []


stars = st.integers(1, 10).map(lambda halves: halves / 2)
small = st.integers(0, 4)
times = st.sampled_from([UNKNOWN_TIME, -1, 0, 1])


@given(st.lists(st.tuples(small, small, stars, times), max_size=40), st.sampled_from(HOW))
def test_each_pair_stays_once_with_its_own_ratings(rows, how):
    kept = merge(rows, how)
    assert [row[:2] for row in kept] == sorted({row[:2] for row in rows})
    for user, item, rating, time in kept:
        mine = [row for row in rows if row[:2] == (user, item)]
        assert time == max(row[3] for row in mine)
        given = [row[2] for row in mine]
        expected = {
            "last": [row[2] for row in mine if row[3] == time][-1],
            "mean": np.mean(given),
            "sum": sum(given),
            "count": len(given),
            "max": max(given),
        }
        assert rating == pytest.approx(expected[how])


@given(st.lists(st.tuples(small, small, stars, times), max_size=40), st.randoms())
def test_only_the_last_of_equal_times_depends_on_the_order_of_the_file(rows, random):
    shuffled = random.sample(rows, len(rows))
    for how in HOW[1:]:
        assert merge(rows, how) == merge(shuffled, how)


# ------------------------------------------------------------------------------------- slices

FIELDS = pa.schema([("n", pa.int64())])


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_slice_is_read_without_the_others(tmp_path, monkeypatch, scheme):
    spill, read = SpillFolder(Folder(f"{scheme}{tmp_path}")), []

    def counted(folder, name):
        ranges = range_reader(folder, name)
        return lambda begin, count: read.append(count) or ranges(begin, count)

    monkeypatch.setattr(spill_files, "range_reader", counted)
    slices = [pa.table([list(range(size))], schema=FIELDS) for size in (1000, 0, 3, 1000)]
    offsets = spill.write_slices(SpillFile.ROWS, FIELDS, slices, 4, 7)
    assert len(offsets) == 5
    for place, expected in enumerate(slices):
        found = spill.read_slices(SpillFile.ROWS, FIELDS, *offsets[place : place + 2], 4, 7)
        assert found.equals(expected)
    both = spill.read_slices(SpillFile.ROWS, FIELDS, offsets[0], offsets[3], 4, 7)
    assert both["n"].to_pylist() == [*range(1000), 0, 1, 2]
    sizes = np.diff(offsets).tolist()
    assert sizes[1] == 0
    assert read == ([sizes[0], sizes[2], sizes[3], sum(sizes[:3])] if scheme else [])
