"""Rows sorted by packed keys, runs of equal rows, distinct values: each as numpy has it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recray.data.row_order import distinct, order_by, run_starts

RANGES = [(0, 3), (-5, 5), (0, 2**20), (-(2**40), 2**40), (-(2**63), 2**63 - 1)]


@given(st.integers(0, 2**32), st.lists(st.sampled_from(RANGES), min_size=1, max_size=4))
def test_the_order_is_that_of_lexsort(seed, ranges):
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(0, 60))
    columns = [rng.integers(low, high, rows, endpoint=True) for low, high in ranges]
    if rng.random() < 0.5:
        columns[0] = np.sort(columns[0])
    assert order_by(*columns).tolist() == np.lexsort(columns[::-1]).tolist()


@given(st.integers(0, 2**32))
def test_hashes_use_all_64_bits(seed):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 4, 50)
    tie = rng.integers(0, 2**64, 50, dtype=np.uint64, endpoint=False)
    tie[:20] = (tie[:20] >> np.uint64(60) << np.uint64(60)) + np.arange(20, dtype=np.uint64) % 3
    assert order_by(group, tie).tolist() == np.lexsort((tie, group)).tolist()


@pytest.mark.parametrize(
    ("columns", "begins"),
    [([[7]], [0]), ([[1, 1, 2]], [0, 2]), ([[1, 1, 1], [5, 6, 6]], [0, 1])],
)
def test_runs_begin_where_any_column_changes(columns, begins):
    assert run_starts(*map(np.array, columns)).tolist() == begins


@given(st.integers(0, 2**32), st.sampled_from([3, 2**20, 2**63 - 1]), st.booleans())
def test_distinct_values_are_those_of_unique(seed, high, ascend):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, high, int(rng.integers(0, 40)), endpoint=True)
    ids = np.sort(ids) if ascend else ids
    wanted = np.unique(ids, return_inverse=True)
    found, place = distinct(ids)
    assert found.dtype == np.int64
    assert place.dtype == np.int64
    assert [found.tolist(), place.tolist()] == [array.tolist() for array in wanted]
