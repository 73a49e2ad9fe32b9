"""The mixed load of the benchmarks against a server of known answers."""

import asyncio

from recray.benchmarks.client import HOST, Request
from recray.benchmarks.mixed_load import NO_ANSWER, mixed_requests, send_steadily
from recray.benchmarks.synthetic import make_bundle

REPLIES = {
    "/ok": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes",
    "/full": b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
    "/wrong": b"HTTP/1.1 422 No\r\nContent-Length: 0\r\n\r\n",
    "/short": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nye",
    "/none": b"",
}


def sent(paths: list[str]) -> tuple[list[tuple[str, int, bool]], list[str]]:
    """What became of each request, and what the server was asked."""
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.split()[1].decode())
        writer.write(REPLIES[asked[-1]])
        await writer.drain()
        writer.close()

    async def run():
        server = await asyncio.start_server(answer, HOST, 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            numbers = range(len(paths))
            return await send_steadily(port, lambda n: Request(paths[n]), 200.0, numbers)

    outcomes = asyncio.run(run())
    return [(one.path, one.status, one.failed) for one in outcomes], asked


def test_each_request_is_sent_once_whatever_becomes_of_it():
    outcomes, asked = sent(list(REPLIES))
    assert sorted(asked) == sorted(REPLIES)
    assert outcomes == [
        ("/ok", 200, False),
        ("/full", 503, True),
        ("/wrong", 422, False),
        ("/short", NO_ANSWER, True),
        ("/none", NO_ANSWER, True),
    ]


def test_nobody_who_listens_is_a_failure():
    (one,) = asyncio.run(send_steadily(1, lambda _n: Request("/ok"), 1.0, range(1)))
    assert one.failed


def test_four_kinds_take_turns_and_no_rating_comes_twice(tmp_path):
    request = mixed_requests(make_bundle(tmp_path, 3, 40, 5, dim=2))
    kinds = [request(number).path.partition("?")[0] for number in range(4)]
    assert kinds == [
        "/v1/users/1/recommendations",
        "/v1/items",
        "/v1/recommendations",
        "/v1/ratings",
    ]
    ratings = {request(number).body for number in range(3, 4 * 3 * 40, 4)}
    assert len(ratings) == 3 * 40
