"""Ratings that filters drop stay known: each pair once, with ids, and of no pair that was kept."""

import numpy as np
import pytest

from recray.config import DataSettings
from recray.data.dataset import KNOWN, Ratings, part_name
from recray.data.filtered import ItemRules, above_minimum, write_filtered, write_known
from recray.data.ids import DenseIds
from recray.data.spill import Rows, SpillFolder
from recray.data.tasks import drop_rare, read_partition, write_partition
from recray.storage import Folder


def rows_of(*rows: tuple[int, int, float, int]) -> Rows:
    user, item, rating, time = zip(*rows, strict=True)
    return Rows(
        np.array(user, np.int64),
        np.array(item, np.int64),
        np.array(rating, np.float32),
        np.array(time, np.int64),
    )


def ids(*keys: int) -> DenseIds:
    """Dense ids in the order of keys that descends, so that none is its own place."""
    return DenseIds(np.array(keys), np.arange(len(keys), dtype=np.int32)[::-1].copy(), len(keys))


@pytest.fixture
def spill(tmp_path) -> SpillFolder:
    return SpillFolder(Folder(str(tmp_path / "spill")))


def known(spill: SpillFolder, tmp_path, kept: Rows, users: DenseIds, items: DenseIds):
    folder = Folder(str(tmp_path / "data"))
    sizes = {"kept": kept, "users": users, "items": items}
    count, entry = write_known(0, spill=spill, folder=folder, timed=True, **sizes)
    rows = Ratings.of(folder.read_table(part_name(KNOWN, 0)))
    assert len(rows) == count
    assert entry.name == part_name(KNOWN, 0)
    return list(zip(*(column.tolist() for column in rows.columns.values()), strict=True))


def test_what_was_dropped_is_written_once_with_dense_ids(spill, tmp_path):
    first = [rows_of((10, 7, 1.0, 5), (10, 8, 2.0, 6)), rows_of((20, 7, 1.0, 4))]
    write_filtered(spill, 0, first)
    write_filtered(spill.later(), 0, [rows_of((10, 7, 2.0, 9))])  # dropped again, and later
    last = rows_of((20, 8, 1.0, 3), (30, 7, 1.0, 3), (20, 9, 1.0, 3))
    write_filtered(spill.later(2), 0, [last])
    kept = rows_of((10, 8, 5.0, 20), (20, 9, 1.0, 1))
    found = known(spill.later(2), tmp_path, kept, ids(10, 20), ids(7, 8, 9))
    # Not (10, 8) and (20, 9), which were kept, nor user 30, who has no id.
    assert found == [(0, 1, 1.0, 3), (0, 2, 1.0, 4), (1, 2, 2.0, 9)]


def test_where_nothing_was_dropped_an_empty_file_says_so(spill, tmp_path):
    assert known(spill, tmp_path, rows_of((10, 8, 5.0, 20)), ids(10), ids(8)) == []


def test_a_merged_title_that_is_rated_low_counts_for_the_merged_item():
    rules = ItemRules(None, (np.array([7, 8]), np.array([7, 7])))
    rows, others = rules.apply(rows_of((1, 8, 1.0, 5), (1, 9, 5.0, 6)))
    assert not len(others.user)
    high, low = above_minimum(rows, DataSettings(min_rating=4))
    assert (high.item.tolist(), low.item.tolist()) == ([9], [7])


def test_a_dropped_year_of_a_merged_title_counts_for_the_merged_item():
    rules = ItemRules(np.array([7, 9]), (np.array([7, 8]), np.array([7, 7])))
    rows, others = rules.apply(rows_of((1, 8, 1.0, 5), (1, 9, 5.0, 6)))
    assert (rows.item.tolist(), others.item.tolist()) == ([9], [7])


def test_what_core_drops_round_by_round_is_kept_aside(spill, tmp_path):
    every = rows_of((1, 7, 5.0, 1), (1, 8, 5.0, 1), (1, 9, 5.0, 1), (2, 7, 5.0, 1), (2, 8, 5.0, 1))
    write_partition(spill, 0, every)
    drop_rare(0, spill=spill, items=np.array([7, 8]), core=2)
    for _ in range(2):  # a task may be done again
        drop_rare(0, spill=spill.later(), items=np.array([7]), core=1)
    left = read_partition(spill.later(2), 0)
    assert left.item.tolist() == [7, 7]
    found = known(spill.later(2), tmp_path, left, ids(1, 2), ids(7, 8, 9))
    assert [row[:2] for row in found] == [(0, 1), (1, 0), (1, 1)]
