"""A store of tests that counts what it is asked for, and may change a file between two requests."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from moto.moto_server import werkzeug_app

from tests.s3_store import s3_store


@dataclass
class CountedStore:
    """An S3 store and the requests that it has been sent.

    Args:
        client: One of boto3, whose requests count too.
        requests: Method, and path with its query, in order.
        before: Called with each of them before it is answered.
    """

    client: Any
    requests: list[tuple[str, str]] = field(default_factory=list)
    before: Callable[[str, str], None] = lambda _method, _path: None

    def put(self, key: str, content: bytes) -> None:
        """Write a file, which is not counted."""
        self.client.put_object(Bucket="data", Key=key, Body=content)
        self.requests.clear()

    def taken(self) -> list[str]:
        """The methods of the requests since the last call."""
        methods = [method for method, _ in self.requests]
        self.requests.clear()
        return methods


@contextmanager
def counted_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedStore]:
    """Yields an empty bucket `data` that counts."""
    answer = werkzeug_app.DomainDispatcherApplication.__call__
    with s3_store(monkeypatch) as client:
        for one in client.list_objects_v2(Bucket="data").get("Contents", []):
            client.delete_object(Bucket="data", Key=one["Key"])  # of a test before, in one process
        store = CountedStore(client)

        def call(self: Any, environ: dict[str, str], start: Any) -> Any:
            query = environ.get("QUERY_STRING", "")
            path = environ["PATH_INFO"] + (f"?{query}" if query else "")
            store.requests.append((environ["REQUEST_METHOD"], path))
            store.before(environ["REQUEST_METHOD"], path)
            return answer(self, environ, start)

        monkeypatch.setattr(werkzeug_app.DomainDispatcherApplication, "__call__", call)
        yield store
