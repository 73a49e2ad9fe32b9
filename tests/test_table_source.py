"""Tables in memory as a source: every value is read as it was, from its own type."""

import hashlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from recray.config import load_settings
from recray.data.formats.reading import parsed
from recray.data.table_source import table_source
from recray.errors import RecrayError

FRAME = pd.DataFrame(
    {
        "userId": [1, 2, 3],
        "note": ["a", object(), None],  # not used, so it need not be of one kind
        "movieId": [10, 20, 10],
        "rating": [5.0, 3.5, 1.0],
        "timestamp": [100, 200, 300],
    }
)


def rows(tmp_path, table, *overrides, items=None):
    """The rows that are read from a table, its rejected ones, and the source."""
    settings = load_settings("ranking", None, overrides)
    with table_source(table, items, str(tmp_path / "out"), settings) as source:
        parts = [chunk for part in source.ranges for _, chunk in parsed(part)]
        read = pa.concat_tables(part.table for part in parts).to_pylist()
        rejected = pa.concat_tables(part.rejected for part in parts).to_pylist()
    assert list(tmp_path.iterdir()) == [], "nothing is left beside the output"
    return [tuple(row.values()) for row in read], rejected, source


EXPECTED = [(1, 10, 5.0, 100), (2, 20, 3.5, 200), (3, 10, 1.0, 300)]


@pytest.mark.parametrize(
    "table",
    [
        FRAME,
        pa.Table.from_pandas(FRAME.drop(columns="note")),
        pa.Table.from_pandas(FRAME.drop(columns="note")).to_batches()[0],
        FRAME.set_index(["userId", "movieId"]),
        FRAME.astype({"userId": "Int64", "movieId": "category", "rating": "float32"}),
        FRAME.assign(timestamp=pd.to_datetime(FRAME["timestamp"], unit="s", utc=True)),
    ],
)
def test_a_table_of_any_kind_is_read(tmp_path, table):
    read, rejected, source = rows(tmp_path, table)
    assert (read, rejected, source.name) == (EXPECTED, [], "table")


def test_levels_of_an_index_that_are_columns_as_well_are_read_once(tmp_path):
    index = [FRAME["userId"], FRAME["movieId"]]
    frame = FRAME.drop(columns="movieId").set_index(index)
    assert rows(tmp_path, frame)[0] == EXPECTED


def test_text_ids_are_not_changed(tmp_path):
    ids = ["007", "7", 'The "1" Show, II', "a\nb"]
    frame = pd.DataFrame({"user": ids, "item": ids, "rating": 1.0})
    read, _, source = rows(tmp_path, frame)
    assert [row[:2] for row in read] == [(i, i) for i in ids]
    assert source.text == {"raw_user", "raw_item"}


def test_columns_are_told_and_rows_that_cannot_be_read_are_counted(tmp_path):
    frame = pd.DataFrame({"who": [1, 2, None], 0: [10, 20, 30], "rating": [5, np.nan, 1]})
    columns = ["data.columns={user: who, item: '0'}"]
    read, rejected, _ = rows(tmp_path, frame, *columns)
    assert [row[:3] for row in read] == [(1, 10, 5.0)]
    assert sorted(row["reason"] for row in rejected) == ["rating is empty", "user is empty"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (FRAME.rename(columns={"movieId": "film"}), "the table has no item column: its columns"),
        (FRAME.iloc[:0], "the table of ratings is empty"),
        (FRAME.assign(userId=[1, "b", None]), "'userId' of the table holds values of the kinds"),
        (
            FRAME.assign(userId=pd.to_datetime(FRAME["timestamp"])),
            r"column userId is timestamp\[ns\], which is no user",
        ),
    ],
)
def test_what_cannot_be_a_source_is_refused(tmp_path, table, message):
    with pytest.raises(RecrayError, match=message):
        rows(tmp_path, table)


def test_two_files_are_no_table(tmp_path):
    named = ["split.kind=given", "split.train_file=a", "split.test_file=b"]
    with pytest.raises(RecrayError, match="needs a folder or archive with two files, not a table"):
        rows(tmp_path, FRAME, *named)


def test_its_identity_is_its_content(tmp_path):
    def identity(table, **more):
        return rows(tmp_path, table, **more)[2].identity

    first = identity(FRAME)
    cut = pa.Table.from_pandas(FRAME.drop(columns="note"))
    cut = pa.concat_tables([cut.slice(0, 1), cut.slice(1)])
    assert identity(FRAME.copy()) == identity(FRAME.assign(note=1)) == identity(cut) == first
    assert len(first) == hashlib.sha256().digest_size * 2
    titles = pd.DataFrame({"item": [10], "title": ["Heat"]})
    assert first not in (identity(FRAME.assign(rating=1.0)), identity(FRAME, items=titles))


def test_a_table_of_items_gives_titles(tmp_path):
    items = pd.DataFrame(
        {
            "movieId": [20.0, 10.0, np.nan, 20.0, 10.5],
            "Title": ["Heat (1995)", "Big", "nobody", "twice", "half"],
            "genres": ["Crime|Drama", None, "War", "War", "War"],
            "year": [np.nan, 1988.0, 1.0, 2.0, 3.0],
        }
    )
    source = rows(tmp_path, FRAME, items=items)[2]
    found = [tuple(row.values())[:4] for row in source.movies.to_pylist()]
    assert found == [(10, "Big", 1988, []), (20, "Heat (1995)", 1995, ["Crime", "Drama"])]
    (report,) = source.lists.reports
    reasons = ("item is empty", "item is listed before", "item is not a number")
    assert report.rejected == dict.fromkeys(reasons, 1)


def test_items_with_text_ids_and_lists_of_genres(tmp_path):
    frame = pd.DataFrame({"user": ["a"], "sku": ["007"], "rating": [1.0]})
    items = pa.table({"sku": ["007", "7"], "title": ["Bond", "Seven"], "genres": [["Spy"], None]})
    told = "data.columns={item: sku}"
    source = rows(tmp_path, frame, told, items=items)[2]
    found = [tuple(row.values())[:4] for row in source.movies.to_pylist()]
    assert found == [("007", "Bond", 0, ["Spy"]), ("7", "Seven", 0, [])]
    with pytest.raises(RecrayError, match="the table of items has the columns sku; an item column"):
        rows(tmp_path, frame, told, items=items.select(["sku"]))
