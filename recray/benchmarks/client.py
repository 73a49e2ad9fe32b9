"""An HTTP client that costs little: the load of `recray benchmark serve`."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

HOST = "127.0.0.1"
CONNECTIONS = 16


class Connection:
    """One kept-alive connection.

    Args:
        port: Of this machine.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str, body: bytes = b"", headers: str = "") -> bytes:
        """The body of a reply, which must be 200."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(HOST, self.port, limit=1 << 24)
        reader, writer = self._streams
        method = "POST" if body else "GET"
        writer.write(
            f"{method} {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n{headers}\r\n".encode()
            + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        content = await reader.readexactly(size)
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(f"{path}: {head.splitlines()[0]!r} {content[:200]!r}")
        return content


async def peak(port: int, paths: list[str], seconds: float, headers: str = "") -> float:
    """Requests a second of a closed loop; right for peaks only."""
    end, done = time.perf_counter() + seconds, 0

    async def loop(number: int) -> None:
        nonlocal done
        connection = Connection(port)
        while time.perf_counter() < end:
            await connection.ask(paths[(number + done) % len(paths)], headers=headers)
            done += 1

    begin = time.perf_counter()
    await asyncio.gather(*map(loop, range(CONNECTIONS)))
    return done / (time.perf_counter() - begin)


async def steady(port: int, paths: list[str], rate: float, seconds: float) -> list[float]:
    """Seconds that each request took since it was due; an open loop, so queueing is in it."""
    free: list[Connection] = []
    begin = time.perf_counter() + 0.05

    async def one(number: int) -> float:
        due = begin + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        connection = free.pop() if free else Connection(port)
        await connection.ask(paths[number % len(paths)])
        free.append(connection)
        return time.perf_counter() - due

    requests: list[Coroutine[Any, Any, float]] = [one(n) for n in range(int(rate * seconds))]
    return await asyncio.gather(*requests)
