"""HEAD and OPTIONS of every address, redirects that there are none, and the summaries of /docs."""

import pytest
from fastapi.testclient import TestClient

from recray.inference.recommender import Recommender
from recray.serving.app import build_app

from .conftest import raw

USER = f"/v1/users/{raw(0)}/recommendations"


@pytest.fixture
def client(make_bundle):
    return TestClient(build_app(Recommender(make_bundle())), follow_redirects=False)


@pytest.mark.parametrize("path", ["/", "/healthz", "/docs", "/v1/model", USER, f"{USER}?k=3"])
def test_head_is_get_without_the_body(client, path):
    for _ in range(2):  # the second time the query is known
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == get.headers["content-length"]
        assert head.headers["content-type"] == get.headers["content-type"]


def test_head_of_what_cannot_be_got_is_refused(client):
    assert client.head("/v1/users/7").status_code == 404
    reply = client.head("/v1/scores")
    assert (reply.status_code, reply.headers["allow"]) == (405, "OPTIONS, POST")


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/v1/ratings", "GET, HEAD, OPTIONS, POST"),
        ("/v1/scores", "OPTIONS, POST"),
        ("/v1/model", "GET, HEAD, OPTIONS"),
    ],
)
def test_every_method_of_an_address_is_named(client, path, allow):
    options, other = client.options(path), client.put(path)
    assert (options.status_code, options.headers["allow"], options.content) == (204, allow, b"")
    assert (other.status_code, other.headers["allow"]) == (405, allow)
    assert other.json()["error"]["code"] == "method_not_allowed"


def test_options_of_no_address_is_404(client):
    assert client.options("/v2").status_code == 404


@pytest.mark.parametrize("path", ["/v1/model/", "/healthz/", "/v1/ratings/"])
def test_nothing_is_redirected(client, path):
    reply = client.get(path, headers={"host": "evil.example"})
    assert reply.status_code in (404, 421)
    assert "location" not in reply.headers


def test_each_operation_has_a_summary_in_words(client):
    for methods in client.get("/openapi.json").json()["paths"].values():
        for operation in methods.values():
            assert operation["description"].startswith(operation["summary"])
            assert len(operation["summary"].split()) >= 3
    assert "Keep a rating: on the disk when this answers" in client.get("/docs").text
