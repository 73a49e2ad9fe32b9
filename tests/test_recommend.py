"""Lists over HTTP: their JSON, and options that FastAPI has checked before."""

import json

import pytest
import torch
from fastapi.testclient import TestClient

from recray.inference import catalog
from recray.inference.catalog import Filters
from recray.inference.recommender import Recommender
from recray.serving.app import build_app
from recray.serving.auth import new_key, parse_key
from recray.serving.guard import ServiceMetrics
from recray.serving.hot_swap import ModelHolder
from recray.serving.options import ServiceLimits
from recray.serving.schemas.requests import QueryOptions
from recray.serving.service import MAX_CACHED_QUERIES, MAX_CACHED_QUERY_BYTES, Service

from .conftest import COLD, ITEMS, USERS, gave, raw


@pytest.fixture
def recommender(make_bundle):
    return Recommender(make_bundle())


@pytest.mark.parametrize("preset", ["ranking", "mf-normalised", "dot-bias-bce", "neumf"])
def test_the_json_of_a_list_is_what_plain_gives(make_bundle, preset):
    made = Recommender(make_bundle(preset=preset))
    for user in range(USERS + COLD):
        for k in (1, 4, ITEMS):
            for exclude in (True, False):
                answer = made.recommend(int(raw(user)), k, exclude)
                assert json.loads(answer.to_json()) == answer.plain()


def test_the_json_of_reasons_is_what_plain_gives(recommender):
    answer = recommender.recommend(int(raw(1)), 3, False, Filters(explain=True))
    assert json.loads(answer.to_json()) == answer.plain()
    assert answer.plain()["items"][0]["why"]["items"]


def test_ties_are_by_ascending_id_and_what_was_seen_never_fills_a_list(recommender):
    with torch.no_grad():
        recommender.bundle.model.item_vectors.weight[:] = 1.0
    for user in range(USERS):
        short = json.loads(recommender.recommend(int(raw(user)), ITEMS, True).to_json())
        seen = set(recommender.scorer.seen.of_user(user).item.tolist())
        expected = [int(raw(item)) for item in range(ITEMS) if item not in seen]
        assert [entry["item"] for entry in short["items"]] == expected
        few = json.loads(recommender.recommend(int(raw(user)), 2, True).to_json())
        assert [entry["item"] for entry in few["items"]] == expected[:2]


def test_many_are_those_of_one_by_one_and_so_are_those_who_cannot_be(recommender):
    users = [
        *(int(raw(user)) for user in range(USERS + COLD)),
        7,
        [gave(1, 5.0)],
        [],
    ]
    for exclude in (True, False):
        for user, answer in zip(users, recommender.recommend_many(users, 3, exclude), strict=True):
            if user == 7:
                assert str(answer) == "no user 7 in tiny"
            elif isinstance(user, list):
                assert answer == recommender.recommend_from(user, 3, exclude)
            else:
                assert answer == recommender.recommend(user, 3, exclude)


@pytest.mark.parametrize("query", ["", "?k=3", "?k=3&exclude_seen=false", "?genres=War&explain=1"])
def test_the_second_request_is_the_first_one_s_equal_and_no_route_is_looked_for(
    recommender, monkeypatch, query
):
    metrics = ServiceMetrics()
    client = TestClient(build_app(recommender, metrics=metrics))
    path = f"/v1/users/{raw(3)}/recommendations{query}"
    first = client.get(path)
    monkeypatch.setattr("fastapi.routing.APIRoute.matches", lambda *_: 1 / 0)
    second = client.get(path)
    assert (first.status_code, first.content) == (second.status_code, second.content)
    assert first.headers == second.headers
    counts = metrics.flush()
    assert counts.requests == {("/v1/users/{user:path}/recommendations", "GET", 200): 2}
    assert counts.lists == {("model", recommender.version): 2}


def test_a_checked_query_keeps_to_keys_and_rates(recommender):
    secret, line = new_key("a")
    limits = ServiceLimits(keys=(parse_key(line, "here"),), rate=0.001, burst=3)
    client = TestClient(build_app(recommender, limits))
    path, header = f"/v1/users/{raw(3)}/recommendations?k=3", {"x-api-key": secret}
    replies = [client.get(path, headers=header).status_code for _ in range(4)]
    assert replies == [200, 200, 200, 429]
    assert client.get(path).status_code == 401
    assert client.get(path, headers={"x-api-key": "b"}).status_code == 403


def test_a_query_whose_model_was_replaced_is_refused_as_if_it_came_first(recommender, make_bundle):
    holder, other = ModelHolder(recommender), Recommender(make_bundle("other", flip=True))
    client = TestClient(build_app(holder))
    path = f"/v1/users/{raw(3)}/recommendations?model={recommender.version}"
    assert client.get(path).status_code == 200
    holder.replace(other)
    reply, expected = client.get(path), TestClient(build_app(other)).get(path)
    assert (reply.status_code, reply.json()) == (expected.status_code, expected.json())
    assert reply.status_code == 422


@pytest.mark.parametrize("query", ["k=0", "k=3&x=1", "k=a", "genres=Wra", "model=none"])
def test_what_is_refused_once_is_refused_again(recommender, query):
    client = TestClient(build_app(recommender))
    path = f"/v1/users/{raw(3)}/recommendations?{query}"
    replies = [client.get(path) for _ in range(2)]
    assert replies[0].status_code == replies[1].status_code == 422
    assert replies[0].json() == replies[1].json()


@pytest.mark.parametrize("user", ["7", "x", "9" * 300, str(raw(USERS)), "a/recommendations"])
def test_after_a_remembered_query_unknown_people_are_answered_as_before(recommender, user):
    fresh, client = (TestClient(build_app(recommender)) for _ in range(2))
    client.get(f"/v1/users/{raw(0)}/recommendations?k=3")
    path = f"/v1/users/{user}/recommendations?k=3"
    assert client.get(path).json() == fresh.get(path).json()
    for other in ("/v1/users/recommendations?k=3", f"/v1/users/{user}?k=3"):
        assert client.get(other).json() == fresh.get(other).json()
    assert client.put(path).status_code == 405
    assert client.head(path).status_code == fresh.head(path).status_code


def test_a_thousand_queries_are_kept_and_new_ones_replace_the_oldest():
    service, options = Service(None, None), QueryOptions()
    for number in range(2 * MAX_CACHED_QUERIES):
        service.cache_query(b"%d" % number, options)
    assert next(iter(service.checked_queries)) == b"%d" % MAX_CACHED_QUERIES
    assert len(service.checked_queries) == MAX_CACHED_QUERIES
    service.cache_query(b"%d" % MAX_CACHED_QUERIES, options)
    assert len(service.checked_queries) == MAX_CACHED_QUERIES
    service.cache_query(b"k" * (MAX_CACHED_QUERY_BYTES + 1), options)
    assert b"%d" % MAX_CACHED_QUERIES in service.checked_queries


def test_few_items_are_kept_as_json(recommender, monkeypatch):
    monkeypatch.setattr(catalog, "PREFIXES", 2)
    whole = recommender.recommend(int(raw(0)), 3)
    assert json.loads(whole.to_json()) == whole.plain()
    assert len(recommender.catalog._prefixes) <= 2
