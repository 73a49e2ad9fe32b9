"""The HTTP interface, and its check against the bundle, without Ray."""

import json
import re
import threading
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import uvicorn
from fastapi.testclient import TestClient
from pydantic import TypeAdapter

from recray.data.ids import ID_LENGTH
from recray.errors import RecrayError
from recray.inference.catalog import NO_FILTERS, Filters
from recray.inference.recommender import Recommender
from recray.serving.ab_test import ABTest
from recray.serving.app import build_app
from recray.serving.auth import new_key, parse_key
from recray.serving.guard import ServiceMetrics
from recray.serving.options import ServiceLimits
from recray.serving.schemas import requests, responses
from recray.serving.verify import verify

from .conftest import ITEMS, USERS, raw


@pytest.fixture
def recommender(make_bundle):
    return Recommender(make_bundle())


@pytest.fixture
def client(recommender):
    return TestClient(build_app(recommender), raise_server_exceptions=False)


def test_a_known_user_gets_what_the_recommender_says(client, recommender):
    reply = client.get(f"/v1/users/{raw(3)}/recommendations?k=4")
    assert reply.status_code == 200
    assert reply.json() == recommender.recommend(int(raw(3)), 4).plain()
    assert reply.json()["model_version"] == recommender.version


@pytest.mark.parametrize(
    ("user", "source"), [(0, "model"), (USERS, "fold_in"), (USERS + 1, "fold_in")]
)
def test_every_reply_says_where_it_comes_from(client, user, source):
    assert client.get(f"/v1/users/{raw(user)}/recommendations").json()["source"] == source


@pytest.mark.parametrize("user", ["1", "999999", "x", "-5", "9" * 30, "٣", "1.5"])
def test_an_unknown_user_is_404_with_a_way_on(client, user):
    reply = client.get(f"/v1/users/{user}/recommendations")
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "unknown_user"
    assert "POST /v1/recommendations" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("users/130%2Frecommendations", "'130/recommendations'"),
        ("users/130%2frecommendations/recommendations?k=3", "'130/recommendations'"),
        ("users/130%2Fa/recommendations?k=3", "'130/a'"),
        ("users/130/a/recommendations?k=3", "'130/a'"),
        ("users/130%252Fa/recommendations?k=3", "'130%2Fa'"),
        ("items/130%2Fsimilar", "'130/similar'"),
    ],
)
def test_an_encoded_slash_belongs_to_the_id(client, path, asked):
    assert client.get("/v1/users/130/recommendations?k=3").status_code == 200
    reply = client.get(f"/v1/{path}")
    assert reply.status_code == 404
    assert asked in reply.json()["error"]["message"]


@pytest.mark.parametrize("k", ["0", "-1", "501", "ten", "1e3"])
def test_a_bad_k_is_422_and_names_it(client, k):
    reply = client.get(f"/v1/users/{raw(0)}/recommendations?k={k}")
    assert reply.status_code == 422
    assert "k" in reply.json()["error"]["message"]


def test_a_list_longer_than_the_catalogue_is_the_catalogue(client):
    for query in (f"k={ITEMS + 1}", "k=500", "k=500"):
        reply = client.get(f"/v1/users/{raw(0)}/recommendations?{query}&exclude_seen=false")
        assert len(reply.json()["items"]) == ITEMS
    for path, body in (
        ("/v1/recommendations", {"k": 500}),
        ("/v1/recommendations:batch", {"k": 500, "askers": [{}]}),
    ):
        assert client.post(path, json=body).status_code == 200
    assert len(client.get(f"/v1/items/{raw(0)}/similar?k=500").json()["items"]) == ITEMS - 1


def test_seen_items_come_back_on_request(client):
    reply = client.get(f"/v1/users/{raw(0)}/recommendations?k={ITEMS}&exclude_seen=false")
    assert len(reply.json()["items"]) == ITEMS


def test_somebody_new_is_folded_in_and_nobody_is_popular(client):
    body = {"ratings": [{"item": int(raw(1)), "rating": 5}], "k": 3}
    assert client.post("/v1/recommendations", json=body).json()["source"] == "fold_in"
    assert client.post("/v1/recommendations", json={}).json()["source"] == "popular"


