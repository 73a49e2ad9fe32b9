"""Reading: gzip and parquet files give the rows that plain text gives."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recray.data import readers
from recray.data.dialect import format_of_names
from recray.data.readers import parse_table, parsed
from recray.data.source import detect_source
from recray.errors import RecrayError

LINES = b"user,item,rating,timestamp\n" + b"".join(
    f"{n % 7},{n},{1 + n % 5},{n + 1}\n".encode() for n in range(100)
)


def rows_of(found):
    return [
        tuple(row.values())
        for piece in found.ranges
        for _, part in parsed(piece)
        for row in part.table.to_pylist()
    ]


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
        ({"timestamp": [-1, 8]}, "timestamp is negative"),
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
    monkeypatch.setattr(readers, "CHUNK_BYTES", 1 << 20)
    bomb = gzip.compress(b"user,item\n" + b"1,2\n" * (40 << 20))
    (piece,) = write(tmp_path, "x.gz", bomb).ranges
    with pytest.raises(RecrayError, match=r"would unpack to .* 100 times its size"):
        list(readers.chunks(piece))
