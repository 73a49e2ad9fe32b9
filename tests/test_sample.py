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
    assert sample.files.__wrapped__(seed=0) == made


def test_another_seed_gives_other_ratings_and_films(made):
    other = sample.files(seed=1)
    assert other.keys() == made.keys() == {"ratings.csv", "movies.csv"}
    assert all(other[name] != made[name] for name in made)


def test_the_ratings_have_the_shape_that_was_promised(ratings):
    user, item, rating = ratings["raw_user"], ratings["raw_item"], ratings["rating"]
    assert 59_000 < len(user) < 61_000
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


def last_rows(ratings):
    """Each user's films in the order of time, 0 to 1,499, and the last film."""
    order = np.lexsort((ratings["timestamp"], ratings["raw_user"]))
    item = ratings["raw_item"][order] - 1
    histories = np.split(item, np.flatnonzero(np.diff(ratings["raw_user"][order])) + 1)
    return [films[:-1] for films in histories], np.array([films[-1] for films in histories])


def ndcg(score, histories, target):
    """NDCG@10 of each user, of the films that are not in the history."""
    for row, history in zip(score, histories, strict=True):
        row[history] = -np.inf
    own = score[np.arange(len(target)), target]
    rank = (score >= own[:, None]).sum(axis=1) - 1
    return np.where(rank < 10, 1 / np.log2(rank + 2), 0)


def test_what_comes_next_follows_from_what_was_last(ratings):
    histories, target = last_rows(ratings)
    rated = np.zeros((600, 1500))
    follows = np.zeros((1500, 1500))
    for row, history in zip(rated, histories, strict=True):
        row[history] = 1
        for step in range(1, 6):
            np.add.at(follows, (history[:-step], history[step:]), 0.8**step)
    popular = np.tile(rated.sum(axis=0), (600, 1))
    together = rated.T @ rated
    length = np.sqrt(np.diag(together))
    similar = together / np.outer(length, length)
    follows /= follows.sum(axis=1, keepdims=True) + 1
    last = [sum(0.8**n * follows[film] for n, film in enumerate(h[:-6:-1])) for h in histories]
    markov, knn, popularity = (
        ndcg(score, histories, target) for score in (np.array(last), rated @ similar, popular)
    )
    for other in (knn, popularity):
        gain = markov - other
        assert gain.mean() - 1.96 * gain.std() / np.sqrt(600) > 0.05
    assert knn.mean() > popularity.mean() > 0.01


def test_films_of_one_session_may_have_one_time_and_stand_in_their_order(ratings):
    user, time = ratings["raw_user"], ratings["timestamp"]
    same = user[1:] == user[:-1]
    gap = np.diff(time)[same]
    assert gap.min() == 0
    assert 0.05 < (gap == 0).mean() < 0.2
    assert (gap > 3600).mean() > 0.1


def test_tastes_drift():
    rng = np.random.default_rng(0)
    genre = np.zeros((sample.ITEMS, len(sample.GENRES)))
    genre[: sample.ITEMS // 2, 0] = 1
    genre[sample.ITEMS // 2 :, 1] = 1
    films = sample._films(rng, genre, np.full(sample.ITEMS, 1990))
    at_first = genre[films.film_SF[:, 0], 0] == 1
    liked = 4 * films.profile_IG[:, :2]  # the first genre at first, the second at last
    chosen = at_first[sample._series_by_session(rng, films, liked, 300)]
    assert chosen[: len(chosen) // 3].mean() > 0.8
    assert chosen[-len(chosen) // 3 :].mean() < 0.2
