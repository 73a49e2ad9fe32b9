"""Answers the commonest request before FastAPI reads its query, which takes longer than ranking.

What a query string means is never decided here: a route that has checked one without any filter
tells the service, and the next request with the same bytes is answered the short way.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from recray.data.ids import ID_LENGTH
from recray.serving.service import Service

BEFORE, AFTER = "/v1/users/", "/recommendations"
PATH = f"{BEFORE}{{user:path}}{AFTER}"


class Route:
    """What the log and the counters see of a request that no router saw."""

    path = PATH


class Shortcut:
    """ASGI middleware.

    Args:
        app: Takes every other request, and those that turn out to be none of these.
        service: Knows the query strings.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        body = self._body(scope) if scope["type"] == "http" else None
        if body is None:
            await self.app(scope, receive, send)
            return
        scope["route"] = Route
        length = str(len(body)).encode()
        headers = [(b"content-length", length), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _body(self, scope: Scope) -> bytes | None:
        options = self.service.plain_queries.get(scope.get("query_string", b""))
        path: str = scope["path"]
        if options is None or scope["method"] != "GET" or scope.get("root_path"):
            return None
        if not (path.startswith(BEFORE) and path.endswith(AFTER)):
            return None
        user = path[len(BEFORE) : -len(AFTER)]
        if len(user) > ID_LENGTH:
            return None
        recommender, (k, exclude_seen) = self.service.model(), options
        try:
            raw = recommender.users.parse(user)
        except KeyError:
            return None  # the long way says why
        if self.service.ab_test is not None or self.service.ratings_since(raw):
            return None
        body = recommender.written(raw, recommender.at_most(k), exclude_seen)
        if body is not None:
            self.service.metrics.record_lists("model", recommender.version)
        return body
