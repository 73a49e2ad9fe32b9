"""The load of `recray benchmark serve`, by an HTTP client that costs little, and its rows."""

import asyncio
import contextlib
import socket
import time
from typing import NamedTuple, Self

import numpy as np

from recray.benchmarks.harness import Row

HOST = "127.0.0.1"
REPLICA = b"ray::ServeReplica:recray:"
"""How the title of a replica's process begins."""
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Request(NamedTuple):
    """A request: its address, and its body if it has one."""

    path: str
    body: bytes = b""


class _NoReplyError(ConnectionResetError):
    """A connection ended before a byte of the reply came."""


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


CONNECTIONS = 16


class Client:
    """Kept-alive connections, as many as requests at one time; used as `async with Client(port)`.

    Args:
        port: Of this machine.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self._free: list[Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for _reader, writer in self._free:
            writer.close()
            await writer.wait_closed()

    async def ask(self, path: str, body: bytes = b"", headers: str = "") -> bytes:
        """The body of a reply, which must be 200.

        Raises:
            OSError: There is no connection, or it ends in the middle of a reply.
            RuntimeError: The status is another one.
        """
        status, content = await self.exchange(path, body, headers)
        if status != 200:
            raise RuntimeError(f"{path}: {status} {content[:200]!r}")
        return content

    async def exchange(self, path: str, body: bytes = b"", headers: str = "") -> tuple[int, bytes]:
        """Status and body of a reply.

        A kept connection that ended before it answered anything is replaced by a new one: a proxy
        closes them whenever it likes, and HAProxy closes all of them when its apps change.

        Raises:
            OSError: There is no connection, or it ends in the middle of a reply.
        """
        method = "POST" if body else "GET"
        request = (
            f"{method} {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n{headers}\r\n".encode()
            + body
        )
        while self._free:
            kept = self._free.pop()
            with contextlib.suppress(_NoReplyError):
                return await self._asked(request, kept)
        made = await asyncio.open_connection(HOST, self.port, limit=1 << 24)
        return await self._asked(request, made)

    async def _asked(self, request: bytes, connection: Connection) -> tuple[int, bytes]:
        reader, writer = connection
        try:
            head, content = await _reply(reader, writer, request)
        except BaseException:
            writer.close()
            raise
        self._free.append(connection)
        return int(head.split(None, 2)[1]), content


async def _reply(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[bytes, bytes]:
    """Head, in small letters, and body of what is answered."""
    head = b""
    try:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        return head, await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        if head or getattr(error, "partial", b""):
            raise ConnectionResetError("the connection ended in the middle of a reply") from error
        raise _NoReplyError("the connection ended without a reply") from error


async def peak(port: int, paths: list[str], seconds: float, headers: str = "") -> float:
    """Requests a second of a closed loop; right for peaks only."""
    end, done = time.perf_counter() + seconds, 0

    async def loop(number: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await client.ask(paths[(number + done) % len(paths)], headers=headers)
            done += 1

    begin = time.perf_counter()
    async with Client(port) as client:
        await asyncio.gather(*map(loop, range(CONNECTIONS)))
        return done / (time.perf_counter() - begin)


async def steady(port: int, paths: list[str], rate: float, seconds: float) -> list[float]:
    """Seconds that each request took since it was due; an open loop, so queueing is in it."""
    begin = time.perf_counter() + 0.05

    async def one(number: int) -> float:
        due = begin + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await client.ask(paths[number % len(paths)])
        return time.perf_counter() - due

    async with Client(port) as client:
        return await asyncio.gather(*map(one, range(int(rate * seconds))))


class Rate(Row):
    """Requests, or users of batches, a second: the median of several turns."""

    what: str
    per_second: float
    low: float
    high: float


class Latency(Row):
    """Milliseconds until an answer."""

    what: str
    p50_ms: float
    p95_ms: float
    p99_ms: float


class SteadyLoad(Row):
    """An open loop: milliseconds at a constant rate."""

    what: str
    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


class Swaps(Row):
    """Requests while models are swapped: those that failed, and lists of another version."""

    what: str
    asked: int
    failed: int
    mixed: int
    versions: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


class Production(Row):
    """Requests a second of the production profile, and of an empty deployment in it."""

    what: str
    per_second: float
    empty: float


def rate_of(what: str, speeds: list[float]) -> Rate:
    """The row of several turns."""
    return Rate(what=what, per_second=float(np.median(speeds)), low=min(speeds), high=max(speeds))


def percentiles(seconds: list[float]) -> dict[str, float]:
    """p50_ms, p95_ms and p99_ms."""
    values = np.percentile(np.array(seconds) * 1000, [50, 95, 99])
    return {f"p{p}_ms": float(v) for p, v in zip((50, 95, 99), values, strict=True)}
