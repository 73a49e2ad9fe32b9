"""HEAD and OPTIONS of every address, which FastAPI's routes do not answer by themselves."""

from collections.abc import Iterable

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_METHODS = ("GET", "HEAD", "OPTIONS")
"""The order of methods in Allow; others follow by the alphabet."""


def allowed_methods(routes: Iterable[BaseRoute], path: str) -> list[str]:
    """Every method of every route that has this address; FastAPI would name those of one route."""
    fitting = [r for r in routes if isinstance(r, Route) and r.path_regex.match(path)]
    methods = {method for route in fitting for method in route.methods or ()}
    methods |= {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
    return sorted(methods, key=lambda method: (method not in OPEN_METHODS, method))


class HeadMiddleware:
    """ASGI middleware that answers HEAD as GET, without the body.

    Args:
        app: Answers GET.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        get = {**scope, "method": "GET"}
        try:
            await self.app(get, receive, send_head)
        finally:
            scope["route"] = get.get("route")  # for the counts and the log