@pytest.mark.parametrize(
    "body",
    [
        {"ratings": [{"item": int(raw(1)), "rating": 9}]},
        {"ratings": [{"rating": 5}]},
        {"ratings": [int(raw(1))]},
        {"ratings": [{"item": int(raw(1)), "time": 1}, {"item": int(raw(2))}]},
        {"ratings": [{"item": int(raw(1)), "time": 2}], "now": 1},
        {"ratings": [{"item": int(raw(1)), "time": "1970"}]},
        {"ratings": [{"item": int(raw(1)), "time": 10**17}]},
        {"now": 1.5},
        {"ratings": [{"item": int(raw(1)), "rating": "NaN"}]},
        {"ratings": [{"item": 10**30, "rating": 5}]},
        {"ratings": [{"item": int(raw(1)), "rating": 5}] * 1001},
        {"ratings": "all"},
        {"ratings": [{"item": True, "rating": 5}]},
        {"k": 0},
        {"filters": 1},
        [],
    ],
)
def test_a_body_that_cannot_be_used_is_422(client, body):
    reply = client.post("/v1/recommendations", json=body)
    assert reply.status_code == 422
    assert set(reply.json()) == {"error"}
    assert reply.json()["error"]["message"]


def test_a_body_that_is_no_json_is_422(client):
    assert client.post("/v1/recommendations", content=b"\xff{").status_code == 422


def test_other_paths_and_methods_are_errors_of_the_same_form(client):
    for reply, status in ((client.get("/v2"), 404), (client.put("/v1/model"), 405)):
        assert reply.status_code == status
        assert set(reply.json()["error"]) == {"code", "message"}


def test_a_bug_is_500_without_a_trace_and_the_log_has_it(client, recommender, monkeypatch, capfd):
    monkeypatch.setattr(recommender, "recommend", lambda *_: 1 / 0)
    reply = client.get(f"/v1/users/{raw(0)}/recommendations")
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "internal"
    assert "division" not in reply.text
    assert "ZeroDivisionError" in json.loads(capfd.readouterr().err)["error"]


def test_the_service_tells_what_it_is(client, recommender):
    model = client.get("/v1/model").json()
    assert (model["dataset"], model["users"], model["scores"]) == ("tiny", USERS, "logits")
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json()["model_version"] == recommender.version
    assert client.get("/docs").status_code == 200
    assert set(client.get("/openapi.json").json()["paths"]) == {
        "/v1/users/{user}/recommendations",
        "/v1/users/{user}",
        "/v1/recommendations",
        "/v1/recommendations:batch",
        "/v1/items",
        "/v1/items:batch",
        "/v1/items/{item}",
        "/v1/items/{item}/similar",
        "/v1/ratings",
        "/v1/ratings/{user}/{item}",
        "/v1/users/{user}/ratings",
        "/v1/scores",
        "/v1/model",
        "/v1/models",
        "/healthz",
        "/readyz",
    }


# ---------------------------------------------------------------------------------- options


OPTIONS = [
    ("genres=Comedy&genres=war", {"genres": ["Comedy", "war"]}),
    ("not_genres=drama", {"not_genres": ["drama"]}),
    ("year_from=1992&year_to=1996", {"year_from": 1992, "year_to": 1996}),
    (f"exclude={raw(9)}&exclude={raw(5)}", {"exclude": [int(raw(9)), int(raw(5))]}),
    (f"candidates={raw(2)}&candidates=7", {"candidates": [int(raw(2)), 7]}),
    ("min_popularity=4&diversity=0.7", {"min_popularity": 4, "diversity": 0.7}),
    ("explain=true", {"explain": True}),
]


@pytest.mark.parametrize(("query", "filters"), OPTIONS)
def test_options_mean_the_same_in_an_address_a_body_and_a_batch(
    client, recommender, query, filters
):
    user = int(raw(3))
    said = recommender.recommend(user, 4, False, Filters(**filters)).plain()
    assert said["items"] != recommender.recommend(user, 4, False).plain()["items"]
    path = f"/v1/users/{user}/recommendations?k=4&exclude_seen=false&{query}"
    assert client.get(path).json() == said
    filters = {**filters, "k": 4, "exclude_seen": False}
    asked = {"askers": [{"user": user}], **filters}
    batch = client.post("/v1/recommendations:batch", json=asked).json()
    assert batch["results"][0]["items"] == said["items"]
    ratings = [{"item": int(raw(1)), "rating": 5}]
    alone = client.post("/v1/recommendations", json={"ratings": ratings, **filters}).json()
    together = client.post(
        "/v1/recommendations:batch", json={"askers": [{"ratings": ratings}], **filters}
    ).json()
    assert together["results"] == [{"items": alone["items"], "source": "fold_in", "skipped": 0}]
    assert together["model_version"] == recommender.version


