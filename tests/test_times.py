"""Times as people write them: one rule for a column, and unknown at worst."""

import datetime as dt
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recray.data.formats.delimited import parse_ratings
from recray.data.formats.layout import RatingsFormat
from recray.data.formats.tables import parse_table
from recray.data.formats.times import END, TimeFormat, format_of, seconds
from recray.data.source import detect_source

MAY = 1_400_005_000  # 2014-05-13 18:16:40 UTC
DAY = 1_399_939_200  # 2014-05-13 00:00:00 UTC


def read(values, time_format=None, kind=None):
    """The rule of these values, and the seconds that it makes of them."""
    found = time_format or format_of([[str(value) for value in values if value is not None]])
    column = pa.chunked_array([pa.array(values, kind)])
    result = seconds(column, found)
    assert result.type == pa.int64()
    return found, result.to_pylist()


@pytest.mark.parametrize(
    ("texts", "rule", "wanted"),
    [
        (["1400005000", "0", "-49995000"], "s", [MAY, 0, -49_995_000]),
        (["1400005000.75", "+5", "-0.5", "1400005000,5"], "s", [MAY, 5, -1, MAY]),
        (["1.400005e+09", "1.4E9"], "s", [MAY, 1_400_000_000]),
        (["1400005000000", "1400005000999"], "ms", [MAY, MAY]),
        (["1.400005e+12"], "ms", [MAY]),
        (["-49995000000"], "ms", [-49_995_000]),
        (["1400005000000000"], "us", [MAY]),
        (["1400005000000000000", "1400005000999999999"], "ns", [MAY, MAY]),
        (["2014-05-13 18:16:40", "2014-05-13", "2014-05-13 18:16"], "iso", [MAY, DAY, MAY - 40]),
        (["2014-05-13T18:16:40Z", "2014-05-13T20:16:40+02:00"], "iso", [MAY, MAY]),
        (["2014-05-13 18:16:40.123456789 UTC", "2014-05-13 10:46:40-0730"], "iso", [MAY, MAY]),
        (["2014-05-13 18:16:40+00", "2014-05-13 18:16:40"], "iso", [MAY, MAY]),
        (["2014-05-13 18:16:40,123", "1969-12-31 23:59:59"], "iso", [MAY, -1]),
        (["2014/05/13", "2014.5.13", "20140513T181640Z"], "iso", [DAY, DAY, MAY]),
        (["20140513", "20140514"], "compact", [DAY, DAY + 86_400]),
        (["20140513181640"], "compact", [MAY]),
        (["05/13/2014 18:16", "5/13/14 6:16 PM", "05/13/2014"], "mdy", [MAY - 40, MAY - 40, DAY]),
        (["05-13-2014 12:00:00 AM", "05 13, 2014"], "mdy", [DAY, DAY]),
        (["13/05/2014 18:16:40", "01/02/1970"], "dmy", [MAY, 31 * 86_400]),
        (["01.02.1970", "02.01.1970"], "dmy", [31 * 86_400, 86_400]),
        (["Tue May 13 18:16:40 +0000 2014", "May 13, 2014"], "iso", [MAY, DAY]),
        (["Tue, 13 May 2014 18:16:40 GMT", "13-May-2014"], "iso", [MAY, DAY]),
    ],
)
def test_every_way_of_writing_a_time_is_read(texts, rule, wanted):
    assert read(texts) == (rule, wanted)
    assert read([f' "{text}" ' for text in texts], rule) == (rule, wanted)
    assert read(texts, rule, pa.large_string()) == (rule, wanted)
    assert read(pa.array(texts).dictionary_encode(), rule) == (rule, wanted)


NO_TIMES = ["", "nan", "NaN", "NULL", "None", "NaT", "-", "?", "late", "True", "1e", "--5", "[1]"]
NO_TIMES += ["2014-02-30", "2014-13-01", "2014-05-13 25:00", "0000-00-00 00:00:00", "9999-12-31"]
NO_TIMES += ["1699-12-31", "2201-01-01", "1e30", "99999999999999999999", "12:30", "5/6/7/8"]


@pytest.mark.parametrize("rule", get_args(TimeFormat))
def test_what_is_no_time_is_unknown_under_every_rule(rule):
    assert read(NO_TIMES, rule)[1] == [None] * len(NO_TIMES)


def test_no_time_lies_after_2200():
    assert read(["2200-12-31 23:59:59", "2200-12-31T23:00:00-05:00"])[1] == [END - 1, None]
    assert read([str(END - 1), str(END)], "s")[1] == [END - 1, None]
    assert read([END - 1, END], "s")[1] == [END - 1, None]


def test_days_and_months_that_cannot_be_told_apart_are_not_guessed():
    assert read(["01/02/2014", "03/04/2014"]) == ("unclear", [None, None])
    assert read(["01/02/2014", "03/04/2014", "2014-05-13"], "unclear")[1] == [None, None, DAY]


