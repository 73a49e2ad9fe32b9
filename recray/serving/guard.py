"""ASGI middleware in front of the app: keys, limits of size, time, queue and rate; counts and log.

It knows ASGI and nothing of Ray or of models; deployment.py exports the counts to Ray's metrics.
"""

import asyncio
import contextlib
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recray.serving.auth import find_key
from recray.serving.http_errors import HTTPError, error_body
from recray.serving.log import log
from recray.serving.options import ServiceLimits
from recray.serving.rate import RateLimiter

PAGE_PATHS = ("/", "/page/page.css", "/page/page.js")
OPEN_PATHS = ("/healthz", "/readyz", "/docs", "/openapi.json", *PAGE_PATHS)
"""Paths that need no key and count for no limit."""
WRITE_BUFFER = 1 << 16
"""Bytes of a reply that a server takes at once, even if the client does not read them."""
METHODS_WITH_BODY = ("POST", "PUT", "PATCH")
SMALL_BODY = 1 << 16
"""Bytes of a body that is read without ado. Larger ones of one caller may together have as many as
one may have: 1 MiB of ratings keeps everybody waiting for 0.1 s and takes 50 MB while it is read.
"""
MAX_SAMPLES = 100_000
"""Durations and comparisons that are kept between two exports; the rest is counted alone."""


@dataclass(frozen=True)
class ListComparison:
    """The difference between two models' lists for one user.

    Args:
        overlap: Share of the first list that is in the second, 0..1.
        score_diff: Mean absolute difference of the scores of the items in both lists; nan if
            no item is in both.
    """

    overlap: float
    score_diff: float


@dataclass
class Counts:
    """What happened since the last export.

    Args:
        requests: Number of requests by route, method and status.
        lists: Number of lists by their source and the version that made them.
        request_seconds: Route and duration of each request.
        list_seconds: Version and duration of each user's list, while two models are compared.
        comparisons: How lists of the challenger differ from those that were shown.
        skipped_comparisons: Lists that were not compared because the challenger was busy.
    """

    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    lists: Counter[tuple[str, str]] = field(default_factory=Counter)
    request_seconds: list[tuple[str, float]] = field(default_factory=list)
    list_seconds: list[tuple[str, float]] = field(default_factory=list)
    comparisons: list[ListComparison] = field(default_factory=list)
    skipped_comparisons: int = 0


class ServiceMetrics:
    """Counters that any thread may increment or flush."""

    def __init__(self) -> None:
        self._counts, self._lock = Counts(), threading.Lock()

    def record_request(self, route: str | None, method: str, status: int, seconds: float) -> None:
        """Count a request; its route is None if no route has its address."""
        route = route or "other"
        with self._lock:
            self._counts.requests[route, method, status] += 1
            if len(self._counts.request_seconds) < MAX_SAMPLES:
                self._counts.request_seconds.append((route, seconds))

    def record_lists(self, source: str, version: str, count: int = 1) -> None:
        """Count lists that one version of the model made."""
        with self._lock:
            self._counts.lists[source, version] += count

    def record_list_seconds(self, version: str, seconds: float) -> None:
        """Keep how long one of two compared models took for a list."""
        with self._lock:
            if len(self._counts.list_seconds) < MAX_SAMPLES:
                self._counts.list_seconds.append((version, seconds))

    def record_comparison(self, comparison: ListComparison | None) -> None:
        """Keep a comparison; None counts one that was skipped."""
        with self._lock:
            if comparison is None:
                self._counts.skipped_comparisons += 1
            elif len(self._counts.comparisons) < MAX_SAMPLES:
                self._counts.comparisons.append(comparison)

    def flush(self) -> Counts:
        """Return the counts since the last flush, and begin anew."""
        with self._lock:
            counts, self._counts = self._counts, Counts()
        return counts


class _Reply:
    """Remembers the status that is sent, and adds the headers that every reply has."""

    HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0  # 0 until a reply has begun

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self.HEADERS]
        await self._send(message)

    async def send_error(self, error: HTTPError) -> None:
        if self.status:
            return  # A reply has begun, and HTTP allows no second one.
        body = error_body(error.code, error.message)
        own = {"content-type": "application/json", "content-length": str(len(body))}
        headers = [(k.encode(), v.encode()) for k, v in (own | error.headers).items()]
        start = {"type": "http.response.start", "status": error.status, "headers": headers}
        await self.send(start)
        await self.send({"type": "http.response.body", "body": body})


