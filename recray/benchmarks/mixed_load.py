"""What a shop sends all day, at a steady rate, by a client that asks nothing twice."""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from recray.benchmarks.client import HOST, Request
from recray.inference.bundle import Bundle

NO_ANSWER = 0
"""In place of a status: no connection, or one that ended before the whole reply."""
GIVEN_UP_SECONDS = 30.0


class Outcome(NamedTuple):
    """How a request ended: the clock when it was due, seconds until it was done, its status."""

    due: float
    seconds: float
    status: int
    path: str

    @property
    def failed(self) -> bool:
        """No answer, or one of the service's side."""
        return self.status == NO_ANSWER or self.status >= 500


def mixed_requests(bundle: Bundle) -> Callable[[int], Request]:
    """The request of a number: in turn a list, a search, a list of somebody new, and a rating.

    Each rating is of another pair of user and item, as long as there are such.
    """
    users = bundle.user_ids.raw.tolist()
    items = bundle.item_ids.raw[: bundle.item_ids.known].tolist()

    def request(number: int) -> Request:
        turn, kind = divmod(number, 4)
        user, item = users[turn % len(users)], items[turn // len(users) % len(items)]
        if kind == 0:
            return Request(f"/v1/users/{user}/recommendations?k=10")
        if kind == 1:
            return Request("/v1/items?query=film")
        if kind == 2:
            rated = [{"item": i, "rating": 4} for i in items[turn % 100 : turn % 100 + 10]]
            return Request("/v1/recommendations", json.dumps({"ratings": rated}).encode())
        rating = {"user": user, "item": item, "rating": 3, "key": f"{number}"}
        return Request("/v1/ratings", json.dumps(rating).encode())

    return request


async def send_steadily(
    port: int, request: Callable[[int], Request], rate: float, numbers: range, headers: str = ""
) -> Sequence[Outcome]:
    """Send the requests of these numbers, each when it is due and on a connection of its own."""
    begin = time.perf_counter() + 0.05

    async def one(place: int, number: int) -> Outcome:
        due = begin + place / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asked = request(number)
        status = await _status(port, asked, headers)
        return Outcome(due, time.perf_counter() - due, status, asked.path)

    return await asyncio.gather(*itertools.starmap(one, enumerate(numbers)))


async def _status(port: int, request: Request, headers: str) -> int:
    """Status of the reply; NO_ANSWER where none comes whole."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
        async with asyncio.timeout(GIVEN_UP_SECONDS):
            return await _exchange(port, request, headers)
    return NO_ANSWER


async def _exchange(port: int, request: Request, headers: str) -> int:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        method = "POST" if request.body else "GET"
        head = f"{method} {request.path} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(request.body)}\r\n"
        writer.write(f"{head}{headers}\r\n".encode() + request.body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = answer.partition(b"content-length:")[2].split(b"\r\n")[0]
        await reader.readexactly(int(size or 0))
        return int(answer.split(None, 2)[1])
    finally:
        writer.close()
