"""What Serve's own proxy answers where no replica does, in the form of the service's errors.

Serve calls `middlewares` in each of its proxies, by a switch in runtime/ray_switches.py. Its texts
would be `Path '/readyz' not found` while the service starts, and the trace of an actor that died.
HAProxy, in the production profile, asks replicas without that proxy.
"""

from typing import NamedTuple

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recray.serving.http_errors import error_body

RETRY_SECONDS = 1
OWN_PATHS = "/-/"
"""Paths that Serve itself answers, to whom looks after it."""
NO_ROUTE = b"/-/routes for available routes."
"""The end of Serve's text where no app is deployed yet."""


class Reply(NamedTuple):
    """An error in place of Serve's own: its code and its message, with 503."""

    code: str
    message: str


STARTING = Reply("starting", "the service is starting; ask again")
UNAVAILABLE = Reply("unavailable", "no process can answer now; ask again")
REPLICA_LOST = Reply("replica_lost", "the process that worked on this has ended; ask again")


def middlewares() -> list[Middleware]:
    """What Serve puts around its HTTP proxy."""
    return [Middleware(OwnReplies)]


class OwnReplies:
    """ASGI middleware that puts errors of Serve's proxy into the form of the service's errors.

    Args:
        app: Serve's proxy. What a replica answers is JSON or HTML, and passes unchanged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and look at the first part of its reply."""
        if scope["type"] != "http" or scope["path"].startswith(OWN_PATHS):
            await self.app(scope, receive, send)
            return
        held: Message | None = None
        answered = False

        async def look(message: Message) -> None:
            nonlocal held, answered
            if not answered and held is None and _is_error_text(message):
                held = message
                return
            start, held = held, None
            if start is not None and _is_own(start["status"], message):
                known = STARTING if start["status"] == 404 else UNAVAILABLE
                await _send(send, known)
            else:
                for one in (start, message):
                    if one is not None:
                        await send(one)
            answered = True

        await self.app(scope, receive, look)
        if not answered:  # Serve leaves it to the server to say something
            await _send(send, REPLICA_LOST)


def _is_error_text(message: Message) -> bool:
    if message["type"] != "http.response.start" or message["status"] not in (404, 503):
        return False
    headers = {bytes(name).lower(): bytes(value) for name, value in message["headers"]}
    return headers.get(b"content-type", b"").startswith(b"text/plain")


def _is_own(status: int, message: Message) -> bool:
    return status == 503 or bytes(message.get("body", b"")).endswith(NO_ROUTE)


async def _send(send: Send, reply: Reply) -> None:
    content = error_body(reply.code, reply.message)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"retry-after", str(RETRY_SECONDS).encode()),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": content})
