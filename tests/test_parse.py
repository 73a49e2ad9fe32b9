"""Parsing: every layout, every reason for rejecting a row, and films."""

from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recray import schema
from recray.data.formats import delimited
from recray.data.formats.delimited import parse_ratings
from recray.data.formats.dialect import format_of_text
from recray.data.formats.layout import ML_1M, ML_100K, RatingsFormat
from recray.data.formats.values import ParsedRatings
from recray.errors import RecrayError

COLUMNS = ("raw_user", "raw_item", "rating", "timestamp")
CSV = RatingsFormat(",", COLUMNS, header=True, scale=(0.5, 5.0))
ANY_SCALE = RatingsFormat(",", COLUMNS, header=True, scale=None)


def rows(table: pa.Table) -> list[tuple]:
    assert table.schema == schema.RAW_RATINGS
    return [tuple(row.values()) for row in table.to_pylist()]


def rejected(parsed: ParsedRatings) -> list[tuple]:
    return [(r["line"], r["byte"], r["text"], r["reason"]) for r in parsed.rejected.to_pylist()]


def checked(content: bytes, layout: RatingsFormat) -> ParsedRatings:
    lines = content.count(b"\n") + (not content.endswith(b"\n") and len(content) > 0)
    return delimited._parse_checked(content, layout, lines)


# ------------------------------------------------------------------------------------ ratings


@pytest.mark.parametrize(
    ("content", "layout"),
    [
        (b"1\t20\t3\t400\n5\t6\t4.5\t0\n", ML_100K),
        (b"1::20::3::400\n5::6::4.5::0\n", ML_1M),
        (b"1,20,3.0,400\n5,6,4.5,0\n", CSV),
        (b"1;20;3;400\n5;6;4.5;0\n", RatingsFormat(";", COLUMNS, header=True)),
        (b'"1","20","3","400"\n"5","6","4.5","0"\n', CSV),
        (b"1,20,3,400\r\n5,6,4.5,0\r\n", CSV),
        (b"1,20,3,400\n5,6,4.5,0", CSV),
        (b"\n1,20,3,400\n\r\n  \n5,6,4.5,0\n\n", CSV),
        (b" 1 , 20,3 ,400\n5,6,4.5,0\n", CSV),
    ],
    ids=["tab", "colons", "csv", "semicolon", "quoted", "crlf", "no-end", "blank", "spaces"],
)
def test_every_layout_gives_the_same_rows_on_both_paths(content, layout):
    expected = [(1, 20, 3.0, 400), (5, 6, 4.5, 0)]
    for parsed in (parse_ratings(content, layout), checked(content, layout)):
        assert rows(parsed.table) == expected
        assert rejected(parsed) == []


def test_columns_may_stand_in_any_order_and_unused_ones_are_skipped():
    layout = RatingsFormat(",", ("", "raw_item", "timestamp", "raw_user", "rating"), header=True)
    content = b"abc,20,400,1,3\n,6,0,5,4.5\n"
    for parsed in (parse_ratings(content, layout), checked(content, layout)):
        assert rows(parsed.table) == [(1, 20, 3.0, 400), (5, 6, 4.5, 0)]


def test_without_a_rating_column_every_row_counts_one():
    layout = RatingsFormat(",", ("raw_user", "raw_item"), header=True)
    assert layout.implicit
    parsed = parse_ratings(b"1,2\nx,2\n3,4\n", layout)
    assert rows(parsed.table) == [(1, 2, 1.0, None), (3, 4, 1.0, None)]
    assert rejected(parsed) == [(1, 4, "x,2", "user is not a number")]