def test_the_middle_number_decides_whatever_stands_beside_it():
    assert format_of([["0", "0", "0", "nan"], ["1400005000000", "-1", "7"]]) == "ms"
    assert format_of([["1400005000", "1400005001", "1400005002", "99999999999999"]]) == "s"
    assert format_of([]) == format_of([["nan", ""]]) == format_of([["late"]]) == "s"


def test_columns_whose_type_tells_the_unit_need_no_rule():
    assert format_of([None, None]) == "typed"
    assert format_of([None, ["1400005000000"]]) == "ms"


@pytest.mark.parametrize(
    ("values", "rule", "wanted"),
    [
        (pa.array([MAY, None]), "s", [MAY, None]),
        (pa.array([MAY * 1000 + 999, None]), "ms", [MAY, None]),
        (pa.array([-1], pa.int64()), "ms", [-1]),
        (pa.array([2**64 - 1, 5], pa.uint64()), "s", [None, 5]),
        (pa.array([MAY + 0.5, np.nan, np.inf, None]), "s", [MAY, None, None, None]),
        (pa.array([MAY * 1e9]), "ns", [MAY]),
        (pa.array([20140513]), "compact", [DAY]),
        (pa.array([20140513.0, np.nan]), "compact", [DAY, None]),
        (pa.array([dt.date(2014, 5, 13), None]), "typed", [DAY, None]),
        (pa.array([DAY * 1000]).cast(pa.date64()), "s", [DAY]),
        *(
            (pa.array([MAY * per, -per, None]).cast(pa.timestamp(unit, zone)), "s", [MAY, -1, None])
            for unit, per in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9))
            for zone in (None, "Europe/Berlin")
        ),
        (pa.array([-1500]).cast(pa.timestamp("ms")), "s", [-2]),
        (pa.array([dt.datetime(9999, 12, 31)]), "s", [None]),
        (pa.array([dt.time(1)]), "s", [None]),
        (pa.array([dt.timedelta(1)]), "s", [None]),
        (pa.array([[1], None]), "s", [None, None]),
        (pa.array([b"\xff", b"5"]), "s", [None, None]),
        (pa.array([True]), "s", [None]),
        (pa.nulls(2), "s", [None, None]),
        (pa.array([], pa.int64()), "ms", []),
    ],
)
def test_columns_of_every_type_are_read(values, rule, wanted):
    assert read(values, rule)[1] == wanted


@given(
    st.lists(st.integers(-8_000_000_000, END - 1), max_size=20), st.sampled_from(["s", "ms", "us"])
)
def test_numbers_texts_and_dates_tell_the_same(times, unit):
    per = {"s": 1, "ms": 1000, "us": 10**6}[unit]
    assert read([time * per for time in times], unit, pa.int64())[1] == times
    assert read([str(time * per) for time in times], unit, pa.string())[1] == times
    written = [dt.datetime(1970, 1, 1) + dt.timedelta(seconds=time) for time in times]
    assert read([f"{when:%Y-%m-%d %H:%M:%S}" for when in written], "iso", pa.string())[1] == times
    assert (
        read([f"{when:%m/%d/%Y %I:%M:%S %p}" for when in written], "mdy", pa.string())[1] == times
    )
    assert (
        read([f"{when:%a %b %d %H:%M:%S %Y}" for when in written], "iso", pa.string())[1] == times
    )


# ------------------------------------------------------------------------------ beside ratings


LAYOUT = RatingsFormat(",", ("raw_user", "raw_item", "rating", "timestamp"), header=True)


@pytest.mark.parametrize("time", ["", "nan", "late", "1999-02-30", "99999999999"])
def test_a_strange_time_never_costs_the_rating(time):
    parsed = parse_ratings(f"1,2,3,{MAY}\n1,3,4,{time}\n\nx,4,5,6\n".encode(), LAYOUT)
    assert parsed.table["rating"].to_pylist() == [3, 4]
    assert parsed.table["timestamp"].to_pylist() == [MAY, None]
    assert (parsed.unknown_times, parsed.rows, len(parsed.rejected)) == (1, 3, 1)


def test_a_bad_row_of_a_table_does_not_change_the_times_of_others():
    columns = {
        "raw_user": pa.array([1, -1, 2]),
        "raw_item": pa.array([1, 2, 3]),
        "timestamp": pa.array([MAY, 5, None]).cast(pa.timestamp("s")),
    }
    parsed = parse_table(columns, LAYOUT)
    assert parsed.table["timestamp"].to_pylist() == [MAY, None]
    assert (parsed.unknown_times, parsed.rows, len(parsed.rejected)) == (1, 3, 1)


def test_one_rule_holds_for_all_files_of_a_source(tmp_path):
    (tmp_path / "a.csv").write_text(f"user,item,time\n1,1,{MAY}000\n1,2,{MAY}000\n")
    (tmp_path / "b.csv").write_text("user,item,time\n2,1,5\n")
    layouts = [r.file.layout for r in detect_source(str(tmp_path)).ranges]
    assert [one.time for one in layouts] == ["ms", "ms"]
