"""The proxy before a store hands on what it is given, counts it, and fails what it is told to."""

import http.client
from contextlib import closing

import pytest

from recray.benchmarks.counting_proxy import Proxy, Refusal, kind_and_key


def connect(proxy):
    return closing(http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=20))


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/data/a/b%20c", ("GET", "data/a/b c")),
        ("HEAD", "/data", ("HEAD", "data")),
        ("GET", "/data?list-type=2&prefix=a%2F", ("LIST", "data/a/")),
        ("GET", "/data/?prefix=", ("LIST", "data/")),
        ("PUT", "/data/a", ("PUT", "data/a")),
        ("PUT", "/data/a?partNumber=1&uploadId=x", ("MULTIPART", "data/a")),
        ("POST", "/data/a?uploads", ("MULTIPART", "data/a")),
        ("POST", "/data?delete", ("DELETE", "data")),
        ("DELETE", "/data/a", ("DELETE", "data/a")),
    ],
)
def test_a_request_has_a_kind_and_a_key(method, path, expected):
    assert kind_and_key(method, path) == expected


def test_requests_on_one_connection_are_handed_on_and_counted(proxy, s3):
    content = bytes(range(256)) * 8192  # more than lies in memory
    with proxy.watch() as traffic, connect(proxy) as connection:
        for method, headers, body in (
            ("PUT", {"x-amz-acl": "public-read"}, content),
            ("GET", {"Range": "bytes=256-511"}, b""),
            ("HEAD", {}, b""),
            ("GET", {}, b""),
        ):
            connection.request(method, "/data/a", body, headers)
            reply = connection.getresponse()
            got = reply.read()
            if method == "GET":
                assert got == (content[256:512] if headers else content)
            if method == "HEAD":
                assert reply.headers["Content-Length"] == str(len(content))
    assert [r.kind for r in traffic.requests] == ["PUT", "GET", "HEAD", "GET"]
    assert [r.status for r in traffic.requests] == [200, 206, 200, 200]
    assert (traffic.up(), traffic.down("data/a")) == (len(content), 256 + len(content))
    assert traffic.count("GET", below="data/") == 2
    assert traffic.down("other") == 0


def test_a_body_in_chunks_is_put_together(proxy, s3):
    parts = [b"one", b"two" * 1000]
    with proxy.watch() as traffic, connect(proxy) as connection:
        connection.request("PUT", "/data/c", iter(parts), encode_chunked=True)
        assert connection.getresponse().status == 200
    assert s3.get_object(Bucket="data", Key="c")["Body"].read() == b"".join(parts)
    assert traffic.up() == 3003


def test_the_lot_fails_the_same_requests_again(s3, proxy):
    def statuses(seed):
        with Proxy(proxy.store, fail_share=0.3, seed=seed).running() as failing:
            with failing.watch() as traffic, connect(failing) as connection:
                for _ in range(20):
                    connection.request("HEAD", "/data")
                    connection.getresponse().read()
            return [request.status for request in traffic.requests]

    first = statuses(1)
    assert {200, 503} == set(first)
    assert first == statuses(1) != statuses(2)


def test_an_error_is_what_s3_would_say(proxy):
    proxy.refusal = Refusal(403, "AccessDenied", "Access Denied", writes_only=True)
    with connect(proxy) as connection:
        connection.request("PUT", "/data/a", b"x")
        reply = connection.getresponse()
        assert (reply.status, b"<Code>AccessDenied</Code>" in reply.read()) == (403, True)
        connection.request("GET", "/data")
        reply = connection.getresponse()
        assert (reply.status, reply.read()[:5]) == (200, b"<?xml")


def test_a_dead_store_closes_the_connection(proxy):
    proxy.health = "closed"
    with proxy.watch() as traffic, connect(proxy) as connection:
        connection.request("GET", "/data")
        with pytest.raises(http.client.RemoteDisconnected):
            connection.getresponse()
    assert (traffic.count("LIST"), traffic.failed()) == (1, 1)