@pytest.mark.parametrize(
    "query",
    [
        "genre=Drama", "genres=Drma", "genres=", "year_from=0", "year_to=10000", "diversity=1.5",
        "diversity=nan", "min_popularity=-1", "explain=perhaps", "exclude=", "k=2&k2=3",
        "k=5&k=6", "k=5&k=5", "genres=Drama&explain=true&explain=false", "since=true&since=true",
        "year_from=1996&year_to=1992",
        "&".join(f"exclude={n}" for n in range(1001)),
    ],
)  # fmt: skip
def test_a_parameter_that_cannot_be_used_is_422(client, query):
    reply = client.get(f"/v1/users/{raw(0)}/recommendations?{query}")
    assert reply.status_code == 422
    assert set(reply.json()["error"]) == {"code", "message"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"/v1/users/{raw(0)}/recommendations", {}),
        ("/v1/recommendations", {}),
        ("/v1/recommendations:batch", {"askers": [{}]}),
    ],
)
def test_years_the_wrong_way_round_are_refused_in_a_body(client, path, body):
    assert client.post(path, json=body | {"year_from": 1992, "year_to": 1992}).status_code == 200
    reply = client.post(path, json=body | {"year_from": 1996, "year_to": 1992})
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "unfit")
    assert "year_from=1996 is after year_to=1992" in reply.json()["error"]["message"]


def test_a_thousand_long_ids_are_left_out_by_a_body(client, recommender):
    path = f"/v1/users/{raw(0)}/recommendations"
    best = client.get(f"{path}?k=2").json()["items"]
    numbers = [10**17 + n for n in range(999)]
    reply = client.post(path, json={"k": 1, "exclude": [best[0]["item"], *numbers]})
    assert reply.json()["items"] == best[1:]
    texts = ["é" * ID_LENGTH for _ in range(1000)]
    assert client.post(path, json={"exclude": texts}).status_code == 200
    assert client.post(path, json={"exclude": [*numbers, 1, 2]}).status_code == 422
    assert client.post("/v1/users/7/recommendations", json={}).status_code == 404


@pytest.mark.parametrize(
    "path",
    ["/v1/items/130", "/v1/items/130/similar", "/v1/users/100", "/v1/model", "/v1/items?query=x"],
)
def test_an_unknown_parameter_is_422_everywhere(client, path):
    assert client.get(path).status_code == 200
    reply = client.get(path + ("&" if "?" in path else "?") + "nonsense=1")
    assert (reply.status_code, "nonsense" in reply.json()["error"]["message"]) == (422, True)


def test_a_batch_answers_each_and_names_who_cannot_be(client, recommender):
    askers = [
        {"user": int(raw(0))},
        {"user": 7},
        {"ratings": [{"item": int(raw(1)), "rating": 9}]},
        {},
    ]
    results = client.post("/v1/recommendations:batch", json={"askers": askers, "k": 3}).json()
    kinds = [r.get("source") or r["error"]["code"] for r in results["results"]]
    assert kinds == ["model", "unknown_user", "unfit", "popular"]


@pytest.mark.parametrize(
    "body",
    [
        {"askers": []},
        {"askers": [{"user": 1}] * 1001},
        {"askers": [{"user": int(raw(0)), "ratings": []}]},
        {"askers": [{"user": 1, "k": 3}]},
        {"askers": [{"user": 1.5}]},
        {"askers": [{"user": 1}], "k": 501},
    ],
)
def test_a_batch_that_cannot_be_used_is_422(client, body):
    assert client.post("/v1/recommendations:batch", json=body).status_code == 422


# --------------------------------------------------------------------------- items and users


def test_items_are_found_by_title_and_told_of(client, recommender):
    found = client.get("/v1/items?query=FÌLM 3").json()
    assert [item["title"] for item in found["items"]] == ["Film 3 (1993)"]
    assert client.get("/v1/items?query=film&k=4").json()["items"][3]["item"]
    facts = client.get(f"/v1/items/{raw(3)}").json()
    assert facts == {**asdict(recommender.item(int(raw(3)))), "model_version": recommender.version}
    similar = client.get(f"/v1/items/{raw(2)}/similar?k=2&year_from=1995").json()
    assert {item["item"] for item in similar["items"]} == {int(raw(6)), int(raw(8))}
    assert similar["item"]["title"] == "Film 2 (1992)"


