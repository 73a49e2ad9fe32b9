"""What a user has rated is never listed, whatever part it is of; a measurement ranks it."""

import numpy as np
import pytest
from fastapi.testclient import TestClient

import recray
from recray.config import EvaluateSettings
from recray.data.dataset import KNOWN
from recray.evaluation.evaluator import Evaluator
from recray.inference.batch import _table
from recray.inference.inspect_user import inspect_user
from recray.inference.recommender import Recommender
from recray.inference.scorer import Scorer
from recray.serving.app import build_app

from . import conftest
from .conftest import ITEMS, USERS, gave, raw

LIKED = [0, 2, 4, 6, 8]
"""All even films, which user 0 likes; they are all held out."""
DROPPED = [1, 5]
"""Films that user 0 gave 1 star, and that a filter dropped."""
REST = [3, 7]
"""What user 0 has not rated."""
ME = int(raw(0))


@pytest.fixture
def bundle(monkeypatch, request):
    """The tiny bundle, in which user 0 has one training row, of a film nobody else knows."""
    rows = conftest.rows_of_splits()
    mine = {
        "train": [(0, ITEMS - 1, 3.0, 1000)],
        "test": [(0, item, 5.0, 2000 + item) for item in LIKED],
    }
    planted = {
        name: [row for row in part if row[0] != 0] + mine.get(name, [])
        for name, part in rows.items()
    }
    planted[KNOWN] = [(0, item, 1.0, 3000) for item in DROPPED]
    monkeypatch.setattr(conftest, "rows_of_splits", lambda: planted)
    return request.getfixturevalue("make_bundle")()


def dense(items) -> list[int]:
    return sorted((item - 100) // 10 for item in items)


def test_no_way_to_a_list_shows_what_was_rated(bundle):
    recommender, everything = Recommender(bundle), ITEMS
    listed = recommender.recommend(ME, everything).items
    many = recommender.recommend_many([ME], everything)[0].items
    client = TestClient(build_app(recommender))
    over_http = client.get(f"/v1/users/{ME}/recommendations?k={everything}").json()["items"]
    posted = client.post(
        "/v1/recommendations:batch", json={"askers": [{"user": ME}], "k": everything}
    )
    frame = recray.load(bundle.folder.path).recommend(ME, everything)
    written = _table(recommender, np.array([0]), everything)["item"].to_pylist()
    explained = inspect_user(recommender, ME, everything).recommended
    ways = {
        "recommend": [film.item for film in listed],
        "recommend_many": [film.item for film in many],
        "http": [film["item"] for film in over_http],
        "http batch": [film["item"] for film in posted.json()["results"][0]["items"]],
        "python": frame["item"].tolist(),
        "batch": written,
        "explain": [film.item for film in explained],
    }
    assert {way: dense(items) for way, items in ways.items()} == dict.fromkeys(ways, REST)


def test_new_ratings_leave_out_what_was_known_before(bundle):
    recommender = Recommender(bundle)
    since = [gave(3, 5.0)]
    listed = recommender.recommend(ME, ITEMS, since=since).items
    assert dense(film.item for film in listed) == [7]
    known = recommender._known_of_user(ME, since)
    assert sorted(known.rated.item.tolist()) == [0, 2, 3, 4, 6, 8, 9], "not what a filter dropped"
    assert sorted(known.seen.item.tolist()) == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert known.rated.item.tolist()[-1] == 3, "what came last comes last"
    again = [gave(1, 5.0)]
    assert 1 in recommender._known_of_user(ME, again).rated.item.tolist(), "rated anew, it counts"


def test_asked_for_everything_a_list_shows_what_was_rated(bundle):
    client = TestClient(build_app(Recommender(bundle)))
    path = f"/v1/users/{ME}/recommendations?k={ITEMS}&exclude_seen=false"
    assert dense(film["item"] for film in client.get(path).json()["items"]) == list(range(ITEMS))


def test_a_profile_counts_everything_that_is_known(bundle):
    assert Recommender(bundle).user(ME).ratings == 1 + len(LIKED) + len(DROPPED)


def test_a_measurement_ranks_the_withheld_films_and_those_of_no_split(bundle):
    ranked = Scorer.for_measurement(bundle).rank(np.array([0]), ITEMS).item[0]
    assert sorted(ranked[:5].tolist()) == LIKED
    assert sorted(ranked[ranked >= 0].tolist()) == list(range(ITEMS - 1)), "all but the trained one"
    table = Evaluator(bundle, EvaluateSettings(k=(5,))).measure_block(0)["model"]
    assert table.values["ndcg@5"][0] == pytest.approx(1.0)
    assert table.values["recall@5"][0] == pytest.approx(1.0)


def test_a_model_and_its_baselines_have_the_history_that_it_was_trained_on(bundle):
    scorers = Evaluator(bundle).scorers
    assert set(scorers) == {"model", "popularity", "bias-only", "item-knn"}
    for scorer in scorers.values():
        assert len(scorer.history.of_user(0).item) == 1
        assert len(scorer.history.of_user(1).item) == 3, "the validation row is not among them"
        assert len(scorer.seen.of_user(1).item) == 4
        assert len(scorer.history.of_user(USERS).item) == 1, "a stranger's validation row is"
    counts = np.zeros(ITEMS)
    for user, item, *_ in conftest.rows_of_splits()["train"]:
        counts[item] += user < USERS
    counts[0] += 1  # the stranger's
    assert scorers["popularity"].popularity.tolist() == counts.tolist()
    assert scorers["model"].popularity.tolist() == counts.tolist()
