"""The HTTP interface, and its check against the bundle, without Ray."""

import threading

import pytest
import uvicorn
from fastapi.testclient import TestClient

from recray.errors import RecrayError
from recray.recommender import Recommender
from recray.serving.api import build_app
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
    ("user", "source"), [(0, "model"), (USERS, "fold_in"), (USERS + 1, "popular")]
)
def test_every_reply_says_where_it_comes_from(client, user, source):
    assert client.get(f"/v1/users/{raw(user)}/recommendations").json()["source"] == source


@pytest.mark.parametrize("user", ["1", "999999", "x", "-5", "9" * 30, "٣", "1.5"])
def test_an_unknown_user_is_404_with_a_way_on(client, user):
    reply = client.get(f"/v1/users/{user}/recommendations")
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "unknown_user"
    assert "POST /v1/recommendations" in reply.json()["error"]["message"]


@pytest.mark.parametrize("k", ["0", "-1", "501", "ten", "1e3", str(ITEMS + 1)])
def test_a_bad_k_is_422_and_names_it(client, k):
    reply = client.get(f"/v1/users/{raw(0)}/recommendations?k={k}")
    assert reply.status_code == 422
    assert "k" in reply.json()["error"]["message"]


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
        {"ratings": [{"item": 1, "rating": 5}]},
        {"ratings": [{"item": int(raw(1)), "rating": 9}]},
        {"ratings": [{"item": int(raw(1))}]},
        {"ratings": [{"item": int(raw(1)), "rating": "NaN"}]},
        {"ratings": [{"item": 10**30, "rating": 5}]},
        {"ratings": [{"item": int(raw(1)), "rating": 5}] * 1001},
        {"ratings": "all"},
        {"ratings": [{"item": True, "rating": 5}]},
        {"k": 0},
        {"wish": 1},
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


def test_a_bug_is_500_without_a_trace(client, recommender, monkeypatch):
    monkeypatch.setattr(recommender, "recommend", lambda *_: 1 / 0)
    reply = client.get(f"/v1/users/{raw(0)}/recommendations")
    assert reply.status_code == 500
    assert "division" not in reply.text


def test_the_service_tells_what_it_is(client, recommender):
    model = client.get("/v1/model").json()
    assert (model["dataset"], model["users"], model["scores"]) == ("tiny", USERS, "logits")
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json()["model_version"] == recommender.version
    assert client.get("/docs").status_code == 200
    assert set(client.get("/openapi.json").json()["paths"]) == {
        "/v1/users/{user}/recommendations",
        "/v1/recommendations",
        "/v1/model",
        "/healthz",
        "/readyz",
    }


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
    assert result["verified"], result["differences"]
    assert result["users"] == 14
    assert result["ndcg"]["offline"] == result["ndcg"]["online"]


def test_a_service_of_another_version_is_found(serve, recommender, make_bundle):
    other = Recommender(make_bundle("other", flip=True))
    result = verify(serve(build_app(other)), recommender)
    assert not result["verified"]
    assert other.version in result["differences"][0]


def test_a_service_that_leaves_out_the_best_item_is_found(serve, recommender, make_bundle):
    class Worse(Recommender):
        def recommend(self, user, k=10, exclude_seen=True):
            answer = super().recommend(user, k + 1, exclude_seen)
            del answer.items[0]
            return answer

    url = serve(build_app(Worse(recommender.bundle)))
    result = verify(url, recommender, k=3)
    assert not result["verified"]
    assert result["ndcg"]["online"] < result["ndcg"]["offline"]


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

    def recommend(self, user, k=10, exclude_seen=True):
        answer = self.recommender.recommend(user, k, exclude_seen)
        self.change(answer.items)
        return answer


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
    assert not verify(url, recommender, k=3)["verified"]
