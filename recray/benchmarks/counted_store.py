"""An S3 store behind the counting proxy, both in this process, that recray finds."""

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

import pyarrow.fs as pafs

from recray.benchmarks.counting_proxy import Proxy
from recray.errors import RecrayError
from recray.runtime.environment import log_levels_kept, switched

BUCKET = "data"
MOTO = "moto.server"
REQUEST_LOGGER = "werkzeug"
"""Where moto's server says each request, one line for each."""


def environment(url: str) -> dict[str, str | None]:
    """The variables by which recray, and the workers of a Ray that starts later, find a store."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ENDPOINT_URL_S3": None,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_SESSION_TOKEN": None,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def counted_store() -> Iterator[Proxy]:
    """Yields the proxy before an empty bucket, BUCKET, of moto's server.

    Raises:
        RecrayError: moto is not installed.
    """
    if find_spec(MOTO.split(".")[0]) is None:
        raise RecrayError("the benchmark store needs moto: pip install 'moto[s3,server]'")
    with log_levels_kept(REQUEST_LOGGER), _moto() as address, Proxy(address).running() as proxy:
        logging.getLogger(REQUEST_LOGGER).setLevel(logging.ERROR)
        with switched(environment(proxy.url), overrule=True):
            maker, _ = pafs.FileSystem.from_uri(f"s3://{BUCKET}?allow_bucket_creation=true")
            maker.create_dir(BUCKET)
            yield proxy


@contextmanager
def _moto() -> Iterator[tuple[str, int]]:
    """Yields host and port of a server that is empty at its end: those of a process share all."""
    server = import_module(MOTO).ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield host, port
    finally:
        reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset).close()
        server.stop()
