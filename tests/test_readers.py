"""Reading: gzip and parquet files give the rows that plain text gives."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recray.data.formats import text
from recray.data.formats.dialect import first_ids, format_of_text
from recray.data.formats.layout import ML_1M, ML_100K, RatingsFormat, format_of_names, text_roles
from recray.data.formats.tables import parse_table
from recray.data.source import detect_source
from recray.errors import RecrayError

from .conftest import rows_of

LINES = b"user,item,rating,timestamp\n" + b"".join(
    f"{n % 7},{n},{1 + n % 5},{n + 1}\n".encode() for n in range(100)
)


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return detect_source(str(path))


def test_gzip_and_parquet_give_the_rows_of_text(tmp_path):
    plain = rows_of(write(tmp_path, "a.csv", LINES))
    assert len(plain) == 100
    assert rows_of(write(tmp_path, "a.csv.gz", gzip.compress(LINES))) == plain
    user, item, rating, timestamp = zip(*plain, strict=True)
    table = pa.table({"item": item, "user": user, "timestamp": timestamp, "rating": rating})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=30)
    found = detect_source(str(tmp_path / "a.parquet"))
    assert len(found.ranges) == 4
    assert rows_of(found) == plain


def test_a_folder_of_files_of_several_kinds_is_one_source(tmp_path):
    lines = LINES.splitlines(keepends=True)
    (tmp_path / "a.csv").write_bytes(b"".join(lines[:31]))
    (tmp_path / "b.tsv").write_bytes(b"".join([lines[0], *lines[31:61]]).replace(b",", b"\t"))
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"".join([lines[0], *lines[61:]])))
    (tmp_path / "notes.txt").write_bytes(b"hello")
    (tmp_path / "_SUCCESS.csv").write_bytes(b"")
    expected = rows_of(write(tmp_path, "whole.txt", LINES))
    (tmp_path / "whole.txt").unlink()
    found = detect_source(str(tmp_path))
    assert [piece.file.name for piece in found.ranges] == ["a.csv", "b.tsv", "c.csv.gz"]
    assert rows_of(found) == expected


def test_text_ids_are_recognised_over_all_files_together(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"user,item\n1,x\n")
    (tmp_path / "b.csv").write_bytes(b"user,item\nann,y\nbob,z\n")
    found = detect_source(str(tmp_path))
    assert found.text == {"raw_user", "raw_item"}
    assert [row[:2] for row in rows_of(found)] == [("1", "x"), ("ann", "y"), ("bob", "z")]


def test_files_with_and_without_ratings_do_not_go_together(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"user,item\n1,2\n")
    (tmp_path / "b.csv").write_bytes(b"user,item,rating\n1,2,3\n")
    with pytest.raises(RecrayError, match=r"a.csv has no rating column"):
        detect_source(str(tmp_path))


LAYOUT = format_of_names("x", ["user", "item", "rating", "timestamp"])


def table_of(**changes):
    columns = {"raw_user": [1, 5], "raw_item": [20, 6], "rating": [3.0, 4.5], "timestamp": [9, 8]}
    return {role: pa.array(values) for role, values in (columns | changes).items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"raw_user": pa.array([1, 5], pa.uint8())},
        {"raw_user": [1.0, 5.0]},
        {"raw_item": ["20", "6"]},
        {"raw_item": pa.array(["20", "6"]).dictionary_encode()},
        {"rating": pa.array([3.0, 4.5], pa.float16())},
        {"timestamp": pa.array([9_000, 8_000], pa.timestamp("ms"))},
    ],
    ids=["plain", "uint8", "float-ids", "strings", "categories", "half", "times"],
)
def test_columns_of_any_type_are_read_alike(changes):
    result = parse_table(table_of(**changes), LAYOUT)
    rows = [tuple(row.values()) for row in result.table.to_pylist()]
    assert rows == [(1, 20, 3.0, 9), (5, 6, 4.5, 8)]
    assert len(result.rejected) == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"raw_user": [None, 5]}, "user is empty"),
        ({"raw_user": [-1, 5]}, "user is negative"),
        ({"raw_user": [1.5, 5.0]}, "user is not a number"),
        ({"raw_item": [10**18, 6]}, "item is too large"),
        ({"rating": [np.nan, 4.5]}, "rating is not finite"),
        ({"rating": [None, 4.5]}, "rating is empty"),
    ],
)
def test_a_bad_value_costs_only_its_row(changes, reason):
    result = parse_table(table_of(**changes), LAYOUT)
    assert [tuple(row.values()) for row in result.table.to_pylist()] == [(5, 6, 4.5, 8)]
    (bad,) = result.rejected.to_pylist()
    assert (bad["line"], bad["reason"]) == (0, reason)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.gz", gzip.compress(LINES * 5000)[:-40], "damaged archive"),
        ("x.gz", b"\x1f\x8b" + b"junk" * 9, "damaged archive"),
        ("x.parquet", b"PAR1" + b"junk" * 9, "damaged parquet file"),
        ("x.gz", gzip.compress(gzip.compress(LINES)), "packed twice"),
        ("x.gz", gzip.compress(b""), "is empty"),
    ],
    ids=["cut", "junk", "parquet", "twice", "empty"],
)
def test_damaged_files_are_one_line(tmp_path, name, content, message):
    with pytest.raises(RecrayError, match=message):
        rows_of(write(tmp_path, name, content))


def test_a_gzip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "CHUNK_BYTES", 1 << 20)
    bomb = gzip.compress(b"user,item\n" + b"1,2\n" * (40 << 20))
    (piece,) = write(tmp_path, "x.gz", bomb).ranges
    with pytest.raises(RecrayError, match=r"would unpack to .* 100 times its size"):
        list(text.chunks(piece))


# Layouts: columns by name, by place and by what is in them.

COLUMNS = ("raw_user", "raw_item", "rating", "timestamp")


@pytest.mark.parametrize(
    ("head", "expected"),
    [(b"1\t20\t3\t400\n5\t6\t4\t0\n", ML_100K), (b"1::20::3::400\n", ML_1M)],
)
def test_the_layouts_of_movielens_are_told_without_a_header(head, expected):
    assert format_of_text("anything", head) == expected


def test_columns_are_named_by_the_user():
    layout = format_of_text(
        "x.csv", b"Customer,SKU,rating,when\n", {"user": "customer", "item": "SKU"}
    )
    assert layout.columns == ("raw_user", "raw_item", "rating", "")


def test_a_named_column_goes_before_one_of_the_usual_names():
    layout = format_of_text("x.csv", b"user,item,score,stars\n", {"rating": "stars"})
    assert layout.columns == ("raw_user", "raw_item", "", "rating")


def test_columns_by_place_need_no_header():
    layout = format_of_text("x.csv", b"5;x;7\n", {"user": "3", "item": "1"})
    assert layout == RatingsFormat(";", ("raw_item", "", "raw_user"), False, None)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": "who"}, "--columns user=who: x.csv has no such column; its columns are a, item"),
        ({"item": "a"}, "x.csv has no user column"),
        ({"user": "3", "item": "1"}, "--columns user=3: x.csv has 2 columns"),
        ({"user": "0", "item": "1"}, "--columns user=0"),
        ({"item": "1"}, "x.csv has no user column"),
    ],
)
def test_columns_that_are_not_there_are_named(columns, message):
    with pytest.raises(RecrayError, match=message):
        format_of_text("x.csv", b"a,item\n1,2\n", columns)


def test_the_first_ids_stand_as_they_are_written():
    layout = RatingsFormat(",", ("raw_item", "raw_user"), header=True)
    head = b'item,user\r\n"a", 7\r\n\r\nb,8\r\n'
    assert first_ids(layout, head) == {"raw_item": ["a", "b"], "raw_user": ["7", "8"]}


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (["0", "7", "999999999999999999"], False),
        (["1.0", "2.0"], False),
        (["1", "", "nan", "NULL", "?"], False),
        (["1", "1e+05", "1.2e+07"], False),
        ([], False),
        (["1", "2", "x"], True),
        (["1", "-1"], True),
        (["1", "+3"], True),
        (["1", "007"], True),
        (["1", "1.5"], True),
        (["1", "1e5"], True),
        (["1", "1.5e+00"], True),
        (["1", "1000000000000000000"], True),
    ],
)
def test_ids_are_text_where_one_of_the_first_is_no_plain_integer(ids, text):
    found = text_roles("auto", {"raw_user": ["1"], "raw_item": ids})
    assert found == ({"raw_item"} if text else set())


def test_the_setting_decides_over_what_the_ids_look_like():
    first = {"raw_user": ["1"], "raw_item": ["x"]}
    assert text_roles("integer", first) == set()
    assert text_roles("text", first) == {"raw_user", "raw_item"}
