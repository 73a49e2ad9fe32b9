"""Parquet, Arrow and ORC: columns of any type give the same rows; only damage is called damage."""

import decimal
import json
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from recray.config import Settings
from recray.data.formats import columnar
from recray.data.source import detect_source
from recray.errors import RecrayError

from .conftest import parts_of, rows_of

USERS, ITEMS, RATINGS = [7, 8, 9], ["a", "b", "c"], [1.0, 2.5, 4.0]
TABLE = pa.table({"user": USERS, "item": ITEMS, "rating": RATINGS})
ROWS = list(zip(USERS, ITEMS, RATINGS, [None] * 3, strict=True))


def detect(path, **columns):
    return detect_source(str(path), Settings.model_validate({"data": {"columns": columns or None}}))


def with_column(name, values, kind=None):
    array = values if isinstance(values, pa.Array) else pa.array(values, kind)
    return TABLE.set_column(TABLE.schema.get_field_index(name), name, [array])


WRITERS = {
    "parquet": pq.write_table,
    "feather": pyarrow.feather.write_feather,
    "orc": pyarrow.orc.write_table,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_every_kind_of_table_gives_its_rows(tmp_path, monkeypatch, write):
    monkeypatch.setattr(columnar, "CHUNK_ROWS", 2)
    write(TABLE, str(tmp_path / "given"))
    assert rows_of(detect(tmp_path / "given")) == ROWS


def test_a_stream_of_arrow_gives_its_rows(tmp_path):
    with (
        pa.OSFile(str(tmp_path / "given"), "wb") as sink,
        pa.ipc.new_stream(sink, TABLE.schema) as out,
    ):
        out.write_table(TABLE, max_chunksize=2)
    assert rows_of(detect(tmp_path / "given")) == ROWS


@pytest.mark.parametrize(
    "changed",
    [
        with_column("user", [[7], [8], [9]]),
        with_column("user", USERS, pa.decimal128(20, 0)),
        with_column("user", [decimal.Decimal(n) for n in USERS], pa.decimal128(20, 2)),
        with_column("user", [7.0, 8.0, 9.0]),
        with_column("item", [b"a", b"b", b"c"]),
        with_column("item", ITEMS, pa.string_view()),
        with_column("item", ITEMS, pa.large_string()),
        with_column("item", [b"a", b"b", b"c"], pa.binary(1)),
        with_column("item", pa.array(ITEMS).dictionary_encode()),
        with_column("rating", [decimal.Decimal("1.0"), decimal.Decimal("2.5"), decimal.Decimal(4)]),
        with_column("rating", np.array(RATINGS, np.float16)),
        with_column("rating", ["1", "2.5", "4.0"]),
    ],
    ids="list decimal-id cents-id float-id binary view large fixed dict decimal half text".split(),
)
def test_columns_of_any_type_give_the_same_rows(tmp_path, changed):
    pyarrow.feather.write_feather(changed, str(tmp_path / "given"))  # parquet would change types
    assert rows_of(detect(tmp_path / "given")) == ROWS
    pq.write_table(changed, tmp_path / "given")
    assert rows_of(detect(tmp_path / "given")) == ROWS


def test_uuids_are_written_as_people_write_them(tmp_path):
    made = [uuid.UUID(int=n << 64) for n in (1, 2, 3)]
    for kind in (pa.binary(16), pa.uuid()):
        pq.write_table(with_column("user", [u.bytes for u in made], kind), tmp_path / "given")
        assert [row[0] for row in rows_of(detect(tmp_path / "given"))] == [str(u) for u in made]


def test_booleans_are_ratings_of_1_and_0(tmp_path):
    pq.write_table(with_column("rating", [True, False, True]), tmp_path / "given")
    assert [row[2] for row in rows_of(detect(tmp_path / "given"))] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("words", [["like", "dislike", "like"], ["True", "False", "True"]])
def test_words_are_ratings_of_1_and_0(tmp_path, words):
    pq.write_table(with_column("rating", words), tmp_path / "given")
    assert [row[2] for row in rows_of(detect(tmp_path / "given"))] == [1.0, 0.0, 1.0]
    (tmp_path / "given").write_text(
        "\n".join(map(json.dumps, with_column("rating", words).to_pylist()))
    )
    assert [row[2] for row in rows_of(detect(tmp_path / "given"))] == [1.0, 0.0, 1.0]


def test_numbers_in_a_column_of_texts_may_have_a_decimal_comma(tmp_path):
    pq.write_table(with_column("rating", ["1", "2,5", "4,0"]), tmp_path / "given")
    assert rows_of(detect(tmp_path / "given")) == ROWS


def test_bytes_that_are_no_text_stay_different_ids(tmp_path):
    pq.write_table(with_column("item", [b"\xff\x00", b"\xfe", b"c"]), tmp_path / "given")
    assert [row[1] for row in rows_of(detect(tmp_path / "given"))] == ["0xff00", "0xfe", "c"]


@pytest.mark.parametrize(
    ("changed", "reasons"),
    [
        (with_column("user", pa.nulls(3)), ["user is empty"] * 3),
        (with_column("rating", pa.nulls(3)), ["rating is empty"] * 3),
        (with_column("item", [["a"], ["b", "c"], []]), ["item is a list"] * 2),
    ],
)
def test_a_value_that_is_none_costs_its_row(tmp_path, changed, reasons):
    pq.write_table(changed, tmp_path / "given")
    parts = parts_of(detect(tmp_path / "given"))
    assert [reason for part in parts for reason in part.rejected["reason"].to_pylist()] == reasons
    assert sum(part.rows for part in parts) == 3


def test_a_column_of_nulls_for_times_costs_nothing(tmp_path):
    pq.write_table(TABLE.append_column("timestamp", pa.nulls(3)), tmp_path / "given")
    assert rows_of(detect(tmp_path / "given")) == ROWS


def test_fields_inside_a_column_are_named_by_a_path(tmp_path):
    reviewer = pa.array([{"id": n, "name": {"first": "x"}} for n in USERS])
    for write in WRITERS.values():
        write(with_column("user", reviewer), str(tmp_path / "given"))
        assert rows_of(detect(tmp_path / "given", user="user.id")) == ROWS
        with pytest.raises(RecrayError, match=r"user holds several .* user=NAME .* user\.id, "):
            detect(tmp_path / "given")


@pytest.mark.parametrize(
    "items",
    [
        pa.array([1, 2, 3], pa.timestamp("s")),
        pa.array([1, 2, 3], pa.timestamp("s")).dictionary_encode(),
        pa.array([[1], [2], [3]], pa.list_(pa.date32())),
        pa.array([[{"id": 1}], [{"id": 2}], []]),
        pa.array([[("a", 1)], [], []], pa.map_(pa.string(), pa.int64())),
    ],
    ids=["times", "categories", "lists", "structs", "maps"],
)
def test_what_can_be_no_id_is_refused_by_its_type(tmp_path, items):
    pq.write_table(with_column("item", items), tmp_path / "given")
    with pytest.raises(RecrayError, match=r"given: column item is .*, which is no item; name an"):
        detect(tmp_path / "given")


def test_two_columns_of_one_name_are_named(tmp_path):
    pq.write_table(TABLE.append_column("user", [USERS]), tmp_path / "given")
    with pytest.raises(RecrayError, match="two columns named user"):
        detect(tmp_path / "given")


@pytest.mark.parametrize("kind", ["parquet", "feather"])
def test_a_file_that_is_cut_off_is_damaged(tmp_path, kind):
    WRITERS[kind](TABLE, str(tmp_path / "given"))
    (tmp_path / "given").write_bytes((tmp_path / "given").read_bytes()[:-20])
    with pytest.raises(RecrayError, match="given is a damaged"):
        rows_of(detect(tmp_path / "given"))


# --------------------------------------------------------------------------- names of folders


def write_partitions(folder, column, ending):
    """A folder for each value of a column, whose files do not have that column."""
    for n in range(3):
        inside = folder / f"{column}={TABLE[column][n].as_py()}"
        inside.mkdir(parents=True)
        rows = TABLE.slice(n, 1).drop_columns([column])
        if ending == "parquet":
            pq.write_table(rows, inside / "part-0.parquet")
        else:
            line = ",".join(str(value) for value in rows.to_pylist()[0].values())
            (inside / "part-0.csv").write_text(f"{','.join(rows.column_names)}\n{line}\n")
    (folder / "_SUCCESS").write_text("")


@pytest.mark.parametrize("ending", ["parquet", "csv"])
@pytest.mark.parametrize("column", ["user", "item", "rating"])
def test_the_names_of_folders_are_a_column(tmp_path, column, ending):
    write_partitions(tmp_path / "given", column, ending)
    found = detect(tmp_path / "given")
    assert sorted(rows_of(found)) == ROWS
    assert not found.implicit


def test_the_names_of_folders_may_be_told(tmp_path):
    for n, stars in enumerate(("4", "__HIVE_DEFAULT_PARTITION__", "5")):
        (tmp_path / f"mark={stars}").mkdir()
        rows = TABLE.slice(n, 1).drop_columns(["rating"])
        pq.write_table(rows, tmp_path / f"mark={stars}" / "a.parquet")
    parts = parts_of(detect(tmp_path, rating="mark"))
    assert [part.table["rating"].to_pylist() for part in parts] == [[4.0], [5.0], []]
    assert parts[2].rejected["reason"].to_pylist() == ["rating is empty"]


def test_names_of_folders_are_unescaped(tmp_path):
    (tmp_path / "item=a%2Fb%20c").mkdir()
    (tmp_path / "item=a%2Fb%20c" / "x.csv").write_text("user\n7\n")
    assert [row[1] for row in rows_of(detect(tmp_path))] == ["a/b c"]
