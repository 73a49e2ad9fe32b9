"""Duplicate ratings, the part of ingest that needs no cluster."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recray.data.spill import Rows, drop_duplicates


def drop(rows, mean):
    user, item, rating, time = zip(*rows, strict=True) if rows else ((), (), (), ())
    given = Rows(
        np.array(user, np.int64),
        np.array(item, np.int64),
        np.array(rating, np.float32),
        np.array(time, np.int64),
    )
    columns = drop_duplicates(given, mean)[:4]
    assert [c.dtype for c in columns] == [np.int64, np.int64, np.float32, np.int64]
    return list(zip(*(c.tolist() for c in columns), strict=True))


TWICE = [(2, 7, 1.0, 90), (1, 9, 3.0, 5), (2, 7, 4.0, 80), (1, 8, 2.0, 6), (2, 7, 2.5, 85)]


def test_the_latest_rating_stays_wherever_it_stood():
    assert drop(TWICE, mean=False) == [(1, 8, 2.0, 6), (1, 9, 3.0, 5), (2, 7, 1.0, 90)]


def test_a_mean_keeps_the_latest_time():
    assert drop(TWICE, mean=True) == [(1, 8, 2.0, 6), (1, 9, 3.0, 5), (2, 7, 2.5, 90)]


def test_of_several_at_one_time_the_last_in_the_file_stays():
    rows = [(1, 1, 5.0, 0), (1, 1, 3.0, 0), (1, 1, 4.0, 0)]
    assert drop(rows, mean=False) == [(1, 1, 4.0, 0)]
    assert drop(rows[::-1], mean=False) == [(1, 1, 5.0, 0)]


@pytest.mark.parametrize("mean", [False, True])
def test_no_rows_stay_no_rows(mean):
    assert drop([], mean) == []


stars = st.integers(1, 10).map(lambda halves: halves / 2)
small = st.integers(0, 4)


@given(st.lists(st.tuples(small, small, stars, small), max_size=40), st.booleans())
def test_each_pair_stays_once_with_its_own_ratings(rows, mean):
    kept = drop(rows, mean)
    assert [row[:2] for row in kept] == sorted({row[:2] for row in rows})
    for user, item, rating, time in kept:
        mine = [row for row in rows if row[:2] == (user, item)]
        assert time == max(row[3] for row in mine)
        if mean:
            assert rating == pytest.approx(np.mean([row[2] for row in mine]))
        else:
            assert rating == [row[2] for row in mine if row[3] == time][-1]
