"""Histories in order: what somebody did last, and when, decides what comes next."""

import dataclasses
import time

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from recray.api.model import Loaded
from recray.data.ids import RawId
from recray.errors import RecrayError
from recray.inference.batch import _table
from recray.inference.catalog import Filters
from recray.inference.history import History, UserRatings
from recray.inference.inspect_user import inspect_user
from recray.inference.raw_ratings import CLOCK_TOLERANCE, RawRating, joined
from recray.inference.recommendations import Recommendations
from recray.inference.recommender import Recommender
from recray.models.baselines import Ease, ItemKnn
from recray.models.history import RatingsCSR
from recray.schema import UNKNOWN_TIME
from recray.serving.app import build_app
from recray.serving.hot_swap import _warm_up

from .conftest import COLD, ITEMS, USERS, NextNumber, gave, raw

NEWCOMER = 7
"""Raw id of somebody whom no split has."""


@pytest.fixture
def recommender(make_bundle):
    return Recommender(dataclasses.replace(make_bundle(), model=NextNumber(USERS, ITEMS)))


@pytest.fixture
def client(recommender):
    return TestClient(build_app(recommender), raise_server_exceptions=False)


def dense(answer) -> list[int]:
    items = answer.items if isinstance(answer, Recommendations) else answer["items"]
    found = [each.item if isinstance(answer, Recommendations) else each["item"] for each in items]
    return [(item - 100) // 10 for item in found]


def post(client, ratings, **options):
    reply = client.post("/v1/recommendations", json={"ratings": ratings, "k": 2, **options})
    assert reply.status_code == 200, reply.text
    return reply.json()


def entry(item: int, **more) -> dict[str, RawId]:
    return {"item": int(raw(item)), **more}


# ------------------------------------------------------------------------------- order, times


def test_plain_items_in_order_decide_what_comes_next(client):
    assert dense(post(client, [entry(1), entry(5)])) == [6, 7]
    assert dense(post(client, [entry(5), entry(1)])) == [2, 3]
    assert post(client, [entry(5)])["source"] == "fold_in"


def test_times_decide_the_order_and_equal_ones_leave_it_as_given(client):
    late_first = [entry(5, time=2000), entry(1, time=1000)]
    assert dense(post(client, late_first)) == [6, 7]
    equal = [entry(5, time=1000), entry(1, time=1000)]
    assert dense(post(client, equal)) == [2, 3]
    assert dense(post(client, late_first, now=2000)) == [6, 7]


def test_an_item_given_twice_stands_where_it_stood_last(client):
    assert dense(post(client, [entry(5), entry(1), entry(5)])) == [6, 7]
    assert dense(post(client, [entry(5, rating=1), entry(1), entry(5, rating=5)])) == [6, 7]


def test_times_must_be_of_all_and_not_of_the_future(recommender):
    with pytest.raises(RecrayError, match="1 of 2 ratings have a time"):
        recommender.recommend_from([gave(1, time=5), gave(2)], 2)
    with pytest.raises(RecrayError, match="time 6 is after now, 5"):
        recommender.recommend_from([gave(1, time=6)], 2, now=5)
    clock = int(time.time())
    recommender.recommend_from([gave(1, time=clock + CLOCK_TOLERANCE // 2)], 2)
    with pytest.raises(RecrayError, match="is in the future"):
        recommender.recommend_from([gave(1, time=clock + 2 * CLOCK_TOLERANCE)], 2)
    recommender.recommend_from([gave(1, time=clock + 9999)], 2, now=clock + 9999)


def test_the_model_gets_the_times_and_now(recommender):
    asked = recommender.scorer.model.asked
    recommender.recommend_from([gave(1, time=7), gave(2, time=5)], 2, now=9)
    assert asked[-1].item.tolist() == [2, 1]
    assert asked[-1].time.tolist() == [5, 7]
    assert asked[-1].now.tolist() == [9]
    recommender.recommend_from([gave(1)], 2)
    assert asked[-1].time.tolist() == [UNKNOWN_TIME]
    assert asked[-1].now is None
    recommender.recommend(int(raw(0)), 2, now=5000)
    assert asked[-1].time.tolist() == [1000, 1001, 1002, 1003, 1004]
    assert asked[-1].now.tolist() == [5000]


def test_a_known_users_list_may_be_asked_for_at_a_time(client, recommender):
    path = f"/v1/users/{raw(0)}/recommendations?k=2&now=5000"
    assert client.get(path).status_code == 200
    assert recommender.scorer.model.asked[-1].now.tolist() == [5000]
    early = client.get(path.replace("5000", "1003"))
    assert early.status_code == 422
    assert "now, 1003, is before the user's last rating, at 1004" in early.text
    askers = {"askers": [{"user": int(raw(0))}, {"ratings": []}], "now": 1003}
    results = client.post("/v1/recommendations:batch", json=askers).json()["results"]
    assert results[0]["error"]["code"] == "unfit"
    assert results[1]["source"] == "popular"
    with pytest.raises(RecrayError, match="now, 10001, is before"):
        recommender.recommend(int(raw(0)), 2, since=since(1, 3, 5), now=10_001)


# --------------------------------------------------------------------------- unknown items


def test_unknown_items_are_skipped_and_counted(client):
    strange = [{"item": 1}, entry(ITEMS), {"item": 10**17}]  # no id, and one unknown to training
    answer = post(client, [entry(1), *strange, entry(5)])
    assert dense(answer) == [6, 7]
    assert (answer["source"], answer["skipped"]) == ("fold_in", 3)
    assert post(client, [entry(1)])["skipped"] == 0
    answer = post(client, strange)
    assert (answer["source"], answer["skipped"]) == ("popular", 3)
    text = post(client, [{"item": "a text where ids are numbers"}])
    assert (text["source"], text["skipped"]) == ("popular", 1)


def test_a_batch_counts_what_each_skips_and_a_user_of_the_data_has_no_count(client):
    askers = [{"ratings": [entry(5), {"item": 1}]}, {"user": int(raw(0))}, {"ratings": [entry(1)]}]
    reply = client.post("/v1/recommendations:batch", json={"askers": askers, "k": 2}).json()
    assert [each.get("skipped") for each in reply["results"]] == [1, None, 0]
    assert dense(reply["results"][0]) == [6, 7]
    assert dense(reply["results"][2]) == [2, 3]


def test_an_unknown_user_in_a_path_stays_unknown(client):
    assert client.get(f"/v1/users/{NEWCOMER}/recommendations").status_code == 404


# ------------------------------------------------------------------------------- since training


def since(*items: int, first: int = 10_000) -> list[RawRating]:
    return [gave(item, 4.0, first + n) for n, item in enumerate(items)]


def test_a_known_users_list_follows_what_came_in_at_once(recommender):
    user = int(raw(0))  # took 0, 2, 4, 6 and 8 in training
    assert dense(recommender.recommend(user, 1)) == [9]
    assert dense(recommender.recommend(user, 2, since=since(1))) == [3, 9]
    assert dense(recommender.recommend(user, 2, False, since=since(1))) == [2, 3]
    assert dense(recommender.recommend(NEWCOMER, 2, since=since(4))) == [5, 6]


def test_an_item_that_came_again_moves_to_its_new_place(recommender):
    user = int(raw(0))
    again = recommender.recommend(user, 2, False, since=since(0))
    assert dense(again) == [1, 2]
    assert again.source == "fold_in"
    same = [gave(0, 5.0, 1000)]
    assert recommender.recommend(user, 2, since=same).source == "model", "training knows it"


def test_what_came_since_stands_among_the_known_by_its_time(recommender):
    known = recommender._known_of_user(int(raw(0)), [gave(1, 4.0, 1001), gave(3, 4.0, 10_000)])
    assert known.rated.item.tolist() == [0, 2, 1, 4, 6, 8, 3]
    assert known.rated.time.tolist() == [1000, 1001, 1001, 1002, 1003, 1004, 10_000]


def test_the_order_of_what_was_known_stays():
    def rated(items, times):
        return UserRatings(torch.tensor(items), torch.ones(len(items)), torch.tensor(times))

    file_order = rated([5, 6, 7], [30, 10, 20])
    both = joined(file_order, rated([8, 6], [25, 40]))
    assert both.item.tolist() == [8, 5, 7, 6]
    unknown = joined(rated([5, 6], [UNKNOWN_TIME] * 2), rated([7, 8], [3, UNKNOWN_TIME]))
    assert unknown.item.tolist() == [5, 6, 7, 8]
    assert joined(rated([], []), rated([1], [2])).item.tolist() == [1]


def test_many_have_their_own_times_or_none(recommender):
    asked = [[gave(1, time=3), gave(5, time=2)], [gave(5), gave(1)], [], int(raw(0)), NEWCOMER]
    new = {int(raw(0)): since(1)}
    lists = recommender.recommend_many(asked, 2, since=lambda user: new.get(user, []))
    assert [dense(each) for each in lists[:2]] == [[2, 3], [2, 3]]
    assert lists[2].source == "popular"
    assert dense(lists[3]) == dense(recommender.recommend(int(raw(0)), 2, since=since(1)))
    assert isinstance(lists[4], RecrayError)
    both = History.join(
        [
            UserRatings(torch.tensor([1]), torch.ones(1), torch.tensor([3])),
            UserRatings(torch.tensor([2]), torch.ones(1)),
        ]
    )
    assert both.time.tolist() == [3, UNKNOWN_TIME]


def test_a_profile_names_the_last_items(client, recommender):
    told = client.get(f"/v1/users/{raw(0)}").json()
    assert [film["item"] for film in told["latest"]] == raw([8, 6, 4, 2, 0]).tolist()
    assert [film.item for film in recommender.user(NEWCOMER, since(3, 1)).latest] == [
        int(raw(1)),
        int(raw(3)),
    ]


def test_the_model_says_that_it_reads_the_order(client, make_bundle):
    assert client.get("/v1/model").json()["reads_order"] is True
    other = TestClient(build_app(Recommender(make_bundle("other"))))
    assert other.get("/v1/model").json()["reads_order"] is False
    assert other.get(f"/v1/users/{raw(0)}").json()["latest"] == []


# ------------------------------------------------------------------------------------- reasons


def test_reasons_are_what_the_score_would_lose_without_each(recommender):
    history = [gave(1), gave(5), gave(2), gave(8)]
    answer = recommender.recommend_from(history, 3, True, Filters(explain=True))
    for film in answer.items:
        assert film.why.kind == "exact"
        lost = {}
        for n, left_out in enumerate(history):
            rest = recommender.recommend_from([*history[:n], *history[n + 1 :]], ITEMS, False)
            without = {each.item: each.score for each in rest.items}
            lost[left_out.item] = film.score - without[film.item]
        best = sorted((item for item in lost if lost[item] > 1e-6), key=lambda i: -lost[i])[:3]
        assert [why.item for why in film.why.items] == best
        for why in film.why.items:
            assert why.share == pytest.approx(lost[why.item], abs=2e-6)


def test_what_comes_next_may_follow_from_a_film_that_was_not_liked(recommender):
    answer = recommender.recommend_from([gave(5, 1.0)], 1, True, Filters(explain=True))
    assert [why.item for why in answer.items[0].why.items] == [int(raw(5))]


def test_shares_are_the_same_in_small_blocks(monkeypatch):
    model = NextNumber(1, ITEMS)
    known = RatingsCSR.one(torch.tensor([3, 1, 4, 0, 5]), torch.ones(5))
    whole = model.share_of(known, torch.tensor([6, 2]))
    monkeypatch.setattr("recray.models.history.HISTORIES_AT_ONCE", 2)
    assert torch.equal(model.share_of(known, torch.tensor([6, 2])), whole)
    assert whole.shape == (5, 2)


@pytest.mark.parametrize("kind", [Ease, ItemKnn, NextNumber])
def test_shares_by_pairs_and_by_all_items_are_the_same(make_bundle, monkeypatch, kind):
    model = fitted(make_bundle, kind).bundle.model
    known = RatingsCSR.one(torch.tensor([3, 1, 4, 0, 5]), torch.ones(5))
    item = torch.tensor([6, 2, 1])
    of_all = model.share_of(known, item)
    monkeypatch.setattr("recray.models.history.ITEMS_FOR_A_PAIR", 0)
    assert torch.allclose(model.share_of(known, item), of_all, atol=1e-6)
    assert of_all.abs().max() > 0


def test_without_the_last_rating_now_stays_what_it_was():
    model = NextNumber(1, ITEMS)
    known = RatingsCSR.one(torch.tensor([3, 1]), torch.ones(2))
    model.share_of(known._replace(time=torch.tensor([10, 20])), torch.tensor([0]))
    assert {seconds for asked in model.asked for seconds in asked.now.tolist()} == {20}


# ------------------------------------------------------------------ every way to lists of a model


def fitted(make_bundle, kind):
    bundle = make_bundle()
    model = kind(USERS, ITEMS)
    if kind is not NextNumber:
        rows = bundle.interactions.used
        model.fit(History.of(rows.where(rows.user < USERS), USERS, ITEMS).as_csr())
    return Recommender(dataclasses.replace(bundle, model=model))


@pytest.mark.parametrize("kind", [Ease, ItemKnn, NextNumber])
def test_every_way_gives_the_same_list(make_bundle, kind):
    recommender = fitted(make_bundle, kind)
    client = TestClient(build_app(recommender))
    users = np.arange(USERS + COLD)
    table = _table(recommender, users, 3).to_pylist()
    frame = Loaded(recommender)
    for user in raw(users).tolist():
        listed = recommender.recommend(user, 3)
        items = [film.item for film in listed.items]
        reply = client.get(f"/v1/users/{user}/recommendations?k=3&explain=true").json()
        assert [film["item"] for film in reply["items"]] == items
        assert [row["item"] for row in table if row["user"] == user] == items
        assert {row["source"] for row in table if row["user"] == user} == {listed.source}
        assert frame.recommend(user, 3)["item"].tolist() == items
        assert [film.item for film in inspect_user(recommender, user, 3).recommended] == items
    scores = recommender.score_pairs([(int(raw(0)), items[0]), (NEWCOMER, items[0])])
    assert [score.source for score in scores] == ["model", "cold"]
    _warm_up(recommender)


@pytest.mark.parametrize("kind", [Ease, ItemKnn, NextNumber])
def test_similar_is_what_follows_an_item_alone(make_bundle, kind):
    recommender = fitted(make_bundle, kind)
    alone = recommender.recommend_from([gave(1)], 3)
    assert dense(recommender.similar(int(raw(1)), 3)) == dense(alone)
    client = TestClient(build_app(recommender))
    assert dense(client.get(f"/v1/items/{raw(1)}/similar?k=3").json()) == dense(alone)


def test_python_takes_plain_items_and_times(recommender):
    model = Loaded(recommender)
    names = ["Film 1 (1991)", "Film 5 (1995)"]
    assert model.recommend_from(names, 2)["item"].tolist() == raw([6, 7]).tolist()
    timed = model.recommend_from([(int(raw(5)), 4, 7), (int(raw(1)), None, 9)], 2)
    assert timed["item"].tolist() == raw([2, 3]).tolist()
    assert model.recommend_from([int(raw(ITEMS))], 2).attrs["skipped"] == 1
    with pytest.raises(RecrayError, match="after now, 5"):
        model.recommend_from([(int(raw(5)), 4, 7)], now=5)
