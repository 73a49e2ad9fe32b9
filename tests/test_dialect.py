"""Layouts: columns by name, by place and by what is in them."""

import pytest

from recray.data.dialect import (
    ML_1M,
    ML_100K,
    RatingsFormat,
    first_ids,
    format_of_text,
    text_roles,
)
from recray.errors import RecrayError

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


def test_columns_by_place_mean_that_there_is_no_header():
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
        (["1", "2", "x"], False),
        (["1", "x", "y"], True),
        (["1.0", "2.0"], False),
        (["-1", "+3", ""], False),
        (["1.5", "a"], True),
        ([], False),
    ],
)
def test_ids_are_text_where_most_are_no_integers(ids, text):
    found = text_roles("auto", {"raw_user": ["1"], "raw_item": ids})
    assert found == ({"raw_item"} if text else set())


def test_the_setting_decides_over_what_the_ids_look_like():
    first = {"raw_user": ["1"], "raw_item": ["x"]}
    assert text_roles("integer", first) == set()
    assert text_roles("text", first) == {"raw_user", "raw_item"}
