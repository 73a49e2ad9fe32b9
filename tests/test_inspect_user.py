"""A look at one user whose ratings, list and held-out films are planted."""

import json

import pytest
from click.testing import CliRunner

from recray.cli import cli
from recray.errors import RecrayError
from recray.inference.inspect_user import inspect_user
from recray.inference.recommender import Recommender

from .conftest import ITEMS, USERS, raw

# User 0 gave 0, 2, 4 and 6 5, 4, 3 and 5 stars; 8 (4) is held out, and 10, which training lacks.
# The model likes even films, later ones more.


def ids(films):
    return [film.item for film in films]


def test_rated_recommended_and_held_out_films_stand_side_by_side(make_bundle):
    look = inspect_user(Recommender(make_bundle()), int(raw(0)), 3)
    assert look.ratings == 6
    assert ids(look.rated) == [raw(0), raw(6), raw(2)]
    assert [film.rating for film in look.rated] == [5.0, 5.0, 4.0]
    assert ids(look.recommended) == [raw(1), raw(3), raw(5)], "8 was rated, held out or not"
    assert look.hits == 1
    first, second = look.held_out
    assert (first.item, first.rank, first.hit) == (raw(8), 1, True)
    assert first.score > look.recommended[0].score, "a measurement would list it first"
    assert (second.item, second.rank, second.score) == (raw(ITEMS), None, None)
    assert (first.title, first.genres) == ("Film 8 (1998)", ["Comedy", "War"])


def test_a_rank_counts_what_the_user_has_not_rated(make_bundle):
    look = inspect_user(Recommender(make_bundle(flip=True)), int(raw(0)), 3)
    assert look.held_out[0].rank == 6, "behind the five odd films"
    assert look.hits == 0
    assert not any(film.hit for film in look.held_out)


def test_a_rating_model_predicts_stars_even_for_somebody_without_history(make_bundle):
    recommender = Recommender(make_bundle(preset="dot-mse"))
    look = inspect_user(recommender, int(raw(USERS + 1)), 2)
    assert (look.source, look.scores, ids(look.rated)) == ("fold_in", "stars", [raw(4)])
    assert 1 <= look.held_out[0].score <= 5


def test_who_is_unknown_and_lists_too_long_are_refused(make_bundle):
    recommender = Recommender(make_bundle())
    with pytest.raises(KeyError):
        inspect_user(recommender, 7, 3)
    with pytest.raises(RecrayError, match="k=11 is out of range"):
        inspect_user(recommender, int(raw(0)), 11)


def run(*arguments: object):
    return CliRunner().invoke(cli, ["explain", *map(str, arguments)])


def test_the_command_marks_hits_and_prints_one_json_object(make_bundle):
    bundle = make_bundle().folder.path
    lines = run(bundle, "--user", raw(0), "-k", 3).stdout.splitlines()
    assert sum(line.startswith("* Film 8 (1998)") for line in lines) == 1
    assert sum(line.startswith("*") for line in lines) == 1
    found = json.loads(run(bundle, "--user", raw(0), "--json").stdout)
    assert found["hits"] == sum(film["hit"] for film in found["held_out"]) == 1
    assert not any(film["hit"] for film in found["recommended"]), "8 is held out, and left out"


def test_an_unknown_user_is_one_line_and_exit_2(make_bundle):
    done = run(make_bundle().folder.path, "--user", 7)
    assert (done.exit_code, done.stderr) == (2, "Error: no user 7 in tiny\n")


def test_a_fault_inside_is_not_told_as_an_unknown_user(make_bundle, monkeypatch):
    def faulty(*_arguments):
        raise KeyError("a fault")

    bundle = make_bundle().folder.path
    monkeypatch.setattr(Recommender, "recommend", faulty)
    done = run(bundle, "--user", raw(0))
    assert (done.exit_code, type(done.exception)) == (1, KeyError)