def test_several_items_are_told_of_at_once(client, recommender):
    asked = {"items": [int(raw(3)), 7, int(raw(1)), int(raw(3)), "x"]}
    told = client.post("/v1/items:batch", json=asked).json()
    assert told["items"] == [asdict(recommender.item(int(raw(i)))) for i in (3, 1)]
    assert client.post("/v1/items:batch", json={"items": []}).status_code == 422


def test_either_of_two_models_answers_by_its_version(recommender, make_bundle):
    second = Recommender(make_bundle("other", flip=True))
    client = TestClient(build_app(recommender, ab_test=ABTest(second, ServiceMetrics())))
    versions = [m["model_version"] for m in client.get("/v1/models").json()["models"]]
    assert versions == [recommender.version, second.version]
    user = raw(0)
    for model in (recommender, second):
        asked = f"/v1/users/{user}/recommendations?k=3&model={model.version}"
        assert client.get(asked).json() == model.recommend(int(user), 3).plain()
    assert (
        client.get(f"/v1/users/{user}/recommendations?k=3").json()["model_version"] == versions[0]
    )
    refused = client.post("/v1/recommendations", json={"model": "nonsense"})
    assert refused.status_code == 422
    assert second.version in refused.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/items/7", "/v1/items/x", "/v1/items/x/similar"])
