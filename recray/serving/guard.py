"""Guards the app: keys, limits of size, time, queue and rate, and a log. Knows ASGI, not Ray.

A key is 32 random bytes, shown once; only its sha256 is kept. Such keys cannot be guessed from
their hash, so it needs no salt.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import os
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from recray.errors import RecrayError
from recray.serving.log import log
from recray.serving.metrics import Tally

ENVIRONMENT = "RECRAY_API_KEYS"
PAGE_PATHS = ("/", "/page/page.css", "/page/page.js")
OPEN_PATHS = ("/healthz", "/readyz", "/docs", "/openapi.json", *PAGE_PATHS)
WITH_BODY = ("POST", "PUT", "PATCH")
MARK = "sha256:"

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Log = Literal["errors", "requests", "users"]


@dataclass(frozen=True)
class ApiKey:
    """A key that opens the service.

    Args:
        name: Whose it is; appears in the log.
        digest: sha256 of the key, 64 hex digits.
    """

    name: str
    digest: str


@dataclass(frozen=True)
class Protection:
    """What the service lets through; each limit is one replica's.

    Args:
        keys: Who may ask; nobody is asked for a key if there are none.
        max_body: Largest body, in bytes.
        timeout: Seconds until a request is given up.
        queue: Requests at once; more are told to come again.
        rate: Requests a second of one key; 0 sets no limit.
        burst: Requests of one key that may come at once before the rate counts.
        cors: Origins whose pages may read replies, such as https://shop.example.
        log: errors, requests, or users, which adds paths, and with them user ids.
    """

    keys: tuple[ApiKey, ...] = ()
    max_body: int = 4 << 20
    timeout: float = 10.0
    queue: int = 64
    rate: float = 0.0
    burst: int = 20
    cors: tuple[str, ...] = ()
    log: Log = "errors"

    def __post_init__(self) -> None:
        for origin in self.cors:
            parts = urlsplit(origin)
            if (
                parts.scheme not in ("http", "https")
                or f"{parts.scheme}://{parts.netloc}" != origin
            ):
                raise RecrayError(
                    f"--cors {origin!r}: write an origin such as https://shop.example"
                )


# ------------------------------------------------------------------------------------- keys


def new_key(name: str) -> tuple[str, str]:
    """A fresh key, and the line that stands for it in a file of keys."""
    _check_name(name)
    secret = secrets.token_urlsafe(32)
    return secret, f"{name} {MARK}{_digest(secret.encode())}"


def add_line(file: str, line: str) -> None:
    """Add a line to a file of keys, which only its owner may read.

    Raises:
        RecrayError: It cannot be written.
    """
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as stream:
            stream.write(line + "\n")
    except OSError as error:
        raise RecrayError(f"--add-to {file}: {error.strerror}") from error


def load_keys(file: str | None) -> tuple[ApiKey, ...]:
    """The keys of a file, or of the environment where no file is given.

    Args:
        file: Lines NAME sha256:HEX, as `recray key` writes them; # begins a comment. In the
            environment they may stand between commas.

    Raises:
        RecrayError: The file cannot be read or is empty, or a line is no such line.
    """
    if file is None:
        where, text = ENVIRONMENT, os.environ.get(ENVIRONMENT, "").replace(",", "\n")
    else:
        where = file
        try:
            text = Path(file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise RecrayError(f"--api-keys {file}: cannot be read: {error}") from error
    keys = [parse_key(line, where) for line in map(str.strip, text.splitlines()) if _says(line)]
    if file is not None and not keys:
        raise RecrayError(f"--api-keys {file}: no key in it; `recray key NAME` makes one")
    return tuple(keys)


def _says(line: str) -> bool:
    return bool(line) and not line.startswith("#")


def parse_key(line: str, where: str) -> ApiKey:
    """The key that a line NAME sha256:HEX stands for.

    Raises:
        RecrayError: It is no such line; `where` says where it was found.
    """
    name, _, mark = line.partition(" ")
    digest = mark.strip().removeprefix(MARK).lower()
    whole = len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    if not mark.strip().startswith(MARK) or not whole:
        # The line may be a key itself, so it is not repeated.
        raise RecrayError(f"{where}: a line is not NAME {MARK}HEX; `recray key NAME` makes one")
    _check_name(name)
    return ApiKey(name, digest)


def _check_name(name: str) -> None:
    if not (name.replace("-", "").replace("_", "").isalnum() and len(name) <= 64):
        raise RecrayError(f"key name {name!r}: use up to 64 letters, digits, - and _")


def _digest(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the interface."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_open_door(host: str, protection: Protection) -> None:
    """Refuse to serve other machines without keys.

    Raises:
        RecrayError: The host is not this machine alone, and there are no keys.
    """
    if not is_loopback(host) and not protection.keys:
        raise RecrayError(
            f"--host {host} lets other machines in: give --api-keys FILE or set {ENVIRONMENT}; "
            "`recray key NAME` makes a key"
        )


# ------------------------------------------------------------------------------- the guard


class Refused(Exception):
    """A request that goes no further.

    Args:
        status: HTTP status.
        code: Short name.
        message: What to do.
        headers: Besides the usual ones.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = headers or {}


def failure(code: str, message: str) -> bytes:
    """The body of every error."""
    safe = message.encode("utf-8", "replace").decode()
    return json.dumps({"error": {"code": code, "message": safe}}, ensure_ascii=False).encode()