class SecurityMiddleware:
    """Lets through what the limits allow, counts and logs every request.

    Args:
        app: The app behind it.
        limits: Keys and limits.
        metrics: Counts requests, refused ones included.
        answer_at_once: Makes replies that wait for nothing, and so need no timeout, which takes a
            tenth of the time of a list; None for all other requests, which the app answers.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: ServiceLimits,
        metrics: ServiceMetrics | None = None,
        answer_at_once: Callable[[Scope], Response | None] = lambda _scope: None,
    ) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics or ServiceMetrics()
        self.answer_at_once = answer_at_once
        self.hosts = limits.allowed_hosts()
        self.limiter = RateLimiter(limits.rate, limits.burst)
        self.running = 0
        self._bodies: defaultdict[str, int] = defaultdict(int)  # bytes in work of each caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, reply, caller, trace = time.perf_counter(), _Reply(send), None, None
        try:
            if self.hosts is not None and not self.hosts.allow(scope["headers"]):
                text = "this service is not called so; --allow-host NAME lets a name in"
                raise HTTPError(421, "foreign_host", text)
            if scope["path"] in OPEN_PATHS:
                await self.app(scope, receive, reply.send)
            else:
                scope["caller"] = caller = self._authenticate(scope)
                self._check_load(caller)
                known = self.answer_at_once(scope)
                if known is None or len(known.body) > WRITE_BUFFER:
                    await self._answer(known or self.app, scope, receive, reply)
                else:
                    await known(scope, receive, reply.send)
        except HTTPError as error:
            await reply.send_error(error)
        except Exception:
            trace = traceback.format_exc()
            text = "an internal error; the log of the replica has the trace"
            await reply.send_error(HTTPError(500, "internal", text))
        finally:
            seconds = time.perf_counter() - begin
            route = getattr(scope.get("route"), "path", None)
            self.metrics.record_request(route, scope["method"], reply.status, seconds)
            if self.limits.log != "errors" or trace is not None:
                self._log(scope, reply.status, seconds, caller, trace)

    def _authenticate(self, scope: Scope) -> str:
        """Return the name of the key that the request sends; "" if the service asks for none.

        Raises:
            HTTPError: The request sends no key, or an unknown one.
        """
        if not self.limits.keys:
            return ""
        headers = dict(scope["headers"])
        scheme, _, secret = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            secret = headers.get(b"x-api-key", b"")
        if not secret.strip():
            text = "send a key: Authorization: Bearer KEY"
            raise HTTPError(401, "no_key", text, {"www-authenticate": "Bearer"})
        name = find_key(self.limits.keys, secret.strip())
        if name is None:
            raise HTTPError(403, "wrong_key", "this key is not known here")
        return name

    def _check_load(self, caller: str) -> None:
        """Refuse a request above the rate or the queue.

        Raises:
            HTTPError: This caller, or all of them together, send too many requests.
        """
        wait = self.limiter.acquire(caller)
        if wait:
            headers = {"retry-after": str(max(1, round(wait + 0.5)))}
            text = f"more than {self.limits.rate:g} requests a second"
            raise HTTPError(429, "too_fast", text, headers)
        if self.running >= self.limits.queue:
            text = f"{self.limits.queue} requests are being answered; try again"
            raise HTTPError(503, "busy", text, {"retry-after": "1"})

    async def _answer(self, app: ASGIApp, scope: Scope, receive: Receive, reply: _Reply) -> None:
        self.running += 1
        limit = self.limits.timeout
        try:
            async with asyncio.timeout(limit):
                if scope["method"] not in METHODS_WITH_BODY:
                    await app(scope, receive, reply.send)
                    return
                with self._holding_body(scope):
                    receive = await self._read_body(receive)
                    await app(scope, receive, reply.send)
        except TimeoutError:
            raise HTTPError(504, "timeout", f"no answer within {limit:g} s") from None
        finally:
            self.running -= 1

    @contextlib.contextmanager
    def _holding_body(self, scope: Scope) -> Iterator[None]:
        """Count a large body to its caller from before it is read until it is answered.

        Raises:
            HTTPError: It is larger than is allowed, by its header, or the caller has as much in
                work as is allowed.
        """
        limit, caller = self.limits.max_body, scope["caller"]
        declared = dict(scope["headers"]).get(b"content-length", b"")
        size = int(declared[:20]) if declared.isdigit() else limit
        if size > limit:
            raise self._too_large()
        size, held = size if size > SMALL_BODY else 0, self._bodies[caller]
        if held and held + size > limit:
            text = f"requests that wait have {held} bytes, at most {limit} are allowed at once"
            raise HTTPError(429, "too_much_at_once", text, {"retry-after": "1"})
        self._bodies[caller] += size
        try:
            yield
        finally:
            self._bodies[caller] -= size
            if not self._bodies[caller]:
                del self._bodies[caller]

    def _too_large(self) -> HTTPError:
        text = f"the body is larger than {self.limits.max_body} bytes"
        return HTTPError(413, "too_large", text)

    async def _read_body(self, receive: Receive) -> Receive:
        """Read the whole body, and return a `receive` that gives it to the app in one message.

        Raises:
            HTTPError: The body is too large, by the bytes that came.
        """
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            size += len(message.get("body", b""))
            if size > self.limits.max_body:
                raise self._too_large()
            chunks.append(message.get("body", b""))
            more = message.get("more_body", False)
        whole: list[Message] = [{"type": "http.request", "body": b"".join(chunks)}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        return replay

    def _log(
        self, scope: Scope, status: int, seconds: float, caller: str | None, trace: str | None
    ) -> None:
        facts = {
            "method": scope["method"],
            "route": getattr(scope.get("route"), "path", None),
            "status": status,
            "ms": round(1000 * seconds, 3),
            "key": caller,
        }
        if self.limits.log == "users":
            facts["path"] = scope["path"]
            facts["query"] = scope.get("query_string", b"").decode("latin-1")
        if trace is not None:
            facts["error"] = trace
        log(**facts)