def test_an_unknown_item_is_404(client, path):
    reply = client.get(path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_item")


def test_items_that_training_does_not_know_have_facts_but_no_likeness(client):
    assert client.get(f"/v1/items/{raw(ITEMS)}").json()["in_training"] is False
    assert client.get(f"/v1/items/{raw(ITEMS)}/similar").status_code == 404


def test_a_users_history_is_told(client, recommender):
    facts = client.get(f"/v1/users/{raw(0)}").json()
    assert facts == {**asdict(recommender.user(int(raw(0)))), "model_version": recommender.version}
    assert client.get("/v1/users/7").json()["error"]["code"] == "unknown_user"


def test_pairs_are_scored(client, recommender):
    pairs = [{"user": int(raw(0)), "item": int(raw(1))}, {"user": "x", "item": 7}]
    reply = client.post("/v1/scores", json={"pairs": pairs}).json()
    named = [(int(raw(0)), int(raw(1))), ("x", 7)]
    assert reply["scores"] == [asdict(pair) for pair in recommender.score_pairs(named)]
    assert (reply["returns"], reply["scores"][1]["source"]) == ("logits", "cold")
    assert client.post("/v1/scores", json={"pairs": []}).status_code == 422


def test_letters_that_no_encoding_has_are_answered(client):
    for body in (b'{"\\ud800": 1}', b'{"askers": [{"user": "\\ud800"}]}', b"[" * 100_000):
        reply = client.post(
            "/v1/recommendations:batch", content=body, headers={"content-type": "application/json"}
        )
        assert reply.status_code in (400, 422)
        assert reply.json()["error"]["message"]


# ----------------------------------------------------------------------------------- openapi


def test_every_reply_is_as_the_document_says(client):
    user, item = raw(0), raw(2)
    new = {"ratings": [{"item": int(item), "rating": 5}], "explain": True}
    pairs = {"pairs": [{"user": int(user), "item": int(item)}, {"user": 7, "item": 7}]}
    many = {"askers": [{"user": int(user)}, {"user": 7}, new["ratings"] and {}], "explain": True}
    for model, reply in [
        (
            responses.RecommendationList,
            client.get(f"/v1/users/{user}/recommendations?explain=true"),
        ),
        (responses.RecommendationList, client.post("/v1/recommendations", json=new)),
        (responses.BatchRecommendations, client.post("/v1/recommendations:batch", json=many)),
        (responses.SimilarItems, client.get(f"/v1/items/{item}/similar")),
        (responses.SearchResults, client.get("/v1/items?query=film")),
        (responses.ItemResponse, client.get(f"/v1/items/{item}")),
        (responses.ItemsResponse, client.post("/v1/items:batch", json={"items": [int(item), 7]})),
        (responses.UserHistory, client.get(f"/v1/users/{user}")),
        (responses.Scores, client.post("/v1/scores", json=pairs)),
        (responses.Readiness, client.get("/readyz")),
        (responses.ErrorResponse, client.get("/v1/items/7")),
    ]:
        made = TypeAdapter(model).validate_python(reply.json(), extra="forbid")
        assert made.model_dump(exclude_unset=True) == reply.json()


def test_every_operation_has_an_example_a_meaning_and_its_errors(client):
    document = client.get("/openapi.json").json()
    models = document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["description"]
            for parameter in operation.get("parameters", []):
                assert parameter.get("description"), (path, parameter["name"])
            if path.startswith("/v1"):
                assert {"401", "403", "422", "429", "503", "504"} <= set(operation["responses"])
            if body := operation.get("requestBody"):
                name = body["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]
                getattr(requests, name).model_validate(models[name]["example"])


def test_the_documentation_needs_nothing_from_afar(client):
    text = client.get("/docs").text
    assert "POST /v1/recommendations:batch" in text
    assert not re.search(r"<script|src=|https?://", text)


def test_keys_appear_in_the_document_where_they_are_asked_for(recommender, client):
    assert "security" not in client.get("/openapi.json").json()
    keys = (parse_key(new_key("shop")[1], "here"),)
    guarded = TestClient(build_app(recommender, ServiceLimits(keys=keys)))
    assert guarded.get("/openapi.json").json()["security"] == [{"key": []}, {"header": []}]


# ----------------------------------------------------------------------------------- verify


@pytest.fixture
def serve():
    """Serve an app on a free port of this machine; returns its address."""
    servers = []

    def start(app) -> str:
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        while not server.started:
            thread.join(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join()


def test_a_service_of_the_bundle_is_verified(serve, recommender):
    result = verify(serve(build_app(recommender)), recommender, k=3)
    assert result.verified, result.differences
    assert result.users == 14
    assert result.model_dump()["ndcg"] == {"offline": None, "online": None}


def test_a_service_of_another_version_is_found(serve, recommender, make_bundle):
    other = Recommender(make_bundle("other", flip=True))
    result = verify(serve(build_app(other)), recommender)
    assert not result.verified
    assert other.version in result.differences[0]


def test_a_service_that_leaves_out_the_best_item_is_found(serve, recommender, make_bundle):
    class Worse(Recommender):
        def recommend(
            self, user, k=10, exclude_seen=True, filters=NO_FILTERS, since=None, now=None
        ):
            answer = super().recommend(user, k + 1, exclude_seen, filters)
            return replace(answer, item=answer.item[1:], score=answer.score[1:])

    url = serve(build_app(Worse(recommender.bundle)))
    result = verify(url, recommender, k=3)
    assert not result.verified


@pytest.mark.parametrize(
    "url", ["ftp://x", "127.0.0.1:8000", "http://127.0.0.1:1", "http://127.0.0.1:99999"]
)
def test_no_service_is_one_line(recommender, url):
    with pytest.raises(RecrayError, match=url):
        verify(url, recommender)


class Says:
    """A recommender whose service always gives the same list."""

    def __init__(self, recommender, change):
        self.recommender, self.change = recommender, change

    def __getattr__(self, name):
        return getattr(self.recommender, name)

    def recommend(self, user, k=10, exclude_seen=True, filters=NO_FILTERS, since=None, now=None):
        plain = self.recommender.recommend(user, k, exclude_seen, filters).plain()
        self.change(plain["items"])
        said = SimpleNamespace(source=plain["source"], model_version=plain["model_version"])
        said.to_json = lambda: json.dumps(plain).encode()
        return said


@pytest.mark.parametrize(
    "change",
    [
        lambda items: items[0].update(item=int(raw(ITEMS))),
        lambda items: items[0].update(item=items[1]["item"]),
        lambda items: items[0].update(score=items[0]["score"] + 0.01),
        lambda items: items.reverse(),
        lambda items: items.append(items[0]),
        lambda items: items[0].pop("score"),
    ],
    ids=["another item", "an item twice", "score", "order", "too many", "no score"],
)
def test_every_way_of_differing_is_found(serve, recommender, change):
    url = serve(build_app(Says(recommender, change)))
    assert not verify(url, recommender, k=3).verified
