"""What Python callers hand over: odd numbers, ids, paths, filters and ratings."""

from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from recray.api import arguments
from recray.data.ids import IdMap
from recray.errors import RecrayError

NUMBERS = IdMap(np.array([1, 4, 7]), 3)
TEXTS = IdMap(np.array(["4", "x"], object), 2)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("a/b", "a/b"),
        (Path("a") / "b", "a/b"),
        (Path("s3://bucket/x"), "s3://bucket/x"),  # pathlib makes one slash of two
        ("s3://bucket/x", "s3://bucket/x"),
        (Path("~/x"), str(Path.home() / "x")),
    ],
)
def test_paths_of_any_kind(given, path):
    assert arguments.path_of("out", given) == path


@pytest.mark.parametrize("given", [None, 5, "", b"x", pd.DataFrame({"a": [1]})])
def test_what_is_no_path_is_refused_in_one_line(given):
    with pytest.raises(RecrayError, match=r"^out=.*: give a path or URI[^\n]*$"):
        arguments.path_of("out", given)


@pytest.mark.parametrize("given", [5, 5.0, "5", "5.0", np.int64(5), np.float32(5), pa.scalar(5)])
def test_whole_numbers_of_any_type(given):
    assert arguments.whole("k", given) == 5


@pytest.mark.parametrize("given", [4.7, "five", True, float("nan"), float("inf"), [5], pd.NA])
def test_no_whole_number(given):
    with pytest.raises(RecrayError, match=r"^k=.*: give a whole number$"):
        arguments.whole("k", given)


@pytest.mark.parametrize("given", [4, 4.0, "4", np.int32(4), np.float64(4), np.array(4)])
def test_a_user_by_any_type_of_number(given):
    assert arguments.raw_id("user", given, NUMBERS) == 4


@pytest.mark.parametrize(
    "given", [4.7, True, np.True_, None, float("nan"), pd.NA, pd.NaT, [4, 5], np.array([4]), b"4"]
)
def test_an_odd_id_is_refused_and_never_taken_for_another(given):
    with pytest.raises(RecrayError, match=r"^user .*: an id is text or a whole number"):
        arguments.raw_id("user", given, NUMBERS)


def test_a_number_where_ids_are_text_is_refused_with_the_text():
    assert arguments.raw_id("user", "4", TEXTS) == "4"
    with pytest.raises(RecrayError, match=r"user 4: ids are text here; give '4'"):
        arguments.raw_id("user", 4, TEXTS)


def test_settings_of_numpy_and_pandas_are_plain():
    frame = pd.DataFrame({"dim": [32], "lr": [0.5]})
    assert arguments.plain("model.dim", frame["dim"].iloc[0]) == 32
    assert arguments.plain("train.lr", frame["lr"].iloc[0]) == 0.5
    assert arguments.plain("x", np.True_) is True
    assert arguments.plain("x", (np.int8(1), "a", None)) == [1, "a", None]
    assert arguments.plain("x", np.array([1.5, 2])) == [1.5, 2.0]
    assert arguments.plain("train.init_from", [Path("a/b")]) == ["a/b"]
    with pytest.raises(RecrayError, match=r"x=.*: a complex is no value of a setting"):
        arguments.plain("x", 1j)


def test_one_genre_and_one_id_stand_for_a_list():
    made = arguments.filters_of({"genres": "Drama", "exclude": 4, "candidates": "7"}, NUMBERS)
    assert (made.genres, made.exclude, made.candidates) == (("Drama",), (4,), (7,))


@pytest.mark.parametrize("kind", [list, np.array, pd.Series, pa.array, tuple, set])
def test_ids_to_leave_out_in_any_list(kind):
    assert sorted(arguments.filters_of({"exclude": kind([1, 7])}, NUMBERS).exclude) == [1, 7]


def test_filters_that_are_none_and_numbers_that_are_text():
    given = {"genres": None, "exclude": None, "candidates": None, "year_from": "1990"}
    made = arguments.filters_of(given | {"diversity": np.float32(0.5)}, NUMBERS)
    assert (made.genres, made.exclude, made.candidates) == ((), (), None)
    assert (made.year_from, made.diversity) == (1990, 0.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"genre": "Drama"}, "unknown filter 'genre': did you mean 'genres'"),
        ({"genres": [1]}, "genres=.*: give names"),
        ({"exclude": [4.7]}, "item 4.7: an id is text"),
        ({"year_from": "soon"}, "year_from='soon': give a whole number"),
        ({"diversity": "much"}, "diversity='much': give a number"),
    ],
)
def test_filters_that_cannot_be(given, message):
    with pytest.raises(RecrayError, match=message):
        arguments.filters_of(given, NUMBERS)


PAIRS = [(4, 5.0), (7, 3.0)]
FRAME = pd.DataFrame({"movieId": [4, 7], "Rating": [5.0, 3.0], "when": [1, 2]})


@pytest.mark.parametrize(
    "given",
    [
        {4: 5.0, 7: 3.0},
        PAIRS,
        iter(PAIRS),
        np.array(PAIRS),
        FRAME,
        FRAME.set_index("movieId"),
        FRAME.set_index("movieId")["Rating"],
        pa.Table.from_pandas(FRAME),
    ],
)
def test_ratings_of_one_person_in_any_form(given):
    found = arguments.ratings_of(given)
    assert [(float(each.item), float(each.rating)) for each in found] == PAIRS
    assert {each.time for each in found} == {None}


TIMED = pd.DataFrame({"item": [4, 7], "time": pd.to_datetime([5, 6], unit="s", utc=True)})


@pytest.mark.parametrize(
    "given", [[4, 7], np.array([4, 7]), pd.DataFrame({"item": [4, 7]}), TIMED[["item"]], (4, 7)]
)
def test_plain_items_stand_in_order(given):
    assert arguments.ratings_of(given) == [(4, None, None), (7, None, None)]


def test_times_come_as_triples_or_as_a_column():
    assert arguments.ratings_of([(4, 5.0, 5), (7, None, 6)]) == [(4, 5.0, 5), (7, None, 6)]
    found = arguments.ratings_of(TIMED)
    assert [(each.item, arguments.seconds("time", each.time)) for each in found] == [(4, 5), (7, 6)]
    assert arguments.seconds("now", "1970-01-02") == 86400
    assert arguments.seconds("now", np.int64(7)) == arguments.seconds("now", 7.9) == 7
    assert arguments.seconds("now", pd.NaT) is arguments.seconds("now", float("nan")) is None
    with pytest.raises(RecrayError, match="now='soon': give seconds since 1970, or a datetime"):
        arguments.seconds("now", "soon")
    for far in (float("inf"), 1e30, 10**400):
        with pytest.raises(RecrayError, match="give seconds since 1970"):
            arguments.seconds("now", far)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([(4, 5, 6, 7)], r"ratings hold \(4, 5, 6, 7\), which is no item"),
        ([(4,)], r"ratings hold \(4,\), which is no item"),
        (4, "ratings=4: give"),
        ("Heat", "ratings='Heat': give"),
        (pd.Series([4, 7]), "the index of a Series must be the items"),
        (FRAME.drop(columns="Rating"), "has no rating column: its columns are movieId, when"),
    ],
)
def test_what_is_no_ratings_of_one_person(given, message):
    with pytest.raises(RecrayError, match=message):
        arguments.ratings_of(given)


def test_stars_may_be_text_and_what_is_no_number_is_refused():
    assert arguments.number("rating", "4.5") == arguments.number("rating", Decimal("4.5")) == 4.5
    with pytest.raises(RecrayError, match=r"rating=None: give a number"):
        arguments.number("rating", None)
