"""The client of the benchmarks against a server that ends connections."""

import asyncio

import pytest

from recray.benchmarks.client import HOST, Client

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes"


def asked(replies: list[bytes], times: int) -> list[bytes]:
    """What a client receives from a server whose connections answer once, then end.

    Args:
        replies: What each connection answers to its first request.
        times: How often the client asks.
    """
    left = list(replies)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(left.pop(0))
        await writer.drain()
        writer.close()

    async def run() -> list[bytes]:
        server = await asyncio.start_server(answer, HOST, 0)
        port = server.sockets[0].getsockname()[1]
        async with server, Client(port) as client:
            return [await client.ask("/") for _ in range(times)]

    return asyncio.run(run())


def test_a_kept_connection_that_ended_is_replaced():
    assert asked([WHOLE] * 3, 3) == [b"yes"] * 3


@pytest.mark.parametrize(("reply", "words"), [(WHOLE[:-1], "middle"), (b"", "without a reply")])
def test_an_end_before_the_reply_is_whole_is_an_error_of_the_connection(reply, words):
    with pytest.raises(ConnectionResetError, match=words):
        asked([reply], 1)


def test_another_status_is_an_error():
    with pytest.raises(RuntimeError, match="404"):
        asked([WHOLE.replace(b"200", b"404")], 1)
