"""Texts of Serve's proxy become errors of the service; replies of replicas pass unchanged."""

import json

import pytest
from ray.serve._private.http_util import (
    ResponseStatus,
    convert_object_to_asgi_messages,
    send_http_response_on_exception,
    validate_http_proxy_callback_return,
)
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from recray.serving.proxy_replies import OwnReplies, middlewares

NO_ROUTE = "Path '/readyz' not found. Ping http://.../-/routes for available routes."
DIED = "The actor died unexpectedly before finishing this task.\n\tpid: 12\n\tip: 10.0.0.1"


def asked(status: int, reply: object, path: str = "/readyz"):
    """What a client of Serve's proxy gets; the proxy's messages are Serve's own."""

    async def proxy(_scope, _receive, send) -> None:
        for message in convert_object_to_asgi_messages(reply, status_code=status):
            await send(message)

    return TestClient(OwnReplies(proxy)).get(path)


@pytest.mark.parametrize(
    ("status", "text", "code"),
    [(404, NO_ROUTE, "starting"), (503, "Deployment 'recray' at 10.0.0.1 is gone.", "unavailable")],
)
def test_a_text_of_the_proxy_becomes_an_error_of_ours(status, text, code):
    check_own(asked(status, text), code)


def test_no_reply_at_all_is_a_replica_that_was_lost():
    async def proxy(_scope, _receive, _send) -> None:  # as after send_http_response_on_exception
        assert send_http_response_on_exception(ResponseStatus(500, True, DIED), False) == []

    check_own(TestClient(OwnReplies(proxy)).get("/readyz"), "replica_lost")


def check_own(reply, code: str) -> None:
    assert (reply.status_code, reply.headers["content-type"]) == (503, "application/json")
    assert reply.headers["retry-after"] == "1"
    error = reply.json()["error"]
    assert (error["code"], set(error)) == (code, {"code", "message"})
    assert "10.0.0.1" not in reply.text
    assert int(reply.headers["content-length"]) == len(reply.content)


@pytest.mark.parametrize(
    ("status", "reply", "path"),
    [
        (404, {"error": {"code": "unknown_user", "message": "no user"}}, "/v1/users/7"),
        (500, {"error": {"code": "internal", "message": "a bug"}}, "/v1/model"),
        (200, NO_ROUTE, "/"),
        (404, "another app's own words", "/other"),
        (503, "Route table is not populated yet.", "/-/healthz"),
    ],
)
def test_everything_else_passes_unchanged(status, reply, path):
    answer = asked(status, reply, path)
    assert answer.status_code == status
    assert (answer.text if isinstance(reply, str) else json.loads(answer.text)) == reply


def test_a_reply_in_many_parts_passes_part_by_part():
    async def proxy(_scope, _receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"a", b"b"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"c"})

    assert TestClient(OwnReplies(proxy)).get("/").content == b"abc"


def test_serve_takes_them():
    assert [type(one) for one in validate_http_proxy_callback_return(middlewares())] == [Middleware]
