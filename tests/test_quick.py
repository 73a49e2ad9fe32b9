"""The short ways give what the long way gives."""

import json

import pytest
import torch
from fastapi.testclient import TestClient

from recray.inference.recommender import Recommender
from recray.serving.app import build_app
from recray.serving.service import Service

from .conftest import COLD, ITEMS, USERS, raw


@pytest.fixture
def recommender(make_bundle):
    return Recommender(make_bundle())


@pytest.mark.parametrize("preset", ["ranking", "mf-normalised", "dot-bias-bce"])
def test_one_list_is_that_of_the_long_way(make_bundle, preset):
    made = Recommender(make_bundle(preset=preset))
    for user in range(USERS):
        for k in (1, 4, ITEMS):
            for exclude in (True, False):
                short = json.loads(made.written(int(raw(user)), k, exclude))
                assert short == made.recommend(int(raw(user)), k, exclude).plain()


def test_ties_are_by_ascending_id_and_what_was_seen_never_fills_a_list(recommender):
    with torch.no_grad():
        recommender.bundle.model.item_vectors.weight[:] = 1.0
    for user in range(USERS):
        short = json.loads(recommender.written(int(raw(user)), ITEMS, True))
        seen = set(recommender.scorer.history.items_of(user).tolist())
        expected = [int(raw(item)) for item in range(ITEMS) if item not in seen]
        assert [entry["item"] for entry in short["items"]] == expected
        few = json.loads(recommender.written(int(raw(user)), 2, True))
        assert [entry["item"] for entry in few["items"]] == expected[:2]


def test_many_are_those_of_the_long_way_and_so_are_those_who_cannot_be(recommender):
    askers = [*(int(raw(user)) for user in range(USERS + COLD)), 7, [(int(raw(1)), 5.0)], []]
    for exclude in (True, False):
        short = recommender.written_many(askers, 3, exclude)
        long = recommender.recommend_many(askers, 3, exclude)
        for one, other in zip(short, long, strict=True):
            if isinstance(one, tuple):
                assert (one[0], json.loads(one[1])) == (other.source, other.items)
            else:
                assert str(one) == str(other)


def test_who_is_not_in_training_goes_the_long_way(recommender, make_bundle):
    for user in (int(raw(USERS)), 7, "x"):
        assert recommender.written(user, 3, True) is None
    neural = Recommender(make_bundle("other", "neumf"))
    assert neural.written(int(raw(0)), 3, True) is None


def test_the_second_request_is_the_first_one_s_equal(recommender, monkeypatch):
    client, taken = TestClient(build_app(recommender)), []
    short = recommender.quick.one
    monkeypatch.setattr(
        recommender.quick, "one", lambda *asked: taken.append(asked) or short(*asked)
    )
    for query in ("", "?k=3", "?k=3&exclude_seen=false"):
        path = f"/v1/users/{raw(3)}/recommendations{query}"
        before = len(taken)
        first, second = client.get(path), client.get(path)
        assert len(taken) == before + 1
        assert (first.status_code, first.json()) == (second.status_code, second.json())
        assert set(first.headers) == set(second.headers)
    assert taken == [(3, 10, True), (3, 3, True), (3, 3, False)]


@pytest.mark.parametrize(
    "query", ["k=0", "k=3&x=1", "genres=War", "explain=true", "diversity=0.5", "candidates=1"]
)
def test_no_other_query_takes_the_short_way(recommender, monkeypatch, query):
    monkeypatch.setattr(recommender.quick, "one", lambda *_: 1 / 0)
    client = TestClient(build_app(recommender))
    replies = [client.get(f"/v1/users/{raw(3)}/recommendations?{query}") for _ in range(2)]
    assert replies[0].status_code == replies[1].status_code != 500
    assert replies[0].json() == replies[1].json()


@pytest.mark.parametrize("user", ["7", "x", "9" * 300, str(raw(USERS)), "a/recommendations"])
def test_after_a_remembered_query_unknown_people_are_answered_as_before(recommender, user):
    fresh, client = (TestClient(build_app(recommender)) for _ in range(2))
    client.get(f"/v1/users/{raw(0)}/recommendations?k=3")
    path = f"/v1/users/{user}/recommendations?k=3"
    assert client.get(path).json() == fresh.get(path).json()
    assert client.post(path).status_code == 405
    assert client.head(path).status_code == fresh.head(path).status_code


def test_only_a_thousand_queries_are_kept():
    service = Service(None, None)
    for number in range(2000):
        service.cache_query(b"%d" % number, 1, True)
    assert len(service.plain_queries) == 1000


def test_only_the_items_of_the_short_way_are_described_once(recommender):
    quick = recommender.quick
    quick.one(0, 3, True)
    assert len(quick._described) == ITEMS
