"""An S3 store on loopback, which recray finds by the environment: moto's server."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from recray.benchmarks.counted_store import environment


@contextmanager
def s3_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yields a client of an empty bucket `data`; the store ends with the block."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in environment(f"http://{host}:{port}").items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    try:
        yield client
    finally:
        server.stop()