class Buckets:
    """A token bucket for each caller.

    Args:
        rate: Tokens a second; 0 never refuses.
        burst: Tokens at most.
        clock: Seconds that only grow.
    """

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate, self.burst, self.clock = rate, max(1, burst), clock
        self._left: dict[str, tuple[float, float]] = {}

    def wait(self, caller: str) -> float:
        """Take a token; 0, or the seconds until there is one."""
        if not self.rate:
            return 0.0
        now = self.clock()
        tokens, since = self._left.get(caller, (float(self.burst), now))
        tokens = min(self.burst, tokens + (now - since) * self.rate)
        granted = tokens >= 1
        self._left[caller] = (tokens - granted, now)
        return 0.0 if granted else (1 - tokens) / self.rate


class _Reply:
    """Watches what is sent, and adds the headers that every reply has."""

    HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0  # until a reply has begun

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self.HEADERS]
        await self._send(message)

    async def refuse(self, refusal: Refused) -> None:
        if self.status:
            return  # too late to say anything else
        body = failure(refusal.code, refusal.message)
        given = {"content-type": "application/json", "content-length": str(len(body))}
        headers = [(k.encode(), v.encode()) for k, v in (given | refusal.headers).items()]
        await self.send(
            {"type": "http.response.start", "status": refusal.status, "headers": headers}
        )
        await self.send({"type": "http.response.body", "body": body})


class Guard:
    """ASGI middleware that lets through what the protection allows.

    Args:
        app: The app behind it.
        protection: Its limits.
        tally: Counts requests, those too that are refused.
    """

    def __init__(self, app: App, protection: Protection, tally: Tally | None = None) -> None:
        self.app, self.protection, self.tally = app, protection, tally or Tally()
        self.buckets = Buckets(protection.rate, protection.burst)
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, reply, caller, trace = time.perf_counter(), _Reply(send), None, None
        try:
            if scope["path"] in OPEN_PATHS:
                await self.app(scope, receive, reply.send)
            else:
                caller = self._caller(scope)
                self._count(caller)
                await self._answer(scope, receive, reply)
        except Refused as refusal:
            await reply.refuse(refusal)
        except Exception:
            trace = traceback.format_exc()
            text = "an internal error; the log of the replica has the trace"
            await reply.refuse(Refused(500, "internal", text))
        finally:
            seconds = time.perf_counter() - begin
            route = getattr(scope.get("route"), "path", None)
            self.tally.request(route, scope["method"], reply.status, seconds)
            if self.protection.log != "errors" or trace is not None:
                self._log(scope, route, reply.status, seconds, caller, trace)

    def _caller(self, scope: Scope) -> str:
        """The name of the key.

        Raises:
            Refused: There is none, or it is unknown.
        """
        keys = self.protection.keys
        if not keys:
            return ""
        headers = dict(scope["headers"])
        scheme, _, secret = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            secret = headers.get(b"x-api-key", b"")
        if not secret.strip():
            raise Refused(
                401,
                "no_key",
                "send a key: Authorization: Bearer KEY",
                {"www-authenticate": "Bearer"},
            )
        given, name = _digest(secret.strip()), None
        for key in keys:  # all of them, so that the time says nothing
            if hmac.compare_digest(key.digest, given):
                name = key.name
        if name is None:
            raise Refused(403, "wrong_key", "this key is not known here")
        return name

    def _count(self, caller: str) -> None:
        """Take part in the rate and in the queue.

        Raises:
            Refused: Too many requests of this caller, or of all.
        """
        wait = self.buckets.wait(caller)
        if wait:
            again = {"retry-after": str(max(1, round(wait + 0.5)))}
            text = f"more than {self.protection.rate:g} requests a second"
            raise Refused(429, "too_fast", text, again)
        if self.running >= self.protection.queue:
            text = f"{self.protection.queue} requests are being answered; try again"
            raise Refused(503, "busy", text, {"retry-after": "1"})

    async def _answer(self, scope: Scope, receive: Receive, reply: _Reply) -> None:
        self.running += 1
        limit = self.protection.timeout
        try:
            async with asyncio.timeout(limit):
                if scope["method"] in WITH_BODY:
                    receive = await self._read(scope, receive)
                await self.app(scope, receive, reply.send)
        except TimeoutError:
            raise Refused(504, "timeout", f"no answer within {limit:g} s") from None
        finally:
            self.running -= 1

    async def _read(self, scope: Scope, receive: Receive) -> Receive:
        """Take the body in, as far as allowed, and hand it on in one piece.

        Raises:
            Refused: It is too large, by its own account or by what came.
        """
        limit = self.protection.max_body
        large = Refused(413, "too_large", f"the body is larger than {limit} bytes")
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if said.isdigit() and int(said[:20]) > limit:
            raise large
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            size += len(message.get("body", b""))
            if size > limit:
                raise large
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        whole = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return again

    def _log(
        self,
        scope: Scope,
        route: str | None,
        status: int,
        seconds: float,
        caller: str | None,
        trace: str | None,
    ) -> None:
        line = {
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(1000 * seconds, 3),
            "key": caller,
        }
        if self.protection.log == "users":
            line["path"] = scope["path"]
            line["query"] = scope.get("query_string", b"").decode("latin-1")
        if trace is not None:
            line["error"] = trace
        log(**line)
