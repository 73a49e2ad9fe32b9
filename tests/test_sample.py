"""The generated data set."""

import numpy as np
import pytest

from recray.data import sample
from recray.data.formats.delimited import parse_ratings
from recray.data.formats.dialect import format_of_text
from recray.data.lists.items import parse_items
from recray.data.lists.rows import IdRule


@pytest.fixture(scope="module")
def made():
    return sample.files()


@pytest.fixture(scope="module")
def ratings(made):
    header, body = made["ratings.csv"].split(b"\n", 1)
    parsed = parse_ratings(body, format_of_text("ratings.csv", header))
    assert len(parsed.rejected) == 0
    return {name: parsed.table[name].to_numpy() for name in parsed.table.column_names}


def test_the_same_seed_gives_the_same_bytes(made):
    assert sample.files(seed=0) == made


def test_another_seed_gives_other_ratings_and_films(made):
    other = sample.files(seed=1)
    assert other.keys() == made.keys() == {"ratings.csv", "movies.csv"}
    assert all(other[name] != made[name] for name in made)


def test_the_ratings_have_the_shape_that_was_promised(ratings):
    user, item, rating = ratings["raw_user"], ratings["raw_item"], ratings["rating"]
    assert 50_000 < len(user) < 70_000
    assert np.unique(user).tolist() == list(range(1, 601))
    assert np.bincount(user)[1:].min() >= 20
    assert item.min() >= 1
    assert item.max() <= 1500
    assert len(np.unique(user * 10_000 + item)) == len(user), "nobody rates a film twice"
    assert set(np.unique(rating)) <= {half / 2 for half in range(1, 11)}
    assert 3 < rating.mean() < 4
    assert ratings["timestamp"].min() > 0


def test_few_films_are_popular(ratings):
    counts = np.sort(np.bincount(ratings["raw_item"], minlength=1501)[1:])[::-1]
    assert counts[:150].sum() > 0.25 * counts.sum(), "an even spread would be a tenth"


def test_every_film_has_a_title_a_year_and_genres(made):
    listed = parse_items("movies.csv", made["movies.csv"], IdRule(("movieId",)))[0].to_pylist()
    assert [film["raw_item"] for film in listed] == list(range(1, 1501))
    assert len({film["title"] for film in listed}) == 1500
    assert all(1950 <= film["year"] < 2020 for film in listed)
    assert all(1 <= len(film["genres"]) <= 3 for film in listed)
    assert all(set(film["genres"]) <= set(sample.GENRES) for film in listed)