BAD_ROWS = [
    (b"1,2", "missing column"),
    (b"1,2,3,4,5", "too many columns"),
    (b"1,2,3,\x004", "NUL byte"),
    (b"1,2,3,4\xe9", "not UTF-8"),
    (b",2,3,4", "user is empty"),
    (b"u7,2,3,4", "user is not a number"),
    (b"1.5,2,3,4", "user is not a number"),
    (b"-1,2,3,4", "user is negative"),
    (b"9999999999999999999,2,3,4", "user is too large"),
    (b"1,,3,4", "item is empty"),
    (b"1,tt12,3,4", "item is not a number"),
    (b"1,-2,3,4", "item is negative"),
    (b"1,99999999999999999999,3,4", "item is too large"),
    (b"1,2,,4", "rating is empty"),
    (b"1,2,good,4", "rating is not a number"),
    (b"1,2,nan,4", "rating is not finite"),
    (b"1,2,-Infinity,4", "rating is not finite"),
    (b"1,2,0,4", "rating outside the scale"),
    (b"1,2,5.01,4", "rating outside the scale"),
    (b"1,2,-3,4", "rating outside the scale"),
    (b"1,2,1e999,4", "rating outside the scale"),
    (b"007,2,3,4", "user has leading zeros"),
    (b"1,+7,3,4", "item is not a number"),
    (b"u7,2,nan,-4", "user is not a number"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_ROWS, ids=lambda value: str(value))
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_a_bad_row_costs_only_itself(line, reason, end):
    first, last = b"1,20,3,400" + end, b"5,6,4.5,0" + end
    parsed = parse_ratings(first + line + end + last, CSV)
    assert rows(parsed.table) == [(1, 20, 3.0, 400), (5, 6, 4.5, 0)]
    text = line.decode("utf-8", errors="replace")
    assert rejected(parsed) == [(1, len(first), text, reason)]
    assert parsed.lines == 3


def test_all_bad_rows_are_placed_by_line_and_byte_past_blank_lines():
    content = b"x::2::3::4\n\n1::20::3::400\n1::2::9::4\n\xff\n1::2::3"
    parsed = parse_ratings(content, replace(ML_1M, scale=(1, 5)))
    assert rows(parsed.table) == [(1, 20, 3.0, 400)]
    assert rejected(parsed) == [
        (0, 0, "x::2::3::4", "user is not a number"),
        (3, 26, "1::2::9::4", "rating outside the scale"),
        (4, 37, "\ufffd", "not UTF-8"),
        (5, 39, "1::2::3", "missing column"),
    ]
    assert parsed.lines == 6


def test_the_text_of_a_rejected_row_is_cut_at_200_characters():
    parsed = parse_ratings(b"9" * 5000 + b"\n", CSV)
    assert [r["text"] for r in parsed.rejected.to_pylist()] == ["9" * 200]


def test_a_tab_among_colons_is_not_taken_for_a_delimiter():
    parsed = parse_ratings(b"1\t2\t3\t4\n1::20::3::400\n", ML_1M)
    assert rows(parsed.table) == [(1, 20, 3.0, 400)]
    assert rejected(parsed) == [(0, 0, "1\t2\t3\t4", "missing column")]


def test_a_file_with_its_own_scale_takes_every_finite_rating():
    parsed = parse_ratings(b"1,2,-80,4\n1,3,1e9,4\n1,4,1e39,4\n1,5,inf,4\n", ANY_SCALE)
    assert rows(parsed.table) == [(1, 2, -80.0, 4), (1, 3, 1e9, 4)]
    assert [r[3] for r in rejected(parsed)] == ["rating outside the scale", "rating is not finite"]


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n\r\n"])
def test_no_rows_give_an_empty_table(content):
    parsed = parse_ratings(content, CSV)
    assert rows(parsed.table) == []
    assert rejected(parsed) == []


stars = st.integers(1, 10).map(lambda halves: halves / 2)
ids = st.integers(0, 10**18 - 1)
ratings = st.tuples(ids, ids, stars, st.integers(-8_000_000_000, 7_000_000_000))


@given(
    st.lists(ratings, max_size=20),
    st.sampled_from(["\t", "::", ",", ";"]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_on_rows_in_order_the_clean_path_equals_the_checked_path(wanted, delimiter, end, whole):
    layout = RatingsFormat(delimiter, COLUMNS)
    text = "".join(delimiter.join(str(field) for field in row) + end for row in wanted)
    content = (text if whole else text.removesuffix(end)).encode()
    clean = delimited._parse_clean(content, layout)
    assert clean is not None or not content, "rows in order must not take the slow path"
    assert rows(checked(content, layout).table) == wanted
    if clean is not None:
        assert rows(clean) == wanted


@given(st.text("123.5,\n e+-x", max_size=40).map(lambda text: text.encode()))
def test_on_any_text_the_clean_path_gives_up_or_equals_the_checked_path(content):
    layout = RatingsFormat(",", ("raw_user", "rating", "raw_item"))
    clean, slow = delimited._parse_clean(content, layout), checked(content, layout)
    blank = sum(not line.strip() for line in content.split(b"\n"))
    seen = len(slow.table) + len(slow.rejected)
    assert seen == content.count(b"\n") + 1 - blank, "every line is accepted or rejected"
    if clean is not None:
        assert len(slow.rejected) == 0
        assert clean.equals(slow.table)


DATED = RatingsFormat(",", ("raw_user", "timestamp", "raw_item"), time="iso")
dates = st.text(st.sampled_from("12014-05-13 T:+Zx"), max_size=6).map(lambda end: f"2014-05-1{end}")
fields = st.one_of(st.text("123 -.", max_size=3), dates)


@given(st.lists(st.tuples(fields, dates, fields), max_size=4))
def test_both_paths_read_a_line_with_a_date_alike(lines):
    content = "".join(",".join(row) + "\n" for row in lines).encode()
    clean, slow = delimited._parse_clean(content, DATED), checked(content, DATED)
    if clean is not None:
        assert len(slow.rejected) == 0
        assert clean.equals(slow.table)


@pytest.mark.parametrize(
    ("content", "layout"),
    [
        (b"1,2014-05-13 18:16:40,7\n2,,8\n", DATED),
        (b"1,20,3,400\n1,21,4,\n1,22,4,-5\n", CSV),
    ],
)
def test_missing_times_and_dates_do_not_slow_the_others_down(content, layout):
    clean = delimited._parse_clean(content, layout)
    assert clean is not None
    assert clean.equals(checked(content, layout).table)


# ------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize(
    ("line", "delimiter", "columns"),
    [
        (b"userId,movieId,rating,timestamp\r", ",", COLUMNS),
        (b"\xef\xbb\xbfuserId,movieId,rating,timestamp", ",", COLUMNS),
        (b'"user_id";"item_id";"stars"', ";", ("raw_user", "raw_item", "rating")),
        (b"ITEM\tUSER\tcomment", "\t", ("raw_item", "raw_user", "")),
        (b"user,item,movie", ",", ("raw_user", "raw_item", "")),
    ],
    ids=["movielens", "bom", "quoted", "tab", "two-items"],
)
def test_a_header_tells_the_columns(line, delimiter, columns):
    layout = format_of_text("x.csv", line)
    assert (layout.delimiter, layout.columns, layout.header) == (delimiter, columns, True)


@pytest.mark.parametrize(
    ("row", "shifted"),
    [
        (b"%d,9,3,978300760,x", False),
        (b"%d,9,3,978300760,1", False),
        (b"%d,9,3,2014-05-13,x", False),
        (b"%d,9,3,978300760,", False),
        (b"%d,77,9,3,978300760", True),
        (b"%d,77,9,3.5,NA", True),
    ],
)
def test_a_field_too_many_is_a_row_name_only_where_the_others_then_mean_something(row, shifted):
    header = b"user,item,rating,timestamp\n"
    layout = format_of_text("x.csv", header + b"".join(row % n + b"\n" for n in range(9)))
    assert layout.columns.index("raw_user") == shifted


@pytest.mark.parametrize("line", [b"userId,movieId,rating", b"user,item,rating", b"1::2::3::4"])
def test_no_name_of_a_file_or_column_brings_a_scale(line):
    assert format_of_text("ratings.dat", line).scale is None


@pytest.mark.parametrize(("line", "word"), [(b"who,item", "user"), (b"user,what", "item")])
def test_a_header_without_user_or_item_is_refused(line, word):
    with pytest.raises(RecrayError, match=f"x.csv has no {word} column: its columns are "):
        format_of_text("x.csv", line)


# --------------------------------------------------------------------------------------- films


NOTED = RatingsFormat(",", ("raw_user", "raw_item", "rating", ""), header=True)


def raw_ids(parsed):
    return list(
        zip(parsed.table["raw_user"].to_pylist(), parsed.table["raw_item"].to_pylist(), strict=True)
    )


def test_a_bad_row_does_not_cost_its_neighbours_with_a_quoted_comma():
    good = b'1,2,3,"Heat, The"\n'
    assert raw_ids(parse_ratings(good, NOTED)) == [(1, 2)]
    assert raw_ids(parse_ratings(good + b"x,2,3,a\n", NOTED)) == [(1, 2)]


def test_a_bad_row_does_not_cost_its_neighbours_with_a_latin_1_note():
    good = b"1,2,3,caf\xe9\n"
    alone = len(parse_ratings(good, NOTED).table)
    assert len(parse_ratings(good + b"x,2,3,a\n", NOTED).table) == alone


def test_an_open_quote_never_swallows_a_row_silently():
    parsed = parse_ratings(b'1,2,3,"abc\n4,5,3,x\n', NOTED)
    assert len(parsed.table) + len(parsed.rejected) == 2


@pytest.mark.parametrize(
    "line",
    [
        b"0x10,2,3,4\n",
        b"1000000000000000000,2,3,4\n",
        b"1,2,3,4\r5,6,3,4\n",
        b"\xef\xbb\xbf1,2,3,4\n",
        b"\t1,2,3,4\n",
        b"-0,2,3,4\n",
    ],
    ids=["hex", "19-digits", "lone-cr", "bom", "leading-tab", "minus-zero"],
)
def test_a_bad_neighbour_does_not_change_how_a_row_is_read(line):
    alone, beside = parse_ratings(line, CSV), parse_ratings(line + b"x,2,3,4\n", CSV)
    assert raw_ids(alone) == raw_ids(beside)


# ---------------------------------------------------------------------------------- text ids

TEXT = RatingsFormat(",", COLUMNS, scale=None, text=frozenset({"raw_user", "raw_item"}))


def test_text_ids_stay_as_they_are_but_for_blanks_and_quotes():
    content = 'ann,B-7,3,400\n bob ,"Ä, b",4.5,0\n007,7,1,1\n'.encode()
    parsed = parse_ratings(content, TEXT)
    assert parsed.table["raw_user"].to_pylist() == ["ann", "bob", "007"]
    assert parsed.table["raw_item"].to_pylist()[::2] == ["B-7", "7"]
    assert rejected(parsed) == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b",x,3,4\n", "user is empty"),
        (b"a," + b"x" * 201 + b",3,4\n", "item is too long"),
        (b"a,x,high,4\n", "rating is not a number"),
        (b"a,x\x00,3,4\n", "NUL byte"),
    ],
)
def test_a_bad_row_among_text_ids_is_rejected(line, reason):
    parsed = parse_ratings(b"ann,x,3,4\n" + line, TEXT)
    assert len(parsed.table) == 1
    assert [row[3] for row in rejected(parsed)] == [reason]


@given(st.lists(st.text(st.sampled_from("01x9.-+eEinaf \"'"), max_size=5), min_size=4, max_size=4))
def test_both_paths_read_a_line_with_text_alike(fields):
    for layout in (TEXT, RatingsFormat(",", ("raw_user", "", "rating", "timestamp"))):
        line = ",".join(fields).encode() + b"\n"
        fast, slow = parse_ratings(line, layout), checked(line, layout)
        assert fast.table.to_pylist() == slow.table.to_pylist()
        assert rejected(fast) == rejected(slow)


@pytest.mark.parametrize(
    ("line", "row"),
    [(b"7.0,8.00,3,4", (7, 8, 3.0, 4)), (b"7,8,3,978300760.25", (7, 8, 3.0, 978300760))],
)
def test_whole_numbers_with_a_point_and_times_with_a_fraction_are_repaired(line, row):
    assert rows(parse_ratings(line, CSV).table) == [row]
